"What is measured may be larger than memory: peaks of processes of their own"
import json, os, subprocess, sys
import pytest
from project import root

CODE = '''
import json, resource, sys, time
import pandas as pd, torch
torch.set_num_threads(1)
from sae_notebooks.acts.combine import store_rows
from sae_notebooks.acts.store import ActStore
from sae_notebooks.metrics.measure import measure
from sae_notebooks.saes.base import make_sae
what,n,d_sae,d_emb,labels = sys.argv[1],*map(int,sys.argv[2:])
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1024 # MB
if what=='make':
    g = torch.Generator().manual_seed(0); kind = torch.randint(max(labels,2), (n,), generator=g); items = pd.DataFrame(dict(file=[f'{i}.jpg' for i in range(n)]))
    if labels: items['label'] = [f'c{k}' for k in kind.tolist()]
    for name,d in (('acts',64),('judge',d_emb)): # images of a kind are alike
        centre = torch.randn(max(labels,2), d, generator=g); store_rows(name, centre[kind]+torch.randn(n,d,generator=g), items, dtype='float16')
else:
    torch.manual_seed(0); sae = make_sae('topk', d_in=64, d_sae=d_sae, k=32); start,t = peak(),time.time()
    r = measure(sae, ActStore('acts'), ActStore('judge'), draws=20, fms=False, progress=False)
    print(json.dumps(dict(start=start, peak=peak(), seconds=time.time()-t, dead=r.summary['dead'], images=r.summary['images'])))
'''

def measured(folder, n, d_sae, d_emb, labels, limit):
    folder.mkdir()
    def call(what):
        r = subprocess.run([sys.executable,'-c',CODE,what,*map(str,(n,d_sae,d_emb,labels))], cwd=folder, env={**os.environ,'PYTHONPATH':str(root)}, capture_output=True, text=True, timeout=limit)
        assert not r.returncode, r.stderr[-2000:]
        return r.stdout
    call('make'); said = json.loads(call('measure').splitlines()[-1])
    print(f'{n} rows x {d_sae} features: {said}')
    return said

def test_memory_does_not_grow_with_the_rows(tmp_path):
    "Five times the rows: the embeddings grow, and little else"
    small,large = (measured(tmp_path/str(n), n, 4096, 32, 0, 300) for n in (5_000,25_000))
    embeddings = 20_000*32*8/1e6
    assert large['peak']-small['peak']<100+4*embeddings, (small,large)

@pytest.mark.slow
def test_200000_rows_of_65536_features(tmp_path):
    r = measured(tmp_path/'large', 200_000, 65_536, 512, 20, 5000)
    assert r['images']==200_000 and r['peak']<2048, r
