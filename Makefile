# make run     start a daemon here, in the foreground
# make test    everything that needs no root and no system package
# make check   style and types
# make fix     what of the style can be mended by itself
# make bite    plant bugs in the engine: the tests must find every one
# make bench   speed, beside the peers that are installed
# make lock    write requirements.lock anew, from pyproject.toml

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

STATE_DIR := $(or $(XDG_STATE_HOME),$(HOME)/.local/state)/lockd

# Where the clients look first; without such a directory they have to be told.
RUNTIME_DIR := $(or $(XDG_RUNTIME_DIR),$(shell \
  d=/run/user/$$(id -u); mkdir -p $$d 2>/dev/null && test -w $$d && echo $$d))
SOCKET := $(if $(RUNTIME_DIR),$(RUNTIME_DIR)/lockd/lockd.sock,$(STATE_DIR)/lockd.sock)
LOCKCTL := $(CURDIR)/$(BIN)/lockctl$(if $(RUNTIME_DIR),, --socket $(SOCKET))

.PHONY: run test check fix bite bench lock clean

run: $(READY)
	@printf '\n  Take a lock from another terminal:\n\n    %s run backup -- sleep 60\n' \
	  '$(LOCKCTL)'
	@printf '\n  and see who holds it:\n\n    %s list\n\n  Ctrl-C ends the daemon.\n\n' \
	  '$(LOCKCTL)'
	@exec $(BIN)/lockd --socket '$(SOCKET)' --state-dir '$(STATE_DIR)'

test: $(READY)
	$(BIN)/python -m pytest

check: $(READY)
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy

fix: $(READY)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bite: $(READY)
	$(BIN)/python tests/bite.py

bench: $(READY)
	$(BIN)/python -m benchmarks

# The environment is what the lock file says, checked by hash; lockd itself is linked.
$(READY): requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  --no-deps --no-build-isolation --editable .
	@touch $@

lock:
	$(PYTHON) -m venv $(VENV)/lock
	$(VENV)/lock/bin/python -m pip install --quiet pip-tools
	$(VENV)/lock/bin/pip-compile --quiet --upgrade --extra dev --generate-hashes \
	  --strip-extras --allow-unsafe --no-emit-index-url --no-emit-find-links \
	  --output-file requirements.lock pyproject.toml

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis
