"""Starts Python programs by fork, from a process that has their modules loaded.

To start and stop a daemon takes 200 ms of CPU, 150 of them for imports. With a nursery
it takes 22.

A forked program is as separate as an executed one. It is a child of ours, with a pid,
arguments (/proc/PID/cmdline, too), an environment, a directory, descriptors, limits,
signals and an end of its own, and what it does no other notices. Three things differ:
its modules were loaded before it began, the kernel kills it when we die, and it is not
taken apart when it has ended.

A test that is about how a program starts, or what it imports, executes it.
"""

import atexit
import ctypes
import errno
import fcntl
import gc
import io
import json
import os
import pkgutil
import resource
import runpy
import signal
import socket
import subprocess
import sys
import termios
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any, Final

LIMITS: Final = range(16)
"""All that there are (setrlimit(2))."""

FIRST_FD: Final = 3
"""Of those that a service manager passes (sd_listen_fds(3))."""

OPTIONS: Final = {
    *("stdin", "stdout", "stderr", "text", "env", "cwd", "pass_fds"),
    *("start_new_session", "process_group"),
}
"""What of Popen's a forked program can have."""

# Executes a program with the descriptors at the numbers that sd_listen_fds(3) wants.
TAKE_DESCRIPTORS: Final = """
import fcntl, os, sys
fds = [fcntl.fcntl(int(fd), fcntl.F_DUPFD_CLOEXEC, 500) for fd in sys.argv[1].split()]
for number, fd in enumerate(fds):
    os.dup2(fd, 3 + number)
os.environ["LISTEN_PID"] = str(os.getpid())
os.execv(sys.argv[2], sys.argv[2:])
"""

RUN_SOURCE: Final = """
import sys
from lockd import compilation
if compilation.is_compiled():  # this was forked
    for name in [x for x in sys.modules if x.startswith("lockd.")]:
        del sys.modules[name]
compilation.prefer_source()
"""
"""Begins a script that replaces parts of a daemon; compiled callers do not see that."""


class Nursery:
    """A process that forks for each program that is asked for.

    It starts with the first one, and ends with this process, even if that is killed.

    Args:
        names: modules, and packages with all their modules, to be loaded before.
    """

    def __init__(self, *names: str) -> None:
        self._names = names
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket
        self._can_fork = True

    @property
    def pid(self) -> int | None:
        """The pid of the nursery itself."""
        return None if self._process is None else self._process.pid

    def close(self) -> None:
        """Ends it; programs that were forked go on."""
        if self._process is not None:
            self._socket.close()
            self._process.wait()
            self._process = None

    def popen(
        self,
        argv: Sequence[str],
        *,
        listen_fds: Sequence[int] = (),
        terminal: bool = False,
        **options: Any,
    ) -> "subprocess.Popen[Any]":
        """Starts a program as `subprocess.Popen` does: by fork where that can be.

        Args:
            argv: `sys.executable`, `-m` or `-c`, and so on; all else is executed.
            listen_fds: descriptors that it gets as a service manager passes them.
            terminal: whether it has a session of its own, at the terminal that its
                standard streams are.
            options: of `subprocess.Popen`.
        """
        if self._suits(argv, options):
            try:
                return _Forked(self, argv, listen_fds, terminal, **options)
            except OSError as error:
                # Other tests of this user have all its descriptors in flight (unix(7)).
                if error.errno != errno.ETOOMANYREFS:
                    raise
        return execute(argv, listen_fds=listen_fds, terminal=terminal, **options)

    def _suits(self, argv: Sequence[str], options: Mapping[str, Any]) -> bool:
        if (
            os.getpid() != self._pid
            or len(argv) < 3
            or argv[0] != sys.executable
            or argv[1] not in ("-c", "-m")
            or not options.keys() <= OPTIONS
            or _read_at_start(options.get("env")) != _read_at_start(None)
        ):
            return False
        with self._lock:
            if self._process is None and self._can_fork:
                self._start()
        return self._can_fork

    def _start(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return  # it would end with the thread
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, __file__, str(theirs.fileno()), *self._names],
                pass_fds=[theirs.fileno()],
            )
        self._can_fork = self._socket.recv(64) == b"ready"

    def fork(self, request: Mapping[str, Any], fds: Sequence[int]) -> int:
        """Has it fork; returns the pid of the program, which is a child of ours."""
        with open(os.memfd_create("request"), "w+b") as file:
            file.write(json.dumps(request).encode())
            file.seek(0)
            with self._lock:
                socket.send_fds(self._socket, [b"."], [file.fileno(), *fds])
                pid = int(self._socket.recv(64))
        if pid < 0:
            raise OSError(-pid, os.strerror(-pid))
        return pid


