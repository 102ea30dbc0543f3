"""The catalogue is the one of the protocol's page, and checks what it is given."""

import math
import re
from typing import Any

import msgspec
import pytest

from lockd.errors import ERRORS_BY_CODE
from lockd.protocol.methods import MAX_TEXT_CHARACTERS, METHODS, OwnerParams, method_of
from support.places import DOCS

PAGE = (DOCS / "reference/protocol.md").read_text()


def table_after(heading: str) -> list[list[str]]:
    """Returns the cells of the first table behind a clause of the page."""
    lines = PAGE[PAGE.index(f"\n{heading} ") :].splitlines()
    start = next(n for n, line in enumerate(lines) if line.startswith("|"))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def documented_parameters(cell: str) -> dict[str, bool]:
    """Returns the names in a cell of the table, and whether each may be absent.

    A map's own entries are in braces; alternatives are joined by "or"; what follows a
    colon explains.
    """
    cell = cell.split(": ")[0]
    alternatives = " or `" in re.sub(r"`\"[a-z]+\"`( or `\"[a-z]+\"`)?", "", cell)
    cell = re.sub(r"\{[^}]*\}|\([^)]*\)|\[[^\]]*\]", "", cell)
    names = re.findall(r"`([a-z_]+)`(\??)", cell)
    either = {"resource", "resources", "fencing_token"} if alternatives else set()
    return {name: mark == "?" or name in either for name, mark in names}


def required(params: type[msgspec.Struct]) -> dict[str, bool]:
    return {field.name: not field.required for field in msgspec.structs.fields(params)}


def test_every_method_is_documented_and_every_documented_one_exists() -> None:
    documented = [re.sub("`", "", row[0]) for row in table_after("6.1.")]
    assert documented == list(METHODS)


@pytest.mark.parametrize("row", table_after("6.1."), ids=lambda row: row[0].strip("`"))
def test_parameters_are_those_of_the_page(row: list[str]) -> None:
    method = METHODS[row[0].strip("`")]
    assert documented_parameters(row[1]) == required(method.params)


def test_entries_of_an_owner_are_those_of_the_page() -> None:
    (row,) = [row for row in table_after("6.1.") if row[0] == "`register`"]
    inside = re.search(r"\{([^}]*)\}", row[1])
    assert inside is not None
    assert documented_parameters(inside[1]) == required(OwnerParams)


def test_methods_for_admins_are_those_of_the_page() -> None:
    clause = re.search(r"6\.12\. (.*?) are for \*admins\*", PAGE)
    assert clause is not None
    documented = set(re.findall(r"`([a-z_]+)`", clause[1]))
    assert documented == {m.name for m in METHODS.values() if m.access == "admin"}


def test_methods_after_restrict_are_those_of_the_page() -> None:
    clause = re.search(r"6\.4\. .* may only (.*?)\.", PAGE)
    assert clause is not None
    documented = set(re.findall(r"[a-z]+", clause[1])) - {"and"}
    always = {m.name for m in METHODS.values() if m.access == "always"}
    assert documented | {"hello"} == always


def test_codes_are_those_of_the_page() -> None:
    documented = [row[0].strip("`") for row in table_after("4.2.")]
    assert sorted(documented) == sorted(ERRORS_BY_CODE)


@pytest.mark.parametrize("name", ["acquire", b"acquire"])
def test_method_is_found_by_text_or_bytes(name: object) -> None:
    assert method_of(name) is METHODS["acquire"]


@pytest.mark.parametrize("name", ["Acquire", b"\xff", "", None, 1, ["acquire"], {}])
def test_nothing_else_is_a_method(name: object) -> None:
    assert method_of(name) is None


GOOD: dict[str, dict[str, Any]] = {
    "hello": {"protocol": 1, "client": "test"},
    "register": {"owner": {"name": "vm"}},
    "acquire": {"resource": "a"},
    "convert": {"resource": "a", "mode": "shared"},
    "release": {"resource": "a"},
    "cancel": {"request": 1},
    "query": {"resource": "a"},
    "check": {"resource": "a", "fencing_token": 1},
    "create_resource": {"lockspace": "l", "resource": "a"},
    "delete_resource": {"lockspace": "l", "resource": "a"},
    "create_lockspace": {"name": "l", "kind": "memory"},
    "break": {"fencing_token": 1, "reason": "why"},
    "disconnect": {"session": 1, "reason": "why"},
}


