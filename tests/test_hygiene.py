"The repository keeps its own rules; each failure names the file and the remedy"
import ast, io, os, re, shutil, statistics, subprocess, tokenize
from collections import Counter
from pathlib import Path
try: import tomllib
except ImportError: import tomli as tomllib   # Python 3.10
import pytest
from project import (cells, layers, load, modules, narrative, nb_id, nbs, notebooks, outputs, package, rel, root, settings, text, tool,
                     tracked)
from sae_notebooks.dev.docs import readme, site_config
from sae_notebooks.dev.site import check_sidebar, sidebar_pages
from sae_notebooks.dev.run import directives

each_nb = pytest.mark.parametrize('path', notebooks(), ids=nb_id)
each_module = pytest.mark.parametrize('path', modules(), ids=rel)

def report(problems, remedy): assert not problems, '\n'.join([*map(str, problems), f'→ {remedy}'])

# --- notebooks and package are in step -------------------------------------------------------------------------------

def contents(folder, pattern): return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob(pattern) if '.ipynb_checkpoints' not in p.parts}

@pytest.fixture(scope='module')
def again(tmp_path_factory):
    "A copy of the repository, exported and cleaned once more from the notebooks alone"
    d = tmp_path_factory.mktemp('again')
    for f in ('settings.ini','pyproject.toml','README.md','_quarto.yml'): shutil.copy(root/f, d/f)
    shutil.copytree(nbs, d/'nbs', symlinks=True, ignore=shutil.ignore_patterns('.ipynb_checkpoints'))
    shutil.copytree(package, d/'sae_notebooks', ignore=shutil.ignore_patterns('__pycache__'))
    for m in modules(): (d/rel(m)).unlink()
    for cmd in ('nbdev_export','nbdev_clean'):
        run = subprocess.run([tool(cmd)], cwd=d, capture_output=True, text=True)
        assert not run.returncode, f'{cmd} failed:\n{run.stderr[-2000:]}'
    return d

def test_exported(again):
    old,new = contents(package,'*.py'),contents(again/'sae_notebooks','*.py')
    report([f'sae_notebooks/{f} is not what its notebook exports' for f in sorted(new) if old.get(f)!=new[f]], 'run `make export`')

def test_no_stale_module(again):
    gone = {rel(m) for m in modules()} - {f'sae_notebooks/{f}' for f in contents(again/'sae_notebooks','*.py')}
    report([f'{f} has no notebook' for f in sorted(gone)], 'delete the module, or restore the notebook')

def test_clean(again):
    old,new = contents(nbs,'*.ipynb'),contents(again/'nbs','*.ipynb')
    report([f'nbs/{f} is not clean' for f in sorted(new) if old.get(f)!=new[f]], 'run `nbdev_clean`')

def test_versions():
    project = tomllib.loads((root/'pyproject.toml').read_text())['project']
    assert project['requires-python']==f">={settings()['min_python']}", 'settings.ini min_python and pyproject.toml requires-python differ'
    assert project['name']==settings()['lib_name'], 'settings.ini lib_name and pyproject.toml name differ'

# --- layers ----------------------------------------------------------------------------------------------------------

def source_nb(module):
    "(folder, number) of the notebook a module comes from"
    m = re.search(r'File to edit: \S*nbs/(\w+)/(\d+)\w*?_\w+\.ipynb', module.read_text(encoding='utf-8'))
    return (m[1],int(m[2])) if m else None

