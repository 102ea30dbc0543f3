"""A file of records in shared memory. Only a beginning of it is valid.

The header is five 64-bit words, twice: magic, version and salt, generation, a checksum
of these, and the length with its own checksum. Every version must read it. Records
follow, aligned to eight bytes. A record has a checksum of its lengths and keys, a
checksum of its values, a mark, both lengths, the keys, and the values. Keys and values
are arrays in MessagePack. All numbers have the machine's byte order, because the memory
never leaves the machine. The salt keeps the content of a value from passing for a
record after damage around it.

The file is sparse and has its maximal size, so it is mapped only once. Memory is
reserved (fallocate(2)) before writing: without memory that raises OSError, while a
write would cause SIGBUS.
"""

import errno
import mmap
import os
import struct
import sys
from collections.abc import Iterator
from typing import Final, NamedTuple
from zlib import crc32

import msgspec

VERSION: Final = 3
OLDEST: Final = 2
"""What is written, and the oldest version that can be read. Before 3, the position of a
session was in its state."""

SIZE: Final = 1 << 34
"""Bytes of address space for each file. Only the used part takes memory."""

STEP: Final = 1 << 18
"""Bytes to reserve or release at a time. Less garbage than this is not removed."""

PAGE: Final = mmap.PAGESIZE

_MAGIC: Final = int.from_bytes(b"lockdldg", sys.byteorder)
_COPY: Final = 5
_HEADER: Final = struct.Struct("=10Q")
DATA: Final = _HEADER.size
_CHECKED: Final = struct.Struct("=QQQ")

_PRIME: Final = (1 << 24) - 3
"""No flipped bit keeps the remainder of a division by it."""

_MARK: Final = 0xB10C
_MARK_BYTES: Final = _MARK.to_bytes(2, sys.byteorder)
_MARK_PLACE: Final = 8
_HEAD: Final = struct.Struct("=IIHxxIQ")

MAX_KEY: Final = 0xFFFF
MAX_VALUE: Final = 1 << 30

SLICE_BYTES: Final = 1 << 16
"""The most bytes to copy in one record. Damage affects one record."""

_PADDING: Final = [bytes(-size % 8) for size in range(8)]

Changes = dict[bytes, bytes | None]
"""New values by key. None removes the key."""

_encode: Final = msgspec.msgpack.Encoder().encode
_crc32: Final = crc32
"""Compiled code finds a constant faster than an imported name."""

_decode_keys = msgspec.msgpack.Decoder(list[bytes]).decode
_decode_values = msgspec.msgpack.Decoder(list[bytes | None]).decode


class Record(NamedTuple):
    """The changes of a commit, or a part of them."""

    offset: int
    size: int
    """Includes padding."""
    keys: list[bytes]
    values: list[bytes | None] | None
    """One for each key; None if they are damaged."""


class FileHeader(NamedTuple):
    """The content of a header."""

    version: int
    salt: int
    generation: int
    end: int
    """The end of the valid records; 0 if nothing is valid yet."""
    end_is_known: bool
    """False: both copies are damaged, and `end` is the end of the memory."""


