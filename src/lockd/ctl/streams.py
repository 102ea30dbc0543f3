"""Makes standard output and standard error of lockctl safe, and their errors exact.

Other users choose names, reasons and command lines, and a daemon may say anything. All
output passes through this module, which escapes what a terminal would act on.
"""

import io
import os
import sys
from contextlib import suppress

from lockd.lean import signal
from lockd.names import plain
from lockd.utf8 import encoding_of_terminal


class UnwrittenError(Exception):
    """Raised when standard output does not accept a text."""


class SafeStream(io.TextIOWrapper):
    """Escapes all characters that are not printable, except newlines and tabs.

    It also escapes characters that the encoding lacks.

    Args:
        stream: the target, which keeps the descriptor.
    """

    def __init__(self, stream: io.TextIOWrapper) -> None:
        super().__init__(
            stream.buffer,
            encoding_of_terminal(stream.encoding),
            "backslashreplace",
            line_buffering=stream.line_buffering,
            write_through=stream.write_through,
        )
        # It closes the descriptor at its end, so it must live as long as this object.
        self._stream = stream

    def __del__(self) -> None:
        # The descriptor belongs to the other stream.
        self.detach()

    def write(self, text: str, /) -> int:
        """Writes text, escaped."""
        return self.draw(plain(text, keep="\n\t"))

    def draw(self, text: str) -> int:
        """Writes text unchanged, with colours for example.

        Raises:
            UnwrittenError: no space is left, or nobody reads it.
        """
        try:
            return super().write(text)
        except OSError as error:
            raise UnwrittenError(error.strerror or str(error)) from error

    def flush(self) -> None:
        """Flushes the text.

        Raises:
            UnwrittenError: no space is left, or nobody reads it.
        """
        try:
            super().flush()
        except OSError as error:
            raise UnwrittenError(error.strerror or str(error)) from error


def say(sentence: str) -> None:
    """Prints a message to standard error. Ignores errors."""
    with suppress(OSError, UnwrittenError):
        print(f"lockctl: {plain(sentence)}", file=sys.stderr, flush=True)


def fill_closed() -> None:
    """Fills closed standard descriptors, so that none of our files gets their numbers.

    Every use of the filling fails as for a closed descriptor (open(2), O_PATH). An
    executed command does not inherit it.
    """
    while (place := os.open("/", os.O_PATH)) <= 2:
        pass
    os.close(place)


def protect() -> None:
    """Makes standard output and standard error safe. A closed one stays closed."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout = SafeStream(sys.stdout)
    if isinstance(sys.stderr, io.TextIOWrapper):
        sys.stderr = SafeStream(sys.stderr)


def open_closed_output() -> None:
    """Replaces a closed standard output by a file that accepts no text.

    So output fails there as it does in a file.
    """
    if sys.stdout is None:
        sys.stdout = SafeStream(open(os.devnull))  # noqa: SIM115 (open until the end)


def end_with_reader() -> None:
    """Ends this process by SIGPIPE as soon as nobody reads standard output.

    A process that writes nothing would not notice. This does nothing for a file.
    """
    import threading  # for the commands that wait without writing

    # A thread notices it regardless of what the process waits for.
    threading.Thread(target=_wait_for_end_of_reader, daemon=True).start()


def _wait_for_end_of_reader() -> None:
    import select

    poll = select.poll()
    poll.register(sys.stdout, 0)  # POLLERR is always reported
    poll.poll()
    # SIGPIPE has its default action, but our parent may have blocked it.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGPIPE])
    os.kill(os.getpid(), signal.SIGPIPE)


def draw(text: str) -> None:
    """Prints text for a terminal that is already escaped."""
    if isinstance(sys.stdout, SafeStream):
        sys.stdout.draw(text)
    else:
        sys.stdout.write(text)
