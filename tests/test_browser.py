"The page of `viz.page` in a real browser: what it asks for, what it shows, and what it does with hostile names."
import os, shutil
from pathlib import Path
import numpy as np, pandas as pd, pytest
from PIL import Image
from sae_notebooks.viz.figures import png, score_strips
from sae_notebooks.viz.page import write_page

pytestmark = pytest.mark.browser
HOSTILE = ['<img src=x onerror=alert(1)>', '</script><script>alert(2)</script>', '"><svg onload=alert(3)>', '<!--<script>', '&lt;b&gt; {{7*7}}', "' onmouseover='alert(4)"]
ARGS = ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking', '--disable-component-update', '--disable-sync']

def chromium_path():
    names = [os.environ.get('CHROMIUM'), 'chromium', 'google-chrome', '/usr/bin/chromium']
    return next((found for n in names if n and (found:=shutil.which(n))), None)

@pytest.fixture(scope='module')
def browser():
    playwright = pytest.importorskip('playwright.sync_api', reason='playwright is not installed')
    path = chromium_path()
    if path is None: pytest.skip('no Chromium: install it (apt-get install chromium) or name it in $CHROMIUM')
    with playwright.sync_playwright() as p:
        b = p.chromium.launch(executable_path=path, headless=True, args=ARGS)
        yield b
        b.close()

def image(i): return Image.new('RGB', (40, 30), (i*37 % 256, i*91 % 256, 120))

def write(path, n, **kw):
    rng = np.random.default_rng(0)
    ms = rng.uniform(.1, .9, n).round(4)
    half = np.random.default_rng(2).uniform(.02, .4, n).round(4)
    features = pd.DataFrame(dict(ms=ms, ms_lo=ms-half, ms_hi=ms+half, support=rng.integers(1, 900, n),
                                 label=[('zebra', 'kite')[i % 2] for i in range(n)], name=[HOSTILE[i % len(HOSTILE)] for i in range(n)]))
    items,acts = rng.integers(0, 30, (n, 4)),-np.sort(-rng.random((n, 4)))
    items[0,2:] = -1
    args = dict(caption=lambda i: HOSTILE[i % len(HOSTILE)], title=HOSTILE[0], intro=HOSTILE[1], summary={HOSTILE[2]: HOSTILE[1]}, floor=.1, thumb=48)
    write_page(path, features, items, acts, image, **args|kw)
    return features

@pytest.fixture(scope='module')
def small(tmp_path_factory):
    path = tmp_path_factory.mktemp('page')/'page.html'
    return path,write(path, 60, figures=[(HOSTILE[0], png(score_strips(dict(topk=[.1, .2, .3]))))])

class Watched:
    "A tab that records what it should not see: requests, errors, dialogs."
    def __init__(self, browser, path, width=1300, scheme='light'):
        self.bad = []
        self.tab = browser.new_page(viewport=dict(width=width, height=900), color_scheme=scheme)
        self.url = Path(path).as_uri()
        self.tab.on('request', lambda r: None if r.url==self.url or r.url.startswith('data:') else self.bad.append(r.url))
        self.tab.on('console', lambda m: self.bad.append(m.text) if m.type in ('error', 'warning') else None)
        self.tab.on('pageerror', lambda e: self.bad.append(str(e)))
        self.tab.on('dialog', lambda d: (self.bad.append('dialog '+d.message), d.dismiss()))
        self.tab.goto(self.url)
    def __enter__(self): return self
    def __exit__(self, *exc): self.tab.close()
    def text(self, selector): return self.tab.locator(selector).first.inner_text()
    def texts(self, selector): return self.tab.locator(selector).all_inner_texts()
    def ids(self): return self.texts('#rows button')
    def picked(self): return self.text('#picked .name')

@pytest.fixture
def page(browser, small):
    with Watched(browser, small[0]) as w:
        yield w
        assert w.bad==[]

def test_hostile_names_are_text(page):
    page.tab.wait_for_timeout(300)      # an injected image would have failed to load and fired by now
    assert page.tab.title()==HOSTILE[0] and page.text('h1')==HOSTILE[0] and page.text('#intro')==HOSTILE[1]
    assert page.texts('#summary dt')==[HOSTILE[2]] and page.texts('#summary dd')==[HOSTILE[1]]
    assert set(page.texts('#rows td:nth-child(2)'))==set(HOSTILE)
    assert set(page.texts('.photos figcaption'))<=set(HOSTILE)
    assert page.tab.locator('img:not([src^="data:image/"])').count()==0 and page.tab.locator('script').count()==2

