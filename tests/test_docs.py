import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from msgspec import to_builtins
from msgspec.structs import fields

from daemon_process import DaemonProcess
from lockd.daemon.config import Allowed, Config, LockspaceConfig, Places

TOP = Path(__file__).parents[1]
PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    *(f"docs/{p.name}" for p in (TOP / "docs").glob("*.md")),
]
EXAMPLES = re.findall(
    r"```python\n(.*?)```", (TOP / "README.md").read_text(), re.DOTALL
)


def test_readme_has_an_example_for_each_client() -> None:
    assert len(EXAMPLES) == 3


@pytest.mark.parametrize("example", EXAMPLES)
@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_examples_of_the_readme_run(
    lockd: DaemonProcess, example: str, backend: str
) -> None:
    if backend == "asyncio":
        example = example.replace("import trio", "import asyncio")
        example = example.replace("trio.run(main)", "asyncio.run(main())")
    result = subprocess.run(
        [sys.executable, "-c", example],
        env={"LOCKD_SOCKET": str(lockd.socket)},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout


@pytest.mark.parametrize("page", PAGES)
def test_links_between_the_pages_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", (TOP / page).read_text()):
        path, _, anchor = target.partition("#")
        linked = (TOP / page).parent / path if path else TOP / page
        assert linked.exists(), target
        headings = re.findall(r"^#+ (.*)$", linked.read_text(), re.MULTILINE)
        anchors = {
            re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in headings
        }
        assert not anchor or anchor in anchors, target


def test_example_file_has_every_key_at_its_default() -> None:
    text = (TOP / "conf" / "lockd.toml").read_text()
    lines = re.findall(r"^# (\[.*\]|[\w.]+ = .*)$", text, re.MULTILINE)
    shown = tomllib.loads("\n".join(lines))
    (example,) = shown.pop("lockspaces").values()
    places = to_builtins(host_places())
    del places["config"]
    config = to_builtins(Config())
    del config["lockspaces"]
    assert shown == config | places
    operations = {f.encode_name for f in fields(Allowed)}
    assert example.keys() == {f.encode_name for f in fields(LockspaceConfig)}
    assert {*example.pop("allow_users"), *example.pop("allow_groups")} == operations
    assert example["on_disconnect"] == LockspaceConfig("memory").on_disconnect


def host_places() -> Places:
    """Where things are for root's daemon."""
    return Places(
        "/etc/lockd/lockd.toml",
        "/run/lockd/lockd.sock",
        "/run/lockd/admin.sock",
        "/var/lib/lockd",
    )
