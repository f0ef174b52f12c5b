# make train, make test, make quick, make check, make docs, make bench: each sets up what it needs on a fresh machine.
PYTHON ?= python3
VENV ?= .venv
PEERS ?= .venv-peers
DOCS ?= .venv-docs
ARGS ?=

READY := $(VENV)/ready
RUN := $(VENV)/bin/python
PURELIB := import sysconfig; print(sysconfig.get_path("purelib"))

.PHONY: ready train test quick check format docs bench clean

ready: $(READY)

train: $(READY)
	$(RUN) train.py $(ARGS)

test: $(READY)
	$(RUN) -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

# The tests but those that start processes, train, or build networks of full depth.
quick: $(READY)
	$(RUN) -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m 'not processes and not trains and not deep' $(ARGS)

check: $(READY)
	$(RUN) -m ruff format --check .
	$(RUN) -m ruff check .
	$(RUN) -m pyright --pythonpath $(RUN)

format: $(READY)
	$(RUN) -m ruff format .
	$(RUN) -m ruff check --fix .

# The site, docs/_build/html; a warning is an error. Notebooks run again only where their code has changed.
docs: $(READY) $(DOCS)/ready
	$(DOCS)/bin/python -m sphinx -W --keep-going -q -d docs/_build/doctrees docs docs/_build/html $(ARGS)
	@echo docs/_build/html/index.html

bench: $(READY) $(PEERS)/ready
	$(RUN) -m benchmarks.bench --peers_python=$(PEERS)/bin/python $(ARGS)

clean:
	rm -rf $(VENV) $(PEERS) $(DOCS) docs/_build

$(READY): requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo 'cpng_jax needs Python 3.11 or newer; name one with: make PYTHON=python3.12 $(MAKECMDGOALS)' >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check --no-compile -r requirements.txt
	@# What pip does on one core, without what nobody imports; some packages bring files that no Python can compile.
	@$(RUN) -m compileall -q -j 0 -x '/tests?/|/tensorflow_datasets/datasets/' $(VENV)/lib > /dev/null 2>&1 || true
	@touch $(READY)

$(PEERS)/ready: benchmarks/requirements.txt benchmarks/peers.txt
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check -r benchmarks/requirements.txt
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r benchmarks/peers.txt
	@touch $(PEERS)/ready

# On top of the project's environment, so that neither tests nor checks meet its packages.
$(DOCS)/ready: $(READY) docs/requirements.txt
	$(RUN) -m venv $(DOCS)
	$(RUN) -c '$(PURELIB)' > "$$($(DOCS)/bin/python -c '$(PURELIB)')/project.pth"
	$(DOCS)/bin/python -m pip install --quiet --disable-pip-version-check --no-compile -r docs/requirements.txt || \
		{ echo 'make docs needs the packages of docs/requirements.txt, which pip has not installed.' >&2; exit 1; }
	@touch $(DOCS)/ready