def imports(source, own, is_module=lambda name: (root/name.replace('.','/')).with_suffix('.py').exists()):
    "(line, dotted name) of what a module, itself called `own`, imports from this package, anywhere in it"
    parts = own.split('.')
    for node in ast.walk(ast.parse(source)):
        if isinstance(node,ast.Import): names = [a.name for a in node.names if '.' in a.name]
        elif isinstance(node,ast.ImportFrom):
            base = '.'.join([*parts[:len(parts)-node.level], *([node.module] if node.module else [])]) if node.level else node.module
            names = [base] if is_module(base) else [f'{base}.{a.name}' for a in node.names]
        elif isinstance(node,ast.Attribute) and ast.unparse(node.value)=='sae_notebooks': names = [ast.unparse(node)]
        elif isinstance(node,ast.Call) and ast.unparse(node.func).split('.')[-1]=='import_module': names = [lazy(node, parts)]
        else: continue
        yield from ((node.lineno,n) for n in names if n.split('.')[0]=='sae_notebooks' and not n.split('.')[1].startswith('__'))

def lazy(call, parts):
    "What `import_module` is asked for; a name put together at run time could be anything above."
    name = call.args[0]
    if not isinstance(name,ast.Constant): return 'sae_notebooks.computed_at_run_time' if 'sae_notebooks' in ast.unparse(name) else ''
    return '.'.join(parts[:len(parts)-len(name.value)+len(name.value.lstrip('.'))])+'.'+name.value.lstrip('.') if name.value[0]=='.' else name.value

def rank(nb): return layers.index(nb[0]),nb[1]

@each_module
def test_layers(path):
    here,bad = source_nb(path),[]
    assert here, f'{rel(path)}: its notebook is not nbs/LAYER/NN_stem.ipynb'
    assert here[0] in layers, f'{rel(path)}: {here[0]} is no layer; layers are {", ".join(layers)}'
    for line,name in imports(path.read_text(encoding='utf-8'), '.'.join(path.relative_to(root).with_suffix('').parts)):
        target = root.joinpath(*name.split('.')).with_suffix('.py')
        there = source_nb(target) if target.exists() else None
        if there is None or rank(there)>=rank(here): bad.append(f'{rel(path)}:{line} imports {name}')
    report(bad, 'import only from lower numbers of the same folder and from layers before it (CONTRIBUTING.md, Layers)')

def test_imports_are_seen():
    src = '''
from ..core import data
from .base import SAE
def f():
    import sae_notebooks.viz.page
    import sae_notebooks
    import_module('sae_notebooks.dev.cli'); importlib.import_module(f'sae_notebooks.{x}'); import_module('numpy')
    return sae_notebooks.viz.x, sae_notebooks.__version__
'''
    found = [n for _,n in imports(src, 'sae_notebooks.saes.topk', lambda n: n.count('.')==2)]
    lazily = ['sae_notebooks.computed_at_run_time','sae_notebooks.dev.cli']
    assert sorted(found)==sorted([*lazily,'sae_notebooks.core.data','sae_notebooks.saes.base','sae_notebooks.viz','sae_notebooks.viz.page'])

def test_no_circle():
    "Follows from the layers, and is told apart from them: modules can be put in an order in which each imports only earlier ones."
    from graphlib import TopologicalSorter
    def name(p): return '.'.join(p.relative_to(root).with_suffix('').parts)
    TopologicalSorter({name(p):[n for _,n in imports(p.read_text(encoding='utf-8'), name(p))] for p in modules()}).prepare()

def test_each_layer_has_its_line():
    rows = re.findall(r'^\| `(\w+)/` \| \S', (root/'CONTRIBUTING.md').read_text(encoding='utf-8'), re.M)
    assert rows==layers, f'CONTRIBUTING.md, Layers: the table lists {rows}; the layers are {layers}'
    lost = {p.parent.name for p in notebooks()}-{*layers,*narrative,'nbs'}
    assert not lost, f'{sorted(lost)} are folders of no layer → tests/project.py'

def test_numbers():
    seen = Counter(source_nb(m) for m in modules())
    report([f'{n} notebooks of {nb[0]}/ have the number {nb[1]}' for nb,n in seen.items() if n>1], 'the number orders the layer: renumber one')

def test_stems():
    seen = Counter((p.parent, re.sub(r'^\d+[a-z]?_','',p.stem)) for p in notebooks())
    report([f'{rel(d)}: {n} notebooks are called {stem}' for (d,stem),n in seen.items() if n>1], 'the stem names page and module: rename one')

