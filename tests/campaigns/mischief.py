"""What is said about and done to a lock daemon, good or bad, at random."""

import fcntl
import os
import random
import stat
import struct
from contextlib import suppress
from pathlib import Path
from typing import Final

from support import libvirt_client as lc

_FLOCK: Final = struct.Struct("hhqqi4x")
_KEEPALIVE: Final = 0x6B656570
_ADMIN: Final = 0x06900690
_CALLS: Final = range(lc.REGISTER, lc.CREATE_LOCKSPACE + 1)

# Owners that are no processes of ours: none at all, init, numbers nobody can have.
STRANGERS: Final = (0, 1, 0x7FFFFFFF, -1)

SPACES: Final = (b"", b"@/one", b"@/two")
ODD_SPACES: Final = (
    b"@/none",
    b"@/one/",
    b"@//one",
    b"@/one\0x",
    b"@/disks/file",
    b"@/deep/er/still",
    b"@/one/../one",
    b"\xff\xfe",
    b"/" + b"n" * 65_535,
    b"/" + b"n" * 65_536,
)
NAMES: Final = (b"a", b"b", b"c", b"0" * 64, b"with blank", "\u00e4".encode())
ODD_NAMES: Final = (
    b"",
    b".",
    b"..",
    b"a/b",
    b"no/such",
    b"../escaped",
    b"/absolute",
    b"./a",
    b"line\nbreak",
    b"control\x01",
    b"\xff\xfe",
    b"a\0b",
    b"n" * 255,
    b"n" * 256,
    b"n" * 65_536,
    b"n" * 65_537,
    b"link",
    b"dangling",
    b"directory",
    b"fifo",
    b"hardlink",
)
ODD_PATHS: Final = (b"@//disks/a", b"@/one/a", b"@/disks/../disks/a", b"relative")

CHANGED: Final = ("a", "b", "c", "link", "dangling", "directory", "fifo", "hardlink")
"""Files that come and go without a daemon."""


def furnish(root: Path) -> None:
    """Makes what is there when an episode begins."""
    for name in "one", "disks":
        (root / name).mkdir(mode=0o755)
    (root / "disks" / "a").write_bytes(b"precious")
    (root / "disks" / "b").write_bytes(b"precious, too")
    (root / "disks" / "file").touch(mode=0o640)


def resource(chance: random.Random) -> tuple[bytes, bytes]:
    """Chooses a lockspace and a name in it, good ones more often than not."""
    odd = chance.random()
    space = chance.choice(ODD_SPACES if odd < 0.04 else SPACES)
    if 0.04 < odd < 0.045:
        return b"", chance.choice(ODD_PATHS)
    name = chance.choice(ODD_NAMES if odd > 0.93 else NAMES)
    return space, name if space else b"@/disks/" + name


def malformed(chance: random.Random) -> bytes:
    """Returns bytes that are no call, or none that one should make."""
    kinds = (_strange_header, _cut, _surplus, _garbled, _no_length)
    kind = chance.choice((*kinds, _strange_header, _cut, _other_program, _two_at_once))
    return kind(chance)


def _strange_header(chance: random.Random) -> bytes:
    field = chance.choice(("program", "version", "procedure", "type", "status"))
    value = chance.choice((0, 1, 2, 3, 4, 5, 6, 9, 77, 0x7FFFFFFF))
    header = {"procedure": chance.choice(_CALLS), "serial": chance.getrandbits(32)}
    return lc.message(**(header | {field: value}), payload=lc.flags(0x40))


def _cut(chance: random.Random) -> bytes:
    """A call whose arguments end too early."""
    whole = chance.choice((lc.owner(0), lc.resource("", "a"), lc.text("a"), b"abcd"))
    payload = whole[: chance.randrange(len(whole))]
    procedures = {lc.owner(0): (1,), lc.text("a"): (8,), b"abcd": (2,)}
    procedure = chance.choice(procedures.get(whole, (4, 5, 6, 7)))
    return lc.message(procedure, payload, serial=chance.getrandbits(32))


def _surplus(chance: random.Random) -> bytes:
    """A call that is refused, with more behind its arguments than they need."""
    more = bytes(chance.choice((1, 3, 4, 70_000)))
    return lc.message(lc.RESTRICT, lc.flags(0x40) + more, serial=5)


def _garbled(chance: random.Random) -> bytes:
    """A text that is longer than it says, or than allowed, or padded with no zeros."""
    first = chance.choice((0xFFFFFFFF, 65_537, 0x7FFFFFFF, 3, 2))
    payload = struct.pack(">I", first) + b"abcX" + lc.text("a") + lc.flags(0x40)
    return lc.message(chance.choice((4, 5, 6, 7)), payload, serial=6)


def _no_length(chance: random.Random) -> bytes:
    """A message that is shorter than its header, or far too long."""
    length = chance.choice((0, 1, 4, 27, 0x7FFFFFFF, 0xFFFFFFFF, 33_554_437))
    return lc.message(lc.RESTRICT, lc.flags(0x40), length=length)


def _other_program(chance: random.Random) -> bytes:
    """A ping of libvirt's keepalive, more often than not; or what nobody serves."""
    program, version, procedure, kind = chance.choice(
        (
            (_KEEPALIVE, 1, 1, lc.MESSAGE),
            (_KEEPALIVE, 1, 1, lc.MESSAGE),
            (_KEEPALIVE, 1, 2, lc.MESSAGE),
            (_KEEPALIVE, 2, 1, lc.MESSAGE),
            (_KEEPALIVE, 1, 1, lc.CALL),
            (_ADMIN, 1, 1, lc.CALL),
        )
    )
    return lc.message(procedure, program=program, version=version, type=kind)


def _two_at_once(chance: random.Random) -> bytes:
    """Calls in one piece, the last of which may break off the conversation."""
    good = lc.message(lc.RESTRICT, lc.flags(0x20), serial=chance.getrandbits(32))
    return good + malformed(chance)


def change(directory: Path, name: str) -> None:
    """Removes a file, or makes it if it is not there."""
    path = directory / name
    if os.path.lexists(path):
        # A directory that is not empty stays.
        with suppress(OSError):
            is_directory = stat.S_ISDIR(os.lstat(path).st_mode)
            (os.rmdir if is_directory else os.unlink)(path)
    elif name == "link":
        path.symlink_to("a")
    elif name == "dangling":
        path.symlink_to("nowhere")
    elif name == "directory":
        path.mkdir(mode=0o755)
    elif name == "fifo":
        os.mkfifo(path, mode=0o600)
    elif name == "hardlink":
        with suppress(FileNotFoundError):
            os.link(directory / "a", path)
    else:
        path.touch(mode=0o644)


def lock_from_outside(path: Path, kind: int) -> int | None:
    """Locks the first byte of a file; returns what holds it, None if it is busy."""
    try:
        descriptor = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return None
    try:
        wanted = _FLOCK.pack(kind, os.SEEK_SET, 0, 1, 0)
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, wanted)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor
