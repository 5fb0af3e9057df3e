# `make demo` and `make test` set up what they need in .venv; nothing else has to be installed but Python, make and git.
PYTHON ?= python3
UV := $(shell command -v uv 2>/dev/null)
READY := .venv/.ready
export PATH := $(CURDIR)/.venv/bin:$(PATH)

.PHONY: demo test check clean

demo: $(READY)  ## the whole pipeline on the embedded digits; ends with the scores and where the report lies
	dvc repro
	python -m pipeline.report --table

test: $(READY) check  ## style, types, tests: one process a core, and one thread each
	OMP_NUM_THREADS=1 pytest --numprocesses auto --dist loadfile --no-loadscope-reorder

check: $(READY)
	ruff check .
	ruff format --check .
	mypy

$(READY): pyproject.toml
ifdef UV
	test -x .venv/bin/python || uv venv --python $(PYTHON) .venv
	uv pip install --python .venv/bin/python -e '.[dev]'
else
	test -x .venv/bin/python || $(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --upgrade pip  # an old one may search for long
	.venv/bin/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
endif
	touch $@

clean:  ## the set-up and all artifacts
	rm -rf .venv data/* features/* models/* reports/*