@pytest.mark.parametrize('path', notebooks(*layers), ids=nb_id)
def test_exports_where_it_says(path):
    want = f"{path.parent.relative_to(nbs).as_posix().replace('/','.')}.{re.sub(r'^[0-9]+[a-z]?_','',path.stem)}"
    have = [directives(s)['default_exp'] for _,_,s in cells(path) if 'default_exp' in directives(s)]
    assert have==[want], f'{nb_id(path)}: has default_exp {have}, its name says {want}'

@pytest.mark.parametrize('path', notebooks(*narrative), ids=nb_id)
def test_narrative_exports_nothing(path):
    bad = [f'{nb_id(path)} cell {i}' for i,_,s in cells(path) if directives(s).keys() & {'default_exp','export','exports','exporti'}]
    report(bad, 'code worth exporting belongs to a layer')

# --- what is committed -----------------------------------------------------------------------------------------------

home_like = re.compile(r'(?<![\w.:])/(?:home|Users)/[a-z][\w.-]*/|(?<![\w.:])/root/\S|[A-Z]:\\+Users\\')
temp_like = re.compile(r'(?<![\w.:])/(?:tmp|private/var|var/folders)/\S')

def machine_paths(s, where):
    here = [re.escape(str(p)) for p in {root, Path.home()} if len(p.parts)>1]
    beside = [re.compile(rf'(?<![\w.:]){re.escape(str(root.parent))}/')] if len(root.parent.parts)>1 else []
    pats = [home_like, re.compile(rf'(?<![\w.:])(?:{"|".join(here)})/')] + ([temp_like,*beside] if where=='output' else [])
    return [m[0] for p in pats for m in p.finditer(s)]

def test_no_machine_paths():
    bad = []
    for f in tracked():
        if f==Path(__file__): continue
        try: s = f.read_text(encoding='utf-8')
        except UnicodeDecodeError: continue
        made = f.suffix=='.json' and 'data' in f.relative_to(root).parts[:1] # saved by a program, which may write down where it ran
        bad += [f'{rel(f)}: {hit}' for hit in machine_paths(s, 'output' if made else 'file')]
    for p in notebooks():
        for i,o in outputs(p):
            shown = [text(o.get('text',''))] + [text(v) for k,v in o.get('data',{}).items() if k.startswith('text/')]
            bad += [f'{nb_id(p)} cell {i}: {hit}' for s in shown for hit in machine_paths(s, 'output')]
    report(bad, 'use paths relative to the repository, and do not print absolute ones')

def test_machine_paths_are_seen():
    assert machine_paths('/'.join(('saved to ','home','ada','x.csv')), 'file') and machine_paths('/'.join(('in ','tmp','abc')), 'output') and machine_paths(f'{root}/a', 'file')
    assert len(root.parent.parts)==1 or machine_paths(f'{root.parent}/shared', 'output')
    assert not machine_paths('https://host/home/ada/x and data/home/x and /usr/bin/python', 'output')

@each_nb
def test_outputs(path):
    bad = []
    for i,o in outputs(path):
        if o.get('name')=='stderr': bad.append(f'cell {i} holds a warning: {text(o["text"])[:120]}')
        if o['output_type']=='error': bad.append(f'cell {i} holds an error: {o["ename"]}')
        if any('widget' in k for k in o.get('data',{})): bad.append(f'cell {i} holds a widget')
    if 'widgets' in load(path)['metadata']: bad.append('holds widget state')
    report([f'{nb_id(path)} {b}' for b in bad], f'mend the cause, then `python -c "from sae_notebooks.dev.run import write_outputs; write_outputs(\'{rel(path)}\')"`')

@each_nb
def test_output_budget(path):
    limit,size = 1_000_000 if nb_id(path).startswith('papers/') else 600_000 if nb_id(path).startswith('tutorials/') else 300_000, path.stat().st_size
    assert size<=limit, f'{nb_id(path)} has {size:,} bytes, {limit:,} are allowed → fewer or smaller figures (PNG rather than dense Plotly or SVG)'

