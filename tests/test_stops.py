"A run that ends before its time: stopped, killed between two processes, out of disk, or met by another one in its folder"
import json, os, re, shutil, signal, socket, subprocess, sys, time
from pathlib import Path
import pytest, torch
from project import root
from sae_notebooks.acts.combine import store_rows
from sae_notebooks.acts.store import ActStore
from sae_notebooks.core.files import BadInput, NotFound

pytestmark = pytest.mark.beside
ENV = {**os.environ, **dict(OMP_NUM_THREADS='1', MKL_NUM_THREADS='1', TQDM_DISABLE='1')}

# --- sharded training ------------------------------------------------------------------------------------------------

SHARDED = '''
import os,signal,sys,time
import torch
torch.set_num_threads(1)
from sae_notebooks.core.synthetic import plant
from sae_notebooks.training import checkpoint,loop
out,arch,dies = sys.argv[1:4]
rank,times,save = int(os.environ['RANK']),[],loop.save_state
def dying(path, *a):
    times.append(1)
    if dies==f'{rank} {len(times)}': time.sleep(1.5); os.kill(os.getpid(), signal.SIGKILL) # the other has written it by then
    save(path, *a)
loop.save_state = dying
x = plant(32,64).sample(1024, seed=1)[0]
loop.train(x, arch, out, sae_options=dict(d_sae=128,k=4), steps=60, batch_size=128, log_every=10, checkpoint_every=10, lr=1e-3, aux=0.,
           precision='float32', progress=False, shard=True)
torch.distributed.destroy_process_group()
'''

def two(tmp_path, *args):
    "Exit status and what was said, of each of two processes"
    (tmp_path/'s.py').write_text(SHARDED)
    with socket.socket() as s: s.bind(('127.0.0.1',0)); port = s.getsockname()[1]
    env = [{**ENV, **dict(RANK=str(r), LOCAL_RANK=str(r), WORLD_SIZE='2', MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port))} for r in (0,1)]
    both = [subprocess.Popen([sys.executable,tmp_path/'s.py',*map(str,args)], cwd=root, env=e, text=True, stderr=subprocess.PIPE) for e in env]
    try: said = [p.communicate(timeout=200)[1] for p in both]
    finally: [p.kill() for p in both]
    return [p.returncode for p in both],said

def test_sharded_resumes_from_the_last_common_step(tmp_path, arch='topk', dies='1 3'):
    "One process dies before its checkpoint, when the other has written its own"
    assert two(tmp_path, tmp_path/'whole', arch, '')[0]==[0,0]
    status,_ = two(tmp_path, tmp_path/'cut', arch, dies)
    assert status[int(dies[0])]==-signal.SIGKILL and all(status), status
    assert list((tmp_path/'cut').glob('checkpoint*'))
    status,said = two(tmp_path, tmp_path/'cut', arch, '')
    assert status==[0,0], said
    whole,cut = ({p.name:p.read_bytes() for p in (tmp_path/n).iterdir()} for n in ('whole','cut'))
    assert whole==cut

# --- a small world: twelve photographs, their store, an SAE, its report ------------------------------------------------

@pytest.fixture(scope='module')
def made(tmp_path_factory):
    d = tmp_path_factory.mktemp('made'); (d/'pics').mkdir()
    for f in sorted((root/'data/photos/images').iterdir())[:60:5]: shutil.copy(f, d/'pics')
    for line in ('extract pics --n-views 3', 'extract pics --model inat_birds --out run/judge', 'train run/acts --d-sae 32 --k 4 --steps 30 --batch-size 16',
                 'measure run/sae run/acts run/judge'): assert shell(d, line)==(0,''), line
    return d

def shell(folder, line):
    "Exit status and errors of a command, in this process"
    import contextlib, io
    from sae_notebooks.dev.cli import main
    said,here,status = io.StringIO(),os.getcwd(),0
    os.chdir(folder)
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()): main(line.split())
    except SystemExit as e: status = e.code or 0
    finally: os.chdir(here)
    return status,said.getvalue()

# --- stopped ---------------------------------------------------------------------------------------------------------