def converted(method: str, **changes: Any) -> Any:
    params = GOOD.get(method, {}) | changes
    return msgspec.convert(params, METHODS[method].params)


@pytest.mark.parametrize("method", METHODS)
def test_fewest_parameters_are_enough(method: str) -> None:
    assert converted(method)


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        ("hello", {"client": "x" * MAX_TEXT_CHARACTERS}),
        ("register", {"owner": {"name": "v", "uuid": "u", "id": -1, "pid": 2**31 - 1}}),
        ("register", {"on_disconnect": "kill"}),
        ("register", {"on_disconnect": None}),
        ("acquire", {"timeout": 0}),
        ("acquire", {"timeout": 0.5, "mode": "shared", "create": False}),
        ("acquire", {"timeout": None, "mode": None, "create": None, "lockspace": None}),
        ("acquire", {"resource": None, "resources": [str(n) for n in range(64)]}),
        ("acquire", {"max_waiting": 0}),
        ("acquire", {"max_waiting": 1024}),
        ("acquire", {"max_waiting": None}),
        ("acquire", {"whole": True}),
        ("acquire", {"mode": "slot"}),
        ("acquire", {"mode": "slot", "slots": 1}),
        ("acquire", {"mode": "slot", "slots": 1024}),
        ("acquire", {"mode": "slot", "slots": True}),
        ("acquire", {"mode": "slot", "slots": None}),
        ("acquire", {"mode": "slot", "resource": None, "resources": ["a"]}),
        ("acquire", {"whole": None}),
        ("acquire", {"max_hold": 1e9, "wanted": True}),
        ("acquire", {"max_hold": 1, "wanted": None}),
        ("release", {"resource": None, "fencing_token": 0}),
        ("release", {"outcome": "ok"}),
        ("release", {"outcome": "died"}),
        ("release", {"outcome": None}),
        ("release", {"resource": None, "resources": ["a"]}),
        ("convert", {"timeout": 1e9}),
        ("cancel", {"request": 2**32 - 1}),
        ("list", {"after": ["a", "b"], "limit": 256}),
        ("list", {"after": ["a", "b", 2**53]}),
        ("watch", {"lockspace": "l"}),
    ],
)
def test_parameters_at_their_limits_are_taken(
    method: str, changes: dict[str, Any]
) -> None:
    assert converted(method, **changes)


