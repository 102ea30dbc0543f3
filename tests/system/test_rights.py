"""Who may do what: real users against a real daemon, operation by operation.

What is expected stands in a table of its own here, written from the protocol's
clauses 6.12 to 6.16, and not derived from the code.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from conftest import StartDaemon
from support.daemon_process import DaemonProcess
from support.places import TESTS
from support.wire_client import (
    NOBODY,
    Refusal,
    WireClient,
    connected_as,
    wait_for_sessions,
    wait_for_waiters,
)

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0, reason="only root can connect as another user"
)

ALICE, BOB, CAROL = 70_001, 70_002, 70_003
STAFF, GUESTS = 70_100, 70_200
WHO: dict[str, tuple[int, int, tuple[int, ...]]] = {
    "root": (0, 0, ()),
    "alice": (ALICE, ALICE, ()),
    "bob of staff": (BOB, STAFF, ()),
    "carol, also a guest": (CAROL, CAROL, (5, GUESTS, 6)),
    "nobody": (NOBODY, NOBODY, ()),
}

RIGHTS = f"""
allow_users.acquire = [{ALICE}]
allow_groups.share = [{STAFF}]
allow_groups.list = [{GUESTS}, {STAFF}]
allow_users.details = [{BOB}]
allow_users.break = [{BOB}]
"""
CONFIG = """
[lockspaces.open]
kind = "memory"
[lockspaces.memory]
kind = "memory"
{rights}
[lockspaces.directory]
kind = "directory"
path = "{place}"
{rights}
[lockspaces.shown]
kind = "memory"
allow_users.acquire = ["root"]
allow_users.share = []
allow_users.list = ["*"]
[lockspaces.direct]
allow_users.acquire = [{alice}]
"""
Y, DENIED, ABSENT = "yes", "denied", "not_found"
OPERATIONS = ("exclusive", "shared", "query", "list", "watch", "break", "sees reason")
TABLE: dict[tuple[str, str], tuple[str, ...]] = {
    ("open", "root"): (Y, Y, Y, Y, Y, Y, Y),
    ("open", "alice"): (Y, Y, Y, Y, Y, DENIED, "no"),
    ("open", "nobody"): (Y, Y, Y, Y, Y, DENIED, "no"),
    ("limited", "root"): (Y, Y, Y, Y, Y, Y, Y),
    ("limited", "alice"): (Y, Y, DENIED, DENIED, DENIED, ABSENT, "no"),
    ("limited", "bob of staff"): (DENIED, Y, Y, Y, Y, Y, Y),
    ("limited", "carol, also a guest"): (DENIED, DENIED, Y, Y, Y, DENIED, "no"),
    ("limited", "nobody"): (ABSENT, ABSENT, ABSENT, ABSENT, ABSENT, ABSENT, "no"),
    ("shown", "root"): (Y, Y, Y, Y, Y, Y, Y),
    ("shown", "alice"): (DENIED, DENIED, Y, Y, Y, DENIED, "no"),
    ("direct", "root"): (Y, Y, Y, Y, Y, Y, Y),
    ("direct", "alice"): (Y, Y, DENIED, DENIED, DENIED, ABSENT, "no"),
    # It is no secret that there is one: its paths look like missing files else.
    ("direct", "nobody"): (DENIED, DENIED, DENIED, DENIED, DENIED, ABSENT, "no"),
}
CASES = [
    (lockspace, who, operation, expected)
    for (row, who), expectations in TABLE.items()
    for lockspace in (["memory", "directory"] if row == "limited" else [row])
    for operation, expected in zip(OPERATIONS, expectations, strict=True)
]


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """A directory that everybody can reach, with files that are Alice's."""
    place = Path(tempfile.mkdtemp(prefix="lockd-test-"))
    place.chmod(0o755)
    (place / "locks").mkdir(mode=0o755)
    for name in ("free", "taken"):
        (place / name).touch()
        os.chown(place / name, ALICE, ALICE)
    yield place
    shutil.rmtree(place)


@pytest.fixture(scope="module")
def daemon(place: Path) -> Iterator[DaemonProcess]:
    config = CONFIG.format(rights=RIGHTS, place=place / "locks", alice=ALICE)
    daemon = DaemonProcess(place, config)
    daemon.start()
    yield daemon
    daemon.close()


def attempt(client: WireClient, method: str, **params: Any) -> tuple[str, Any]:
    try:
        return Y, client.call(method, **params)
    except Refusal as refusal:
        return refusal.code, refusal.sentence


