"Texts go the whole way, per token and per text, from Python and from the command line: store, SAE, measure, report, page, names, browser."
import json, re
import numpy as np, pandas as pd, pytest, torch
from sae_notebooks import browse, extract, load_report, measure, name, open_source, report_card, train
from sae_notebooks.models.ask import Reply
from sae_notebooks.viz.browser import FeatureBrowser, feature_card
from sae_notebooks.viz.texts import visible

WHO,DOES = ['Lily','Tom','Anna','Ben'],['ran to the park','saw a red cat','ate 3 cakes','sat on the bed','went to the shop','said "no"','lost a toy','had a big dog']
TEXTS = [f'{w} {d}. {v} {e}.' for w in WHO for d in DOES for v in WHO for e in DOES[:2]]
LABELS = ['pet' if 'cat' in t or 'dog' in t else 'other' for t in TEXTS]

@pytest.fixture(scope='module')
def way(tmp_path_factory):
    "Stores of tokens, of texts and of a judge, an SAE of each, a report of each"
    d = tmp_path_factory.mktemp('texts'); pd.DataFrame(dict(text=TEXTS, label=LABELS)).to_json(d/'t.jsonl', orient='records', lines=True)
    store = lambda model, out, **kw: extract(model, d/'t.jsonl', d/out, progress=False, **kw)
    stores = dict(token=store('stories260k','token',rule='all'), text=store('stories260k','text',rule='mean'))
    judge = store('small_image_text','judge'); out = dict(folder=d, source=open_source(d/'t.jsonl'), stores=stores, judge=judge)
    for nm,s in stores.items():
        sae = train(s, 'batchtopk', d/f'sae_{nm}', sae_options=dict(d_sae=64,k=4), steps=120, lr=3e-3, batch_size=512, progress=False)
        out[nm] = sae,measure(sae, s, judge, draws=20, progress=False)
    return out

def held(page): return json.loads(re.search('id="data">(.*?)</script>', page.read_text(), re.S)[1])

@pytest.mark.parametrize('rows', ['token','text'])
def test_measured(way, rows):
    "A row for each feature, by texts; labels, intervals and the summary are there, and come back from the disk"
    sae,r = way[rows]; s = r.summary; assert len(r.features)==64 and s['images']==s['items']==len(TEXTS) and s['kind']=='text'
    assert {'ms','ms_lo','purity','label','auroc'}<=set(r.features) and set(r.features.label)<={'pet','other',''} and r.features.support.max()<=len(TEXTS)
    back = load_report(r.save(way['folder']/f'r_{rows}')); assert back.summary==s and (back.contexts is None)==(r.contexts is None)==(rows=='text')

def test_text_is_its_strongest_token(way):
    "By hand: the activation of a text is the largest among its tokens; density and L0 are of tokens, as said"
    sae,r = way['token']; st = way['stores']['token']; dense = sae.codes(st[:]).to_dense().detach().numpy()
    own = np.stack([dense[st.item==i].max(0) for i in range(len(TEXTS))]); np.testing.assert_allclose(r.codes.to_dense().numpy(), own, atol=1e-5)
    np.testing.assert_allclose(r.features.density, (dense>0).mean(0), atol=1e-6); assert r.summary['parts']==len(st) and r.summary['pool']=='max'
    mean = measure(sae, st, way['judge'], draws=5, fms=False, pool='mean', progress=False)
    np.testing.assert_allclose(mean.codes.to_dense().numpy(), np.stack([dense[st.item==i].mean(0) for i in range(len(TEXTS))]), atol=1e-5)

