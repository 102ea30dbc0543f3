"""Nothing that a daemon says, or somebody is called, acts upon a terminal."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import pytest

from ctl.hostile import Hostile
from ctl.processes import LOCKCTL, Lockctl, Terminal
from lockd import Client, connect
from support.asking import ask_until

COMMANDS = [
    *(
        "list",
        "list --json",
        "waiters",
        "waiters --json",
        "sessions",
        "sessions --json",
    ),
    *(
        "spaces",
        "spaces --json",
        "status",
        "status --json",
        "show job",
        "show job --json",
    ),
    *(
        "who job",
        "who job --json",
        "test job",
        "test job --json",
        "graph",
        "graph --dot",
    ),
    *(
        "graph --json",
        "metrics",
        "wait job -w 0",
        "list nowhere",
        "lock-name /a\x9b31m",
    ),
    *("run -n job -- true", "acquire job -w 0 --owner-pid 1", "hold job -w 0"),
    *("break job --reason x --yes", "break 1 --reason x --yes", "show a\x9b31m\u202e"),
    *("disconnect 999 --reason x --yes", "disconnect 1 --reason x --yes", "a\x9b31m"),
    *(
        "list --\x9b31m",
        "list --sort \x9b31m",
        "list --user \u202e",
        "--socket \x9b ps",
    ),
]

REASON = "a\x9b31m\u202e\x7f\U000e0041\tb"


@pytest.fixture
def queue(sock: str) -> Iterator[Client]:
    """A lock that is held and waited for."""
    with connect(sock, name="holder") as holder, connect(sock, name="late") as late:
        holder.acquire("job", reason="nightly", label="/a")
        waiting = Thread(target=late.acquire, args=("job",), kwargs={"timeout": 1000})
        waiting.start()
        ask_until(holder, "job", lambda state: state["waiter_count"] == 1)
        yield holder
        holder.close()
        waiting.join()


@pytest.mark.parametrize("wholly", [False, True])
def test_no_text_acts_upon_a_terminal(
    lockctl: Lockctl, sock: str, queue: Client, tmp_path: Path, wholly: bool
) -> None:
    """Drawn tables have bold headings; nothing else is there that is not printable."""
    hostile = Hostile(sock, tmp_path / "hostile.sock", wholly=wholly)
    env = lockctl.env | {"LOCKD_SOCKET": str(tmp_path / "hostile.sock")}
    seen = 0
    for words in COMMANDS:
        terminal = Terminal((*LOCKCTL, *words.split(" ")), env)
        status = terminal.wait()
        shown = re.sub(r"\x1b\[[01]m|\r\n|\t", "", terminal.shown)
        assert shown.isprintable(), (words, terminal.shown)
        # What `metrics` prints is one text of the daemon's, of many lines.
        forged = "\r\nlockctl: all is well" in terminal.shown
        assert not forged or words == "metrics", (words, terminal.shown)
        assert wholly or status != 70, (words, terminal.shown)
        seen += "owned" in shown
    assert seen > 12
    hostile.close()


def test_json_is_lossless_and_the_same_on_a_terminal_and_in_a_pipe(
    lockctl: Lockctl, client: Client
) -> None:
    client.acquire("job", reason=REASON)
    piped = lockctl("list", "--json").stdout
    terminal = Terminal((*LOCKCTL, "list", "--json"), lockctl.env)
    terminal.wait()
    for text in (piped, terminal.shown):
        assert text.replace("\r\n", "").replace("\n", "").isprintable()
        (found,) = json.loads(text)["resources"]
        assert found["holders"][0]["reason"] == REASON