@pytest.mark.parametrize(
    ("method", "changes", "why"),
    [
        ("hello", {"protocol": "1"}, "protocol"),
        ("hello", {"client": "x" * (MAX_TEXT_CHARACTERS + 1)}, "4097 characters"),
        ("hello", {"client": "\udcff"}, "`client` is not UTF-8"),
        ("register", {"owner": {}}, "name"),
        ("register", {"owner": {"name": ""}}, "length >= 1"),
        ("register", {"owner": {"name": "a\n"}}, "control or invisible"),
        ("register", {"owner": {"name": "a", "pid": 0}}, ">= 1"),
        ("register", {"owner": {"name": "a", "pid": 2**31}}, "pid"),
        ("register", {"owner": {"name": "a", "uuid": "\udcff"}}, "not UTF-8"),
        ("register", {"owner": {"name": "a", "uuid": "ü" * 128}}, "256 bytes, at most"),
        ("register", {"owner": {"name": "a", "gid": 1}}, "unknown field `gid`"),
        ("register", {"on_disconnect": "ignore"}, "on_disconnect"),
        ("acquire", {"resource": None}, "is needed"),
        ("acquire", {"resources": ["b"]}, "not both"),
        ("acquire", {"resource": None, "resources": []}, "length >= 1"),
        ("acquire", {"resource": None, "resources": ["a"] * 65}, "length <= 64"),
        ("acquire", {"resource": None, "resources": ["a", "a"]}, "named twice"),
        ("acquire", {"resource": None, "resources": "a"}, "array"),
        ("acquire", {"mode": "exclusiv"}, "mode"),
        ("acquire", {"timeout": -1}, ">= 0"),
        ("acquire", {"timeout": math.nan}, "timeout"),
        ("acquire", {"timeout": math.inf}, "timeout"),
        ("acquire", {"timeout": 1e10}, "timeout"),
        ("acquire", {"timeout": "1"}, "timeout"),
        ("acquire", {"timeout": True}, "timeout"),
        ("acquire", {"create": 1}, "create"),
        ("acquire", {"label": "x" * (MAX_TEXT_CHARACTERS + 1)}, "`label` has 4097"),
        ("acquire", {"reason": "\udcff"}, "`reason` is not UTF-8"),
        ("acquire", {"max_waiting": -1}, ">= 0"),
        ("acquire", {"max_waiting": 1025}, "<= 1024"),
        ("acquire", {"max_waiting": 1.0}, "max_waiting"),
        ("acquire", {"max_waiting": True}, "max_waiting"),
        ("acquire", {"whole": 1}, "whole"),
        ("acquire", {"mode": "slot", "slots": 0}, ">= 1"),
        ("acquire", {"mode": "slot", "slots": 1025}, "<= 1024"),
        ("acquire", {"mode": "slot", "slots": 2.0}, "slots"),
        ("acquire", {"mode": "slot", "slots": "4"}, "slots"),
        ("acquire", {"mode": "slot", "slots": False}, "`slots` must be true, or an"),
        ("acquire", {"slots": 2}, "`slots` must be nil or absent, except with"),
        ("acquire", {"mode": "shared", "slots": True}, "`slots` must be nil or absent"),
        (
            "acquire",
            {"mode": "slot", "resource": None, "resources": ["a", "b"]},
            "send a request for each of them",
        ),
        ("acquire", {"whole": "yes"}, "whole"),
        ("acquire", {"max_hold": 0}, "> 0"),
        ("acquire", {"max_hold": -1.5}, "> 0"),
        ("acquire", {"max_hold": math.nan}, "max_hold"),
        ("acquire", {"max_hold": 1e9 + 1}, "max_hold"),
        ("acquire", {"max_hold": True}, "max_hold"),
        ("acquire", {"wanted": 1}, "wanted"),
        ("convert", {"mode": None}, "mode"),
        ("release", {"fencing_token": 1}, "exactly one"),
        ("release", {"resource": None}, "is needed"),
        ("release", {"resource": None, "fencing_token": -1}, ">= 0"),
        ("release", {"resource": None, "fencing_token": True}, "fencing_token"),
        ("release", {"outcome": "done"}, "outcome"),
        ("release", {"outcome": True}, "outcome"),
        ("cancel", {"request": -1}, "request"),
        ("cancel", {"request": 2**32}, "request"),
        ("list", {"limit": 0}, ">= 1"),
        ("list", {"limit": 257}, "<= 256"),
        ("list", {"after": ["a"]}, "length >= 2"),
        ("list", {"after": ["a", "b", 1, 2]}, "length <= 3"),
        ("list", {"after": ["a", 1]}, "`after` must be the `next` of another page"),
        ("list", {"after": ["a", "b", "c"]}, "`after` must be the `next` of another"),
        ("list_waiters", {"after": ["a", "b"]}, "length 3"),
        ("create_lockspace", {"kind": "etcd"}, "kind"),
        ("create_lockspace", {"path": "/\udcff"}, "`path` is not UTF-8"),
        ("break", {"reason": None}, "reason"),
        ("break", {"reason": "\udcff"}, "`reason` is not UTF-8"),
        ("disconnect", {"session": "1"}, "session"),
        ("disconnect", {"reason": "\udcff"}, "`reason` is not UTF-8"),
        ("statistics", {"verbose": True}, "unknown field `verbose`"),
    ],
)
def test_wrong_parameters_are_refused_and_named(
    method: str, changes: dict[str, Any], why: str
) -> None:
    with pytest.raises(msgspec.ValidationError, match=re.escape(why)):
        converted(method, **changes)
