"What is installed is small, quick to import, and says its version"
import shutil, statistics, subprocess, sys, zipfile
from importlib.metadata import PackageNotFoundError, version
import pytest
from project import package, root, settings
import sae_notebooks

optional = 'matplotlib plotly ipywidgets anywidget open_clip transformers torchvision nbdev fastcore execnb papermill nbformat typer pypandoc yaml'.split()

def python(code):
    run = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=root)
    assert not run.returncode, run.stderr[-2000:]
    return run.stdout.split()

def test_import_time():
    code = 'import torch, time; t = time.perf_counter(); import sae_notebooks; print(time.perf_counter()-t)'
    times = [float(python(code)[0]) for _ in range(3)]
    assert statistics.median(times)<1, f'import sae_notebooks takes {times} s beyond torch → `python -X importtime -c "import sae_notebooks"` names the cause'

def test_import_is_lean():
    torch_only,ours = (set(python(f'import sys, torch{more}; print(*sys.modules)')) for more in ('',', sae_notebooks'))
    heavy = [m for m in optional if m in ours-torch_only]
    assert not heavy, f'import sae_notebooks loads {heavy} → import them in the function that needs them'

def test_version(): assert sae_notebooks.__version__==settings()['version'], 'version differs from settings.ini → run `make export`'

@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    d = tmp_path_factory.mktemp('wheel')
    for f in ('pyproject.toml','settings.ini','README.md','LICENSE'): shutil.copy(root/f, d)
    for f in ('nbs','data','tests'): (d/f).mkdir()
    shutil.copytree(package, d/'sae_notebooks', ignore=shutil.ignore_patterns('__pycache__'))
    try: isolate = [] if int(version('setuptools').split('.')[0])<77 else ['--no-build-isolation']
    except PackageNotFoundError: isolate = []
    run = subprocess.run([sys.executable,'-m','pip','wheel','.','--no-deps','-q','-w','dist',*isolate], cwd=d, capture_output=True, text=True)
    assert not run.returncode, run.stderr[-2000:]
    return next((d/'dist').glob('*.whl'))

def test_wheel(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    want = {p.relative_to(root).as_posix() for p in [*package.rglob('*.py'), *package.rglob('assets/*')]}
    inside = {n for n in names if '.dist-info/' not in n}
    assert inside==want, f'not in the wheel: {sorted(want-inside)}; in the wheel though no module: {sorted(inside-want)}'
    assert settings()['version'] in wheel.name and any(n.endswith('LICENSE') for n in names)
