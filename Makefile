# make train, make test, make quick, make check, make bench: each sets up what it needs on a fresh machine.
PYTHON ?= python3
VENV ?= .venv
PEERS ?= .venv-peers
ARGS ?=

READY := $(VENV)/ready
RUN := $(VENV)/bin/python

.PHONY: ready train test quick check format bench clean

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

bench: $(READY) $(PEERS)/ready
	$(RUN) -m benchmarks.bench --peers_python=$(PEERS)/bin/python $(ARGS)

clean:
	rm -rf $(VENV) $(PEERS)

$(READY): requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo 'cpng_jax needs Python 3.11 or newer; name one with: make PYTHON=python3.12 $(MAKECMDGOALS)' >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check --no-compile -r requirements.txt
	@# What pip does on one core; some packages bring files that no Python can compile.
	@$(RUN) -m compileall -q -j 0 $(VENV)/lib > /dev/null 2>&1 || true
	@touch $(READY)

$(PEERS)/ready: benchmarks/requirements.txt benchmarks/peers.txt
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check -r benchmarks/requirements.txt
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r benchmarks/peers.txt
	@touch $(PEERS)/ready
