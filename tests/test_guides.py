"""Runs every command of the tutorials and guides, and compares what it prints.

Each page has a daemon and a directory of its own. A block that is no console is a
file: its path stands in its first comment. Paths of the system lead into the directory.
What differs from run to run (numbers, who runs the test) is not compared.
"""

import contextlib
import fcntl
import getpass
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from lockd import connect
from support.daemon_process import DaemonProcess
from support.places import DOCS, ROOT

NOT_RUN = {
    "configure",  # no commands
    "containers",  # builds an image
    "install",  # tests/system/booted/test_install.py
    "libvirt",  # tests/system/booted
    "metrics",  # no commands
    "other-languages",  # tests/test_languages.py
    "trouble",  # shows a host with a history
    "upgrade",  # no commands
}
"""Pages whose commands no test runs as they stand, and why."""
PAGES = {
    path.stem: path.read_text()
    for kind in ("tutorial", "how-to")
    for path in sorted((DOCS / kind).glob("*.md"))
    if path.stem not in NOT_RUN
}
MARK = "__done__"
OF_THE_MOMENT = re.compile(r"(Terminated|Done) |^lockctl: (waiting for|got) '")
"""What bash says of its jobs, and what lockctl says on a terminal after a second."""
PLACES = ("srv", "etc", "usr/local")
IMAGES = ("web1", "db", "old")


class Step(NamedTuple):
    """A command, and what it prints."""

    command: str
    output: str


