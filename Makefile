# Each target makes .venv and installs what is missing first; a second call installs nothing.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help demo corpus test check slurm slurm-packages browser lint format docs bench drill install

help:  ## what there is
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

install: $(STAMP)  ## make .venv and install everything

# torch alone first: with torch there, no other package chooses a build of it.
$(STAMP): requirements.txt requirements-dev.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q "$$(grep '^torch==' requirements.txt)"
	$(BIN)/pip install -q -r requirements-dev.txt
	$(BIN)/pip install -q --no-build-isolation --no-deps -e .
	touch $(STAMP)

demo: $(STAMP)  ## real text -> tars -> parallel training, killed and resumed -> bundle -> samples
	$(BIN)/python -W ignore -m esolm.pipeline.demo

corpus: $(STAMP)  ## 84 MB of real prose from Debian's documentation packages, as JSONL in runs/corpus/text
	$(BIN)/python -m esolm.data_prep.prose --out runs/corpus

# The Slurm tests start a cluster of their own; where its programs cannot be had they skip.
slurm-packages:
	@if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && \
	    ! which slurmctld slurmd munged shellcheck >/dev/null; then \
	    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq \
	        --no-install-recommends slurm-wlm munge shellcheck; } >/dev/null \
	        || echo "slurm-wlm, munge, shellcheck: not installed, the Slurm tests will skip"; fi

browser:
	@if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && \
	    ! which chromium chromedriver >/dev/null; then \
	    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq \
	        --no-install-recommends chromium chromium-driver; } >/dev/null \
	        || echo "chromium: not installed, the tests of the page will skip"; fi

# Ranks and clusters use every core by themselves: what starts them runs one test at a time.
WORKERS := -n 2 --dist loadfile
test: $(STAMP) slurm-packages  ## before every change, ten minutes on two cores: units, each kind of layout, a Slurm chain, kills
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(WORKERS) -m "not (dist or slurm or check or slow)"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "(dist or slurm) and not (check or slow)" --durations 15

check: $(STAMP) slurm-packages browser  ## the rest of the tests, which `make test` leaves out for their length
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(WORKERS) -m "check and not (dist or slurm or slow)"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "check and (dist or slurm) and not slow" --durations 15

slurm: $(STAMP) slurm-packages  ## of both, those on a real Slurm of four virtual nodes
	$(BIN)/python -m pytest -m slurm

lint: $(STAMP)  ## format, lint, types, import rules
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP)  ## rewrite the files as ruff would
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(STAMP)  ## write the tables that come from the code anew
	$(BIN)/python -m esolm.pipeline.run.reference

bench: $(STAMP)  ## the measurements behind the README's figures
	for script in benchmarks/*.py; do echo "== $$script"; $(BIN)/python -W ignore -m benchmarks.$$(basename $$script .py) || exit 1; done

drill: $(STAMP)  ## soaks, outside `make test` and `make check`
	$(BIN)/python -m pytest -m slow