def outcome(client: WireClient, space: str, operation: str, place: Path) -> str:
    free, taken = "free", "taken"
    if space == "direct":
        free, taken = f"{place}/free", f"{place}/taken"
    if operation in ("exclusive", "shared"):
        found = attempt(
            client, "acquire", lockspace=space, resource=free, mode=operation
        )
    elif operation == "query":
        found = attempt(client, "query", lockspace=space, resource=free)
    elif operation in ("list", "watch"):
        found = attempt(client, operation, lockspace=space)
    else:
        found = attempt(client, "query", lockspace=space, resource=taken)
        if operation == "sees reason":
            holder = found[1]["holders"][0] if found[0] == Y else {"reason": None}
            return Y if holder["reason"] == "secret" else "no"
    return found[0]


@pytest.mark.parametrize(("space", "who", "operation", "expected"), CASES)
def test_everybody_may_do_what_is_configured_and_nothing_else(
    daemon: DaemonProcess,
    place: Path,
    space: str,
    who: str,
    operation: str,
    expected: str,
) -> None:
    with ExitStack() as stack:
        holder = stack.enter_context(WireClient(daemon.socket))
        taken = f"{place}/taken" if space == "direct" else "taken"
        grant = holder.acquire(taken, lockspace=space, reason="secret", label="x")
        client = stack.enter_context(connected_as(daemon.socket, *WHO[who]))
        if operation == "break":
            token = grant["fencing_token"]
            code, said = attempt(client, "break", fencing_token=token, reason="x")
            assert code == expected, said
            lost = holder.call("query", lockspace=space, resource=taken)
            assert (lost["holder_count"] == 0) == (expected == Y)
        else:
            assert outcome(client, space, operation, place) == expected
        client.close()
        wait_for_sessions(holder, 1)


@pytest.mark.parametrize("method", ["acquire", "release", "query", "list", "watch"])
def test_lockspace_without_rights_looks_like_one_that_is_not(
    daemon: DaemonProcess, method: str
) -> None:
    params = {} if method in ("list", "watch") else {"resource": "a"}
    with connected_as(daemon.socket, *WHO["nobody"]) as client:
        client.call("hello", protocol=1, client="test")
        hidden = client.refusal(method, lockspace="memory", **params)
        absent = client.refusal(method, lockspace="no such", **params)
        assert hidden.code == absent.code == "not_found"
        assert hidden.sentence == absent.sentence.replace("no such", "memory")
        assert hidden.facts == absent.facts
        names = [x["name"] for x in client.call("list_lockspaces")["lockspaces"]]
        assert names == ["default", "open", "shown"]


def test_token_in_a_hidden_lockspace_looks_like_one_that_is_not(
    daemon: DaemonProcess,
) -> None:
    with (
        WireClient(daemon.socket) as root,
        connected_as(daemon.socket, *WHO["nobody"]) as client,
    ):
        client.call("hello", protocol=1, client="test")
        token = root.acquire("taken", lockspace="memory")["fencing_token"]
        hidden = client.refusal("break", fencing_token=token, reason="x")
        absent = client.refusal("break", fencing_token=token + 1, reason="x")
        assert hidden.code == absent.code == "not_found"
        assert hidden.sentence == absent.sentence.replace(str(token + 1), str(token))
        assert hidden.facts == absent.facts


def test_who_may_not_list_learns_only_that_it_is_taken(daemon: DaemonProcess) -> None:
    with (
        WireClient(daemon.socket) as root,
        connected_as(daemon.socket, *WHO["alice"]) as alice,
    ):
        alice.call("hello", protocol=1, client="test")
        root.call("register", owner={"name": "secret-owner"})
        root.acquire("taken", lockspace="memory", reason="secret")
        refusal = alice.refusal(
            "acquire", lockspace="memory", resource="taken", timeout=0
        )
        assert refusal.code == "busy"
        assert "secret" not in refusal.sentence
        assert refusal.facts == {}


def test_reasons_of_others_are_in_no_answer(daemon: DaemonProcess) -> None:
    with (
        WireClient(daemon.socket) as root,
        connected_as(daemon.socket, *WHO["alice"]) as alice,
        connected_as(daemon.socket, *WHO["alice"]) as herself,
    ):
        for client in (alice, herself):
            client.call("hello", protocol=1, client="test")
        root.acquire("gone", lockspace="open", reason="secret", label="secret")
        root.call("release", lockspace="open", resource="gone")
        root.acquire("taken", lockspace="open", reason="secret", label="secret")
        own = {"lockspace": "open", "reason": "mine", "label": "mine"}
        alice.call("watch")
        alice.acquire("own", **own)
        said = [
            alice.refusal("acquire", lockspace="open", resource="taken", timeout=0),
            alice.call("query", lockspace="open", resource="taken"),
            alice.call("query", lockspace="open", resource="gone"),
            alice.call("list"),
            alice.call("list_sessions"),
            alice.kept,
        ]
        told = json.dumps([vars(x) if isinstance(x, Refusal) else x for x in said])
        assert "secret" not in told + str(said[0])
        assert "mine" in str(herself.call("query", lockspace="open", resource="own"))
        assert "mine" in str(root.call("query", lockspace="open", resource="own"))


