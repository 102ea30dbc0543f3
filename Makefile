# make run     start a daemon here, in the foreground
# make test    everything that needs no root and no system package; tests the source
# make test-compiled   tests of a daemon over the wire, with compiled modules; takes a C compiler
# make test-system   lockd under a real systemd, in namespaces of its own; takes root
# make test-peers [PEERS="filelock tooz..."]   the tests of other lock libraries, fetched from PyPI, with lockd
#              in the place of their locks
# make check   style and types
# make fix     what of the style can be mended by itself
# make sync    write the methods of the client for threads anew, from those for tasks
# make bite [BITE="WORD..."]   plant bugs in the engine and in the locking of files: the tests must
#              find every one; with words, those that the words name
# make campaigns     fencings, live upgrades, floods, calls of libvirt by the thousand; takes root, minutes
# make torture [TORTURE="--kills 10000"]     SIGKILL and worse, under a real systemd; takes root;
#              three minutes of it: TORTURE="--slice"; `lockd keep` in place of systemd: TORTURE="--keep"
# make soak [SECONDS=600] [SOAK="--judge-p99"]     200 clients that misbehave, under a real systemd: does
#              the service keep its word, its memory and its descriptors? takes root
# make bench [BENCH="ROW..."] [COMPILED=no]   speed, beside the peers that are installed, and
#              as `make install` would install it; docs/explanation/speed.md
# make bench-count [AGAINST=REVISION]   instructions of daemon and clients for each request; takes valgrind
# make picture  draw the rooms and folders of the source into docs/explanation/, from the imports; takes graphviz
# make pictures  draw what `lockctl show` and `lockctl top` print today into docs/pictures/
# make docs [SITE=.site]  make a site of the pages in docs/, with Sphinx; warnings are errors
# make compiled     compile the daemon's hot modules in place; takes a C compiler, and a minute
# make interpreted  remove what was compiled in place
# make deb [DEB_VERSION=] [DEB_DEST=dist]   Debian packages for this release: lockd, and
#              python3-lockd, the client alone
# make install [DESTDIR=] [PREFIX=/usr/local] [TARGET_PYTHON=/usr/bin/python3] [COMPILED=no|must]
#              program, units, manual, completion; hot modules are compiled if there is a C compiler
# make uninstall     with the same variables; configuration and state stay
# make lock    write requirements.lock, and those of docs/ and tests/peers/, anew

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# Where no client looks unless it is told: `make run` takes nobody from the daemon of the
# user, or of the host. The state is here, too.
RUN_DIR := $(CURDIR)/.run

