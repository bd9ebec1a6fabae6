# `make repro` and `make test` do all the set-up themselves; they need Python 3.11, 3.12 or 3.13, git and make.
# A name that is there need not run: pyenv's stand for versions that are not chosen.
IS_SUPPORTED := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
PYTHON ?= $(shell for name in python3.11 python3.12 python3.13 python3 python; do \
	$$name -c '$(IS_SUPPORTED)' 2> /dev/null && command -v $$name && break; done)
# Windows sets OS in its own shells; WSL is a Linux.
ifeq ($(OS),Windows_NT)
$(error this runs on Linux and macOS; on Windows, run it in WSL, https://learn.microsoft.com/windows/wsl)
endif
VENV := .venv
READY := $(VENV)/.ready
# DVC starts its stages through a shell: they must find this environment's python.
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export NO_ALBUMENTATIONS_UPDATE := 1
# DVC's own cache holds pickles; by default it lies where every user of the machine may write.
export DVC_SITE_CACHE_DIR := $(CURDIR)/.dvc/tmp/site

.PHONY: help repro mend-dvc tell-dvc-of-git test faults bench gpu study-upsampling study-examples lint dvc-deps params clean
help:
	@echo "make repro     run the pipeline that params.yaml describes, and print its fold table"
	@echo "make mend-dvc  mend what a kill leaves of DVC's own files, before a plain dvc repro; make repro does it first"
	@echo "make test      run the tests"
	@echo "make faults    kills, full disks, bad input, load: for tests/README.md; only=NAME for a part"
	@echo "make bench     time the pipeline against its peers, for tests/benchmarks/results.md; only=NAME for a part"
	@echo "make gpu       all there is to learn on a GPU, in 8 minutes (tests/gpu/README.md); args='--device cpu --tiny'"
	@echo "               to try it without; PYTHON=... takes a Python that has torch, and installs nothing"
	@echo "make study-upsampling, study-examples"
	@echo "               the studies of pipeline/studies; data=DIR names the archives' folder, threads=N"
	@echo "make lint      ruff and mypy"
	@echo "make dvc-deps  write the code and the params that each stage reads into dvc.yaml"
	@echo "make params    compose pipeline/conf into params.yaml"
	@echo "make clean     remove the environment"

repro: $(READY) tell-dvc-of-git
	python -m pipeline run
	@python -m pipeline summary

mend-dvc:
	@python -c "from pipeline.engine.checkout import mend; mend()"

# GitHub's "Download ZIP" holds no repository. DVC needs to be told, or takes one that the folder happens to lie in.
tell-dvc-of-git: $(READY)
	@if test -e .git || git ls-files --error-unmatch dvc.yaml > /dev/null 2>&1; then \
		! grep -qs no_scm .dvc/config.local || dvc config --local --unset core.no_scm; \
	else \
		dvc config --local core.no_scm true; \
		echo 'no git repository here, so no `dvc exp` and no revisions to compare with;' \
			'`git init && git add . && git commit -m start` makes one'; \
	fi

test: $(READY)
	python -m pytest

faults: $(READY)
	python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[faults]'
	python -m tests.faults $(only)

bench: $(READY)
	python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	python -m tests.benchmarks $(only)

# A Python that is named is taken as it is: a machine with a GPU may have no network to install from.
NAMED_PYTHON := $(if $(filter command environment,$(firstword $(origin PYTHON))),$(PYTHON))
gpu: $(if $(NAMED_PYTHON),,$(READY))
	$(or $(NAMED_PYTHON),$(VENV)/bin/python) -m tests.gpu $(args)

study-upsampling study-examples: $(READY)
	python -m pipeline.studies.$(@:study-%=%) $(if $(data),--data $(data)) $(if $(threads),--threads $(threads))

lint: $(READY)
	ruff check .
	ruff format --check .
	mypy

dvc-deps: $(READY)
	python -m tests.dvc_deps

params: $(READY)
	python -c "from pathlib import Path; from pipeline.compose import write_composed as write; \
		write(Path('params.yaml')); write(Path('tests/gpu/params.yaml'), ['data=full', 'train=gpu'])"

clean:
	rm -rf $(VENV)

$(READY): pyproject.toml constraints.txt
	@"$(PYTHON)" -c '$(IS_SUPPORTED)' || \
		{ echo "error: '$(PYTHON)' is not Python 3.11, 3.12 or 3.13; name one with 'make PYTHON=/path/to/python'"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@
