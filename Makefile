# make serve: from a bare machine to a running gateway. make test: every test. PORT=, HOST=, EXTRA=cpu|gpu, PYTHON=.
SHELL := /bin/bash
VENV := .venv
EXTRA ?= $(shell timeout 20 nvidia-smi --list-gpus >/dev/null 2>&1 && echo gpu || echo cpu)
# Only as words of the make command: shells and build tools export a HOST of their own.
given = $(if $(filter command line,$(origin $(1))),--$(2) $($(1)))

.PHONY: serve install develop quantizer demo check test format lock

serve: install
	@exec $(VENV)/bin/penstock serve $(call given,HOST,host) $(call given,PORT,port) $(ARGS)

install:
	@requirements/install $(VENV) $(EXTRA)

develop:
	@requirements/install $(VENV) $(EXTRA) train dev

# GPTQ and AWQ are computed by GPTQModel, beside which PEFT does not load: an environment of its own.
quantizer:
	@requirements/install .venv-quantize quantize

# The demo family from nothing, each member registered past its gate. FROM=recipes/demo/model: without pretraining.
demo: develop quantizer
	recipes/demo/build $(FROM)

check: develop
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports
	$(VENV)/bin/pytest -q tests/test_readme.py -k "stands_in_the_makefile or named_in_structure"

# Four at a time on two cores: they wait as much as they work. tests/processes.py says which stay together.
test: develop
	$(VENV)/bin/pytest -n 4

format: develop
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

lock:
	requirements/lock