PROGRAM = 'from sae_notebooks.dev.cli import main; main()'
DEAF = '''
import hashlib
from sae_notebooks.{module} import {name} as real
import sae_notebooks.{module} as module
def deaf(*a, **kw):
    print('here', flush=True)
    hashlib.pbkdf2_hmac('sha256', b'', b'', 3*10**8) # a minute in a library that does not listen
    return real(*a, **kw)
module.{name} = deaf
'''+PROGRAM

def threads():
    "As many as this process has: the same bits are promised for one number of threads"
    return dict.fromkeys(['OMP_NUM_THREADS','MKL_NUM_THREADS'], str(torch.get_num_threads()))

def start(folder, line, code=PROGRAM, ignored=True):
    "A command; as scripts start it in the background, with SIGINT ignored"
    ignore = (lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)) if ignored else None
    return subprocess.Popen([sys.executable,'-c',code,*line.split()], cwd=folder, env={**ENV,**threads(),'PYTHONPATH':str(root)}, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=ignore)

def wait_for(happened, limit=60):
    end = time.monotonic()+limit
    while not happened():
        assert time.monotonic()<end, 'it did not come to that'
        time.sleep(.02)

def ends(p, *signals):
    "Exit status, what was said on stderr, seconds from the signal to the end"
    begin = time.monotonic()
    try:
        for s in signals: p.send_signal(s); time.sleep(.2)
        said = p.communicate(timeout=20)[1]
    finally: p.kill(); p.wait()
    return p.returncode,said,time.monotonic()-begin

STOPPED = 'sae-notebooks: stopped; the same command continues\n'
WORK = dict(extract=('acts.write','save_shard','extract pics --out x/acts'), train=('training.loop','train_step','train run/acts --d-sae 32 --k 4 --out x/sae'),
            measure=('metrics.measure','measure','measure run/sae run/acts run/judge --out x/report'), page=('viz.card','report_card','page run/report pics --out x/p.html'),
            fetch=('acts.share','sha256','fetch run/acts x/fetched'), push=('acts.share','find_damage','push run/acts x/pushed'))

@pytest.mark.parametrize('what', [pytest.param(w, marks=pytest.mark.slow) if w in ('measure','page','push') else w for w in WORK])
@pytest.mark.clock
def test_ctrl_c_ends_it_within_two_seconds(made, what):
    "In a library that does not return, in the main thread or another, and though SIGINT was ignored when it was started"
    module,name,line = WORK[what]
    p = start(made, line, DEAF.format(module=module, name=name))
    assert p.stdout.readline()=='here\n', p.stderr.read()
    status,said,took = ends(p, signal.SIGINT)
    assert (status,said)==(130,STOPPED) and took<2, (status,said,took)

@pytest.mark.clock
def test_ctrl_c_while_a_server_is_asked(made, tmp_path):
    from openai_server import Server
    with Server(lambda *a: '{}', pause=60) as s:
        for signals,want in (([signal.SIGINT]*2,130), ([signal.SIGTERM],143)):
            s.asked.clear()
            p = start(made, f'name run/report pics --server {s.url} --namer x --yes --out {tmp_path/"named"}')
            wait_for(lambda: s.asked or p.poll() is not None)
            status,said,took = ends(p, *signals)
            assert (status,said)==(want,STOPPED) and took<2, (status,said,took)

@pytest.mark.clock
def test_ctrl_c_during_imports(made):
    "From the moment at which the command listens: it does so before anything large is imported"
    p = start(made, 'train run/acts --out x/none')
    def listens(): return not int(re.search(r'SigIgn:\s*(\w+)', Path(f'/proc/{p.pid}/status').read_text())[1], 16) & 1<<signal.SIGINT-1
    begin = time.monotonic(); wait_for(listens); heard = time.monotonic()-begin
    status,said,took = ends(p, signal.SIGINT)
    assert (status,said)==(130,STOPPED) and took<2, (status,said,took)
    assert heard<5 and not (made/'x/none').exists()

TURNED = '''
import time
import sae_notebooks.acts.damage as module
def turned(*a):
    print('here', flush=True)
    try: time.sleep(60)
    except KeyboardInterrupt: raise ImportError('what an import makes of it')
module.find_damage = turned
'''+PROGRAM

