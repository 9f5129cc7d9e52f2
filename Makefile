# What one does with this repository, by name. CI and a laptop run the same commands.
# Only Python 3 and make are assumed. Nothing outside this folder is changed, but for uv's own cache.
#
#   make setup PYTHON=python3.12       another Python, 3.10 to 3.13 (make clean first)
#   make unit ARGS="-k sketch -x"      words for pytest
#   make demo ARGS="swarm.num_peers=8" words for ray-gossip
#   make job WORKERS=1                 tests one after the other, where the machine is busy with other things

PYTHON ?= python3
ARGS ?=
UV := $(or $(shell command -v uv 2>/dev/null),.uv/bin/uv)

BIN := .venv/bin
READY := .venv/.ready

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help setup demo test lint format unit swarm job audit bench constraints clean

help: ## list these commands
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(READY) ## install everything into .venv, once and after a change of pyproject.toml or constraints.txt

demo: setup ## train a swarm of four peers on this machine, then say where to look
	$(BIN)/ray-gossip train configs/quickstart.yaml $(ARGS)

test: lint unit swarm job ## lint, then all tests

lint: setup ## ruff and mypy
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: setup ## let ruff lay out the code, and mend what it can
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

unit: setup ## tests that start no process
	$(BIN)/python -m pytest tests/unit -n $(or $(WORKERS),3) $(ARGS)

swarm: setup ## tests on real hivemind peers
	$(BIN)/python -m pytest tests/swarm -n $(or $(WORKERS),3) --dist loadscope $(ARGS)

job: setup ## tests on real Ray, through the command line
	$(BIN)/python -m pytest tests/job -n $(or $(WORKERS),2) --dist loadscope $(ARGS)

audit: setup ## look up known vulnerabilities of what is pinned, where the package index tells them
	@if $(BIN)/python -c '$(TELLS)' 2>/dev/null; then \
		$(UV) tool run --quiet pip-audit@2.10.1 --strict --disable-pip --no-deps --requirement constraints.txt; \
	else \
		echo "audit: nothing was looked up: this package index does not tell vulnerabilities by version"; \
	fi

bench: setup ## compare with what one would use instead: the short form, under 20 minutes; for root on Linux it counts bytes
	$(BIN)/python benchmarks/compare.py --steps 250 --seconds 15 --conditions quiet killed \
		--out runs/compare-$(shell date +%Y%m%d-%H%M%S).json $(ARGS)

constraints: | $(UV) ## pin what pyproject.toml newly needs; what is pinned stays so
	$(UV) pip compile --quiet --universal --python-version 3.10 --extra dev \
		--no-annotate --no-header --no-emit-index-url pyproject.toml -o constraints.txt

clean: ## remove what make made; runs/ is yours and stays
	rm -rf .venv .uv build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(READY): pyproject.toml constraints.txt | $(UV)
	@test -x $(BIN)/python || { $(CHECK_PYTHON) && $(UV) venv --quiet --python "$$(command -v $(PYTHON))" .venv; }
	# bytecode at once: else each of a swarm's processes compiles torch, hivemind and Ray for itself (5.8 s against 2.5 s)
	$(UV) pip install --compile-bytecode --python $(BIN)/python -c constraints.txt -e '.[dev]'
	@touch $@

# Python's own venv where it is whole, else (Debian without python3-venv) pip into a plain folder.
.uv/bin/uv:
	@$(CHECK_PYTHON)
	@echo "uv is not installed: putting it into .uv"
	@{ $(PYTHON) -m venv .uv && .uv/bin/python -m pip install --quiet uv; } >.uv.log 2>&1 \
	|| { rm -rf .uv && $(PYTHON) -m pip install --quiet --target .uv uv; } >>.uv.log 2>&1 \
	|| { cat .uv.log >&2; rm -rf .uv .uv.log; echo "could not install uv: install it yourself, or python3-venv" >&2; exit 1; }
	@rm -f .uv.log

# pip-audit itself takes what it is not told for nothing to tell.
TELLS = from urllib.request import urlopen; urlopen("https://pypi.org/pypi/pip/24.0/json", timeout=20)

# One clear line instead of a resolver's riddle.
CHECK_PYTHON = $(PYTHON) -c 'import sys; v = sys.version_info[:3]; (3, 10) <= v < (3, 14) or sys.exit( \
	"ray_gossip needs Python 3.10 to 3.13, but $(PYTHON) is %d.%d.%d: name another, as in  make setup PYTHON=python3.11" % v)'
