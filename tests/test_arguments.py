"What is wrong with a command shows in one line, before any work; and a wish for L0 is met"
import time
import pytest, torch
from sae_notebooks.core.files import BadInput, NotFound

@pytest.fixture
def sh(place, monkeypatch, capsys):
    "Status, and what was said on stdout and stderr, of a command called in the folder"
    from sae_notebooks.dev.cli import main
    monkeypatch.chdir(place)
    def run(*words):
        capsys.readouterr()
        try: main(list(words))
        except SystemExit as e: return (e.code or 0,*capsys.readouterr())
        return (0,*capsys.readouterr())
    return run

@pytest.fixture(scope='module')
def place(tmp_path_factory):
    "A folder with images, a store and a report of them"
    from PIL import Image
    from sae_notebooks import measure, open_images, plant, store_rows, train
    d = tmp_path_factory.mktemp('place')
    (d/'pics').mkdir()
    for i in range(30): Image.new('RGB', (16,16), (8*i,0,0)).save(d/'pics'/f'{i:02d}.png')
    x = plant().sample(30, seed=0)[0]
    items = open_images(d/'pics').items
    acts,judge = store_rows(d/'acts', x, items),store_rows(d/'judge', x[:,:16], items)
    sae = train(acts, 'batchtopk', d/'sae', sae_options=dict(d_sae=8, k=2), steps=5, progress=False)
    measure(sae, acts, judge, draws=5, progress=False).save(d/'report')
    return d

def begun(folder):
    "What a command has left in its folder; the lock that keeps others out of it is no work"
    return [f for f in folder.rglob('*') if f.name!='.sae-lock']

REFUSED = {
    'extract pics --device cuda:99 --out new':  "no device 'cuda:99'",
    'train acts --device cuda:99 --out new':    "no device 'cuda:99'",
    'run nothing.ipynb --device cuda:99':       "no device 'cuda:99'",
    'extract pics --model small_image_txt --out new': 'did you mean small_image_text?',
    'extract pics --model no_such_model --out new':   'embedded models: small_image_text',
    'points no/such-model':                     'HF_HUB_OFFLINE is set',
    'train acts --sae relu --k 8 --out new':    'k is an option of batchtopk',
    'train acts --lr-rule foo --out new':       "no learning rate rule 'foo'",
    'train acts --sae relu --target-l0 9999 --out new': '--target-l0 must lie above 0',
    'name report pics --model inat_birds --out new': 'no text side',
    'name report pics --words bad.csv --out new':    "no word list 'bad.csv'",
}

@pytest.mark.parametrize('line', REFUSED)
def test_refused(line, place, sh):
    status,_,said = sh(*line.split())
    lines = [l for l in said.splitlines() if l.startswith('sae-notebooks:')]
    assert status==2 and len(lines)==1 and 'Traceback' not in said, said[-1500:]
    assert REFUSED[line] in lines[0], lines[0]
    assert not begun(place/'new'), 'it had begun'

def test_not_after_the_images(place, monkeypatch):
    "Words and the model's text side are looked at before an image is"
    from sae_notebooks import load_report, name
    def never(i): raise AssertionError('an image was opened')
    for more in (dict(words='bad.csv'), dict(model='inat_birds')):
        with pytest.raises((BadInput,NotFound)): name(load_report(place/'report'), never, progress=False, **more)

def test_device_in_python(place):
    from sae_notebooks import extract, load_model, train, train_many
    x = torch.randn(64,8)
    for call in (lambda: load_model('stories260k', 'cuda:99'), lambda: extract('stories260k', ['a b'], place/'new', device='cuda:99'),
                 lambda: train(x, 'topk', place/'new', dict(d_sae=8,k=2), 'cuda:99'),
                 lambda: train_many(x, [dict(architecture='topk',d_sae=8,k=2)], place/'new', 'cuda:99')):
        with pytest.raises(BadInput, match="no device 'cuda:99' here"): call()
    assert not begun(place/'new')

def test_misspelt_without_network(monkeypatch):
    "Not even where nobody said that the machine is offline: the hub does not answer, and is not asked again"
    from huggingface_hub import constants
    from sae_notebooks import load_model
    for k in ('HTTPS_PROXY','https_proxy','ALL_PROXY','all_proxy'): monkeypatch.delenv(k, raising=False)
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', False)
    monkeypatch.setattr(constants, 'ENDPOINT', 'http://127.0.0.1:9')
    load_model('stories260k') # what has to be imported is imported
    for name in ('no_such_model','openai/clip-vit-base-patch33'):
        begun = time.perf_counter()
        with pytest.raises(NotFound, match='embedded models: small_image_text'): load_model(name)
        assert time.perf_counter()-begun<5