def test_pictures_load(page):
    loaded = page.tab.evaluate('Promise.all([...document.images].map(i => i.decode().then(() => i.naturalWidth > 0)))')
    assert len(loaded)>50 and all(loaded)
    assert page.tab.locator('#gallery [data-card="0"] img, #picked img').count()>=2

def test_policy_refuses(browser, small):
    "Were markup ever injected, the browser would not act on it."
    with Watched(browser, small[0]) as w:
        blocked = w.tab.evaluate('''() => new Promise(done => {
            const seen = [];
            document.addEventListener("securitypolicyviolation", e => { seen.push(e.effectiveDirective); if (seen.length === 2) done(seen.sort()); });
            document.body.append(Object.assign(new Image(), {src: "http://127.0.0.1:9/x.png"}));
            const b = document.createElement("button"); b.setAttribute("onclick", "window.pwned = 1"); document.body.append(b); b.click();
            setTimeout(() => done(seen), 3000); })''')
        assert blocked==['img-src', 'script-src-attr'] and w.tab.evaluate('window.pwned')is None

def test_sort(page, small):
    "First by the lower end of the interval: what is surely high; by the score itself on a click."
    order = lambda column: small[1][column].sort_values(ascending=False, kind='stable').index.astype(str).tolist()
    sure,by = order('ms_lo'),order('ms')
    assert page.ids()==sure[:25]!=by[:25] and page.tab.get_attribute('#head th:has-text("interval")', 'aria-sort')=='descending'
    page.tab.click('#head button:has-text("interval")')
    assert page.ids()==sure[::-1][:25]
    page.tab.click('#head button:has-text("ms")')
    assert page.ids()==by[:25]
    page.tab.click('#head button:has-text("ms")')
    assert page.ids()==by[::-1][:25] and page.tab.get_attribute('#head th:has-text("ms")', 'aria-sort')=='ascending'
    page.tab.click('#next'); page.tab.click('#next')
    assert page.ids()==by[::-1][50:] and page.tab.is_disabled('#next')
    page.tab.click('#head button:has-text("feature")'); page.tab.click('#head button:has-text("feature")')
    assert page.ids()==[str(i) for i in range(25)]

def test_search(page):
    page.tab.fill('#query', 'ZEBRA onload')
    assert page.ids() and all(int(i) % 6==2 for i in page.ids()) and '10 of 60' in page.text('#count')
    assert page.tab.locator('.hits').count()==1
    page.tab.fill('#query', 'no such thing')
    assert page.ids()==[] and page.text('#count')=='no feature matches'
    page.tab.fill('#query', '')
    assert len(page.ids())==25 and page.tab.locator('.hits').count()==0

def test_click_selects(page, small):
    row = page.ids()[3]
    page.tab.click('#rows tr:nth-child(4) td:nth-child(4)')
    assert page.picked().split()[0]==row and page.tab.get_attribute('#rows tr:nth-child(4)', 'aria-current')
    other = int(page.ids()[10])
    x,y = page.tab.evaluate(f'[X(support.values[{other}]), Y(score.values[{other}])]')
    page.tab.hover('#plot', position=dict(x=x, y=y))
    assert f'{small[1].ms[other]:.3g}' in page.text('#readout')
    page.tab.click('#plot', position=dict(x=x, y=y))
    assert page.picked().split()[0]==str(other)

def test_keyboard(page):
    press,focused = page.tab.keyboard.press,lambda: page.tab.evaluate('document.activeElement.id || document.activeElement.textContent')
    press('/')
    assert focused()=='query'
    page.tab.keyboard.type('kite')
    ids = page.ids()
    for _ in range(30):
        press('Tab')
        if focused()==ids[0]: break
    press('ArrowDown'); press('Enter')
    assert focused()==ids[1] and page.picked().split()[0]==ids[1]
    for _ in range(24): press('ArrowDown')
    assert page.ids()[0]==focused()!=ids[0] and page.text('#count').startswith('26')
    page.tab.focus('#plot'); press('ArrowRight')
    assert page.picked().split()[0]==ids[2]
    page.tab.focus('#head button'); press('Enter')
    assert focused()=='feature' and page.tab.locator('#head th[aria-sort]').count()==1

