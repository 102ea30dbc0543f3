import pytest

from lockd.client import requests, within

A, B = "0" * 32, "1" * 32


def test_locks_around_a_program_are_inherited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(within.VARIABLE, f"{A}:1 {B}:2 {A}:3")
    assert within.inherited() == [f"{A}:1", f"{B}:2", f"{A}:3"]
    assert within.tokens_of(A) == {1, 3}
    assert within.tokens_of("") == set()
    assert within.value(B, [4, 5]) == f"{A}:1 {B}:2 {A}:3 {B}:4 {B}:5"


def test_daemon_without_a_name_has_no_locks_to_tell_of(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(within.VARIABLE, f"{A}:1")
    assert within.value("", [4]) == f"{A}:1"


def test_innermost_locks_count(monkeypatch: pytest.MonkeyPatch) -> None:
    words = [f"{A}:{number}" for number in range(100)]
    monkeypatch.setenv(within.VARIABLE, " ".join(words))
    assert within.inherited() == words[-64:]
    assert within.value(B, [1]).split() == [*words[-63:], f"{B}:1"]


@pytest.mark.parametrize("odd", ["", "a", ":1", "a:", "a:b", "a:1:2", "ü:1", "a:-1"])
def test_odd_words_are_left_out(odd: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(within.VARIABLE, f"{odd} {A}:1")
    assert within.inherited() == [f"{A}:1"]


def test_opening_says_less_to_an_older_daemon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(within.VARIABLE, f"{A}:1")
    opening = requests.Opening("me")
    hello, register = opening.requests()
    assert (hello.params["within"], register.method) == ([f"{A}:1"], "register")
    assert opening.say_less()
    assert "within" not in opening.requests()[0].params
    assert not opening.say_less()


def test_opening_says_nothing_of_no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(within.VARIABLE, raising=False)
    assert "within" not in requests.Opening(None).requests()[0].params


HELD = {"a": [1], "b": [2], "c": [], "d": [3, 4]}


@pytest.mark.parametrize(
    ("names", "around", "parts"),
    [
        ("a", {1}, ["a"]),
        ("abcd", set(), ["abcd"]),
        ("ac", {1}, ["c", "a"]),
        ("abcd", {1, 4}, ["bc", "ad"]),
        ("cb", {1}, ["cb"]),
        ("ad", {1, 3}, ["ad"]),
    ],
)
def test_what_is_outside_is_asked_for_first(
    names: str, around: set[int], parts: list[str]
) -> None:
    found = within.apart(list(names), around, lambda name, x: x in HELD[name])
    assert ["".join(part) for part in found] == parts


def test_nobody_is_asked_where_all_is_outside_or_there_is_one_name() -> None:
    def ask(name: str, token: int) -> bool:
        raise AssertionError(name, token)

    assert within.apart(["a", "b"], set(), ask) == [["a", "b"]]
    assert within.apart(["a"], {1}, ask) == [["a"]]
