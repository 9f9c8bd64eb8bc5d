"`make gpu` at toy size on a CPU: every part runs, says what it left out, and writes figures that are none of a GPU"
import json, sys
import pytest
from project import root

@pytest.fixture(scope='module')
def gpu():
    sys.path.insert(0, str(root/'tests'/'bench'))
    import gpu
    return gpu

def test_walks_through(gpu, tmp_path):
    assert gpu.main(['--device','cpu','--out',str(tmp_path/'gpu.json')])==0
    said = json.loads((tmp_path/'gpu.json').read_text())
    assert said['device']=='cpu' and said['toy'] and set(gpu.PARTS)<=set(said)
    assert all(0<v['of_the_floor'] and v['times_dense']>0 for v in said['training'].values())
    assert said['scores']['fms']['same_feature'] and said['scores']['ms']['largest_difference']<1e-6
    assert said['extraction']['rows_per_s']>0
    assert set(said['pages'])>={'training/20_loop.ipynb','acts/50_extract.ipynb'} and set(said['pages'].values())=={'no GPU: not run'}

def test_no_time_is_said(gpu, tmp_path):
    gpu.main(['--device','cpu','--seconds','1','--out',str(tmp_path/'gpu.json')])
    said = json.loads((tmp_path/'gpu.json').read_text())
    assert all(said[k]==dict(skipped='no time left') for k in gpu.PARTS)

def test_runs_a_page(gpu, tmp_path):
    cells = ['#| default_exp x\n', '%matplotlib inline', 'a = 2', '#| slow\nraise ValueError', '#| cuda\nopen("ran","w").write(str(a))', '#| network\nraise ValueError']
    nb = dict(cells=[dict(cell_type='code', source=c) for c in cells]+[dict(cell_type='markdown', source='text')])
    (tmp_path/'page.ipynb').write_text(json.dumps(nb))
    assert gpu.cuda_pages(tmp_path)==[tmp_path/'page.ipynb']
    import os
    here = os.getcwd()
    try: os.chdir(tmp_path); gpu.run_page(tmp_path/'page.ipynb')
    finally: os.chdir(here)
    assert (tmp_path/'ran').read_text()=='2'

def test_figures_of_a_gpu_only(gpu):
    "What the benchmark page shows as a GPU's is one's"
    if gpu.RESULT.is_file():
        said = json.loads(gpu.RESULT.read_text())
        assert said['device']=='cuda' and not said['toy']