def blocks(text: str) -> list[tuple[str, str]]:
    return re.findall(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def steps(block: str) -> Iterator[Step]:
    for part in re.findall(r"^[$#] (.*\n(?:(?![$#] ).*\n)*)", block, re.MULTILINE):
        command, _, output = part.partition("\n")
        yield Step(command, output)


def file_of(block: str) -> tuple[str, str] | None:
    """Returns path and text of a block that is a file."""
    path = re.search(r"^# (/\S+|\w+\.py)$", block, re.MULTILINE)
    return (path[1], block) if path else None


class Host:
    """Where the commands of one page run: a directory, a daemon, a shell."""

    def __init__(self, root: Path, text: str) -> None:
        self.root = root
        for place in ("srv/images", "srv/backup", "srv/locks", "usr/local/bin"):
            (root / place).mkdir(parents=True)
        for image in IMAGES:
            (root / "srv" / "images" / f"{image}.img").write_bytes(image.encode() * 99)
        found = filter(None, (file_of(block) for _, block in blocks(text)))
        self.files = dict(found)
        for name, content in self.files.items():
            file = root / self.inside(name)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(self.inside(content))
            file.chmod(0o755 if content.startswith("#!") else 0o644)
        configs = [x for path, x in self.files.items() if path.endswith(".toml")]
        state = root / "lockd"
        state.mkdir()
        self.daemon = DaemonProcess(state, self.inside("\n".join(configs)))

    def inside(self, text: str) -> str:
        """Leads the paths of a text into the directory."""
        return re.sub(rf"(?<![\w/])/(?=({'|'.join(PLACES)})/)", f"{self.root}/", text)

    def outside(self, text: str) -> str:
        escaped = str(self.root).replace("/", "-")
        return text.replace(f"{self.root}/", "/").replace(escaped, "")

    @contextlib.contextmanager
    def shell(self) -> Iterator["Shell"]:
        # tables are for terminals; one that is wide enough for all
        master, slave = os.openpty()
        environment = {
            **os.environ,
            "LOCKD_SOCKET": str(self.daemon.socket),
            "COLUMNS": "300",
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }
        process = subprocess.Popen(
            ["bash", "--norc", "-s"],
            stdin=subprocess.PIPE,
            stdout=slave,
            stderr=slave,
            env=environment,
            text=True,
            cwd=self.root,
            start_new_session=True,
        )
        os.close(slave)
        try:
            yield Shell(self, process, master)
        finally:
            assert process.stdin is not None
            process.stdin.write("kill $(jobs -p) 2>/dev/null; wait; exit\n")
            process.stdin.close()
            with contextlib.suppress(OSError):
                while os.read(master, 4096):
                    pass
            process.wait(30)
            os.close(master)


class Shell:
    """A bash that is fed one command after the other."""

    def __init__(self, host: Host, process: subprocess.Popen[str], master: int) -> None:
        self._host, self._process, self._master = host, process, master
        self._rest = ""

    def run(self, command: str) -> str:
        """Runs a command; returns what it prints. What is left behind has its lock."""
        busy = self._busy()
        typed = self._host.inside(command)
        assert self._process.stdin is not None
        # A job in the background is said to be there when it is, not when it is begun.
        self._process.stdin.write(f"{typed}\necho {MARK}\n")
        self._process.stdin.flush()
        output = self._read_to_mark()
        if command.endswith(" &"):
            while self._busy() == busy:
                pass
        return self._host.outside(output)

    def more(self, lines: int) -> str:
        """Waits for so many lines of a job in the background."""
        while self._rest.count("\n") < lines:
            self._read()
        found, self._rest = self._rest, ""
        return found

    def _busy(self) -> int:
        with connect(str(self._host.daemon.socket)) as client:
            counts = client.statistics()
        return int(counts["held"]) + int(counts["waiting"])

    def _read_to_mark(self) -> str:
        while f"{MARK}\n" not in self._rest:
            self._read()
        found, _, self._rest = self._rest.partition(f"{MARK}\n")
        return found

    def _read(self) -> None:
        self._rest += os.read(self._master, 65_536).decode().replace("\r\n", "\n")


def stable(output: str) -> str:
    """Returns what of an output is the same in every run."""
    lines = [line for line in output.splitlines() if not OF_THE_MOMENT.search(line)]
    text = "\n".join(line.rstrip() for line in lines)
    text = re.sub(r"\b\S+\.(scope|slice)\b|\buser@\S+", "-", text)
    text = text.replace(getpass.getuser(), "root")
    text = re.sub(r"\x1b\[[\d;]*m", "", text)
    # A program that is linked is run by an interpreter.
    text = re.sub(r"\S*/python[\d.]* \S*/(?=lockctl )", "", text)
    text = re.sub(r"\bpython[\d.]*", "python", text)
    text = re.sub(r"[ \t]+", " ", re.sub(r"\d+(\.\d+)?", "0", text))
    return "\n".join(line.strip() for line in text.splitlines())


@pytest.fixture
def root() -> Iterator[Path]:
    """A directory with a path so short that no sentence has to cut it."""
    with tempfile.TemporaryDirectory(prefix="c", dir="/tmp") as place:
        yield Path(place)


@pytest.mark.parametrize("name", PAGES)
def test_commands_print_what_the_page_says(name: str, root: Path) -> None:
    text = PAGES[name]
    if "$ systemd-escape" in text and not shutil.which("systemd-escape"):
        pytest.skip("takes systemd-escape (Debian: systemd)")
    host = Host(root, text)
    host.daemon.start()
    with contextlib.ExitStack() as stack:
        stack.callback(host.daemon.close)
        for path in re.findall(r"<!-- outside (\S+) -->", text):
            stack.enter_context(locked_outside(host.inside(path)))
        shell = stack.enter_context(host.shell())
        for kind, block in blocks(text):
            for command, expected in steps(block) if kind == "console" else ():
                output = shell.run(command)
                if command.endswith(" &") and expected:
                    output += shell.more(expected.count("\n"))
                assert stable(output) == stable(expected), command


@contextlib.contextmanager
def locked_outside(path: str) -> Iterator[None]:
    """Has a process that knows nothing of lockd lock a file, with a POSIX lock."""
    script = (
        "import fcntl, sys; f = open(sys.argv[1], 'r+');"
        "fcntl.lockf(f, fcntl.LOCK_EX, 1); print('locked', flush=True); input()"
    )
    command = [sys.executable, "-c", script, path]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        try:
            yield
        finally:
            assert process.stdin is not None
            process.stdin.write("\n")


def test_first_screen_of_the_readme_is_what_one_sees(root: Path) -> None:
    readme = (ROOT / "README.md").read_text()
    (_, block), *_ = blocks(readme)
    host = Host(root, readme)
    with contextlib.ExitStack() as stack:
        host.daemon.start()
        stack.callback(host.daemon.close)
        shell = stack.enter_context(host.shell())
        for command, output in steps(block):
            assert stable(shell.run(command)) == stable(output), command
        shell.run("kill %1; wait")


def test_every_page_has_commands() -> None:
    assert len(PAGES) >= 13
    for name, text in PAGES.items():
        assert [x for kind, x in blocks(text) if kind == "console"], name


def test_cron_table_runs_what_it_says(tmp_path: Path) -> None:
    host = Host(tmp_path, PAGES["cron"])
    host.daemon.start()
    try:
        lines = host.files["/etc/cron.d/report"].splitlines()
        (job,) = [line for line in lines if line and not line.startswith("#")]
        *when, user, command = job.split(maxsplit=6)
        assert (len(when), user) == (5, "root")
        with host.shell() as shell:
            assert shell.run(command) == "report written\n"
        host.daemon.stop()
        done = subprocess.run(
            [Path(sys.executable).parent / "lockctl", *command.split()[1:]],
            env={**os.environ, "LOCKD_SOCKET": str(host.daemon.socket)},
            capture_output=True,
            text=True,
            check=False,
        )
        # Cron mails it.
        assert (done.returncode, done.stdout) == (69, "")
        assert str(host.daemon.socket) in done.stderr
    finally:
        host.daemon.close()


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="takes systemd")
def test_units_of_the_page_can_be_loaded(tmp_path: Path) -> None:
    host = Host(tmp_path, PAGES["units"])
    units = tmp_path / "etc" / "systemd" / "system"
    for unit in (ROOT / "systemd").glob("*.*"):
        # Whether lockd is installed here is not asked.
        if unit.is_file():
            text = unit.read_text()
            text = re.sub(r"(?m)^ExecStart=.*$", "ExecStart=/bin/true", text)
            (units / unit.name).write_text(text)
    programs = tmp_path / "usr" / "local" / "bin"
    for name in ("dump", "scrub", "exporter"):
        (programs / name).write_text("#!/bin/sh\n")
        (programs / name).chmod(0o755)
    for path in host.files:
        if path.endswith(".service"):
            unit = Path(host.inside(path))
            unit.write_text(unit.read_text().replace("/usr/bin/lockctl", "/bin/true"))
            done = subprocess.run(
                ["systemd-analyze", "verify", "--man=no", host.inside(path)],
                env={**os.environ, "SYSTEMD_UNIT_PATH": f"{units}:"},
                capture_output=True,
                text=True,
                check=False,
            )
            assert str(programs) not in done.stderr
            assert Path(path).name not in done.stderr, done.stderr


