"A result is that of its own data and settings, of one version, unharmed, and in a folder of its own"
import shutil, subprocess, sys
from dataclasses import replace
from pathlib import Path
import numpy as np, pandas as pd, pytest, torch
from PIL import Image
from project import root
from sae_notebooks.acts.combine import concat, store_rows
from sae_notebooks.acts.extract import extract
from sae_notebooks.acts.store import ActStore
from sae_notebooks.core.codes import dense_to_codes
from sae_notebooks.core.files import BadInput, read_json, write_json
from sae_notebooks.metrics.report import FeatureReport, load_report
from sae_notebooks.models.load import load_model
from sae_notebooks.saes.base import load_sae, make_sae, save_sae
from sae_notebooks.saes.interop import read_sae, save_as
from sae_notebooks.training.checkpoint import load_state, save_state
from sae_notebooks.training.loop import train
from sae_notebooks.training.stack import train_many

g = lambda: torch.Generator().manual_seed(0)
X = torch.randn(96,16,generator=g())
FAST = dict(steps=6, batch_size=16, checkpoint_every=2, log_every=3, progress=False)
OPTIONS = dict(d_sae=32, k=2)

def refused(fn, *words):
    with pytest.raises(BadInput) as e: fn()
    assert '\n' not in str(e.value) and all(w in str(e.value) for w in words), str(e.value)

# --- resuming: another run's result is never given ---------------------------------------------------------------------

def changed_sae():
    sae = make_sae('topk', d_in=16, **OPTIONS)
    with torch.no_grad(): sae.enc[0] *= 3
    return sae

SHUFFLED = X.flatten()[torch.randperm(X.numel(),generator=g())].view_as(X) # the same shape, sum and sum of squares
OTHER = dict(columns=(dict(store=X.flip(1).contiguous()),'rows'), numbers=(dict(store=SHUFFLED),'rows'), held=(dict(held_out=SHUFFLED[:20]),'held out'),
             weights=(dict(sae=changed_sae(), sae_options=None),'initial weights'), rate=(dict(lr=.01),'lr'))

@pytest.fixture
def dying(monkeypatch):
    "Training that is interrupted at its fourth step"
    from sae_notebooks.training import loop
    step = loop.train_step
    def dies(run, *a):
        if run.step==4: raise KeyboardInterrupt
        return step(run, *a)
    def use(on): monkeypatch.setattr(loop, 'train_step', dies if on else step)
    return use

@pytest.mark.parametrize('what', OTHER)
@pytest.mark.parametrize('finished', [True,False])
def test_training_on_other_data(tmp_path, dying, what, finished):
    kw = dict(store=X, sae='topk', out=tmp_path/'t', sae_options=OPTIONS, held_out=X[:20], **FAST)
    dying(not finished)
    if finished: first = train(**kw)
    else:
        with pytest.raises(KeyboardInterrupt): train(**kw)
        assert (tmp_path/'t/checkpoint.safetensors').is_file()
    dying(False)
    other,word = OTHER[what]
    refused(lambda: train(**{**kw,**other}), 'with other settings or data', word)
    again = train(**kw) # what was meant goes on, or is found
    if finished: assert torch.equal(again.W_dec, first.W_dec)

def test_labels_of_a_guided_sae(tmp_path):
    y = (torch.rand(96,2,generator=g())>.5).float()
    kw = dict(sae_options=dict(d_sae=32,k=6,n_concepts=2), **FAST)
    train(X, 'guided', tmp_path, labels=y, **kw)
    refused(lambda: train(X, 'guided', tmp_path, labels=y.flip(0), **kw), 'labels')

@pytest.mark.parametrize('finished', [True,False])
def test_a_grid_at_another_rate(tmp_path, dying, finished):
    grid = [dict(architecture='topk',**OPTIONS), dict(architecture='relu',d_sae=32)]
    dying(not finished)
    if finished: saes = train_many(X, grid, tmp_path, **FAST)
    else:
        with pytest.raises(KeyboardInterrupt): train_many(X, grid, tmp_path, **FAST)
    dying(False)
    refused(lambda: train_many(X, grid, tmp_path, lr=.01, **FAST), 'with other settings or data')
    refused(lambda: train_many(X.flip(1), grid, tmp_path, **FAST), 'rows')
    if finished: assert torch.equal(load_sae(tmp_path/'000').W_dec, saes[0].W_dec)

