"What is read on a page: a site that can be searched with the keyboard, figures in the dark, tile labels, ticks, captions"
import base64, io, re
import numpy as np, pandas as pd, pytest
from PIL import Image
from sae_notebooks.metrics.report import FeatureReport

def png(draw):
    "A figure as base64: a chart (mostly paper) or a photograph"
    im = Image.new('RGB', (200,120), 'white')
    if draw=='photo': im = Image.fromarray(np.random.default_rng(0).integers(0,255,(120,200,3),dtype=np.uint8))
    else: im.paste((0,114,178), (20,60,60,110))
    buf = io.BytesIO(); im.save(buf, 'PNG')
    return base64.b64encode(buf.getvalue()).decode()

@pytest.fixture(scope='module')
def site(tmp_path_factory):
    "A site of three pages, made by pandoc alone"
    from nbformat import v4 as new, write
    from sae_notebooks.dev.docs import site_config
    from sae_notebooks.dev.site import pandoc_site
    p = tmp_path_factory.mktemp('site')/'project'
    (p/'nbs'/'saes').mkdir(parents=True)
    (p/'_quarto.yml').write_text('project: {type: website}\nwebsite:\n  title: Demo\n  sidebar: {contents: [index.ipynb, saes/30_topk.ipynb, saes/40_gated.ipynb]}\n')
    def page(name, *cells): write(new.new_notebook(cells=list(cells)), p/'nbs'/name)
    def shown(kind): return new.new_code_cell(f'draw({kind!r})', outputs=[new.new_output('display_data', {'image/png':png(kind)})])
    md = new.new_markdown_cell
    page('index.ipynb', md('# Demo\n\n> Pages.'), md('Everything about birds.'), shown('chart'), shown('photo'))
    page('saes/30_topk.ipynb', md('# TopK\n\n> At most k.'), md('## Dead features\n\nThey are revived by an auxiliary loss & <b>care</b>.'))
    page('saes/40_gated.ipynb', md('# Gated\n\n> A gate.'), md('## Magnitude\n\nA feature may be dead here too.'))
    pandoc_site(p, p/'nbs', site_config(p), p/'_docs')
    return p/'_docs'

@pytest.mark.browser
@pytest.mark.parametrize('width', [1200,390])
def test_search_with_the_keyboard(site, browser, width):
    bad,page = [],browser.new_page(viewport=dict(width=width, height=800))
    page.on('request', lambda r: bad.append(r.url) if not r.url.startswith(('file:','data:')) else None)
    page.on('console', lambda m: bad.append(m.text) if m.type=='error' else None)
    page.on('pageerror', lambda e: bad.append(str(e)))
    page.goto((site/'saes'/'gated.html').as_uri())
    assert not page.locator('#found').is_visible()
    page.keyboard.press('/')
    page.keyboard.type('dead')
    page.wait_for_selector('#found a')
    assert page.locator('#found b').all_inner_texts()==['TopK › Dead features','Gated › Magnitude'], 'a heading comes before a text'
    page.keyboard.type(' revived')
    assert page.locator('#found a').count()==1
    assert page.evaluate('document.documentElement.scrollWidth - innerWidth')<=0
    page.keyboard.press('ArrowDown')
    page.keyboard.press('Enter')
    page.wait_for_url('**/saes/topk.html#dead-features')
    page.keyboard.press('/')
    page.keyboard.type('zebra')
    page.wait_for_selector('#found li')
    assert page.locator('#found').inner_text()=='Nothing found'
    page.keyboard.press('Escape')
    assert not page.locator('#found').is_visible() and not bad, bad
    page.close()

def lightness(page, selector, place=0):
    shot = page.locator(selector).nth(place).screenshot()
    return np.asarray(Image.open(io.BytesIO(shot)).convert('L')).mean()/255

