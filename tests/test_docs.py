import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import get_args

import click
import pytest
from msgspec import to_builtins
from msgspec.structs import fields

from lockd import connect
from lockd.ctl.commands import lockctl
from lockd.ctl.exits import EXITS
from lockd.daemon.config.config import (
    Allowed,
    Bytes,
    Config,
    Count,
    DefaultPaths,
    Duration,
    LockspaceConfig,
    ManyBytes,
    Threshold,
)
from lockd.daemon.main import EXIT_AGAIN, EXIT_CONFIG, EXIT_DEFECT
from lockd.daemon.main import main as lockd_command
from lockd.daemon.survival.handover import SIGNALS
from support.daemon_process import DaemonProcess
from support.places import DOCS, ROOT

PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    *(str(p.relative_to(ROOT)) for p in sorted(DOCS.rglob("*.md"))),
]
EXAMPLES = [
    example
    for page in ("README.md", "docs/how-to/python.md")
    for example in re.findall(
        r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL
    )
    if not example.startswith("#!")
]


def test_there_is_an_example_for_each_client() -> None:
    assert len(EXAMPLES) == 3


def test_readme_is_read_in_some_minutes() -> None:
    assert len((ROOT / "README.md").read_text().split()) <= 900


@pytest.mark.parametrize("example", EXAMPLES)
@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_examples_run(lockd: DaemonProcess, example: str, backend: str) -> None:
    if backend == "asyncio":
        example = example.replace("import trio", "import asyncio")
        example = example.replace("trio.run(main)", "asyncio.run(main())")
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", example],
        env={"LOCKD_SOCKET": str(lockd.socket)},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout
    # Whoever copies it holds nothing afterwards, and was refused nothing of its own.
    assert "somebody" not in result.stdout
    with connect(str(lockd.socket)) as client:
        counts = client.statistics()
    assert (counts["held"], counts["waiting"]) == (0, 0)


@pytest.mark.parametrize("page", PAGES)
def test_links_between_the_pages_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", (ROOT / page).read_text()):
        path, _, anchor = target.partition("#")
        linked = (ROOT / page).parent / path if path else ROOT / page
        assert linked.exists(), target
        headings = re.findall(r"^#+ (.*)$", linked.read_text(), re.MULTILINE)
        anchors = {
            re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in headings
        }
        assert not anchor or anchor in anchors, target


def test_example_file_has_every_key_at_its_default() -> None:
    text = (ROOT / "conf" / "lockd.toml").read_text()
    lines = re.findall(r"^# (\[.*\]|[\w.]+ = .*)$", text, re.MULTILINE)
    shown = tomllib.loads("\n".join(lines))
    (example,) = shown.pop("lockspaces").values()
    paths = to_builtins(host_paths())
    del paths["config"]
    config = to_builtins(Config())
    del config["lockspaces"]
    assert shown == config | paths
    operations = {f.encode_name for f in fields(Allowed)}
    assert example.keys() == {f.encode_name for f in fields(LockspaceConfig)}
    assert {*example.pop("allow_users"), *example.pop("allow_groups")} == operations
    usual = LockspaceConfig("memory")
    of_lockspaces = "on_disconnect slow_wait slow_hold max_hold on_overdue outside"
    for key in of_lockspaces.split():
        assert example[key] == getattr(usual, key)


def test_manual_has_every_key_at_its_default() -> None:
    page = (ROOT / "man" / "lockd.toml.5").read_text()
    shown = dict.fromkeys(re.findall(r"^\.B (\w+)$", page, re.MULTILINE))
    shown |= re.findall(r'^\.BR (\w+) " \(" (\S+) \)$', page, re.MULTILINE)
    shown |= re.findall(r'^\.BR (\w+) " \(()\)"$', page, re.MULTILINE)
    config = to_builtins(Config())
    del config["lockspaces"], config["socket"], config["admin_socket"]
    del config["state_dir"]
    tables = config.pop("limits") | config.pop("metrics")
    keys = config | tables | to_builtins(host_paths())
    del keys["config"]
    of_lockspaces = "on_disconnect slow_wait slow_hold max_hold on_overdue outside"
    for key in of_lockspaces.split():
        keys[key] = getattr(LockspaceConfig("memory"), key)
    assert {key: shown.get(key) for key in keys} == {k: str(v) for k, v in keys.items()}
    assert {
        "kind",
        "path",
        "slots",
        *(f.encode_name for f in fields(Allowed)),
    } <= shown.keys()
    assert '.BR allow_users ", " allow_groups' in page
    known = {*keys, *(f.encode_name for f in fields(Allowed))}
    known |= {"kind", "path", "kill", "release", "limit", "direct", "default"}
    known |= {"memory", "directory", "warning", "file", "byte", "slots"}
    assert shown.keys() <= known


