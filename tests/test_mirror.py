"""Each module of the source has tests that one finds by its name.

The tests of `src/lockd/ROOM/X.py` are in a `test_X*.py` under `tests/ROOM`.
"""

import pytest

from support.places import ROOT, TESTS

SOURCE = ROOT / "src" / "lockd"

ELSEWHERE = {
    "aio.py": "client/test_imports.py",  # names of the client, for users
    "client/aio.py": "client/test_trio.py",  # every case of `conformance`
    "client/awaited.py": "client/test_core.py",
    "client/encoding.py": "client/test_core.py",  # what `core` sends and reads
    "client/forking.py": "client/test_fork.py",
    "client/inbox.py": "client/test_core.py",
    "client/reply.py": "client/test_core.py",
    "client/requests.py": "client/test_core.py",
    "client/tasks/link.py": "client/conformance.py",  # for all clients alike
    "client/tasks/locks.py": "client/test_task_locks.py",
    "client/tasks/methods.py": "client/test_methods.py",
    "client/threads/bell.py": "client/test_threads.py",
    "client/threads/connection.py": "client/test_blocking.py",
    "client/threads/grants.py": "client/test_grants.py",
    "client/threads/link.py": "client/conformance.py",
    "client/threads/locks.py": "client/test_locks.py",
    "client/threads/methods.py": "client/test_methods.py",  # made from those of tasks
    "ctl/render.py": "ctl/test_terminal.py",  # what is printed, by every command
    "daemon/activity/life.py": "daemon/survival/test_handover.py",  # what goes on
    "daemon/assembly.py": "daemon/test_service.py",  # every daemon of a test has it
    "daemon/clients/faces.py": "daemon/replies/test_listings.py",
    "daemon/clients/gate.py": "daemon/test_server.py",  # who is turned away there
    "daemon/clients/keeping.py": "daemon/survival/test_keeping.py",  # does nothing
    "daemon/requests/registration.py": "daemon/system/test_processes.py",
    "daemon/requests/reloads.py": "daemon/test_service.py",
    "daemon/requests/sessions.py": "daemon/clients/test_endings.py",
    "daemon/start/clock.py": "daemon/served.py",  # every daemon of a test runs with it
    "daemon/start/serve.py": "daemon/survival/test_revival.py",
    "daemon/start/takeover.py": "daemon/survival/test_handover.py",
    "daemon/stores/stores.py": "daemon/survival/test_revival.py",
    "daemon/system/jobs.py": "daemon/requests/test_runtime.py",  # slow anchors, too
    "engine/commands.py": "engine/test_lock_engine.py",  # values alone
    "engine/effects.py": "engine/test_lock_engine.py",  # values alone
    "engine/mending.py": "engine/test_records.py",  # damaged ones
    "libvirt/errors.py": "libvirt/test_connection.py",  # a table
    "libvirt/procedures.py": "libvirt/test_connection.py",  # a table
    "lockspaces/base.py": "lockspaces/test_directory.py",  # what its kinds share
    "protocol/complaints.py": "protocol/test_connection.py",  # every parameter
    "utf8.py": "test_names.py",  # in a program of another encoding
}
"""Modules that are tested under another name, and where."""

MODULES = sorted(
    str(path.relative_to(SOURCE))
    for path in SOURCE.rglob("*.py")
    if path.name != "__init__.py"
)


def is_found(module: str) -> bool:
    folder, _, name = module.removesuffix(".py").rpartition("/")
    return any((TESTS / folder).rglob(f"test_{name}*.py"))


def test_module_has_tests_of_its_name() -> None:
    missing = [x for x in MODULES if not is_found(x) and x not in ELSEWHERE]
    assert not missing, "write tests/ROOM/test_NAME.py"


def test_modules_that_are_tested_elsewhere_are_few_and_are() -> None:
    assert ELSEWHERE.keys() <= set(MODULES)
    assert not [x for x in ELSEWHERE if is_found(x)], "it has tests of its name by now"
    assert not [x for x in ELSEWHERE.values() if not (TESTS / x).is_file()]


@pytest.mark.parametrize("module", ["daemon/nothing.py", "nothing.py"])
def test_module_without_tests_is_seen(module: str) -> None:
    assert not is_found(module)