# Where `make install` puts things; DESTDIR goes before all of it.
PREFIX ?= /usr/local
# What runs it there: the system's own, which every user can execute.
TARGET_PYTHON ?= $(or $(wildcard /usr/bin/python3),$(PYTHON))
# By the name of its minor version: the program stays with the interpreter that its packages are
# for, when `python3` becomes another one.
INTERPRETER = $(shell $(TARGET_PYTHON) -c 'import os, sys; print(os.path.realpath(sys.executable))')
SYSCONFDIR ?= /etc
BINDIR = $(PREFIX)/bin
LIBDIR = $(PREFIX)/lib/lockd
UNITDIR = $(PREFIX)/lib/systemd
MANDIR = $(PREFIX)/share/man
DOCDIR = $(PREFIX)/share/doc/lockd
# All that they link to is among them.
DOCUMENTS = README.md CHANGELOG.md CONTRIBUTING.md LICENSE SECURITY.md conf/lockd.toml docs/*.md docs/*/*.md \
  docs/*/*.svg docs/*/*.yml docs/*/*.json

.PHONY: run test test-compiled test-system test-peers check fix sync bite campaigns torture soak bench bench-count picture pictures docs lock compiled interpreted deb install uninstall clean

run: $(READY)
	@printf '%s\n' '' '  In another terminal, so that it finds this daemon:' '' \
	  '    export PATH="$(CURDIR)/$(BIN):$$PATH" LOCKD_SOCKET="$(RUN_DIR)/lockd.sock"' '' \
	  '  Take a lock, and see who holds it:' '' \
	  '    lockctl run backup -- sleep 60 &' '    lockctl list' '' \
	  '  Ctrl-C ends the daemon.' ''
	@exec $(BIN)/lockd keep --socket '$(RUN_DIR)/lockd.sock' --state-dir '$(RUN_DIR)'

# Tests wait for daemons more than they compute: one more at a time than there are processors.
# Many execute daemons. To compile the modules anew would be half of such a start.
PYTEST = env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -m pytest -n $$(($$(nproc) + 1)) --dist worksteal
test: $(READY) interpreted
	$(PYTEST) $(TESTS)

# Whatever speaks to a daemon, and the files beneath it.
COMPILED_TESTS = tests/test_compilation.py tests/test_memory.py tests/daemon tests/lockspaces tests/libvirt tests/client \
  tests/ctl tests/system --ignore=tests/system/booted
test-compiled: $(READY) compiled
	$(PYTEST) $(or $(TESTS),$(COMPILED_TESTS))

# What Debian calls what it takes to build its packages.
DEB_PACKAGES = build-essential debhelper dh-python python3-dev python3-venv

# What Debian calls what a booted machine needs.
SYSTEM_PACKAGES = systemd systemd-sysv dbus dbus-user-session libpam-systemd man-db python3 \
  libvirt-daemon-system libvirt-clients qemu-system-x86 qemu-utils strace zsh fish \
  $(DEB_PACKAGES) lintian python3-msgpack

# Whether one of these packages is missing. dpkg knows packages that others only mention, too.
LACKS = dpkg-query -W -f '$${db:Status-Status}\n' $(1) 2>&1 | grep -qvx installed

INSTALL_PACKAGES = if $(call LACKS,$(SYSTEM_PACKAGES)); then apt-get update -qq && \
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
  $(SYSTEM_PACKAGES) >/dev/null; fi

test-system: $(READY)
	@$(INSTALL_PACKAGES)
	$(BIN)/python -m pytest tests/system/booted

test-peers: $(READY) $(VENV)/peers/.ready
	PYTHONPATH=tests $(BIN)/python -m peers $(VENV)/peers/bin/python $(PEERS)

# lockd is linked with its metadata, where tooz looks for drivers.
$(VENV)/peers/.ready: tests/peers/requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)/peers
	$(VENV)/peers/bin/python -m pip install --quiet --disable-pip-version-check \
	  --require-hashes -r tests/peers/requirements.lock
	$(VENV)/peers/bin/python -m pip install --quiet --disable-pip-version-check \
	  --no-deps --no-build-isolation --editable .
	@touch $@

check: $(READY)
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy

fix: $(READY)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

# One source for both clients: see CONTRIBUTING.md.
sync: $(READY)
	$(BIN)/python tools/unasync.py

bite: $(READY)
	PYTHONPATH=tests $(BIN)/python -m engine.bite $(BITE)

campaigns: $(READY)
	for campaign in fencing fencing_stall flood upgrade virtlockd_diff recovery listings top signals reentry strands; do \
	  PYTHONPATH=.:tests $(BIN)/python -m campaigns.$$campaign || exit 1; \
	done

torture: $(READY)
	@$(INSTALL_PACKAGES)
	PYTHONPATH=.:tests $(BIN)/python -m torture $(TORTURE)

SECONDS ?= 600
soak: $(READY)
	@$(INSTALL_PACKAGES)
	PYTHONPATH=.:tests $(BIN)/python -m soak --seconds $(SECONDS) $(SOAK)

bench: $(READY)
	$(BIN)/python tools/compiled.py $(if $(filter no,$(COMPILED)),away src --why COMPILED=no,into src)
	PYTHONPATH=.:tests $(BIN)/python -m benchmarks $(BENCH)

# Another revision is counted interpreted, and so is this one then.
bench-count: $(READY) $(if $(AGAINST),interpreted)
	$(BIN)/python -m benchmarks.count $(if $(AGAINST),--against $(AGAINST))

picture: $(READY)
	@command -v dot >/dev/null || { \
	  echo 'make picture needs dot: install graphviz (Debian: apt-get install graphviz)' >&2; exit 1; }
	$(BIN)/python tools/picture.py

pictures: $(READY)
	PYTHONPATH=tests:tools $(BIN)/python -m ctl.pictures

# Sphinx has an environment of its own: who wants to run lockd shall not wait for it.
SITE ?= .site
DOCS_READY := $(VENV)/docs/.ready
docs: $(DOCS_READY)
	$(VENV)/docs/bin/python -m sphinx --fresh-env --fail-on-warning --keep-going --quiet -d $(VENV)/docs/doctrees docs '$(SITE)'
	@echo 'The site begins at $(SITE)/index.html.'

$(DOCS_READY): docs/requirements.lock
	$(PYTHON) -m venv $(VENV)/docs
	$(VENV)/docs/bin/python -m pip install --quiet --disable-pip-version-check \
	  --require-hashes -r docs/requirements.lock
	@touch $@

# The environment is what the lock file says, checked by hash; lockd itself is linked.
$(READY): requirements.lock pyproject.toml
	@echo 'Building $(VENV), once; pip names each package as it comes.'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check \
	  --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  --no-deps --no-build-isolation --editable .
	@touch $@

compiled: $(READY)
	$(BIN)/python tools/compiled.py into src --must

interpreted: $(READY)
	$(BIN)/python tools/compiled.py away src

# One file for every Python that the project runs on: markers say what is for which.
lock:
	$(PYTHON) -m venv $(VENV)/lock
	$(VENV)/lock/bin/python -m pip install --quiet uv
	$(VENV)/lock/bin/uv pip compile --quiet --upgrade --universal --python-version 3.11 \
	  --extra all --group dev --generate-hashes --no-emit-index-url --no-emit-find-links \
	  --custom-compile-command 'make lock' --output-file requirements.lock pyproject.toml
	$(VENV)/lock/bin/uv pip compile --quiet --upgrade --universal --python-version 3.11 \
	  --extra aio --extra filelock --group docs --generate-hashes --no-emit-index-url --no-emit-find-links \
	  --custom-compile-command 'make lock' --output-file docs/requirements.lock pyproject.toml
	$(VENV)/lock/bin/uv pip compile --quiet --upgrade --universal --python-version 3.11 \
	  --generate-hashes --no-emit-index-url --no-emit-find-links \
	  --custom-compile-command 'make lock' \
	  --output-file tests/peers/requirements.lock tests/peers/requirements.in

# What the packages of this release are called. They run nowhere else: their modules are for its
# Python. A version that nobody else gives them can be told from what a distribution has.
VERSION = $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' src/lockd/__init__.py)
RELEASE = $(shell . /etc/os-release && echo "$$ID$$VERSION_ID" | sed 's/^debian/deb/')
DEB_VERSION ?= $(VERSION)+$(RELEASE)
DEB_DEST ?= dist

# What `make install` installs, and debhelper makes packages of it. dpkg-deb(1) sets no time that
# is later than that of the last commit, so .pyc files cannot go by the time of their source; and
# the daemon could not replace those that do not fit.
DEB_DIR = $(CURDIR)/build/deb
deb: $(READY)
	@if $(call LACKS,$(DEB_PACKAGES)); then \
	  echo 'make deb needs more: apt-get install $(DEB_PACKAGES)' >&2; exit 1; fi
	rm -rf '$(DEB_DIR)'
	mkdir -p '$(DEB_DIR)/package' '$(DEB_DEST)'
	$(MAKE) install DESTDIR='$(DEB_DIR)/stage' PREFIX=/usr SYSCONFDIR=/etc COMPILED=must PYC=unchecked-hash
	cp -R packaging/debian '$(DEB_DIR)/package/'
	ln -s ../../../src '$(DEB_DIR)/package/src'
	sed -e 's|@version@|$(DEB_VERSION)|' \
	  -e "s|@date@|$$(date --rfc-email --date="@$$(git log -1 --format=%ct 2>/dev/null || date +%s)")|" \
	  packaging/debian/changelog > '$(DEB_DIR)/package/debian/changelog'
	cd '$(DEB_DIR)/package' && LOCKD_PYTHON='$(notdir $(INTERPRETER))' dpkg-buildpackage -b -us -uc
	mv '$(DEB_DIR)'/*.deb '$(DEB_DEST)/'

# The program lies in a directory of its own, with the dependencies that the lock file pins, and
# runs with the interpreter that $(TARGET_PYTHON) is, which no environment variable and no
# module of the user can change (-I). What was installed before stays until all that can fail
# is done. Everybody can read all of it, whatever the umask is. What mypyc makes of the hot
# modules lies beside them, unless COMPILED=no or they cannot be compiled; the last line of
# `make install` says which, and compiled.txt there.
#
# PYC is how Python finds out that a compiled file (.pyc) is older than its source (PEP 552);
# by the time of the source, if it is empty.
AS_INSTALLED = sed -e 's|/usr/bin/lock|$(BINDIR)/lock|g' -e 's|/etc/lockd|$(SYSCONFDIR)/lockd|g' \
  -e 's|/usr/share/doc/lockd|$(DOCDIR)|g'
COMPLETIONS = bash:bash-completion/completions/lockctl zsh:zsh/site-functions/_lockctl \
  fish:fish/vendor_completions.d/lockctl.fish
NEW_LIBDIR = $(DESTDIR)$(LIBDIR).new
install: $(READY)
	@$(TARGET_PYTHON) -c 'import sys; sys.version_info >= (3, 11) or \
	  sys.exit("lockd needs Python 3.11 or later: say where with TARGET_PYTHON=")'
	rm -rf '$(NEW_LIBDIR)'
	install -d '$(DESTDIR)$(BINDIR)' '$(NEW_LIBDIR)' '$(DESTDIR)$(UNITDIR)/system' \
	  '$(DESTDIR)$(UNITDIR)/user' '$(DESTDIR)$(PREFIX)/lib/sysusers.d' \
	  '$(DESTDIR)$(PREFIX)/lib/tmpfiles.d' '$(DESTDIR)$(SYSCONFDIR)/lockd/conf.d'
	$(BIN)/python tools/runtime_requirements.py > '$(NEW_LIBDIR)/requirements.txt'
	$(BIN)/python -m pip --python '$(INTERPRETER)' \
	  install --quiet --disable-pip-version-check --no-warn-script-location --ignore-installed \
	  --require-hashes --no-deps --target '$(NEW_LIBDIR)' \
	  -r '$(NEW_LIBDIR)/requirements.txt'
	rm -rf '$(NEW_LIBDIR)/bin'
	cp -R src/lockd '$(NEW_LIBDIR)/'
	$(BIN)/python tools/compiled.py $(if $(filter no,$(COMPILED)),away '$(NEW_LIBDIR)' \
	  --why COMPILED=no,into '$(NEW_LIBDIR)' --python '$(INTERPRETER)' \
	  $(if $(filter must,$(COMPILED)),--must)) \
	  > '$(NEW_LIBDIR)/compiled.txt' || { cat '$(NEW_LIBDIR)/compiled.txt' >&2; exit 1; }
	find '$(NEW_LIBDIR)' -name __pycache__ -prune -exec rm -rf {} +
	$(INTERPRETER) -m compileall -q -s '$(NEW_LIBDIR)' -p '$(LIBDIR)' '$(NEW_LIBDIR)' \
	  $(if $(PYC),--invalidation-mode $(PYC))
	chmod -R u=rwX,go=rX '$(NEW_LIBDIR)'
	rm -rf '$(DESTDIR)$(LIBDIR)'
	mv '$(NEW_LIBDIR)' '$(DESTDIR)$(LIBDIR)'
	for program in lockd lockctl; do \
	  sed -e 's|@python@|$(INTERPRETER)|' -e 's|@libdir@|$(LIBDIR)|' -e "s|@command@|$$program|" tools/launcher.in \
	    > '$(DESTDIR)$(BINDIR)'/$$program && \
	  chmod 755 '$(DESTDIR)$(BINDIR)'/$$program || exit 1; \
	done
	for unit in systemd/*.service systemd/*.socket systemd/user/*; do \
	  kind=system; case $$unit in systemd/user/*) kind=user;; esac; \
	  $(AS_INSTALLED) $$unit > '$(DESTDIR)$(UNITDIR)'/$$kind/$${unit##*/} && \
	  chmod 644 '$(DESTDIR)$(UNITDIR)'/$$kind/$${unit##*/} || exit 1; \
	done
	install -m 644 systemd/sysusers.d/lockd.conf '$(DESTDIR)$(PREFIX)/lib/sysusers.d/'
	install -m 644 systemd/tmpfiles.d/lockd.conf '$(DESTDIR)$(PREFIX)/lib/tmpfiles.d/'
	for page in man/*.[1-8]; do \
	  install -D -m 644 $$page '$(DESTDIR)$(MANDIR)'/man$${page##*.}/$${page##*/} && \
	  $(AS_INSTALLED) -i '$(DESTDIR)$(MANDIR)'/man$${page##*.}/$${page##*/} || exit 1; \
	done
	for page in $(DOCUMENTS); do \
	  install -D -m 644 $$page '$(DESTDIR)$(DOCDIR)'/$$page || exit 1; \
	done
	$(AS_INSTALLED) -i '$(DESTDIR)$(DOCDIR)/conf/lockd.toml'
	test -e '$(DESTDIR)$(SYSCONFDIR)/lockd/lockd.toml' || \
	  install -m 644 '$(DESTDIR)$(DOCDIR)/conf/lockd.toml' '$(DESTDIR)$(SYSCONFDIR)/lockd/'
	for script in $(COMPLETIONS); do \
	  install -d "$$(dirname '$(DESTDIR)$(PREFIX)/share'/$${script#*:})" && \
	  $(BIN)/python -m lockd.ctl.main completion $${script%%:*} \
	    > '$(DESTDIR)$(PREFIX)/share'/$${script#*:} && \
	  chmod 644 '$(DESTDIR)$(PREFIX)/share'/$${script#*:} || exit 1; \
	done
	@cat '$(DESTDIR)$(LIBDIR)/compiled.txt'

# The configuration and the state stay: they are the operator's. The links by which units and
# their instances are enabled, and other names of units, go with the units.
uninstall:
	rm -rf '$(DESTDIR)$(LIBDIR)' '$(DESTDIR)$(DOCDIR)'
	rm -f '$(DESTDIR)$(BINDIR)/lockd' '$(DESTDIR)$(BINDIR)/lockctl' \
	  '$(DESTDIR)$(PREFIX)'/lib/sysusers.d/lockd.conf '$(DESTDIR)$(PREFIX)'/lib/tmpfiles.d/lockd.conf
	for unit in systemd/*.service systemd/*.socket systemd/user/*; do \
	  kind=system; case $$unit in systemd/user/*) kind=user;; esac; \
	  rm -f '$(DESTDIR)$(UNITDIR)'/$$kind/$${unit##*/}; \
	  links='$(DESTDIR)$(SYSCONFDIR)/systemd'/$$kind; \
	  test ! -e "$$links" || find "$$links" -type l -lname "*/$${unit##*/}" -delete; \
	done
	for page in man/*.[1-8]; do \
	  rm -f '$(DESTDIR)$(MANDIR)'/man$${page##*.}/$${page##*/}; \
	done
	for script in $(COMPLETIONS); do \
	  rm -f '$(DESTDIR)$(PREFIX)/share'/$${script#*:}; \
	done

clean:
	find src -name '*.so' -delete
	rm -rf $(VENV) .run .site .compiled src/lockd/compiled.json .mypy_cache .pytest_cache .ruff_cache .hypothesis
