"""Numbers of strands, and what refusals call them."""

import os
import threading
from collections.abc import Callable
from typing import Any

import pytest

from lockd.client.reply import Reply
from lockd.client.strands import LoneStrand, Program, Strand, strand_of_thread
from lockd.errors import BusyError, ConnectionLostError, DeadlockError, LockdError
from lockd.protocol.codec import Encoder

SESSION = 7


def in_thread(function: Callable[[], Any]) -> Any:
    """Returns what a function returns in a thread that has then ended."""
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(function()))
    thread.start()
    thread.join()
    return found.pop()


# Numbers.


def test_each_strand_has_a_number_of_its_own() -> None:
    strands = [kind() for _ in range(100) for kind in (Strand, LoneStrand)]
    assert len(set(strands)) == 200
    assert all((x % 2 == 0) == isinstance(x, LoneStrand) for x in strands)
    assert all(0 < strand < 2**32 for strand in strands)


@pytest.mark.parametrize("kind", [Strand, LoneStrand])
def test_number_is_used_again_once_nobody_refers_to_it(kind: type[Strand]) -> None:
    kept = [kind() for _ in range(3)]
    numbers = set()
    for _ in range(1_000):
        strand = kind()
        assert strand not in kept
        numbers.add(int(strand))
        del strand
    assert len(numbers) == 1


def test_thread_has_one_strand() -> None:
    mine = strand_of_thread()
    assert strand_of_thread() is mine
    assert not isinstance(mine, LoneStrand)
    assert in_thread(lambda: strand_of_thread() is strand_of_thread())
    assert in_thread(strand_of_thread) != mine


def test_thread_that_holds_keeps_its_number_beyond_its_end() -> None:
    held = in_thread(strand_of_thread)
    later = {in_thread(lambda: int(strand_of_thread())) for _ in range(50)}
    assert held not in later


def test_thread_that_ended_leaves_its_number_to_another() -> None:
    numbers = {in_thread(lambda: int(strand_of_thread())) for _ in range(200)}
    assert len(numbers) < 20


def test_strand_is_sent_as_its_number() -> None:
    encoder, strand = Encoder(), Strand()
    plain = encoder.request(1, "acquire", {"strand": int(strand)})
    assert encoder.request(1, "acquire", {"strand": strand}) == plain


# Words.


@pytest.fixture
def program() -> Program:
    program = Program("thread")
    program.hear(Reply("hello", {"protocol": 1}), {"session": SESSION})
    return program


def somebody(session: int = SESSION, strand: int = 0, **more: Any) -> dict[str, Any]:
    return {"name": "py", "pid": 5, "session": session, "strand": strand, **more}


def told(program: Program, sentence: str, strand: int = 1, **facts: Any) -> str:
    return str(program.in_own_words(BusyError(sentence, facts), strand))


NAME = "py (pid 5, uid 0)"


@pytest.mark.parametrize(
    ("holder", "words"),
    [
        (somebody(strand=1), "this thread"),
        (somebody(strand=3), "another thread of this program"),
        (somebody(strand=4), "this program"),
        (somebody(strand=0), "this program"),
        (somebody(session=8, strand=1), NAME),
        (somebody(session=8, strand=3), NAME),
        ({"name": "other", "pid": 5, "session": SESSION}, NAME),
        ({"name": "py", "pid": 6, "session": SESSION}, NAME),
    ],
)
def test_holder_of_this_program_is_named_as_what_it_is(
    program: Program, holder: dict[str, Any], words: str
) -> None:
    sentence = "'x' is held exclusively by {} for 1 s: why; wait"
    found = told(program, sentence.format(NAME), holders=[holder])
    assert found == sentence.format(words)


def test_each_of_several_parties_is_named_in_turn(program: Program) -> None:
    holders = [somebody(8, 1), somebody(SESSION, 3), somebody(9, 3), somebody()]
    waiters = [somebody(SESSION, 5), somebody(8)]
    sentence = "'x' is held shared by {}, {}, {}, 1 more; 2 wait for it, first {}"
    found = told(
        program, sentence.format(*[NAME] * 4), holders=holders, waiters=waiters
    )
    other = "another thread of this program"
    assert found == sentence.format(NAME, other, NAME, other)


def test_circle_is_told_in_words_of_this_program(program: Program) -> None:
    sentence = (
        "waiting for 'b' would never end; {0} waits for 'b', held or queued for by "
        "{1}, who waits for 'a', held or queued for by {0}; {1} waits for it"
    )
    error = DeadlockError(
        sentence.format(NAME, NAME),
        {
            "cycle": [somebody(strand=1), somebody(strand=3)],
            "holders": [somebody(strand=3)],
            "waiters": [somebody(strand=3)],
        },
    )
    found = program.in_own_words(error, 1)
    assert type(found) is DeadlockError
    assert found.facts == error.facts
    words = sentence.format("this thread", "another thread of this program")
    assert str(found) == words


def test_circle_through_the_holder_around_a_program_names_each(
    program: Program,
) -> None:
    sentence = (
        "waiting for 'b' would never end; {} waits for 'b', held or queued for by {}, "
        "who waits for 'a', held or queued for by {}, which waits for the end of {}"
    )
    inside = {"name": "lockctl", "pid": 4, "session": 3}
    cycle = [somebody(strand=1), somebody(strand=3, inside=inside)]
    run = "lockctl (pid 4, uid 0)"
    found = told(program, sentence.format(NAME, NAME, run, NAME), cycle=cycle)
    other = "another thread of this program"
    assert found == sentence.format("this thread", other, run, "this thread")


def test_tasks_are_called_tasks() -> None:
    program = Program("task")
    program.hear(Reply("hello", {}), {"session": SESSION})
    found = told(program, f"held by {NAME}", holders=[somebody(strand=3)])
    assert found == "held by another task of this program"


def test_words_of_the_daemon_stay_where_there_is_nothing_to_say(
    program: Program,
) -> None:
    sentence = f"'x' is held exclusively by {NAME}"
    own: dict[str, Any] = {"holders": [somebody(strand=3)]}
    # No strand asked, as in lockctl; no facts; nobody is named; another class.
    assert told(program, sentence, strand=0, **own) == sentence
    assert told(program, sentence) == sentence
    assert told(program, "'x' is taken", **own) == "'x' is taken"
    error: LockdError = ConnectionLostError(sentence)
    assert program.in_own_words(error, 1) is error
    # Before `hello` is answered, no session is this one.
    assert told(Program("thread"), sentence, **own) == sentence


@pytest.mark.parametrize(
    ("owner", "whole"),
    [
        ({"name": "n"}, False),
        ({"name": "n", "pid": None}, False),
        ({"name": "n", "pid": -1}, False),
        ({"name": "n", "pid": 1}, True),
    ],
)
def test_session_that_acts_for_another_process_has_no_strands(
    program: Program, owner: dict[str, Any], whole: bool
) -> None:
    if owner.get("pid") == -1:
        owner = owner | {"pid": os.getpid()}
    assert not program.whole
    program.hear(Reply("register", {"owner": owner}), {"owner": owner})
    assert program.whole == whole
