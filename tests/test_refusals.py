"""Every error code, provoked where it can be: each reads as one sentence that teaches.

    pytest -s tests/test_refusals.py     prints all of them, for review

What a case provokes must name its subject, and say what to do next where there is
something to do. A code without a case fails the last test here.
"""

import fcntl
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest
import trio

import lockd
from ctl.processes import Lockctl
from lockd import Client, connect, errors
from lockd.client.forking import forked
from lockd.ctl.exits import status_of
from lockd.daemon.replies.sentences import NEXT_STEPS
from lockd.daemon.system.defects import defect
from lockd.errors import (
    ERRORS_BY_CODE,
    CodedError,
    ConfigError,
    ConnectionLostError,
    ForkedSessionError,
    LockdError,
    LockLostError,
    MissingPartError,
    WrongTaskError,
    error_for_code,
)
from support.daemon_process import DaemonProcess
from support.places import DOCS, ROOT
from support.rights import needs_root
from support.wire_client import NOBODY, WireClient, connected_as, wait_for_waiters

CONFIG = """
admin_socket = "{place}/admin.sock"
[limits]
locks_per_session = 3
[lockspaces.files]
kind = "directory"
path = "{place}/locks"
[lockspaces.private]
kind = "memory"
allow_users = {{ list = ["*"], acquire = ["root"] }}
"""


class Scene(NamedTuple):
    """A daemon, somebody who holds `job` in it, and somebody who is refused."""

    daemon: DaemonProcess
    holder: Client
    other: Client
    place: Path


Provoke = Callable[[Scene], object]


class Case(NamedTuple):
    """What is refused, and what its sentence must have.

    Attributes:
        code: of the refusal.
        provoke: asks for what is refused.
        names: what or who it is about.
        step: what to do next; None where nothing is to be done.
    """

    code: str
    provoke: Provoke
    names: tuple[str, ...]
    step: str | None


CASES: dict[str, Case] = {}


def case(code: str, *names: str, step: str | None) -> Callable[[Provoke], Provoke]:
    def keep(provoke: Provoke) -> Provoke:
        CASES[provoke.__name__] = Case(code, provoke, names, step)
        return provoke

    return keep


OUR_PID = f"pid {os.getpid()}"
HOLDER = ("'job'", "the holder", OUR_PID, "exclusively", " for ", "nightly")
FILE = ("the file '", "/locks/")


@case("busy", *HOLDER, step="ask with a timeout to wait in line")
def a_try(scene: Scene) -> None:
    scene.other.acquire("job", timeout=0)


@case("busy", *HOLDER, "allows (1)", "waits for it", step="a greater `max_waiting`")
def a_wait_behind_too_many(scene: Scene) -> None:
    with WireClient(scene.daemon.socket) as waiter, ThreadPoolExecutor(1) as pool:
        waiting = waiter.send("acquire", resource="job")
        with WireClient(scene.daemon.socket) as onlooker:
            wait_for_waiters(onlooker, "job", 1)
        try:
            pool.submit(scene.other.acquire, "job", max_waiting=1).result()
        finally:
            waiter.call("cancel", request=waiting)


def taken(scene: Scene) -> Client:
    client = connect(str(scene.daemon.socket), name="the trainer")
    client.acquire("gpu", slots=1)
    return client


@case(
    "busy",
    "'gpu' has 1 of 1 slots taken by the trainer",
    OUR_PID,
    " for ",
    step="ask with a timeout to wait in line",
)
def a_try_for_a_slot(scene: Scene) -> None:
    with taken(scene):
        scene.other.acquire("gpu", slots=1, timeout=0)


@case(
    "already_held",
    "you already hold or wait for 'gpu'; it has 1 of 2 slots taken by this thread",
    step="holds one slot at most: release it first",
)
def a_second_slot(scene: Scene) -> None:
    scene.other.acquire("gpu", slots=2)
    scene.other.acquire("gpu", slots=2)