def test_cycle_leaves_out_what_may_not_be_listed(daemon: DaemonProcess) -> None:
    with ExitStack() as stack:
        enter = stack.enter_context
        first, second = (enter(WireClient(daemon.socket)) for _ in range(2))
        asker = enter(connected_as(daemon.socket, *WHO["nobody"]))
        asker.call("hello", protocol=1, client="test")
        asker.acquire("hers", lockspace="open")
        first.acquire("first", lockspace="open")
        second.acquire("secret", lockspace="memory")
        first.send("acquire", lockspace="memory", resource="secret")
        wait_for_waiters(second, "secret", 1, lockspace="memory")
        second.send("acquire", lockspace="open", resource="hers")
        wait_for_waiters(first, "hers", 1, lockspace="open")
        refusal = asker.refusal("acquire", lockspace="open", resource="first")
        assert refusal.code == "deadlock"
        assert "secret" not in refusal.sentence + json.dumps(refusal.facts)
        assert "memory" not in refusal.sentence + json.dumps(refusal.facts)
        assert refusal.facts is not None
        names = [link["resource"] for link in refusal.facts["cycle"]]
        assert sorted(names, key=str) == [None, "first", "hers"]


def test_sessions_show_only_counts_that_may_be_seen(daemon: DaemonProcess) -> None:
    with (
        WireClient(daemon.socket) as root,
        connected_as(daemon.socket, *WHO["nobody"]) as client,
    ):
        root.acquire("a", lockspace="memory")
        root.acquire("a", lockspace="open")
        session = root.call("hello", protocol=1, client="test")["session"]
        for viewer, seen in ((client, 1), (root, 2)):
            sessions = viewer.call("list_sessions")["sessions"]
            (held,) = (x["held"] for x in sessions if x["session"] == session)
            assert held == seen


# Foreign namespaces.

FOREIGN = """
import sys
sys.path[:0] = [{tests!r}]
from support.wire_client import WireClient
with WireClient({socket!r}) as client:
    client.acquire("foreign")
    (me,) = client.call("query", resource="foreign")["holders"]
    refusals = [
        client.refusal("disconnect", session=1, reason="x"),
        client.refusal("register", owner={{"name": "x", "pid": 1}}),
        client.refusal("acquire", lockspace="killed", resource="a"),
        client.refusal("acquire", lockspace="direct", resource="/etc/shadow"),
    ]
    print(me["uid"], [refusal.code for refusal in refusals])
"""


