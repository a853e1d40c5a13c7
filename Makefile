# The commands of the README. Everything runs in .venv, which is created on first use.
IMAGES ?= examples/images
# What to change in pictures, which are edited then, as in make run N=5 PROMPT="make the hearts green"
PROMPT ?=
export PROMPT
N ?=
CONFIG ?= configs/demo$(if $(PROMPT),-edit).yaml
ARGS ?=
# A file of its own for each, so that the first run of another configuration is not refused.
DEMO = $(basename $(notdir $(filter $(foreach name,demo demo-edit,$(name) configs/$(name).yaml %/configs/$(name).yaml),$(CONFIG))))
DEMO_OUTPUT = $(if $(DEMO), --output output/$(DEMO)/annotations.csv)
EDIT = $(if $(N), --limit $(N))$(if $(PROMPT), --set "edit_image.prompt=$$PROMPT")

IS_SUPPORTED = import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))
PYTHON ?= $(firstword $(foreach name,python3 python3.13 python3.12 python3.11,\
  $(if $(shell $(name) -c '$(IS_SUPPORTED)' 2>/dev/null && echo yes),$(name))) python3)
# The versions that the tests ran on. `make venv CONSTRAINTS=` installs the newest that pyproject.toml allows.
CONSTRAINTS ?= constraints.txt
PIP = .venv/bin/pip install $(if $(CONSTRAINTS),--constraint $(CONSTRAINTS))

# Runs benchmarks one after the other, continues if one fails, and prints their output at the end.
define tables
@rm -f output/$(1).md; status=0; \
for each in $(2); do .venv/bin/python benchmarks/$$each >> output/$(1).md || status=1; done; \
cat output/$(1).md; exit $$status
endef

.PHONY: help run test test-long check soak bench bench-gpu venv llama constraints demo-models clean clean-venv

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "%-14s %s\n", $$1, $$2 }' Makefile

run: .venv/run  ## annotate: make run IMAGES=~/photos CONFIG=config.yaml N=100; or edit: make run N=5 PROMPT="..."
	.venv/bin/python run.py "$(IMAGES)" --config "$(CONFIG)"$(DEMO_OUTPUT)$(EDIT) $(ARGS)

# Where a process of the tests dies, xdist would replace it, and may then wait for ever.
test: .venv/dev  ## run the tests, two files at a time
	.venv/bin/pytest --numprocesses 2 --dist loadfile --max-worker-restart 0 $(ARGS)

test-long: .venv/dev  ## run in full what the tests sample: 50 texts of a real language model, 2,000 URLs, kills of a review
	VEC_ALL_TEXTS=1 VEC_ALL_URLS=1 VEC_REVIEW_KILLS=100 .venv/bin/pytest tests/test_real_models.py \
	  tests/test_url_promises.py tests/test_review_kill.py $(ARGS)

check: .venv/dev  ## check style and types: ruff, mypy
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

soak: .venv/dev  ## kill the worker hundreds of times and compare the rows with an undisturbed run: half an hour
	.venv/bin/python -m benchmarks.soak $(ARGS)

bench: .venv/dev  ## the first tables of docs/benchmarks.md on this machine's CPU, also into output/bench.md: half an hour
	$(call tables,bench,\
	  pipeline.py \
	  "describe.py --only bundled --slots 32 64" \
	  "describe.py --only random --new-tokens 64 --slots 32" \
	  structure.py \
	  "overhead.py --images 100000")

bench-gpu: .venv/dev  ## benchmarks on a GPU: the production models' shapes with random weights; 25 GB of disk
	$(call tables,bench-gpu,"describe.py --gpu" "structure.py --gpu" "pipeline.py --gpu")

venv: .venv/run  ## create the environment only

llama: .venv/run  ## install llama.cpp again, after a GPU driver or nvcc was installed
	scripts/install_llama.sh .venv/bin/python

constraints: .venv/dev  ## write the versions installed in .venv to constraints.txt
	{ echo "# The versions that the tests ran on. \`make constraints\` writes this file."; \
	.venv/bin/pip freeze --exclude-editable --exclude pip | sed -E "s# @ .*/[^/-]*-([0-9][0-9.]*)-.*#==\\1#"; } > constraints.txt

demo-models: .venv/dev  ## train the bundled models from scratch
	.venv/bin/python -m models.demo.train

clean:  ## remove everything in output/
	find output -mindepth 1 ! -name .gitkeep -delete

clean-venv:  ## remove the environment
	rm -rf .venv

# torch comes first: llama.cpp's CUDA wheel needs libraries that come with it.
.venv/run: pyproject.toml constraints.txt
	@$(PYTHON) -c '$(IS_SUPPORTED)' || \
	  (echo "Python 3.11 to 3.13 is needed: make PYTHON=/path/to/python3.12 ..."; exit 1)
	@echo "Installing into .venv: 3 GB of downloads and a C++ build, 5 to 15 minutes, once."
	$(PYTHON) -m venv .venv
	$(PIP) --upgrade pip
	$(PIP) torch torchvision
	scripts/install_llama.sh .venv/bin/python
	$(PIP) --editable '.[all]'
	touch $@

.venv/dev: .venv/run
	$(PIP) --editable '.[dev]'
	touch $@