@case(
    "invalid",
    f"'gpu' has 1 slot (the trainer, {OUR_PID}, said so); 2 were asked for",
    step="ask for 1, or give no number",
)
def another_number_of_slots(scene: Scene) -> None:
    with taken(scene):
        scene.other.acquire("gpu", slots=2)


@case(
    "invalid",
    "nobody has said how many slots 'pool' has",
    step="or set it in `slots` of lockd.toml(5)",
)
def a_slot_of_an_unknown_number(scene: Scene) -> None:
    scene.other.acquire("pool", slots=True)


@case("invalid", "lockspace 'files' has no slots", step="such as `default`")
def a_slot_of_a_file(scene: Scene) -> None:
    scene.other.acquire("a", lockspace="files", slots=2)


@case("busy", "'files:locked'", "outside lockd", OUR_PID, step="wait in line")
def a_try_of_what_is_locked_outside(scene: Scene) -> None:
    path = scene.place / "locks" / "locked"
    path.touch()
    with path.open("r+") as file:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1)
        scene.other.acquire("locked", lockspace="files", timeout=0)


@case("timeout", *HOLDER, "within 0.01 s", step="have the holder release it")
def a_wait_that_is_too_short(scene: Scene) -> None:
    scene.other.acquire("job", timeout=0.01)


@case("cancelled", "the wait for 'job' was cancelled", step=None)
def a_wait_that_is_taken_back(scene: Scene) -> None:
    with WireClient(scene.daemon.socket) as client:
        client.call("hello", protocol=1, client="test")
        waiting = client.send("acquire", resource="job")
        client.call("cancel", request=waiting)
        refusal = client.refused(waiting)
        raise error_for_code(refusal.code, refusal.sentence, refusal.facts)


@case(
    "deadlock",
    "'theirs'",
    "the holder",
    "who waits for 'mine'",
    step="release something first",
)
def a_circle(scene: Scene) -> None:
    scene.other.acquire("mine")

    def wait() -> None:
        with scene.holder.acquire("theirs"), scene.holder.acquire("mine"):
            pass

    waiting = threading.Thread(target=wait)
    waiting.start()
    with WireClient(scene.daemon.socket) as onlooker:
        wait_for_waiters(onlooker, "mine", 1)
    try:
        scene.other.acquire("theirs")
    finally:
        scene.other.release("mine")
        waiting.join()


@case("already_held", "you already hold", "'job'", "this thread", step="use `convert`")
def asking_twice(scene: Scene) -> None:
    scene.holder.acquire("job")


@case("not_held", *HOLDER, step="acquire it again if it is still needed")
def releasing_what_is_anothers(scene: Scene) -> None:
    scene.other.release("job")


@case("not_held", "fencing token 77", step="acquire it again if it is still needed")
def releasing_a_token_that_is_nobodys(scene: Scene) -> None:
    scene.other.call("release", fencing_token=77)


@case("not_found", "lockspace 'attic'", step="`lockctl spaces`")
def a_lockspace_that_is_not_there(scene: Scene) -> None:
    scene.other.acquire("job", lockspace="attic")


@case("not_found", *FILE, "does not exist", step="create it first")
def a_file_that_shall_not_be_made(scene: Scene) -> None:
    scene.other.acquire("web1", lockspace="files", create=False)


@case("not_found", "process 2147483646", step="register a running process")
def an_owner_that_does_not_run(scene: Scene) -> None:
    scene.other.register("guest", pid=2147483646)


@case("not_found", "session 999", step="`lockctl sessions`")
def a_session_that_is_not_there(scene: Scene) -> None:
    scene.other.disconnect_session(999, "why")


@case("not_found", "token 77", step="`lockctl show NAME`")
def breaking_what_nobody_holds(scene: Scene) -> None:
    scene.other.break_grant(77, "why")


@case("exists", "lockspace 'default'", "memory", step="choose another name")
def a_lockspace_twice(scene: Scene) -> None:
    scene.other.create_lockspace("default", "memory")


@case("exists", *FILE, step="it can be locked as it is")
def a_file_twice(scene: Scene) -> None:
    scene.other.create_resource("web1", lockspace="files")
    scene.other.create_resource("web1", lockspace="files")