def test_rows_in_memory(tmp_path):
    items = pd.DataFrame(dict(file=[f'{i}' for i in range(96)], label=['a','b']*48))
    store = store_rows(tmp_path, X, items)
    for acts in (X[torch.randperm(96,generator=g())],X.flip(1)): refused(lambda: store_rows(tmp_path, acts, items), 'another data')
    refused(lambda: store_rows(tmp_path, X, items, item=torch.arange(96).flip(0)), 'another data')
    refused(lambda: store_rows(tmp_path, X, items, pos=torch.ones(96)), 'another data')
    refused(lambda: store_rows(tmp_path, X, items.assign(label='new')), 'already holds these rows, and other labels')
    assert torch.equal(store_rows(tmp_path, X, items)[:], store[:])

@pytest.fixture
def pictures(tmp_path):
    def make(seed):
        rng = np.random.default_rng(seed)
        (tmp_path/'im').mkdir(exist_ok=True)
        for i in range(4): Image.fromarray(rng.integers(0,255,(128,128,3),dtype=np.uint8)).save(tmp_path/f'im/{i}.bmp')
        return tmp_path/'im'
    return make

def test_pictures_labels_and_weights_that_changed(tmp_path, pictures):
    model,kw = load_model('small_image_text'),dict(shard_items=2, batch_size=2, progress=False)
    def go(): return extract(model, pictures(seed), tmp_path/'e', **kw)
    seed = 0
    first = go()
    assert torch.equal(go()[:], first[:])
    raw = bytearray((tmp_path/'im/2.bmp').read_bytes())
    raw[len(raw)//3] ^= 4 # one value of one pixel, in a stretch that nobody looks at
    def one_bit(): (tmp_path/'im/2.bmp').write_bytes(raw); return extract(model, tmp_path/'im', tmp_path/'e', **kw)
    refused(one_bit, 'another data')
    seed = 1
    refused(go, 'another data')
    seed = 0
    pictures(0)
    (tmp_path/'im/labels.csv').write_text('file,label\n'+''.join(f'{i}.bmp,new{i}\n' for i in range(4)))
    refused(go, 'these rows, and other labels', 'set_items')
    (tmp_path/'im/labels.csv').unlink()
    w = max(model.net.parameters(), key=torch.numel).data.view(-1)
    w[len(w)//2+1] += .01 # one weight among millions
    refused(go, 'another weights')

def test_an_interrupted_extraction_of_other_labels(tmp_path, pictures, monkeypatch):
    from sae_notebooks.acts.write import StoreWriter
    model,kw,write = load_model('small_image_text'),dict(shard_items=2, batch_size=2, progress=False),StoreWriter.write
    def stops(self, shard, *a, **k):
        if shard: raise KeyboardInterrupt
        return write(self, shard, *a, **k)
    monkeypatch.setattr(StoreWriter, 'write', stops)
    with pytest.raises(KeyboardInterrupt): extract(model, pictures(0), tmp_path/'e', **kw)
    monkeypatch.setattr(StoreWriter, 'write', write)
    (tmp_path/'im/labels.csv').write_text('file,label\n'+''.join(f'{i}.bmp,new{i}\n' for i in range(4)))
    refused(lambda: extract(model, tmp_path/'im', tmp_path/'e', **kw), 'was begun with other labels')

# --- older versions ----------------------------------------------------------------------------------------------------

def older_cfg(path, *gone):
    cfg = read_json(path/'cfg.json')
    for k in gone: del cfg['metadata'][k]
    write_json(path/'cfg.json', cfg)

def test_what_older_versions_wrote(tmp_path, dying):
    sae = train(X, 'topk', tmp_path/'t', sae_options=OPTIONS, **FAST)
    older_cfg(tmp_path/'t', 'given', 'files')
    assert torch.equal(load_sae(tmp_path/'t').W_dec, sae.W_dec)
    refused(lambda: train(X, 'topk', tmp_path/'t', sae_options=OPTIONS, **FAST), 'by an older version')
    dying(True)
    with pytest.raises(KeyboardInterrupt): train(X, 'topk', tmp_path/'u', sae_options=OPTIONS, **FAST)
    dying(False)
    tensors,meta = load_state(tmp_path/'u/checkpoint.safetensors')
    save_state(tmp_path/'u/checkpoint.safetensors', tensors, {k:v for k,v in meta.items() if k!='given'})
    refused(lambda: train(X, 'topk', tmp_path/'u', sae_options=OPTIONS, **FAST), 'by an older version')
    store = store_rows(tmp_path/'s', X)
    man = read_json(tmp_path/'s/store.json')
    write_json(tmp_path/'s/store.json', dict(man, meta={k:v for k,v in man['meta'].items() if k!='ids'}))
    assert torch.equal(ActStore(tmp_path/'s')[:], store[:])
    refused(lambda: store_rows(tmp_path/'s', X), 'by an older version')
    make_report(1).save(tmp_path/'r')
    summary = read_json(tmp_path/'r/report.json')
    write_json(tmp_path/'r/report.json', {k:v for k,v in summary.items() if k!='files'})
    assert load_report(tmp_path/'r').summary==make_report(1).summary

# --- bits --------------------------------------------------------------------------------------------------------------

def make_report(seed, **kw):
    acts = torch.rand(9,4,generator=torch.Generator().manual_seed(seed))
    table = pd.DataFrame(dict(ms=acts[0].numpy())).rename_axis('feature')
    r = FeatureReport(table, dict(dead=0, ms=seed/7, floor=.1), np.full((4,2),seed), acts[:4,:2].numpy(), dict(labels=table), codes=dense_to_codes(acts), item=np.arange(9))
    return replace(r, **kw)

def flip(file, at):
    raw = bytearray(file.read_bytes())
    raw[int(at*(len(raw)-1))] ^= 1
    file.write_bytes(raw)

def makers():
    "Name -> (what writes one of them, what reads it)"
    sae = make_sae('topk', d_in=16, **OPTIONS)
    return {'a feature report':(lambda p, **kw: make_report(1).save(p, **kw), load_report), 'an SAE':(lambda p, **kw: save_sae(sae, p, **kw), load_sae),
            'an SAE of dictionary_learning':(lambda p, **kw: save_as(sae, p, 'dictionary_learning', **kw), read_sae),
            'an SAE of sparsify':(lambda p, **kw: save_as(sae, p, 'sparsify', **kw), read_sae)}

@pytest.mark.parametrize('what', makers())
@pytest.mark.parametrize('at', [.45,.7,.9,1])
def test_a_bit_that_flipped(tmp_path, what, at):
    save,load = makers()[what]
    save(tmp_path)
    load(tmp_path)
    for f in sorted(tmp_path.iterdir()):
        if f.suffix in ('.json','.csv'): continue # flips there are what fuzzing is for
        held = f.read_bytes()
        flip(f, at)
        with pytest.raises(BadInput, match=f.name): load(tmp_path)
        f.write_bytes(held)
    load(tmp_path)

def test_a_number_of_a_table_that_changed(tmp_path):
    make_report(1).save(tmp_path)
    table = tmp_path/'report.csv'
    table.write_text(table.read_text().replace('.7','.8',1))
    refused(lambda: load_report(tmp_path), 'report.csv', 'has changed since it was written')

def test_a_bit_of_a_checkpoint(tmp_path, dying):
    dying(True)
    with pytest.raises(KeyboardInterrupt): train(X, 'topk', tmp_path, sae_options=OPTIONS, **FAST)
    dying(False)
    flip(tmp_path/'checkpoint.safetensors', .8)
    refused(lambda: train(X, 'topk', tmp_path, sae_options=OPTIONS, **FAST), 'is damaged')

# --- over others -------------------------------------------------------------------------------------------------------

def test_nothing_of_the_old_report_stays(tmp_path):
    make_report(1).save(tmp_path)
    bare = make_report(2, codes=None, item=None, tables={})
    refused(lambda: bare.save(tmp_path), 'already holds a feature report', 'overwrite')
    assert load_report(tmp_path).summary==make_report(1).summary
    bare.save(tmp_path, overwrite=True)
    r = load_report(tmp_path)
    assert r.codes is None and not r.tables and sorted(p.name for p in tmp_path.iterdir())==['examples.safetensors','report.csv','report.json']

def test_the_same_twice(tmp_path):
    for what,(save,_) in makers().items():
        for _ in range(2): save(tmp_path/what)
    for _ in range(2):
        train(X, 'topk', tmp_path/'t', sae_options=OPTIONS, **FAST)
        halves = [store_rows(tmp_path/n, x) for n,x in dict(a=X[:50], b=X[50:]).items()]
        concat(halves, tmp_path/'both')

def test_an_sae_over_another(tmp_path):
    save_sae(make_sae('topk', d_in=16, **OPTIONS), tmp_path)
    other = make_sae('topk', d_in=16, d_sae=32, k=3, seed=1)
    for go in (lambda: save_sae(other, tmp_path), lambda: save_as(other, tmp_path, 'sparsify')): refused(go, 'already holds an SAE')
    save_as(other, tmp_path, 'sparsify', overwrite=True)
    assert read_sae(tmp_path).cfg['k']==3 and sorted(p.name for p in tmp_path.iterdir())==['cfg.json','sae.safetensors']

def writers():
    rows = lambda p: store_rows(p, X)
    return dict(report=('a feature report',lambda p: make_report(1).save(p)), sae=('an SAE',makers()['an SAE'][0]), store=('a store of activations',rows),
                trained=('an SAE',lambda p: train(X, 'topk', p, sae_options=OPTIONS, **FAST)),
                grid=('a set of SAEs',lambda p: train_many(X, [dict(architecture='topk',**OPTIONS)], p, **FAST)),
                both=('a store of activations',lambda p: concat([rows(p.parent/'one')], p)))

@pytest.mark.parametrize('there', ['report','sae','store','grid'])
def test_into_the_folder_of_something_else(tmp_path, there):
    kind,make = writers()[there]
    make(tmp_path/'f')
    held = {p:p.read_bytes() for p in (tmp_path/'f').rglob('*') if p.is_file()}
    for name,(other,write) in writers().items():
        if other!=kind: refused(lambda: write(tmp_path/'f'), f'holds {kind}', 'name another folder')
    assert {p:p.read_bytes() for p in (tmp_path/'f').rglob('*') if p.is_file()}==held

def test_from_a_shell(tmp_path):
    "A report of something else is refused before any work, and replaced on request"
    for n,k in dict(s=16,j=8).items(): store_rows(tmp_path/n, torch.randn(96,k,generator=g()), pd.DataFrame(dict(file=[f'{i}.jpg' for i in range(96)])), meta=dict(model=n))
    for k in (2,3): train(ActStore(tmp_path/'s'), 'topk', tmp_path/f'sae{k}', sae_options=dict(d_sae=32,k=k), **FAST)
    def measure(k, *more):
        args = ['measure',tmp_path/f'sae{k}',tmp_path/'s',tmp_path/'j','--out',tmp_path/'r','--draws','5',*more]
        code = 'import sys; from sae_notebooks.dev.cli import main; main()'
        r = subprocess.run([sys.executable,'-c',code,*map(str,args)], cwd=root, capture_output=True, text=True, timeout=300)
        return r.returncode,r.stdout+r.stderr
    assert measure(2)[0]==0
    written = (tmp_path/'r/report.json').stat().st_mtime_ns
    assert measure(2)[0]==0 and (tmp_path/'r/report.json').stat().st_mtime_ns==written
    status,said = measure(3)
    assert status==2 and 'already holds a feature report of another SAE' in said and '--overwrite' in said and said.count('\n')==1, said
    assert measure(3,'--overwrite')[0]==0 and load_report(tmp_path/'r').summary['sae']['k']==3
