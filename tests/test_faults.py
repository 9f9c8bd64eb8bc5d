"Processes that are killed, images that are damaged, folders that cannot be written: what is left opens, resumes, or says what is wrong"
import json, os, random, re, shutil, signal, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import pandas as pd, pytest, torch
from forked import Forked, run
from project import root
from sae_notebooks.acts.combine import store_rows
from sae_notebooks.acts.store import ActStore
from sae_notebooks.core.files import BadInput, NotFound, read_json, write_json
from sae_notebooks.core.tensors import read_meta
from sae_notebooks.saes.base import load_sae
from sae_notebooks.training.checkpoint import load_state

# --- running and killing ---------------------------------------------------------------------------------------------

PROGRAM = 'from sae_notebooks.dev.cli import main; main()'
DYING = '''
import os, signal
left,late,real = {n},{late},os.replace
def replace(src, dst):
    global left
    left -= str(src).endswith('.tmp')
    if late: real(src, dst)
    if left==0: print(dst, flush=True); os.kill(os.getpid(), signal.SIGKILL)
    if not late: real(src, dst)
os.replace = replace
'''+PROGRAM
os.environ.update(OMP_NUM_THREADS='1', MKL_NUM_THREADS='1', TQDM_DISABLE='1') # bits are promised for one number of threads

def cli(*args):
    "(exit status, stdout, stderr) of a command"
    r = run(PROGRAM, args)
    return r.returncode,r.stdout,r.stderr

def die_at(args, n, name, late=0):
    "kill -9 just before, or just after, the n-th file of a run takes its name, or one it has until all do; that tells how far the runs before it got"
    r = run(DYING.format(n=n, late=late), args)
    took = re.sub(r'^\.(.*)\.\d+\.tmp$', r'\1', Path(r.stdout.strip()).name)
    assert r.returncode==-signal.SIGKILL and took==name, f'{r.stdout} is not {name}; {r.stderr}'

def kill_when(args, happened, delay, limit=300):
    "kill -9 from outside, `delay` seconds after something happened"
    p,end = Forked(PROGRAM, args),time.monotonic()+limit
    try:
        while not happened() and p.poll() is None and time.monotonic()<end: time.sleep(.002)
        time.sleep(delay)
    finally: p.kill()
    assert p.wait()==-signal.SIGKILL, 'it ended before it could be killed'

def files(folder): return {p.name: p.read_bytes() for p in folder.iterdir() if p.suffix in ('.json','.csv','.safetensors')}

def until_done(args, out, kills, check):
    "Kill, look, start again, over and over; then let it finish"
    for kill,*where in kills: kill(args, *where); check(out)
    status,_,err = cli(*args)
    assert status==0, err
    return files(out)

def together(*jobs):
    with ThreadPoolExecutor(2) as pool: return [f.result() for f in [pool.submit(*j) for j in jobs]]

def three_ways(args, folder, check, **kills):
    "The files of an uninterrupted run, and of runs that were killed again and again"
    return together(*((until_done, [*args,'--out',folder/n], folder/n, k, check) for n,k in dict(whole=[], **kills).items()))

# --- extract ---------------------------------------------------------------------------------------------------------

def copy_photos(folder, n):
    folder.mkdir()
    for f in sorted((root/'data/photos/images').iterdir())[:n]: shutil.copy(f, folder)
    return folder

def store_is_honest(out):
    "Finished and true to its hashes, or says that it is not finished"
    try:
        store = ActStore(out)
        store.verify(); assert len(store)==80
    except NotFound as e: assert 'no store.json' in str(e)
    except BadInput as e: assert 'is unfinished' in str(e)

def test_killed_extract_resumes_to_the_same_bytes(tmp_path):
    photos,rng = copy_photos(tmp_path/'photos',40),random.Random(0)
    exact = [(die_at,1,'items.csv'), (die_at,2,'acts-00000.safetensors'), (die_at,3,'acts-00001.safetensors',1), (die_at,11,'store.json'), (die_at,3,'.commit.json',1)] # the last: decided, and finished by whoever comes next
    polled = [(kill_when, (tmp_path/f'polled/acts-0000{n}.safetensors').exists, rng.uniform(0,.1)) for n in (0,5)]
    want,*got = three_ways(['extract',photos,'--n-views',2,'--batch-size',8,'--shard-items',4], tmp_path, store_is_honest, exact=exact, polled=polled)
    man = json.loads(want['store.json'])
    assert len(man['shards'])==10 and man['n_rows']==80 and set(want)=={'store.json','items.csv',*(s['file'] for s in man['shards'])}
    for g in got: assert g==want
    assert not list((tmp_path/'exact').glob('.*')) # what the kills before a rename left behind is gone

# --- train -----------------------------------------------------------------------------------------------------------

@pytest.fixture
def planted(tmp_path):
    "2000 rows of 64, few enough directions that features die and their idle time matters"
    g = torch.Generator().manual_seed(0)
    x = torch.rand(2000,24,generator=g).pow(8)@torch.randn(24,64,generator=g)
    return store_rows(tmp_path/'store', x, pd.DataFrame(dict(file=[f'{i}.jpg' for i in range(2000)])), meta=dict(model='planted', point='none'), dtype='float16')

def step_of(out):
    try: return load_state(out/'checkpoint.safetensors')[1]['step']
    except NotFound: return -1

def seen_step(out):
    "The same while somebody writes: the header alone, which is of one file"
    try: return json.loads(read_meta(out/'checkpoint.safetensors')['meta'])['step']
    except NotFound: return -1

def sae_is_honest(out):
    "Finished, or has at most a whole checkpoint"
    try: load_sae(out)
    except NotFound as e: assert 'no cfg.json' in str(e) and step_of(out) in (-1,*range(20,1201,20))