def test_lock_of_another_process_is_in_the_way(tmp_path: Path) -> None:
    """What the page about holders outside lockd relies on."""
    file = tmp_path / "disk.img"
    file.touch()
    with (
        locked_outside(str(file)),
        file.open("r+") as ours,
        pytest.raises(BlockingIOError),
    ):
        fcntl.lockf(ours, fcntl.LOCK_EX | fcntl.LOCK_NB, 1)


def test_worker_of_the_page_outlives_a_stop(root: Path) -> None:
    host = Host(root, PAGES["worker"])
    host.daemon.start()
    worker = Path(host.inside("/usr/local/bin/worker"))
    with contextlib.ExitStack() as stack:
        stack.callback(host.daemon.close)
        process = stack.enter_context(
            subprocess.Popen(
                [sys.executable, str(worker)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, "LOCKD_SOCKET": str(host.daemon.socket)},
            )
        )
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("one\n" * 50)
        process.stdin.close()
        assert process.stdout.readline() == "does one\n"
        host.daemon.kill()
        host.daemon.start()
        said = process.stdout.read().splitlines()
        assert said.count("does one") >= 49
        assert said[-1] == "done"
        assert process.wait(30) == 0
        with connect(str(host.daemon.socket)) as client:
            assert client.statistics()["held"] == 0
