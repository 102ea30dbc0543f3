"""A forked program finds what an executed one finds, and ends as it does."""

import os
import pty
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from support.nursery import Nursery, execute
from support.places import TESTS

PATIENCE = 20

# What a program can see of itself, but for its pid and what its memory is like.
LOOK = """
import json, os, resource, signal, sys, threading
def shown(name):
    return open(f"/proc/self/{name}", "rb").read().decode("latin-1")
KINDS = ("SigB", "SigI", "SigC", "Uma", "Uid", "Gid", "Groups", "Name")
status = shown("status").splitlines()
seen = {
    "argv": sys.argv,
    "orig_argv": sys.orig_argv,
    "path": sys.path,
    "main": [__name__, sys.modules["__main__"].__dict__ is globals()],
    "thread": threading.current_thread() is threading.main_thread(),
    "environ": dict(os.environ),
    "cwd": os.getcwd(),
    "fds": [x for x in range(50) if os.path.exists(f"/proc/self/fd/{x}")],
    "parent": os.getppid(),
    "session": os.getsid(0) == os.getpid() or os.getsid(0),
    "group": os.getpgid(0) == os.getpid() or os.getpgid(0),
    "limits": [resource.getrlimit(x) for x in range(16)],
    "signals": {x: str(signal.getsignal(x)).split(" at ")[0] for x in range(1, 65)},
    "status": [x for x in status if x.startswith(KINDS)],
    "streams": [
        x and [x.encoding, x.errors, x.line_buffering, x.newlines, x.isatty(), x.mode]
        for x in (sys.stdin, sys.stdout, sys.stderr)
    ],
    "cmdline": shown("cmdline"),
    "shown environ": sorted(shown("environ").split("\\0")),
    "exe": os.readlink("/proc/self/exe"),
    "threads": os.listdir("/proc/self/task") == [str(os.getpid())],
}
os.write(int(sys.argv[1]), json.dumps(seen, indent=1).encode())
"""


@pytest.fixture
def nursery() -> Iterator[Nursery]:
    with closing(Nursery("json")) as nursery:
        yield nursery


def script(text: str, *arguments: object) -> list[str]:
    return [sys.executable, "-c", text, *map(str, arguments)]


def test_program_is_forked(nursery: Nursery) -> None:
    loaded = "import sys; sys.exit('json' in sys.modules and 7)"
    assert nursery.popen(script(loaded)).wait() == 7
    assert execute(script(loaded)).wait() == 0


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True},
        {"stderr": subprocess.STDOUT, "stdout": subprocess.DEVNULL},
        {"cwd": "/proc"},
        {"env": {"PATH": "/bin", "PYTHONPATH": "/nowhere:/usr", "\udcff": "\udce9 ü"}},
        {"start_new_session": True},
        {"process_group": 0},
    ],
    ids=lambda options: " ".join(options) or "plain",
)
def test_forked_program_sees_what_an_executed_one_sees(
    nursery: Nursery, options: dict[str, Any]
) -> None:
    # Without it a program gets, too, what libraries of this process have set in C.
    options = options | {"env": os.environ | options.get("env", {})}
    number = signal.SIGUSR2
    previous = signal.signal(number, signal.SIG_IGN)
    mask = os.umask(0o027)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGWINCH})
    try:
        seen = [look(nursery.popen, options), look(execute, options)]
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGWINCH})
        os.umask(mask)
        signal.signal(number, previous)
    assert seen[0] == seen[1]
    assert f'"parent": {os.getpid()}' in seen[0]


def look(popen: Any, options: dict[str, Any]) -> str:
    """Has a program look at itself."""
    reader, writer = os.pipe()
    os.dup2(writer, 40)
    os.close(writer)
    with popen(script(LOOK, 40, "é \udcff"), pass_fds=[40], **options) as process:
        os.close(40)
        with open(reader, encoding="utf-8") as file:
            seen = file.read()
        process.communicate()
    assert process.returncode == 0
    return seen


def test_module_is_run_as_python_runs_it(nursery: Nursery, tmp_path: Path) -> None:
    (tmp_path / "shown.py").write_text(
        "import sys\nprint(__name__, sys.argv, sys.path)"
    )
    said = [
        popen(
            [sys.executable, "-m", "shown", "word"],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            text=True,
        ).communicate()[0]
        for popen in (nursery.popen, execute)
    ]
    assert said[0] == said[1]
    assert "word" in said[0]


