"""Standard output and standard error of lockctl: safe to look at, exact when they fail.

Names, reasons and command lines are chosen by others, and so is what a daemon says.
Whatever a command prints, nothing of it reaches a terminal that a terminal would act
upon: all text passes here.
"""

import io
import os
import select
import signal
import sys
import threading

from lockd.names import plain
from lockd.utf8 import encoding_of_terminal


class UnwrittenError(Exception):
    """Raised when standard output does not take what is written to it."""


class SafeStream(io.TextIOWrapper):
    """Escapes all that is not printable, but for the ends of lines, and tabs.

    What the encoding lacks is escaped, too.

    Args:
        stream: where the text goes; the descriptor stays that of this stream.
    """

    def __init__(self, stream: io.TextIOWrapper) -> None:
        super().__init__(
            stream.buffer,
            encoding_of_terminal(stream.encoding),
            "backslashreplace",
            line_buffering=stream.line_buffering,
            write_through=stream.write_through,
        )
        # It closes the descriptor when it goes, and so must not go before us.
        self._stream = stream

    def __del__(self) -> None:
        # The descriptor is not ours to close.
        self.detach()

    def write(self, text: str, /) -> int:
        """Writes text, escaped."""
        return self.draw(plain(text, keep="\n\t"))

    def draw(self, text: str) -> int:
        """Writes text as it is, with what a terminal acts upon: colours, say.

        Raises:
            UnwrittenError: there is no room, or nobody to read it.
        """
        try:
            return super().write(text)
        except OSError as error:
            raise UnwrittenError(error.strerror or str(error)) from error

    def flush(self) -> None:
        """Hands on what was written.

        Raises:
            UnwrittenError: there is no room, or nobody to read it.
        """
        try:
            super().flush()
        except OSError as error:
            raise UnwrittenError(error.strerror or str(error)) from error


def fill_closed() -> None:
    """Sees to it that nothing of ours becomes a standard stream that is closed.

    What stands there fails on every use as a closed descriptor does (open(2), O_PATH),
    and is closed for an executed command.
    """
    while (place := os.open("/", os.O_PATH)) <= 2:
        pass
    os.close(place)


def protect() -> None:
    """Makes standard output and standard error safe; one that is closed stays so."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout = SafeStream(sys.stdout)
    if isinstance(sys.stderr, io.TextIOWrapper):
        sys.stderr = SafeStream(sys.stderr)


def open_closed_output() -> None:
    """Puts something that takes no text in the place of a closed standard output.

    So what cannot be written fails there as it does in a file.
    """
    if sys.stdout is None:
        sys.stdout = SafeStream(open(os.devnull))  # noqa: SIM115 (as long as we live)


def end_with_reader() -> None:
    """Has us end as SIGPIPE does as soon as nobody can read standard output any more.

    Whoever has nothing to write would not notice. A file has no reader to lose.
    """
    # A thread, as it is to be noticed whatever else is waited for.
    threading.Thread(target=_wait_for_end_of_reader, daemon=True).start()


def _wait_for_end_of_reader() -> None:
    poll = select.poll()
    poll.register(sys.stdout, 0)  # what is always told is: it is at an end
    poll.poll()
    # Its action is the default; whoever started us may have blocked it.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGPIPE])
    os.kill(os.getpid(), signal.SIGPIPE)


def draw(text: str) -> None:
    """Prints what was drawn for a terminal, of text that is escaped already."""
    if isinstance(sys.stdout, SafeStream):
        sys.stdout.draw(text)
    else:
        sys.stdout.write(text)
