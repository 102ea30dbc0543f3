"""Signals: the command of `lockctl run` gets each of them once, wherever it is sent.

    PYTHONPATH=.:tests python -m campaigns.signals [rounds]

A signal is sent to the process group, to each process, to lockctl alone, or typed at a
terminal; the command tells of every signal that it gets. lockctl is kept back until the
command has had the signal, so that a second one cannot hide behind the first.
"""

import os
import re
import signal
import sys
from collections.abc import Callable
from contextlib import ExitStack
from typing import Final

from campaigns.tools import Counts, daemon, end
from ctl.processes import LOCKCTL, Lockctl, Terminal
from ctl.run.signalled import MARK, TELL_SIGNALS, Signalled

ROUNDS: Final = 50
SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
WAYS: Final = {
    "the process group": Signalled.to_group,
    "each process": Signalled.to_each,
    "lockctl alone": Signalled.to_lockctl,
}
KEYS: Final = {signal.SIGINT: "\x03", signal.SIGQUIT: "\x1c"}


def main(rounds: int = ROUNDS) -> None:
    """Prints a line for each signal and each way to send it."""
    counts = Counts(f"signals: {rounds} of each, how many rounds brought not exactly 1")
    with daemon() as lockd, ExitStack() as stack:
        lockctl = Lockctl(str(lockd.socket))
        stack.callback(lockctl.end_all)
        for where, way in WAYS.items():
            with Signalled(lockctl) as run:
                for signum in SIGNALS:
                    wrong = _wrong(run, way.__get__(run), signum, rounds)
                    counts.must(f"{signum.name} to {where}", wrong, 0)
        for signum, key in KEYS.items():
            wrong = _wrong_at_terminal(lockctl, signum, key, rounds)
            counts.must(f"{signum.name} typed at a terminal", wrong, 0)
    end(counts)


def _wrong(
    run: Signalled, send: Callable[[int], None], signum: int, rounds: int
) -> int:
    return sum(run.got_after(send, signum) != [signum] for _ in range(rounds))


def _wrong_at_terminal(lockctl: Lockctl, signum: int, key: str, rounds: int) -> int:
    argv = (*LOCKCTL, "run", "job", "--", sys.executable, "-c", TELL_SIGNALS)
    terminal = Terminal(argv, lockctl.env)
    terminal.wait_for("\r\n")
    command = int(terminal.shown.split()[1])
    wrong = 0
    for _ in range(rounds):
        terminal.shown = ""
        os.kill(terminal.pid, signal.SIGSTOP)
        os.waitpid(terminal.pid, os.WUNTRACED)
        terminal.type(key)
        terminal.wait_for(f"{signum}\r\n")
        os.kill(terminal.pid, signal.SIGCONT)
        os.kill(terminal.pid, MARK)
        terminal.wait_for(f"{MARK}\r\n")
        # The terminal shows the key, too, and ends no line with that.
        told = re.findall(r"\d+(?=\r\n)", terminal.shown)
        wrong += told != [str(int(signum)), str(int(MARK))]
    os.kill(command, signal.SIGKILL)
    terminal.wait()
    return wrong


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
