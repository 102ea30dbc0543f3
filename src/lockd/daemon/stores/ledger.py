"""Records that outlive the process, in memory that the kernel keeps.

Two memfds (memfd_create(2)), mapped. Whoever keeps their descriptors elsewhere keeps
what is written there: SIGKILL ends the process, not the memory. A record is written
beyond what counts, and then the length of what counts is stored, which is one machine
instruction: there is no moment in which half a commit could be read.

One file is in use. When it has grown to twice of what lived of it, that is written into
the other one in small slices, while records are still added to the first; the other one
is in use from the moment its own length is stored, because its generation is higher.
What lives is in this process, too: the files are read by a successor only.

Memory is bounded by what lives. While records are added, four times as many bytes are
written into the other file (`debt`), so the first one ends at 2.25 times of what lived;
and as much memory as the one has is reserved in the other, before anything is added. So
where there is no more memory, garbage can still be got rid of, and that is done first.
"""

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from typing import Final

from lockd.daemon.stores.ledger_file import (
    DATA,
    MAX_KEY,
    MAX_VALUE,
    STEP,
    VERSION,
    Changes,
    File,
    FileHeader,
    encode,
    find_record,
    read_header,
)
from lockd.errors import LockdError

HEADROOM: Final = 2 * STEP
"""Bytes that are to be free in both files, for what cannot be refused any more when
memory is short."""

COPIED_FOR_EACH: Final = 4
"""Bytes that are written anew for each that is added while that is going on."""

_OVERHEAD: Final = 16
"""Bytes that a key and a value take beside what is in them, about."""

_SLICE_KEYS: Final = 16
_SLICE_BYTES: Final = 1 << 16
"""What is written anew between two looks at the clock, in one record: what is damaged
together."""


DAMAGED: Final = b"\xc1"
"""The key of a record that says that something was lost which is seen no more: that is
a problem until all is written anew. It is no MessagePack: nobody has such a key."""


class LedgerError(LockdError, ValueError):
    """Raised when a predecessor's records are of a version that is not known here."""


