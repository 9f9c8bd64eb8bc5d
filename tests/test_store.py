"Stores under fire: kill -9 at random moments, a full disk, foreign manifests, several processes"
import json, os, random, shutil, subprocess, sys
from pathlib import Path
import pandas as pd, pytest, torch
from hypothesis import HealthCheck, given, settings, strategies as st
from project import root
from sae_notebooks.acts.combine import store_rows
from sae_notebooks.acts.damage import find_damage
from sae_notebooks.acts.manifest import read_items, write_items
from sae_notebooks.acts.store import ActStore
from sae_notebooks.core.tensors import tensor_places
from sae_notebooks.core.files import BadInput, NotFound

ENV = {**os.environ, 'OMP_NUM_THREADS':'1', 'MKL_NUM_THREADS':'1', 'TQDM_DISABLE':'1', 'PYTHONPATH':str(root)} # bits are promised for one number of threads

def python(code, *args, limit=600, **kw):
    r = subprocess.run([sys.executable,'-c',code,*map(str,args)], cwd=root, env=ENV, text=True, capture_output=True, timeout=limit, **kw)
    assert r.returncode==0, r.stdout[-2000:]+r.stderr[-4000:]
    return r.stdout

def content(folder): return {p.name: p.read_bytes() for p in Path(folder).iterdir() if not p.name.endswith('.tmp')}

EXTRACT = '''
import os, sys, random, signal, time
from pathlib import Path
from sae_notebooks import ActStore, extract, load_vision, open_images
from sae_notebooks.core.files import BadInput
d = Path(sys.argv[1])
model,photos = load_vision('small_image_text', image_size=64),open_images('photos').where(range(0,1900,32))
def run(out): return extract(model, photos, out, n_views=2, batch_size=8, shard_items=4, workers=2, progress=False)
def forked(out):
    "The model is loaded once; each run is a process of its own"
    pid = os.fork()
    if pid: return pid
    status = 1
    try: run(out); status = 0
    except BadInput as e: print(e, flush=True); status = 2
    finally: os._exit(status)
def ended(pid): return os.waitstatus_to_exitcode(os.waitpid(pid,0)[1])
'''

# --- killed ----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('times', [10,pytest.param(25, marks=pytest.mark.slow)])
def test_killed_at_random_moments(tmp_path, times):
    said = python(EXTRACT+'''
t0 = time.monotonic(); assert ended(forked(d/'whole'))==0; whole = time.monotonic()-t0
rng,killed,stages = random.Random(int(sys.argv[2])),0,[]
for i in range(60):
    if killed==int(sys.argv[3]): break
    pid = forked(d/str(i)); time.sleep(rng.uniform(0,whole)); os.kill(pid, signal.SIGKILL)
    if ended(pid)!=-signal.SIGKILL: continue        # it was quicker
    killed += 1
    try: ActStore(d/str(i)).verify(); stages.append(60)
    except (BadInput,FileNotFoundError) as e: assert 'unfinished' in str(e) or 'no store.json' in str(e), e; stages.append(len(list((d/str(i)).glob('acts-*'))) if (d/str(i)).exists() else 0)
    assert ended(forked(d/str(i)))==0
print(killed, len(set(stages)))
''', tmp_path, random.randrange(10**6), times)
    want = content(tmp_path/'whole')
    killed,stages = map(int,said.split()); assert killed==times and stages>=4, said # from hardly begun to nearly done
    runs = [p for p in tmp_path.iterdir() if p.name.isdigit()]
    assert len(runs)>=times
    for p in runs: assert content(p)==want, p.name
    assert len(ActStore(tmp_path/'whole'))==120 and not any('progress' in n for n in want)

# --- a full disk -----------------------------------------------------------------------------------------------------

def tmpfs(folder, kb):
    "A small disk, where this user may make one"
    folder.mkdir()
    if not shutil.which('mount') or subprocess.run(['mount','-t','tmpfs','-o',f'size={kb}k','tmpfs',folder], capture_output=True).returncode: pytest.skip('no right to mount a small disk here')