@case("in_use", "'files:web1'", "the holder", step="try again when nobody holds it")
def deleting_a_file_that_is_locked(scene: Scene) -> None:
    scene.holder.acquire("web1", lockspace="files")
    scene.other.delete_resource("web1", lockspace="files")


@case("in_use", "'site'", "2 times", "this thread", step="until you hold it once")
def converting_what_is_held_twice(scene: Scene) -> None:
    scene.holder.acquire("site", mode="shared")
    scene.holder.acquire("site", mode="shared")
    scene.holder.convert("site", "exclusive")


@case("denied", "uid 65534", "'private'", step="allow_users.acquire = [65534]")
def what_is_for_others(scene: Scene) -> None:
    _as_nobody(scene, "acquire", resource="a", lockspace="private")


@case("denied", "disconnect", "uid 65534", step="ask as root")
def what_is_for_admins(scene: Scene) -> None:
    _as_nobody(scene, "disconnect", session=1, reason="why")


@case("restricted", "acquire", "this session", step="open another one")
def what_was_given_up(scene: Scene) -> None:
    scene.other.restrict()
    scene.other.acquire("a")


@case("invalid", "the resource 'a\\nb'", step="control or invisible characters")
def a_name_that_is_none(scene: Scene) -> None:
    scene.other.acquire("a\nb")


@case("invalid", "the path '/a/../b'", step="write '/b'")
def a_path_that_is_not_canonical(scene: Scene) -> None:
    scene.other.acquire("/a/../b")


@case("invalid", "acquire", "resource", step="is needed, not both")
def parameters_that_do_not_fit(scene: Scene) -> None:
    scene.other.call("acquire", resource="a", resources=["b"])


@case("invalid", "'default' locks nothing whole", step="locked by its path")
def a_name_that_cannot_be_locked_whole(scene: Scene) -> None:
    scene.other.acquire("job", whole=True)


@case("invalid", "cannot be locked whole", step="lock it without `whole`")
def a_program_that_cannot_be_locked_whole(scene: Scene) -> None:
    path = scene.place / "program"
    path.touch(mode=0o755)
    scene.other.acquire(str(path), whole=True)


@case("invalid", "cannot be upgraded", step="release it first")
def an_upgrade_of_a_whole_file(scene: Scene) -> None:
    path = scene.place / "file"
    path.touch()
    with scene.other.acquire(str(path), mode="shared", whole=True):
        scene.other.convert(str(path), "exclusive")


@case("invalid", "protocol 7", step="send hello with protocol 1")
def another_protocol(scene: Scene) -> None:
    with WireClient(scene.daemon.socket) as client:
        refusal = client.refusal("hello", protocol=7, client="test")
        raise error_for_code(refusal.code, refusal.sentence)


@case(
    "limit", "the limit of 3", "limits.locks_per_session", step="have an admin raise it"
)
def too_many_locks(scene: Scene) -> None:
    for number in range(4):
        scene.other.acquire(f"lock-{number}")


@case(
    "unavailable", "the directory '", "lockspace 'files'", step="have an admin make it"
)
def a_directory_that_is_gone(scene: Scene) -> None:
    shutil.rmtree(scene.place / "locks")
    scene.other.acquire("web1", lockspace="files")


@case("io", *FILE, "exchanged", step="find out which program")
def a_file_that_is_exchanged(scene: Scene) -> None:
    scene.holder.acquire("web1", lockspace="files", mode="shared")
    (scene.place / "locks" / "web1").unlink()
    scene.holder.convert("web1", "exclusive", lockspace="files")


@case("unknown_method", "'juggle'", step="docs/reference/protocol.md 6.1")
def a_method_that_is_not_there(scene: Scene) -> None:
    scene.other.call("juggle")


@case("protocol", "MessagePack", step="connect again")
def bytes_that_mean_nothing(scene: Scene) -> None:
    with WireClient(scene.daemon.socket) as client:
        client.send_bytes(b"\xc1")
        refusal = client.refused(None)
        raise error_for_code(refusal.code, refusal.sentence)


