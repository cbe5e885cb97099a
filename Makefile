# trilift: `make run` lifts a picture, `make test` checks everything. Both set up .venv first, and only once.
#
#   make run                        the example picture → out/chair/mesh.glb
#   make run IMAGE=photo.jpg        your photo → out/photo/mesh.glb
#   make run IMAGE=photo.jpg ARGS="--turntable --resolution 128"
#
# On the way in:
#   PYTHON=python3.12               the Python to build .venv from (3.11 or newer; looked for when not given)
#   TORCH_INDEX=URL                 a package index to take torch from, such as PyTorch's own index of CPU-only builds
#   PIP_ARGS="..."                  passed to every pip install

SHELL := /bin/sh
VENV := .venv
READY := $(VENV)/.ready
PY := $(VENV)/bin/python

IMAGE ?= trilift/examples/chair.png
OUT ?= out
MODEL ?= tiny
ARGS ?=
PYTHON ?=
TORCH_INDEX ?=
PIP_ARGS ?=

# The stamp holds the folder that it was made in: a checkout that was moved or copied sets itself up again.
ifneq ($(shell cat $(READY) 2>/dev/null),$(CURDIR))
.PHONY: $(READY)
endif

.PHONY: help setup run test test-slow lint format clean
.DEFAULT_GOAL := help

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' Makefile
	@echo "  Options: IMAGE=$(IMAGE) OUT=$(OUT) MODEL=$(MODEL) ARGS=... PYTHON=... TORCH_INDEX=... PIP_ARGS=..."

setup: $(READY) ## make .venv with everything in requirements.txt

run: $(READY) ## lift IMAGE into OUT/<name>/mesh.glb
	@$(PY) -m trilift lift "$(IMAGE)" -o "$(OUT)" --model "$(MODEL)" $(ARGS)

test: lint ## lint, types, then all tests but the slow ones
	$(PY) -m pytest

test-slow: $(READY) ## the tests that take minutes or gigabytes
	$(PY) -m pytest -m slow

lint: $(READY) ## ruff (rules and format) and mypy
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

format: $(READY) ## let ruff mend what it can
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

clean: ## remove .venv, out and everything that tools left behind
	rm -rf $(VENV) out build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp is written last, so a set-up that was cut short is taken up again and never taken for a whole one.
$(READY): requirements.txt pyproject.toml
	@rm -f $(READY)
	@$(find_python); $(make_venv)
	$(PY) -m pip install $(PIP_ARGS) $(if $(TORCH_INDEX),--index-url "$(TORCH_INDEX)") "$$(grep '^torch==' requirements.txt)"
	$(PY) -m pip install $(PIP_ARGS) -r requirements.txt
	$(PY) -m pip install $(PIP_ARGS) --no-deps --no-build-isolation -e .
	@printf '%s\n' "$(CURDIR)" > $(READY)

# Sets $$python to the first Python that is new enough, or says what is missing.
pythons := python3 python3.13 python3.12 python3.11 python3.14 python
new_enough := import sys; sys.exit(sys.version_info < (3, 11))
define find_python
python=; \
for name in $(if $(PYTHON),"$(PYTHON)",$(pythons)); do \
  if "$$name" -c '$(new_enough)' >/dev/null 2>&1; then python=$$name; break; fi; \
done; \
if [ -z "$$python" ]; then \
  echo "trilift needs Python 3.11 or newer, and none was found under the name: $(if $(PYTHON),$(PYTHON),$(pythons))." >&2; \
  echo "Install one, or say where it is: make PYTHON=/path/to/python3.12 ..." >&2; \
  exit 1; \
fi
endef

# Keeps a .venv that works (right version, with pip) and builds anything else anew.
define make_venv
if ! { $(PY) -c '$(new_enough)' && $(PY) -m pip --version; } >/dev/null 2>&1; then \
  if ! "$$python" -c 'import venv, ensurepip' >/dev/null 2>&1; then \
    echo "$$python has no venv or ensurepip. On Debian and Ubuntu: apt-get install python3-venv" >&2; \
    exit 1; \
  fi; \
  echo "making $(VENV) with $$("$$python" --version)"; \
  rm -rf $(VENV); \
  "$$python" -m venv $(VENV); \
fi
endef
