"""Each module of the source has tests that one finds by its name.

The tests of `src/lockd/ROOM/X.py` are in a `test_X*.py` under `tests/ROOM`.
"""

import pytest

from support.places import ROOT, TESTS

SOURCE = ROOT / "src" / "lockd"

ELSEWHERE = {
    # Parts of `core`, which has no other users: its tests look at the bytes.
    "client/awaited.py": "client/test_core.py",
    "client/reply.py": "client/test_core.py",
    "client/requests.py": "client/test_core.py",
    # The same cases for all clients: `test_blocking`, `test_aio_*` run them.
    "client/tasks/link.py": "client/conformance.py",
    "client/threads/connection.py": "client/conformance.py",
    # Methods, grants: one table of cases for both clients.
    "client/tasks/methods.py": "client/test_methods.py",
    "client/threads/methods.py": "client/test_methods.py",
    "client/threads/grants.py": "client/test_grants.py",
    "client/threads/bell.py": "client/threads/test_link.py",  # wakes the link's threads
    "ctl/others.py": "client/test_paths.py",  # beside what else finds a daemon
    "ctl/render.py": "ctl/test_terminal.py",  # seen in what every command prints
    # Each daemon of a test is put together, begun and handed over by these.
    "daemon/assembly.py": "daemon/test_service.py",
    "daemon/start/clock.py": "daemon/served.py",
    "daemon/start/serve.py": "daemon/survival/test_revival.py",
    "daemon/start/takeover.py": "daemon/survival/test_handover.py",
    "daemon/stores/stores.py": "daemon/survival/test_revival.py",
    "daemon/clients/keeping.py": "daemon/survival/test_keeping.py",  # does nothing
    "daemon/survival/remains.py": "daemon/survival/test_revival_damage.py",
    "daemon/system/jobs.py": "daemon/requests/test_runtime.py",  # slow anchors, too
    "daemon/requests/anchors.py": "daemon/requests/test_runtime.py",
    # Values and tables without behaviour of their own.
    "__main__.py": "test_parts.py",  # its entries are the parts
    "term_types.py": "test_terms.py",
    "engine/effects.py": "engine/test_commands.py",
    "engine/values.py": "engine/test_lock_engine.py",
    "engine/recovery/shapes.py": "engine/recovery/test_snapshot.py",
    # Its parts, which only `cycles` has in use.
    "engine/waits/obstacles.py": "engine/waits/test_cycles.py",
    "engine/waits/play.py": "engine/holding/test_slots.py",
    "libvirt/arguments.py": "libvirt/test_connection.py",
    "libvirt/errors.py": "libvirt/test_connection.py",
    "libvirt/procedures.py": "libvirt/test_connection.py",
    "protocol/calls.py": "protocol/test_connection.py",
    "lockspaces/refusals.py": "lockspaces/test_files.py",  # of calls that fail
    "lockspaces/open_files.py": "lockspaces/test_files.py",
    "lockspaces/base.py": "lockspaces/test_directory.py",  # what its kinds share
}
"""Modules that are tested under another name, where, and why."""

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


def test_helpers_lie_beside_their_room_or_in_support() -> None:
    flat = {path.name for path in TESTS.glob("*.py")}
    assert {name for name in flat if not name.startswith("test_")} == {"conftest.py"}


@pytest.mark.parametrize("module", ["daemon/nothing.py", "nothing.py"])
def test_module_without_tests_is_seen(module: str) -> None:
    assert not is_found(module)
