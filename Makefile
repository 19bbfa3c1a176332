SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help build demo test bench gpu-check bench-docs docs-pictures settings-docs soak reliability throughput lint clean distclean

# Which Python makes the virtual environment (3.10 to 3.13); found by itself when not given.
PYTHON ?=
# Of which ROS 2 the wheels are: kilted or jazzy; kilted, or what .venv has, when not given.
ROS ?=
# More arguments for pytest, e.g. PYTEST_ARGS='-k weights -x'.
PYTEST_ARGS ?=
# More arguments for the demo: --view opens the viewer, --view demo.rrd records for it.
DEMO_ARGS ?=
# More arguments for the benchmark.
BENCH_ARGS ?=
# More arguments for the check of the GPU, e.g. GPU_CHECK_ARGS='--json FILE --only speed'.
GPU_CHECK_ARGS ?=
# How long the soak takes, and how many mutated messages it sends.
MINUTES ?= 5
FUZZ ?= 10000
# More arguments for the node's figures, e.g. RELIABILITY_ARGS=--quick.
RELIABILITY_ARGS ?=
# More arguments for the node's throughput, e.g. THROUGHPUT_ARGS='--cases 3'.
THROUGHPUT_ARGS ?=
# Tests run in this many processes, each file in one. Files go in the order of their names: the
# shortest last, as pytest-xdist would have it, are those of a single test, which is the soak.
TEST_WORKERS ?= 2

setup_python := $(or $(PYTHON),python3)
set_up := $(setup_python) tools/set_up.py $(if $(PYTHON),--python '$(PYTHON)') $(if $(ROS),--ros '$(ROS)')

help:  ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 22

build:  ## set everything up: virtual environment, ROS 2 wheels, colcon build
	@$(set_up)

demo: build  ## two simulated cameras, segmented by words that change half-way (DEMO_ARGS=--view)
	@source tools/env.sh && cliptrase demo $(DEMO_ARGS)

test: build  ## the tests (PYTEST_ARGS='...' goes to pytest)
	@source tools/env.sh && pytest -n $(TEST_WORKERS) --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

bench: build  ## the engine's time against the bare encoder's (BENCH_ARGS='--json FILE')
	@source tools/env.sh && cliptrase bench $(BENCH_ARGS)

gpu-check: build  ## whether the engine is right on this GPU, and how fast (GPU_CHECK_ARGS='...')
	@source tools/env.sh && python benchmark/gpu_check.py --json benchmark/results/gpu.json \
		$(GPU_CHECK_ARGS)

bench-docs: build  ## table and plot of docs/performance.md from benchmark/results/
	@source tools/env.sh && python benchmark/figures.py

docs-pictures: build  ## every picture of the documentation, from toybox scenes (docs/images/)
	@source tools/env.sh && python tools/docs_pictures.py

settings-docs: build  ## config/segment.yaml and the parameters of docs/node.md, from the declarations
	@source tools/env.sh && python tools/settings_docs.py

soak: build  ## the node under everything at once for MINUTES=5, with FUZZ=10000 mutated messages
	@source tools/env.sh && python benchmark/reliability/soak.py --minutes $(MINUTES) \
		--fuzz $(FUZZ) --json benchmark/results/soak.json

reliability: build  ## the node's figures, then the table of docs/reliability.md (after a soak)
	@source tools/env.sh && python benchmark/reliability/figures.py $(RELIABILITY_ARGS)

throughput: build  ## the node beside an engine as fast as a GPU, then its tables in docs/performance.md
	@source tools/env.sh && python benchmark/reliability/throughput.py $(THROUGHPUT_ARGS)

lint:  ## ruff: rules and formatting; mypy: types of what others import
	@$(set_up) venv
	@.venv/bin/ruff check . && .venv/bin/ruff format --check . && .venv/bin/mypy

clean:  ## remove what builds and runs made
	rm -rf build install log demo_output *.egg-info

distclean: clean  ## the same, and the virtual environment
	rm -rf .venv