def test_columns_on_demand(page):
    "Five scores first; the others, and what each means, one click away."
    shown = lambda: page.texts('#head th')
    assert [h.rstrip('↓ \u200a') for h in shown()]==['feature','name','ms','interval','support','label'] # two scores, the interval beside its own; name before all, label behind
    assert 'mean similarity of the images' in page.tab.get_attribute('#head th:has-text("ms")', 'title')
    assert not page.tab.is_visible('#legend')
    page.tab.click('#columns summary')
    assert 'number of images that activate it' in page.texts('#legend dd') and '(5 of 7 shown)' in page.text('#columns summary')
    page.tab.check('#legend label:has-text("ms_hi") input')
    assert [h.strip() for h in shown()][-1]=='ms_hi' and page.tab.locator('#rows tr').count()==25
    page.tab.click('#all')
    assert len(shown())==8
    page.tab.click('#few')
    assert len(shown())==6
    page.tab.uncheck('#legend label:has-text("name") input')
    assert len(shown())==5
    assert page.texts('#picked > .values dt')==['ms','interval','support','label'] and not page.tab.is_visible('#picked details dt')
    page.tab.click('#picked details summary'); page.tab.click('#rows tr:nth-child(5) td:nth-child(2)')
    assert page.texts('#picked details dt')==['ms_lo','ms_hi'] # it stays open

FITS = """() => { const box = e => e.getBoundingClientRect(), table = document.querySelector("#scroll");
    const cut = [...document.querySelectorAll("#head th, #rows td, #summary dt, #summary dd, #readout, .card header *, #legend *")]
        .filter(e => e.scrollWidth > e.clientWidth + 1 && e.clientWidth > 0).map(e => e.textContent);
    const crosses = (a, b) => a.right > b.left + 1 && a.bottom > b.top + 1 && b.bottom > a.top + 1;
    const over = [...document.querySelectorAll("#head th")].filter(e => e.nextElementSibling && crosses(box(e), box(e.nextElementSibling))).map(e => e.textContent);
    return {cut, over, table: table.scrollWidth - table.clientWidth, page: document.documentElement.scrollWidth - innerWidth}; }"""

@pytest.mark.parametrize('scheme', ['light', 'dark'])
@pytest.mark.parametrize('width', [1300, 390])
def test_columns_fit(browser, tmp_path, width, scheme):
    "With all that `measure` and `name` give, the first columns fit their box and nothing is cut."
    columns = ['support','density','ms','ms_se','ms_lo','ms_hi','lift','n_images','n_eff','z','p','q','purity','purity_se','label_share','max_act',
               'copies','auroc','corr','entropy','entropy_null','entropy_p','name_auroc','name_lo','name_hi','name_null','name_p','ms@another_encoder']
    rng = np.random.default_rng(0)
    f = pd.DataFrame(rng.uniform(.001, .01, (40, len(columns))), columns=columns).assign(support=rng.integers(1000, 9999, 40))
    f = f.assign(label='grand piano', name='a small dog on wet grass, seen from above', why='').set_axis(range(60_000, 60_040))
    write_page(tmp_path/'p.html', f, rng.integers(0, 9, (40, 3)), rng.random((40, 3)), image, summary={'features': 40, 'layer': 'vision.blocks.11.resid_post'})
    with Watched(browser, tmp_path/'p.html', width=width, scheme=scheme) as w:
        assert len(w.texts('#head th'))==8 # number, name, four scores, the interval of the first, label
        w.tab.click('#columns summary')
        fits = w.tab.evaluate(FITS)
        assert fits==dict(cut=[], over=[], table=0, page=0), fits
        assert w.bad==[]

@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_narrow(browser, small, scheme):
    with Watched(browser, small[0], width=390, scheme=scheme) as w:
        assert w.tab.evaluate('document.documentElement.scrollWidth')<=390
        assert w.tab.evaluate('''[...document.querySelectorAll("body *")].filter(e => !e.closest("#scroll") && !e.closest("svg") && e.getBoundingClientRect().right > 391).length''')==0
        light = w.tab.evaluate('getComputedStyle(document.body).backgroundColor')=='rgb(255, 255, 255)'
        assert light==(scheme=='light') and w.bad==[]

