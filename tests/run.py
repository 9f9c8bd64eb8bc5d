"""Run everything that can fail: API notebooks with nbdev_test, the rest with pytest, three at a time where no clock is looked at. Last line: `N passed, N failed`.

    python tests/run.py [words that notebook paths or pytest items must contain]
    python tests/run.py --slow [words]    the cells marked `#| slow` and the tests marked slow, which the rest leaves out: coverage of intervals, speed,
                                          long runs of fuzzing and of kills, measuring 200,000 rows
"""
import atexit, json, multiprocessing, os, re, subprocess, sys, threading, time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import connection, forkserver
from pathlib import Path
from xml.etree import ElementTree

root = Path(__file__).resolve().parent.parent
bin_,runs = Path(sys.executable).parent,root/'_runs'
workers,nb_limit,pytest_limit,slow_limit = 3,900,3000,5400          # seconds
beside = [f'test_{n}.py' for n in 'docs faults hygiene store provenance kept kills bombs texts arguments prose plain_install newcomer reading '
                                   'fuzz assets interop naming gpu servers scale distributed paper_scale paper_scale_medsae '
                                   'steering steering_vlm small_models small_vision_language geometry stops'.split()]

def env(at_once=1):
    threads = str(max(1, (os.cpu_count() or 1)//at_once))      # processes that run side by side share the cores
    return {**dict.fromkeys(['OMP_NUM_THREADS','MKL_NUM_THREADS'], threads), 'HF_HUB_OFFLINE':'1', 'TRANSFORMERS_OFFLINE':'1',
            'TQDM_DISABLE':'1', 'MPLBACKEND':'agg', **os.environ}

forks = multiprocessing.get_context('forkserver')
# glibc gives every large tensor back to the system and asks for it again: a third of the time of an image model on a CPU
measure_memory = 'test_store','test_scale','test_bombs'                  # as users' processes do
keep_memory = dict(MALLOC_MMAP_THRESHOLD_=str(2**32), MALLOC_TRIM_THRESHOLD_=str(2**32))

def api_notebooks():
    "Those that nbdev_test owns: not hidden, and no `.notest` beside them"
    found = sorted((root/'nbs').rglob('*.ipynb'))
    return [p for p in found if not any(part[0] in '._' for part in p.relative_to(root/'nbs').parts) and not (p.parent/'.notest').exists()]

def slow_notebooks():
    "API notebooks with a cell that only a thorough run runs"
    slow = lambda c: c['cell_type']=='code' and re.search(r'^#\|\s*slow\b', ''.join(c['source']), re.M)
    return [p for p in api_notebooks() if any(map(slow, json.loads(p.read_text(encoding='utf-8'))['cells']))]

def narrative_notebooks():
    "Those that are run from top to bottom: tutorials, papers, recipes, benchmarks"
    return sorted((p for d in ('tutorials','papers','recipes','benchmarks') for p in (root/'nbs'/d).glob('*.ipynb')), key=lambda p: (p.parent.name!='tutorials',p))

def call(cmd, limit, at_once=workers, **more):
    "(exit status, what was printed); a command that takes too long has failed"
    try: r = subprocess.run(cmd, cwd=root, env=dict(more, **env(at_once)), capture_output=True, text=True, errors='replace', timeout=limit)
    except subprocess.TimeoutExpired as e: return 124, f'stopped after {limit} s\n{(e.stdout or b"")[-2000:]}'
    return r.returncode, r.stdout+r.stderr

def test_page(path, said, paths):
    "In a process of its own: what nbdev_test does with an API notebook; what it prints goes into a file"
    if paths is None: os.environ.pop('PYTHONPATH', None)
    else: os.environ['PYTHONPATH'] = paths
    fd = os.open(said, os.O_WRONLY|os.O_CREAT|os.O_TRUNC)
    for std in (1,2): os.dup2(fd, std)
    os.chdir(root)
    from nbdev.config import get_config
    from nbdev.test import test_nb
    try: passed,_ = test_nb(path, skip_flags=get_config().tst_flags.split(), basepath=root)
    finally: atexit._run_exitfuncs(); sys.stdout.flush(); sys.stderr.flush()
    sys.exit(not passed)

one = threading.Lock()   # a child's end can be read once
def _ended(p):
    with one: return p.exitcode

def call_forked(path, limit):
    "As `call` of nbdev_test, in a fork of a process that has imported `warm` already: that is the greater part of a short page"
    said = runs/f'{path.parent.name}-{path.stem}.txt'
    said.unlink(missing_ok=True)
    p,end = forks.Process(target=test_page, args=(path,said,os.environ.get('PYTHONPATH'))),time.monotonic()+limit
    with one: p.start()                                       # which also asks after all other children
    while (code := _ended(p)) is None and time.monotonic()<end: connection.wait([p.sentinel], timeout=end-time.monotonic())
    printed = said.read_text(errors='replace') if said.exists() else 'it ended before it printed anything'
    if code is None: p.kill(); return 124,f'stopped after {limit} s\n{printed[-2000:]}'
    return code,printed

def start_forks():
    "The process that forks come from, with the surroundings that tests have"
    before = dict(os.environ)
    paths = [str(root),*filter(None, [os.environ.get('PYTHONPATH')])]
    os.environ.update(keep_memory|env(workers)|dict(PYTHONPATH=os.pathsep.join(paths)))
    forks.set_forkserver_preload(['tests.warm'])
    try: forkserver.ensure_running()
    finally: os.environ.clear(); os.environ.update(before)

def counts(xml, status):
    "(passed, failed, skipped) of a run of pytest, from its own record"
    if not xml.exists(): return 0,1,0
    n = {k: sum(int(s.get(k,0)) for s in ElementTree.parse(xml).getroot().iter('testsuite')) for k in ('tests','failures','errors','skipped')}
    failed = n['failures']+n['errors']
    if status not in (0,1,5) and not failed: failed = 1       # interrupted, or nothing could be collected
    return n['tests']-n['failures']-n['errors']-n['skipped'], failed, n['skipped']

def pytest_cmd(xml, *more):
    xml.unlink(missing_ok=True)
    return [sys.executable,'-m','pytest',f'--junitxml={xml}','-rs',*more]

def job(path):
    "(passed, failed, skipped) of what is run beside others: an API notebook, a narrative one, or a file of tests"
    t,xml = time.perf_counter(),runs/f'{path.parent.name}-{path.stem}.xml'
    if path.suffix=='.py': status,said = call(pytest_cmd(xml, '-m', 'not slow and not clock', str(path)), nb_limit, **({} if path.stem in measure_memory else keep_memory)); n = counts(xml, status)
    elif path in narrative_notebooks(): status,said = call(pytest_cmd(xml, f'tests/test_notebooks.py::test_runs[{path.relative_to(root/"nbs").as_posix()}]'), nb_limit, **keep_memory); n = counts(xml, status)
    else: status,said = call_forked(path, nb_limit); n = (int(not status),int(status!=0),0)
    print(f'{"failed" if n[1] else "ok":6} {time.perf_counter()-t:6.1f} s  {path.relative_to(root)}', flush=True)
    if n[1]: print(said.strip()[-6000:], flush=True)
    return n

def job_slow(path):
    "(passed, failed, skipped) of a notebook with its slow cells, alone, since some of them look at the clock"
    t = time.perf_counter()
    status,said = call([str(bin_/'nbdev_test'),'--path',str(path),'--flags','slow','--n_workers','0'], slow_limit, 1, **keep_memory)
    print(f'{"failed" if status else "ok":6} {time.perf_counter()-t:6.1f} s  {path.relative_to(root)}', flush=True)
    if status: print(said.strip()[-6000:], flush=True)
    return int(not status),int(status!=0),0

def thorough(words):
    "What a release waits for and `make test` leaves out"
    done = [job_slow(p) for p in slow_notebooks() if not words or any(w in str(p.relative_to(root)) for w in words)]
    xml = runs/'pytest-slow.xml'
    status,said = call(pytest_cmd(xml, 'tests', '-m', 'slow', *(['-k',' or '.join(words)] if words else [])), slow_limit, 1)
    done.append(counts(xml, status))
    if done[-1][1]: print(said.strip()[-6000:], flush=True)
    return summarise(done)

def test_pytest(words):
    "(passed, failed, skipped) of the tests that want the machine for themselves: those that look at the clock"
    xml = runs/'pytest.xml'
    apart = ['-m','not slow and (clock or not beside)','--deselect=tests/test_notebooks.py::test_runs',*(f'--ignore=tests/{f}' for f in beside if f!='test_stops.py')] if not words else ['-k',' or '.join(words)]
    try: status = subprocess.run(pytest_cmd(xml, 'tests', '--durations=5', *apart), cwd=root, env=env(), timeout=pytest_limit).returncode
    except subprocess.TimeoutExpired: status = 124; print(f'pytest stopped after {pytest_limit} s')
    return counts(xml, status)

def summarise(done):
    "The last line, also kept in `_runs/summary.txt`; the exit status"
    passed,failed,skipped = map(sum, zip(*done))
    if skipped: print(f'{skipped} skipped')
    summary = f'{passed} passed, {failed} failed'
    (runs/'summary.txt').write_text(summary+'\n')
    print(summary, flush=True)
    return int(failed>0 or passed==0)

def main(words):
    "Notebooks and the tests that do not look at the clock three at a time, longest kinds first; then the rest alone"
    runs.mkdir(exist_ok=True)
    if words[:1]==['--slow']: return thorough(words[1:])
    jobs = [*narrative_notebooks(),*(root/'tests'/f for f in beside),*api_notebooks()] if not words else [p for p in api_notebooks() if any(w in str(p.relative_to(root)) for w in words)]
    start_forks()
    with ThreadPoolExecutor(workers) as pool: done = list(pool.map(job, jobs))
    return summarise([*done, test_pytest(words)])

if __name__=='__main__': sys.exit(main(sys.argv[1:]))