@pytest.mark.clock
def test_ctrl_c_that_a_library_turns_into_another_error(made):
    p = start(made, 'verify run/acts', TURNED)
    assert p.stdout.readline()=='here\n'
    assert ends(p, signal.SIGINT)[:2]==(130,STOPPED)

@pytest.mark.clock
def test_ctrl_c_ends_a_notebook_and_its_kernel(tmp_path):
    import nbformat
    cells = [f'import os,time; open({str(tmp_path/"pid")!r},"w").write(str(os.getpid()))','time.sleep(60)']
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells]), tmp_path/'slow.ipynb')
    p = start(tmp_path, 'run slow.ipynb')
    wait_for(lambda: p.poll() is not None or (tmp_path/'pid').exists() and (tmp_path/'pid').read_text())
    status,said,took = ends(p, signal.SIGINT)
    assert (status,said)==(130,STOPPED) and took<2, (status,said,took)
    kernel = int((tmp_path/'pid').read_text())
    wait_for(lambda: not Path(f'/proc/{kernel}').exists() or 'Z' in Path(f'/proc/{kernel}/stat').read_text().split()[2], 20)

def test_stopped_goes_on_to_the_same_bytes(made):
    line = 'train run/acts --d-sae 64 --k 4 --steps 800 --batch-size 16 --checkpoint-every 20 --log-every 20 --out x/'
    assert shell(made, line+'whole')==(0,'')
    for s in (signal.SIGINT,signal.SIGTERM):
        begin,p = time.time(),start(made, line+'cut')
        wait_for(lambda: p.poll() is not None or any(f.stat().st_mtime>begin for f in (made/'x/cut').glob('checkpoint*')))
        assert ends(p, s)[:2]==(128+s,STOPPED)
    assert list((made/'x/cut').glob('checkpoint*')) and not list((made/'x/cut').glob('.*.tmp'))
    (made/'x/cut/.cfg.json.999999999.tmp').write_text('of a run that was killed')
    assert shell(made, line+'cut')==(0,'')
    whole,cut = ({p.name:p.read_bytes() for p in (made/'x'/n).iterdir()} for n in ('whole','cut'))
    assert whole.keys()==cut.keys()
    for name,told in whole.items():
        pairs = list(zip(told.split(b'\n'), cut[name].split(b'\n')))
        assert told==cut[name], (name, torch.get_num_threads(), [p for p in pairs if p[0]!=p[1]][:2], len(pairs))

# --- two of them -----------------------------------------------------------------------------------------------------

HELD = '''
import sys
from sae_notebooks.{module} import {name} as real
import sae_notebooks.{module} as module
def held(*a, **kw):
    print('here', flush=True); sys.stdin.readline()
    return real(*a, **kw)
module.{name} = held
'''+PROGRAM

