# Every target makes .venv and installs what it needs first.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
READY := .venv/.ready

.PHONY: demo study test coverage test-hard test-gpu test-python test-all wheel wheel-test docs browser bench bench-full bench-compare bench-likelihood notebooks format clean

demo: $(READY)  ## Train mixtures on lines with the main estimators; tables and pictures in results/study.
	$(BIN)/python -m inference study --overwrite

# All numbers of the README's comparisons: some 260 minutes of processor time, or 20 with GRID=reduced.
GRID ?= full
PIECES = $(BIN)/python -m inference study --overwrite --grid pieces $(if $(filter reduced,$(GRID)),--num-seeds 8 --num-steps 300)
SERVED = $(BIN)/python -m inference study --overwrite $(if $(filter reduced,$(GRID)),--num-seeds 2 --num-steps 100)
LANGUAGE = $(BIN)/python -m inference fit language --overwrite $(if $(filter reduced,$(GRID)),--num-seeds 2 --num-epochs 1,--num-seeds 5)

EIGHT = $(BIN)/python -m inference fit language --overwrite --experts-in last --num-experts 8 \
	$(if $(filter reduced,$(GRID)),--num-seeds 2 --num-epochs 1,--num-seeds 8 --num-epochs 6)

HIDDEN = $(EIGHT) --router hidden
BYTES = $(EIGHT) --router bytes
BOUND := --estimator mixture --num-selected 2 --capacity-factor 1
TOP_2 := --assignment top-2-gates --capacity-factor 2.5 --load-balancing 0.01

study: $(READY)  ## The comparison of everything; results/study, results/pieces, results/language.
	$(BIN)/python -m inference study --overwrite --grid $(GRID)
	$(PIECES) --out results/pieces
	$(LANGUAGE) --assignment independent --num-experts 1 --baseline none --out results/language/dense
	$(LANGUAGE) --num-layers 2 --assignment gumbel-matching --estimator balanced --out results/language/balanced
	$(LANGUAGE) --num-layers 2 --assignment skip --out results/language/skip
	$(LANGUAGE) --num-layers 2 --assignment dependent-rounding --out results/language/dependent-rounding
	$(HIDDEN) --hidden-features 128 $(BOUND) --out results/language/hidden/bound
	$(HIDDEN) --hidden-features 128 $(TOP_2) --out results/language/hidden/top-2-gates
	$(HIDDEN) --hidden-features 128 --assignment switch --load-balancing 0.01 --out results/language/hidden/switch
	$(HIDDEN) --hidden-features 64 $(TOP_2) --out results/language/hidden/top-2-gates-half
	$(BIN)/python -m inference compare $(addprefix results/language/hidden/,bound top-2-gates switch top-2-gates-half)
	$(BYTES) --hidden-features 128 $(BOUND) --out results/language/bytes/bound
	$(BYTES) --hidden-features 128 $(TOP_2) --out results/language/bytes/top-2-gates
	$(BIN)/python -m inference compare $(addprefix results/language/bytes/,bound top-2-gates)
	$(SERVED) --grid regimes --out results/regimes
	$(SERVED) --grid tables --out results/tables

# The quick ones; make test-hard executes all of them.
NOTEBOOKS := notebooks/01_routing_as_random_variables.ipynb notebooks/02_likelihoods_and_gradients.ipynb

test: $(READY)  ## Lint, types, tests with doctests, and notebooks; of tests and notebooks not the slow ones.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 NUMBA_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --nbmake $(NOTEBOOKS) prob_moe models inference tests

coverage: $(READY)  ## All tests once more, with the lines of the library that none of them reaches: half as slow again.
	OMP_NUM_THREADS=1 NUMBA_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m "" --cov=prob_moe --cov-report=term-missing:skip-covered --cov-fail-under=95

# The tests that pass on one machine pass on others: other vector instructions, other seeds, other numbers of threads.
HARD := $(BIN)/python -m pytest -n 2 --quiet -m ""
ONE := OMP_NUM_THREADS=1 NUMBA_NUM_THREADS=1
# Threads that wait must not spin on the processors that the other worker needs.
TWO := OMP_NUM_THREADS=2 NUMBA_NUM_THREADS=2 OMP_WAIT_POLICY=passive

# torch.compile keeps its code with vectors where code without them is looked for: a folder of its own.
test-hard: $(READY)  ## All tests once more for each: torch without vectors, numba for any processor, other seeds, 1 and 2 threads.
	$(ONE) ATEN_CPU_CAPABILITY=default TORCHINDUCTOR_CACHE_DIR=$(CURDIR)/.venv/inductor $(HARD)
	$(ONE) NUMBA_CPU_NAME=generic $(HARD)
	$(ONE) PROB_MOE_SEED_SHIFT=1000 $(HARD) --hypothesis-seed=1000
	$(ONE) $(HARD)
	$(TWO) $(HARD)
	$(ONE) $(BIN)/python -m pytest -n 2 --nbmake notebooks

