import inspect
import re
from collections.abc import Iterator

import pytest

from lockd import errors
from lockd.errors import (
    ERRORS_BY_CODE,
    CodedError,
    LockdError,
    LockLostError,
    RequestError,
    error_for_code,
)
from support.places import DOCS

PROTOCOL = DOCS / "reference/protocol.md"

CLASSES = [
    found
    for _, found in inspect.getmembers(errors, inspect.isclass)
    if issubclass(found, LockdError)
]


def documented() -> Iterator[tuple[str, str, str, set[str]]]:
    """Goes through the tree of the docstring: name, parent, code, builtins."""
    above: list[tuple[int, str]] = [(-1, "")]
    for line in (errors.__doc__ or "").splitlines():
        if not (match := re.match(r"( {4,})(\w+Error)\b *(.*)", line)):
            continue
        indent, name, words = len(match[1]), match[2], match[3]
        while above[-1][0] >= indent:
            above.pop()
        code = re.search(r'"(\w+)"', words)
        builtins = set(re.findall(r"\b([A-Z]\w+Error)\b", words))
        yield name, above[-1][1], code[1] if code else "", builtins
        above.append((indent, name))


def parent(error: type[LockdError]) -> str:
    """The nearest base that the tree names; `CodedError` only bears the code."""
    base = next(b for b in error.__mro__[1:] if b is not CodedError)
    return base.__name__ if issubclass(base, LockdError) else ""


def codes_of_the_protocol() -> set[str]:
    clause = PROTOCOL.read_text().split("\n4.2.")[1].split("\n4.3.")[0]
    return set(re.findall(r"^\| `(\w+)` \|", clause, re.MULTILINE))


def test_docstring_is_the_tree_of_the_classes() -> None:
    described = {name: above for name, above, _, _ in documented()}
    assert described == {
        error.__name__: parent(error) for error in CLASSES if error is not CodedError
    }


def test_docstring_tells_codes_and_builtins() -> None:
    for name, _, code, builtins in documented():
        error = getattr(errors, name)
        assert code == ("" if error is RequestError else getattr(error, "code", ""))
        ours = {base for base in error.__bases__ if not issubclass(base, LockdError)}
        expected = {base.__name__ for base in ours} - {"Exception"}
        assert builtins == expected, name


def test_every_code_of_the_protocol_has_its_class() -> None:
    assert ERRORS_BY_CODE.keys() == codes_of_the_protocol()


def test_codes_are_not_shared() -> None:
    coded = [error for error in CLASSES if "code" in vars(error)]
    assert len({error.code for error in coded}) == len(coded)  # type: ignore[attr-defined]


@pytest.mark.parametrize("code", sorted(ERRORS_BY_CODE))
def test_error_of_a_code_says_its_sentence_and_keeps_its_facts(code: str) -> None:
    error = error_for_code(code, "a sentence", {"holder_count": 1})
    assert type(error) is ERRORS_BY_CODE[code]
    assert (error.code, error.message, str(error)) == (code, "a sentence", "a sentence")
    assert error.facts == {"holder_count": 1}


def test_unknown_code_is_a_plain_refusal() -> None:
    error = error_for_code("from_the_future", "a sentence")
    assert type(error) is RequestError
    assert (str(error), error.facts) == ("a sentence", {})


def test_lost_lock_tells_which_and_why() -> None:
    error = LockLostError(
        "lost", lockspace="default", resource="disk", fencing_token=7, cause="broken"
    )
    assert str(error) == "lost"
    facts = (error.lockspace, error.resource, error.fencing_token, error.cause)
    assert facts == ("default", "disk", 7, "broken")


@pytest.mark.parametrize("error", CLASSES)
def test_every_error_says_when_it_is_raised(error: type[LockdError]) -> None:
    root = error in (LockdError, CodedError)
    assert root or (error.__doc__ or "").startswith("Raised ")
