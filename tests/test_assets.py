"The files that the package carries beside its modules: JavaScript, CSS and HTML of the features page."
import re, shutil, subprocess
import pytest
from project import package, rel

assets = sorted([*(package/'viz'/'assets').iterdir(), package/'dev'/'assets'/'search.js'])
each = pytest.mark.parametrize('path', assets, ids=lambda p: p.name)
NAMESPACE = 'http://www.w3.org/2000/svg'   # a name, not an address: nothing is fetched

def text(path): return path.read_text(encoding='utf-8')

def without_comments(source): return re.sub(r'/\*.*?\*/|^\s*//[^\n]*|<!--.*?-->', '', source, flags=re.S|re.M)

def faults(name, source):
    "What a reader of one file would object to."
    code = without_comments(source)
    if long := [i for i,line in enumerate(source.splitlines(), 1) if len(line)>120]: yield f'lines {long} are longer than 120'
    if re.search(r'(?:https?|wss?|ftp)://|["\'(]//|@import|url\(', code.replace(NAMESPACE, '')): yield 'an address outside the page'
    if re.search(r'<[^>]*\son\w+\s*=|\.on[a-z]+\s*=[^=]|setAttribute\(\s*["\']on', code): yield 'an inline handler'
    if name.endswith('.html') and re.search(r'<[^>]*\sstyle\s*=', code): yield 'an inline style, which the policy refuses'
    calls = r'innerHTML|outerHTML|insertAdjacentHTML|document\.write|createContextualFragment|\beval\(|\bFunction\(|fetch\(|XMLHttp|import\('
    if hit := re.search(calls, code): yield f'{hit[0]}, which turns text into markup or code, or asks for something'
    if hit := re.search(r'set(?:Timeout|Interval)\(\s*["\'`]', code): yield f'{hit[0]} with code as a string'
    if '\t' in source or re.search(r' $', source, re.M): yield 'a tab, or a space at the end of a line'
    if name.endswith('.js'): yield from loose(code)

def loose(code):
    "What is declared and never used, and declarations of the old kind."
    if re.search(r'^\s*var ', code, re.M): yield 'var instead of const or let'
    if re.search(r'[^=!]==[^=]|!=[^=]', code): yield '== instead of ==='
    names = re.findall(r'^(?:function|const|let) (\w+)', code, re.M)
    if idle := [nm for nm in names if len(re.findall(rf'\b{nm}\b', code))<2]: yield f'{idle} are declared and never used'

def test_there_are_some(): assert {p.name for p in assets}=={'page.html','page.css','page.js','search.js'}

@each
def test_asset(path):
    bad = list(faults(path.name, text(path)))
    assert not bad, f'{rel(path)}: '+'; '.join(bad)

@pytest.mark.parametrize('name,source', [
    ('a.js','x.innerHTML = data;'), ('a.js','const idle = 1;'), ('a.js','fetch("//evil.example")'), ('a.js','b.onclick = f;'),
    ('a.js','if (a == b) f();'), ('a.js','setTimeout("f()", 1)'), ('a.js',f'f("{"x"*120}")'), ('a.js','var x = f(x);'),
    ('a.html','<button onclick="f()">'), ('a.html','<p style="color: red">'), ('a.html','<img src="https://evil.example/x.png">'),
    ('a.css','p { background: url(x.png); }'), ('a.css','@import "x.css";')])
def test_faults_are_seen(name, source): assert list(faults(name, source)), source

def test_svg_namespace_is_no_address(): assert not list(faults('a.js', f'f("{NAMESPACE}"); // https://example.org'.replace('; //', ';\n//')))

@pytest.mark.parametrize('path', [p for p in assets if p.suffix=='.js'], ids=lambda p: p.name)
def test_script_parses(path):
    node = shutil.which('node')
    if node is None: pytest.skip('no node to parse it with; the browser tests run it')
    run = subprocess.run([node,'--check',path], capture_output=True, text=True)
    assert not run.returncode, run.stderr

def test_style_and_script_meet():
    "Every class and id that the style or the script names is made somewhere."
    style,script,html = (text(package/'viz'/'assets'/f'page.{kind}') for kind in ('css','js','html'))
    ids = set(re.findall(r'\bid="(\w+)"', html))
    assert set(re.findall(r'\$\("(\w+)"\)', script))<=ids
    rules = re.sub(r'{[^{}]*}', '', without_comments(style))
    assert set(re.findall(r'#(\w+)', rules))<=ids
    assert not [c for c in set(re.findall(r'\.([a-z]\w*)', rules)) if not re.search(rf'["\'\s]{c}["\'\s]', script+html)]
