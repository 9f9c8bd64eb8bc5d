"Killed before its first, second, third … change of a folder: what is left is the old version, the new one, or a run that goes on to the same bytes"
import hashlib, json, os, shutil, signal, subprocess, sys, tempfile, traceback
from dataclasses import replace
from pathlib import Path
import pytest
from project import root

if __name__=='__main__':
    import numpy as np, pandas as pd, torch
    from sae_notebooks.acts.combine import concat, store_rows
    from sae_notebooks.acts.extract import extract
    from sae_notebooks.acts.store import ActStore
    from sae_notebooks.acts.write import set_items
    from sae_notebooks.core.codes import dense_to_codes
    from sae_notebooks.core.files import BadInput, NotFound
    from sae_notebooks.metrics.report import FeatureReport, load_report
    from sae_notebooks.models.load import load_model
    from sae_notebooks.saes.base import load_sae, make_sae, save_sae
    from sae_notebooks.saes.interop import read_sae, save_as
    from sae_notebooks.training.loop import train
    from sae_notebooks.training.stack import train_many

JOBS = 'extract append store_rows set_items combine train train_many save_sae report foreign'.split()
SHORT = 'store_rows set_items combine save_sae report foreign'.split() # extraction and training are killed in test_faults.py as well
CALLS = 'replace rename unlink remove link rmdir'.split()

# --- what is done, over what, and how it is read -----------------------------------------------------------------------

def digest(*parts):
    h = hashlib.sha256()
    for p in parts: h.update(p if isinstance(p,bytes) else p.numpy().tobytes() if hasattr(p,'numpy') else repr(p).encode())
    return h.hexdigest()

def read_store(path):
    s = ActStore(path)
    s.verify()
    return digest(s[:].contiguous(), s.item.tolist(), s.items.to_csv())

def read_weights(sae): return digest(sae.cfg, *(t.detach().contiguous() for t in sae.state_dict().values()))
def read_grid(path): return digest(*(read_weights(load_sae(path/f'{i:03d}')) for i in range(3)))
def read_report(path):
    r = load_report(path)
    return digest(r.features.to_csv(), r.summary, r.top_items.tolist(), {k:t.to_csv() for k,t in r.tables.items()}, r.codes is not None and r.codes.to_dense())

def make_report(seed, whole):
    acts = torch.rand(9,4,generator=torch.Generator().manual_seed(seed))
    r = FeatureReport(pd.DataFrame(dict(ms=acts[0].numpy())).rename_axis('feature'), dict(dead=0, ms=seed/7, floor=.1), np.full((4,2),seed), acts[:4,:2].numpy())
    return replace(r, codes=dense_to_codes(acts), item=np.arange(9), tables=dict(labels=r.features)) if whole else r

def jobs(base):
    "Name -> (what makes the old version or None, the job, how the result is read)"
    x = torch.randn(64,16,generator=torch.Generator().manual_seed(0))
    said,names = [f'Once upon a time there were {i} dogs.' for i in range(12)],pd.DataFrame(dict(file=[f'{i}.jpg' for i in range(64)], label='old'))
    model,quiet = load_model('stories260k'),dict(batch_size=4, shard_items=4, progress=False)
    halves = [store_rows(base/f'half{k}', x[32*k:32*k+32], shard_rows=20) for k in (0,1)]
    fast = dict(steps=5, batch_size=8, checkpoint_every=2, log_every=1, progress=False, loggers=())
    grid = [dict(architecture='topk',d_sae=32,k=2), dict(architecture='topk',d_sae=32,k=3,seed=1), dict(architecture='relu',d_sae=32)]
    small = lambda seed: make_sae('topk', d_in=16, d_sae=32, k=2+seed, seed=seed)
    trained = lambda path: digest(read_weights(s := load_sae(path)), (path/'history.csv').read_bytes(), s.metadata['scale'])
    def append(path):
        try: extract(model, said[8:], path, append=True, **quiet)
        except BadInput as e: assert 'already holds these items' in str(e)
    return dict(
        extract=(None, lambda p: extract(model, said, p, **quiet), read_store),
        append=(lambda p: extract(model, said[:8], p, **quiet), append, read_store),
        store_rows=(None, lambda p: store_rows(p, x, names, shard_rows=20), read_store),
        set_items=(lambda p: store_rows(p, x, names, shard_rows=20), lambda p: set_items(p, names.assign(label='new')), read_store),
        combine=(None, lambda p: concat(halves, p), read_store),
        train=(None, lambda p: train(x, 'batchtopk', p, sae_options=dict(d_sae=32,k=2), average=.9, held_out=x[:9], eval_every=3, **fast), trained),
        train_many=(None, lambda p: train_many(x, grid, p, **{k:v for k,v in fast.items() if k!='loggers'}), read_grid),
        save_sae=(lambda p: save_sae(small(0), p), lambda p: save_sae(small(1), p, overwrite=True), lambda p: read_weights(load_sae(p))),
        report=(lambda p: make_report(1,True).save(p), lambda p: make_report(2,False).save(p, overwrite=True), read_report),
        foreign=(lambda p: save_sae(small(0), p), lambda p: save_as(small(1), p, 'dictionary_learning', overwrite=True), lambda p: read_weights(read_sae(p))))