@case("protocol", "65536 bytes", step="send less in one")
def a_message_that_is_too_long(scene: Scene) -> None:
    with WireClient(scene.daemon.socket) as client:
        client.send_bytes(b"\xc6\x00\x10\x00\x00" + bytes(70_000))
        refusal = client.refused(None)
        raise error_for_code(refusal.code, refusal.sentence)


@case("internal", "lockd", step="report it")
def a_defect(scene: Scene) -> None:
    # A daemon without one cannot be made to say it.
    raise defect(ValueError("for the test"))


# What the client itself says.


@case("", "'job'", "it was broken", "it hangs", step=None)
def a_lock_that_is_broken(scene: Scene) -> None:
    grant = scene.holder.query("job")["holders"][0]
    scene.other.break_grant(grant["fencing_token"], "it hangs")
    with scene.holder.lock("second"):  # what was said is heard
        pass
    assert CLAIMED
    CLAIMED.pop().check()


@case("", "/nowhere/lockd.sock", step="start it with `lockd --socket")
def a_daemon_that_is_not_there(scene: Scene) -> None:
    connect("/nowhere/lockd.sock")


@case("", "(Connection refused)", step="give the path of its socket")
def a_file_that_is_no_socket(scene: Scene) -> None:
    connect(scene.place)


@case("invalid", "the path of the socket is empty", step="give the path that lockd")
def a_socket_without_a_name(scene: Scene) -> None:
    connect("")


@case("busy", "'own'", "another thread of this program", step="ask with a timeout")
def a_lock_that_another_thread_has(scene: Scene) -> None:
    with ThreadPoolExecutor(1) as threads, scene.other.lock("own"):
        threads.submit(scene.other.lock("own", timeout=0).__enter__).result()


@case("not_held", "'own'", "another thread of this program", step="acquire it again")
def releasing_by_name_what_another_thread_has(scene: Scene) -> None:
    with ThreadPoolExecutor(1) as threads, scene.other.lock("own"):
        threads.submit(scene.other.release, "own").result()


@case("busy", "'own'", "by this program", step="ask with a timeout")
def a_lock_that_belongs_to_no_thread(scene: Scene) -> None:
    scene.other.lock("own").acquire()
    scene.other.acquire("own", timeout=0)


@case(
    "deadlock",
    "'own'",
    "this thread waits for 'own'",
    "by another thread of this program, who waits for 'mine'",
    step="release something first",
)
def a_circle_of_threads(scene: Scene) -> None:
    def wait() -> None:
        with scene.other.lock("own"), scene.other.lock("mine"):
            pass

    with scene.other.lock("mine"):
        waiting = threading.Thread(target=wait)
        waiting.start()
        with WireClient(scene.daemon.socket) as onlooker:
            wait_for_waiters(onlooker, "mine", 1)
        try:
            scene.other.acquire("own")
        finally:
            scene.other.release("mine")
            waiting.join()


@case("", "event loop", step="open a client in each loop")
def a_client_of_another_loop(scene: Scene) -> None:
    async def leave() -> lockd.aio.Client:
        async with lockd.aio.connect(scene.daemon.socket) as client:
            return client

    trio.run(trio.run(leave).statistics)


@case("not_held", "'own'", "this lock", step="acquire it first")
def releasing_a_lock_twice(scene: Scene) -> None:
    scene.other.lock("own").release()


@case("", "the client is closed", step="open another one")
def a_client_that_is_closed(scene: Scene) -> None:
    client = connect(scene.daemon.socket)
    client.close()
    client.query("job")


@case(
    "", "the daemon closed the connection", step="connect again when `lockctl status`"
)
def a_daemon_that_went_away(scene: Scene) -> None:
    with connect(scene.daemon.socket) as client:
        scene.daemon.stop()
        client.query("job")


@case("", "parent process", "keeps its locks", step="open a connection of its own")
def a_session_of_the_parent(scene: Scene) -> None:
    # What a forked child is told; it cannot raise it here.
    raise forked()


