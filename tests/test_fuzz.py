"""Files changed in every way that a disk, an editor or an enemy could: each is opened, or refused in one line, within 5 seconds and 1 GB.

    python tests/test_fuzz.py TARGET CASES SEED          # many cases
    python tests/test_fuzz.py TARGET CASES SEED --case N # one of them again, with its traceback"""
import copy, hashlib, io, json, os, random, re, resource, shutil, signal, struct, subprocess, sys, tempfile, time, traceback, zipfile, zlib
from collections import Counter
from pathlib import Path

SECONDS,MEMORY,BATCH = 5,2**30,500 # of a case; of all cases of a process; cases in a process

# --- what is put where it does not belong ----------------------------------------------------------------------------

EVIL = [None,True,False,-1,0,1,2,3,7,8,2**31,2**53,2**60,2**63,2**64,10**12,10**40,1e308,-1e308,.5,float('nan'),float('inf'),
        '','x','0','-1','acts','../x','../../etc/passwd','/etc/passwd','/dev/zero','/dev/stdin','.','..','\0','a\0b','\u202egnp.exe',
        '\ufffd','𝕬','ﬁ','a'*5000,'a/'*200,[],{},[[]],[None],[1],[1,2],[[0,'x']],[[0]],{'a':1},{'':None},'float16','bfloat16',
        'float32','int8','F32','BF16','<script>','line1\nline2','NaN','{0.__class__}','%s%n']
KEYS = ['x','','rows','k','d_in','file','__class__','architecture','threshold']
SCRAPS = [b'"',b',',b'\n',b'\r',b'\0',b'""',b'\xff',b'\xed\xa0\x80',b'1e999',b'=cmd|x',b'9'*21,b'../',b'\n\n\n',b','*20,b'"""',
          b'a'*3000,b'nan',b'-']

def places(obj, at=()):
    "Where something can be changed in what JSON holds."
    yield at
    inner = obj.items() if isinstance(obj,dict) else list(enumerate(obj))[:12] if isinstance(obj,list) else ()
    for k,v in inner: yield from places(v, at+(k,))

def get(obj, at):
    for k in at: obj = obj[k]
    return obj

def change_at(obj, at, r):
    "Replace, remove, rename, copy, double or nudge one part."
    above,k,op = get(obj, at[:-1]),at[-1],r.random()
    if op<.6: above[k] = copy.deepcopy(r.choice(EVIL))
    elif op<.75: del above[k]
    elif op<.82 and isinstance(above,dict): above[r.choice(KEYS)] = above.pop(k)
    elif op<.88: above[k] = copy.deepcopy(get(obj, r.choice(list(places(obj)))))
    elif op<.94 and isinstance(above,list): above.insert(k, copy.deepcopy(above[k]))
    elif type(above[k]) in (int,float): above[k] += r.choice([1,-1,1000,-1000,.5])
    elif isinstance(above[k],str): above[k] += r.choice(['/','\0','\n','..','é'])

def json_value(obj, r):
    obj = copy.deepcopy(obj)
    for _ in range(r.choice([1,1,1,2,3])):
        at = r.choice(list(places(obj)))
        if at: change_at(obj, at, r)
        elif r.random()<.1: obj = r.choice(EVIL)
        if not isinstance(obj,(dict,list)): break
    return obj

def json_text(obj, r):
    "As text; now and then nested deeply, cut, doubled, or with a mark of byte order."
    text = json.dumps(obj, ensure_ascii=r.random()<.5).encode('utf-8','surrogatepass')
    x = r.random()
    if x<.03: return text.replace(b'{', b'['*r.choice([10,1000,100_000])+b'{', 1)
    if x<.05: return text[:r.randrange(len(text)+1)]
    if x<.06: return b'\xef\xbb\xbf'+text
    if x<.07: return text+text
    return b'{"a":'*50_000 if x<.08 else text

