"""`lockctl flock`: flock(1) word by word, with lockd's queue, names and refusals.

It takes two locks. lockd's lock on the name of the file has the queue, and says who
holds it. The kernel's lock on the file, flock(2), excludes those who use flock(1). As
with flock(1), both last as long as any process has inherited the descriptors. So the
command needs nobody to watch it: if lockd's lock is lost, the kernel's still excludes.
"""

import errno
import fcntl
import getopt
import os
import sys
import time

from lockd import __version__
from lockd.ctl.options import MOST_SECONDS
from lockd.ctl.others import warn_of_others
from lockd.ctl.run.child import execute
from lockd.ctl.run.signals import Inherited
from lockd.ctl.streams import say
from lockd.errors import AcquireTimeoutError, BusyError, LockdError
from lockd.hints import TYPE_CHECKING, Any, Final, NoReturn
from lockd.lean import signal
from lockd.names import canonical_path, name_of_path, plain
from lockd.terms import DEFAULT_LOCKSPACE, EXCLUSIVE, SHARED

if TYPE_CHECKING:
    from lockd.ctl.run.session import Session

# sysexits.h, as flock(1) uses it.
_USAGE: Final = 64
_DATA: Final = 65
_NO_INPUT: Final = 66
_UNAVAILABLE: Final = 69
_OS: Final = 71
_CANNOT_CREATE: Final = 73

_CONFLICT: Final = 1

_SHORT: Final = "+sexunw:E:oFc:hV"
_LONG: Final = {
    "shared": "s",
    "exclusive": "x",
    "unlock": "u",
    "nonblocking": "n",
    "nonblock": "n",
    "nb": "n",
    "timeout=": "w",
    "wait=": "w",
    "conflict-exit-code=": "E",
    "close": "o",
    "no-fork": "F",
    "command=": "c",
    "verbose": "verbose",
    "help": "h",
    "version": "V",
}

_LATER: Final = ("--fcntl", "--start", "--length", "--fd")
"""Options of newer versions of flock(1) that this one has not."""

HELP: Final = """\
Usage: lockctl flock [OPTIONS] FILE|DIRECTORY COMMAND [ARGUMENT...]
       lockctl flock [OPTIONS] FILE|DIRECTORY -c COMMAND
       lockctl flock [OPTIONS] DESCRIPTOR

  Do as flock(1) of util-linux does, with its options and exit statuses.

  Those who lock FILE with `lockctl flock` wait in one queue, first come, first
  served. lockctl list, show and top tell who holds the lock and who waits.
  The lock also excludes flock(1) and flock(2). With a DESCRIPTOR it is the
  kernel's lock alone, because it outlives lockctl.

Options:
  -s, --shared                 share the lock
  -x, -e, --exclusive          exclude all others (the default)
  -u, --unlock                 drop a lock
  -n, --nb, --nonblock         fail if others hold the lock
  -w, --wait, --timeout SECS   wait at most SECS
  -E, --conflict-exit-code N   exit with N (default 1) after -n or -w failed
  -o, --close                  do not let COMMAND inherit the lock
  -c, --command COMMAND        run COMMAND with $SHELL or /bin/sh
  -F, --no-fork                become COMMAND
      --verbose                say how long it took, or who is in the way
  -h, --help                   show this message and exit
  -V, --version                show the version and exit
"""