def test_killed_train_resumes_to_the_same_bytes(planted, tmp_path):
    rng = random.Random(1)
    exact = [(die_at,30,'checkpoint.safetensors'), (die_at,32,'cfg.json',1), (die_at,3,'sae_weights.safetensors',1)] # the last: new weights, old settings, until somebody looks
    polled = [(kill_when, lambda n=n: seen_step(tmp_path/'polled')>=n, rng.uniform(0,.05)) for n in (20,600)]
    args = ['train',planted.path,'--d-sae',256,'--k',8,'--batch-size',128,'--steps',1200,'--checkpoint-every',20]
    want,*got = three_ways(args, tmp_path, sae_is_honest, exact=exact, polled=polled)
    assert pd.read_csv(tmp_path/'whole/history.csv').dead.max()>0
    for name in ('sae_weights.safetensors','cfg.json','history.csv'): assert all(g[name]==want[name] for g in got), f'{name} differs'
    assert not list((tmp_path/'exact').glob('.*'))

KILLED = '''
import os,signal,sys
import torch
from sae_notebooks.core.synthetic import plant
from sae_notebooks.training import loop
out,arch,at = sys.argv[1],sys.argv[2],int(sys.argv[3])
step,x = loop.train_step,plant().sample(1500, seed=1)[0]
def dying(run, *a):
    if run.step==at: os.kill(os.getpid(), signal.SIGKILL)
    return step(run, *a)
loop.train_step = dying
loop.train(x, arch, out, sae_options=dict(d_sae=128,k=3), steps=300, batch_size=64, dead_after=500, checkpoint_every=7, log_every=10, average=.9, held_out=x[:200], eval_every=50, progress=False)
'''

@pytest.mark.parametrize('times', [4,pytest.param(10, marks=pytest.mark.slow)])
def test_killed_at_random_steps(tmp_path, times):
    "At steps drawn at random: final weights and history are those of a run that nobody killed"
    arch = random.choice(['topk','batchtopk','matryoshka'])
    go = lambda name,at: run(KILLED, [tmp_path/name,arch,at])
    at = sorted(random.sample(range(300),times)); print(arch, at)
    for a in at:
        r = go('killed',a)
        assert r.returncode==-signal.SIGKILL, r.stderr
    for name in ('whole','killed'): assert (r:=go(name,-1)).returncode==0, r.stderr
    want,got = files(tmp_path/'whole'),files(tmp_path/'killed')
    for name in ('sae_weights.safetensors','cfg.json','history.csv'): assert got[name]==want[name], f'{name} differs'
    assert (tmp_path/'killed/log.jsonl').read_text()==(tmp_path/'whole/log.jsonl').read_text()

def test_leftover_of_the_same_process_number(tmp_path):
    (tmp_path/f'.x.json.{os.getpid()}.tmp').write_text('{"longer than what comes": and cut sh')
    write_json(tmp_path/'x.json', [1])
    assert read_json(tmp_path/'x.json')==[1] and [p.name for p in tmp_path.iterdir()]==['x.json']

# --- what is given cannot be used --------------------------------------------------------------------------------------

@pytest.fixture(scope='module')
def said(tmp_path_factory):
    "Name -> (exit status, stdout, stderr) of commands on poor input"
    d = tmp_path_factory.mktemp('poor')
    for name in ('empty','text'): (d/name).mkdir()
    (d/'text/notes.txt').write_text('no image'); (d/'file').write_text('a regular file')
    one,bad = copy_photos(d/'one',1),copy_photos(d/'bad',3)
    (bad/'broken.jpg').write_bytes(next(one.iterdir()).read_bytes()[:900])
    cut = lambda images,*more: (cli, 'extract', d/images, '--out', *more)
    def chain():
        "The only image all the way"
        out = [cli('extract',one,'--out',d/'acts'), cli('train',d/'acts','--d-sae',32,'--k',4,'--steps',20,'--out',d/'sae')]
        return [*out, cli('measure',d/'sae',d/'acts',d/'acts','--allow-same-judge','--out',d/'report'), d/'report']
    jobs = dict(one=(chain,), corrupt=cut('bad',d/'o1'), skipped=cut('bad',d/'o2','--skip-bad'), text=cut('text',d/'o3'), empty=cut('empty',d/'o4'),
                below=cut('one',d/'file/acts'), proc=cut('one','/proc/acts'))
    return dict(zip(jobs, together(*jobs.values())))

@pytest.mark.parametrize('case,says', dict(corrupt='broken.jpg cannot be read as an image', text='holds no images', empty='holds no images',
    below='cannot write to', proc='cannot write to').items())
def test_refused_in_one_line(said, case, says):
    if case=='proc' and not Path('/proc/self').exists(): pytest.skip('no /proc here')
    status,out,err = said[case]
    assert status==2 and err.startswith('sae-notebooks: ') and err.count('\n')==1 and says in err, err

def test_skip_bad_reports_and_goes_on(said):
    status,out,err = said['skipped']
    assert status==0 and not err and out.startswith('skipped ') and 'broken.jpg' in out and '3 rows of 1280, 4 items' in out, out+err

def test_one_image_is_enough_to_extract_and_train(said):
    for status,out,err in said['one'][:2]: assert status==0 and not err, err

def test_one_image_is_too_few_to_measure(said):
    (status,out,err),report = said['one'][2:]
    assert 'Traceback' not in err and status in (0,2), err
    if status==2: assert err.startswith('sae-notebooks: ') and err.count('\n')==1
    else: assert pd.read_csv(report/'report.csv').ms.isna().all() and read_json(report/'report.json')['ms'] is None, 'a score of one image'
