"""What Hypothesis draws for the engine: steps as plain tuples, a verb and its words.

Few names and three sessions, so that queues form; all steps in every run, so that none
is spent on one kind of command. A step is two draws: drawing costs more than doing.
`PICKS` choose among what is there at that moment.
"""

from collections.abc import Sequence
from itertools import permutations, product
from typing import Any

from hypothesis import strategies as st

from lockd.terms import EXCLUSIVE, SHARED, SLOT, Mode

SLOTS = (0, 1, 2)
"""Three who act, the fewest that make a queue, and a circle of three: sessions, or
strands of one session."""

Crowd = tuple[tuple[int, Mode], ...]
Step = tuple[Any, ...]

NAMES = (("a",), ("a",), ("b",), ("a", "b"), ("b", "a"))
MODES: tuple[Mode, ...] = (EXCLUSIVE, SHARED)
#: Mostly for ever: who gives up soon never stands in a queue.
TIMEOUTS = (None, None, None, 1.0, 2.0, 0)
PICKS = range(6)
OUTCOMES = (None, "ok", "failed", "died")
OUTSIDE = ("nothing", "nothing", "nothing", "busy", "io")
CROWDS: list[Crowd] = [
    tuple(zip(order, chosen, strict=True))
    for order in permutations(SLOTS)
    for chosen in product(MODES, repeat=len(SLOTS))
]
BOTH = (False, True)
PAUSES = (0.01, 0.5, 1.0, 2.0)

_MOST_WORDS = 216
"""Up to a few hundred Hypothesis draws evenly; of more it prefers the first."""


def _steps(*verbs: tuple[int, str, *tuple[Sequence[Any], ...]]) -> Any:
    steps = [list(product([verb], *words)) for _, verb, *words in verbs]
    shares = [i for i, (share, *_) in enumerate(verbs) for _ in range(share)]
    draws = st.tuples(st.sampled_from(shares), st.integers(0, _MOST_WORDS - 1))
    return draws.map(lambda draw: steps[draw[0]][draw[1] % len(steps[draw[0]])])


_COMMON = (
    (6, "acquire", SLOTS, NAMES, MODES, TIMEOUTS),
    (1, "acquire", SLOTS, NAMES, MODES, (None,), (0, 1, 2)),
    (2, "crowd", ("a", "b"), CROWDS, (None,), (1, 2)),
    (3, "crowd", ("a", "b"), CROWDS, (None, 2.0)),
    (2, "cross", CROWDS),
    (1, "upgrade", CROWDS, BOTH),
    (1, "barge", CROWDS),
    (1, "ring", CROWDS),
    (1, "pile", CROWDS, (1, 2)),
    (1, "snare", CROWDS, BOTH, BOTH),
    (1, "twins", CROWDS),
    (2, "nest", SLOTS, PICKS, PICKS),
    (1, "trees", CROWDS),
    (1, "snare_of_a_child", CROWDS),
    (1, "siblings", CROWDS, BOTH, BOTH),
    (1, "passer_by", CROWDS, BOTH, BOTH),
    (1, "grandchild", CROWDS, BOTH),
    (1, "cousins", CROWDS, BOTH),
    (2, "upgrade_around", CROWDS, BOTH),
    (1, "snare_inside", CROWDS, BOTH),
    (1, "deeper", CROWDS),
    (1, "passer_by_of_two", CROWDS),
    (1, "process_inside", CROWDS, BOTH),
    (1, "sharers_inside", CROWDS),
    (3, "convert", PICKS, SLOTS, MODES, TIMEOUTS),
    (1, "convert_all", MODES),
    (5, "release", PICKS, OUTCOMES),
    (2, "release_for_owner", SLOTS, PICKS),
    (2, "leave", CROWDS, PICKS[:3]),
    (1, "release_names", SLOTS, NAMES),
    (3, "cancel", PICKS),
    (2, "reconnect", SLOTS, BOTH),
    (2, "join", SLOTS, SLOTS),
    (1, "break_grant", PICKS),
    (1, "wait_too_long", CROWDS, PAUSES),
    (1, "break_and_take", PICKS, SLOTS, MODES),
    (1, "process_ends", BOTH),
    (7, "time_passes", PAUSES),
    (2, "dump_and_load"),
    (1, "crash"),
    (2, "lose", range(6), range(36)),
)
PLACES = (None, 1, 2, 3)
"""How many slots somebody wants, or the operator configures."""

memory_steps = _steps(
    *_COMMON,
    (4, "take_slot", SLOTS, ("a", "b"), (None, 1, 2, 2, 3), TIMEOUTS),
    (2, "pool", CROWDS, PLACES[1:]),
    (2, "knot", CROWDS, PLACES[1:], BOTH),
    (1, "overtaken", CROWDS, BOTH),
    (1, "crowd", ("a", "b"), CROWDS, (None,), (1, 2)),
    (1, "siblings_in_a_slot", CROWDS, PLACES[1:3], BOTH),
    (1, "neighbour_of_a_slot", CROWDS, PLACES[1:3], BOTH),
    (1, "grandchild_in_a_slot", CROWDS, PLACES[1:3], BOTH),
    (1, "shrink", CROWDS),
    (1, "grow", CROWDS),
    (1, "convert", PICKS, SLOTS, (SLOT,), (None,)),
    (2, "configure", ("a", "b", "*"), PLACES),
)
anchor_steps = _steps(
    *_COMMON,
    (2, "fenced_process_dies"),
    (5, "anchor_answers", PICKS, OUTSIDE),
    (2, "anchor_is_slow", PICKS),
    (3, "anchors_answer"),
    (1, "locked_out", CROWDS),
    (1, "change_outside", OUTSIDE),
)