class FlockError(LockdError):
    """Raised with an exit status of flock(1)."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


def carry_out(socket: str | None, args: list[str]) -> NoReturn:
    """Does what flock(1) does for these arguments, and exits.

    Args:
        socket: the path of the daemon's socket; None for the default.
        args: the words after `flock`.
    """
    if not _is_ignored(signal.SIGINT):
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        status = _Flock(socket, args).run()
    except FlockError as error:
        status = error.status
        more = ": see `lockctl flock --help`" if status == _USAGE else ""
        say(f"{error}{more}")
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


class _Flock:
    """One call: what is asked for, and the locks."""

    def __init__(self, socket: str | None, args: list[str]) -> None:
        self._socket = socket
        self._operation = fcntl.LOCK_EX
        self._seconds: float | None = None
        self._conflict = _CONFLICT
        self._is_verbose = self._closes = self._becomes = False
        self._shown = ""
        self._session: Session | None = None
        self._words = self._read(args)

    def _read(self, args: list[str]) -> list[str]:
        """Reads the options; returns the other words."""
        try:
            given, words = getopt.getopt(args, _SHORT, [*_LONG])
        except getopt.GetoptError as error:
            later = [x for x in _LATER if x.startswith(f"--{error.opt}")]
            more = ""
            if later and len(error.opt) > 1:
                more = ": lockctl does not have this option of newer versions of flock"
            raise FlockError(_USAGE, f"{error.msg}{more}") from None
        for name, value in given:
            long = name.removeprefix("--")
            self._set(_LONG.get(long) or _LONG.get(f"{long}=") or name[1], value)
        if self._becomes and self._closes:
            raise FlockError(
                _USAGE, "the --no-fork and --close options are incompatible"
            )
        return words

    def _set(self, option: str, value: str) -> None:
        if option in "sexu":
            operations = {"s": fcntl.LOCK_SH, "u": fcntl.LOCK_UN}
            self._operation = operations.get(option, fcntl.LOCK_EX)
        elif option == "n":
            self._seconds = 0.0
        elif option == "w":
            self._seconds = _seconds(value)
        elif option == "E":
            if not value.isdecimal():
                raise FlockError(_USAGE, f"invalid exit code: '{plain(value)}'")
            self._conflict = int(value)
            if self._conflict > 255:
                raise FlockError(_USAGE, "exit code out of range (expected 0 to 255)")
        elif option == "c":
            raise FlockError(_USAGE, "-c stands after the file")
        elif option == "h":
            self._shown = HELP
        elif option == "V":
            self._shown = f"lockctl flock, of lockd {__version__}\n"
        else:
            self._is_verbose |= option == "verbose"
            self._closes |= option == "o"
            self._becomes |= option == "F"

    def run(self) -> int:
        """Returns the exit status."""
        if self._shown:
            sys.stdout.write(self._shown)
            return 0
        if not self._words:
            raise FlockError(_USAGE, "requires file descriptor, file or directory")
        place, *command = self._words
        if not command:
            return self._lock_descriptor(place)
        if command[0] in ("-c", "--command"):
            if len(command) != 2:
                raise FlockError(
                    _USAGE, f"{command[0]} requires exactly one command argument"
                )
            shell = os.environ.get("SHELL") or "/bin/sh"
            command = [shell, "-c", command[1]]
        file = _open(place)
        if self._operation == fcntl.LOCK_UN:
            return self._run_command(file, command)
        began = time.monotonic()
        try:
            self._queue(place, command)
            file = self._lock(file, place, self._left(began))
        except _ConflictError as error:
            if self._is_verbose:
                say(str(error))
            return self._conflict
        if self._is_verbose:
            _show(f"getting lock took {time.monotonic() - began:.6f} seconds")
        return self._run_command(file, command)

    def _left(self, began: float) -> float | None:
        if self._seconds is None:
            return None
        return max(0.0, self._seconds - (time.monotonic() - began))

    def _lock_descriptor(self, word: str) -> int:
        if not word.isdecimal():
            raise FlockError(_USAGE, f"bad file descriptor: '{plain(word)}'")
        began = time.monotonic()
        try:
            self._lock(int(word), word, self._seconds)
        except _ConflictError as error:
            if self._is_verbose:
                say(str(error))
            return self._conflict
        if self._is_verbose and self._operation != fcntl.LOCK_UN:
            _show(f"getting lock took {time.monotonic() - began:.6f} seconds")
        return 0

    def _queue(self, place: str, command: list[str]) -> None:
        """Takes lockd's lock, which lasts as long as anybody has the connection."""
        # Help and mistakes do without the client.
        from lockd.ctl.run.session import Session

        warn_of_others(self._socket)
        name, path = name_of_path(place), canonical_path(place)
        self._session = session = Session(self._socket, "lockctl flock")
        try:
            session.acquire(
                [name],
                DEFAULT_LOCKSPACE,
                mode=SHARED if self._operation == fcntl.LOCK_SH else EXCLUSIVE,
                timeout=self._seconds,
                max_waiting=None,
                label=plain(path)[:200] if name != path else None,
                reason=None,
                owner=plain(os.path.basename(command[0]))[:60] or "?",
                owner_pid=None,
                inheritable=True,
            )
        except (BusyError, AcquireTimeoutError) as error:
            raise _ConflictError(str(error)) from None

    def _lock(self, file: int, place: str, seconds: float | None) -> int:
        """Takes the kernel's lock; returns the descriptor that has it.

        Raises:
            _ConflictError: somebody else has it for that long.
        """
        operation = self._operation | (fcntl.LOCK_NB if seconds == 0 else 0)
        if seconds:
            signal.signal(signal.SIGALRM, _expire)
            signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            try:
                fcntl.flock(file, operation)
            except OSError as error:
                # NFS emulates it with fcntl(2), which needs a file open for writing.
                if error.errno not in (errno.EIO, errno.EBADF) or place.isdecimal():
                    raise
                if not os.access(place, os.R_OK | os.W_OK):
                    raise
                os.close(file)
                file = _open(place, os.O_RDWR)
                fcntl.flock(file, operation)
        except BlockingIOError:
            raise _ConflictError(f"failed to get lock: {_WHO}") from None
        except TimeoutError:
            raise _ConflictError(f"timeout while waiting to get lock: {_WHO}") from None
        except (OSError, OverflowError) as error:
            number = getattr(error, "errno", errno.EBADF)
            status = _OS if number in (errno.ENOLCK, errno.ENOMEM) else _DATA
            raise FlockError(status, f"{place}: {os.strerror(number)}") from None
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
        return file

    def _run_command(self, file: int, command: list[str]) -> int:
        if self._is_verbose:
            _show(f"executing {plain(command[0])}")
        sys.stdout.flush()
        sys.stderr.flush()
        inherits = [] if self._closes else [file]
        if self._session is not None and not self._closes:
            # A copy: the client closes its own descriptor in every child.
            inherits.append(os.dup(self._session.fileno()))
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        if not self._becomes and (child := os.fork()):
            _, status = os.waitpid(child, 0)
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code
        if self._closes:
            os.close(file)
        for descriptor in inherits:
            os.set_inheritable(descriptor, True)
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        ignored = {x for x in signal.valid_signals() if _is_ignored(x)}
        try:
            execute(tuple(command), {}, Inherited(mask, frozenset(ignored)))
        except OSError as error:
            say(f"failed to execute {plain(command[0])}: {error.strerror}")
            os._exit(_OS if error.errno == errno.ENOMEM else _UNAVAILABLE)


