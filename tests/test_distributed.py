"Two processes train what one trains: sharing rows, sharing the dictionary"
import os,subprocess,sys
import pytest,torch
from sae_notebooks.saes.base import load_sae
from project import root

SCRIPT = '''
import json,os,sys
import torch
torch.set_num_threads(1)
from sae_notebooks.core.synthetic import plant
from sae_notebooks.training.loop import train
x = plant(64,128).sample(2048, seed=1)[0]
out,arch,kw = sys.argv[1],sys.argv[2],json.loads(sys.argv[3])
train(x, arch, out, sae_options=dict(d_sae=256,k=8), steps=30, batch_size=256, lr=1e-3, log_every=10, checkpoint_every=10, precision='float32', progress=False, **kw)
if torch.distributed.is_initialized(): torch.distributed.destroy_process_group()
'''

def run(n, tmp_path, name, arch, **kw):
    import json
    (tmp_path/'s.py').write_text(SCRIPT)
    env = {**os.environ,'OMP_NUM_THREADS':'1'}
    start = [sys.executable] if n==1 else [sys.executable,'-m','torch.distributed.run','--standalone','--nproc-per-node',str(n)]
    r = subprocess.run([*start, tmp_path/'s.py', tmp_path/name, arch, json.dumps(kw)], cwd=root, env=env, text=True, capture_output=True, timeout=300)
    assert r.returncode==0, r.stdout+r.stderr[-3000:]
    return load_sae(tmp_path/name)

@pytest.mark.parametrize('arch,shard', [('topk',False),('batchtopk',False),('topk',True),('batchtopk',True)])
def test_two_are_one(tmp_path, arch, shard):
    kw = dict(aux=0.) if shard else dict(dead_after=1024) # with features that die, and are revived
    one,two = run(1, tmp_path, 'one', arch, **kw),run(2, tmp_path, 'two', arch, shard=shard, **kw)
    for (n,p),q in zip(one.state_dict().items(), two.state_dict().values()): assert torch.allclose(p, q, atol=1e-5), (n,(p-q).abs().max())
    assert sorted(p.name for p in (tmp_path/'two').iterdir())==sorted(p.name for p in (tmp_path/'one').iterdir())