DAEMONS: Final = Nursery("lockd.daemon")
LOCKCTLS: Final = Nursery("lockd.ctl", "rich.console", "rich.table")
SCRIPTS: Final = Nursery("lockd.client.blocking", "support.wire_client")
"""Of this process, which closes them before it ends."""


def execute(
    argv: Sequence[str],
    *,
    listen_fds: Sequence[int] = (),
    terminal: bool = False,
    **options: Any,
) -> "subprocess.Popen[Any]":
    """Executes a program; see `Nursery.popen`."""
    if terminal:
        return subprocess.Popen(["setsid", "--ctty", *argv], **options)
    if not listen_fds:
        return subprocess.Popen(argv, **options)
    numbers = " ".join(map(str, listen_fds))
    taking = (sys.executable, "-IS", "-c", TAKE_DESCRIPTORS, numbers)
    return subprocess.Popen([*taking, *argv], pass_fds=listen_fds, **options)


def _read_at_start(env: Mapping[str, str] | None) -> dict[str, str]:
    """Returns what of an environment the interpreter reads when it starts."""
    return {
        name: value
        for name, value in (os.environ if env is None else env).items()
        if name.startswith(("PYTHON", "LC_", "LANG")) and name != "PYTHONPATH"
    }


class _Forked(subprocess.Popen[Any]):
    """A program that was forked. All but its beginning is Popen's."""

    def __init__(
        self,
        nursery: Nursery,
        argv: Sequence[str],
        listen_fds: Sequence[int],
        terminal: bool,
        **options: Any,
    ) -> None:
        self._nursery = nursery
        self._terminal = terminal
        self._listen_fds = listen_fds
        super().__init__(argv, **options)

    def _execute_child(self, *popens: Any) -> None:
        args, _, _, _, pass_fds, cwd, env, _, _, _, *ends = popens
        ends, (*_, session, group) = ends[:6], ends[6:]
        streams = enumerate((ends[0], ends[3], ends[5]))
        places = {n: n if fd == -1 else fd for n, fd in streams}
        places |= {fd: fd for fd in pass_fds}
        places |= dict(enumerate(self._listen_fds, FIRST_FD))
        places = {place: fd for place, fd in places.items() if _is_open(fd)}
        directory = os.open(cwd or ".", os.O_PATH | os.O_DIRECTORY)
        request = {
            "argv": [os.fspath(word) for word in args],
            "environment": dict(os.environ if env is None else env),
            "listens": bool(self._listen_fds),
            "places": list(places),
            "parent": os.getpid(),
            "terminal": self._terminal,
            "session": session or self._terminal,
            "group": group,
            "limits": [resource.getrlimit(x) for x in LIMITS],
            "status": Path("/proc/thread-self/status").read_text(),
        }
        try:
            self.pid = self._nursery.fork(request, [directory, *places.values()])
        finally:
            os.close(directory)
        self._child_created = True
        self._close_pipe_fds(*ends)  # type: ignore[attr-defined]


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


# What follows is carried out by the nursery, and by what it forks.

PR_SET_PDEATHSIG: Final = 1
PR_SET_MM: Final = 35
PR_SET_MM_MAP: Final = 14
PR_GET_TID_ADDRESS: Final = 40
SYS_CLONE3: Final = 435
CLONE_PARENT: Final = 0x00008000
CLONE_CHILD_CLEARTID: Final = 0x00200000
CLONE_CHILD_SETTID: Final = 0x01000000

_libc = ctypes.PyDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
_libc.sbrk.restype = ctypes.c_void_p

_shown: list[ctypes.Array[Any]] = []
"""The memory that the kernel reads for /proc."""


def _prctl(option: int, *arguments: Any) -> None:
    if _libc.prctl(option, *arguments, *[ctypes.c_ulong(0)] * (4 - len(arguments))):
        raise OSError(ctypes.get_errno(), "prctl")