@pytest.mark.browser
def test_site_figures_in_the_dark(site, browser):
    "Charts turn dark, photographs stay as they are"
    seen = {}
    for scheme in ('light','dark'):
        page = browser.new_page(color_scheme=scheme)
        page.goto((site/'index.html').as_uri())
        seen[scheme] = [lightness(page, 'main img', i) for i in (0,1)]
        page.close()
    assert seen['light'][0]>.8 and seen['dark'][0]<.3, seen
    assert abs(seen['light'][1]-seen['dark'][1])<.02, seen

def report(density):
    n = len(density)
    f = pd.DataFrame(dict(ms=np.linspace(.1,.9,n), ms_lo=np.linspace(0,.8,n), ms_hi=np.linspace(.2,1,n), support=20, q=.01, density=density),
                     index=pd.RangeIndex(n, name='feature'))
    summary = dict(ms=.5, ms_lo=.4, ms_hi=.6, floor=.3, fve=.9, l0=3., dead=0, dense=1, undefined=0, images=12, items=12, model='m', point='p',
                   evaluator='e', purity=.5, purity_floor=.2, ms_top=.8, meaningful=.3, near_copies=3,
                   names=dict(named=2, failed=0, auroc=.8, lo=.7, hi=.9, null=.5), uniqueness=dict(pairs=9, share_half=.01, popular_half=.001))
    return FeatureReport(f, summary, np.zeros((n,3),int), np.ones((n,3)))

@pytest.mark.browser
def test_card_figures_in_the_dark(browser, tmp_path):
    from sae_notebooks import report_card
    report_card(report(np.geomspace(.001,.3,12)), tmp_path/'card.html', [Image.new('RGB',(9,9),'red')]*12)
    seen = {}
    for scheme in ('light','dark'):
        page = browser.new_page(color_scheme=scheme)
        page.goto((tmp_path/'card.html').as_uri())
        page.wait_for_selector('#figures img')
        seen[scheme] = lightness(page, '#figures img')
        page.close()
    assert seen['light']>.8 and seen['dark']<.3, seen

def test_tiles_in_words():
    "A tile says what it is a number of, also for who has not seen the tile beside it"
    from sae_notebooks.viz.card import card_lines
    lines = card_lines(report(np.full(12,.1)))
    assert not [k for k in lines if re.match(r'(of|from|by|in|than) ', k)], list(lines)
    assert lines['MS of any two images']=='0.300' and lines['AUROC of names of other features']=='0.500'
    assert 'mean MS' in lines and any(re.match(r'AUROC of .*names', k) for k in lines) and not {'dead','undefined','named','purity of any two'}&set(lines), list(lines)

@pytest.mark.parametrize('lo,hi', [(.002,.009),(.03,.05),(.0005,.9),(1e-6,1)])
def test_histogram_ticks_apart(lo, hi, monkeypatch):
    from sae_notebooks.viz import card
    seen = []
    monkeypatch.setattr(card, 'png', seen.append)
    card._density_figure(report(np.geomspace(lo, hi, 12)))
    ax = seen[0]
    ax.figure.canvas.draw()
    ticks = [*ax.xaxis.get_major_ticks(), *ax.xaxis.get_minor_ticks()]
    boxes = sorted((t.label1.get_window_extent() for t in ticks if t.label1.get_text() and t.label1.get_visible()), key=lambda b: b.x0)
    x = ax.get_window_extent()
    boxes = [b for b in boxes if x.x0-1<=(b.x0+b.x1)/2<=x.x1+1]
    assert len(boxes)>1 and all(a.x1<b.x0 for a,b in zip(boxes, boxes[1:])), 'labels run into each other'