# --- how notebooks are written ---------------------------------------------------------------------------------------

@each_nb
def test_title(path):
    first = load(path)['cells'][0]
    ok = first['cell_type']=='markdown' and re.fullmatch(r'# \S[^\n]*\n\n> \S[^\n]*\n*', text(first['source']))
    assert ok, f'{nb_id(path)}: the first cell is `# Title`, an empty line and `> subtitle` in one line, and nothing else, for nbdev drops the rest'

@each_nb
def test_kernel(path):
    kernel = load(path)['metadata'].get('kernelspec',{}).get('name')
    assert kernel=='python3', f'{nb_id(path)}: its kernel is {kernel!r} → set kernelspec to python3, which every machine has'

flags = settings()['tst_flags'].split()

@each_nb
def test_directives(path):
    bad = []
    for i,_,s in cells(path):
        many = [k for k,v in directives(s).items() if v and k in {*flags,'export','exports','exporti','hide'}]
        bad += [f'{nb_id(path)} cell {i}: more than one word after `#| {k}`' for k in many]
        dead = re.findall(rf'^#\s*({"|".join(flags)}|exports?|exporti|hide)\s*$', s, re.M)
        bad += [f'{nb_id(path)} cell {i}: `#{k}` is only a comment' for k in dead]
    report(bad, 'one directive to a line, written `#| word`')

def is_doc(node): return isinstance(node,ast.Expr) and isinstance(node.value,ast.Constant)

def parse(source):
    "Syntax tree of a cell, None for one with magics"
    try: return ast.parse(source)
    except SyntaxError: return None

@each_nb
def test_import_cells(path):
    bad = []
    for i,_,s in cells(path):
        body = getattr(parse(s), 'body', [])
        kinds = {isinstance(n,(ast.Import,ast.ImportFrom)) for n in body if not is_doc(n)}
        if kinds=={True,False}: bad.append(f'{nb_id(path)} cell {i}: {s.strip().splitlines()[-1][:80]}')
    report(bad, 'building the pages runs every cell with imports: give imports a cell of their own')

# --- what is exported is documented ----------------------------------------------------------------------------------

def comment_lines(source):
    return {t.start[0] for t in tokenize.generate_tokens(io.StringIO(source).readline) if t.type==tokenize.COMMENT}

def undocumented(source):
    "(line, what is missing) for each public function and class of a module"
    comments = comment_lines(source)
    def args(fn):
        a = fn.args
        named = [x for x in [*a.posonlyargs,*a.args,*a.kwonlyargs] if x.arg not in ('self','cls')]
        ends = {d.end_lineno for d in [*a.defaults,*a.kw_defaults] if d}
        lines = Counter(x.lineno for x in named)
        for x in named:
            own = lines[x.lineno]==1 and (x.end_lineno in comments or any(x.lineno<=e and e in comments for e in ends if e-x.lineno<3))
            if not own and not (x.lineno-1 in comments and lines[x.lineno]==1): yield x.lineno,f'{fn.name}: no comment on argument {x.arg}'
    for node in ast.parse(source).body:
        if not isinstance(node,(ast.FunctionDef,ast.ClassDef)) or node.name[0]=='_': continue
        if not ast.get_docstring(node): yield node.lineno,f'{node.name}: no docstring'
        if isinstance(node,ast.FunctionDef): yield from args(node)
        else:
            for m in node.body:
                if isinstance(m,ast.FunctionDef) and m.name=='__init__': yield from args(m)
            if any('dataclass' in ast.unparse(d) for d in node.decorator_list):
                yield from ((m.lineno,f'{node.name}: no comment on field {m.target.id}') for m in node.body
                            if isinstance(m,ast.AnnAssign) and m.target.id[0]!='_' and m.end_lineno not in comments)

