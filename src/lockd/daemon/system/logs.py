"""The log: lines on standard error, written by a thread.

The reader may be slow or stopped, and there may be a flood of lines. Neither must delay
locks. So lines that cannot be written are dropped, and so are too many similar ones.
"""

import logging
import os
import queue
import signal
import threading
import time
from contextlib import suppress
from typing import Final

import trio

from lockd.daemon.system.journal import Journal

STDERR: Final = 2

MAX_LINES: Final = 10_000
"""The most lines that wait to be written."""

ALIKE: Final = 20
PERIOD: Final = 10.0
"""The most similar lines in a period of so many seconds."""

AUDIT: Final = {"audit": True}
"""The `extra` of a line that is never dropped as similar."""

Fields = dict[str, str]

PATIENCE: Final = 1.0
"""Seconds to wait for the last lines at the end of the program."""


class LogWriter(logging.Handler):
    """Passes lines to a thread that writes them; never waits.

    Args:
        fd: where to write them.
        journal: gets the lines with `fields`, unless it fails.
    """

    def __init__(self, fd: int, journal: Journal | None = None) -> None:
        super().__init__()
        self._fd = fd
        self._journal = journal
        self._lines: queue.Queue[tuple[bytes, Fields | None]] = queue.Queue(MAX_LINES)
        #: For each kind of line: the start of its period, and how many came since.
        self._seen: dict[str, tuple[float, int]] = {}
        threading.Thread(target=self._write, name="log", daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        """Queues a record, unless there are too many similar ones."""
        if hasattr(record, "audit"):
            self._put(record)
            return
        began, count = self._seen.get(record.msg, (0.0, 0))
        now = time.monotonic()
        if now - began >= PERIOD:
            if count > ALIKE:
                self._put(record, f"{count - ALIKE} lines like the next were dropped")
            began, count = now, 0
        self._seen[record.msg] = began, count + 1
        if count < ALIKE:
            self._put(record)

    def _put(self, record: logging.LogRecord, message: str | None = None) -> None:
        if message is not None:
            name, level = record.name, record.levelno
            record = logging.LogRecord(name, level, "", 0, message, None, None)
        with suppress(queue.Full):
            line = self.format(record) + "\n"
            fields: Fields | None = getattr(record, "fields", None)
            if fields is not None:
                fields = {
                    "MESSAGE": record.getMessage(),
                    "PRIORITY": str(_priority(record)),
                    "SYSLOG_IDENTIFIER": "lockd",
                } | fields
            data = line.encode("utf-8", "backslashreplace")
            self._lines.put_nowait((data, fields))

    def _write(self) -> None:
        # This thread might take a signal that is meant for a successor (`handover`).
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        while True:
            line, fields = self._lines.get()
            with suppress(OSError):
                if fields is None or not self._send(fields):
                    while line:
                        line = line[os.write(self._fd, line) :]
            self._lines.task_done()

    def _send(self, fields: Fields) -> bool:
        """Sends a line with its fields to the journal. Returns whether that worked."""
        if self._journal is None:
            return False
        try:
            self._journal.send(fields)
        except OSError:
            return False
        return True

    def flush(self) -> None:
        """Waits until all lines are written, at most `PATIENCE` seconds."""
        until = time.monotonic() + PATIENCE
        while self.is_behind and time.monotonic() < until:
            time.sleep(0.001)

    @property
    def is_behind(self) -> bool:
        """Whether lines are waiting to be written."""
        return bool(self._lines.unfinished_tasks)


async def wait_written() -> None:
    """Waits until all lines are written, at most `PATIENCE` seconds."""
    writers = [x for x in logging.getLogger().handlers if isinstance(x, LogWriter)]
    with trio.move_on_after(PATIENCE):
        while any(x.is_behind for x in writers):  # noqa: ASYNC110 - a thread
            await trio.sleep(0.001)


def _priority(record: logging.LogRecord) -> int:
    return {10: 7, 20: 6, 30: 4, 40: 3}.get(record.levelno, 2)


class _PriorityFormatter(logging.Formatter):
    """Puts the priority of syslog(3) before each line."""

    def format(self, record: logging.LogRecord) -> str:
        """Returns the line in the format of journald."""
        priority = _priority(record)
        text = super().format(record).replace("\n", f"\n<{priority}>")
        return f"<{priority}>{text}"


def set_up_logging() -> LogWriter:
    """Sends all log lines to standard error. Returns their writer."""
    writer = LogWriter(STDERR, Journal() if to_journal() else None)
    writer.setFormatter(_PriorityFormatter() if to_journal() else logging.Formatter())
    logging.basicConfig(level=logging.INFO, handlers=[writer])
    return writer


def to_journal() -> bool:
    """Returns whether standard error is the journal, which understands priorities.

    The variable alone is not enough (systemd.exec(5)): children inherit it, even if
    their standard error is something else.
    """
    status = os.fstat(STDERR)
    stream = f"{status.st_dev}:{status.st_ino}"
    return os.environ.get("JOURNAL_STREAM") == stream
