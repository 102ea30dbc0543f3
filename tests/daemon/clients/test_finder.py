"""What a name means to whom."""

import os
from pathlib import Path
from typing import Any

import pytest

from support.wire_client import WireClient


@pytest.mark.parametrize("method", ["acquire", "release", "query", "check", "convert"])
@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("", "is empty"),
        ("x" * 256, "256 bytes"),
        ("é" * 128, "256 bytes"),
        ("a\0b", "control or invisible"),
        ("a\nb", "control or invisible"),
        ("a\x7f", "control or invisible"),
        ("a\u202eb", "control or invisible"),
        ("\udcff\udcfe", "not UTF-8"),
    ],
)
def test_name_that_cannot_be_shown_is_refused_and_nothing_held_is_lost(
    method: str, name: str, why: str, client: WireClient
) -> None:
    client.acquire("kept")
    more: dict[str, dict[str, Any]] = {
        "check": {"fencing_token": 1},
        "convert": {"mode": "shared"},
    }
    refusal = client.refusal(method, resource=name, **more.get(method, {}))
    assert refusal.code == "invalid"
    assert why in refusal.sentence
    assert client.call("query", resource="kept")["holder_count"] == 1


@pytest.mark.parametrize("name", ["x" * 255, "é" * 127, "a b", "a/b", "..", "鎖", "🔒"])
def test_name_that_can_be_shown_is_locked_in_memory(
    name: str, client: WireClient
) -> None:
    assert client.acquire(name)["resource"] == name


@pytest.mark.parametrize("name", ["", "nowhere", "DEFAULT"])
@pytest.mark.parametrize(
    ("method", "more"),
    [
        ("acquire", {"resource": "a"}),
        ("release", {"resource": "a"}),
        ("convert", {"resource": "a", "mode": "shared"}),
        ("query", {"resource": "a"}),
        ("check", {"resource": "a", "fencing_token": 1}),
        ("list", {}),
        ("watch", {}),
        ("create_resource", {"resource": "a"}),
        ("delete_resource", {"resource": "a"}),
    ],
)
def test_lockspace_that_does_not_exist_is_not_found(
    method: str, more: dict[str, Any], name: str, client: WireClient
) -> None:
    assert client.refusal(method, lockspace=name, **more).code == "not_found"


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("relative", "not absolute"),
        ("/tmp/../etc/hosts", "not canonical: write '/etc/hosts'"),
        ("/tmp//x", "not canonical"),
        ("/tmp/", "not canonical"),
        ("/tmp/a\nb", "control or invisible"),
        ("/" + "x" * 4095, "4096 bytes"),
        ("/dev/null", "neither a regular file nor a block device"),
        ("/tmp", "neither a regular file nor a block device"),
        ("/proc/self", "is a symbolic link"),
    ],
)
def test_path_that_may_not_be_locked_is_refused(
    path: str, why: str, client: WireClient
) -> None:
    refusal = client.refusal("acquire", lockspace="direct", resource=path)
    assert refusal.code == "invalid"
    assert why in refusal.sentence


DEEP = "/no" * 65


@pytest.mark.parametrize(
    ("method", "params", "why"),
    [
        ("acquire", {"resource": DEEP}, "has 65 names, at most 64"),
        ("acquire", {"resources": ["/a", DEEP]}, "has 65 names, at most 64"),
        ("convert", {"resource": DEEP, "mode": "shared"}, "has 65 names, at most 64"),
        (
            "acquire",
            {"resources": [f"/{n}" + "/no" * 8 for n in range(64)]},
            "the 64 paths have 576 names together, at most 512",
        ),
    ],
)
def test_way_that_is_long_is_refused_before_it_is_gone(
    method: str, params: dict[str, Any], why: str, client: WireClient
) -> None:
    """Nobody else is served meanwhile: what one request may ask for has a bound."""
    refusal = client.refusal(method, lockspace="direct", **params)
    assert refusal.code == "invalid"
    assert why in refusal.sentence


def test_way_of_as_many_names_as_are_allowed_is_gone(client: WireClient) -> None:
    refusal = client.refusal("acquire", lockspace="direct", resource="/no" * 64)
    assert refusal.code == "not_found"


def test_file_that_is_not_there_is_not_found(
    client: WireClient, tmp_path: Path
) -> None:
    path = str(tmp_path / "none")
    for timeout in (None, 0, 1):
        refusal = client.refusal(
            "acquire", lockspace="direct", resource=path, timeout=timeout
        )
        assert refusal.code == "not_found"


def test_fifo_is_refused_at_once(client: WireClient, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    refusal = client.refusal(
        "acquire", lockspace="direct", resource=str(tmp_path / "pipe")
    )
    assert refusal.code == "invalid"
