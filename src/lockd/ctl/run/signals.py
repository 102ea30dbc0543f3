"""The signals of `lockctl run`: blocks them, tells them apart, forwards them.

While a command runs, all of them are blocked, and `sigwaitinfo` takes them one by one.
Before and after, while lockctl waits for the daemon, the signals that end a process do
so.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from lockd.hints import Any, Final
from lockd.lean import signal

FORWARDED: Final = frozenset(
    {
        signal.SIGHUP,
        signal.SIGINT,
        signal.SIGQUIT,
        signal.SIGTERM,
        signal.SIGUSR1,
        signal.SIGUSR2,
        signal.SIGCONT,
        signal.SIGWINCH,
        signal.SIGTSTP,
        signal.SIGALRM,
    }
)
"""Signals that lockctl forwards to the command, unless lockctl's parent ignores them.
"""

_NEEDED: Final = frozenset({signal.SIGCHLD, signal.SIGIO, signal.SIGALRM})
"""Signals that lockctl needs itself, even if its parent ignores them."""

ENDING: Final = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM)
"""Signals that ask a process to end."""

_FAREWELL: Final = 1.0
"""Seconds for the daemon to note that lockctl does not wait any more."""


class Interrupted(BaseException):
    """Raised when signal `signum` asks lockctl to end while it waits for the daemon."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


class Inherited:
    """The signal state that lockctl inherited, for the command."""

    def __init__(self, mask: set[Any], ignored: frozenset[int]) -> None:
        self.mask = mask
        self.ignored = ignored

    @property
    def watched(self) -> frozenset[int]:
        """The signals that wake lockctl while a command runs."""
        # The kernel queues a blocked signal even if it is ignored, and `sigwaitinfo`
        # would return it. So do not block signals that the parent ignores (nohup).
        return (FORWARDED - self.ignored) | _NEEDED

    def restore(self) -> None:
        """Restores, just before exec, the signal state that lockctl inherited."""
        # Python ignores these from its start, and exec would pass that on; see
        # subprocess.Popen(restore_signals=True).
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        for signum in FORWARDED | _NEEDED:
            ignored = signum in self.ignored
            signal.signal(signum, signal.SIG_IGN if ignored else signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, self.mask)


def block() -> Inherited:
    """Blocks every watched signal. Returns the previous state."""
    known = FORWARDED | _NEEDED
    ignored = frozenset(x for x in known if signal.getsignal(x) == signal.SIG_IGN)
    # If SIGCHLD stays ignored, the kernel reaps the command unseen.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    before = Inherited(signal.pthread_sigmask(signal.SIG_BLOCK, ()), ignored)
    signal.pthread_sigmask(signal.SIG_BLOCK, before.watched)
    return before


@contextmanager
def interruptible(
    remind: Callable[[], None] = lambda: None, delay: float = 0
) -> Iterator[None]:
    """Lets signals interrupt the body, which waits while no command runs.

    Signals that end a process raise `Interrupted`, and SIGTSTP stops it. All others
    stay blocked for the command.

    Args:
        remind: called if the body takes longer than `delay`.
        delay: seconds; 0: never.

    Raises:
        Interrupted: a signal asked to end. The next signal, or `_FAREWELL` seconds,
            then interrupts the code that handles this.
    """

    def interrupt(signum: int, _frame: FrameType | None) -> None:
        signal.signal(signal.SIGALRM, lambda *_: interrupt(signum, None))
        signal.setitimer(signal.ITIMER_REAL, _FAREWELL)
        raise Interrupted(signum)

    # Signals that lockctl's parent ignores (nohup) stay ignored.
    ending = [x for x in ENDING if signal.getsignal(x) != signal.SIG_IGN]
    for signum in ending:
        signal.signal(signum, interrupt)
    signal.signal(signal.SIGALRM, lambda *_: remind())
    signal.setitimer(signal.ITIMER_REAL, delay)
    let_in = (*ending, signal.SIGTSTP, signal.SIGALRM)
    before = signal.pthread_sigmask(signal.SIG_UNBLOCK, let_in)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
