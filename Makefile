# Every target works from a fresh clone: it first makes .venv and installs what it needs, pinned by constraints.txt.

# NNabla has wheels for Python 3.10 alone, so that is preferred where it runs; what pyenv puts on the PATH may not.
PYTHON ?= $(shell python3.10 -c 'import ensurepip, venv' 2>/dev/null && echo python3.10 || echo python3)
VENV := .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow test-kernels test-newest test-browser test-notebooks site docs figures bench fuzz lint format types dist container clean

help:  ## Say what each target does
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

demo: $(VENV)/.demo  ## Convert the embedded model, run it in every framework, compare the numbers
	@$(BIN)/clip demo

test: $(VENV)/.dev  ## Run the default tests
	$(BIN)/python -m pytest -n 2 --dist worksteal

test-slow: $(VENV)/.dev  ## Run the tests that take minutes: models at full size
	$(BIN)/python -m pytest -m slow

test-kernels: $(VENV)/.dev  ## Run the tests of numbers with each kind of kernels that this processor can run
	$(BIN)/python .ci/kernels.py

test-newest:  ## Run the default tests with the newest versions of everything on the newest Python found
	.ci/newest

test-browser: $(VENV)/.dev $(VENV)/browser/chromium examples/deploy/browser/node_modules  ## Run the tests of the page in a browser
	$(BIN)/python -m pytest -m browser

test-notebooks: $(VENV)/.dev  ## Run the notebooks of examples/notebooks/, NNabla's where NNabla has a wheel
	$(BIN)/python -m pytest --nbmake examples/notebooks \
	  -k "$$($(BIN)/python -c 'import sys; print("" if sys.version_info < (3, 11) else "not nnabla")')"

site: $(VENV)/.dev $(VENV)-site/.done  ## Build the site of the documents; a broken link is an error
	$(BIN)/python docs/site/assemble.py build/docs
	cd build/docs && $(CURDIR)/$(VENV)-site/bin/zensical build --strict --clean --config-file zensical.toml

docs: site  ## Build the site and serve it here
	$(BIN)/python -m http.server --directory build/docs/site --bind 127.0.0.1 8001

figures: $(VENV)/.dev  ## Draw the picture of README.md
	$(BIN)/python docs/figures/draw.py

bench: $(VENV)/.dev  ## Measure all benchmarks, or those of ONLY=text,training, and write docs/benchmarks.md
	$(BIN)/python benchmarks/run.py $(if $(ONLY),--only $(ONLY))

fuzz: $(VENV)/.dev  ## Read 100,000 damaged files of each format, which takes hours
	$(BIN)/python -m tests.fuzz --inputs 100000 --keep fuzz-failures

lint: $(VENV)/.dev  ## Check format and style
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

format: $(VENV)/.dev  ## Put format and style right
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

types: $(VENV)/.dev  ## Check types
	$(BIN)/mypy

dist: $(VENV)/.dev  ## Build the wheel and the source distribution, and check them
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/twine check --strict dist/*
	$(BIN)/check-wheel-contents dist

container:  ## Execute the steps of docker/Dockerfile without building an image (Linux, as root)
	$(PYTHON) .ci/container.py

clean:  ## Remove the environments and caches
	rm -rf $(VENV) $(VENV)-* .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist *.egg-info \
	  examples/deploy/browser/node_modules examples/deploy/browser/model

$(VENV)/.pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || { \
	  echo "TriCLIP needs Python 3.10 or newer, and $(PYTHON) is $$($(PYTHON) --version 2>&1); install one and run: make PYTHON=python3.10 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.version_info < (3, 11) or print("NNabla has no wheel for Python %d.%d; going on without it." % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	@touch $@

$(VENV)/.demo: $(VENV)/.pip setup.cfg constraints.txt
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[torch,paddle,nnabla]'
	@touch $@

$(VENV)/.dev: $(VENV)/.pip setup.cfg constraints.txt
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[all,test,dev]'
	@touch $@

$(VENV)-site/.done: docs/site/requirements.txt
	$(PYTHON) -m venv $(VENV)-site
	$(VENV)-site/bin/python -m pip install --quiet --upgrade pip
	$(VENV)-site/bin/python -m pip install --quiet -r docs/site/requirements.txt
	@touch $@

$(VENV)/browser/chromium: $(VENV)/.pip
	.ci/chromium $(VENV)/browser

examples/deploy/browser/node_modules: examples/deploy/browser/package-lock.json
	npm ci --prefix examples/deploy/browser
	@touch $@
