"""A file of records in shared memory, of which the first so many bytes count.

The header is five 64-bit words, twice: magic, version and salt, generation, a checksum
of these, and the length with a checksum of its own. It is read by every version, for
ever. Records follow, aligned to eight bytes, each with keys and their values: checksum
of lengths and keys, checksum of the values, a mark, both lengths, keys, values; these
are arrays in MessagePack. All numbers are the machine's own: the memory never leaves
it. The salt keeps what is inside a value from passing for a record when what is around
it is damaged.

The file is sparse and as large as it can ever be, so that it is mapped once. Memory is
reserved (fallocate(2)) before it is written to: where there is none, that fails with
OSError, whereas the write itself would be SIGBUS.
"""

import errno
import mmap
import os
import struct
import sys
from typing import Final, NamedTuple
from zlib import crc32

import msgspec

VERSION: Final = 2

SIZE: Final = 1 << 34
"""Bytes of address space for each file: of memory, only what is used."""

STEP: Final = 1 << 18
"""Bytes that are reserved, or given back, at a time; less garbage is not tidied."""

PAGE: Final = mmap.PAGESIZE

_MAGIC: Final = int.from_bytes(b"lockdldg", sys.byteorder)
_COPY: Final = 5
_HEADER: Final = struct.Struct("=10Q")
DATA: Final = _HEADER.size
_CHECKED: Final = struct.Struct("=QQQ")

_PRIME: Final = (1 << 24) - 3
"""No flipped bit leaves the rest of a division by it as it was."""

_MARK: Final = 0xB10C
_MARK_BYTES: Final = _MARK.to_bytes(2, sys.byteorder)
_MARK_PLACE: Final = 8
_HEAD: Final = struct.Struct("=IIHxxIQ")

MAX_KEY: Final = 0xFFFF
MAX_VALUE: Final = 1 << 30

_PADDING: Final = [bytes(-size % 8) for size in range(8)]

Changes = dict[bytes, bytes | None]
"""New values by key; None where a key has none any more."""

_encode = msgspec.msgpack.Encoder().encode
_decode_keys = msgspec.msgpack.Decoder(list[bytes]).decode
_decode_values = msgspec.msgpack.Decoder(list[bytes | None]).decode


class Record(NamedTuple):
    """What was committed together, or a part of it."""

    offset: int
    size: int
    """With padding."""
    keys: list[bytes]
    values: list[bytes | None] | None
    """As many as there are keys; None: they are damaged."""


class FileHeader(NamedTuple):
    """What a header says of its file."""

    version: int
    salt: int
    generation: int
    end: int
    """Where that which counts ends; 0: nothing counts yet."""
    end_is_known: bool
    """False: both copies of it are damaged, and this is where the memory ends."""


