"""Bytes of clients, and what another process finds of them after a kill at any step."""

import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator

import pytest

from lockd.daemon.stores.streams import (
    CELLS_SIZE,
    LARGEST,
    PIPE_SIZE,
    SO_PEEK_OFF,
    Cells,
    KeptFlow,
    Pipe,
)

REQUEST = b"x" * 100
ANSWER = b"y" * 300

Step = Callable[[], object]

MANY_KILLS = 10

ANY_ANSWERS = range(sys.maxsize)
"""All may be sent by now, or nothing."""


class Kept:
    """A flow and all that outlives its process; `heir` is another process's."""

    def __init__(self) -> None:
        self.cells, self.pipe = Cells(), Pipe()
        self.ours, self.client = socket.socketpair(socket.AF_UNIX)
        self.ours.setblocking(False)
        self.client.setblocking(False)
        self.flow = KeptFlow(self.ours, 7, self.cells, self.pipe)
        self.flow.begin()

    def heir(self, done: int, answers: range = ANY_ANSWERS) -> KeptFlow:
        self.cells.finish_sending(self.pipe)
        flow = KeptFlow(self.ours, 7, self.cells, self.pipe)
        flow.resume(done, answers)
        return flow

    def at_a_kill(self, steps: int) -> list[int]:
        """Has a request answered up to a step of that; returns what the cells have."""
        self.client.send(REQUEST)
        self.flow.receive()
        self.flow.settle()
        self.client.send(b"next")
        for step in steps_of_sending(self, 120)[:steps]:
            step()
        size = 8 * (CONSUMED + 1)
        return list(memoryview(os.pread(self.cells.fd, size, 0)).cast("Q"))

    def close(self) -> None:
        self.cells.close()
        self.pipe.close()
        self.ours.close()
        self.client.close()


@pytest.fixture
def kept() -> Iterator[Kept]:
    kept = Kept()
    yield kept
    kept.close()


def received(flow: KeptFlow) -> bytes:
    try:
        return flow.receive()
    except BlockingIOError:
        return b""


def read(client: socket.socket) -> bytes:
    data = b""
    try:
        while more := client.recv(65_536):
            data += more
    except BlockingIOError:
        pass
    return data


# Requests.


def test_what_was_received_stays_until_it_is_settled(kept: Kept) -> None:
    kept.client.send(REQUEST)
    assert kept.flow.receive() == REQUEST
    assert received(kept.flow) == b""
    heir = kept.heir(0)
    assert heir.receive() == REQUEST
    heir.settle()
    assert received(heir) == b""
    assert received(kept.heir(len(REQUEST))) == b""


def test_request_that_was_not_recorded_comes_again(kept: Kept) -> None:
    kept.client.send(REQUEST)
    kept.flow.receive()
    assert received(kept.heir(0)) == REQUEST


def test_request_that_was_recorded_is_taken_out_by_the_heir(kept: Kept) -> None:
    kept.client.send(REQUEST)
    kept.flow.receive()
    kept.client.send(b"next")
    heir = kept.heir(len(REQUEST))
    assert received(heir) == b"next"
    heir.settle()
    assert received(heir) == b""


def test_request_that_was_taken_out_is_not_taken_out_again(kept: Kept) -> None:
    kept.client.send(REQUEST)
    kept.flow.receive()
    # Settled, but killed before that was stored.
    kept.ours.recv(len(REQUEST))
    kept.client.send(b"next")
    assert received(kept.heir(len(REQUEST))) == b"next"


def test_requests_of_which_some_are_done_are_taken_out_so_far(kept: Kept) -> None:
    kept.client.send(REQUEST + b"left for later")
    kept.flow.receive()
    assert received(kept.heir(len(REQUEST))) == b"left for later"


def test_heir_that_is_killed_as_well_has_an_heir(kept: Kept) -> None:
    kept.client.send(REQUEST + b"left for later")
    kept.flow.receive()
    # Killed after each step of KeptFlow.resume.
    kept.ours.setsockopt(socket.SOL_SOCKET, SO_PEEK_OFF, len(REQUEST))
    assert received(kept.heir(len(REQUEST))) == b"left for later"
    kept.ours.setsockopt(socket.SOL_SOCKET, SO_PEEK_OFF, 0)
    assert received(kept.heir(len(REQUEST))) == b"left for later"