CLAIMED: list[lockd.Grant] = []


def _as_nobody(scene: Scene, method: str, **params: object) -> None:
    with connected_as(scene.daemon.socket, NOBODY, NOBODY) as client:
        refusal = client.refusal(method, **params)
        raise error_for_code(refusal.code, refusal.sentence, refusal.facts)


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    (tmp_path / "locks").mkdir(mode=0o755)
    daemon = DaemonProcess(tmp_path, CONFIG.format(place=tmp_path))
    daemon.start()
    try:
        path = str(daemon.socket)
        with connect(path, name="the holder") as holder, connect(path) as other:
            CLAIMED[:] = [holder.acquire("job", reason="nightly dump")]
            yield Scene(daemon, holder, other, tmp_path)
    finally:
        daemon.close()


def marked(name: str, found: Case) -> object:
    is_others = found.code == "denied"
    return pytest.param(found, id=name, marks=[needs_root] if is_others else [])


@pytest.mark.parametrize("found", [marked(*item) for item in CASES.items()])
def test_refusal_says_what_who_and_what_to_do(scene: Scene, found: Case) -> None:
    with pytest.raises(LockdError) as caught:
        found.provoke(scene)
    error, sentence = caught.value, str(caught.value)
    code = error.code if isinstance(error, CodedError) else ""
    print(f"\n{code or type(error).__name__} ({status_of(error)}): {sentence}")
    assert code == found.code
    check_form(sentence)
    for name in found.names:
        assert name in sentence
    if found.step is not None:
        assert found.step in sentence


def check_form(sentence: str) -> None:
    """One sentence on one line, that begins and ends as `lockctl: ...` wants it."""
    assert sentence.isprintable()
    assert 10 < len(sentence) < 400
    assert sentence[0].islower() or sentence[0] in "'`/" or sentence.startswith("[")
    assert sentence[-1] not in ".;:,"
    assert not re.search(r"[.!?] [A-Z]", sentence), "two sentences"
    assert ";;" not in sentence
    assert "; ;" not in sentence


def test_every_code_has_a_case() -> None:
    """Whoever adds a code says here how it comes about, and what it teaches."""
    assert {found.code for found in CASES.values()} - {""} == ERRORS_BY_CODE.keys()


def test_steps_are_for_codes_that_there_are() -> None:
    assert NEXT_STEPS.keys() <= ERRORS_BY_CODE.keys()


def test_client_errors_without_a_code_have_cases_too() -> None:
    found = vars(errors).values()
    plain = {x for x in LockdError.__subclasses__() if x in found} - {CodedError}
    # Why a daemon does not start is told with its configuration (tests/daemon), and
    # what is not installed in tests/test_parts.py.
    assert plain == {
        ConnectionLostError,
        ForkedSessionError,
        LockLostError,
        ConfigError,
        WrongTaskError,
        MissingPartError,
    }


def test_lockctl_says_the_same_sentence(scene: Scene) -> None:
    lockctl = Lockctl(str(scene.daemon.socket))
    done = lockctl("run", "-n", "job", "--", "true")
    assert done.returncode == 75
    (line,) = done.stderr.splitlines()
    assert line.startswith("lockctl: 'job' is held exclusively by the holder (pid ")
    check_form(line.removeprefix("lockctl: "))


TABLE = (DOCS / "how-to/trouble.md").read_text().split("## When something is")[1]
MESSAGES = re.findall(r"^\| `([^`]+)`", TABLE, re.MULTILINE)


@pytest.mark.parametrize("message", MESSAGES)
def test_message_that_operators_are_told_about_is_said_somewhere(message: str) -> None:
    source = "".join(path.read_text() for path in (ROOT / "src").rglob("*.py"))
    # Names, numbers, and what the system says after a colon are of the moment.
    said = re.sub(r" \(.*", "", message.partition(": ")[0])
    parts = re.split(r"\s*(?:…?\S*'\S*|…|\d+)\s*", said)
    assert [part for part in parts if part not in source] == []
    assert any(len(part) > 8 for part in parts)