def test_nothing_to_plot(browser, tmp_path):
    write_page(tmp_path/'bare.html', pd.DataFrame(dict(ms=[np.nan]*3), index=['a', 'b', 'c']), np.full((3, 2), -1), np.zeros((3, 2)), image)
    with Watched(browser, tmp_path/'bare.html') as w:
        assert w.ids()==['a', 'b', 'c'] and w.texts('#rows td:nth-child(2)')==['–']*3 and 'no feature has both' in w.text('#readout')
        assert not w.tab.is_visible('#plot') and not w.tab.is_visible('#photographs') and w.bad==[]

def test_65k_features(browser, tmp_path):
    write(tmp_path/'big.html', 65_000)
    search = '''async q => { const i = document.getElementById("query"), t = performance.now(); i.value = q; i.dispatchEvent(new Event("input"));
        await new Promise(r => requestAnimationFrame(() => setTimeout(r))); return performance.now() - t; }'''
    with Watched(browser, tmp_path/'big.html') as w:
        took = {q: w.tab.evaluate(search, q) for q in ('zebra', 'zebra onload', '64999', '')}
        assert max(took.values())<1000, took
        w.tab.fill('#query', '64999')
        assert w.ids()==['64999'] and w.bad==[]

def test_4096_features_in_15_MB(browser, tmp_path):
    "A dictionary of 4,096, nine noisy thumbnails for each of 72 chosen features, names and notes that would be markup."
    rng = np.random.default_rng(1); n,m = 4096,9; ms = rng.random(n)
    f = pd.DataFrame(dict(ms=ms, ms_lo=ms-.05, ms_hi=ms+.05, support=rng.integers(1,900,n), label=[HOSTILE[i%6] for i in range(n)], name=[HOSTILE[(i+1)%6] for i in range(n)], note=[HOSTILE[(i+2)%6] for i in range(n)]))
    noise = lambda i: Image.fromarray(np.random.default_rng(int(i)).integers(0,255,(96,96,3),dtype=np.uint8))
    path = write_page(tmp_path/'p.html', f, rng.integers(0,1900,(n,m)), -np.sort(-rng.random((n,m))), noise, caption=lambda i: HOSTILE[int(i)%6]+'.jpg', n_each=24)
    assert path.stat().st_size<15e6, path.stat().st_size
    with Watched(browser, path) as w:
        w.tab.wait_for_timeout(300)
        w.tab.click('#columns summary'); w.tab.click('#all')
        assert set(w.texts('#rows td.text'))<=set(HOSTILE) and len(w.texts('#rows td.text'))==3*25 and w.tab.locator('#gallery img').count()>=72*8
        assert w.tab.locator('img:not([src^="data:image/"])').count()==0 and w.bad==[]

def test_untested_names_say_so(browser, tmp_path):
    f = pd.DataFrame(dict(ms=[.9,.8,.7], ms_lo=[.8,.7,.6], ms_hi=[1.,.9,.8], support=[9,9,9], name=['dog','cat',''], status=['tested','untested','abstained']))
    write_page(tmp_path/'p.html', f, np.zeros((3,2),int), np.ones((3,2)), image)
    with Watched(browser, tmp_path/'p.html') as w: assert w.texts('#gallery .name')==['0 dog','1 cat (untested)','2'] and w.bad==[]

def test_texts_are_marked(browser, tmp_path):
    "Tokens stand out by activation, in the light and in the dark, and markup in a text stays text."
    from sae_notebooks.metrics.contexts import Contexts
    where = Contexts(np.array([0,2,2,3,3]), np.array([[0,4],[5,8],[4,9]]), np.array([1.,.5,2.]), np.zeros((0,2)))
    f = pd.DataFrame(dict(ms=[.9,.8], ms_lo=[.8,.7], ms_hi=[1.,.9], support=[9,9], tokens=['Lily','<img src=x onerror=alert(1)>']))
    write_page(tmp_path/'p.html', f, np.array([[0,-1],[1,-1]]), np.array([[1.,0.],[2.,0.]]), ['Lily ran home.','the <img src=x onerror=alert(1)> end'], kind='text', contexts=where)
    for scheme in ('light','dark'):
        with Watched(browser, tmp_path/'p.html', width=390, scheme=scheme) as w:
            assert w.texts('#gallery .passage')==['1.00\nLily ran home.','2.00\nthe <img src=x onerror=alert(1)> end'] and w.texts('#gallery mark')==['Lily','ran','<img ']
            share = w.tab.evaluate('[...document.querySelectorAll("#gallery mark")].map(e => getComputedStyle(e).backgroundColor)'); assert len(set(share))==2 and share[0]==share[2]
            assert w.text('#kind')=='Texts' and w.tab.evaluate('document.documentElement.scrollWidth')<=390 and w.bad==[]