def raw_bytes(raw, r):
    raw = bytearray(raw)
    for _ in range(r.choice([1,1,2,4,8])):
        if not raw: break
        i,op = r.randrange(len(raw)),r.random()
        if op<.35: raw[i] = r.randrange(256)
        elif op<.5: del raw[i:i+r.choice([1,2,8,64])]
        elif op<.65: raw[i:i] = r.choice(SCRAPS)
        elif op<.75: del raw[i:]
        elif op<.85:
            j,n = r.randrange(len(raw)),r.choice([1,8,40])
            raw[i:i+n] = raw[j:j+n]
        elif op<.95: raw[i] ^= 1<<r.randrange(8)
        else: raw = raw.replace(b',', r.choice([b';',b'\t',b',,']), r.choice([1,-1]))
    return bytes(raw)

def csv_cells(raw, r):
    "Another value in some cells of a table."
    lines = raw.decode().split('\n')
    for _ in range(r.choice([1,1,3])):
        i = r.randrange(len(lines))
        cells = lines[i].split(',')
        cells[r.randrange(len(cells))] = r.choice([str(v) for v in EVIL]+['1e5','"quoted"','1,000','TRUE','-0'])
        lines[i] = ','.join(cells)
    return '\n'.join(lines).encode('utf-8','surrogatepass')

def tensors(raw, r):
    "A safetensors file: its header as JSON, its length, its bytes."
    n = int.from_bytes(raw[:8],'little')
    head,body,x = json.loads(raw[8:8+n]),raw[8+n:],r.random()
    if x<.6:
        text = json_text(json_value(head, r), r)
        return len(text).to_bytes(8,'little')+text+(body if r.random()<.8 else body[:r.randrange(len(body)+1)])
    if x<.7: return r.choice([0,1,7,n-1,n+1,2**20,2**60,2**63,2**64-1]).to_bytes(8,'little')+raw[8:]
    if x<.75: return raw[:r.randrange(len(raw))]
    raw = bytearray(raw)
    for _ in range(r.choice([1,1,4,16])): raw[r.randrange(8+n if x<.8 else 0, len(raw))] ^= 1<<r.randrange(8)
    return bytes(raw)

SHAPES = ['(1152921504606846976,)','(-1,4)','(4,8,1)','()','(4.5,)','(0,)','(1000000,1000000)',"('a',)",'None','(9'+'9'*22+',)','(True,4)']
DTYPES = ["'|O'","'<f8'","'<f2'","'<c16'","'|S10'","'<U4'","'<M8[s]'","[('a','<f4')]","'|V4'","'x'",'None',"'<i8'","'|b1'","'<u4'"]

def npy(raw, r):
    "An array of NumPy's: its header."
    n = struct.unpack('<H', raw[8:10])[0]
    head,x = raw[10:10+n].decode(),r.random()
    if x<.5: head = re.sub(r"'shape': \([^)]*\)", lambda m: "'shape': "+r.choice(SHAPES), head)
    elif x<.8: head = re.sub(r"'descr': '[^']*'", lambda m: "'descr': "+r.choice(DTYPES), head)
    elif x<.9: head = r.choice(['__import__("os").abort()','{}','','('*3000,'{'+"'a':"*500,head[:-20],head+'x'*100])
    else: return raw_bytes(raw, r)
    head = head.encode()[:65535]
    return raw[:8]+struct.pack('<H', len(head))+head+raw[10+n:]

def npz(raw, r):
    if r.random()<.25: return raw_bytes(raw, r)
    was,out = zipfile.ZipFile(io.BytesIO(raw)),io.BytesIO()
    names = was.namelist()
    pick = r.choice(names)
    with zipfile.ZipFile(out, 'w', r.choice([zipfile.ZIP_STORED,zipfile.ZIP_DEFLATED])) as new:
        for name in names:
            data,y = was.read(name),r.random()
            if name==pick and y<.7: data = npy(data, r)
            elif name==pick and y<.8: continue
            elif name==pick: name = r.choice(['../../x.npy','/etc/x.npy','W_DEC.npy','w_dec','\u202e.npy','a\x01.npy'])
            new.writestr(name, data)
    return out.getvalue()

