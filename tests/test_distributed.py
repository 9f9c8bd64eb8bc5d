"Two processes train what one trains, sharing rows or the dictionary; and measure what one measures"
import json,os,subprocess,sys
import pytest,torch
from sae_notebooks.saes.base import load_sae
from project import root

SCRIPT = '''
import json,os,sys
import torch
torch.set_num_threads(1)
from sae_notebooks.core.synthetic import plant
from sae_notebooks.training.loop import train
from sae_notebooks.training.stack import train_many
x = plant(64,128).sample(2048, seed=1)[0]
out,runs = sys.argv[1],json.loads(sys.argv[2])
for name,arch,kw in runs:
    train(x, arch, f'{out}/{name}', sae_options=dict(d_sae=256,k=8), steps=30, batch_size=256, log_every=10, checkpoint_every=10,
          precision='float32', progress=False, **dict(lr=1e-3)|kw)
x = plant(16,32).sample(256, seed=1)[0]
train_many(x, [dict(architecture='relu', d_sae=32)], f'{out}/grid', steps=4, batch_size=32, progress=False)
if torch.distributed.is_initialized(): torch.distributed.destroy_process_group()
'''
cases = [('topk',False),('batchtopk',False),('topk',True),('batchtopk',True)]
# features that die and are revived; where the dictionary is shared, the rate that the rule gives the whole
options = {False:dict(dead_after=1024), True:dict(aux=0., lr=None)}

def launch(n, script, *args):
    start = [sys.executable] if n==1 else [sys.executable,'-m','torch.distributed.run','--standalone','--nproc-per-node',str(n)]
    env = {**os.environ,'OMP_NUM_THREADS':'1'}
    r = subprocess.run([*start, script, *map(str,args)], cwd=root, env=env, text=True, capture_output=True, timeout=300)
    assert r.returncode==0, r.stdout+r.stderr[-3000:]

@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    "Every case by one process, and by two that stay together from case to case"
    d = tmp_path_factory.mktemp('distributed')
    (d/'s.py').write_text(SCRIPT)
    for n in (1,2):
        runs = [(f'{arch}-{shard}', arch, options[shard]|(dict(shard=True) if shard and n==2 else {})) for arch,shard in cases]
        launch(n, d/'s.py', d/str(n), json.dumps(runs))
    return d

@pytest.mark.parametrize('arch,shard', cases)
def test_two_are_one(trained, arch, shard):
    folders = [trained/n/f'{arch}-{shard}' for n in '12']
    one,two = map(load_sae, folders)
    for (n,p),q in zip(one.state_dict().items(), two.state_dict().values()): assert torch.allclose(p, q, atol=1e-5), (n,(p-q).abs().max())
    there = [sorted(p.name for p in f.iterdir()) for f in folders]
    assert there[0]==there[1]

def test_two_processes_train_a_grid_in_one_folder(trained):
    assert load_sae(trained/'2'/'grid'/'000').d_sae==32 and not list((trained/'2'/'grid').rglob('.*'))

MEASURE = '''
import sys, torch
torch.set_num_threads(1)
from sae_notebooks.dev.cli import main
d,out = sys.argv[1:3]
main(['measure',d+'/sae',d+'/layer',d+'/judge','--out',out,'--draws','20'])
'''

def test_two_measure_what_one_measures(tmp_path):
    import numpy as np, pandas as pd
    from sae_notebooks.acts.combine import store_rows
    from sae_notebooks.core.synthetic import plant
    from sae_notebooks.metrics.report import load_report
    from sae_notebooks.saes.base import make_sae, save_sae
    x,codes = plant(16,24,l0=2).sample(501, seed=1)
    items = pd.DataFrame(dict(file=[f'{i}.jpg' for i in range(501)], label=[str(k%5) for k in codes.to_dense().argmax(1).tolist()]))
    store_rows(tmp_path/'layer', x, items); store_rows(tmp_path/'judge', codes.to_dense()+.1, items)
    save_sae(make_sae('topk', d_in=16, d_sae=40, k=3, seed=0), tmp_path/'sae')
    (tmp_path/'m.py').write_text(MEASURE)
    for n in (1,2): launch(n, tmp_path/'m.py', tmp_path, tmp_path/f'r{n}')
    one,two = (load_report(tmp_path/f'r{n}') for n in (1,2))
    for c in one.features:
        if one.features[c].dtype.kind in 'if': assert np.allclose(one.features[c], two.features[c], rtol=0, atol=1e-10, equal_nan=True), c
        else: assert (one.features[c]==two.features[c]).all(), c
    for k in ('fve','cosine','l0','ms','purity','fms_star'): assert abs(one.summary[k]-two.summary[k])<1e-10, k
    assert (one.top_items==two.top_items).all()
