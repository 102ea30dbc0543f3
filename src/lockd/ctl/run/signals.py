"""Signals of `lockctl run`: kept back, told apart, handed to the command.

While a command runs all of them are blocked and taken one by one with `sigwaitinfo`.
Only before and after, while lockctl waits for the daemon, do those that end a process
do so.
"""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Final, NamedTuple

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
"""What the command gets when lockctl gets it, unless lockctl's parent ignores it."""

_NEEDED: Final = frozenset({signal.SIGCHLD, signal.SIGIO, signal.SIGALRM})
"""What lockctl itself cannot do without, though its parent may ignore it."""

ENDING: Final = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM)
"""What is sent to a process so that it ends."""

_FAREWELL: Final = 1.0
"""Seconds for the daemon to note that we do not wait any more."""


class Interrupted(BaseException):
    """Raised where lockctl waits for the daemon and is told to end, by `signum`."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


class Inherited(NamedTuple):
    """The signal state that lockctl was started with: the command's birthright."""

    mask: set[Any]
    ignored: frozenset[signal.Signals]

    @property
    def watched(self) -> frozenset[signal.Signals]:
        """All that wakes lockctl while a command runs."""
        # A signal that is blocked is queued even if it is ignored: `sigwaitinfo` would
        # return it. So what the parent ignores (nohup) is neither blocked nor awaited.
        return (FORWARDED - self.ignored) | _NEEDED

    def restore(self) -> None:
        """Gives this process, just before exec, the state that lockctl was given."""
        # Ignored by Python since its start, so exec would hand it on; see
        # subprocess.Popen(restore_signals=True).
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        for signum in FORWARDED | _NEEDED:
            ignored = signum in self.ignored
            signal.signal(signum, signal.SIG_IGN if ignored else signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, self.mask)


def block() -> Inherited:
    """Blocks every watched signal; returns what was before."""
    known = FORWARDED | _NEEDED
    ignored = frozenset(x for x in known if signal.getsignal(x) is signal.SIG_IGN)
    # A parent that ignores SIGCHLD would make the kernel reap our command unseen.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    before = Inherited(signal.pthread_sigmask(signal.SIG_BLOCK, ()), ignored)
    signal.pthread_sigmask(signal.SIG_BLOCK, before.watched)
    return before


@contextmanager
def interruptible(
    remind: Callable[[], None] = lambda: None, delay: float = 0
) -> Iterator[None]:
    """Lets signals interrupt the body, which waits while no command runs.

    Those that end a process raise `Interrupted`, SIGTSTP stops; the others stay back
    for the command. `remind` is called if the body takes longer than `delay` seconds,
    unless that is 0.

    Raises:
        Interrupted: we were told to end. What the body does about that is interrupted
            again by the next signal, or after `_FAREWELL` seconds.
    """

    def interrupt(signum: int, _frame: FrameType | None) -> None:
        signal.signal(signal.SIGALRM, lambda *_: interrupt(signum, None))
        signal.setitimer(signal.ITIMER_REAL, _FAREWELL)
        raise Interrupted(signum)

    # What lockctl's parent ignores (nohup) stays ignored: it is the command's affair.
    ending = [x for x in ENDING if signal.getsignal(x) is not signal.SIG_IGN]
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
