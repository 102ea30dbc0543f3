"""The question before something that cannot be taken back."""

import pytest

from ctl.processes import LOCKCTL, Lockctl, Terminal
from lockd import Client


def test_break_without_a_terminal_needs_yes(lockctl: Lockctl, client: Client) -> None:
    grant = client.acquire("job")
    done = lockctl("break", grant.fencing_token, "--reason", "x", stdin=None)
    assert done.returncode == 64
    assert "add --yes" in done.stderr
    grant.check()
    assert client.check("job", grant.fencing_token)
    assert lockctl("break", grant.fencing_token, "--yes").returncode == 64


@pytest.mark.parametrize("answer", ["y", "n"])
def test_break_asks_on_a_terminal(
    lockctl: Lockctl, client: Client, answer: str
) -> None:
    grant = client.acquire("job")
    command = (*LOCKCTL, "break", str(grant.fencing_token), "--reason", "x")
    terminal = Terminal(command, lockctl.env)
    terminal.wait_for("break the lock on 'job'? [y/N]: ")
    assert "the test" in terminal.shown
    terminal.type(f"{answer}\n")
    assert terminal.wait() == (0 if answer == "y" else 1)
    assert client.check("job", grant.fencing_token) == (answer == "n")