class File:
    """One mapped memfd. Appended records become valid with a commit."""

    def __init__(self, fd: int) -> None:
        os.ftruncate(fd, SIZE)
        self.fd = fd
        self.map = mmap.mmap(fd, SIZE)
        # A core dump would fill the holes with memory.
        self.map.madvise(mmap.MADV_DONTDUMP)
        # Not struct.pack_into(), which first writes zeros. This stores a word at once.
        self._words = memoryview(self.map)[:DATA].cast("Q")
        self.generation = 0
        self.salt = 0
        self.end = 0
        #: The length that has memory.
        self.reserved = 0
        #: The length that may have memory.
        self.most = SIZE

    def begin(self, generation: int) -> None:
        """Makes it a file without records. It is not valid before `commit`.

        The old content stays, under another salt.

        Raises:
            OSError: there is no memory; try again.
        """
        self.reserve(DATA)
        self.end = DATA
        self.write_header(generation, int.from_bytes(os.urandom(4)))

    def adopt(self, header: FileHeader) -> None:
        """Opens a file of a predecessor for reading; `write_header` must follow.

        Raises:
            OSError: some memory is missing, and there is none.
        """
        self._take_up(max(header.end, _memory_of(self.fd)))
        self.end = header.end
        self.generation, self.salt = header.generation, header.salt

    def end_at(self, end: int) -> None:
        """Sets its end behind the last record, if the header does not have it."""
        self.end = end

    def adopt_memory(self) -> None:
        """Takes over the memory of a predecessor, without its content."""
        try:
            self._take_up(_memory_of(self.fd))
        except OSError:  # it has holes, and there is no memory to fill them
            os.ftruncate(self.fd, 0)
            os.ftruncate(self.fd, SIZE)
            self.reserved = 0
        if self.reserved:
            self.erase()

    def _take_up(self, size: int) -> None:
        """Fills holes in the memory that a predecessor reserved."""
        size = min((size + PAGE - 1) // PAGE * PAGE, SIZE)
        if size:
            os.posix_fallocate(self.fd, 0, size)
        self.reserved = size

    def write_header(self, generation: int, salt: int) -> None:
        """Writes both copies, the magic last, so that nobody reads half a copy.

        A copy without its magic is no damage. One that is whole is not touched before
        the other is whole, too: this may be killed at any store, and again at the next
        start.
        """
        self.generation, self.salt = generation, salt
        flags = VERSION << 32 | salt
        check = crc32(_CHECKED.pack(_MAGIC, flags, generation))
        wanted = [_MAGIC, flags, generation, check]
        found = {x: self._words[x : x + 4].tolist() for x in (0, _COPY)}
        for first in sorted(found, key=lambda x: _is_whole(*found[x])):
            if found[first] == wanted:
                continue
            self._words[first] = 0
            for place in (3, 2, 1, 0):
                self._words[first + place] = wanted[place]

    def append(self, records: bytes) -> int:
        """Writes records behind the end. Returns the offset.

        Raises:
            OSError: there is no memory; nothing has changed.
        """
        offset = self.end
        end = offset + len(records)
        if end > self.reserved:
            self.reserve(end)
        self.map[offset:end] = records
        self.end = end
        return offset

    def commit(self) -> None:
        """Makes all appended records valid with one machine instruction.

        The second copy is for damage of the first.
        """
        word = _guarded(self.end, self.salt)
        self._words[_COPY - 1] = word
        self._words[2 * _COPY - 1] = word

    def erase(self) -> None:
        """Makes it invalid. Its memory stays."""
        self.generation = self.end = 0
        for first in (0, _COPY):
            self._words[first] = 0
        for first in (0, _COPY):
            self._words[first + _COPY - 1] = 0

    def limit(self, most: int) -> None:
        """Limits the memory of the file."""
        self.most = most

    def reserve(self, end: int) -> None:
        """Reserves memory up to `end`, and up to the end of a step.

        Raises:
            OSError: there is none; nothing has changed.
        """
        if end <= self.reserved:
            return
        wanted = (end + STEP - 1) // STEP * STEP
        if wanted > self.most:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.posix_fallocate(self.fd, self.reserved, wanted - self.reserved)
        self.reserved = wanted

    def give_back(self, end: int) -> bool:
        """Releases a step of memory beyond `end`. Returns whether there was one."""
        wanted = max((end + STEP - 1) // STEP * STEP, self.reserved - STEP)
        if wanted >= self.reserved:
            return False
        self.map.madvise(mmap.MADV_REMOVE, wanted, self.reserved - wanted)
        self.reserved = wanted
        return True

    def close(self) -> None:
        """Unmaps and closes it. The valid records survive in copies of the memfd."""
        self._words.release()
        self.map.close()
        os.close(self.fd)


def _memory_of(fd: int) -> int:
    """Returns how many bytes of memory a file has."""
    return os.fstat(fd).st_blocks * 512


# Records.


def encode(changes: Changes, salt: int) -> bytes:
    """Returns a record in bytes."""
    keys, values = _encode(list(changes.keys())), _encode(list(changes.values()))
    keys_size, size = len(keys), len(values)
    check = _crc32(keys, salt ^ keys_size << 16 ^ size & 0xFFFF_FFFF)
    head = _HEAD.pack(check, _crc32(values, check), _MARK, keys_size, size)
    return head + keys + values + _PADDING[(keys_size + size) & 7]


def slices(values: Changes) -> Iterator[Changes]:
    """Splits values into few records, none too long."""
    slice_: Changes = {}
    size = 0
    for key, value in values.items():
        slice_[key] = value
        size += len(key) + len(value or b"")
        if size >= SLICE_BYTES:
            yield slice_
            slice_, size = {}, 0
    if slice_:
        yield slice_


def find_record(file: File, offset: int) -> Record | None:
    """Returns the first readable record from an offset on; None without one."""
    memory, end = file.map, file.end
    while offset + _HEAD.size <= end:
        check, values_check, mark, keys_size, size = _HEAD.unpack_from(memory, offset)
        keys_start = offset + _HEAD.size
        keys_end = keys_start + keys_size
        values_end = keys_end + size
        if mark == _MARK and values_end <= end:
            raw = memory[keys_start:keys_end]
            if crc32(raw, file.salt ^ keys_size << 16 ^ size & 0xFFFF_FFFF) == check:
                keys = _decode_keys(raw)
                raw = memory[keys_end:values_end]
                is_good = crc32(raw, check) == values_check
                values = _decode_values(raw) if is_good else None
                return Record(offset, (values_end - offset + 7) & -8, keys, values)
        offset = _next_mark(memory, offset, end)
    return None


def _next_mark(memory: mmap.mmap, offset: int, end: int) -> int:
    """Returns the next offset where a record may begin."""
    while True:
        found = memory.find(_MARK_BYTES, offset + _MARK_PLACE + 1, end)
        if found < 0:
            return end
        offset = found - _MARK_PLACE
        if offset % 8 == 0:
            return offset


# The header.


def read_header(fd: int, problems: list[str]) -> FileHeader | None:
    """Reads both copies of a header, without changes. Returns None without a header."""
    words = _HEADER.unpack(os.pread(fd, DATA, 0).ljust(DATA, b"\0"))
    found = None
    lengths = []
    for magic, flags, generation, check, length in (words[:_COPY], words[_COPY:]):
        if _is_whole(magic, flags, generation, check):
            found = flags >> 32, flags & 0xFFFF_FFFF, generation
            lengths.append(length)
        elif magic:
            problems.append("a copy of a header is damaged")
    if found is None:
        return None
    ends = [_end_of(word, found[1]) for word in lengths if word]
    if None in ends:
        problems.append("a copy of the length is damaged")
    end = max((end for end in ends if end), default=0)
    if ends and not end:
        return FileHeader(*found, os.lseek(fd, 0, os.SEEK_HOLE), end_is_known=False)
    return FileHeader(*found, end, end_is_known=True)


def _is_whole(magic: int, flags: int, generation: int, check: int) -> bool:
    """Returns whether a copy of a header can be read."""
    packed = _CHECKED.pack(magic, flags, generation)
    return magic == _MAGIC and crc32(packed) == check


def _guarded(end: int, salt: int) -> int:
    """Returns a length with its checksum as one word."""
    return end << 24 | (end % _PRIME ^ salt & 0xFF_FFFF)


def _end_of(word: int, salt: int) -> int | None:
    """Returns the length in a word of `_guarded`; None if it is damaged."""
    end = word >> 24
    return end if DATA <= end <= SIZE and word == _guarded(end, salt) else None
