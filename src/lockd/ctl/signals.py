"""Signals of `lockctl run`: kept back, told apart, handed to the command.

While a command runs all of them are blocked and taken one by one with
`sigwaitinfo`, which tells who sent each. Only before and after, while lockctl waits for
the daemon, do those that end a process do so.
"""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Final, NamedTuple, NoReturn

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
"""What the command gets when lockctl gets it."""

WATCHED: Final = FORWARDED | {signal.SIGCHLD, signal.SIGIO}
"""All that wakes lockctl while a command runs."""

_ENDING: Final = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM)

# si_code of a signal that the kernel itself sent: sigaction(2).
_SI_KERNEL: Final = 0x80


class Inherited(NamedTuple):
    """The signal state that lockctl was started with: the command's birthright."""

    mask: set[Any]
    on_child: Any

    def restore(self) -> None:
        """Gives this process, just before exec, the state that lockctl was given."""
        # Ignored by Python since its start, so exec would hand it on; see
        # subprocess.Popen(restore_signals=True).
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        signal.signal(signal.SIGCHLD, self.on_child)
        for signum in _ENDING:
            if callable(signal.getsignal(signum)):
                signal.signal(signum, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, self.mask)


def block() -> Inherited:
    """Blocks every watched signal; returns what was before."""
    # A parent that ignores SIGCHLD would make the kernel reap our command unseen.
    on_child = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    return Inherited(signal.pthread_sigmask(signal.SIG_BLOCK, WATCHED), on_child)


@contextmanager
def interruptible(
    end: Callable[[int], NoReturn],
    remind: Callable[[], None] = lambda: None,
    delay: float = 0,
) -> Iterator[None]:
    """Lets signals interrupt the body, which waits while no command runs.

    Those that end a process call `end`, SIGTSTP stops; the others stay back for the
    command. `remind` is called if the body takes longer than `delay` seconds, unless
    that is 0.
    """

    def interrupt(signum: int, _frame: FrameType | None) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, WATCHED)  # once is enough
        end(signum)

    for signum in _ENDING:
        # What lockctl's parent ignores (nohup) stays ignored.
        if signal.getsignal(signum) is not signal.SIG_IGN:
            signal.signal(signum, interrupt)
    if delay:
        signal.signal(signal.SIGALRM, lambda *_: remind())
        signal.setitimer(signal.ITIMER_REAL, delay)
    let_in = (*_ENDING, signal.SIGTSTP, signal.SIGALRM)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, let_in)
    try:
        yield
    finally:
        if delay:
            signal.setitimer(signal.ITIMER_REAL, 0)
        signal.pthread_sigmask(signal.SIG_BLOCK, WATCHED)


def has_it_already(pid: int, info: signal.struct_siginfo) -> bool:
    """Tells whether a child, too, got the signal that we got.

    A terminal signals its whole foreground process group, and so does a child that
    signals its own group. A signal sent to us alone with kill(2) is the other case.
    """
    if info.si_code == _SI_KERNEL:
        return os.getpgid(pid) == os.getpgrp()
    return info.si_pid == pid