class _ConflictError(Exception):
    """Raised if the lock is not free, or did not become free in time."""


_WHO: Final = "a program that does not ask lockd has it (`lockctl who`, as root)"


def _is_ignored(number: int) -> bool:
    return signal.getsignal(number) == signal.SIG_IGN


def _expire(number: int, frame: Any) -> None:
    raise TimeoutError


def _seconds(word: str) -> float:
    try:
        seconds = float(word)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise FlockError(_USAGE, f"invalid timeout value: '{plain(word)}'")
    return min(seconds, MOST_SECONDS)


def _open(place: str, how: int = os.O_RDONLY) -> int:
    """Opens the file that is locked, and makes a missing one."""
    flags = how | os.O_NOCTTY
    try:
        try:
            return os.open(place, flags | os.O_CREAT, 0o666)
        except IsADirectoryError:
            return os.open(place, flags)
    except OSError as error:
        number = error.errno or 0
        status = _NO_INPUT
        if number in (errno.ENOMEM, errno.EMFILE, errno.ENFILE):
            status = _OS
        elif number in (errno.EROFS, errno.ENOSPC):
            status = _CANNOT_CREATE
        sentence = f"cannot open lock file {plain(place)}: {os.strerror(number)}"
        raise FlockError(status, sentence) from None


def _show(sentence: str) -> None:
    print(f"flock: {sentence}")