def _fork() -> int:
    """Forks a child of our parent: who asked for it can wait for it."""
    tid = ctypes.c_uint64()
    _prctl(PR_GET_TID_ADDRESS, ctypes.byref(tid))
    flags = CLONE_PARENT | CLONE_CHILD_SETTID | CLONE_CHILD_CLEARTID
    # struct clone_args: flags, pidfd, child_tid, parent_tid, exit_signal, stack, ...
    words = (ctypes.c_uint64 * 8)(flags, 0, tid.value, 0, 0, 0, 0, 0)
    size = ctypes.c_size_t(ctypes.sizeof(words))
    ctypes.pythonapi.PyOS_BeforeFork()
    pid = int(_libc.syscall(ctypes.c_long(SYS_CLONE3), ctypes.byref(words), size))
    if pid == 0:
        ctypes.pythonapi.PyOS_AfterFork_Child()
    else:
        ctypes.pythonapi.PyOS_AfterFork_Parent()
    return pid if pid >= 0 else -ctypes.get_errno()


class _Map(ctypes.Structure):
    """struct prctl_mm_map."""

    _fields_ = (
        *((name, ctypes.c_uint64) for name in (
            "start_code", "end_code", "start_data", "end_data", "start_brk", "brk",
            "start_stack", "arg_start", "arg_end", "env_start", "env_end", "auxv",
        )),
        *((name, ctypes.c_uint32) for name in ("auxv_size", "exe_fd")),
    )  # fmt: skip


def _show(argv: Sequence[str], environment: Mapping[str, str]) -> None:
    """Has /proc show other arguments, and another environment, of this process."""
    words = b"".join(os.fsencode(word) + b"\0" for word in argv)
    pairs = [f"{name}={value}" for name, value in environment.items()]
    known = b"".join(os.fsencode(pair) + b"\0" for pair in pairs)
    memory = ctypes.create_string_buffer(words + known)
    _shown.append(memory)
    start = ctypes.addressof(memory)
    middle, end = start + len(words), start + len(words) + len(known)
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    code, more, stack = [int(fields[n - 3]) for n in (26, 27, 28)]
    data, end_of_data, heap = [int(fields[n - 3]) for n in (45, 46, 47)]
    places = _Map(
        *(code, more, data, end_of_data, heap, _libc.sbrk(ctypes.c_long(0)), stack),
        *(start, middle, middle, end, 0, 0, 2**32 - 1),
    )
    size = ctypes.c_ulong(ctypes.sizeof(places))
    _prctl(PR_SET_MM, ctypes.c_ulong(PR_SET_MM_MAP), ctypes.byref(places), size)


class _Program:
    """What was asked for; in the process that was forked for it."""

    def __init__(self, request: dict[str, Any], fds: list[int]) -> None:
        self._argv: list[str] = request["argv"]
        self._environment: dict[str, str] = request["environment"]
        self._request = request
        self._fds = fds

    def run(self, path: list[str]) -> None:
        """Becomes the program, and runs it to its end."""
        _prctl(PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL))
        if os.getppid() != self._request["parent"]:
            os._exit(1)
        self._take_descriptors()
        self._take_limits()
        self._take_signals()
        if self._request["session"]:
            os.setsid()
        if self._request["terminal"]:
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        if self._request["group"] >= 0:
            os.setpgid(0, self._request["group"])
        if self._request["listens"]:
            self._environment["LISTEN_PID"] = str(os.getpid())
        os.environ.clear()
        os.environ.update(self._environment)
        _show(self._argv, self._environment)
        self._take_streams()
        _, kind, word, *arguments = sys.orig_argv = self._argv
        places = self._environment.get("PYTHONPATH", "").split(os.pathsep)
        sys.path[:] = [*filter(None, places), *path]
        with suppress(FileNotFoundError):  # it was removed
            sys.path.insert(0, os.getcwd() if kind == "-m" else "")
        if kind == "-m":
            sys.argv[:] = ["-m", *arguments]
            sys.modules.pop(word, None)
            runpy.run_module(word, run_name="__main__", alter_sys=True)
        else:
            sys.argv[:] = ["-c", *arguments]
            sys.modules["__main__"] = main = ModuleType("__main__")
            exec(compile(word, "<string>", "exec"), vars(main))

    def _take_descriptors(self) -> None:
        directory, *fds = self._fds
        os.fchdir(directory)
        places = self._request["places"]
        above = max([directory, *fds, *places]) + 1
        for number, fd in enumerate(fds):
            os.dup2(fd, above + number)
        for number, place in enumerate(places):
            os.dup2(above + number, place)
        kept = sorted({-1, *places, os.sysconf("SC_OPEN_MAX")})
        for low, high in pairwise(kept):
            if low + 1 < high:  # it takes (0, 0) for all that there are
                os.closerange(low + 1, high)

    def _take_limits(self) -> None:
        for number, (soft, hard) in enumerate(self._request["limits"]):
            if resource.getrlimit(number) != (soft, hard):
                resource.setrlimit(number, (soft, hard))

    def _take_signals(self) -> None:
        lines = self._request["status"].splitlines()
        status = dict(line.split(":\t", 1) for line in lines)
        os.umask(int(status["Umask"], 8))
        ignored, blocked = int(status["SigIgn"], 16), int(status["SigBlk"], 16)
        for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
            is_ignored = ignored >> (number - 1) & 1
            signal.signal(number, signal.SIG_IGN if is_ignored else signal.SIG_DFL)
        # As the interpreter does when it starts.
        if not ignored >> (signal.SIGINT - 1) & 1:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        for number in (signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_IGN)
        every = signal.valid_signals()
        mask = {number for number in every if blocked >> (number - 1) & 1}
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    @staticmethod
    def _take_streams() -> None:
        for fd, name in enumerate(("stdin", "stdout", "stderr")):
            is_open = _is_open(fd)
            stream = _stream(fd, name, getattr(sys, name)) if is_open else None
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)