def test_points(sh):
    status,out,said = sh('points','stories260k','--match','*resid_post*')
    rows = [l.split() for l in out.splitlines() if l.startswith('resid_post')]
    assert status==0 and [r[:2] for r in rows]==[[f'resid_post.{i}','64'] for i in range(5)], said
    assert 'usual: resid_post.2' in out

def test_one_thing(place, sh):
    "One thing is one thing"
    import shutil
    shutil.copytree(place/'judge', place/'broken')
    f = next((place/'broken').glob('**/*.safetensors'))
    f.write_bytes(f.read_bytes()[:-1]+bytes([f.read_bytes()[-1]^1]))
    status,_,said = sh('verify','broken')
    assert status==2 and '1 things' not in said and ('1 thing is wrong' in said), said

# a wished L0

@pytest.fixture(scope='module')
def tokens(tmp_path_factory):
    "Rows of the embedded language model on embedded texts"
    from sae_notebooks import extract
    return extract('stories260k', 'pii', tmp_path_factory.mktemp('t')/'s', 'resid_post.2', 'random:16', progress=False)[:].float()

@pytest.mark.parametrize('arch', ['relu','gated','jumprelu'])
@pytest.mark.parametrize('d_sae,wish', [(256,None),(512,10)])
def test_wished_l0(arch, d_sae, wish, tokens):
    from sae_notebooks import evaluate, train
    sae = train(tokens[:-4000], arch, sae_options=dict(d_sae=d_sae, **(dict(target_l0=wish) if wish else {})), steps=300, progress=False)
    l0,want = evaluate(sae, tokens[-4000:])['l0'],wish or 16
    assert sae.cfg['target_l0']==want and abs(l0/want-1)<.15, l0

def test_given_weight_is_left_alone(tokens, monkeypatch):
    "Who gives a weight gets that weight at each step, and no wish"
    from sae_notebooks import train
    from sae_notebooks.training import loop
    def never(*a, **k): raise AssertionError('a given weight was changed')
    monkeypatch.setattr(loop, 'press', never)
    for arch,own in (('relu',dict(l1=.1)), ('gated',dict(l1=.1)), ('jumprelu',dict(l0=.01)), ('topk',dict(k=4))):
        sae = train(tokens[:512], arch, sae_options=dict(d_sae=64, **own), steps=3, progress=False)
        assert sae.cfg.get('target_l0') is None and 'weight' not in sae.history

def test_older_sae_keeps_its_weight(tmp_path):
    "An SAE saved before wishes were known has a weight in its cfg, and opens with that and no wish"
    import json
    from sae_notebooks import load_sae, make_sae, save_sae
    save_sae(make_sae('relu', d_in=8, d_sae=16, l1=.01), tmp_path)
    cfg = json.loads((tmp_path/'cfg.json').read_text())
    del cfg['metadata']['sae_notebooks']['target_l0']
    (tmp_path/'cfg.json').write_text(json.dumps(cfg))
    sae = load_sae(tmp_path)
    assert (sae.cfg['l1'],sae.cfg['target_l0'],sae.weight())==(.01,None,.01)

def test_resumed_wish_has_the_same_bits(tokens, tmp_path):
    from sae_notebooks import train
    class Dies:
        def __init__(self, x, n): self.x,self.n,self.shape,self.dtype = x,n,x.shape,x.dtype
        def __len__(self): return len(self.x)
        def __getattr__(self, k): return getattr(self.x, k)
        def __getitem__(self, i):
            self.n -= 1
            if self.n<0: raise KeyboardInterrupt
            return self.x[i]
    x,kw = tokens[:2000],dict(sae_options=dict(d_sae=64), steps=60, checkpoint_every=20, log_every=10, progress=False)
    whole = train(x, 'gated', tmp_path/'whole', **kw)
    with pytest.raises(KeyboardInterrupt): train(Dies(x,51), 'gated', tmp_path/'cut', **kw)
    resumed = train(x, 'gated', tmp_path/'cut', **kw)
    assert all(map(torch.equal, whole.state_dict().values(), resumed.state_dict().values()))
    assert whole.history.equals(resumed.history) and whole.history.weight.nunique()>3

def test_together_as_alone(tokens):
    "In a grid of SAEs the wish is the same as in a run of its own, to the bit"
    from sae_notebooks import train, train_many
    x = tokens[:1000]
    grid = [dict(architecture='relu', d_sae=64), dict(architecture='topk', d_sae=64, k=4), dict(architecture='jumprelu', d_sae=64)]
    many = train_many(x, grid, steps=30, progress=False)
    one = train(x, 'relu', sae_options=dict(d_sae=64), steps=30, progress=False)
    assert torch.equal(many[0].W_dec, one.W_dec) and [s.cfg.get('target_l0') for s in many]==[4,None,4]
