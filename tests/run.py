"""Run everything that can fail: API notebooks with nbdev_test, the rest with pytest. Last line: `N passed, N failed`.

    python tests/run.py [words that notebook paths or pytest items must contain]
"""
import os, subprocess, sys, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from xml.etree import ElementTree

root = Path(__file__).resolve().parent.parent
bin_,runs = Path(sys.executable).parent,root/'_runs'
workers,nb_limit,pytest_limit = 2,900,3000          # seconds

def env(at_once=1):
    threads = str(max(1, (os.cpu_count() or 1)//at_once))      # processes that run side by side share the cores
    return {**dict.fromkeys(['OMP_NUM_THREADS','MKL_NUM_THREADS'], threads), 'HF_HUB_OFFLINE':'1', 'TRANSFORMERS_OFFLINE':'1',
            'TQDM_DISABLE':'1', 'MPLBACKEND':'agg', **os.environ}

def api_notebooks():
    "Those that nbdev_test owns: not hidden, and no `.notest` beside them"
    found = sorted((root/'nbs').rglob('*.ipynb'))
    return [p for p in found if not any(part[0] in '._' for part in p.relative_to(root/'nbs').parts) and not (p.parent/'.notest').exists()]

def call(cmd, limit):
    "(exit status, what was printed); a command that takes too long has failed"
    try: r = subprocess.run(cmd, cwd=root, env=env(workers), capture_output=True, text=True, errors='replace', timeout=limit)
    except subprocess.TimeoutExpired as e: return 124, f'stopped after {limit} s\n{(e.stdout or b"")[-2000:]}'
    return r.returncode, r.stdout+r.stderr

def test_notebook(path):
    t = time.perf_counter()
    status,said = call([str(bin_/'nbdev_test'),'--path',str(path),'--n_workers','0'], nb_limit)
    print(f'{"failed" if status else "ok":6} {time.perf_counter()-t:6.1f} s  {path.relative_to(root)}', flush=True)
    if status: print(said.strip()[-6000:], flush=True)
    return status==0

def test_pytest(words):
    "(passed, failed, skipped) of pytest, from its own record"
    xml = runs/'pytest.xml'
    xml.unlink(missing_ok=True)
    cmd = [sys.executable,'-m','pytest','tests',f'--junitxml={xml}','-rs','--durations=5',*(['-k',' or '.join(words)] if words else [])]
    try: status = subprocess.run(cmd, cwd=root, env=env(), timeout=pytest_limit).returncode
    except subprocess.TimeoutExpired: status = 124; print(f'pytest stopped after {pytest_limit} s')
    if not xml.exists(): return 0,1,0
    n = {k: sum(int(s.get(k,0)) for s in ElementTree.parse(xml).getroot().iter('testsuite')) for k in ('tests','failures','errors','skipped')}
    failed = n['failures']+n['errors']
    if status not in (0,1,5) and not failed: failed = 1       # interrupted, or nothing could be collected
    return n['tests']-n['failures']-n['errors']-n['skipped'], failed, n['skipped']

def main(words):
    runs.mkdir(exist_ok=True)
    nbs = [p for p in api_notebooks() if not words or any(w in str(p.relative_to(root)) for w in words)]
    with ThreadPoolExecutor(workers) as pool: ok = list(pool.map(test_notebook, nbs))
    passed,failed,skipped = test_pytest(words)
    passed,failed = passed+sum(ok),failed+len(ok)-sum(ok)
    if skipped: print(f'{skipped} skipped')
    summary = f'{passed} passed, {failed} failed'
    (runs/'summary.txt').write_text(summary+'\n')
    print(summary, flush=True)
    return int(failed>0 or passed==0)

if __name__=='__main__': sys.exit(main(sys.argv[1:]))