def test_contexts_are_the_tokens(way):
    "What is kept of the strongest texts is what the SAE says of their tokens, character for character"
    sae,r = way['token']; st = way['stores']['token']; dense = sae.codes(st[:]).to_dense().detach().numpy(); seen = 0
    for k in range(0,64,7):
        for j,item in enumerate(r.top_items[k]):
            span,act = r.contexts.of(k, j, r.top_items.shape[1]); rows = np.flatnonzero((st.item==item)&(dense[:,k]>0)) if item>=0 else []
            assert span.tolist()==st.span[rows].tolist() and np.allclose(act, dense[rows,k]); seen += len(rows)
    assert seen>50
    table = r.tables['tokens']; k = int(table.groupby('feature').share.max().idxmax()); best = table[table.feature==k].iloc[0]
    tokens = [TEXTS[i][a:b].strip() for i,(a,b) in zip(st.item, st.span)]; on = dense[:,k]; has = np.array([t==best.token for t in tokens])
    assert np.isclose(best.share, on[has].sum()/on.sum(), atol=1e-5) and np.isclose(best.on, (on[has]>0).mean()) and r.features.tokens[k].startswith(best.token)

@pytest.mark.parametrize('rows', ['token','text'])
def test_page_and_browser(way, rows):
    "The page holds texts, with activations by token where there are any; the browser shows the same"
    r = way[rows][1]; src = way['source']; d = held(report_card(r, way['folder']/f'{rows}.html', src, lambda i: src.items.label[i])); card = d['cards'][str(d['groups'][0][1][0])]
    assert d['item']=='text' and not d['thumbs'] and 'image' not in ' '.join(d['words'].values())+' '.join(k for k,_ in d['summary']) and ['texts',f'{len(TEXTS)}'] in d['summary']
    assert all(''.join(p for p,_ in t)==TEXTS[i] for t,i in zip(card['texts'], card['items']))
    marked = [(p,v) for t in card['texts'] for p,v in t if v>0]; assert bool(marked)==(rows=='token')
    if marked: assert max(v for _,v in marked)==card['acts'][0]
    b = FeatureBrowser(r, src); k = int(b.find()[0]); html = feature_card(b, k); assert ('background:rgba(213,94,0,1.00)' in html)==(rows=='token')
    assert TEXTS[b.examples(k)[0][0]].split()[0] in html and browse(r, src).controls['rows'].value==k

def test_names(way):
    "By the texts' own words, tested on texts that nobody looked at; by a language model, which sees marked tokens and judges; who cannot be judged stays untested"
    r,src = way['token'][1],way['source']; out = name(r, src, progress=False); s = out.summary['names']; f = out.features
    assert s['tested']>=10 and s['auroc']>.6>s['null'] and set(f.status)<={'tested','untested','abstained'}
    assert f.name_auroc.notna().equals(f.status=='tested') and s['named']==(f.name!='').sum()
    class Model:
        "Says the marked word, and later whether it is there."
        name,marks,judged = 'model',0,0
        def answer(self, req):
            said = req.parts[0]
            if said.startswith('Description'):
                self.judged += 1; word = said.split('\n')[0][13:]; texts = re.findall('^- (.*)$', said, re.M); return Reply(json.dumps(dict(fits=[int(word in t) for t in texts])))
            self.marks += said.count('<<')-1; found = re.findall(r'<<\s*(\S+?)\s*>>', said.split('It is off')[0].split('\n',1)[1]); word = max(set(found), key=found.count) if found else ''
            return Reply(json.dumps(dict(name=word, description='the marked')))
    m,best = Model(),f.index[f.status=='tested'][:6]; by = name(r, src, namer=m, features=best, progress=False)
    assert m.marks>=6*5 and m.judged>=6 and by.summary['names']['tested']>=4 and by.summary['names']['auroc']>.6 and by.summary['names']['namer']=='model'
    class Mute:
        def scores(self, names, rows): return np.full((len(names),len(rows)), np.nan)
    none = name(r, src, namer=Model(), features=best, judge=Mute(), progress=False); assert (none.features.status[best]!='tested').all() and none.summary['names']['untested']>=4
    assert set(none.features.why[best])<={'the judge cannot say','the model saw nothing in common'} and none.summary['names']['auroc'] is None

