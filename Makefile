# The commands of the README. Everything runs in .venv, made on first use.
IMAGES ?= examples/images
CONFIG ?= configs/demo.yaml
ARGS ?=

IS_SUPPORTED = import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))
PYTHON ?= $(firstword $(foreach name,python3 python3.13 python3.12 python3.11,\
  $(if $(shell $(name) -c '$(IS_SUPPORTED)' 2>/dev/null && echo yes),$(name))) python3)
GPU_BUILD := $(if $(and $(shell command -v nvidia-smi),$(shell command -v nvcc)),-DGGML_CUDA=on -DCMAKE_CUDA_ARCHITECTURES=native)
LLAMA_CMAKE_ARGS ?= $(GPU_BUILD) -DLLAVA_BUILD=OFF -DCMAKE_PROJECT_llama_cpp_INCLUDE=$(CURDIR)/scripts/llama_build.cmake
PIP = CMAKE_ARGS="$(LLAMA_CMAKE_ARGS)" CMAKE_BUILD_PARALLEL_LEVEL=$(shell getconf _NPROCESSORS_ONLN) .venv/bin/pip install

# Runs benchmarks one after the other, also past one that fails, and prints what they found last.
define tables
@rm -f output/$(1).md; status=0; \
for each in $(2); do .venv/bin/python benchmarks/$$each >> output/$(1).md || status=1; done; \
cat output/$(1).md; exit $$status
endef

.PHONY: help run test check soak bench bench-gpu venv demo-models clean clean-venv

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "%-14s %s\n", $$1, $$2 }' Makefile

run: .venv/run  ## annotate: make run IMAGES=~/photos CONFIG=config.yaml ARGS="--limit 100"
	.venv/bin/python run.py "$(IMAGES)" --config "$(CONFIG)" $(ARGS)

test: .venv/dev  ## run the tests
	.venv/bin/pytest $(ARGS)

check: .venv/dev  ## look for mistakes without running: ruff, mypy
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

soak: .venv/dev  ## kill the worker hundreds of times and compare the end with an undisturbed run: half an hour
	.venv/bin/python -m benchmarks.soak $(ARGS)

bench: .venv/dev  ## the first tables of docs/benchmarks.md on this machine's CPU, also into output/bench.md: half an hour
	$(call tables,bench,\
	  pipeline.py \
	  "describe.py --only bundled --slots 32 64" \
	  "describe.py --only random --new-tokens 64 --slots 32" \
	  structure.py \
	  "overhead.py --images 100000")

bench-gpu: .venv/dev  ## the same on a GPU: the production models' shapes with random weights; 25 GB of disk
	$(call tables,bench-gpu,"describe.py --gpu" "structure.py --gpu" "pipeline.py --gpu")

venv: .venv/run  ## make the environment only

demo-models: .venv/dev  ## train the bundled models anew
	.venv/bin/python -m models.demo.train

clean:  ## remove outputs
	find output -mindepth 1 ! -name .gitkeep -delete

clean-venv:  ## remove the environment
	rm -rf .venv

.venv/run: requirements.txt
	@$(PYTHON) -c '$(IS_SUPPORTED)' || \
	  (echo "Python 3.11 to 3.13 is needed: make PYTHON=/path/to/python3.12 ..."; exit 1)
	@echo "Installing into .venv: 3 GB of downloads and a C++ build, 5 to 15 minutes, once."
	$(PYTHON) -m venv .venv
	$(PIP) --upgrade pip
	$(PIP) -r requirements.txt
	touch $@

.venv/dev: .venv/run requirements-dev.txt
	$(PIP) -r requirements-dev.txt
	touch $@