def pt(raw, r):
    "A file of torch.save: other objects, other tensors."
    import torch
    if r.random()<.5: return raw_bytes(raw, r)
    obj,y,z = torch.load(io.BytesIO(raw), weights_only=True),r.random(),torch.zeros
    k = r.choice(list(obj))
    odd = [1,None,'x',2.5,-1,2**70,[1],{},z(0),torch.tensor(3),torch.tensor([1,2]),z(2,2,2),z(32,4)*float('nan'),z(8,4,dtype=torch.complex64),
           z(8,4).to_sparse(),z(8,4,device='meta'),z(8,4,dtype=torch.bool),z(1).expand(2**20,2**14),z(1).expand(32,4)]
    if y<.15: del obj[k]
    elif y<.6: obj[k] = r.choice(odd)
    elif y<.8:
        name = r.choice(['k','threshold','group_sizes','state_dict','w_skip','bias'])
        obj[name] = r.choice([obj[k],torch.tensor(-1),torch.tensor([-1,9]),torch.tensor(10**9),{},5,float('nan'),z(0)])
    else: obj = r.choice([[obj],obj[k],None,5,{1:obj[k]},{'state_dict':5},{'state_dict':obj}])
    out = io.BytesIO()
    torch.save(obj, out)
    return out.getvalue()

def json_lines(raw, r):
    lines = raw.decode().splitlines()
    i = r.randrange(len(lines))
    if r.random()<.2: return raw_bytes(raw, r)
    lines[i] = json_text(json_value(json.loads(lines[i]), r), r).decode('utf-8','replace')
    return ('\n'.join(lines)+'\n').encode()

BITS = [b'**',b'9',b'<<',b'ms',b'name',b'(',b')',b"'a'",b'*',b'@',b'%',b'sure',b' and ',b'1e308',b'.__class__',b'[0]',b'lambda: 0',b'~',
        b'9'*30,b'//',b'in',b'not ',b'-',b'{}',b'`a`']

def condition(raw, r):
    "What somebody might type."
    for _ in range(r.choice([1,1,2,5])):
        i = r.randrange(len(raw)+1)
        raw = raw[:i]+r.choice(BITS)*r.choice([1,1,3,400])+raw[i+r.choice([0,0,1,5]):]
    return raw

def either(a, b, share=.85): return lambda raw, r: (a if r.random()<share else b)(raw, r)
def json_file(raw, r): return json_text(json_value(json.loads(raw), r), r)
KINDS = {'.json':either(json_file, raw_bytes), '.jsonl':json_lines, '.safetensors':tensors, '.npz':npz, '.pt':pt,
         '.condition':condition, '.csv':either(csv_cells, raw_bytes, .4)}

def mutate(files, which, r):
    "The same files with one, sometimes two, of `which` changed."
    files,names = dict(files),[n for n in which or files if n in files]
    for name in r.sample(names, 1 if r.random()<.8 else min(2,len(names))):
        files[name] = KINDS.get(Path(name).suffix, raw_bytes)(files[name], r)
    return sealed(files) if r.random()<.8 else files

def sealed(files):
    "The hashes that records hold of other files made to agree with them, so that it is not the hash that finds a change."
    def seal(v):
        if not isinstance(v,dict): return
        for k,x in v.items():
            if k=='files' and isinstance(x,dict): x.update({n:hashlib.sha256(files[n]).hexdigest() for n in x if n in files})
            else: seal(x)
    for name in files:
        if not name.endswith('.json') or name=='store.json': continue
        try: seal(obj := json.loads(files[name])); files[name] = json.dumps(obj).encode()
        except (ValueError, RecursionError): pass
    return files

# --- what is opened, and how -----------------------------------------------------------------------------------------

TARGETS = {}
def target(fn): TARGETS[fn.__name__] = fn; return fn