# --- killing -----------------------------------------------------------------------------------------------------------

def forked(fn, said, last=None):
    "Exit status of a child that does `fn`, and is killed before its call number `last` of those that change a folder"
    pid = os.fork()
    if pid: return os.waitpid(pid,0)[1]
    left = [last]
    def mortal(step):
        def call(*a, **kw):
            if left[0] is not None:
                if left[0]==0: os.kill(os.getpid(), signal.SIGKILL)
                left[0] -= 1
            return step(*a, **kw)
        return call
    for name in CALLS: setattr(os, name, mortal(getattr(os, name)))
    try: fn()
    except BaseException: said.write_text(traceback.format_exc()); os._exit(1)
    os._exit(0)

def files(folder): return {str(p.relative_to(folder)):p.read_bytes() for p in sorted(folder.rglob('*')) if p.is_file()}

def matrix(job, base, again):
    "Kill a job before each of its calls; `again`: and its repetition as well"
    (before,run,read),said = jobs(base)[job],base/'said'
    old,whole,bad,kills = base/'old',base/'whole',[],0
    def fresh(path):
        shutil.rmtree(path, ignore_errors=True)
        if before: shutil.copytree(old, path)
        return path
    def go(path, last=None): return forked(lambda: run(path), said, last)
    if before: assert forked(lambda: before(old), said)==0, said.read_text()
    assert go(fresh(whole))==0, said.read_text()
    versions,want = {read(whole)}|({read(old)} if before else set()),files(whole)
    assert len(versions)==1+bool(before)
    def look(at, path):
        copy = base/'look'
        shutil.rmtree(copy, ignore_errors=True)
        if path.exists(): shutil.copytree(path, copy)
        try: seen = read(copy)
        except (NotFound,BadInput) as e: # said in words, and only where there was no old version
            seen = None
            if before or not ('unfinished' in str(e) or 'no SAE' in str(e) or 'no activation store' in str(e)): bad.append(f'{at}: {e}')
        if seen and seen not in versions: bad.append(f'{at}: a mixture')
    for i in range(200):
        path = fresh(base/'out')
        if (status := go(path, i))==0: break
        if status!=signal.SIGKILL: bad.append(f'{i}: {said.read_text()[-400:]}'); continue
        kills += 1
        look(i, path)
        for j in range(i%5, 60, 5) if again else ():
            if go(path, j)!=signal.SIGKILL: break
            kills += 1
            look((i,j), path)
        if go(path)!=0: bad.append(f'{i}, then once more: {said.read_text()[-400:]}'); continue
        got = files(path)
        if got!=want: bad.append(f'{i}, then once more: other files: {sorted(k for k in {**got,**want} if got.get(k)!=want.get(k))}')
    return dict(kills=kills, bad=bad)

def main(out, *again):
    torch.set_num_threads(1)
    found = {}
    for job in os.environ.get("JOBS","").split() or JOBS:
        with tempfile.TemporaryDirectory() as d: found[job] = matrix(job, Path(d), bool(again))
        print(job, found[job], flush=True)
    Path(out).write_text(json.dumps(found))

# --- tests -------------------------------------------------------------------------------------------------------------

def killed(folder, jobs, *again):
    env = {**os.environ, **dict(JOBS=' '.join(jobs), OMP_NUM_THREADS='1', MKL_NUM_THREADS='1', TQDM_DISABLE='1', PYTHONPATH=str(root))}
    r = subprocess.run([sys.executable, __file__, folder/'found.json', *again], cwd=root, env=env, capture_output=True, text=True, timeout=1200)
    assert r.returncode==0, r.stdout+r.stderr
    return json.loads((folder/'found.json').read_text())

@pytest.fixture(scope='module')
def once(tmp_path_factory): return killed(tmp_path_factory.mktemp('kills'), SHORT)

@pytest.mark.parametrize('job', SHORT)
def test_killed_before_every_change(once, job):
    assert once[job]['kills']>=5 and not once[job]['bad'], once[job]

@pytest.mark.slow
def test_every_job_killed_before_every_change(tmp_path):
    found = killed(tmp_path, JOBS)
    assert all(v['kills']>=5 and not v['bad'] for v in found.values()), found

@pytest.mark.slow
def test_killed_twice(tmp_path):
    found = killed(tmp_path, JOBS, 'again')
    assert sum(v['kills'] for v in found.values())>500 and not any(v['bad'] for v in found.values()), found

if __name__=='__main__': main(*sys.argv[1:])
