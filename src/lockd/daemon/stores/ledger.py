"""A map of records that outlives the process, in memory that the kernel keeps.

Two memfds (memfd_create(2)) are mapped. The service manager keeps their descriptors, so
SIGKILL ends the process but not the memory. A commit writes a record beyond the valid
length, and then stores the new length with one machine instruction. So a successor
never reads half a commit.

One file is in use. When it is twice as long as its live records, the ledger copies them
to the other file in small slices. Meanwhile it still appends records to the first. The
other file is in use from the moment its length is stored, because its generation is
higher. This process also has the live records in its own memory. Only a successor reads
the files.

The live records limit the memory. During a copy, each appended byte causes four copied
bytes (`debt`), so the first file ends at 2.25 times its live records. Before appending,
the ledger reserves as much memory in the other file. So it can remove garbage even when
there is no more memory, and it does that first.
"""

import os
import time
from contextlib import ExitStack, suppress
from typing import Final

from lockd.daemon.stores.ledger_file import (
    DATA,
    MAX_KEY,
    MAX_VALUE,
    OLDEST,
    SLICE_BYTES,
    STEP,
    VERSION,
    Changes,
    File,
    FileHeader,
    encode,
    find_record,
    read_header,
    slices,
)
from lockd.errors import LockdError

HEADROOM: Final = 2 * STEP
"""Bytes to keep free in both files, for changes that cannot be refused when memory is
short."""

COPIED_FOR_EACH: Final = 4
"""Bytes to copy for each appended byte during a copy."""

_OVERHEAD: Final = 16
"""Bytes that a key and a value take besides their content, about."""

_SLICE_KEYS: Final = 16
"""The most keys to copy between two looks at the clock."""


DAMAGED: Final = b"\xc1"
"""The key of the record that marks a loss which is no longer visible. It is a problem
until everything has been copied. It is not MessagePack, so no other key equals it."""


class LedgerError(LockdError, ValueError):
    """Raised when the records of a predecessor have an unknown version."""