class File:
    """One memfd, mapped; records are appended, and count once they are committed."""

    def __init__(self, fd: int) -> None:
        os.ftruncate(fd, SIZE)
        self.fd = fd
        self.map = mmap.mmap(fd, SIZE)
        # A core dump would fill memory with what is a hole.
        self.map.madvise(mmap.MADV_DONTDUMP)
        # Not struct.pack_into(): it fills with zeros first. This stores a word at once.
        self._words = memoryview(self.map)[:DATA].cast("Q")
        self.generation = 0
        self.salt = 0
        self.end = 0
        #: So far there is memory.
        self.reserved = 0
        #: So far there may be.
        self.most = SIZE

    def begin(self, generation: int) -> None:
        """Makes it a file with no records, which does not count before `commit`.

        What it had before is still there, but under another salt.

        Raises:
            OSError: there is no memory; it can be tried again.
        """
        self.reserve(DATA)
        self.end = DATA
        self.write_header(generation, int.from_bytes(os.urandom(4)))

    def adopt(self, header: FileHeader) -> None:
        """Makes it a file whose records can be read, and nothing can be added yet.

        Raises:
            OSError: there is no memory, where some is missing.
        """
        self._take_up(max(header.end, _memory_of(self.fd)))
        self.end = header.end
        self.generation, self.salt = header.generation, header.salt

    def end_at(self, end: int) -> None:
        """Has it end behind its last record, where its header does not say so."""
        self.end = end

    def adopt_memory(self) -> None:
        """Goes on with the memory of a predecessor, and with nothing that is in it."""
        try:
            self._take_up(_memory_of(self.fd))
        except OSError:  # it had holes, and there is no memory to fill them
            os.ftruncate(self.fd, 0)
            os.ftruncate(self.fd, SIZE)
            self.reserved = 0
        if self.reserved:
            self.erase()

    def _take_up(self, size: int) -> None:
        """Sees to it that there are no holes in what was reserved by a predecessor."""
        size = min((size + PAGE - 1) // PAGE * PAGE, SIZE)
        if size:
            os.posix_fallocate(self.fd, 0, size)
        self.reserved = size

    def write_header(self, generation: int, salt: int) -> None:
        """Writes both copies: the magic last, so that no half of one is ever read."""
        self.generation, self.salt = generation, salt
        flags = VERSION << 32 | salt
        check = crc32(_CHECKED.pack(_MAGIC, flags, generation))
        for first in (0, _COPY):
            self._words[first + 3] = check
            self._words[first + 2] = generation
            self._words[first + 1] = flags
            self._words[first] = _MAGIC

    def append(self, records: bytes) -> int:
        """Writes behind the end, and returns where.

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
        """Has all that was appended count, from one machine instruction to the next.

        The second copy is for the case that the first is damaged.
        """
        word = _guarded(self.end, self.salt)
        self._words[_COPY - 1] = word
        self._words[2 * _COPY - 1] = word

    def erase(self) -> None:
        """Has nothing count any more; the memory is still there."""
        self.generation = self.end = 0
        for first in (0, _COPY):
            self._words[first] = 0
        for first in (0, _COPY):
            self._words[first + _COPY - 1] = 0

    def limit(self, most: int) -> None:
        """Lets it have at most so many bytes of memory from now on."""
        self.most = most

    def reserve(self, end: int) -> None:
        """Sees to it that there is memory up to there, and up to the end of a step.

        Raises:
            OSError: there is not; nothing has changed.
        """
        if end <= self.reserved:
            return
        wanted = (end + STEP - 1) // STEP * STEP
        if wanted > self.most:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.posix_fallocate(self.fd, self.reserved, wanted - self.reserved)
        self.reserved = wanted

    def give_back(self, end: int) -> bool:
        """Gives a step of memory back to the kernel, of what is beyond `end`.

        Tells whether there was one.
        """
        wanted = max((end + STEP - 1) // STEP * STEP, self.reserved - STEP)
        if wanted >= self.reserved:
            return False
        self.map.madvise(mmap.MADV_REMOVE, wanted, self.reserved - wanted)
        self.reserved = wanted
        return True

    def close(self) -> None:
        """Unmaps and closes it; what counts stays, if the memfd is kept elsewhere."""
        self._words.release()
        self.map.close()
        os.close(self.fd)


def _memory_of(fd: int) -> int:
    """Returns how many bytes of memory a file has."""
    return os.fstat(fd).st_blocks * 512


# Records.


def encode(changes: Changes, salt: int) -> bytes:
    """Returns a record."""
    keys, values = _encode(list(changes)), _encode(list(changes.values()))
    keys_size, size = len(keys), len(values)
    check = crc32(keys, salt ^ keys_size << 16 ^ size & 0xFFFF_FFFF)
    head = _HEAD.pack(check, crc32(values, check), _MARK, keys_size, size)
    return head + keys + values + _PADDING[(keys_size + size) & 7]


def find_record(file: File, offset: int) -> Record | None:
    """Returns the first readable record from there on; None: there is none."""
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
    """Reads both copies of a header, without changing anything; None: there is none."""
    words = _HEADER.unpack(os.pread(fd, DATA, 0).ljust(DATA, b"\0"))
    found = None
    lengths = []
    for magic, flags, generation, check, length in (words[:_COPY], words[_COPY:]):
        if magic == _MAGIC and crc32(_CHECKED.pack(magic, flags, generation)) == check:
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


def _guarded(end: int, salt: int) -> int:
    """Returns a length together with a checksum of it, as one word."""
    return end << 24 | (end % _PRIME ^ salt & 0xFF_FFFF)


def _end_of(word: int, salt: int) -> int | None:
    """Returns the length that `_guarded` made a word of; None: it is damaged."""
    end = word >> 24
    return end if DATA <= end <= SIZE and word == _guarded(end, salt) else None