ODD = {'controls':'a\x00\x1b[31mb\x9b\x7f', 'right to left':'a\u202eb\u2066', 'no width':'a\u200bb\u200d\ufeff', 'half a letter':'a\ud83d', 'filler':'a\u3164\u2800b',
       'lines':'a\r\nb\u2028c', 'markup':'</script><script>alert(5)</script><img src=x onerror=alert(6)>', 'heap':'a'+'\u0301'*40, 'letters':'נסיון 猫 😀 naïve'}

def test_any_token_is_seen(browser, tmp_path):
    "Hostile tokens in texts, whole texts, promoted tokens and names: shown, nothing run, the numbers beside them in their places"
    from sae_notebooks.metrics.contexts import Contexts
    from sae_notebooks.viz.texts import visible
    odd = list(ODD.values()); texts = [('so '*90)+f'X{t}Y'+(' on'*90) for t in odd]; n = len(texts); at = [[t.index('X'),t.index('X')+1] for t in texts]
    f = pd.DataFrame(dict(ms=np.linspace(.9,.5,n), ms_lo=np.linspace(.8,.4,n), ms_hi=np.linspace(1,.6,n), support=[9]*n, name=odd))
    tables = dict(promoted=pd.DataFrame(dict(feature=np.arange(n).repeat(2), side=['promoted','suppressed']*n, token=[t for t in odd for _ in range(2)], logit=[2.,-1.]*n)),
                  near=pd.DataFrame(dict(feature=range(n), item=range(n), pre=[-.5]*n, start=[a for a,_ in at], end=[b for _,b in at])),
                  places=pd.DataFrame({'feature':range(n), '0':[.5]*n, '1+':[.25]*n}))
    write_page(tmp_path/'p.html', f, np.arange(n)[:,None], np.ones((n,1)), texts, lambda i: odd[i], kind='text', tables=tables, chosen=range(n),
               contexts=Contexts(np.arange(n+1), np.array(at), np.ones(n), np.zeros((0,2))))
    with Watched(browser, tmp_path/'p.html') as w:
        w.tab.evaluate('document.querySelectorAll("#gallery details").forEach(d => { d.open = true; })'); w.tab.wait_for_selector('#gallery .whole bdi')
        whole = w.tab.evaluate('[...document.querySelectorAll("#gallery .whole bdi")].map(e => e.textContent)'); assert whole==[visible(t) for t in texts]
        assert w.tab.evaluate('[...document.querySelectorAll("#gallery .whole mark")].map(e => e.textContent)')==['X']*n and w.tab.locator('#gallery u').count()==n
        assert w.tab.evaluate('[...document.querySelectorAll("#gallery .token")].map(e => e.textContent)')==[visible(t) for t in odd for _ in range(2)]
        assert w.tab.locator('#gallery .places i').count()==2*n and w.tab.locator('img').count()==0 and w.tab.locator('script').count()==2
        shown = w.tab.evaluate('document.body.innerText'); assert not [c for c in shown if c in '\u202e\u2066\u200b\u200d\ufeff\x00\x1b\u3164'] and '⟨202E⟩' in shown and '⟨D83D⟩' in shown
        lefts = w.tab.evaluate('[...document.querySelectorAll("#gallery > .cards > .card > div > .passage > .soft")].map(e => Math.round(e.getBoundingClientRect().left - e.closest(".card").getBoundingClientRect().left))')
        assert len(lefts)==n and len(set(lefts))==1 and w.bad==[] # the number stands on the left of each text
        if os.environ.get('SHOTS'): w.tab.screenshot(path=os.environ['SHOTS']+'/odd_tokens.png', full_page=True)