@each_module
def test_documented(path):
    bad = [f'{rel(path)}:{line} {what}' for line,what in undocumented(path.read_text(encoding='utf-8'))]
    report(bad, 'in the notebook: a docstring that says the idea, and each argument on a line of its own with a comment')

def test_undocumented_is_seen():
    assert [w for _,w in undocumented('def f(a, b): pass')]==['f: no docstring','f: no comment on argument a','f: no comment on argument b']
    assert not list(undocumented('def f(\n    a=(1,\n       2), # first\n    *args):\n    "Idea"\nclass _C: pass'))
    assert [w for _,w in undocumented('@dataclass\nclass C:\n    "Idea"\n    a:int # first\n    b:int=1')]==['C: no comment on field b']

@each_nb
def test_width(path):
    bad = [f'{nb_id(path)} cell {i}, {len(line)} characters: {line.strip()[:60]}' for i,_,s in cells(path) for line in s.splitlines() if len(line)>120]
    report(bad, 'a line of code has at most 120 characters: make two thoughts of it, or two lines')

def exported(s): return bool(directives(s).keys() & {'export','exports','exporti'})
def body(s): return [line for line in s.splitlines() if line.strip() and not line.lstrip().startswith('#|')]
def defines(s): return bool(re.search(r'^\s*(def|class) ', s, re.M))
def only_imports(s): return all(re.match(r'\s*(from|import) |\s*[\w, ]+\)?$', line) for line in body(s))

def test_cell_length(capsys):
    sizes = [(sum(map(len, body(s))), f'{nb_id(p)} cell {i}') for p in notebooks(*layers) for i,_,s in cells(p) if exported(s) and defines(s)]
    n = sorted(size for size,_ in sizes)
    median,most = statistics.median(n),n[int(.9*(len(n)-1))]
    with capsys.disabled(): print(f'\nexported cells: {len(n)}, median {median:g} characters, 90 % have at most {most}, longest {n[-1]}')
    longest = ', '.join(f'{w} ({s})' for s,w in sorted(sizes)[-5:])
    assert median<=560 and most<=1250, f'a cell is a thought: median {median:g} characters (560), 90 % {most} (1250); the longest: {longest}'

@pytest.mark.parametrize('path', notebooks(*layers), ids=nb_id)
def test_something_runs(path):
    silent,worst = 0,(0,0)
    for i,_,s in cells(path):
        if exported(s): silent += len(body(s)); worst = max(worst,(silent,i))
        elif 'default_exp' not in directives(s) and not only_imports(s): silent = 0
    assert worst[0]<=100, f'{nb_id(path)}: {worst[0]} lines up to cell {worst[1]} with nothing run between → show each thought at work'

@pytest.mark.parametrize('folder', [d for d in layers if (nbs/d).is_dir()])
def test_evidence(folder):
    code = [s for p in notebooks(folder) for _,_,s in cells(p)]
    thoughts = sum(exported(s) and defines(s) for s in code)
    tested = sum(bool(re.search(r'\btest_\w+\(|\bassert\b|\bcheck\w*\(', s)) for s in code if not exported(s))
    assert tested>=.6*thoughts, f'{folder}: {tested} cells with a test for {thoughts} exported thoughts (.6 wanted)'

# --- site, README, versions ------------------------------------------------------------------------------------------

def test_quarto_link():
    link = nbs/'_quarto.yml'
    assert link.is_symlink() and os.readlink(link)=='../_quarto.yml', 'nbs/_quarto.yml must be a link to ../_quarto.yml → ln -sf ../_quarto.yml nbs/_quarto.yml'

def test_sidebar():
    pages = check_sidebar(site_config(root), nbs)
    report([f'{nb_id(p)} is not in the sidebar' for p in notebooks() if nb_id(p) not in pages], 'add it to _quarto.yml')
    report([p for p,n in Counter(pages).items() if n>1], 'listed twice in _quarto.yml')

