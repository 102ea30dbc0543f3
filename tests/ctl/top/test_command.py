"""`lockctl top` as a command: on a real terminal, or on none."""

import subprocess
import sys
from pathlib import Path

import pytest

from ctl.processes import LOCKCTL, Lockctl, Terminal
from lockd import Client


def test_draws_on_a_real_terminal_and_ends_with_q(
    lockctl: Lockctl, client: Client
) -> None:
    client.acquire("backup")
    terminal = Terminal((*LOCKCTL, "top"), {**lockctl.env, "NO_COLOR": "1"})
    terminal.wait_for("backup")
    terminal.type("q")
    assert terminal.wait() == 0


def test_without_a_terminal_says_what_to_use(lockctl: Lockctl) -> None:
    done = lockctl("top")
    assert done.returncode == 64
    assert "`lockctl list`" in done.stderr


def test_without_textual_says_what_to_install(lockctl: Lockctl, tmp_path: Path) -> None:
    (tmp_path / "textual.py").write_text(
        "raise ModuleNotFoundError(\"No module named 'textual'\", name='textual')\n"
    )
    path = f"{tmp_path}:{lockctl.env['PYTHONPATH']}"
    env = {**lockctl.env, "PYTHONPATH": path}
    # A nursery has textual loaded.
    terminal = Terminal((*LOCKCTL, "top"), env, executed=True)
    assert terminal.wait() == 69
    assert "lockctl: `lockctl top` needs the Python package textual" in terminal.shown
    assert "pip install 'lockd[top]'" in terminal.shown.replace("\r\n", " ")


@pytest.mark.parametrize(
    "module", ["lockd.ctl.main", "lockd.ctl.run.run", "lockd.ctl.top"]
)
def test_textual_is_not_loaded_until_the_screen_is_drawn(module: str) -> None:
    script = (
        f"import sys, {module}, lockd.ctl.top.command; print(*sys.modules, sep='\\n')"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    loaded = set(done.stdout.split())
    assert not {"textual", "rich", "anyio", "asyncio"} & loaded
