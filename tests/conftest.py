"Tests run offline, in one thread, and skip the browser where there is none"
import os, random, shutil, sys
for k,v in dict(HF_HUB_OFFLINE='1', TRANSFORMERS_OFFLINE='1', HF_DATASETS_OFFLINE='1', OMP_NUM_THREADS='1', MKL_NUM_THREADS='1',
                TOKENIZERS_PARALLELISM='false', MPLBACKEND='agg').items(): os.environ.setdefault(k, v)

import pytest

def pytest_configure(config):
    config.addinivalue_line('markers', 'slow: takes more than half a minute')
    config.addinivalue_line('markers', 'browser: needs Chromium')
    config.addinivalue_line('markers', 'beside: run beside other tests')
    config.addinivalue_line('markers', 'clock: looks at the clock, so that nothing may run beside it')

def pytest_runtest_logreport(report):
    "Said at once: a run that is stopped has no list of its slowest"
    if report.duration>60: print(f'\n{report.duration:.0f} s {report.when} {report.nodeid}', file=sys.__stderr__, flush=True)

def find_chromium():
    "`$CHROMIUM`, or a Chromium or Chrome on PATH"
    named = os.environ.get('CHROMIUM')
    if named: return named if os.path.exists(named) else None
    return next(filter(None, map(shutil.which, ('chromium','chromium-browser','google-chrome','/usr/bin/chromium'))), None)

@pytest.fixture(scope='module')
def browser():
    "A headless Chromium that nothing outside the page is asked for"
    exe = find_chromium()
    if exe is None: pytest.skip('no Chromium: install chromium or set CHROMIUM to its path')
    sync = pytest.importorskip('playwright.sync_api')
    args = '--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync'.split()
    with sync.sync_playwright() as p:
        b = p.chromium.launch(executable_path=exe, headless=True, args=args)
        yield b
        b.close()

@pytest.fixture(autouse=True)
def seeded():
    "What fails once fails again; torch and NumPy where the tests of a file use them"
    random.seed(0)
    if 'numpy' in sys.modules: sys.modules['numpy'].random.seed(0)
    if 'torch' in sys.modules: sys.modules['torch'].manual_seed(0)
