# make demo | test | lab are all that a newcomer needs; `make help` lists the rest.
PYTHON   ?= python3
VENV     ?= .venv
# A CPU wheel of torch where the index offers one. Another build: make demo TORCH="torch" or your own pip arguments.
TORCH    ?= -c tests/constraints-cpu.txt torch
PIP_ARGS ?=
BIN      := $(VENV)/bin
PIP      := $(BIN)/pip install --quiet --disable-pip-version-check $(PIP_ARGS)
SITE     := nbs/_site/_build/html
NB       := $(BIN)/python -m tests.notebooks

.PHONY: help demo test test-slow test-browser test-gpu lab docs bench golden picture train-bundled bundle export clean notebooks
help:
	@echo "make demo       train, evaluate and report on the embedded photographs (3 minutes)"
	@echo "make test       everything that has to hold, library notebooks included (20 minutes)"
	@echo "make lab        open the notebooks in JupyterLab"
	@echo "make docs       build the site from the notebooks (2 minutes)"
	@echo "make test-slow  the long campaigns"
	@echo "make test-browser  what needs a browser: notebooks in JupyterLab, pages of the site (needs Chromium)"
	@echo "make test-gpu   what needs a CUDA device; skipped, with that reason, where there is none (8 minutes at most)"
	@echo "make bench      timings, one row a line"
	@echo "make golden     freeze the values that a change of structure must not move"
	@echo "make picture    draw the picture of the README"
	@echo "make train-bundled  train the models that come with the package, and their controls (hours; needs BSDS500)"
	@echo "make bundle     put the finished ones into the package, measured and with their cards (minutes; needs B100, read once)"
	@echo "make export     write crlsr/ from nbs/"
	@echo "make notebooks  run the library notebooks in place and clean them"
	@echo "make clean      remove what can be made again (not .venv, not data, not runs)"

$(VENV)/.made:
	@echo "Creating $(VENV) and installing torch: 1 to 5 minutes, once."
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) $(TORCH)
	@touch $@

$(VENV)/.demo: $(VENV)/.made settings.ini setup.py
	@echo "Installing crlsr with its notebooks: about 1 minute, once."
	@$(PIP) -e ".[notebooks]"
	@touch $@

$(VENV)/.dev: $(VENV)/.demo
	@echo "Installing the test tools: about 1 minute, once."
	@$(PIP) -e ".[dev]"
	@touch $@

$(VENV)/.lab: $(VENV)/.demo
	@echo "Installing what keeps saved notebooks clean: seconds, once."
	@$(PIP) $$($(BIN)/python -m tests.requirements clean)
	@touch $@

$(VENV)/.docs: settings.ini
	@echo "Installing Sphinx: about 1 minute, once."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) $$($(BIN)/python -m tests.requirements docs)
	@touch $@

.PHONY: say-demo say-test
say-demo:
	@echo "Demo: two small models are trained, evaluated and compared on embedded photographs: 3 minutes on 2 cores, plus the installation where it is missing."
say-test:
	@echo "Test: notebooks, library, commands and the installed wheel: 20 minutes on 2 cores, plus the installation where it is missing."

demo: say-demo $(VENV)/.demo
	@$(BIN)/crlsr reproduce smoke

test: say-test $(VENV)/.dev
	$(BIN)/python -m pytest tests -m "not slow" -n 2 --dist loadfile

test-slow: $(VENV)/.dev $(VENV)/.docs
	$(BIN)/python -m pytest tests

test-browser: $(VENV)/.dev $(VENV)/.docs
	$(BIN)/python -m pytest tests/site tests/house/test_explore.py tests/house/test_explore_browser.py

test-gpu: $(VENV)/.dev
	$(BIN)/python -m pytest tests --ignore tests/house -m gpu

# The configuration cleans notebooks of this project as they are saved; the user's own stays in force.
lab: $(VENV)/.lab
	JUPYTER_CONFIG_PATH="$(CURDIR)/nbs/_site/jupyter" $(BIN)/jupyter lab nbs/index.ipynb

docs: $(VENV)/.docs
	$(BIN)/python nbs/_site/stage.py
	$(BIN)/python -m sphinx -W --keep-going -q -j auto -c nbs/_site nbs/_site/_build/source $(SITE)
	@echo "Open $(SITE)/index.html"

golden: $(VENV)/.dev
	$(BIN)/python -m tests.house.golden write

picture: $(VENV)/.dev
	$(BIN)/python -m tests.house.picture

bench: $(VENV)/.dev
	$(BIN)/python -m tests.bench

# CRL-SR and plain L1 for the same time: steps times what a step costs beside a plain one (make bench, step-bundled-vs-l1).
# Each takes one core; a stopped one goes on where it was: make train-bundled -j2.
BUNDLED := runs/bundled
PLAIN   := --set weight_bc=0 --set weight_srnce=0 --set weight_rec=0
X2      := --set scale=2 --set patch_size=32
.PHONY: $(BUNDLED)/x4-crlsr $(BUNDLED)/x4-l1 $(BUNDLED)/x2-crlsr $(BUNDLED)/x2-l1
train-bundled: $(BUNDLED)/x4-crlsr $(BUNDLED)/x4-l1 $(BUNDLED)/x2-crlsr $(BUNDLED)/x2-l1
$(BUNDLED)/x4-crlsr: $(VENV)/.demo
	$(BIN)/crlsr train --profile bundled --run $@
$(BUNDLED)/x4-l1: $(VENV)/.demo
	$(BIN)/crlsr train --profile bundled --run $@ $(PLAIN) --set steps=14000
$(BUNDLED)/x2-crlsr: $(VENV)/.demo
	$(BIN)/crlsr train --profile bundled --run $@ $(X2) --set steps=4000
$(BUNDLED)/x2-l1: $(VENV)/.demo
	$(BIN)/crlsr train --profile bundled --run $@ $(X2) $(PLAIN) --set steps=4530

bundle: $(VENV)/.dev
	$(BIN)/python -m tests.bundle $(BUNDLED)/x4-crlsr $(BUNDLED)/x4-l1
	$(BIN)/python -m tests.bundle $(BUNDLED)/x2-crlsr $(BUNDLED)/x2-l1

export: $(VENV)/.dev
	$(BIN)/python -m tests.export

notebooks: $(VENV)/.dev
	$(NB) run

clean:
	rm -rf build dist *.egg-info .pytest_cache .hypothesis nbs/_site/_build
	find . -name __pycache__ -type d -not -path "./$(VENV)/*" -prune -exec rm -rf {} +
