# On a fresh machine: `make demo` and `make test`.  They need Python >= 3.11 (with its headers), a C compiler and make.
# Another interpreter: make test PYTHON=python3.12.  Arguments for the tool behind a target: make test ARGS="-k spans".

VENV := .venv
BIN := $(VENV)/bin
ARGS ?=
# Tests at once: most of them wait for a server.  Those that look at the clock (`alone`) run one by one afterwards.
JOBS ?= 2
OR_NONE_CHOSEN := || [ $$? -eq 5 ]

# The first Python on the PATH that is new enough.  A version manager's shim may be there and still fail: it is tried.
IS_NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for candidate in python3 python3.13 python3.12 python3.11 python3.14; do \
	if $$candidate -c '$(IS_NEW_ENOUGH)' >/dev/null 2>&1; then echo $$candidate; break; fi; done)

BUILD_REQUIREMENTS := import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"], sep="\n")
KERNELS := $(wildcard engine/_native/*.pyx engine/_native/*.pxd)
DEBUG_KERNELS := $(VENV)/.debug-kernels
SANITIZED := build/sanitized
NATIVE_TESTS ?= tests/native

# What each kind of work adds to the package itself; see [project.optional-dependencies].
EXTRAS_demo := embedded
EXTRAS_test := embedded,test,grafana
EXTRAS_pictures := embedded,test,grafana,bench
EXTRAS_lint := lint

.PHONY: help demo test quick test-debug test-sanitized faults lint format type docs bench bench-smoke dashboards \
	fuzz fuzz-native openapi soak page-pictures pictures build check-wheel clean
.DELETE_ON_ERROR:

help: ## what can be made
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 22

demo: $(VENV)/.ready-demo ## build everything, start a private PostgreSQL and run a real job on it
	$(BIN)/backfill demo $(ARGS)

test: $(VENV)/.ready-test ## build everything and run all tests
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder -m "not alone and not long" $(ARGS) $(OR_NONE_CHOSEN)
	$(BIN)/python -m pytest -m "alone and not long" $(ARGS) $(OR_NONE_CHOSEN)

quick: $(VENV)/.ready-test ## the tests that need no server
	$(BIN)/python -m pytest tests/unit tests/native -m "not slow" $(ARGS)

test-debug: $(VENV)/.ready-test ## the kernels' tests, with bounds and overflow checks compiled in
	touch $(DEBUG_KERNELS)
	BACKFILL_DEBUG=1 $(BIN)/python setup.py --quiet build_ext --inplace --force
	$(BIN)/python -m pytest tests/native $(ARGS)
	$(BIN)/python setup.py --quiet build_ext --inplace --force
	rm $(DEBUG_KERNELS)

# Beside this tree, so that what is installed here stays loadable; each kernel's C is taken from the ordinary build.
test-sanitized: $(VENV)/.ready-test ## the kernels' tests, with every access to memory checked as it happens
	rm -rf $(SANITIZED)
	mkdir -p $(SANITIZED)/build
	cp -a engine tests setup.py pyproject.toml README.md LICENSE $(SANITIZED)
	find $(SANITIZED) -name '*.so' -delete
	! test -d build/cython-release || cp -a build/cython-release $(SANITIZED)/build
	cd $(SANITIZED) && BACKFILL_SANITIZE=1 $(CURDIR)/$(BIN)/python setup.py --quiet build_ext --inplace --parallel 2
	cd $(SANITIZED) && LD_PRELOAD="$$(gcc -print-file-name=libasan.so)" PYTHONMALLOC=malloc \
		ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 \
		$(CURDIR)/$(BIN)/python -m pytest -p no:cacheprovider --capture=sys -n $(JOBS) --dist worksteal \
		$(NATIVE_TESTS) $(ARGS)

faults: $(VENV)/.ready-test ## kill, cut and starve, with more rounds than `make test`
	HYPOTHESIS_PROFILE=thorough BACKFILL_FAULT_ROUNDS=$${BACKFILL_FAULT_ROUNDS:-10} \
		$(BIN)/python -m pytest -m "faults or long" --timeout=1800 $(ARGS)
	$(BIN)/python -m tests.faults.stress --rows 3000000 --kills 50 --writers 2 --row-delay-us 30
	$(BIN)/python -m tests.faults.stress --rows 3000000 --kills 50 --writers 3 --row-delay-us 30 --ours --mode update \
		--mode insert
	$(BIN)/python -m tests.faults.mutations

lint: $(VENV)/.ready-lint ## style, layers and the kernels' style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache
	$(BIN)/cython-lint --no-pycodestyle $(KERNELS)

format: $(VENV)/.ready-lint ## rewrite in the house style what a tool can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

type: $(VENV)/.ready-lint ## mypy, strict
	$(BIN)/mypy

docs: $(VENV)/.ready-test ## every link in the documents leads somewhere
	$(BIN)/python -m pytest -q tests/unit/test_docs.py $(ARGS)

bench: $(VENV)/.ready-demo ## ours and the yardsticks, side by side; takes a while
	$(BIN)/python -m bench $(ARGS)

bench-smoke: $(VENV)/.ready-demo ## every benchmark once, small: that it runs, not how fast
	$(BIN)/python -m bench --smoke $(ARGS)

dashboards: $(VENV)/.ready-test ## write grafana/dashboards anew from grafana/boards
	$(BIN)/python -m grafana.boards

openapi: $(VENV)/.ready-test ## write docs/daemon/openapi.json and docs/daemon/api.md anew from the table of routes
	$(BIN)/python -m tests.support.api_page

fuzz: $(VENV)/.ready-test ## ask a daemon whatever its document allows, and what it does not, for ten minutes
	BACKFILL_FUZZ_S=$${BACKFILL_FUZZ_S:-600} BACKFILL_FUZZ_SEED=$${BACKFILL_FUZZ_SEED:-$$(date +%s)} \
		$(BIN)/python -m pytest -s tests/service/test_fuzz.py $(ARGS)

fuzz-native: $(VENV)/.ready-test ## feed the kernels damaged streams and impossible values, thousands of each kind
	HYPOTHESIS_PROFILE=thorough $(BIN)/python -m pytest --timeout=1800 tests/native/test_rows.py \
		tests/native/test_rows_fuzz.py $(ARGS)

soak: $(VENV)/.ready-test ## hundreds of small jobs under random orders, and a daemon that is killed again and again
	$(BIN)/python -m tests.service.soak $(ARGS)

page-pictures: $(VENV)/.ready-test ## photograph the status page at work, into docs/pictures; needs Chromium
	$(BIN)/python -m tests.service.page_pictures

pictures: $(VENV)/.ready-pictures ## record jobs of every kind and draw the dashboards, into docs/pictures
	$(BIN)/python -m grafana.pictures $(ARGS)

build: $(VENV)/.installed ## a wheel, in dist/
	rm -rf dist
	$(BIN)/pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .
	@ls dist

check-wheel: build ## install the wheel into a venv of its own and use it from elsewhere
	rm -rf build/wheel-venv
	$(BIN)/python -m venv build/wheel-venv
	build/wheel-venv/bin/pip install --quiet dist/*.whl
	cd / && "$(CURDIR)/build/wheel-venv/bin/python" -I -c \
		"import engine, engine.transform, engine._native.copybin, engine._native.rows, engine._native.decode, engine._native.encode, engine._native.keyspace; print(engine.__file__)"
	cd / && "$(CURDIR)/build/wheel-venv/bin/backfill" --version
	cd / && "$(CURDIR)/build/wheel-venv/bin/python" -I -c \
		"import sys; from engine.service.routes.page import page_files; assert set(sys.argv[1:]) == set(page_files()), page_files()" \
		$(notdir $(wildcard engine/service/page/*))
	build/wheel-venv/bin/backfill dashboards export build/wheel-venv/grafana
	test -s build/wheel-venv/grafana/dashboards/overview.json && test -s build/wheel-venv/grafana/alerts/backfill.rules.yaml
	test -s build/wheel-venv/grafana/docs/operations/alerts.md
	rm -rf build/wheel-venv

clean: ## remove whatever was built
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	rm -f engine/_native/*.so engine/_native/*.c
	find engine tests bench -name __pycache__ -prune -exec rm -rf {} +

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed, and none was found: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c '$(IS_NEW_ENOUGH)' || { echo "$(PYTHON) is older than Python 3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' || { echo "$(PYTHON) cannot make environments: apt-get install python3-venv" >&2; exit 1; }
	@$(PYTHON) -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' \
		|| { echo "$(PYTHON) has no C headers: apt-get install python3-dev" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# The package itself, editable, with its kernels compiled: again whenever one of these files changes.
$(VENV)/.installed: pyproject.toml setup.py $(KERNELS) $(wildcard $(DEBUG_KERNELS)) | $(BIN)/python
	@echo "installing into $(VENV)"
	$(BIN)/python -c '$(BUILD_REQUIREMENTS)' > $(VENV)/build-requirements.txt
	$(BIN)/pip install --quiet --disable-pip-version-check -r $(VENV)/build-requirements.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-build-isolation --editable .
	rm -f $(DEBUG_KERNELS)
	touch $@

# Already installed as above, the package is not built again: only what the extras name is added.
$(VENV)/.ready-%: $(VENV)/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check "backfill-engine[$(EXTRAS_$*)]"
	touch $@