def test_two_extractions_of_one_folder(made):
    "The second is told so at once; the first goes on to the result of one"
    p = subprocess.Popen([sys.executable,'-c',HELD.format(module='acts.write', name='save_shard'),*'extract pics --n-views 3 --out x/two'.split()], cwd=made,
                         env={**ENV,'PYTHONPATH':str(root),**threads()}, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        assert p.stdout.readline()=='here\n'
        status,said = shell(made, 'extract pics --n-views 3 --out x/two')
        assert status==2 and f'x/two is being written by extract (process {p.pid}, since ' in said and said.count('\n')==1, said
        assert p.communicate('\n', timeout=60)[1]=='' and p.returncode==0
    finally: p.kill()
    one,two = ({f.name:f.read_bytes() for f in (made/n).iterdir()} for n in ('run/acts','x/two'))
    assert one==two

HOLDER = '''
import sys
from contextlib import ExitStack
from pathlib import Path
from sae_notebooks.core.folders import alone
with ExitStack() as s:
    for f in sys.argv[1:]: s.enter_context(alone(Path(f).parent, 'somebody', '-'+Path(f).name) if '.' in f else alone(f, 'somebody'))
    print('here', flush=True); sys.stdin.readline()
'''

def test_every_command_that_writes_says_who_is_there(made, tmp_path):
    import pandas as pd
    from sae_notebooks.acts.combine import concat
    from sae_notebooks.metrics.report import load_report
    from sae_notebooks.saes.base import load_sae, save_sae
    from sae_notebooks.saes.interop import save_as
    from sae_notebooks.training.stack import train_many
    from sae_notebooks.viz.browser import FeatureBrowser
    out,x,report,sae = str(tmp_path/'busy'),torch.randn(40,8),load_report(made/'run/report'),load_sae(made/'run/sae')
    notes = tmp_path/'notes.json'
    p = subprocess.Popen([sys.executable,'-c',HOLDER,out,str(notes),str(tmp_path/'p.html')], cwd=root, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert p.stdout.readline()=='here\n'
        for line in ('extract pics', 'train run/acts', 'measure run/sae run/acts run/judge', 'name run/report pics', 'fetch run/acts'):
            status,said = shell(made, f'{line}{" " if line.startswith("fetch") else " --out "}{out}')
            assert status==2 and 'is being written by somebody' in said and said.count('\n')==1, (line,said)
        status,said = shell(made, f'page run/report pics --out {tmp_path/"p.html"}')
        assert status==2 and 'is being written by somebody' in said
        for fn in (lambda: train_many(x, [dict(architecture='topk', d_sae=16, k=2)], out, steps=2, progress=False), lambda: store_rows(out, x),
                   lambda: concat([store_rows(tmp_path/'a', x)], out), lambda: save_sae(sae, out), lambda: save_as(sae, out, 'saelens'), lambda: report.save(out),
                   lambda: FeatureBrowser(report, lambda i: None, notes=notes).note(0, 'hello')):
            with pytest.raises(BadInput, match='is being written by somebody'): fn()
        p.communicate('\n', timeout=20)
    finally: p.kill()
    assert list((tmp_path/'busy').iterdir())==[] and not notes.exists()
    store_rows(out, x)

def test_leftovers_of_kills_go(made, tmp_path):
    x = torch.randn(40,8)
    for name in ('acts','sae'): (tmp_path/name).mkdir(); (tmp_path/name/'.x.bin.999999999.tmp').write_bytes(b'killed'); (tmp_path/name/'.sae-lock').write_text('killed')
    from sae_notebooks.training.loop import train
    store_rows(tmp_path/'acts', x)
    train(x, 'topk', tmp_path/'sae', sae_options=dict(d_sae=16,k=2), steps=2, progress=False)
    assert not list(tmp_path.glob('*/.*'))

def test_what_lies_beside_a_page_or_notes_is_left_alone(made, tmp_path):
    import time
    from sae_notebooks.core.folders import clear_leftovers
    from sae_notebooks.metrics.report import load_report
    from sae_notebooks.viz.browser import FeatureBrowser
    theirs = {'.lock':'pid 7', '.lock-db':'held', '.x.tmp':'draft', '.y.999999999.tmp':'half', '.commit.json':'{"of": "another program"}'}
    for nm,t in theirs.items(): (tmp_path/nm).write_text(t); os.utime(tmp_path/nm, (time.time()-999,)*2)
    def left(): return {p.name:p.read_text() for p in tmp_path.iterdir() if p.name[0]=='.'}
    status,said = shell(made, f'page run/report pics --out {tmp_path/"p.html"}')
    assert (status,(tmp_path/'p.html').is_file(),left())==(0,True,theirs), said
    FeatureBrowser(load_report(made/'run/report'), lambda i: None, notes=tmp_path/'n.json').note(0, 'hello')
    assert (tmp_path/'n.json').is_file() and left()==theirs
    (tmp_path/'.commit.json').unlink() # in a folder of ours what is not ours stays as well
    assert clear_leftovers(tmp_path)==[tmp_path/'.y.999999999.tmp'] and {'.lock','.lock-db','.x.tmp'}==set(left())

def test_who_only_looks_at_a_lock_turns_nobody_away(tmp_path):
    import threading, time
    from sae_notebooks.core import folders
    (tmp_path/'.sae-lock-1').write_text('killed')
    looked = folders._take(tmp_path/'.sae-lock-1', 'nobody') # as another rank that clears leftovers
    def go(): (tmp_path/'.sae-lock-1').unlink(); looked.close()
    timer = threading.Timer(.05, go); timer.start()
    with folders.alone(tmp_path, 'train', '-1'): pass
    timer.join()
    held,start = folders._take(tmp_path/'.sae-lock-1', 'somebody'),time.monotonic()
    with pytest.raises(folders.Busy, match='somebody'): folders._take(tmp_path/'.sae-lock-1', 'train')
    assert time.monotonic()-start<1
    held.close()

def test_two_browsers_keep_the_notes_of_both(made, tmp_path):
    from sae_notebooks.metrics.report import load_report
    from sae_notebooks.viz.browser import FeatureBrowser
    a,b = (FeatureBrowser(load_report(made/'run/report'), lambda i: None, notes=tmp_path/'n.json') for _ in 'ab')
    a.note(1, 'of a'); b.note(2, 'of b'); a.note(1, 'of a, better')
    assert json.loads((tmp_path/'n.json').read_text())=={'1':'of a, better','2':'of b'}

# --- a disk that is full ---------------------------------------------------------------------------------------------

@pytest.fixture(params=['told before', 'while it writes'])
def disk(tmp_path, request, monkeypatch):
    "A disk of 4 MB, as root; whose free space is known or, as with quotas, is not"
    d = tmp_path/'disk'; d.mkdir()
    if subprocess.run(['mount','-t','tmpfs','-o','size=4m','none',d], capture_output=True).returncode: pytest.skip('a disk can be mounted by root only')
    if request.param!='told before': monkeypatch.setattr('sae_notebooks.core.files.shutil.disk_usage', lambda p: shutil._ntuple_diskusage(1<<40,0,1<<40))
    try: yield d
    finally: subprocess.run(['umount','-l',d])

def fill(disk, left):
    "Leave so many kB"
    (disk/'filler').unlink(missing_ok=True)
    s = os.statvfs(disk); n = s.f_bavail*s.f_frsize-left*1024
    with open(disk/'filler','wb') as f: os.posix_fallocate(f.fileno(), 0, n)

def writers(made, far):
    "Job -> (function of the folder it writes into, kB left, the file that does not fit)"
    import pandas as pd
    from PIL import Image
    from sae_notebooks.acts.share import fetch
    from sae_notebooks.metrics.report import load_report
    from sae_notebooks.models.ask import Answer, AnswerCache
    from sae_notebooks.saes.base import make_sae
    from sae_notebooks.saes.interop import save_as
    from sae_notebooks.training.loop import train
    from sae_notebooks.training.stack import train_many
    from sae_notebooks.viz.browser import FeatureBrowser
    from sae_notebooks.viz.page import write_page
    g = torch.Generator().manual_seed(0)
    x,report,sae = torch.randn(300,64,generator=g),load_report(made/'run/report'),make_sae('topk', d_in=64, d_sae=1024, k=4, seed=0)
    acts = store_rows(far/'acts', torch.randn(3000,64,generator=g), shard_rows=1000)
    kw = dict(steps=20, batch_size=32, checkpoint_every=10, log_every=5, progress=False)
    def trained(out): train(x, 'topk', out, sae_options=dict(d_sae=512,k=4), **kw)
    def many(out): train_many(x, [dict(architecture='topk', d_sae=256, k=k) for k in (2,4)], out, **kw)
    def rows(out): store_rows(out, torch.randn(3000,64,generator=torch.Generator().manual_seed(1)), shard_rows=1000)
    def answers(out):
        c = AnswerCache(out)
        for i in range(200): c.get(str(i)) or c.put(str(i), Answer('answered', dict(text='x'*100)))
    def note(out): FeatureBrowser(report, lambda i: None, notes=out/'notes.json').note(1, 'long '*4000)
    def card(out): write_page(out/'p.html', pd.DataFrame(dict(ms=[.5]*2000)), [[0]]*2000, [[1.]]*2000, lambda i: Image.new('RGB',(9,9)))
    return {'checkpoint':(trained,100,'checkpoint.safetensors'), 'log':(trained,0,'log.jsonl'), 'trained SAE':(trained,1300,'checkpoint.safetensors|sae_weights.safetensors'),
            'train_many':(many,100,'checkpoint.safetensors'), 'rows':(rows,500,'acts-00001.safetensors'), 'fetch':(lambda out: fetch(acts.path, out, progress=False),500,'acts-00001.safetensors'),
            'report':(report.save,8,r'report.csv|\w+.safetensors'), 'answers':(answers,8,'answers.jsonl'), 'note':(note,8,'notes.json'), 'page':(card,8,'p.html'),
            **{l:(lambda out,l=l: save_as(sae, out, l),200,f) for l,f in dict(saelens='sae_weights.safetensors', sparsify='sae.safetensors', dictionary_learning='ae.pt').items()}}

def contents(d): return {p.relative_to(d).as_posix():p.read_bytes() for p in sorted(d.rglob('*')) if p.is_file()}

def test_a_full_disk_is_one_line_and_what_follows_is_whole(made, disk, tmp_path):
    from sae_notebooks.core.files import NoSpace
    bad = []
    for job,(write,left,name) in writers(made, tmp_path).items():
        out = disk/'out'; out.mkdir(); (tmp_path/job).mkdir()
        write(tmp_path/job)
        fill(disk, left)
        try: write(out); bad.append(f'{job}: it did fit')
        except NoSpace as e:
            said = str(e)
            sizes = re.search(rf'no space for \S*/({name}) \((needed [\d.,]+ MB, )?free [\d,.]+ MB\)', said)
            if not sizes or '\n' in said: bad.append(f'{job}: {said}')
            elif not sizes[2] and not name.startswith('log'): bad.append(f'{job}: what it needs is not said: {said}')
        except Exception as e: bad.append(f'{job}: {type(e).__name__}: {e}')
        (disk/'filler').unlink()
        try: write(out)
        except Exception as e: bad.append(f'{job}, when there was room: {type(e).__name__}: {e}')
        if (got := contents(out))!=(want := contents(tmp_path/job)): bad.append(f'{job}: not the same: {[k for k in {**got,**want} if got.get(k)!=want.get(k)]}')
        shutil.rmtree(out)
    assert not bad, '\n'.join(bad)

# --- a file that is cut short, replaced or removed while it is in use ------------------------------------------------

READER = '''
import os,sys
import numpy as np, torch
from pathlib import Path
from sae_notebooks.acts.store import ActStore
from sae_notebooks.acts.stream import Shuffled
from sae_notebooks.core.files import BadInput, NotFound
store,file = ActStore(sys.argv[1]),Path(sys.argv[1])/'acts-00001.safetensors'
stream = Shuffled(store, 100, window_mb=.01, block_kb=1.)
ways = dict(slice=lambda: store[500:900], rows=lambda: store[np.arange(999,600,-3)], some=lambda: store.where(np.arange(600,900))[:], columns=lambda: store.item,
            batches=lambda: [stream[i] for i in range(20)], statistics=lambda: store.where(slice(None)).stats, verify=lambda: store.verify())
for way in ways.values(): way()
raw = file.read_bytes()
hurt = dict(cut=lambda: os.truncate(file, 5000), zeros=lambda: file.write_bytes(bytes(len(raw))), replaced=lambda: (Path('other').write_bytes(raw[::-1]), os.replace('other', file)),
            removed=file.unlink)
for how,do in hurt.items():
    do()
    for name,way in ways.items():
        try: way(); said = 'read without a word'
        except (BadInput, NotFound) as e: said = str(e)
        if str(file) not in said or said.count(chr(10)): print(how, name, said)
    Path('whole').write_bytes(raw); os.replace('whole', file)
    for way in ways.values(): way() # the same content again
'''

def test_a_file_that_changes_in_use_is_an_error_in_every_way_of_reading(tmp_path):
    "A map of a file that was cut short kills the process without a word"
    store_rows(tmp_path/'acts', torch.randn(1500,64), dtype='float16', shard_rows=500)
    r = subprocess.run([sys.executable,'-c',READER,str(tmp_path/'acts')], cwd=tmp_path, env={**ENV,'PYTHONPATH':str(root)}, capture_output=True, text=True, timeout=120)
    assert r.returncode==0, f'status {r.returncode}: {r.stderr[-1500:]}'
    assert not r.stdout, r.stdout
