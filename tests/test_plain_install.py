"What the README shows works with what `pip install` brings: nothing else can be imported here"
import os, re, subprocess, sys
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from packaging.requirements import Requirement
from project import root
try: import tomllib
except ModuleNotFoundError: import tomli as tomllib

def plain(name): return re.sub('[-_.]+', '-', name).lower()

def declared():
    project = tomllib.loads((root/'pyproject.toml').read_text(encoding='utf-8'))['project']
    return project['dependencies']

def closure(wanted):
    "Names of the distributions that these requirements bring, with all that these require"
    found,open_ = set(),[Requirement(r) for r in wanted]
    while open_:
        r = open_.pop()
        extras = [dict(extra=e) for e in r.extras] or [dict(extra='')]
        if r.marker and not r.marker.evaluate(dict(extra='')): continue
        if (plain(r.name),*sorted(r.extras)) in found: continue
        found.add((plain(r.name),*sorted(r.extras)))
        try: more = [Requirement(m) for m in requires(r.name) or []]
        except PackageNotFoundError: continue
        for m in more:
            if not m.marker or any(m.marker.evaluate(e) for e in extras):
                m.marker = None
                open_.append(m)
    return {f[0] for f in found}

def others():
    "Modules of distributions that a plain install does not bring"
    ours = closure(declared())|{'sae-notebooks','setuptools','pip'}
    return sorted(m for m,ds in packages_distributions().items() if not {plain(d) for d in ds}&ours)

GUARD = '''
import sys
away = set({away!r})
class Without:
    def __init__(self, finder): self.finder = finder
    def find_spec(self, name, path=None, target=None):
        return None if name.split('.')[0] in away else self.finder.find_spec(name, path, target)
    def __getattr__(self, k): return getattr(self.finder, k)
sys.meta_path = [Without(f) for f in sys.meta_path]
'''

def python(code, cwd, **env):
    env = {**os.environ, 'PYTHONPATH':str(root), 'MPLBACKEND':'agg', 'TQDM_DISABLE':'1', **env}
    run = subprocess.run([sys.executable,'-c',GUARD.format(away=others())+code], cwd=cwd, env=env, capture_output=True, text=True, timeout=300)
    assert not run.returncode, run.stderr[-2500:]
    return run.stdout

def test_others_are_away():
    away = others()
    assert {'nbdev','fastcore','papermill','pytest'}<=set(away) and not {'torch','pandas','matplotlib','typer'}&set(away), away

def test_names_of_the_package(tmp_path):
    "Every name at the top of the package, and what the README imports"
    readme = (root/'README.md').read_text(encoding='utf-8')
    blocks = re.findall(r'```python\n(.*?)```', readme, re.S)
    lines = [l for b in blocks for l in b.splitlines() if re.match(r'(import|from) ', l)]
    assert len(lines)>4
    python('\n'.join(lines)+'\nimport sae_notebooks\nfor n in sae_notebooks.__all__: getattr(sae_notebooks, n)', tmp_path)

def test_commands(tmp_path):
    "The README's commands, with their options"
    there = re.search(r'`sae-notebooks ([a-z]+ [a-z |]+)`', (root/'README.md').read_text(encoding='utf-8'))[1].split(' | ')
    assert {'extract','train','measure','name','page'}<=set(there)
    said = python(f'''
from sae_notebooks.dev.cli import main
for c in {[c.strip() for c in there]!r}:
    try: main([c,'--help'])
    except SystemExit as e: assert not e.code, c
''', tmp_path)
    assert said.count('Usage')==len(there)

def test_measure_and_look(tmp_path):
    "From rows to a card and a browser"
    python('''
import numpy as np, torch
from PIL import Image
from sae_notebooks import browse, measure, plant, report_card, store_rows, train, write_page
x = plant().sample(240, seed=0)[0]
acts,judge = store_rows('acts', x), store_rows('judge', x[:,:16])
sae = train(acts, 'batchtopk', 'sae', sae_options=dict(d_sae=16, k=2), steps=10, progress=False)
report = measure(sae, acts, judge, draws=5, progress=False)
images = [Image.new('RGB', (8,8), (i%255,0,0)) for i in range(240)]
report_card(report, 'card.html', images)
browse(report, images, decoder=sae.W_dec)
''', tmp_path)
    assert (tmp_path/'card.html').stat().st_size>1000

def test_without_embedded_data(tmp_path):
    "The wheel has no data folder: what is named by a path or published is found all the same"
    said = python('''
from sae_notebooks import load_model, open_images
from sae_notebooks.core.data import model_folder
from PIL import Image
Image.new('RGB', (8,8)).save('a.png')
print(len(open_images('.')), model_folder('openai/clip-vit-base-patch32'))
try: load_model('no_such_model')
except Exception as e: print(type(e).__name__, e)
''', tmp_path, SAE_NOTEBOOKS_DATA=str(tmp_path/'none'), SAE_NOTEBOOKS_EXTRA='none').splitlines()
    assert said[0]=='1 openai/clip-vit-base-patch32' and said[1].startswith("NotFound no model 'no_such_model'"), said
