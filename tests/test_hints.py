"""What stands in for `typing` at run time is good for annotations, and for no more."""

from types import SimpleNamespace
from typing import Any

from lockd import hints

#: As the program sees it; a type checker sees `typing`.
hint: Any = SimpleNamespace(**vars(hints))


def test_hints_can_be_written_as_those_of_typing() -> None:
    for name in ("Any", "ClassVar", "Final", "NoReturn", "Self"):
        one: Any = getattr(hint, name)
        assert repr(one) == name
        for annotation in (one[int], one | None, None | one, int | one):
            assert annotation is one
        listed: Any = list
        assert repr(listed[one]) == f"list[{name}]"


def test_named_tuple_has_its_fields_by_name_and_by_place() -> None:
    class Pair(hint.NamedTuple("Pair", [("left", int), ("right", str)])):  # type: ignore[misc]
        __slots__ = ()

    pair = Pair(1, right="x")
    assert (pair.left, pair.right, *pair) == (1, "x", 1, "x")
    assert pair == Pair(1, "x") == (1, "x")
    # msgspec reads these.
    assert Pair.__base__ is not None
    assert Pair.__base__.__annotations__ == {"left": int, "right": str}
    assert Pair.__base__.__module__ == __name__


def test_protocol_is_a_base_like_any() -> None:
    class Described(hint.Protocol):  # type: ignore[misc]
        pass

    class Real(Described):
        pass

    assert isinstance(Real(), Described)
