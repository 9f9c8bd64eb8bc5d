"The site builds with pandoc alone, hangs together, and asks the network for nothing"
import os, re, shutil
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote
import pytest
from project import nb_id, nbs, notebooks, root
from sae_notebooks.dev.docs import site_config
from sae_notebooks.dev.site import build_site, sidebar_pages

class Page(HTMLParser):
    "Links, ids and fetched addresses of a page"
    def __init__(self, text):
        super().__init__()
        self.links,self.ids,self.fetched = [],set(),[]
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        a = dict(attrs)
        if 'id' in a: self.ids.add(a['id'])
        if tag=='a' and a.get('href'): self.links.append(a['href'])
        if tag in ('script','img','iframe','source') and a.get('src'): self.fetched.append(a['src'])
        if tag=='link' and a.get('href'): self.fetched.append(a['href'])

def listed(cfg): return sidebar_pages(cfg['website']['sidebar']['contents'])

@pytest.fixture(scope='module')
def site(tmp_path_factory):
    old = Path.cwd()
    os.chdir(root)
    try: return build_site(tmp_path_factory.mktemp('docs')/'site', quarto=False)
    finally: os.chdir(old)

@pytest.fixture(scope='module')
def pages(site): return {p.relative_to(site).as_posix(): Page(p.read_text(encoding='utf-8')) for p in site.rglob('*.html')}

def html_of(src): return re.sub(r'(^|/)\d+[a-z]?_([^/]+)\.ipynb$', r'\1\2.html', src) if src!='index.ipynb' else 'index.html'

def test_every_page(pages):
    missing = [p for p in {*listed(site_config(root)), *map(nb_id, notebooks())} if html_of(p) not in pages]
    assert not missing, f'no page was built for {missing}'

def test_links(site, pages):
    bad = []
    for name,page in pages.items():
        for href in page.links:
            if re.match(r'[a-z][a-z+.-]*:|//', href): continue
            path,_,frag = unquote(href).partition('#')
            target = os.path.normpath(os.path.join(os.path.dirname(name), path)) if path else name
            if not (site/target).exists(): bad.append(f'{name}: {href} leads nowhere')
            elif frag and target in pages and frag not in pages[target].ids: bad.append(f'{name}: {target} has no #{frag}')
    assert not bad, '\n'.join([*bad, '→ correct the link in the notebook'])

def test_nothing_fetched(site, pages):
    remote = [f'{n}: {a[:100]}' for n,p in pages.items() for a in p.fetched if re.match(r'(https?:)?//', a)]
    absent = [f'{n}: {a[:100]}' for n,p in pages.items() for a in p.fetched
              if not re.match(r'(https?:)?//|data:', a) and not (site/os.path.dirname(n)/a).exists()]
    assert not remote+absent, '\n'.join(remote+absent)

def test_no_errors(site):
    bad = [p.name for p in site.rglob('*.html') if 'cell-output error' in p.read_text(encoding='utf-8')]
    assert not bad, f'{bad} show a traceback → mend the cell and refresh the outputs'

def test_broken_sidebar(tmp_path, monkeypatch):
    shutil.copy(root/'settings.ini', tmp_path)
    (tmp_path/'nbs').mkdir()
    quarto = (root/'_quarto.yml').read_text(encoding='utf-8').replace('- index.ipynb', '- index.ipynb\n      - no/such_page.ipynb', 1)
    (tmp_path/'_quarto.yml').write_text(quarto, encoding='utf-8')
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match='no/such_page.ipynb'): build_site('site', quarto=False)
    assert not (tmp_path/'site').exists()

# what would have to be scrolled sideways to be read; on a narrow screen tables may be
CLIPPED = '''[...document.querySelectorAll(innerWidth < 500 ? 'pre' : 'pre,table')]
    .filter(e => e.scrollWidth > e.clientWidth + 1).map(e => `${e.scrollWidth - e.clientWidth} px: ${e.innerText.slice(0,60)}`)'''

@pytest.mark.browser
@pytest.mark.parametrize('width,scheme', [(1300,'light'),(390,'dark'),*(pytest.param(*v, marks=pytest.mark.slow) for v in ((1300,'dark'),(390,'light')))])
def test_looks(site, pages, browser, width, scheme):
    bad = []
    page = browser.new_page(viewport=dict(width=width, height=900), color_scheme=scheme)
    page.on('request', lambda r: bad.append(f'asks for {r.url}') if not r.url.startswith(('file:','data:')) else None)
    page.on('requestfailed', lambda r: bad.append(f'does not get {r.url}'))
    page.on('console', lambda m: bad.append(m.text) if m.type=='error' else None)
    for name in sorted(pages):
        page.goto((site/name).as_uri())
        over = page.evaluate('document.documentElement.scrollWidth - innerWidth')
        if over>0: bad.append(f'is {over} px wider than the window')
        clipped = page.evaluate(CLIPPED)
        if clipped: bad.append(f'clips {len(clipped)} blocks of code or tables, the first is {clipped[0]}')
        dark = page.evaluate('getComputedStyle(document.body).backgroundColor').startswith('rgb(1')
        if dark!=(scheme=='dark'): bad.append(f'ignores the {scheme} scheme')
        if width<500:
            assert not page.locator('nav.side').is_visible(), f'{name}: the sidebar is open on a narrow screen'
            page.click('label.menu')
            assert page.locator('nav.side').is_visible(), f'{name}: the menu button does not open the sidebar'
        assert not bad, f'{name} at {width} px, {scheme}: {bad[:5]}'
    page.close()