def files_of(d): return {str(p.relative_to(d)):p.read_bytes() for p in sorted(d.rglob('*')) if p.is_file()}
def put(d, files):
    shutil.rmtree(d, ignore_errors=True)
    for name,raw in files.items():
        (d/name).parent.mkdir(parents=True, exist_ok=True)
        (d/name).write_bytes(raw)

def each(*uses):
    "All of some uses, whatever becomes of the others; then what the last refused."
    from sae_notebooks.core.files import BadInput, NotFound
    said = None
    for use in uses:
        try: use()
        except (BadInput, NotFound) as e: said = e
    if said: raise said

def a_store(d):
    import pandas as pd, torch
    from sae_notebooks.acts.combine import store_rows
    g = torch.Generator().manual_seed(0)
    items = pd.DataFrame(dict(file=[f'a{i//2}.jpg' for i in range(12)], label=['x','y','z']*4))
    acts,n = {'a':torch.randn(24,4,generator=g),'b':torch.randn(24,6,generator=g)},torch.arange(24)
    store_rows(d, acts, items, n//2, n%2, dict(model='m',point='a'), 'float16', shard_rows=8)
    return files_of(d)

def use_store(d):
    from sae_notebooks.acts import shards
    from sae_notebooks.acts.store import ActStore
    shards._places.cache_clear(); shards._map.cache_clear()
    s = ActStore(d); len(s); repr(s); s.items; s.item; s.labels; s.pos; s.stats; s[:]; s[[0,len(s)-1]]; s.id; s.where([0]).stats
    for k in s.sites: s.site(k)[:2]
    s.verify()

def find_all_damage(d):
    from sae_notebooks.acts.damage import find_damage
    from sae_notebooks.core.files import BadInput
    bad = find_damage(d)
    assert not any('\n' in b for b in bad), f'more than a line: {bad}'
    if bad: raise BadInput('; '.join(bad[:3]))
    use_store(d)

def resealed(files):
    "Sizes and hashes made to agree with what the files now hold."
    man = json.loads(files['store.json'])
    for s in man['shards']:
        if s['file'] in files: s.update(bytes=len(files[s['file']]), sha256=hashlib.sha256(files[s['file']]).hexdigest())
    for t in man['items']: t['sha256'] = hashlib.sha256(files[t['file']]).hexdigest()
    return {**files, 'store.json':json.dumps(man).encode()}

def reseal(use): return lambda d: (put(d, resealed(files_of(d))), use(d))

def shard_names(f): return [k for k in f if k.endswith('.safetensors')]
@target
def shard(d): f = a_store(d); return [f],shard_names(f),use_store
@target
def shard_resealed(d): f = a_store(d); return [f],shard_names(f),reseal(use_store)
@target
def items(d): return [a_store(d)],['items.csv'],use_store
@target
def items_resealed(d): return [a_store(d)],['items.csv'],reseal(use_store)
@target
def manifest(d): return [a_store(d)],['store.json'],use_store
@target
def manifest_verify(d): return [a_store(d)],['store.json'],find_all_damage

@target
def journal(d):
    from sae_notebooks.acts.store import ActStore
    from sae_notebooks.acts.write import StoreWriter
    f = a_store(d); man = json.loads(f.pop('store.json')); items = ActStore(d).items
    shards = [dict(s, shard=i, d_in=man['sites']) for i,s in enumerate(man['shards'])]
    f['progress-0.jsonl'] = '\n'.join(map(json.dumps, [dict(meta=man['meta'],base=0),*shards])).encode()+b'\n'
    meta = {k:v for k,v in man['meta'].items() if k not in ('dtype','nonfinite','parts')}
    def partly(d): s = ActStore(d, partial=True); len(s); s[:]; s.item; s.labels
    def finish(d): StoreWriter(d, meta, items, 'float16').close(3); use_store(d)
    return [f],['progress-0.jsonl'],lambda d: each(lambda: partly(d), lambda: finish(d))

def saes():
    from sae_notebooks.saes.base import make_sae
    for arch in ('relu','topk','batchtopk','matryoshka','jumprelu','gated'):
        m = make_sae(arch, d_in=4, d_sae=32, **(dict(k=2) if arch in ('topk','batchtopk','matryoshka') else {}))
        if hasattr(m,'threshold'): m.threshold.data.fill_(.1)
        yield arch,m

def use_sae(d):
    import torch
    from sae_notebooks.saes.interop import read_sae
    m = read_sae(d); repr(m); m(torch.randn(3,m.d_in))

def one_each(d, write):
    for arch,m in saes(): write(m, d/arch)
    return [files_of(d/arch) for arch,_ in saes() if (d/arch).is_dir()]

@target
def sae_own(d):
    from sae_notebooks.saes.base import save_sae
    return one_each(d, save_sae),None,use_sae

@target
def sae_saelens(d):
    from sae_notebooks.saes.base import save_sae
    def foreign(m, d):
        save_sae(m, d)
        cfg = json.loads((d/'cfg.json').read_text()); cfg.pop('metadata')
        (d/'cfg.json').write_text(json.dumps(cfg))
    return one_each(d, foreign),None,use_sae

@target
def sae_sparsify(d):
    from sae_notebooks.saes.interop import save_as
    return one_each(d, lambda m, d: m.architecture=='topk' and save_as(m, d, 'sparsify')),None,use_sae

@target
def sae_dictionary_learning(d):
    from sae_notebooks.saes.interop import save_as
    return one_each(d, lambda m, d: save_as(m, d, 'dictionary_learning')),None,use_sae

@target
def sae_llama_scope(d):
    from safetensors.torch import save_file
    m = dict(saes())['jumprelu']; (d/'checkpoints').mkdir(parents=True)
    w = {'encoder.weight':m.enc, 'decoder.weight':m.W_dec.T, 'encoder.bias':m.b_enc, 'decoder.bias':m.b_dec}
    save_file({k:v.detach().contiguous() for k,v in w.items()}, d/'checkpoints/final.safetensors')
    (d/'hyperparams.json').write_text(json.dumps(dict(act_fn='jumprelu', d_model=4, jump_relu_threshold=.1,
        sparsity_include_decoder_norm=True, dataset_average_activation_norm={'in':2.,'out':2.})))
    return [files_of(d)],None,use_sae

def gemma_weights():
    m = dict(saes())['jumprelu']
    w = dict(w_enc=m.enc.T, w_dec=m.W_dec, b_enc=m.b_enc, b_dec=m.b_dec, threshold=m.threshold.expand(32))
    return {k:v.detach().contiguous().clone() for k,v in w.items()}

@target
def sae_gemma_scope(d):
    import numpy as np
    d.mkdir(); np.savez(d/'params.npz', **{k:v.numpy() for k,v in gemma_weights().items()})
    return [files_of(d)],None,use_sae

@target
def sae_gemma_safetensors(d):
    from safetensors.torch import save_file
    d.mkdir(); save_file(gemma_weights(), d/'params.safetensors')
    return [files_of(d)],None,use_sae

def planted(n):
    import torch
    g = torch.Generator().manual_seed(0)
    return torch.rand(n,12,generator=g).pow(8)@torch.randn(12,6,generator=g)

def a_report(d):
    import pandas as pd, torch
    from sae_notebooks.acts.combine import store_rows
    from sae_notebooks.metrics.measure import measure
    from sae_notebooks.metrics.report import named
    n,x = 60,planted(60)
    items = pd.DataFrame(dict(file=[f'{i}.jpg' for i in range(n)], label=[f'l{i%3}' for i in range(n)]))
    store = store_rows(d/'store', x, items); judges = {k:store_rows(d/k, torch.randn(n,5), items) for k in 'ab'}
    from sae_notebooks.saes.base import make_sae
    rep = measure(make_sae('topk', d_in=6, d_sae=16, k=3), store, judges, draws=5, progress=False)
    names = pd.DataFrame(dict(name=[f'n{i}' for i in range(16)], description='d', status='named', why=''), index=pd.RangeIndex(16))
    named(rep, names).save(d/'report')
    return files_of(d/'report')

def use_report(d):
    "Opened, browsed, saved, made a page of; its figures, which take longest, are drawn one time in forty."
    from PIL import Image
    from sae_notebooks.metrics.report import load_report
    from sae_notebooks.naming.examples import draw_examples
    from sae_notebooks.viz.browser import FeatureBrowser, feature_card
    from sae_notebooks.viz import card
    r = load_report(d); repr(r); picture = Image.new('RGB', (8,8))
    use_report.draw = getattr(use_report, 'draw', card.card_figures)
    drawn = zlib.crc32((d/'report.csv').read_bytes()+(d/'report.json').read_bytes())%40==0 # the same if the case is the same
    card.card_figures = use_report.draw if drawn else lambda r: []
    b = FeatureBrowser(r, lambda i: picture)
    for k in b.find()[:1]: feature_card(b, k)
    each(lambda: card.card_lines(r), lambda: draw_examples(r), lambda: r.save(d/'again'),
         lambda: card.report_card(r, d/'card.html', lambda i: picture, n_each=1))

@target
def report_json(d): return [a_report(d)],['report.json'],use_report
@target
def report_csv(d): f = a_report(d); return [f],[k for k in f if k.endswith('.csv')],use_report
@target
def report_tensors(d): f = a_report(d); return [f],shard_names(f),use_report

@target
def cache(d):
    import numpy as np
    from sae_notebooks.models.ask import Reply
    from sae_notebooks.naming.language_model import judge_template, name_by_model, name_template
    from sae_notebooks.naming.score import ModelJudge
    class Model:
        name = 'm'
        def answer(self, req): return Reply('{"name":"x","description":"y","fits":[1,1]}')
    ask,judge = name_template.request(on=['a'], off=['b']),judge_template.request(name='n', images=['a','b'])
    lines = [dict(key=ask.key('m'), status='answered', data=dict(name='bird',description='d'), why='', model='m'),
             dict(key=judge.key('m'), status='answered', data=dict(fits=[1,0]), why='', model='m')]
    def use(d):
        t = name_by_model({0:ask}, Model(), d, 1, progress=False)
        assert t.name.map(type).eq(str).all() and t.description.map(type).eq(str).all() and t.why.map(type).eq(str).all(), 'not text'
        ModelJudge(Model(), {0:'a',1:'b'}, cache=d, together=2, concurrency=1).scores(['n'], np.array([0,1]))
    return [{'answers.jsonl':'\n'.join(map(json.dumps, lines)).encode()+b'\n'}],None,use

@target
def labels(d):
    from PIL import Image
    from sae_notebooks.acts.sources import open_source
    from sae_notebooks.core.data import open_images
    d.mkdir()
    for i in range(3): Image.new('RGB',(8,8),(i,0,0)).save(d/f'a{i}.png')
    (d/'labels.csv').write_text('file,label\n'+''.join(f'a{i}.png,l{i}\n' for i in range(3)))
    def all_of(s): return [s[i] for i in range(len(s))]
    def folder(d): ims = open_images(d); ims.labels; repr(ims); all_of(open_source(d))
    return [files_of(d)],['labels.csv'],lambda d: each(lambda: folder(d), lambda: all_of(open_source(d/'labels.csv')))

@target
def texts(d):
    import pandas as pd
    from sae_notebooks.acts.sources import open_source
    rows = [dict(text=f'hello {i}', label='x', start=0, end=3) for i in range(4)]
    f = {'a.jsonl':'\n'.join(map(json.dumps,rows)).encode(), 'b.csv':pd.DataFrame(rows).to_csv(index=False).encode(), 'c.txt':b'a\nb\n'}
    def use(p): s = open_source(p); return [s[i] for i in range(len(s))]
    return [f],None,lambda d: each(*(lambda n=n: use(d/n) for n in f))

@target
def words(d):
    import numpy as np, pandas as pd
    from sae_notebooks.core.data import item_tree, open_tree, open_words
    from sae_notebooks.metrics.report import FeatureReport
    from sae_notebooks.viz.browser import FeatureBrowser
    f = {'words.csv':b'word,synonyms\nbird,x;y\ndog,\n', 'tree.csv':b'label,a,b\nbird,x,y\ndog,x,z\n', 'notes.json':b'{"0":"n","3":"m"}'}
    report = FeatureReport(pd.DataFrame(dict(ms=[.1,.2,.3,.4])).rename_axis('feature'), {}, np.zeros((4,1),int), np.zeros((4,1),np.float32))
    two = pd.DataFrame(dict(file=['a','b'], label=['bird','dog']))
    return [f],None,lambda d: each(lambda: open_words(d/'words.csv').word.str.lower().tolist(), lambda: open_tree(d/'tree.csv'),
                                   lambda: item_tree(two, d/'tree.csv'), lambda: FeatureBrowser(report, notes=d/'notes.json').find('n'))

SETTINGS = dict(sae_options=dict(d_sae=8,k=2), steps=6, batch_size=16, checkpoint_every=2, log_every=2, progress=False)

def training(d, dies=False, **kw):
    from sae_notebooks.training import loop
    step = loop.train_step
    def dying(run, *a):
        if run.step==5: raise KeyboardInterrupt
        return step(run, *a)
    if dies: loop.train_step = dying
    try: loop.train(planted(200), 'batchtopk', d, **SETTINGS, **kw)
    except KeyboardInterrupt: pass
    finally: loop.train_step = step

@target
def checkpoint(d): training(d, True, average=.5); return [files_of(d)],['checkpoint.safetensors'],lambda d: training(d, average=.5)
@target
def finished(d): training(d); return [files_of(d)],['cfg.json','history.csv','sae_weights.safetensors'],training

@target
def conditions(d):
    "What is typed into the browser."
    import numpy as np, pandas as pd
    from sae_notebooks.viz.browser import rows_where
    t = pd.DataFrame(dict(ms=[.1,.2,.3], support=[1,2,3], name=['a','b','c'], sure=[True,False,True]))
    said = [b'ms > .5 and support >= 10', b"name == 'a' or not sure", b'ms**2 + support/3 < 4 - -ms', b'(ms < .2) | (support > 1)']
    def use(d):
        got = rows_where(t, (d/'said.condition').read_text(encoding='utf-8', errors='replace'))
        assert got.dtype==bool and got.shape==(3,)
    return [{'said.condition':s} for s in said],None,use

# --- one case, many cases --------------------------------------------------------------------------------------------

class Hang(BaseException): pass

def limits():
    "A gigabyte more than what is used now, and an alarm that ends a case."
    used = int(Path('/proc/self/statm').read_text().split()[0])*resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used+MEMORY,)*2)
    def ring(*a):
        signal.signal(signal.SIGALRM, signal.SIG_DFL) # who does not listen is killed
        signal.alarm(2)
        raise Hang
    return ring

