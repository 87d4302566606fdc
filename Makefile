# make setup | run | test | test-gfpgan | lint | sample-speech | clean
#
# A clean clone must serve within three minutes on two cores, so `make run` installs only what serving needs, and
# two pip processes share the cores: torch with its own requirements, and the rest from a complete list. Byte code is
# left to the first import, which writes only what it needs: that spares more than half of the work.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   ?= .venv
HOST   ?= 127.0.0.1
PORT   ?= 8080
ARGS   ?=
TESTS  ?=

BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --no-compile
RUN := $(VENV)/.run.stamp
DEV := $(VENV)/.dev.stamp
GFPGAN ?= .venv-gfpgan

.PHONY: setup run test test-gfpgan lint sample-speech clean
.DELETE_ON_ERROR:

setup: $(RUN) $(DEV)

run: $(RUN)
	$(BIN)/retalk serve --host $(HOST) --port $(PORT) $(ARGS)

test: $(RUN) $(DEV)
	$(BIN)/python -m pytest $(TESTS)

# GFPGAN and what it drags in stay out of the product's environment, and so out of its tests.
test-gfpgan: $(GFPGAN)/.stamp
	$(GFPGAN)/bin/python -m pytest -c tests/gfpgan/pytest.ini tests/gfpgan

lint: $(RUN) $(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy --explicit-package-bases benchmarks/*.py

sample-speech: $(RUN)
	@tools/system-package 'command -v espeak-ng' espeak-ng
	$(BIN)/python benchmarks/sample_speech.py

clean:
	rm -rf $(VENV) $(GFPGAN) build dist out *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(RUN): requirements/torch.txt requirements/run.txt pyproject.toml
	@test -n '$(PYTHON)' || { echo 'make: no python3 found; install Python 3.11 or newer' >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo 'make: $(PYTHON) is too old; name a Python 3.11 with: make PYTHON=python3.11' >&2; exit 1; }
	@echo 'Setting up $(VENV) (a minute or two) ...'
	$(PYTHON) -m venv $(VENV)
	@$(PIP) -r requirements/torch.txt & torch=$$!; \
		$(PIP) --no-deps -r requirements/run.txt; run=$$?; \
		wait $$torch && exit $$run
	$(PIP) --no-deps --no-build-isolation --editable .
	@tools/system-package '$(BIN)/python -c "import cv2"' libgl1 libglib2.0-0
	@touch $@

$(DEV): $(RUN) requirements/dev.txt
	@echo 'Setting up what tests and checks need ...'
	$(PIP) --no-deps -r requirements/dev.txt
	@tools/system-package 'command -v chromium chromium-browser google-chrome google-chrome-stable' chromium fonts-dejavu-core
	@tools/system-package '$(BIN)/playwright --version' libatomic1
	@tools/system-package 'command -v espeak-ng' espeak-ng
	@touch $@

$(GFPGAN)/.stamp: requirements/torch.txt requirements/gfpgan.txt
	@echo 'Setting up $(GFPGAN) ...'
	$(PYTHON) -m venv $(GFPGAN)
	$(GFPGAN)/bin/pip install --quiet --disable-pip-version-check --no-compile -r requirements/torch.txt
	$(GFPGAN)/bin/pip install --quiet --disable-pip-version-check --no-compile --no-deps --no-build-isolation \
		-r requirements/gfpgan.txt
	@touch $@
