"""Interrupts a program at one step after the other, as a signal would."""

import _thread
import signal
import sys
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import lockd
from support.wire_client import PATIENCE

CLIENT = str(Path(lockd.__file__).parent / "client")


class HangsError(BaseException):
    """Raised in a program that does not end."""


class Stepper:
    """Has a signal arrive at one step of the client's code.

    A step is an instruction of the interpreter. The handler runs where Python lets it:
    after the next call, at the next loop.

    Attributes:
        arrived: whether the program was long enough for it.
    """

    def __init__(self, step: int) -> None:
        self._step = step
        self._seen = 0
        # A call would have the handler run in the tracer. To look up a key that is
        # missing calls, too, and Python does not look for signals after that.
        self._signal: defaultdict[int, None] = defaultdict(
            partial(_thread.interrupt_main, signal.SIGUSR1)
        )

    @property
    def arrived(self) -> bool:
        return self._seen >= self._step

    def trace(self, frame: FrameType, event: str, arg: Any) -> Any:
        """Traces the frames of the client; for `sys.settrace`."""
        if not frame.f_code.co_filename.startswith(CLIENT):
            return None
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        return self._count

    def _count(self, frame: FrameType, event: str, arg: Any) -> Any:
        if event == "opcode":
            self._seen += 1
            if self._seen == self._step:
                sys.settrace(None)  # or the handler would run in the tracer's next call
                self._signal[self._step]
        return self._count


@contextmanager
def handled(number: int, handler: Callable[..., Any]) -> Iterator[None]:
    """Has a signal handled in a way of one's own while a body runs."""
    previous = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, previous)


def _hangs(*_: object) -> None:
    raise HangsError


def at_each_step(
    program: Callable[[], None],
    comes_in: Callable[[], None],
    stride: int = 1,
    raised: type[BaseException] = HangsError,
) -> Iterator[int]:
    """Runs a program again and again; something comes in one step later each time.

    Args:
        program: uses a client.
        comes_in: what the signal handler does.
        stride: how many steps later.
        raised: what that raises, if it raises.

    Yields:
        The step, after each run.

    Raises:
        HangsError: a run did not end.
    """
    assert threading.current_thread() is threading.main_thread()
    step = 0

    with (
        handled(signal.SIGUSR1, lambda *_: comes_in()),
        handled(signal.SIGALRM, _hangs),
    ):
        while True:
            step += stride
            stepper = Stepper(step)
            signal.setitimer(signal.ITIMER_REAL, PATIENCE)
            sys.settrace(stepper.trace)
            try:
                try:
                    program()
                finally:
                    sys.settrace(None)
                    signal.setitimer(signal.ITIMER_REAL, 0)
            except raised as error:
                if isinstance(error, HangsError):
                    raise
            if not stepper.arrived:
                return
            yield step