class Ledger:
    """Values by key. A successor finds exactly the committed ones.

    `fds` are the two memfds, to be stored outside the process. With those of a
    predecessor, the ledger continues with their content. It then owns them, and nobody
    else may use them, not even to look whether they are readable.

    `problems` says what could not be read, a sentence each. The next successor finds
    the same problems until all live values have been copied (`tidy`). If the newest
    record of a key is damaged beyond recognition, `records` has the old value of the
    key. So after problems, use no value that can be found in another way.

    Attributes:
        debt: how many bytes to copy (`tidy`), which limits the garbage.
        is_short: whether memory is so short that nothing should be added.
        live_bytes: how many bytes the committed values take, with their keys.

    Raises:
        LedgerError: the predecessor has another version.
        OSError: no memory or descriptor is left, or `fds` are something else. In both
            cases `fds` stay valid, and the caller owns them.
    """

    def __init__(self, fds: tuple[int, int] | None = None) -> None:
        self.problems: list[str] = []
        #: The values. None: the file has a removal of the key.
        self._values: Changes = {}
        #: The values that a running copy has already written.
        self._copied: Changes = {}
        #: The changes of the next commit.
        self._staged: Changes = {}
        #: The length of the file without garbage, and the length that starts a copy.
        self._clean_end = DATA
        self._due_at = DATA + STEP
        #: Up to this length the file needs no check of the memory.
        self._room = 0
        self.debt = 0
        self.is_short = False
        #: The number of committed values, and their bytes with their keys.
        self._live_count = self.live_bytes = 0
        headers: list[FileHeader | None] = [None, None]
        if fds is not None:
            headers = [read_header(fd, self.problems) for fd in fds]
        chosen = _choose(headers)
        if fds is not None and chosen is None:
            self.problems.append("no file of the ledger can be read")
        with ExitStack() as unless_good:
            self.fds = fds or (_create(unless_good), _create(unless_good))
            self._open(headers, chosen)
            unless_good.pop_all()
        self._is_damaged = bool(self.problems)

    def records(self) -> dict[bytes, bytes]:
        """Returns all committed values by key."""
        values = self._copied | self._values
        return {key: value for key, value in values.items() if value is not None}

    @property
    def memory_bytes(self) -> int:
        """How much memory both files take, as `limit` counts."""
        return self._file.reserved + self._spare.reserved

    def put(self, key: bytes, value: bytes) -> None:
        """Stages a value. It replaces the value of the key.

        Raises:
            ValueError: the key has more than 65,535 bytes, or the value more than 1
                GiB.
        """
        if len(key) > MAX_KEY or len(value) > MAX_VALUE:
            raise ValueError(f"too long: {len(key)} and {len(value)} bytes")
        self._staged[key] = value

    def remove(self, key: bytes) -> None:
        """Stages the removal of a key, which may be missing."""
        self._staged.pop(key, None)
        if self._value_of(key) is not None:
            self._staged[key] = None

    def commit(self) -> None:
        """Commits all staged changes at once.

        Raises:
            OSError: there is no memory, even without garbage. The old values stay valid
                and the changes stay staged: the next commit tries them again.
        """
        staged, file = self._staged, self._file
        if not staged:
            return
        record = encode(staged, file.salt)
        end = file.end + len(record)
        if end + HEADROOM > self._room:
            try:
                self._make_room(end)
            except OSError:
                self._write_anew()
                return
        file.append(record)
        file.commit()
        self._replace(staged)
        staged.clear()
        if self._spare.generation:
            self.debt += COPIED_FOR_EACH * len(record)
        elif end > self._due_at:
            self.debt = 1

    def tidy(self, seconds: float) -> bool:
        """Removes garbage for about `seconds`, and at least a little.

        Returns whether there is more. It is cheap without work. Call it about as often
        as `commit`, and when there is a `debt`, which it pays.

        Raises:
            OSError: there is no memory. Nothing is lost; call it again.
        """
        deadline = time.monotonic() + seconds
        while self._tidy_slice():
            if self.debt <= 0 and time.monotonic() >= deadline:
                return True
        self.debt = 0
        return False

    def tidy_at_leisure(self, seconds: float) -> bool:
        """Like `tidy`, but also finds garbage that removals have left.

        Call it once a second, and soon again while there is more: without commits
        nothing else removes it.

        Raises:
            OSError: there is no memory. Nothing is lost; call it again.
        """
        if not self._spare.generation:
            end = self._file.end
            if end - self._size_without_garbage() > max(end // 2, STEP):
                self._due_at = 0
        return self.tidy(seconds)

    def close(self) -> None:
        """Closes both files.

        The committed values survive in copies of the descriptors.
        """
        self._file.close()
        self._spare.close()

    def limit(self, most: int) -> None:
        """Limits the memory of both files together."""
        for file in (self._file, self._spare):
            file.limit(most // 2)
        self._room = 0

    def _open(self, headers: list[FileHeader | None], chosen: int | None) -> None:
        files = [File(fd) for fd in self.fds]
        self._file, self._spare = files[chosen or 0], files[1 - (chosen or 0)]
        header = headers[chosen] if chosen is not None else None
        self._spare.adopt_memory()
        if header is None:
            self._file.adopt_memory()
            self._file.begin(1)
        else:
            self._file.adopt(header)
            end = self._load()
            if not header.end_is_known:
                self._file.end_at(end)
            elif end != header.end:
                self._report_gap(end, header.end)
            self._file.write_header(header.generation, header.salt)
        if self.problems and not (header and header.end_is_known):
            # The new header is sound, and would hide the loss.
            self._file.append(encode({DAMAGED: b""}, self._file.salt))
        self._file.commit()
        try:
            self._make_room(self._file.end)
        except OSError:
            with suppress(OSError):  # the next commit raises it
                self._write_anew()

    def _make_room(self, end: int) -> None:
        """Reserves memory in both files up to `end`, with some reserve.

        Raises:
            OSError: there is no memory up to there.
        """
        beyond = _beyond(end)
        self._room = 0
        try:
            for file in (self._file, self._spare):
                file.reserve(beyond + HEADROOM)
        except OSError:
            self.is_short = True
            if self._pays(self._file.end - self._clean_end):
                # Remove all garbage now.
                self.debt = end
            if end > self._file.reserved or beyond > self._spare.reserved:
                raise
        else:
            self.is_short = False
            self._room = self._file.reserved

    def _load(self) -> int:
        """Reads the records of a predecessor. Returns the end of the last one."""
        file, values = self._file, self._values
        damaged: dict[bytes, int] = {}
        offset = DATA
        while record := find_record(file, offset):
            if record.offset != offset:
                self._report_gap(offset, record.offset)
            offset = record.offset + record.size
            if record.values is not None:
                values.update(zip(record.keys, record.values, strict=True))
            else:
                # The old values of the keys are no longer true.
                values.update(dict.fromkeys(record.keys))
            if damaged or record.values is None:
                for key in record.keys:
                    damaged.pop(key, None)
                    if record.values is None:
                        damaged[key] = record.offset
        for key, place in damaged.items():
            self.problems.append(f"the value of {key!r} at {place} is damaged")
        if DAMAGED in values:
            del values[DAMAGED]
            self.problems.append("records were lost when it was read before")
        live = [(key, value) for key, value in values.items() if value is not None]
        self._live_count = len(live)
        self.live_bytes = sum(len(key) + len(value) for key, value in live)
        return offset

    def _replace(self, changes: Changes) -> None:
        """Replaces the values of keys, and counts the live ones."""
        values, copied = self._values, self._copied
        count, size = self._live_count, self.live_bytes
        for key, value in changes.items():
            before = values.get(key)
            if before is None and copied and key not in values:
                before = copied.get(key)
            if before is not None:
                count -= 1
                size -= len(key) + len(before)
            if value is not None:
                count += 1
                size += len(key) + len(value)
            values[key] = value
        self._live_count, self.live_bytes = count, size

    def _value_of(self, key: bytes) -> bytes | None:
        """Returns the committed value of a key."""
        value = self._values.get(key)
        if value is None and key not in self._values:
            return self._copied.get(key)
        return value

    def _report_gap(self, start: int, end: int) -> None:
        self.problems.append(f"no record can be read from {start} to {end}")

    def _tidy_slice(self) -> bool:
        """Does a little work. Returns whether there may be more."""
        if not self._spare.generation:
            if not self._is_due():
                return self._give_back()
            self._spare.begin(self._file.generation + 1)
        self._copy_slice()
        return True

    def _is_due(self) -> bool:
        if self._is_damaged or self._file.end > self._due_at:
            return True
        if not self.is_short:
            return False
        # A removal only shows in how little is left.
        return self._pays(self._file.end - self._size_without_garbage())

    def _pays(self, garbage: int) -> bool:
        """Returns whether an amount of garbage is worth a copy when memory is short."""
        return garbage > self._clean_end // 8 + STEP // 4

    def _size_without_garbage(self) -> int:
        """Returns about how long the file would be without garbage."""
        return self.live_bytes + _OVERHEAD * self._live_count

    def _give_back(self) -> bool:
        """Releases a step of unneeded memory, if there is one.

        Returns whether there was.
        """
        end = _beyond(self._file.end) + HEADROOM
        self._room = 0
        return self._file.give_back(end) or self._spare.give_back(end)

    def _copy_slice(self) -> None:
        """Copies some values to the other file.

        After the last one, that file is in use.
        """
        values, copied, salt = self._values, self._copied, self._spare.salt
        taken: Changes = {}
        changes: Changes = {}
        size = 0
        while values and len(taken) < _SLICE_KEYS and size < SLICE_BYTES:
            key, value = values.popitem()
            taken[key] = value
            if value is not None or key in copied:
                changes[key] = value
                size += len(key) + len(value or b"")
        try:
            if changes:
                self._spare.append(encode(changes, salt))
        except OSError:
            values.update(taken)
            raise
        for key, value in taken.items():
            if value is not None:
                copied[key] = value
            else:
                copied.pop(key, None)
        self.debt -= size
        if not values:
            self._switch()

    def _write_anew(self) -> None:
        """Writes all values and all staged changes to the other file, at once.

        Raises:
            OSError: it takes more memory than there is. Nothing has changed.
        """
        spare = self._spare
        self._values, self._copied = self._copied | self._values, {}
        wanted: Changes = {
            k: v for k, v in (self._values | self._staged).items() if v is not None
        }
        spare.erase()
        try:
            spare.begin(self._file.generation + 1)
            for slice_ in slices(wanted):
                spare.append(encode(slice_, spare.salt))
        except OSError:
            spare.erase()
            self.is_short = True
            raise
        self._replace(self._staged)
        self._staged.clear()
        self._copied = wanted
        self._switch()
        with suppress(OSError):  # the existing memory was enough
            self._make_room(self._file.end)

    def _switch(self) -> None:
        """Uses the other file. At this moment both have all values."""
        self._spare.commit()
        self._file, self._spare = self._spare, self._file
        self._values, self._copied = self._copied, {}
        self._clean_end = self._file.end
        self._due_at = self._clean_end + max(self._clean_end, STEP)
        self._spare.erase()
        self._is_damaged = False
        self._room = self.debt = 0


def _beyond(end: int) -> int:
    """Returns the length that the other file needs for all of a file of length `end`.

    Records begin differently there, which takes some more bytes.
    """
    return end + (end >> 10) + 64


def _create(unless_good: ExitStack) -> int:
    fd = os.memfd_create("lockd-ledger", os.MFD_CLOEXEC)
    unless_good.callback(os.close, fd)
    return fd


def _choose(headers: list[FileHeader | None]) -> int | None:
    """Returns which file is in use: the newest complete one."""
    ranks = [
        (header.end_is_known, header.generation, number)
        for number, header in enumerate(headers)
        if header and header.end
    ]
    if not ranks:
        return None
    chosen = max(ranks)[2]
    header = headers[chosen]
    if header and not OLDEST <= header.version <= VERSION:
        raise LedgerError(
            f"the records of the daemon before are of version {header.version}, "
            f"only {OLDEST} to {VERSION} can be read"
        )
    return chosen