test-gpu: $(READY)  ## What needs a CUDA device; where there is none, says that nothing of it is tested.
	@$(BIN)/python -c "import torch; n = torch.cuda.device_count(); print(f'CUDA devices: {n}' if n else 'There is no CUDA device here: none of this is tested.')"
	$(BIN)/python -m pytest -n 0 -m gpu tests

# `make test-python PYTHON=python3.13`, in an environment of its own.
OTHER := .venv/other/$(notdir $(PYTHON))

test-python:  ## The tests under another Python, with the newest packages instead of the pins of constraints.txt.
	test -x $(OTHER)/bin/python || $(PYTHON) -m venv $(OTHER)
	$(OTHER)/bin/python -m pip install --quiet --editable '.[dev]'
	$(ONE) $(OTHER)/bin/python -m pytest -n 2 --quiet

test-all:  ## The same under every Python that is here, one after the other; each fetches a torch of its own.
	for python in python3.11 python3.12 python3.13; do \
		if command -v $$python >/dev/null; then $(MAKE) test-python PYTHON=$$python || exit 1; else echo "no $$python here"; fi; \
	done

wheel: $(READY)  ## Build the wheel, install it into an empty environment, run the README's example there; then its extra for tables.
	rm -rf dist
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .
	$(PYTHON) -m venv dist/venv
	dist/venv/bin/python -m pip install --quiet --constraint constraints.txt dist/*.whl
	dist/venv/bin/python -I tests/test_readme.py
	dist/venv/bin/python -m pip install --quiet --constraint constraints.txt "$$(echo dist/*.whl)[sklearn]"
	dist/venv/bin/python -I -c "from prob_moe.sklearn import MixtureRegressor as M; print(M(2).fit([[0.0], [1], [2], [3], [4], [5]], [0.0, 1, 2, 9, 7, 5]))"
	rm -rf dist/venv

SITE := $(CURDIR)/dist/site

wheel-test: $(READY)  ## The README's example from the wheel alone, beside the packages of .venv: the quick half of make wheel.
	rm -rf dist
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .
	$(BIN)/python -m pip install --quiet --no-deps --target $(SITE) dist/*.whl
	cd dist && PYTHONPATH=$(SITE) ../$(BIN)/python -P -c "import prob_moe; assert prob_moe.__file__.startswith('$(SITE)')"
	cd dist && PYTHONPATH=$(SITE) ../$(BIN)/python -P ../tests/test_readme.py 100 101

docs: $(READY)  ## The documentation as web pages in results/docs; a warning or a broken link is an error.
	$(BIN)/python -m sphinx -b html --quiet --fresh-env --fail-on-warning --nitpicky -d .venv/doctrees notebooks results/docs
	$(BIN)/python -m tests.docs.links results/docs

browser: docs  ## The pages, and that of a run, in chromium (apt-get install chromium).
	@command -v chromium >/dev/null || { echo "make browser needs chromium: apt-get install chromium" >&2; exit 1; }
	$(ONE) PROB_MOE_SITE=results/docs $(BIN)/python -m pytest -n 0 -m "" tests/docs/test_browser.py

# Peers that only the benchmarks need are installed by them.
RUN := results/bench/$(shell date +%Y-%m-%d-%H%M).json
BENCH = mkdir -p results/bench && $(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,peers]' && \
	$(BIN)/python -m pytest -n 0 --quiet tests/benchmarks/bench_cases.py -o python_files='bench_*.py' --benchmark-only \
	--benchmark-columns=min,rounds --benchmark-json=$(RUN) && \
	$(BIN)/python -m tests.benchmarks.growth $(RUN) results/bench

bench: $(READY)  ## Speed as ratios to named peers, one table of one run and pictures of growth; results/bench.
	$(BENCH)

bench-full: $(READY)  ## The same with the largest sizes; first calls, memory, and how well the errors of likelihoods cover.
	PROB_MOE_BENCH=full $(BENCH)
	$(BIN)/python -m tests.benchmarks.memory_table
	$(BIN)/python -m tests.benchmarks.annealing_table
	$(BIN)/python -m tests.benchmarks.likelihood_table

bench-compare: $(READY)  ## What became slower beyond the noise: make bench-compare A=old.json B=new.json
	$(BIN)/python -m tests.benchmarks.compare $(A) $(B)

VALUES ?= 100

bench-likelihood: $(READY)  ## log P of Gumbel-Matching and its reported error against exact values, over 64 cells.
	$(BIN)/python -m tests.benchmarks.likelihood_table $(VALUES)

notebooks: $(READY)  ## Execute the notebooks and keep their outputs.
	$(BIN)/python -m pytest --nbmake --overwrite notebooks

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf .venv results dist
	find prob_moe -name '*.nbi' -delete -o -name '*.nbc' -delete

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@
