.DEFAULT_GOAL := help
.PHONY: help demo test test-all test-mujoco lint type docs docs-pictures wheel bench gpu lock clean

BIN := .venv/bin
READY := .venv/.installed
# Of a new environment; without it, any later one.
PYTHON ?= 3.12
# All but lmms-eval, whose own pins disagree with ours.
EXTRAS := easy-vqa so101-nexus metaworld aloha fetch slurm trl smollm2-dinov2
# Trust the certificates that the system trusts, as pip does.
export UV_SYSTEM_CERTS := 1
# Images of containers forbid bytecode files; then every process that a test starts compiles torch's sources anew.
unexport PYTHONDONTWRITEBYTECODE
UV := $(shell uv --version >/dev/null 2>&1 && echo uv || echo .uv/bin/uv)
# Pythons that pyenv holds answer only when selected, so their folders are put on the path by name.
PYTHONS := $(shell printf '%s:' $${PYENV_ROOT:-$$HOME/.pyenv}/versions/3.1[2-9]*/bin)
# One thread a worker: two workers whose libraries each start a thread per core only slow each other down.
PYTEST := OMP_NUM_THREADS=1 LP_NUM_THREADS=1 $(BIN)/pytest --numprocesses auto --maxprocesses 8

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

demo: $(READY)  ## demonstrations -> co-trained VLA -> success rate in MuJoCo -> outputs/demo/report.html
	$(BIN)/vla demo

outputs/demo/summary.json: | $(READY)
	$(BIN)/vla demo

test: $(READY)  ## the default tests
	$(PYTEST)

test-all: $(READY)  ## every test, also the slow ones
	$(PYTEST) -m "" --timeout 1800

# What the environments import, and no more: the rest of the project pins MuJoCo.
test-mujoco: | $(filter .uv/bin/uv,$(UV))  ## our own environments on the newest MuJoCo, in .venv-mujoco
	PATH="$(PYTHONS)$$PATH" $(UV) venv --quiet --clear --python '>=3.12' .venv-mujoco
	$(UV) pip install --quiet --python .venv-mujoco/bin/python mujoco gymnasium hydra-core jaxtyping \
		beartype hypothesis pytest pytest-timeout
	OMP_NUM_THREADS=1 LP_NUM_THREADS=1 .venv-mujoco/bin/python -m pytest --quiet tests/test_envs.py tests/test_axes.py

lint: $(READY)  ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

type: $(READY)  ## mypy
	$(BIN)/mypy

docs: $(READY)  ## the documentation site -> site/index.html; fails on a broken link
	$(UV) pip install --quiet --python $(BIN)/python --group docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

docs-pictures: outputs/demo/summary.json  ## the pictures of the tasks and of the demo, and the diagrams in docs/
	$(BIN)/python -m vla.envs.contact_sheet docs/tasks.png
	$(BIN)/python docs/demo_picture.py outputs/demo docs/demo.png
	$(BIN)/python docs/diagrams.py

wheel: $(READY)  ## the wheel -> dist/
	$(BIN)/python -m build --wheel

bench: $(READY)  ## timings of the parts that must be fast
	$(BIN)/vla bench env

gpu: $(READY)  ## everything that needs a GPU, in under 8 minutes -> docs/results/gpu.json
	mkdir -p docs/results
	$(BIN)/vla bench gpu json=docs/results/gpu.json

lock: | $(filter .uv/bin/uv,$(UV))  ## pin what pyproject.toml asks for
	$(UV) pip compile pyproject.toml $(EXTRAS:%=--extra %) --group dev --python-version 3.12 \
		--no-header --no-annotate -o requirements.lock

clean:  ## remove caches and builds (not outputs/, not .venv)
	rm -rf build dist site *.egg-info .coverage .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find vla envs policies datasets configs tests examples -name __pycache__ -prune -exec rm -rf {} +

$(READY): pyproject.toml requirements.lock | $(filter .uv/bin/uv,$(UV))
	@test -x $(BIN)/python || PATH="$(PYTHONS)$$PATH" $(UV) venv --quiet --python $(PYTHON) .venv \
		|| PATH="$(PYTHONS)$$PATH" $(UV) venv --quiet --python '>=3.12' .venv
	$(UV) pip install --quiet --python $(BIN)/python -r requirements.lock
	$(UV) pip install --quiet --python $(BIN)/python --no-deps --editable .
	@touch $@

# A folder of its own: pip allows that also where it refuses to touch the system's packages.
.uv/bin/uv:
	python3 -m pip install --quiet --target .uv uv
