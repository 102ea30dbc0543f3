import hashlib
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockd.errors import InvalidRequestError
from lockd.names import (
    CHECK_OF_KIND,
    MAX_DEPTH,
    MAX_PATH_BYTES,
    MAX_STEPS,
    canonical_path,
    check_file_name,
    check_lockspace_name,
    check_name,
    check_path,
    check_ways,
    default_lockspace,
    hashed_name,
    is_grant_name,
    name_of,
    plain,
    quoted,
)

GOOD_NAMES = [
    "backup",
    "a b",
    "vm-1.qcow2",
    "-",
    "...",
    "ünïcödé",
    "日本語",
    "x" * 255,
    "é" * 127,
]
BAD_TEXTS = [
    "",
    "a\0b",
    "a\nb",
    "a\x1b[31mb",
    "a\x7fb",
    "a\u202eb",
    "a\u200bb",
    "a\u00a0b",
    "\ud800",
]


@pytest.mark.parametrize("name", [*GOOD_NAMES, "a/b", "/", ".", ".."])
def test_any_printable_name_is_good_in_memory(name: str) -> None:
    check_name(name)


@pytest.mark.parametrize("check", [check_name, check_file_name, check_lockspace_name])
@pytest.mark.parametrize("name", [*BAD_TEXTS, "x" * 256, "é" * 128])
def test_bad_text_and_long_names_are_refused(
    check: Callable[[str], None], name: str
) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        check(name)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", GOOD_NAMES)
def test_name_of_a_file_may_be_any_directory_entry(name: str, tmp_path: Path) -> None:
    check_file_name(name)
    (tmp_path / name).touch()
    assert os.listdir(tmp_path) == [name]


@pytest.mark.parametrize("name", ["/", "a/b", "../etc", "a/", ".", ".."])
def test_name_of_a_file_leads_nowhere_else(name: str) -> None:
    with pytest.raises(InvalidRequestError):
        check_file_name(name)


@pytest.mark.parametrize("path", ["/", "/dev/sda", "/a b/c", "/ü", "/.../x"])
def test_canonical_paths_are_good(path: str) -> None:
    check_path(path)


@pytest.mark.parametrize(
    "path",
    ["a", "a/b", "./a", "//a", "/a//b", "/a/", "/a/.", "/a/../b", "/./a", *BAD_TEXTS],
)
def test_other_spellings_of_paths_are_refused(path: str) -> None:
    with pytest.raises(InvalidRequestError):
        check_path(path)


def test_refused_path_is_told_how_to_be_written() -> None:
    with pytest.raises(InvalidRequestError, match="write '/a/b'"):
        check_path("/a//x/../b/")


def test_path_may_be_as_long_as_the_kernel_allows() -> None:
    check_path("/" + "x" * (MAX_PATH_BYTES - 1))
    with pytest.raises(InvalidRequestError, match="4096 bytes"):
        check_path("/" + "x" * MAX_PATH_BYTES)


def ways(*depths: int) -> list[str]:
    return [f"/{n}" + "/a" * (depth - 1) for n, depth in enumerate(depths)]


