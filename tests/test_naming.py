"Names by a language model over a real connection: through everything that can go wrong, killed and resumed; and by a model in this process."
import json, signal, subprocess, sys, threading, time
from pathlib import Path
import numpy as np, pandas as pd, pytest, torch
from sae_notebooks import LocalModel, ServerModel, load_vision, open_images
from sae_notebooks.core.codes import dense_to_codes
from sae_notebooks.metrics.report import FeatureReport
from sae_notebooks.models.ask import AnswerCache
from sae_notebooks.naming.language_model import name_by_model, naming_requests
from sae_notebooks.naming.vocabulary import embed_words
from openai_server import Server

pytest.importorskip('openai', reason='openai is not installed')
KINDS = ['sunflower','watch','grand piano','airplane','motorbike','leopard','butterfly','chandelier','laptop','starfish']

@pytest.fixture(scope='module')
def looker():
    "What the server says: the nearest word to the images before the question, from the image-text model."
    net = load_vision('small_image_text'); words = embed_words(net, KINDS); known,lock = {},threading.Lock()
    def answer(pics, said):
        first = next((i for i,p in enumerate(said[1:],1) if p['type']=='text'), len(said))-1; pics = pics[:max(first,1)]
        with lock: # one question at a time, and each once: a slow machine must not look like a slow server
            key = b''.join(p.tobytes() for p in pics)
            if key not in known: known[key] = KINDS[int((words.emb@net.embed_images(pics).mean(0)).argmax())]
        return json.dumps(dict(name=known[key], description='the nearest word'))
    return answer

@pytest.fixture(scope='module')
def asks():
    photos = open_images('photos'); labels = np.array(photos.labels)
    rows = np.concatenate([np.flatnonzero(labels==k)[:8] for k in KINDS]); acts = torch.zeros(len(rows),len(KINDS)+1)
    for k in range(len(KINDS)): acts[k*8:k*8+8,k] = torch.rand(8)+.1
    acts[:2,-1] = 1
    return naming_requests(dense_to_codes(acts), lambda i: photos[int(rows[i])], top=5, middle=3, near=2)

def model(s, **kw): return ServerModel('small', s.url, 'k', **dict(timeout=1., retries=3, side=128)|kw)

@pytest.fixture(scope='module')
def calm(looker, asks):
    with Server(looker) as s:
        t = name_by_model(asks, model(s, timeout=120.), progress=False); assert sum(s.asked.values())==len(KINDS)
    return t

def test_calm(calm):
    assert (calm.status[:10]=='named').all() and (calm.tokens[:10]>0).all()
    assert sum(n==k for n,k in zip(calm.name,KINDS))>=7
    assert calm.status[10]=='abstained' and calm.why[10].startswith('on for 2')

@pytest.mark.parametrize('mood', ['429','500','drop','timeout','hang','garbage','prose','half','schema'])
def test_one_fault_each(looker, asks, calm, mood):
    "Whatever goes wrong the first time, the second try gives what a calm server gives."
    few = dict(list(asks.items())[:2])
    with Server(looker, lambda key,times: mood if times==1 or mood=='schema' else 'ok') as s: t = name_by_model(few, model(s), progress=False)
    if mood=='garbage': assert set(t.status)<={'named','failed'} and (t.why[t.status=='failed']!='').all()
    else: assert t.name.tolist()==calm.name[:2].tolist()

@pytest.mark.parametrize('mood,why', [('500','InternalServerError'),('429','RateLimitError'),('drop','APIConnectionError'),('timeout','APITimeoutError'),('garbage',''),('prose','unparsable'),('half','unparsable'),('refuse','refused')])
def test_for_ever(looker, asks, tmp_path, mood, why):
    "What never works ends as failed, with the reason; only what was answered is kept."
    few = dict(list(asks.items())[:2])
    with Server(looker, lambda *a: mood) as s: t = name_by_model(few, model(s, retries=1, timeout=.5), tmp_path, progress=False)
    assert (t.status=='failed').all() and (t.name=='').all() and t.why.str.contains(why).all(), t.why.tolist()
    assert len(AnswerCache(tmp_path).answers)==(2 if mood=='refuse' else 0)

