# Everything starts from here: `make demo` and `make test` set themselves up on a fresh machine.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.PHONY: demo test browser-test lint types docs screenshots notebooks bench slow peers lowest dist clean help coverage soak fuzz audit mutate errors

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 14

# constraints.txt pins torch to a build that a CPU machine can install without CUDA packages.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[cnn,weights,test]'
	@touch $@

demo: $(STAMP)  ## real images to label sets: prints the table, writes report.html
	$(BIN)/stacker demo --out demo/ --report report.html --force

AT_ONCE ?= 2

# Threads that wait by spinning stand in each other's way where two processes share the cores.
test: $(STAMP)  ## unit and end-to-end tests, doctests, README's Python blocks (AT_ONCE=n files at once)
	OMP_WAIT_POLICY=passive $(BIN)/python -m pytest --numprocesses $(AT_ONCE) --dist loadfile

browser-test: $(STAMP)  ## the report in headless Chromium; installs Chromium where apt-get can
	command -v chromium >/dev/null || command -v chromium-browser >/dev/null || \
	  { apt-get update && apt-get install --yes --no-install-recommends chromium; }
	$(BIN)/python -m pytest tests/stacker/test_report_browser.py tests/test_docs_site.py

slow: $(STAMP)  ## the tests that take minutes
	$(BIN)/python -m pytest -m slow

coverage: $(STAMP)  ## lines and branches that `make test` runs; commands run in processes count too
	$(BIN)/python -m pytest --cov=cnn_extract --cov=features --cov=stacker --cov-branch \
	  --cov-report=term:skip-covered

soak: $(STAMP)  ## an hour: 25 kills of every command, Ctrl-C, 20 minutes of streaming, threads
	$(BIN)/python -m pytest -m slow -s tests/reliability/test_kill.py tests/reliability/test_soak.py \
	  tests/reliability/test_determinism.py

FUZZ_CASES ?= 50000

fuzz: $(STAMP)  ## 50,000 damaged stores, tables, models and recipes each (FUZZ_CASES=n)
	FUZZ_CASES=$(FUZZ_CASES) $(BIN)/python -m pytest -m slow -s tests/reliability/test_fuzz.py

audit: $(STAMP)  ## known holes in what is installed
	@mkdir -p build
	@$(BIN)/python -m pip_audit --skip-editable --progress-spinner off > build/audit.txt; \
	  code=$$?; cat build/audit.txt; test $$code -eq 0 && \
	  ! grep "could not be audited" build/audit.txt > /dev/null  # a registry that knows no holes

MUTANTS ?= 200

mutate: $(STAMP)  ## change the sources a little and see whether a test notices (MUTANTS=n a file)
	$(BIN)/python tests/reliability/mutate.py $(MUTANTS)

errors: $(STAMP)  ## docs/errors.md, from the sources
	$(BIN)/python -m tests.reliability.errors

lint: $(STAMP)  ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)  ## mypy, strict
	$(BIN)/mypy features stacker cnn_extract

docs: $(STAMP)  ## the docs site in site/: warnings are errors, links are checked
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	$(BIN)/python docs/_site/stage.py build/docs
	$(BIN)/python -m sphinx -q -W --keep-going -c docs/_site build/docs site
	$(BIN)/python docs/_site/check.py site
	@echo "docs: site/index.html"

screenshots: demo docs  ## pictures of the report and the site in docs/img; needs chromium
	$(BIN)/python docs/_site/shots.py report.html site docs/img

notebooks: $(STAMP)  ## run every notebook top to bottom
	@for notebook in notebooks/*.ipynb; do \
	  test -e "$$notebook" || { echo "no notebooks yet"; break; }; \
	  $(BIN)/jupyter execute --inplace "$$notebook" || exit 1; \
	done

bench: $(STAMP)  ## ratios against a peer or a limit in the same run; writes benchmarks/results.md
	@for benchmark in benchmarks/bench_*.py; do $(BIN)/python $$benchmark || exit 1; done
	$(BIN)/python benchmarks/assemble.py

PEERS := .venv-peers
OOF   ?= embedded

peers:  ## pairstack beside its peers, under an hour; OOF=file of out-of-fold predictions
	test -x $(PEERS)/bin/python || $(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet --constraint constraints.txt --editable . \
	  --requirement benchmarks/peers/requirements.txt
	PYTHONPATH=benchmarks $(PEERS)/bin/python benchmarks/peers/run.py $(OOF)
	$(PEERS)/bin/python benchmarks/assemble.py

lowest:  ## core tests with the lowest versions that pyproject.toml allows
	test -x .venv-lowest/bin/python || $(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/python -m pip install --quiet uv
	.venv-lowest/bin/uv pip install --quiet --python .venv-lowest/bin/python \
	  --resolution lowest-direct --editable '.[core-test]'
	.venv-lowest/bin/python -m pytest -q tests/features tests/stacker

dist: $(STAMP)  ## wheel and sdist; the wheel, without extras, runs the core tests
	rm -rf dist .venv-dist
	$(BIN)/python -m pip install --quiet build
	$(BIN)/python -m build --outdir dist .
	$(PYTHON) -m venv .venv-dist
	.venv-dist/bin/python -m pip install --quiet "$$(echo dist/*.whl)[core-test]"
	mkdir .venv-dist/run && cp -r tests pyproject.toml .venv-dist/run/
	cd .venv-dist/run && ../bin/python -m pytest -q tests/features tests/stacker

clean:  ## remove what the targets made
	rm -rf $(VENV) .venv-lowest .venv-dist demo report.html build dist site *.egg-info