def test_positions_go_on_over_many_requests(kept: Kept) -> None:
    done = 0
    for number in range(5):
        kept.client.send(REQUEST)
        kept.flow.receive()
        done += len(REQUEST)
        if number % 2:
            kept.flow.settle()
        else:
            kept.flow = kept.heir(done)
    assert received(kept.flow) == b""


# Answers.


def test_answer_arrives(kept: Kept) -> None:
    assert kept.flow.send(ANSWER) == len(ANSWER)
    assert read(kept.client) == ANSWER
    assert kept.flow.sent == len(ANSWER)


def test_long_answer_arrives_in_pieces_as_the_client_reads(kept: Kept) -> None:
    answer = bytearray(os.urandom(5 * PIPE_SIZE))
    rest, got = answer[:], b""
    while rest:
        del rest[: kept.flow.send(rest)]
        got += read(kept.client)
    assert got == bytes(answer)
    assert kept.flow.sent == len(answer)


def test_client_that_is_gone_leaves_nothing_in_the_pipe(kept: Kept) -> None:
    kept.client.close()
    with pytest.raises(BrokenPipeError):
        kept.flow.send(ANSWER)
    assert kept.pipe.left() == 0
    assert kept.heir(0).sent == 0


def steps_of_sending(kept: Kept, moved: int) -> list[Step]:
    """Returns what `KeptFlow.send` does, one step after the other."""
    return [
        lambda: kept.pipe.fill(ANSWER),
        lambda: kept.cells.begin_sending(7, 0, len(ANSWER)),
        lambda: os.splice(kept.pipe.ends[0], kept.ours.fileno(), moved),
        lambda: kept.cells.set_sent(7, moved),
        lambda: kept.cells.end_sending(7, moved),
        lambda: kept.pipe.empty(),
    ]


@pytest.mark.parametrize("moved", [len(ANSWER), 120])
@pytest.mark.parametrize("killed_after", range(7))
def test_heir_sends_what_has_not_left_and_nothing_twice(
    kept: Kept, killed_after: int, moved: int
) -> None:
    for step in steps_of_sending(kept, moved)[:killed_after]:
        step()
    heir = kept.heir(0)
    heir.send(ANSWER[heir.sent :])
    assert read(kept.client) == ANSWER


# Damage.

SLOT = 7
SENT, CONSUMED = 4 + 2 * SLOT, 5 + 2 * SLOT
PLACES = [0, 1, 2, SENT, CONSUMED]


def spoilt(word: int, place: int) -> Iterator[int]:
    """All that may have become of a word."""
    yield from (
        0,
        2**64 - 1,
        word + 1 & 2**64 - 1,
        word ^ 0xFFFF,
        word << 8 & 2**64 - 1,
    )
    # As it would be elsewhere.
    yield from (word + other - place & 2**64 - 1 for other in PLACES)
    yield from (word ^ 1 << bit for bit in range(64))


def spoil(kept: Kept, place: int, word: int) -> None:
    os.pwrite(kept.cells.fd, word.to_bytes(8, sys.byteorder), 8 * place)


def word_at(kept: Kept, place: int) -> int:
    return int.from_bytes(os.pread(kept.cells.fd, 8, 8 * place), sys.byteorder)


@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("killed_after", range(7))
def test_damaged_position_ends_the_connection_or_costs_nothing(
    killed_after: int, place: int
) -> None:
    ended = 0
    kept = Kept()
    found = kept.at_a_kill(killed_after)
    kept.close()
    for word in spoilt(found[place], place):
        if word == found[place]:
            continue
        kept = Kept()
        kept.at_a_kill(killed_after)
        spoil(kept, place, word)
        try:
            heir = kept.heir(len(REQUEST), range(len(ANSWER)))
        except ValueError:
            ended += 1
        else:
            heir.send(ANSWER[heir.sent :])
            assert read(kept.client) == ANSWER
            assert received(heir) == b"next"
        kept.close()
    assert ended or place != CONSUMED


def test_position_of_somebody_else_is_nobodys_business(kept: Kept) -> None:
    kept.at_a_kill(3)
    spoil(kept, SENT + 2, 1)
    heir = kept.heir(len(REQUEST), range(len(ANSWER)))
    heir.send(ANSWER[heir.sent :])
    assert read(kept.client) == ANSWER