@pytest.mark.parametrize(
    "depths", [[1], [MAX_DEPTH], [MAX_DEPTH] * (MAX_STEPS // MAX_DEPTH), [8] * 64]
)
def test_way_that_is_short_enough_may_be_gone(depths: list[int]) -> None:
    check_ways(ways(*depths))


@pytest.mark.parametrize(
    ("depths", "why"),
    [
        ([MAX_DEPTH + 1], "has 65 names, at most 64 are allowed: "),
        ([2_040] * 15, "has 2040 names, at most 64 are allowed: "),
        ([8] * 63 + [9], "the 64 paths have 513 names together, at most 512 "),
    ],
)
def test_way_that_would_hold_up_others_is_refused(depths: list[int], why: str) -> None:
    with pytest.raises(InvalidRequestError, match=why):
        check_ways(ways(*depths))


@pytest.mark.parametrize("name", ["a:b", ":", "a/b", "."])
def test_lockspace_is_named_like_a_file_without_colon(name: str) -> None:
    check_lockspace_name("images")
    with pytest.raises(InvalidRequestError):
        check_lockspace_name(name)


def test_every_kind_has_its_check() -> None:
    assert dict(CHECK_OF_KIND) == {
        "memory": check_name,
        "directory": check_file_name,
        "direct": check_path,
    }


@given(st.text())
def test_checked_names_are_printable_and_fit(name: str) -> None:
    try:
        check_name(name)
    except InvalidRequestError:
        fits = 0 < len(name.encode(errors="surrogatepass")) <= 255
        assert not (name.isprintable() and fits)
    else:
        assert name.isprintable()
        assert 0 < len(name.encode()) <= 255


def test_all_spellings_of_a_file_have_one_hash(tmp_path: Path) -> None:
    file = tmp_path / "disk"
    file.touch()
    (tmp_path / "link").symlink_to(file)
    (tmp_path / "sub").mkdir()
    spellings = [file, tmp_path / "link", tmp_path / "sub" / ".." / "disk"]
    expected = hashlib.sha256(str(file.resolve()).encode()).hexdigest()
    assert {hashed_name(str(path)) for path in spellings} == {expected}
    check_file_name(expected)


def test_empty_path_is_no_file() -> None:
    for of_path in (canonical_path, hashed_name):
        with pytest.raises(InvalidRequestError, match="empty"):
            of_path("")


def test_file_that_does_not_exist_has_a_canonical_path(tmp_path: Path) -> None:
    path = tmp_path / "not" / ".." / "there"
    assert canonical_path(str(path)) == str(tmp_path.resolve() / "there")


def test_path_that_is_not_utf8_has_a_hash(tmp_path: Path) -> None:
    path = os.fsdecode(os.fsencode(tmp_path.resolve()) + b"/\xff")
    assert hashed_name(path) == hashlib.sha256(os.fsencode(path)).hexdigest()


def test_bare_name_means_default_and_a_path_means_direct() -> None:
    assert default_lockspace("backup") == "default"
    assert default_lockspace("/dev/sda") == "direct"


@given(st.text())
def test_quoted_text_never_acts_on_a_terminal(text: str) -> None:
    assert quoted(text).isprintable()
    assert plain(text).isprintable()


def test_quoted_text_is_cut() -> None:
    assert quoted("x" * 100, limit=10) == "'xxxxxxxxx…'"
    assert quoted("x" * 10, limit=10) == "'xxxxxxxxxx'"


def test_plain_escapes_only_what_must_be() -> None:
    assert plain("grün\x1b[0m\u202e") == "grün\\x1b[0m\\u202e"


@pytest.mark.parametrize(
    ("text", "is_one"),
    [
        *(("a:1", True), ("!-9;-~:0", True), ("a" * 64 + ":" + "9" * 19, True)),
        *((":1", False), ("a:", False), ("a", False), ("", False), ("a:1:2", False)),
        *(("a" * 65 + ":1", False), ("a:" + "9" * 20, False), ("a b:1", False)),
        *(("a:-1", False), ("a:1 ", False), ("ä:1", False), ("a:²", False)),
        *(("a\n:1", False), ("a:1\n", False), ("a\x7f:1", False)),
    ],
)
def test_grant_of_another_connection_has_an_instance_and_a_token(
    text: str, is_one: bool
) -> None:
    assert is_grant_name(text) is is_one


@given(st.text())
def test_name_of_a_grant_is_what_the_protocol_says(text: str) -> None:
    pattern = re.compile(r"[!-9;-~]{1,64}:[0-9]{1,19}")
    for near in (text, f"{text}:1", f"a:{text}"):
        assert is_grant_name(near) is (pattern.fullmatch(near) is not None)


@pytest.mark.parametrize("name", ["backup", "/srv/a.lock", "ü" * 127, "a b", "x" * 255])
def test_text_that_can_be_a_name_is_one(name: str) -> None:
    assert name_of(name) == name


@pytest.mark.parametrize("name", ["x" * 256, "ü" * 128, "a\nb", "\udcff", ""])
def test_text_that_no_name_may_be_is_hashed(name: str) -> None:
    sent = name.encode("utf-8", "surrogateescape")
    assert name_of(name) == hashlib.sha256(sent).hexdigest()
