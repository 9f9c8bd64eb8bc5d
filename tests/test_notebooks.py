"Every narrative notebook runs from top to bottom in a fresh kernel, as its reader would run it"
import pytest
from project import narrative, nb_id, notebooks, outputs, root
from sae_notebooks.dev.run import parameters, run_nb
import nbformat

smaller = {'tutorials/01_first_sae.ipynb':dict(n_views=1, d_sae=256, steps=200)} # `make demo` runs it as it stands

@pytest.mark.parametrize('path', notebooks(*narrative), ids=nb_id)
def test_runs(path, tmp_path):
    small = dict(out=str(tmp_path), scale='smoke', **smaller.get(nb_id(path),{})) # what an earlier run left must not help this one; the smallest of its sizes
    out = run_nb(path, root/'_runs'/nb_id(path), params={k:v for k,v in small.items() if k in parameters(path)}, timeout=600)
    stopped = [o for c in nbformat.read(out, 4).cells for o in c.get('outputs',[]) if o.output_type=='error']
    assert not stopped, f'{out} holds an error: {stopped[0].evalue}'

@pytest.mark.parametrize('path', notebooks(*narrative), ids=nb_id)
def test_has_parameters(path):
    assert parameters(nbformat.read(path, 4)), f'{nb_id(path)}: tag the cell that holds its defaults `parameters`, one assignment to a line'
