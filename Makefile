# make train, make test, make check: each sets up what it needs on a fresh machine.
PYTHON ?= python3
VENV ?= .venv
ARGS ?=

READY := $(VENV)/ready
RUN := $(VENV)/bin/python

.PHONY: train test check format clean

train: $(READY)
	$(RUN) train.py $(ARGS)

test: $(READY)
	$(RUN) -m pytest -n 2 --dist loadfile $(ARGS)

check: $(READY)
	$(RUN) -m ruff format --check .
	$(RUN) -m ruff check .
	$(RUN) -m pyright --pythonpath $(RUN)

format: $(READY)
	$(RUN) -m ruff format .
	$(RUN) -m ruff check --fix .

clean:
	rm -rf $(VENV)

$(READY): requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo 'cpng_jax needs Python 3.11 or newer; name one with: make PYTHON=python3.12 $(MAKECMDGOALS)' >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $(READY)
