"""Lines with fields arrive as the journal's protocol has them, or as plain lines."""

import array
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from daemon.system.conftest import log_to
from lockd.daemon.system.journal import Journal, encode
from lockd.daemon.system.logs import LogWriter

Fields = list[tuple[str, bytes]]


def decode(data: bytes) -> Fields:
    """Reads what systemd.io/JOURNAL_NATIVE_PROTOCOL describes."""
    found = []
    while data:
        line, _, rest = data.partition(b"\n")
        name, equals, value = line.partition(b"=")
        if not equals:
            size = int.from_bytes(rest[:8], "little")
            value, end, rest = (
                rest[8 : 8 + size],
                rest[8 + size : 9 + size],
                rest[9 + size :],
            )
            assert end == b"\n"
        found.append((name.decode(), value))
        data = rest
    return found


class Journald:
    """The other end of the socket."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(self.path)
        self.socket.settimeout(20)

    def receive(self) -> Fields:
        """Waits for a line; it may come as a file, which must be sealed."""
        data, control, _, _ = self.socket.recvmsg(1 << 20, socket.CMSG_SPACE(16))
        for _, _, raw in control:
            (fd,) = array.array("i", raw)
            assert data == b""
            with open(fd, "rb") as file:
                seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
                assert seals & fcntl.F_SEAL_WRITE
                assert os.readlink(f"/proc/self/fd/{fd}").startswith("/memfd:")
                file.seek(0)
                data = file.read()
        return decode(data)


@pytest.fixture
def journald(tmp_path: Path) -> Iterator[Journald]:
    journald = Journald(tmp_path / "socket")
    yield journald
    journald.socket.close()


def test_values_are_what_they_were() -> None:
    fields = {
        "MESSAGE": "one line = two",
        "LOCKD_RESOURCE": "a\nPRIORITY=0\n",
        "EMPTY": "",
        "BYTES": "\udcff ü",
    }
    assert decode(encode(fields)) == [
        ("MESSAGE", b"one line = two"),
        ("LOCKD_RESOURCE", b"a\nPRIORITY=0\n"),
        ("EMPTY", b""),
        ("BYTES", "\\udcff ü".encode()),
    ]


def test_value_with_a_newline_is_encoded_by_its_length() -> None:
    encoded = b"A\n\x03\0\0\0\0\0\0\0x\ny\n"
    assert encode({"A": "x\ny"}) == encoded


@pytest.mark.parametrize("name", ["", "_A", "a", "A B", "A=", "1A", "A" * 65])
def test_name_that_the_journal_does_not_take_is_a_defect(name: str) -> None:
    with pytest.raises(AssertionError):
        encode({name: "x"})


def test_line_goes_as_a_datagram(journald: Journald) -> None:
    journal = Journal(journald.path)
    journal.send({"MESSAGE": "x"})
    assert journald.receive() == [("MESSAGE", b"x")]
    journal.close()


def test_big_line_goes_as_a_sealed_file(journald: Journald) -> None:
    journal = Journal(journald.path)
    journal.send({"MESSAGE": "x" * 2_000_000, "B": "\n" * 100})
    assert journald.receive() == [("MESSAGE", b"x" * 2_000_000), ("B", b"\n" * 100)]
    journal.close()


def test_nobody_there_is_an_error(tmp_path: Path) -> None:
    journal = Journal(str(tmp_path / "nobody"))
    with pytest.raises(FileNotFoundError):
        journal.send({"MESSAGE": "x"})
    journal.close()


def test_log_gives_lines_with_fields_to_the_journal(
    journald: Journald, pipe: tuple[int, int]
) -> None:
    journal = Journal(journald.path)
    writer = LogWriter(pipe[1], journal)
    log = log_to(writer)
    log.warning("slow: %s", "x", extra={"fields": {"LOCKD_RESOURCE": "a\nb"}})
    log.info("plain")
    assert journald.receive() == [
        ("MESSAGE", b"slow: x"),
        ("PRIORITY", b"4"),
        ("SYSLOG_IDENTIFIER", b"lockd"),
        ("LOCKD_RESOURCE", b"a\nb"),
    ]
    writer.flush()
    assert os.read(pipe[0], 100) == b"plain\n"
    journal.close()


def test_line_that_the_journal_does_not_take_is_an_ordinary_one(
    tmp_path: Path, pipe: tuple[int, int]
) -> None:
    journal = Journal(str(tmp_path / "nobody"))
    for writer in (LogWriter(pipe[1], journal), LogWriter(pipe[1])):
        log_to(writer).warning("slow", extra={"fields": {"A": "b"}})
        writer.flush()
        assert os.read(pipe[0], 100) == b"slow\n"
    journal.close()


def test_journal_that_hangs_holds_nobody_up(
    journald: Journald, pipe: tuple[int, int]
) -> None:
    journal = Journal(journald.path)
    log = log_to(LogWriter(pipe[1], journal))
    for number in range(5_000):
        message = f"a line of its own kind {number}"
        log.warning(message, extra={"fields": {"A": "x" * 1_000}})
    assert journald.receive()[0] == ("MESSAGE", b"a line of its own kind 0")
