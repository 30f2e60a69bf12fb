# make quickstart   install into .venv, align the embedded story model, show what changed
# make test         lint, type checks and the tests
# make test-slow    the tests that take long: agents that learn, simulators for thousands of steps, claims from end to end
# make coverage     the tests again, asking for 90 % line coverage of agents/, envs/ and rewards/
# make lint | typecheck | bench | install | clean
#
# A machine without a GPU needs no CUDA; where pip's index has a smaller build of torch for it, name it:
#   make quickstart TORCH="torch==2.13.0+cpu" PIP_ARGS="--extra-index-url <index>"
# PYTHON is the interpreter (3.11 or later) that .venv is made from.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.PHONY: quickstart test test-slow coverage lint typecheck wheel bench install clean

PYTHON ?= python3
TORCH ?= torch==2.13.0
PIP_ARGS ?=

BIN := .venv/bin
PIP := $(BIN)/python -m pip install -q --disable-pip-version-check $(PIP_ARGS) -c constraints.txt

quickstart: .venv/.installed
	$(BIN)/python examples/quickstart.py

test: lint typecheck wheel
	$(BIN)/pytest -n 2 --dist loadfile -m 'not slow and not network'

test-slow: .venv/.dev
	$(BIN)/pytest -n 2 --dist loadfile -m slow

# Tracing lines costs a third more time.
coverage: .venv/.dev
	$(BIN)/pytest -n 2 --dist loadfile -m 'not slow and not network' --cov --cov-fail-under=90

lint: .venv/.dev
	$(BIN)/ruff check .

# The root is the package, so a type checker finds it by its name only through a link.
typecheck: .venv/.dev
	mkdir -p .typing && ln -sfn .. .typing/aligngym
	MYPYPATH=.typing $(BIN)/mypy -p aligngym

# What a user's type checker sees: the wheel, marked by py.typed, in an environment of its own and away from this tree.
wheel: .venv/.dev
	rm -rf build
	$(BIN)/python -m pip wheel -q --disable-pip-version-check --no-deps --no-build-isolation -w build/wheel .
	user=$$(mktemp -d); trap 'rm -rf "$$user"' EXIT; \
	$(BIN)/python -m venv --without-pip "$$user/env"; \
	$(BIN)/python -m pip -q --disable-pip-version-check --python "$$user/env/bin/python" install --no-deps build/wheel/*.whl; \
	printf 'import aligngym\nwrong: int = aligngym.__version__  # type: ignore[assignment]\n' > "$$user/script.py"; \
	mypy=$$PWD/$(BIN)/mypy; cd "$$user"; "$$mypy" --strict --python-executable env/bin/python script.py

bench: .venv/.dev
	$(BIN)/python benchmarks/run.py

install: .venv/.installed

clean:
	rm -rf .venv .typing .mypy_cache .pytest_cache .ruff_cache .coverage build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# $(call apt,PACKAGES) installs system packages, or says which are missing where that takes another user.
define apt
{ [ "$$(id -u)" = 0 ] || { echo "system packages are missing: sudo apt-get install $(1)" >&2; exit 1; }; \
	apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -q -y $(1); }
endef

.venv/.python:
	$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || $(call apt,python3 python3-venv)
	$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit(f"Python 3.11 or later is needed: {sys.version}")'
	$(PYTHON) -m venv .venv
	touch $@

# torch first and pinned: a range would take the newest, whatever else is asked for in the same command.
.venv/.installed: .venv/.python pyproject.toml constraints.txt
	$(PIP) $(TORCH)
	$(PIP) -e .
	touch $@

# Text recognition draws on OpenCV, whose wheel needs two system libraries; live pages are shown by Chromium, and MuJoCo
# renders through EGL. robosuite asks for an old mink, which none of its tasks here needs, and with it for an old NumPy;
# robomimic for torchvision, which brings CUDA along and which its reader of datasets does without.
.venv/.dev: .venv/.installed
	$(PIP) -e '.[dev]'
	$(PIP) numba termcolor qpsolvers tqdm
	$(PIP) --no-deps robosuite mink robomimic
	$(BIN)/python -c 'import cv2' 2>/dev/null || $(call apt,libgl1 libglib2.0-0)
	$(BIN)/python -c 'from aligngym.envs.gui import chromium; chromium.executable()' 2>/dev/null || \
		$(call apt,chromium fonts-liberation fonts-dejavu-core)
	MUJOCO_GL=egl $(BIN)/python -c 'import mujoco; mujoco.GLContext(8, 8).make_current()' 2>/dev/null || \
		$(call apt,libegl1 libegl-mesa0 libgl1-mesa-dri libosmesa6)
	touch $@