def test_disk_full_on_a_small_disk(tmp_path):
    python(EXTRACT+"assert ended(forked(d/'whole'))==0", tmp_path)
    want,disk = content(tmp_path/'whole'),tmp_path/'disk'
    need = sum(map(len,want.values()))//1024
    tmpfs(disk, random.randrange(need//4, need*3//4))
    try:
        said = python(EXTRACT+"assert ended(forked(d))==2", disk)
        assert 'no space for' in said and 'free' in said and 'needed' in said and said.count('\n')==1, said
        part,whole = ActStore(disk, partial=True),ActStore(tmp_path/'whole')
        assert 0<len(part)<len(whole) and torch.equal(part[:], whole[:len(part)])
        subprocess.run(['mount','-o',f'remount,size={4*need}k',disk], check=True)
        python(EXTRACT+"assert ended(forked(d))==0", disk)
        assert content(disk)==want
    finally: subprocess.run(['umount',disk])

def test_disk_full_at_any_file(tmp_path):
    "The same without rights: the system refuses files beyond a size, at a random place"
    code = EXTRACT+'''
import resource
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),)*2)
assert ended(forked(d))==2'''
    size = random.randrange(4_000,20_000) # a shard has about 40 kB
    said = python(code, tmp_path/'s', size)
    assert 'cannot write to' in said and 'what was written so far is kept' in said, said
    with pytest.raises((BadInput,NotFound)): ActStore(tmp_path/'s')

# --- several processes -----------------------------------------------------------------------------------------------

def test_two_processes_write_what_one_writes(tmp_path):
    script = tmp_path/'s.py'
    script.write_text(EXTRACT+"store = run(d); Path(sys.argv[2],os.environ['RANK']).write_text(str(len(store)))") # a shared pipe would mix two processes' lines
    python(EXTRACT+"run(d)", tmp_path/'one')
    (said:=tmp_path/'said').mkdir()
    r = subprocess.run([sys.executable,'-m','torch.distributed.run','--standalone','--nproc-per-node','2',script,tmp_path/'two',said],
                       cwd=root, env=ENV, text=True, capture_output=True, timeout=600)
    assert r.returncode==0, r.stdout+r.stderr[-3000:]
    assert {p.name:p.read_text() for p in said.iterdir()}=={'0':'120','1':'120'}
    assert content(tmp_path/'two')==content(tmp_path/'one')

# --- from outside ----------------------------------------------------------------------------------------------------

@pytest.fixture(scope='module')
def sound(tmp_path_factory):
    d = tmp_path_factory.mktemp('sound')
    acts = dict(a=torch.arange(60.).view(20,3), b=torch.arange(40.).view(20,2))
    store_rows(d/'s', acts, pd.DataFrame(dict(file=[f'{i}.jpg' for i in range(20)], label='x')), shard_rows=8, dtype='float16')
    return d/'s'

def copied(sound, tmp):
    "A fresh copy whose folder lies beside a file that must never be read"
    shutil.rmtree(tmp/'c', ignore_errors=True); shutil.copytree(sound, tmp/'c'); return tmp/'c'

def use(path):
    "Everything that a reader does; only our own errors may come out"
    try:
        s = ActStore(path)
        s[:5]; s[[0]]; s.item; s.pos; s.labels; s.stats; s.site(s.sites[-1])[:]; list(s.batches(7)); len(s.where([0]))
    except (BadInput,NotFound) as e: return str(e)
    finally: assert isinstance(find_damage(path), list)

FUZZ = int(os.environ.get('SAE_NOTEBOOKS_FUZZ','0')) # cases of each kind; the default is a short run
many = lambda n: settings(max_examples=FUZZ or n, deadline=None, suppress_health_check=list(HealthCheck), derandomize=False, database=None)
junk = st.recursive(st.none()|st.booleans()|st.integers(-2**70,2**70)|st.floats()|st.text(max_size=8)|st.sampled_from(['../../etc/passwd','/etc/passwd','acts-00000.safetensors','','.','\0','store.json','items.csv']),
                    lambda x: st.lists(x,max_size=3)|st.dictionaries(st.text(max_size=6),x,max_size=3), max_leaves=6)

def places(obj, at=()):
    "Every place in nested lists and dictionaries"
    yield at
    for k,v in obj.items() if isinstance(obj,dict) else enumerate(obj) if isinstance(obj,list) else (): yield from places(v, (*at,k))

def changed(obj, at, new, how):
    if not at: return new
    obj = json.loads(json.dumps(obj)); inner = obj
    for k in at[:-1]: inner = inner[k]
    if how=='drop': del inner[at[-1]]
    elif how=='add' and isinstance(inner[at[-1]],(dict,list)): inner[at[-1]].append(new) if isinstance(inner[at[-1]],list) else inner[at[-1]].__setitem__('x',new)
    else: inner[at[-1]] = new
    return obj

@many(150)
@given(data=st.data(), new=junk, how=st.sampled_from(['put','drop','add']))
def test_any_manifest_is_read_or_refused(sound, tmp_path_factory, data, new, how):
    c = copied(sound, tmp_path_factory.getbasetemp())
    man = json.loads((c/'store.json').read_text())
    (c/'store.json').write_text(json.dumps(changed(man, data.draw(st.sampled_from(list(places(man)))), new, how)))
    use(c)

@many(150)
@given(name=st.sampled_from(['store.json','items.csv','acts-00000.safetensors','acts-00002.safetensors']), at=st.floats(0,1), raw=st.binary(min_size=1,max_size=9), cut=st.sampled_from(['write','cut','insert']))
def test_any_damage_is_found(sound, tmp_path_factory, name, at, raw, cut):
    c = copied(sound, tmp_path_factory.getbasetemp())
    b = (c/name).read_bytes(); i = int(at*(len(b)-1))
    (c/name).write_bytes(new:=b[:i] if cut=='cut' else b[:i]+raw+b[i+(len(raw) if cut=='write' else 0):])
    said = use(c)
    if new!=b and name!='store.json': assert find_damage(c), f'{name} {cut} at {i}'

@many(100)
@given(head=junk|st.dictionaries(st.sampled_from(['a','__metadata__','acts/x']), junk|st.fixed_dictionaries(dict(dtype=st.sampled_from(['F32','F16','BF16','I64','U8']), shape=st.lists(st.integers(-3,2**66),max_size=3), data_offsets=st.lists(st.integers(-9,2**66),max_size=3)))))
def test_any_header_is_read_or_refused(tmp_path_factory, head):
    f = tmp_path_factory.getbasetemp()/'h.safetensors'
    raw = json.dumps(head).encode(); f.write_bytes(len(raw).to_bytes(8,'little')+raw+bytes(64))
    try: places_ = tensor_places(f)
    except (BadInput,NotFound): return
    for p in places_.values(): assert p.start+int(torch.tensor(p.shape).prod() if p.shape else 1)*p.dtype.itemsize<=f.stat().st_size

@many(100)
@given(raw=st.binary(max_size=200)|st.text(max_size=100).map(lambda s: s.encode('utf-8','surrogatepass')))
def test_any_table_is_read_or_refused(tmp_path_factory, raw):
    f = tmp_path_factory.getbasetemp()/'t.csv'; f.write_bytes(raw)
    try: read_items(f)
    except BadInput as e: assert 't.csv' in str(e)

@many(100)
@given(texts=st.lists(st.text(st.characters(codec='utf-8',exclude_characters='\0'), max_size=12), min_size=1, max_size=5))
def test_any_text_comes_back_from_the_table(tmp_path_factory, texts):
    f = tmp_path_factory.getbasetemp()/'w.csv'
    write_items(f, pd.DataFrame(dict(text=texts))); assert read_items(f).text.tolist()==texts

@many(100)
@given(raw=st.binary(max_size=300))
def test_any_journal_is_read(sound, tmp_path_factory, raw):
    d = tmp_path_factory.getbasetemp()/'j'; shutil.rmtree(d, ignore_errors=True); d.mkdir()
    (d/'progress-0.jsonl').write_bytes(b'{"meta": {"dtype": "float16"}}\n'+raw)
    try: ActStore(d, partial=True)
    except (BadInput,NotFound): pass

# --- the script of the page -------------------------------------------------------------------------------------------

def test_the_three_lines_of_the_page(tmp_path):
    from project import cells, nbs
    page = next(s for _,_,s in cells(nbs/'tutorials/02_my_model_my_data.ipynb','markdown') if '## Three lines' in s)
    script = page.split('```python\n')[1].split('```')[0]
    assert script.count('\n')==3
    (tmp_path/'photographs').mkdir(); (tmp_path/'my.py').write_text(script)
    for f in sorted((root/'data/photos/images').iterdir())[:5]: shutil.copy(f, tmp_path/'photographs')
    r = subprocess.run([sys.executable,'my.py'], cwd=tmp_path, env=ENV, text=True, capture_output=True, timeout=300)
    assert r.returncode==0 and '5 rows of 1280, 5 items' in r.stdout, r.stdout+r.stderr
    assert len(ActStore(tmp_path/'acts'))==5

# --- memory ----------------------------------------------------------------------------------------------------------

TOY = '''
import sys, torch
from torch import nn
from sae_notebooks.models.backbone import Backbone, Batch
from sae_notebooks import extract
class Toy(Backbone):
    point = '0'
    def prepare(self, items): return Batch(dict(x=torch.stack(items).flatten(1)))
    def forward(self, batch): return self.net(batch.inputs['x'])
def toy(side, d): torch.manual_seed(0); return Toy(nn.Sequential(nn.Linear(3*side**2,d)), 'toy')
class Pixels:
    "As many images as the second argument says"
    def __init__(self, side): self.side = side
    def __len__(self): return int(sys.argv[2])
    def __getitem__(self, i): return torch.full((3,self.side,self.side), i%97/97.)
'''

def test_memory_of_an_extraction_does_not_grow_with_the_data(tmp_path):
    code = TOY+'''
import resource
from sae_notebooks import Shuffled
s = extract(toy(8, 8192), Pixels(8), sys.argv[1], batch_size=64, shard_items=250, progress=False) # small files: how many are under way is a matter of timing
stream = Shuffled(s, 512)
for i in range(100): stream[i]
try: peak = int(next(l for l in open('/proc/self/status') if l.startswith('VmHWM')).split()[1])/1024 # not what the parent process had
except OSError: peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1024
print(peak, s.man['n_rows']*2*8192/2**20)
'''
    (a,mb_a),(b,mb_b) = [map(float,python(code, tmp_path/n, n).split()) for n in ('10000','40000')]
    print(a, b)
    assert mb_b>600 and b-a<40, f'{a:.0f} MB for {mb_a:.0f} MB of rows, {b:.0f} MB for {mb_b:.0f} MB'

def test_an_item_takes_little_memory(tmp_path):
    "Python's and NumPy's own count: a hundred bytes an item for its table, where all that was asked for each was once kept, 1900"
    code = TOY+'''
import tracemalloc
toy = toy(4, 8); tracemalloc.start()
extract(toy, Pixels(4), sys.argv[1], batch_size=256, shard_items=1000, progress=False)
print(tracemalloc.get_traced_memory()[1])
'''
    few,many = (int(python(code, tmp_path/str(n), n)) for n in (2000,8000))
    assert (many-few)/6000<200, f'{few} bytes for 2000 items, {many} for 8000'