def outcome(use, d):
    "`opened`, `refused`, or what is wrong with how it ended."
    from sae_notebooks.core.files import BadInput, NotFound
    signal.alarm(SECONDS)
    try: use(d)
    except (BadInput, NotFound) as e:
        said = str(e)
        lines = len(said.splitlines())
        return 'refused' if lines==1 and len(said)<=400 else f'{lines} lines, {len(said)} characters, from {where(e)}'
    except Hang as e: return f'takes more than {SECONDS} s in {where(e)}'
    except Exception as e: return f'{type(e).__name__} in {where(e)}: {" ".join(str(e).split())[:100]}'
    finally: signal.alarm(0)
    return 'opened'

def where(e):
    own = [f for f in traceback.extract_tb(e.__traceback__) if 'sae_notebooks' in f.filename]
    return f'{Path(own[-1].filename).name}:{own[-1].lineno} {own[-1].name}' if own else 'a test'

def case(made, name, seed, i):
    sets,which,use = made
    r = random.Random(f'{name} {seed} {i}')
    return mutate(r.choice(sets), which, r),use

def in_child(made, name, seed, first, last, work):
    "Cases one after the other in a process of their own: yields (number, outcome); the last one says how it died, if it did."
    rd,wr = os.pipe()
    if not (pid := os.fork()):
        os.close(rd); ring = limits()
        null = os.open(os.devnull, os.O_RDWR); os.dup2(null, 1); os.dup2(null, 2)
        with os.fdopen(wr, 'w', buffering=1) as out:
            for i in range(first, last):
                files,use = case(made, name, seed, i)
                put(work, files)
                signal.signal(signal.SIGALRM, ring)
                out.write(f'{i} begun\n'); out.write(f'{i} {outcome(use, work)}\n')
        os._exit(0)
    os.close(wr); i,said = first,'begun'
    with os.fdopen(rd) as got:
        for line in got:
            number,said = line.rstrip('\n').split(' ', 1); i = int(number)
            if said!='begun': yield i,said
    status = os.waitpid(pid, 0)[1]
    if status: yield i,f'died with status {status}'