def test_all_at_once(looker, asks, calm, tmp_path):
    "A server that fails in every way by turns: every feature ends named, abstained or failed with a reason, and the next run asks only for what failed."
    moods = ['429','500','drop','hang','garbage','prose','ok','ok','ok','ok']; seed = int(time.time()); print(f'moods drawn with seed {seed}'); g = np.random.default_rng(seed)
    with Server(looker, lambda *a: moods[g.integers(len(moods))]) as s: t = name_by_model(asks, model(s), tmp_path, concurrency=4, progress=False)
    assert set(t.status)<={'named','abstained','failed'} and (t.why[t.status!='named']!='').all() and t.index.tolist()==list(asks)
    ok = t.status=='named'; assert ok.any() and (t.name[ok]==calm.name[ok]).all()
    with Server(looker) as s: again = name_by_model(asks, model(s), tmp_path, progress=False); assert sum(s.asked.values())==(t.status=='failed').sum()
    assert again.name.tolist()==calm.name.tolist()

CHILD = '''
import sys
from PIL import Image
from sae_notebooks.models.ask import ServerModel
from sae_notebooks.naming.language_model import name_by_model, name_template
asks = {i: name_template.request(on=[Image.new('RGB',(16,16),(i,2*i,255-i))], off=[]) for i in range(40)}
t = name_by_model(asks, ServerModel('small', sys.argv[1], 'k', timeout=10, retries=2), sys.argv[2], concurrency=3, progress=False)
print((t.status=='named').sum())
'''
def test_killed_run_resumes(tmp_path):
    "Killed in the middle, the run asks again only for what had not been written down."
    with Server(lambda *a: '{"name": "a colour", "description": ""}', pause=.15) as s:
        run = lambda **kw: subprocess.Popen([sys.executable,'-c',CHILD,s.url,str(tmp_path)], stdout=subprocess.PIPE, text=True, **kw)
        p = run(); start = time.time()
        while len(AnswerCache(tmp_path).answers)<8: time.sleep(.05); assert time.time()-start<90 and p.poll() is None
        p.send_signal(signal.SIGKILL); p.wait(); time.sleep(.5)
        kept,asked = len(AnswerCache(tmp_path).answers),sum(s.asked.values()); assert 8<=kept<40
        out,_ = run().communicate(timeout=120); assert out.strip()=='40'
        assert sum(s.asked.values())-asked==40-kept                 # not one more than needed
        assert sum(v>1 for v in s.asked.values())<=3                # only those in flight at the kill were asked twice

def tiny_model(path):
    "An image-and-text model of random weights that reads several images and has a chat template."
    import transformers as hf
    from sae_notebooks.core.data import model_folder
    tok = hf.AutoTokenizer.from_pretrained(model_folder('stories260k')); tok.add_special_tokens({'additional_special_tokens':['<image>']})
    kw = dict(num_hidden_layers=2, num_attention_heads=4); torch.manual_seed(0)
    cfg = hf.LlavaConfig(vision_config=hf.CLIPVisionConfig(**kw,hidden_size=32,intermediate_size=48,image_size=32,patch_size=8), text_config=hf.LlamaConfig(**kw,hidden_size=40,intermediate_size=64,vocab_size=len(tok),bos_token_id=1,eos_token_id=2,max_position_embeddings=4096), image_token_index=tok.convert_tokens_to_ids('<image>'))
    hf.LlavaForConditionalGeneration(cfg).save_pretrained(path)
    chat = "{% for m in messages %}{% for p in m['content'] %}{% if p['type']=='image' %}<image>{% else %}{{ p['text'] }}{% endif %}{% endfor %}\n{% endfor %}"
    hf.LlavaProcessor(hf.CLIPImageProcessor(size=dict(shortest_edge=32),crop_size=dict(height=32,width=32)), tok, patch_size=8, vision_feature_select_strategy='default', num_additional_image_tokens=1, chat_template=chat).save_pretrained(path)

def test_local_model(tmp_path, asks):
    "A tiny model with random weights goes the whole way: it is asked, its answers are no JSON, and that is what the table says."
    tiny_model(tmp_path/'m'); m = LocalModel(str(tmp_path/'m'))
    t = name_by_model(dict(list(asks.items())[:2]), m, tmp_path/'cache', progress=False)
    assert (t.status=='failed').all() and t.why.str.startswith('unparsable').all() and (t.asked==3).all() and (t.tokens>100).all()