class Ledger:
    """Values by key, of which a successor finds exactly those that were committed.

    `fds` are the two memfds, to be kept elsewhere. With those of a predecessor, it
    goes on with what is in them; they are its own to close from then on, and nobody
    else may use them, not even to try whether they can be read. `problems` says what
    of it could not be read, a sentence each; whoever comes after is told so again until
    all that counts was written anew (`tidy`). Where the newest record of a key is
    damaged beyond recognition, `records` has what the key stood for before: whoever
    finds problems there should rely on nothing else that can be asked instead.

    Attributes:
        debt: how many bytes are to be written anew (`tidy`), so that garbage is bounded
            whatever is committed.
        is_short: whether memory is so short that nothing should be added.
        live_bytes: how many bytes the committed values take, with their keys.

    Raises:
        LedgerError: the predecessor was of another version.
        OSError: there is no memory or descriptor left, or `fds` are something else.
            In both cases what counts in `fds` still does, and they are the caller's.
    """

    def __init__(self, fds: tuple[int, int] | None = None) -> None:
        self.problems: list[str] = []
        #: All that counts; None: that the key has no value any more, as the file says.
        self._values: Changes = {}
        #: What the other file has been given of it, while that is written anew.
        self._copied: Changes = {}
        #: What the next commit writes.
        self._staged: Changes = {}
        #: Where the file ended when it had no garbage, and where it has too much.
        self._clean_end = DATA
        self._due_at = DATA + STEP
        #: Up to where the file may go without a look at how much memory there is.
        self._room = 0
        self.debt = 0
        self.is_short = False
        #: How many values are committed, and how many bytes they take with their keys.
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
        """Returns all values that are committed, by key."""
        values = self._copied | self._values
        return {key: value for key, value in values.items() if value is not None}

    @property
    def memory_bytes(self) -> int:
        """How much memory both files take, of what `limit` allows."""
        return self._file.reserved + self._spare.reserved

    def put(self, key: bytes, value: bytes) -> None:
        """Stages a value, which replaces the one that the key has.

        Raises:
            ValueError: the key has more than 65,535 bytes, or the value than 1 GiB.
        """
        if len(key) > MAX_KEY or len(value) > MAX_VALUE:
            raise ValueError(f"too long: {len(key)} and {len(value)} bytes")
        self._staged[key] = value

    def remove(self, key: bytes) -> None:
        """Stages that a key has no value any more; it need not have had one."""
        self._staged[key] = None

    def commit(self) -> None:
        """Has all that is staged count from now on, and all of it at once.

        Raises:
            OSError: there is no memory, also without any garbage. Nothing of it counts,
                what counted before still does, and what is staged stays so: the next
                commit tries it again, with what is staged until then.
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
        self._count(staged)
        self._values.update(staged)
        staged.clear()
        if self._spare.generation:
            self.debt += COPIED_FOR_EACH * len(record)
        elif end > self._due_at:
            self.debt = 1

    def tidy(self, seconds: float) -> None:
        """Works on getting rid of garbage, for about so long and at least a little.

        Cheap if there is nothing to do. To be called about as often as `commit`, and
        whenever there is a `debt`, which it pays.

        Raises:
            OSError: there is no memory; nothing is lost, and it can be called again.
        """
        deadline = time.monotonic() + seconds
        while self._tidy_slice():
            if self.debt <= 0 and time.monotonic() >= deadline:
                return
        self.debt = 0

    def tidy_at_leisure(self, seconds: float) -> None:
        """As `tidy`, but also looks for garbage of which little was added: what lived.

        To be called about once a second.

        Raises:
            OSError: there is no memory; nothing is lost, and it can be called again.
        """
        if not self._spare.generation:
            end = self._file.end
            if end - self._size_without_garbage() > max(end // 2, STEP):
                self._due_at = 0
        self.tidy(seconds)

    def close(self) -> None:
        """Closes both files. What was committed stays, if they are kept elsewhere."""
        self._file.close()
        self._spare.close()

    def limit(self, most: int) -> None:
        """Lets both files together have at most so many bytes of memory."""
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
            # The header is sound from now on, and would not tell.
            self._file.append(encode({DAMAGED: b""}, self._file.salt))
        self._file.commit()
        try:
            self._make_room(self._file.end)
        except OSError:
            with suppress(OSError):  # whoever commits is told
                self._write_anew()

    def _make_room(self, end: int) -> None:
        """Reserves memory in both files, so that the one goes to `end`, and some more.

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
                # All of it is to go now.
                self.debt = end
            if end > self._file.reserved or beyond > self._spare.reserved:
                raise
        else:
            self.is_short = False
            self._room = self._file.reserved

    def _load(self) -> int:
        """Reads what a predecessor left; returns where the last record ends."""
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
                # What the keys stood for before is not what they stand for.
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
        self._values = {}
        self._count(values)
        self._values = values
        return offset

    def _count(self, changes: Changes) -> None:
        """Counts values that are about to replace those that their keys have."""
        values, copied = self._values, self._copied
        for key, value in changes.items():
            before = values[key] if key in values else copied.get(key)
            if before is not None:
                self._live_count -= 1
                self.live_bytes -= len(key) + len(before)
            if value is not None:
                self._live_count += 1
                self.live_bytes += len(key) + len(value)

    def _report_gap(self, start: int, end: int) -> None:
        self.problems.append(f"no record can be read from {start} to {end}")

    def _tidy_slice(self) -> bool:
        """Does a little of what there is to do; tells whether there may be more."""
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
        # Of what was removed nothing is seen but how little is left.
        return self._pays(self._file.end - self._size_without_garbage())

    def _pays(self, garbage: int) -> bool:
        """Tells whether so much is worth to be got rid of where memory is short."""
        return garbage > self._clean_end // 8 + STEP // 4

    def _size_without_garbage(self) -> int:
        """Returns about how long the file would be."""
        return self.live_bytes + _OVERHEAD * self._live_count

    def _give_back(self) -> bool:
        """Gives back a step of memory that is beyond what is needed, if there is."""
        end = _beyond(self._file.end) + HEADROOM
        self._room = 0
        return self._file.give_back(end) or self._spare.give_back(end)

    def _copy_slice(self) -> None:
        """Writes something to the other file; with the last of it, that one counts."""
        values, copied, salt = self._values, self._copied, self._spare.salt
        taken: Changes = {}
        changes: Changes = {}
        size = 0
        while values and len(taken) < _SLICE_KEYS and size < _SLICE_BYTES:
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
        """Writes all that counts and all that is staged to the other file, at once.

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
            for slice_ in _slices(wanted):
                spare.append(encode(slice_, spare.salt))
        except OSError:
            spare.erase()
            self.is_short = True
            raise
        self._count(self._staged)
        self._staged.clear()
        self._copied = wanted
        self._switch()
        with suppress(OSError):  # what there is was enough
            self._make_room(self._file.end)

    def _switch(self) -> None:
        """Uses the other file: everything that counts is in both at this moment."""
        self._spare.commit()
        self._file, self._spare = self._spare, self._file
        self._values, self._copied = self._copied, {}
        self._clean_end = self._file.end
        self._due_at = self._clean_end + max(self._clean_end, STEP)
        self._spare.erase()
        self._is_damaged = False
        self._room = self.debt = 0


def _beyond(end: int) -> int:
    """Returns how far the other file must go to take all of one that goes to `end`.

    Records begin anew elsewhere, which takes some bytes more.
    """
    return end + (end >> 10) + 64


def _slices(values: Changes) -> Iterator[Changes]:
    """Cuts values into as few records as can be, of which none is too long."""
    slice_: Changes = {}
    size = 0
    for key, value in values.items():
        slice_[key] = value
        size += len(key) + len(value or b"")
        if size >= _SLICE_BYTES:
            yield slice_
            slice_, size = {}, 0
    if slice_:
        yield slice_


def _create(unless_good: ExitStack) -> int:
    fd = os.memfd_create("lockd-ledger", os.MFD_CLOEXEC)
    unless_good.callback(os.close, fd)
    return fd


def _choose(headers: list[FileHeader | None]) -> int | None:
    """Returns which file counts: the newest one that is complete."""
    ranks = [
        (header.end_is_known, header.generation, number)
        for number, header in enumerate(headers)
        if header and header.end
    ]
    if not ranks:
        return None
    chosen = max(ranks)[2]
    header = headers[chosen]
    if header and header.version != VERSION:
        raise LedgerError(
            f"the records of the daemon before are of version {header.version}, "
            f"only {VERSION} can be read"
        )
    return chosen