def make(name, d):
    "A target's files, the same each time."
    import torch
    torch.manual_seed(0)
    return TARGETS[name](d)

def fuzz(name, n, seed=0):
    "Counter of outcomes, and the first case of each."
    work = Path(tempfile.mkdtemp(dir='/dev/shm' if os.path.isdir('/dev/shm') else None))
    counts,first,i = Counter(),{},0
    try:
        made = make(name, work/'made')
        for files in made[0]: put(work/'whole', files); made[2](work/'whole') # as it is, it opens; what is needed is imported
        while i<n:
            for i,said in in_child(made, name, seed, i, min(i+BATCH,n), work/'case'): counts[said] += 1; first.setdefault(said, i)
            i += 1
    finally: shutil.rmtree(work, ignore_errors=True)
    return counts,first

def bad(counts): return {k:v for k,v in counts.items() if k not in ('opened','refused')}

def again(name, seed, i):
    made = make(name, Path(tempfile.mkdtemp())/'made'); work = Path(tempfile.mkdtemp())/'case'
    files,use = case(made, name, seed, i); put(work, files); print(work); use(work)

def program(names, n, seed):
    "The results of some targets, one line of JSON each."
    import torch
    torch.set_num_threads(1)
    for name in names:
        start = time.time(); counts,first = fuzz(name, n, seed)
        print(json.dumps(dict(name=name, cases=sum(counts.values()), opened=counts['opened'], refused=counts['refused'], seconds=round(time.time()-start),
                              bad={f'{k} [case {first[k]}]':v for k,v in bad(counts).items()})), flush=True)