def test_cost_is_asked(tmp_path):
    from PIL import Image
    from sae_notebooks.models.ask import cost
    from sae_notebooks.naming.language_model import name_template
    c = cost([name_template.request(on=[Image.new('RGB',(9,9))]*8, off=[])]*100)
    assert c['questions']==100 and 100*8*256<c['tokens']<100*(8*256+600)

def test_names_that_are_there_are_not_looked_for_again(tmp_path, monkeypatch, capsys):
    "The same command is quietly the same; other settings, and the folder of the report, are refused before any work."
    import importlib
    from sae_notebooks.dev.cli import main
    photos = open_images('photos'); labels = np.array(photos.labels); monkeypatch.chdir(tmp_path); (tmp_path/'pics').mkdir()
    for j,i in enumerate(i for k in KINDS[:3] for i in np.flatnonzero(labels==k)[:8]): photos[int(i)].save(tmp_path/'pics'/f'{j:02}.jpg')
    acts = torch.zeros(24,3)
    for k in range(3): acts[k*8:k*8+8,k] = torch.rand(8)+.1
    FeatureReport(pd.DataFrame(dict(ms=[.3,.2,.1]),index=pd.RangeIndex(3,name='feature')), dict(items=24,given='a'), np.zeros((3,2),int), np.ones((3,2)), codes=dense_to_codes(acts), item=np.arange(24)).save('report')
    def run(*more):
        try: main(['name','report','pics','--words','attributes',*more]); status = 0
        except SystemExit as e: status = e.code or 0
        said = capsys.readouterr(); return status,said.out+said.err
    first = run(); assert not first[0], first
    written = (tmp_path/'run/named/report.json').stat().st_mtime_ns
    def work(*a, **kw): raise RuntimeError('it was done')
    monkeypatch.setattr(importlib.import_module('sae_notebooks.naming.name'), '_model', work)
    second = run(); assert second==(0,first[1]), second
    for more in (['--words','nouns'],['--seed','1'],['--features','1'],['--out','report']):
        status,said = run(*more); assert status==2 and 'already holds' in said and '--overwrite' in said, (more,status,said)
    assert (tmp_path/'run/named/report.json').stat().st_mtime_ns==written
    status,said = run('--words','nouns','--overwrite'); assert status==1 and 'it was done' in said

def test_cli_asks_before_it_spends(looker, tmp_path, monkeypatch, capsys):
    "The command shows the cost and asks; no means nothing was asked; --yes does not ask; a second run costs nothing."
    import io
    from sae_notebooks.dev.cli import main
    photos = open_images('photos'); labels = np.array(photos.labels); monkeypatch.chdir(tmp_path)
    rows = [i for k in KINDS[:3] for i in np.flatnonzero(labels==k)[:12]]
    for j,i in enumerate(rows): (tmp_path/'pics').mkdir(exist_ok=True); photos[int(i)].save(tmp_path/'pics'/f'{j:02}.jpg')
    acts = torch.zeros(36,3)
    for k in range(3): acts[k*12:k*12+12,k] = torch.rand(12)+.1
    FeatureReport(pd.DataFrame(dict(ms=[.3,.2,.1]),index=pd.RangeIndex(3,name='feature')), dict(items=36), np.zeros((3,2),int), np.ones((3,2)), codes=dense_to_codes(acts), item=np.arange(36)).save('report')
    def run(*more):
        "Exit status, and what was printed"
        try: main(['name','report','pics','--server',s.url,'--namer','small',*more]); status = 0
        except SystemExit as e: status = e.code or 0
        said = capsys.readouterr(); return status,said.out+said.err
    with Server(looker) as s:
        monkeypatch.setattr('sys.stdin', io.StringIO('n\n')); status,said = run()
        assert status and 'tokens' in said and not s.asked
        status,said = run('--yes'); first = sum(s.asked.values()); assert not status and first>=1 and 'named' in said
        assert not run('--yes')[0]
        assert sum(s.asked.values())==first
