import re
import subprocess
import sys
from pathlib import Path

import pytest

from daemon_process import DaemonProcess

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


def test_every_configuration_key_stands_in_the_example_file() -> None:
    from lockd.daemon.config import Config, LockspaceConfig

    text = (TOP / "conf" / "lockd.toml").read_text()
    keys = {*Config.__struct_fields__, *LockspaceConfig.__struct_fields__}
    shown = set(re.findall(r"^# (\w+) = ", text, re.MULTILINE))
    assert shown == keys - {"lockspaces"}
    assert "# [lockspaces." in text