def test_sidebar_order():
    order = [p for p in sidebar_pages(site_config(root)['website']['sidebar']['contents']) if p.split('/')[0] in layers]
    assert order==sorted(order, key=lambda p: (layers.index(p.split('/')[0]), p)), '_quarto.yml: the sidebar follows layers and numbers'

def test_readme(monkeypatch):
    monkeypatch.chdir(root)
    readme(check=True)

def test_thorough():
    "What `make test` leaves out is run every week, on a release's tag, and before a release by hand: by one command"
    import yaml
    flow = yaml.safe_load((root/'.github'/'workflows'/'thorough.yml').read_text(encoding='utf-8'))
    when,steps = flow[True],[s['run'] for s in flow['jobs']['thorough']['steps'] if 'run' in s]   # YAML reads `on` as true
    assert steps==['make thorough'], f'the workflow runs {steps} → exactly `make thorough`'
    assert when['schedule'] and when['push']['tags'] and 'workflow_dispatch' in when, 'thorough.yml: weekly, on tags, and by hand'
    assert re.search(r'^thorough:.*\n\t@\$\(BIN\)/python tests/run.py --slow$', (root/'Makefile').read_text(), re.M), 'Makefile: `thorough` runs tests/run.py --slow'
    release = re.search(r'^## Release\n(.*?)^## ', (root/'CONTRIBUTING.md').read_text(encoding='utf-8'), re.M|re.S)
    assert release and '`make thorough`' in release[1], 'CONTRIBUTING.md: the section Release says `make thorough`'

def test_thorough_runs_all_slow_cells():
    from run import slow_notebooks
    marked = [p for p in notebooks() if any('slow' in directives(source) for _,_,source in cells(p))]
    assert slow_notebooks()==[p for p in marked if nb_id(p).split('/')[0] not in narrative] and 'slow' in settings()['tst_flags'].split()
    report([nb_id(p) for p in marked if nb_id(p).split('/')[0] in narrative], 'a slow cell of a narrative notebook is run by nobody: move it to a layer')

def test_slow_tests_are_left_out(monkeypatch, tmp_path):
    "A file of tests that runs beside others runs without those that only a thorough run runs"
    import run
    asked = []
    monkeypatch.setattr(run, 'call', lambda cmd, *a, **kw: asked.append(cmd) or (0,''))
    monkeypatch.setattr(run, 'runs', tmp_path)
    run.job(root/'tests'/'test_scale.py')
    assert asked[0][asked[0].index('-m',2)+1]=='not slow and not clock'
    clock = [f.name for f in sorted((root/'tests').glob('test_*.py')) if '\n@pytest.mark.clock' in f.read_text(encoding='utf-8')]
    halves = [n for n in clock if n in run.beside]
    assert halves==['test_stops.py'] and '\npytestmark = pytest.mark.beside' in (root/'tests'/'test_stops.py').read_text(encoding='utf-8')

def test_version_bounds():
    project = tomllib.loads((root/'pyproject.toml').read_text())['project']
    everything = [*project['dependencies'], *sum(project['optional-dependencies'].values(), [])]
    names = {re.match(r'[\w.-]+', r)[0] for r in everything} - {'sae_notebooks'}
    bound = re.compile(rf'\b({"|".join(map(re.escape, sorted(names)))})(\[[\w,]+\])?\s*(==|>=|<=|~=|!=|<|>)\s*v?\d+(\.\d+)*\b', re.I)
    files = [f for f in tracked() if f.suffix in ('.ini','.cfg','.txt','.toml','.yml','.yaml','.md','.sh') or f.name in ('Makefile','run')]
    bad = [f'{rel(f)}: {m[0]}' for f in files if f.name not in ('pyproject.toml','CHANGELOG.md') for m in bound.finditer(f.read_text(encoding='utf-8'))]
    report(bad, 'version bounds live in pyproject.toml and nowhere else')
    assert not [k for k in settings() if k.endswith('requirements')], 'settings.ini: requirements belong in pyproject.toml'