def options_of(command: click.Command) -> set[str]:
    found = {
        name
        for parameter in command.params
        for name in parameter.opts
        if isinstance(parameter, click.Option)
    }
    return found | {"-h", "--help", "--version"}


def options_in(page: str) -> set[str]:
    text = (ROOT / "man" / page).read_text().replace("\\-", "-")
    return set(re.findall(r"(?<![\w-])--?[a-zA-Z][\w-]*", text))


def test_manual_has_every_option_and_signal_of_the_daemon() -> None:
    assert options_in("lockd.8") == options_of(lockd_command)
    page = (ROOT / "man" / "lockd.8").read_text()
    assert {signal.name for signal in SIGNALS} <= set(re.findall(r"SIG\w+", page))
    statuses = re.findall(r"^\.B (\d+)$", page, re.MULTILINE)
    known = map(str, (EXIT_DEFECT, EXIT_AGAIN, EXIT_CONFIG))
    assert statuses == ["0", "2", *known]


def test_manual_has_the_ranges_of_what_may_be_set() -> None:
    page = (ROOT / "man" / "lockd.toml.5").read_text()
    text = page.partition(".SH RANGES")[2].partition(".SH")[0]
    for kind in (Count, Bytes, ManyBytes, Duration, Threshold):
        (meta,) = get_args(kind)[1:]
        for bound in (meta.ge, meta.gt, meta.le):
            assert bound is None or re.search(rf"\b{bound}\b", text), (kind, bound)


def test_manual_has_every_command_option_and_status_of_lockctl() -> None:
    page = (ROOT / "man" / "lockctl.1").read_text()
    names = lockctl.list_commands(click.Context(lockctl))
    commands = {
        name: lockctl.get_command(click.Context(lockctl), name) for name in names
    }
    shown = re.findall(r'^\.BI? ([\w\\-]+)(?: ".*)?$', page, re.MULTILINE)
    assert commands.keys() <= {name.replace("\\-", "-") for name in shown}
    known = options_of(lockctl).union(*(options_of(x) for x in commands.values() if x))
    documented = options_in("lockctl.1")
    assert known <= documented
    # Those of the commands in the examples.
    assert documented - known == {"-a", "-l"}
    statuses = set(re.findall(r"^\.B (\d+)$", page, re.MULTILINE))
    assert {str(exit_.status) for exit_ in EXITS} <= statuses


def host_paths() -> DefaultPaths:
    """Where things are for root's daemon."""
    return DefaultPaths(
        "/etc/lockd/lockd.toml",
        "/run/lockd/lockd.sock",
        "/run/lockd/admin.sock",
        "/var/lib/lockd",
    )


UNITS = sorted(
    path
    for path in (ROOT / "systemd").rglob("*.*")
    if path.suffix in (".service", ".socket")
)
PLAIN = ("Description", "Documentation", "WantedBy", "Also")


@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.name)
def test_directives_of_units_have_their_reasons(unit: Path) -> None:
    explained = False
    for line in unit.read_text().splitlines():
        if line.startswith("#"):
            explained = True
        elif not line or line.startswith("["):
            explained = False
        elif line.split("=", 1)[0] not in PLAIN:
            assert explained, line


def test_manual_has_every_unit() -> None:
    page = (ROOT / "man" / "lockd.8").read_text().replace("\\-", "-")
    assert len(UNITS) >= 6
    assert [unit.name for unit in UNITS if unit.name not in page] == []