def test_captions(tmp_path):
    "The browser and the card say which image it is: its label, or its file"
    from sae_notebooks import open_images
    from sae_notebooks.viz.browser import FeatureBrowser
    from sae_notebooks.viz.card import report_card
    for i in range(12): Image.new('RGB',(9,9),(20*i,0,0)).save(tmp_path/f'holiday{i:02d}.png')
    ims = open_images(tmp_path)
    assert FeatureBrowser(report(np.full(12,.1)), ims).caption(3)=='holiday03.png'
    report_card(report(np.full(12,.1)), tmp_path/'card.html', ims, min_support=1)
    assert 'holiday00.png' in (tmp_path/'card.html').read_text()
    (tmp_path/'labels.csv').write_text('file,label\n'+'\n'.join(f'holiday{i:02d}.png,beach' for i in range(12)))
    assert FeatureBrowser(report(np.full(12,.1)), open_images(tmp_path)).caption(3)=='beach'

def test_few_rows_are_said():
    "Eight rows are too few for a threshold that learns within a narrow band: that is the rows' fault"
    from sae_notebooks import check, make_sae, plant
    from sae_notebooks.core.files import BadInput
    x = plant().sample(20_000, seed=0)[0]
    sae = make_sae('jumprelu', d_in=32, d_sae=64, threshold=1.)
    with pytest.raises(BadInput, match='8 rows are too few to tell'): check(sae, x[:8])
    assert 'give more rows' in check(sae, x[:8], strict=False).set_index('promise').seen['gradients']
    assert check(sae, x).kept.all()

def test_list_of_claims():
    "Claims of a paper that are numbered are a list, one to a line"
    import json
    from project import notebooks
    bad = []
    for path in notebooks('papers','tutorials','recipes','benchmarks'):
        for c in json.loads(path.read_text(encoding='utf-8'))['cells']:
            lines = ''.join(c['source']).splitlines() if c['cell_type']=='markdown' else []
            bad += [f'{path.name}: {l[:60]}' for l in lines if re.match(r'\d+\. ', l) and re.search(r'\. \d+\. [A-Z]', l)]
    assert not bad, bad

def test_page_of_a_run_links_to_what_it_made(tmp_path):
    "The page of the demo leads to the features it has written; the site, where no run was, has the words without a link"
    from nbformat import v4 as new, write
    from sae_notebooks.dev.docs import page_html, site_config
    from sae_notebooks.dev.site import pandoc_site
    p = tmp_path/'project'
    for d in ('nbs/tutorials','_runs/tutorials','_runs/first'): (p/d).mkdir(parents=True)
    (p/'settings.ini').write_text('[DEFAULT]\nlib_name = x\n')
    (p/'_quarto.yml').write_text('project: {type: website}\nwebsite:\n  title: Demo\n  sidebar: {contents: [tutorials/01_first.ipynb]}\n')
    link = new.new_output('display_data', {'text/markdown':'[features.html](../../_runs/first/features.html), 2.0 MB'})
    nb = new.new_notebook(cells=[new.new_markdown_cell('# First\n\n> One.'), new.new_code_cell('show()', outputs=[link])])
    for d in ('nbs','_runs'): write(nb, p/d/'tutorials'/'01_first.ipynb')
    (p/'_runs'/'first'/'features.html').write_text('<p>features</p>')
    page = page_html(p/'_runs'/'tutorials'/'01_first.ipynb', p/'_runs'/'tutorials'/'01_first.html')
    to = re.search(r'<a href="([^"]*)">features.html</a>', page.read_text())[1]
    assert (page.parent/to).resolve()==p/'_runs'/'first'/'features.html'
    pandoc_site(p, p/'nbs', site_config(p), p/'_docs')
    text = (p/'_docs'/'tutorials'/'first.html').read_text()
    assert 'features.html, 2.0 MB' in ' '.join(text.split()) and '_runs' not in text

def test_first_tutorial_links_its_page():
    from project import cells, nbs
    source = next(s for _,_,s in cells(nbs/'tutorials'/'01_first_sae.ipynb') if 'write_page(' in s and 'features.html' in s)
    assert '](' in source, 'the path of the page is printed, and leads nowhere'
