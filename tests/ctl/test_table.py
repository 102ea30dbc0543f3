"""Tables: as wide as the terminal, or with tabs when piped."""

import os
import re

import pytest
from rich.cells import cell_len

from ctl.processes import LOCKCTL, Lockctl, Terminal
from lockd import Client, connect
from lockd.ctl.table import COLUMNS, cells_of, cut, text_of


def table_at(
    lockctl: Lockctl, width: int, *words: str
) -> tuple[list[str], list[list[str]]]:
    """Returns the heading and the lines of a table, in their columns."""
    env = lockctl.env | {"COLUMNS": str(width)}
    terminal = Terminal((*LOCKCTL, *words), env, width)
    assert terminal.wait() == 0
    shown = re.sub(r"\x1b\[[0-9;]*m", "", terminal.shown.partition("\r\n\r\n")[0])
    heading, *lines = shown.rstrip().split("\r\n")
    assert max(map(len, [heading, *lines])) <= width
    return heading.split(), [re.split("  +", line.rstrip()) for line in lines]


def test_list_on_a_terminal_has_no_column_for_uuids_that_nobody_has(
    lockctl: Lockctl, client: Client
) -> None:
    client.acquire("a")
    terminal = Terminal((*LOCKCTL, "list"), lockctl.env)
    assert terminal.wait() == 0
    assert "WAITING" in terminal.shown
    assert "UUID" not in terminal.shown


def test_empty_list_says_so_only_on_a_terminal(lockctl: Lockctl) -> None:
    terminal = Terminal((*LOCKCTL, "list"), lockctl.env)
    assert terminal.wait() == 0
    assert terminal.shown == "Nothing is locked.\r\n"
    assert lockctl("list").stdout == ""


@pytest.mark.parametrize("text", ["a\tb", "x\x1b[31m", "line\nline"])
def test_what_a_client_calls_itself_cannot_forge_a_line(
    lockctl: Lockctl, client: Client, text: str
) -> None:
    try:
        client.acquire("a", reason=text)
    except ValueError:
        return  # refused at the door
    (line,) = lockctl("list").stdout.splitlines()
    assert text not in line
    assert len(line.split("\t")) == 15


@pytest.mark.parametrize("width", [60, 80, 132])
def test_list_keeps_to_the_width_of_the_terminal(
    lockctl: Lockctl, client: Client, width: int
) -> None:
    client.acquire("x" * 120, reason="y" * 120)
    client.acquire("a", mode="shared", label="/a/path/" + "z" * 100 + "/disk.img")
    env = lockctl.env | {"COLUMNS": str(width)}
    terminal = Terminal((*LOCKCTL, "list"), env, width)
    assert terminal.wait() == 0
    lines = terminal.shown.split("\r\n")
    assert len(lines) == 4
    plain = [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in lines]
    assert max(map(len, plain)) <= width
    assert "NAME" in lines[0]
    assert "FOR" in lines[0]
    # What a path ends with says more than what it begins with.
    assert ("disk.img" in plain[1]) == (width > 60)


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_lock_that_is_shared_looks_shared_at_any_width(
    lockctl: Lockctl, sock: str, width: int
) -> None:
    with connect(sock, name="somebody with a name") as one, connect(sock) as other:
        one.acquire("n" * 60, mode="shared")
        other.acquire("n" * 60, mode="shared")
        heading, (line,) = table_at(lockctl, width, "list")
    assert "HOLDERS" not in heading
    (holder,) = (cell for cell in line if cell.startswith("some"))
    assert holder.endswith(" +1")


def test_narrow_table_has_its_numbers_whole(lockctl: Lockctl, client: Client) -> None:
    grant = client.acquire("n" * 60, reason="why")
    heading, (line,) = table_at(lockctl, 40, "list")
    assert "FOR" not in heading
    assert str(os.getpid()) in line
    heading, (line,) = table_at(lockctl, 34, "show", "n" * 60)
    assert "MODE" not in heading
    assert line[-1] == str(grant.fencing_token)


@pytest.mark.parametrize(
    ("text", "width", "shown"),
    [
        ("short", 5, "short"),
        ("far too long", 6, "far t…"),
        ("/srv/images/a.img", 8, "…s/a.img"),
        ("a-long-name +12", 10, "a-lon… +12"),
        ("日本語の名前", 6, "日本 …"),
        ("/ロック/の", 5, "…/の"),
    ],
)
def test_cut_text_says_the_most(text: str, width: int, shown: str) -> None:
    assert cut(text, width) == shown
    assert cell_len(shown) <= width


def test_party_that_says_little_of_itself_has_the_same_cells() -> None:
    cells = cells_of({"name": "x", "pid": 1, "reason": "nightly"})
    assert cells["REASON"] == "nightly"
    shown = [text_of(COLUMNS[title], cells) for title in ("NAME", "USER", "UNIT")]
    assert shown == ["x", "-", "-"]


def test_cells_are_safe_to_show() -> None:
    assert text_of(COLUMNS["NAME"], {"NAME": "x\x1b[31m\n"}).isprintable()
    assert text_of(COLUMNS["FOR"], {"FOR": 90.0}) == "1m30s"
    assert text_of(COLUMNS["OVER"], {"OVER": 2.5}) == "2.5x"