@pytest.mark.parametrize('rows', ['token','text'])
def test_commands(way, rows, tmp_path, monkeypatch, capsys):
    "measure, name and page from a shell, with the file of texts where the folder of images would stand"
    from sae_notebooks.dev.cli import main
    d = way['folder']; monkeypatch.chdir(tmp_path)
    def run(*line):
        try: main([str(w) for w in line]); status = 0
        except SystemExit as e: status = e.code or 0
        said = capsys.readouterr(); return status,said.out+said.err
    for line in (['measure',d/f'sae_{rows}',d/rows,d/'judge','--out','r','--draws',20],['name','r',d/'t.jsonl','--out','n','--features',20],['page','n',d/'t.jsonl','--out','p.html']):
        status,said = run(*line); assert not status, said
    assert 'tested' in run('name','r',d/'t.jsonl','--out','n2','--features',5)[1] and held(tmp_path/'p.html')['item']=='text'
    best = load_report('n').features; chosen = best.index[best.status.fillna('')!='']; assert set(chosen)<=set(best.ms_lo.sort_values(ascending=False, kind='stable').index[:20])
    (tmp_path/'few.txt').write_text('one\ntwo'); status,said = run('page','n','few.txt'); assert status==2 and said.count('\n')==1 and f'the report is of {len(TEXTS)}' in said
    status,said = run('page','n','photos'); assert status==2 and 'holds images, the report is of texts' in said

def test_long_texts_and_odd_ones(way, tmp_path):
    "Texts with newlines, emoji, quotes, markup and no common language; long ones are shown around the strongest token"
    odd = ['<b>bold</b> & "quoted"','😀 café\nnaïve\r\nline','נסיון ניסוי','-- = +1','a'*300]+[' '.join(['word']*60+[f'cat{i}']+['tail']*60) for i in range(8)]+TEXTS[:20]
    pd.DataFrame(dict(text=odd)).to_json(tmp_path/'o.jsonl', orient='records', lines=True)
    st = extract('stories260k', tmp_path/'o.jsonl', tmp_path/'a', rule='all', progress=False); j = extract('small_image_text', tmp_path/'o.jsonl', tmp_path/'j', progress=False)
    r = measure(way['token'][0], st, j, draws=5, fms=False, progress=False); d = held(report_card(r, tmp_path/'p.html', open_source(tmp_path/'o.jsonl'), min_support=2))
    texts = [(odd[i],''.join(p for p,_ in t)) for c in d['cards'].values() for i,t in zip(c['items'],c['texts'])]; assert any(len(t)<len(o) for o,t in texts)
    assert all(t.removeprefix('… ').removesuffix(' …') in visible(o) for o,t in texts) and '<b>bold' not in (tmp_path/'p.html').read_text()

def test_patches_are_pooled(tmp_path):
    "Patches of an image as tokens of a text: the largest; other items than the judge's are refused in their own words"
    from sae_notebooks import make_sae, store_rows
    x,items = torch.randn(40,6,generator=torch.Generator().manual_seed(0)),pd.DataFrame(dict(file=[f'{i}.png' for i in range(10)]))
    st = store_rows(tmp_path/'a', x, items, torch.arange(10).repeat_interleave(4), meta=dict(rule='patches')); j = store_rows(tmp_path/'j', x[::4], items); sae = make_sae('topk', d_in=6, d_sae=8, k=2)
    r = measure(sae, st, j, draws=5, progress=False); own = sae.codes(x).to_dense().detach().view(10,4,8).amax(1); assert torch.allclose(r.codes.to_dense(), own, atol=1e-5) and r.contexts is None
    other = store_rows(tmp_path/'o', x[:10], pd.DataFrame(dict(text=[f'text {i}' for i in range(10)])))
    with pytest.raises(ValueError, match='10 images and the embeddings of 10 others'): measure(sae, st, other, progress=False)