def _stream(fd: int, name: str, like: io.TextIOWrapper) -> io.TextIOWrapper:
    """Returns a standard stream, as the interpreter makes it (create_stdio)."""
    mode = "w" if fd else "r"
    unbuffered = like.write_through
    binary = open(fd, f"{mode}b", 0 if unbuffered and fd else -1, closefd=False)  # noqa: SIM115
    vars(getattr(binary, "raw", binary))["name"] = f"<{name}>"
    stream = io.TextIOWrapper(
        binary,
        encoding=like.encoding,
        errors=like.errors,
        newline="\n",
        line_buffering=not unbuffered and (fd == 2 or os.isatty(fd)),
        write_through=unbuffered,
    )
    stream.mode = mode  # type: ignore[misc]
    return stream


def _load(name: str) -> None:
    module = import_module(name)
    for part in pkgutil.walk_packages(getattr(module, "__path__", []), f"{name}."):
        import_module(part.name)


def _serve(sock: socket.socket, names: list[str]) -> _Program | None:
    """Forks for each request; returns in each child, and when nothing more comes."""
    _prctl(PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it is for the tests
    for name in names:
        _load(name)
    try:
        _show(sys.orig_argv, os.environ)
    except OSError:
        sock.send(b"cannot")
        return None
    gc.collect()
    gc.freeze()
    sock.send(b"ready")
    while True:
        data, fds, _, _ = socket.recv_fds(sock, 1, 253)
        if not data:
            return None
        with open(fds[0], "rb") as file:
            request = json.load(file)
        if (pid := _fork()) == 0:
            return _Program(request, fds[1:])
        for fd in fds[1:]:
            os.close(fd)
        sock.send(str(pid).encode())


def _main() -> None:
    # Without this file's directory, and what is only for us.
    ours = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    path = [place for place in sys.path[1:] if place not in ours]
    sys.path[0] = str(Path(__file__).parents[1])
    number, *names = sys.argv[1:]
    program = _serve(socket.socket(fileno=int(number)), names)
    if program is None:
        return
    try:
        program.run(path)
    except SystemExit as end:
        _end(end.code)
        raise
    _end(None)


def _end(code: object) -> None:
    """Ends this process as the interpreter does, but takes nothing apart.

    To take all apart is to write into each page of it, which then has to be copied:
    half of what a short program costs. This returns if there is more to say at the end:
    a message, or an output that cannot be written.
    """
    if not isinstance(code, int | None):
        return
    # As Py_FinalizeEx does, in this order.
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    try:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
    except Exception:
        return
    gc.collect()  # which tells of coroutines that nobody has awaited
    os._exit((code or 0) & 0xFF)


if __name__ == "__main__":
    _main()
