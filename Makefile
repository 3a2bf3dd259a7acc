# Every target works on a bare Debian 12 machine as root: it installs what is missing first.
PYTHON := .venv/bin/python

.DEFAULT_GOAL := help
.PHONY: help setup demo lab lab-down test test-unit test-vm lint bench schema install clean

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup:  ## install the Debian packages and the virtual environment that the other targets need
	@scripts/setup.sh

demo: setup  ## build a lab, drive every kind of traffic through a gateway, show what origins saw, remove the lab
	@$(PYTHON) -m lab.demo

lab: setup  ## start a lab for experiments
	@$(PYTHON) -m lab up

lab-down: setup  ## remove that lab
	@$(PYTHON) -m lab down

test: setup  ## all tests: unit, kernel, datapath, lab; two files at a time
	# A crashed process ends the run: xdist may wait forever for its replacement.
	$(PYTHON) -m pytest --numprocesses=2 --dist=loadfile --no-loadscope-reorder --max-worker-restart=0

test-unit: setup  ## the tests that need no network namespace
	$(PYTHON) -m pytest tests/unit

test-vm: setup  ## the BPF programs and the main kinds of traffic under Debian 12's 6.1 kernel, in a VM
	@scripts/test-vm.sh

lint: setup  ## ruff, mypy, the import rule and clang-format
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy
	.venv/bin/lint-imports --no-logo
	.venv/bin/clang-format --dry-run --Werror bpf/*.h bpf/*.c

bench: setup  ## speed and memory against plain nftables, as ratios measured in one run
	@$(PYTHON) -m bench

schema: setup  ## regenerate docs/enforcer.schema.json from the configuration's models
	$(PYTHON) -m enforcer.config > docs/enforcer.schema.json.new && mv docs/enforcer.schema.json.new docs/enforcer.schema.json

install:  ## install the daemon on this gateway: /opt/enforcer, systemd unit, sample configuration, completion
	@scripts/install.sh

clean:  ## remove the lab, the virtual environment and everything that was generated
	@if [ -x $(PYTHON) ]; then $(PYTHON) -m lab down; fi
	rm -rf .venv build dist *.egg-info .pytest_cache .hypothesis .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