@pytest.mark.parametrize(
    "ending",
    [
        "sys.exit(3)",
        "sys.exit('why')",
        "sys.exit(-1)",
        "sys.exit(257)",
        "print('x', end='')",
        "import atexit; atexit.register(print, 'last')",
        "import os; os.kill(os.getpid(), 9)",
        "import os; os.abort()",
        "import threading as t, time; t.Timer(0.01, lambda: print('late')).start()",
        "import threading as t; t.Thread(target=t.Event().wait, daemon=True).start()",
        "sys.stderr = None; print('x')",
        "import os; sys.stdout.write('x'); os.close(1)",
    ],
)
def test_program_ends_as_an_executed_one_does(
    nursery: Nursery, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # So that something is left to be written at the end.
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    ends = []
    for popen in (nursery.popen, execute):
        process = popen(
            script(f"import sys\n{ending}"),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        ends.append((*process.communicate(), process.returncode))
    assert ends[0] == ends[1]


@pytest.mark.parametrize(
    ("ending", "last"),
    [
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("import atexit; atexit.register(int, 'x'); exit(5)", "ValueError: invalid"),
        (
            "async def f(): pass\ncircle = [f()]; circle.append(circle); del circle",
            "RuntimeWarning: coroutine 'f' was never awaited",
        ),
    ],
)
def test_program_says_at_its_end_what_went_wrong(
    nursery: Nursery, ending: str, last: str
) -> None:
    ends = []
    for popen in (nursery.popen, execute):
        process = popen(
            script(f"import gc; gc.disable()\n{ending}"),
            stderr=subprocess.PIPE,
            text=True,
        )
        said = process.communicate()[1]
        ends.append((last in said, process.returncode))
    assert ends[0] == ends[1]
    assert ends[0][0]


def test_descriptors_are_passed_as_a_service_manager_does(nursery: Nursery) -> None:
    text = (
        "import os, socket\n"
        "assert os.environ['LISTEN_PID'] == str(os.getpid())\n"
        "for fd in (3, 4): os.write(fd, str(fd).encode())\n"
        "assert not os.path.exists('/proc/self/fd/6')\n"
    )
    for popen in (nursery.popen, execute):
        left, right = socket.socketpair(), socket.socketpair()
        fds = [left[1].fileno(), right[1].fileno()]
        assert popen(script(text), listen_fds=fds).wait() == 0
        assert [x[0].recv(9) for x in (left, right)] == [b"3", b"4"]
        for sock in (*left, *right):
            sock.close()


def test_programs_share_nothing(nursery: Nursery) -> None:
    """What one does to a module that was loaded before is not done to another."""
    text = (
        "import json, sys; sys.exit(getattr(json, 'spoilt', 0)) if {} else exec({!r})"
    )
    assert nursery.popen(script(text.format(0, "json.spoilt = 1"))).wait() == 0
    assert nursery.popen(script(text.format(1, ""))).wait() == 0


def test_program_that_does_not_suit_is_executed(nursery: Nursery) -> None:
    loaded = "import sys; sys.exit('json' in sys.modules)"
    for argv, options in (
        (["env", *script(loaded)], {}),
        ([sys.executable, "-I", "-c", loaded], {}),
        (script(loaded), {"umask": 0o77}),
        (script(loaded), {"env": os.environ | {"PYTHONOPTIMIZE": "1"}}),
    ):
        assert nursery.popen(argv, **options).wait() == 0


def test_program_is_at_a_terminal_of_its_own(nursery: Nursery) -> None:
    text = "import os; print(os.getsid(0) == os.getpid() == os.tcgetpgrp(0))"
    said = []
    for popen in (nursery.popen, execute):
        ours, theirs = pty.openpty()
        with (
            open(ours, "rb", buffering=0) as file,
            popen(script(text), stdin=theirs, stdout=theirs, terminal=True) as process,
        ):
            said.append(file.readline())
        os.close(theirs)
        assert process.returncode == 0
    assert said == [b"True\r\n"] * 2


def test_what_cannot_start_is_told_as_popen_tells_it(nursery: Nursery) -> None:
    with pytest.raises(FileNotFoundError):
        nursery.popen(script("pass"), cwd="/nowhere")


def test_all_ends_with_who_started_it(tmp_path: Path) -> None:
    text = (
        "import sys; from support.nursery import Nursery\n"
        "nursery = Nursery('json')\n"
        "words = [sys.executable, '-c', 'import time; time.sleep(99)']\n"
        "process = nursery.popen(words)\n"
        "print(nursery.pid, process.pid, flush=True)\n"
        "sys.stdin.read()\n"
    )
    starter = execute(
        script(text),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(TESTS)},
    )
    with starter:
        assert starter.stdout is not None
        pids = map(int, starter.stdout.readline().split())
        ends = [os.pidfd_open(pid) for pid in pids]
        assert len(ends) == 2
        starter.kill()
    for end in ends:
        ready, _, _ = select.select([end], [], [], PATIENCE)
        os.close(end)
        assert ready
