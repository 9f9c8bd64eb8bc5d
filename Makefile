# The commands of the project. PYTHON makes the environment; everything else runs inside it.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
DEMO := nbs/tutorials/01_first_sae.ipynb

.PHONY: demo test thorough gpu docs lab export refresh clean help
.DEFAULT_GOAL := help

help:     ## this list
	@sed -n 's/^\([a-z]*\): .*## /make \1\t/p' $(MAKEFILE_LIST) | expand -t 16

$(READY): pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

demo: $(READY)     ## train a first SAE on the embedded data; prints the path of the page it makes
	@HF_HUB_OFFLINE=1 $(BIN)/python -c "from sae_notebooks.dev.run import run_nb; from sae_notebooks.dev.docs import page_html; \
	nb = run_nb('$(DEMO)'); print(page_html(nb, nb.with_suffix('.html')).resolve())"

test: $(READY)     ## every test; the last line is 'N passed, N failed'
	@$(BIN)/python tests/run.py

thorough: $(READY)     ## what `make test` leaves out: coverage of intervals, speed, long runs of fuzzing and kills, 200,000 rows; before a release
	@$(BIN)/python tests/run.py --slow

gpu:     ## what a GPU is good for, timed into tests/bench/results/gpu.json in 9 minutes; PYTHON: any that has a CUDA torch and what the package imports
	@$(PYTHON) tests/bench/gpu.py

docs: $(READY)     ## the site, in _docs/
	@$(BIN)/sae-notebooks docs

lab: $(READY)     ## JupyterLab on the tutorials
	$(BIN)/jupyter lab --notebook-dir nbs/tutorials

export: $(READY)     ## package and README from the notebooks
	$(BIN)/nbdev_export
	$(BIN)/nbdev_clean
	$(BIN)/sae-notebooks readme

refresh: $(READY)     ## run notebooks and store their outputs: make refresh NB="nbs/core/10_data.ipynb"
	@for nb in $(NB); do $(BIN)/python -c "import sys; from sae_notebooks.dev.run import write_outputs; print(write_outputs(sys.argv[1]))" $$nb || exit 1; done

clean:     ## remove what can be made again, but not .venv
	rm -rf _docs _proc _runs build dist
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