@pytest.mark.parametrize("place", [0, 1, 2])
def test_who_has_nothing_to_get_goes_on_whoever_was_being_sent_to(
    kept: Kept, place: int
) -> None:
    kept.at_a_kill(3)
    other = KeptFlow(kept.ours, SLOT + 1, kept.cells, kept.pipe)
    other.begin()
    spoil(kept, place, 0)
    with pytest.raises(ValueError, match="may have got a part"):
        kept.heir(len(REQUEST), range(len(ANSWER)))
    # Who is killed now finds it as it was.
    cells = Cells(os.dup(kept.cells.fd))
    cells.finish_sending(kept.pipe)
    assert cells.is_unsure
    KeptFlow(kept.ours, SLOT + 1, cells, kept.pipe).resume(0, range(0))
    cells.close()


@pytest.mark.parametrize("size", [0, 1, 20, 23, 24, 8 * SENT + 3, 4_096])
def test_cells_that_were_cut_off_are_there_again(kept: Kept, size: int) -> None:
    kept.at_a_kill(6)
    os.ftruncate(kept.cells.fd, size)
    cells = Cells(os.dup(kept.cells.fd))
    assert os.fstat(cells.fd).st_size == CELLS_SIZE
    cells.finish_sending(kept.pipe)
    heir = KeptFlow(kept.ours, SLOT, cells, kept.pipe)
    if size < 8 * SENT + 16:
        with pytest.raises(ValueError, match="damaged"):
            heir.resume(len(REQUEST), range(len(ANSWER)))
    heir.begin()
    assert cells.positions(SLOT) == (0, 0)
    cells.close()


@pytest.mark.parametrize(
    ("done", "answers"),
    [
        (len(REQUEST) - 1, range(len(ANSWER))),
        (len(REQUEST), range(119)),
        (len(REQUEST), range(121, len(ANSWER))),
    ],
)
def test_records_that_are_older_than_the_positions_end_the_connection(
    kept: Kept, done: int, answers: range
) -> None:
    kept.at_a_kill(6)
    with pytest.raises(ValueError, match="its last records are missing"):
        kept.heir(done, answers)


def test_slot_that_cannot_be_is_damage(kept: Kept) -> None:
    heir = KeptFlow(kept.ours, CELLS_SIZE, kept.cells, kept.pipe)
    with pytest.raises(ValueError, match="damaged"):
        heir.resume(0, ANY_ANSWERS)


def test_longest_stream_can_be_stored_and_then_ends(kept: Kept) -> None:
    kept.cells.set_sent(SLOT, LARGEST)
    kept.cells.set_consumed(SLOT, LARGEST)
    assert kept.cells.positions(SLOT) == (LARGEST, LARGEST)
    heir = kept.heir(LARGEST)
    kept.client.send(REQUEST)
    with pytest.raises(OSError, match="too large"):
        heir.receive()


def test_process_that_is_killed_anywhere_loses_and_doubles_nothing(
    kept: Kept,
) -> None:
    """A child echoes numbers, is killed at random, and goes on as its own heir."""
    numbers = [b"%06d" % number for number in range(60_000)]
    asked = got = b""
    done_fd = os.memfd_create("done")
    os.ftruncate(done_fd, 8)
    sent, kills = 0, 0
    while len(got) < 6 * len(numbers):
        child = os.fork()
        if child == 0:
            echo(kept, done_fd)
        until = len(got) + 6_000
        while len(got) < min(until, 6 * len(numbers)):
            if sent < len(numbers):
                try:
                    kept.client.send(b"".join(numbers[sent : sent + 7]))
                    sent += 7
                except BlockingIOError:
                    pass
            got += read(kept.client)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        kills += 1
        asked = b"".join(numbers)
    os.close(done_fd)
    assert got == asked
    assert kills >= MANY_KILLS


def echo(kept: Kept, done_fd: int) -> None:
    """Answers with what was asked; records how far it came, as a daemon would."""
    try:
        done = int.from_bytes(os.pread(done_fd, 8, 0))
        flow = kept.heir(done)
        # What is read may end within a number.
        numbers = range(flow.sent // 6, done // 6 + 1)
        answer = b"".join(b"%06d" % number for number in numbers)
        answer = answer[flow.sent % 6 :][: done - flow.sent]
        while True:
            while answer:
                answer = answer[flow.send(answer) :]
            flow.settle()
            answer = received(flow)
            done += len(answer)
            # One pwrite(2) of 8 bytes is one step to whoever kills.
            os.pwrite(done_fd, done.to_bytes(8), 0)
    finally:
        os._exit(1)
