"""Parameters that are wrong, and what is said of them."""

import re
from typing import Any

import msgspec
import pytest

from lockd.protocol.calls import Method
from lockd.protocol.connection import Connection
from lockd.protocol.methods import METHODS
from protocol.conftest import received, refusal, sent
from protocol.test_methods import GOOD


@pytest.mark.parametrize(
    "params", [None, {}, {"resource": "a"}, [None], [[]], [{}, {}], "a", 0]
)
def test_parameters_must_be_one_map_in_an_array(params: Any) -> None:
    msgid, sentence = refusal([0, 3, "query", params])
    assert msgid == 3
    assert sentence.startswith("invalid: query: the parameters must be one map")


@pytest.mark.parametrize(
    ("params", "why"),
    [
        ({}, "`resource` is missing: it must be text"),
        ({"resource": 5}, "`resource` must be text"),
        ({"resource": None}, "`resource` must be text"),
        ({"resource": b"a"}, "`resource` must be text"),
        (
            {"resource": "a", "colour": 1},
            "there is no parameter `colour`: the parameters are `resource`, "
            "`lockspace`",
        ),
        (
            {"resource": "a", b"lockspace": "b"},
            "the name of each parameter must be text: the parameters are `resource`, "
            "`lockspace`",
        ),
    ],
)
def test_wrong_parameter_is_named(params: Any, why: str) -> None:
    assert refusal([0, 3, "query", [params]]) == (3, f"invalid: query: {why}")


ALLOWED = {
    ("acquire", "timeout"): "a number from 0 to 1e9 (seconds) or nil",
    ("acquire", "mode"): '"exclusive" or "shared" or "slot" or nil',
    ("acquire", "create"): "true or false or nil",
    ("acquire", "resources"): "an array of 1 to 64 texts or nil",
    ("check", "fencing_token"): "an integer from 0 to 9223372036854775807",
    ("cancel", "request"): "an integer from 0 to 4294967295",
    ("list", "limit"): "an integer from 1 to 256 or nil",
    ("list", "after"): "the `next` of another page: an array of text, text, and "
    "perhaps an integer or nil",
    ("create_lockspace", "name"): "text that is not empty",
}


ODD = [True, 5, -1, 2**63, 0.5, float("nan"), 1e300, "", "odd", b"", [], [1], {}, None]


OWNER = ["name", "uuid", "id", "pid"]


def complaint_about(sentence: str, name: str) -> bool:
    """Tells whether a sentence names a parameter, and what it may be."""
    named = rf"`{re.escape(name)}(\.\w+)?`"
    wrong = rf"{named} (must be|is missing: it must be) .+"
    forms = rf"({wrong}|there is no parameter {named}: .+)"
    return re.fullmatch(forms, sentence) is not None


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_each_wrong_value_is_told_in_the_words_of_the_page(method: Method) -> None:
    names = [field.name for field in msgspec.structs.fields(method.params)]
    cases = [(name, {name: odd}) for name in [*names, "colour"] for odd in ODD]
    if method.name == "register":
        cases += [
            (f"owner.{entry}", {"owner": {"name": "a"} | {entry: odd}})
            for entry in [*OWNER, "colour"]
            for odd in ODD
        ]
    refused = 0
    for name, changes in cases:
        message = [0, 3, method.name, [GOOD.get(method.name, {}) | changes]]
        connection = Connection()
        if received(connection, message):
            continue
        refused += 1
        ((_, _, (_, sentence), _),) = sent(connection)
        opening = f"invalid: {method.name}: "
        assert sentence.startswith(opening)
        said = sentence.removeprefix(opening)
        for word in ("Expected", "Object", "$", "got", "str`", "float", "null"):
            assert word not in said, said
        if complaint_about(said, name):
            allowed = ALLOWED.get((method.name, name))
            assert allowed is None or said.endswith(f"must be {allowed}")
        else:  # words of our own, about the parameters together or the text itself
            assert re.search(r"needed|name is empty|has control", said), said
    assert refused >= len(ODD)  # "colour" at least