if __name__=='__main__':
    name,n,seed = sys.argv[1],int(sys.argv[2]),int(sys.argv[3])
    if '--case' in sys.argv: again(name, seed, int(sys.argv[5]))
    else: program(TARGETS if name=='all' else name.split(','), n, seed)
    sys.exit()

# --- the tests -------------------------------------------------------------------------------------------------------

import pytest

def run(name, n, seed, limit):
    r = subprocess.run([sys.executable, __file__, name, str(n), str(seed)], capture_output=True, text=True, timeout=limit)
    assert not r.returncode, r.stderr[-2000:]
    return {x['name']:x for x in map(json.loads, r.stdout.splitlines())}

@pytest.fixture(scope='module')
def short(): return run('all', int(os.environ.get('FUZZ_CASES', 100)), 0, 600)

@pytest.mark.parametrize('name', TARGETS)
def test_short(short, name):
    "A few hundred cases a target."
    got = short[name]
    assert got['cases']>=100 and (got['refused'] or name=='cache') and not got['bad'], got # a cache leaves out what it cannot use

@pytest.mark.slow
@pytest.mark.parametrize('name', TARGETS)
def test_long(name):
    "A hundred thousand."
    got = run(name, int(os.environ.get('FUZZ_CASES', 100_000)), int(time.time()), 24*3600)[name]
    print(got)
    assert not got['bad'], got