@pytest.mark.parametrize(
    "namespace",
    [
        ["--user", "--map-root-user"],
        ["--pid", "--fork"],
        ["--user", "--map-root-user", "--pid", "--fork", "--mount-proc"],
    ],
)
@pytest.mark.parametrize("through_admin_socket", [False, True])
def test_process_of_another_namespace_is_nobody(
    tmp_path: Path, namespace: list[str], through_admin_socket: bool
) -> None:
    daemon = DaemonProcess(
        tmp_path,
        f"admin_socket = '{tmp_path}/admin.sock'\n"
        "[lockspaces.killed]\nkind = 'memory'\non_disconnect = 'kill'\n",
    )
    daemon.start()
    try:
        path = tmp_path / "admin.sock" if through_admin_socket else daemon.socket
        tests = str(TESTS)
        script = FOREIGN.format(tests=tests, socket=str(path))
        done = subprocess.run(
            ["unshare", *namespace, sys.executable, "-c", script],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.stderr == ""
        denied = ["denied", "denied", "denied", "denied"]
        assert done.stdout == f"{NOBODY} {denied}\n"
    finally:
        daemon.close()


def test_admin_socket_is_for_its_owner_and_gives_every_right(tmp_path: Path) -> None:
    admin_socket = tmp_path / "admin.sock"
    daemon = DaemonProcess(tmp_path, f"admin_socket = '{admin_socket}'\n")
    daemon.start()
    try:
        mode = admin_socket.stat().st_mode & 0o777
        assert mode == 0o600
        with (
            pytest.raises(PermissionError),
            connected_as(admin_socket, *WHO["nobody"], mode=mode),
        ):
            pass
        # Whoever opens the socket to others makes them admins.
        with (
            WireClient(daemon.socket) as holder,
            connected_as(admin_socket, *WHO["nobody"]) as admin,
        ):
            token = holder.acquire("a", reason="secret")["fencing_token"]
            assert "secret" in str(admin.call("list"))
            admin.call("break", fencing_token=token, reason="x")
            assert holder.notification("lost")["cause"] == "broken"
    finally:
        daemon.close()


def test_reload_changes_rights(start_daemon: StartDaemon) -> None:
    daemon = start_daemon()
    with connected_as(daemon.socket, *WHO["bob of staff"]) as bob:
        bob.acquire("a")
        daemon.config.write_text(
            f"[lockspaces.default]\nallow_groups.share = [{STAFF}]\n"
            f"allow_users.acquire = [{ALICE}]\n"
        )
        daemon.reload()
        assert bob.refusal("acquire", resource="b").code == DENIED
        bob.acquire("b", mode="shared")
        bob.call("release", resource="a")
    with connected_as(daemon.socket, *WHO["alice"]) as alice:
        alice.acquire("a")


@pytest.mark.parametrize("change", ["reload", "upgrade"])
def test_rights_stay_when_a_configuration_is_refused(
    start_daemon: StartDaemon, change: str
) -> None:
    daemon = start_daemon("[lockspaces.default]\nallow_users.acquire = []\n")
    with connected_as(daemon.socket, *WHO["alice"]) as alice:
        assert alice.refusal("acquire", resource="a").code == DENIED
        daemon.config.write_text(
            "[lockspaces.new]\nkind = 'directory'\npath = '/dev/null/such'\n"
        )
        number = signal.SIGHUP if change == "reload" else signal.SIGUSR1
        os.kill(daemon.pid, number)
        assert "/dev/null" in daemon.wait_for_line("/dev/null")
        assert alice.refusal("acquire", resource="a").code == DENIED


@pytest.mark.parametrize("change", ["reload", "upgrade"])
def test_file_does_not_open_a_lockspace_that_an_admin_made_of_another_kind(
    start_daemon: StartDaemon, tmp_path: Path, change: str
) -> None:
    (tmp_path / "disk").touch()
    daemon = start_daemon()
    with (
        WireClient(daemon.socket) as root,
        connected_as(daemon.socket, *WHO["alice"]) as alice,
    ):
        root.call("create_lockspace", name="disks", kind="direct")
        root.acquire(str(tmp_path / "disk"), lockspace="disks")
        daemon.config.write_text("[lockspaces.disks]\nkind = 'memory'\n")
        if change == "reload":
            daemon.reload()
        else:
            daemon.upgrade()
        assert '[lockspaces.disks] cannot change "kind" while somebody holds' in str(
            daemon.said
        )
        refusal = alice.refusal(
            "acquire", lockspace="disks", resource=str(tmp_path / "disk")
        )
        assert refusal.code == ABSENT


@pytest.mark.parametrize("timeout", [0, None])
def test_who_may_lock_by_path_gets_no_more_than_his_own_rights_to_files(
    start_daemon: StartDaemon, place: Path, timeout: float | None
) -> None:
    """Nor does he wait for it, in the way of those who have them."""
    daemon = start_daemon(
        f"[lockspaces.direct]\nallow_users.acquire = [{ALICE}]\n"
        f"allow_users.list = [{ALICE}]\n"
    )
    secret, public, own = (place / name for name in ("secret", "public", "own"))
    for file, bits in ((secret, 0o600), (public, 0o644), (own, 0o600)):
        file.touch()
        file.chmod(bits)
    os.chown(own, ALICE, ALICE)
    state = daemon.state_dir / "epoch"
    assert state.exists()
    with (
        WireClient(daemon.socket) as root,
        connected_as(daemon.socket, *WHO["alice"]) as alice,
    ):
        root.acquire(str(secret), lockspace="direct", mode="shared")
        for path, mode, expected in (
            (secret, "shared", DENIED),
            (secret, "exclusive", DENIED),
            (public, "exclusive", DENIED),
            (public, "shared", Y),
            ("/dev/null", "exclusive", "invalid"),
            (own, "exclusive", Y),
        ):
            found = attempt(
                alice,
                "acquire",
                lockspace="direct",
                resource=str(path),
                mode=mode,
                timeout=timeout,
            )
            assert found[0] == expected, (path, mode, found)
        convert = {"lockspace": "direct", "resource": str(public), "mode": "exclusive"}
        assert alice.refusal("convert", **convert).code == DENIED
        query = root.call("query", lockspace="direct", resource=str(secret))
        assert query["waiter_count"] == 0
        refusal = root.refusal("acquire", lockspace="direct", resource=str(state))
        assert "is lockd's own" in refusal.sentence
