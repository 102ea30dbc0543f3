"""The Debian packages: built, and used from the first installation to the purge."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

from lockd import __version__, compilation
from system.booted.machine import INTERPRETER, TOP, Machine
from system.booted.test_service import held, released

pytestmark = pytest.mark.timeout(1_200)  # it may have to compile first

NEXT_VERSION: Final = "99.0.0"

STATE: Final = "/var/lib/lockd"

SOCKETS: Final = ("lockd.socket", "lockd-admin.socket")


@dataclass(frozen=True)
class Packages:
    """Where packages are, on the machine and outside."""

    lockd: Path
    client: Path
    next_lockd: Path


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with nothing but packages in it."""
    return tmp_path_factory.mktemp("packages")


@pytest.fixture(scope="module")
def packages(stage: Path, tmp_path_factory: pytest.TempPathFactory) -> Packages:
    """What `make deb` makes, and a package of the next version."""
    place = stage / "srv"
    command = ["make", "deb", f"DEB_DEST={place}", f"TARGET_PYTHON={INTERPRETER}"]
    subprocess.run(command, cwd=TOP, check=True, stdout=subprocess.DEVNULL)
    (lockd,) = place.glob("lockd_*.deb")
    (client,) = place.glob("python3-lockd_*.deb")
    later = place / "next.deb"
    make_next_version(lockd, later, tmp_path_factory.mktemp("next"))
    found = (Path("/", x.relative_to(stage)) for x in (lockd, client, later))
    return Packages(*found)


def make_next_version(package: Path, later: Path, place: Path) -> None:
    """Makes a package with the same program, but for its version."""
    tree = place / "tree"
    subprocess.run(["dpkg-deb", "-R", package, tree], check=True)
    control = tree / "DEBIAN" / "control"
    replace(control, f"Version: {__version__}", f"Version: {NEXT_VERSION}")
    module = tree / "usr/lib/lockd/lockd/__init__.py"
    replace(module, f'__version__ = "{__version__}"', f'__version__ = "{NEXT_VERSION}"')
    libdir = tree / "usr/lib/lockd"
    subprocess.run(
        [
            *(INTERPRETER, "-m", "compileall", "-q", "-f"),
            *("--invalidation-mode", "unchecked-hash"),
            *("-s", libdir, "-p", "/usr/lib/lockd", module),
        ],
        check=True,
    )
    # What is compiled belongs to this source.
    record = libdir / "lockd" / compilation.RECORD
    said = json.loads(record.read_text())
    said["source"] = compilation.fingerprint(libdir / "lockd")
    record.write_text(json.dumps(said))
    subprocess.run(
        ["dpkg-deb", "--root-owner-group", "-Zgzip", "-z1", "-b", tree, later],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    shutil.rmtree(tree)


def replace(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


@pytest.fixture(scope="module")
def bare(
    stage: Path, packages: Packages, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Machine]:
    """A machine without lockd, with the packages in /srv."""
    with Machine(tmp_path_factory.mktemp("machine"), stage) as machine:
        # Containers have it, so that nothing is started in them.
        machine.run("rm", "-f", "/usr/sbin/policy-rc.d")
        yield machine


@pytest.fixture
def machine(bare: Machine) -> Machine:
    """The machine, without lockd."""
    bare.run("rm", "-rf", "/etc/lockd/conf.d")  # an operator's files stay
    bare.run("dpkg", "--purge", "lockd", "python3-lockd")
    return bare


@pytest.fixture
def packaged(bare: Machine, packages: Packages) -> Iterator[Machine]:
    """The machine with the package as it was installed, and nobody connected."""
    apt(bare, "install", str(packages.lockd))
    bare.run("systemctl", "start", *SOCKETS)
    yield bare
    # A test may have removed it.
    bare.run("systemctl", "stop", "lockd-hold@*", *SOCKETS, check=False)
    bare.run("find", "/etc/lockd/", "-name", "*.toml", "-path", "*.d/*", "-delete")


def apt(machine: Machine, *words: str) -> str:
    """Runs apt-get without a question; returns all that it prints."""
    command = ("env", "DEBIAN_FRONTEND=noninteractive", "LC_ALL=C.UTF-8", "apt-get")
    options = ("-y", "-q", "--no-install-recommends", "--allow-downgrades")
    done = machine.run(*command, *options, *words)
    return done.stdout + done.stderr


def status(machine: Machine) -> Any:
    return json.loads(machine.say("lockctl", "status", "--json"))["status"]


def tokens(machine: Machine) -> dict[str, int]:
    """Returns the fencing tokens of all that is held."""
    listed = machine.say("lockctl", "list", "--json")
    return {
        lock["resource"]: lock["holders"][0]["fencing_token"]
        for lock in json.loads(listed)["resources"]
    }


def test_lintian_has_nothing_to_say(stage: Path, packages: Packages) -> None:
    found = [stage / str(x)[1:] for x in (packages.lockd, packages.client)]
    done = subprocess.run(
        ["lintian", "--allow-root", *found], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_unit_holds_a_lock_two_commands_after_nothing(
    machine: Machine, packages: Packages
) -> None:
    apt(machine, "install", str(packages.lockd))
    # The first client starts the daemon.
    assert [machine.show(unit, "ActiveState") for unit in SOCKETS] == ["active"] * 2
    assert machine.show("lockd.service", "ActiveState") == "inactive"
    machine.run("systemctl", "start", "lockd-hold@backup.service")
    listed = machine.say("lockctl", "list")
    assert listed.startswith("default\tbackup\texclusive")
    assert "\tlockd-hold@backup.service\t" in listed
    assert machine.say("lockd", "--version") == f"lockd {__version__} (compiled)"


def test_only_the_sockets_are_enabled(packaged: Machine) -> None:
    others = ("lockd.service", "lockd-metrics.socket", "lockd-virtlockd.socket")
    command = ("systemctl", "is-enabled", *SOCKETS, *others)
    said = packaged.run(*command, check=False).stdout.split()
    assert said == ["enabled"] * 2 + ["disabled"] * 3
    # A user's own daemon would hide the service.
    own = packaged.run(
        "systemctl", "--global", "is-enabled", "lockd.socket", check=False
    )
    assert own.stdout == "disabled\n"


def test_policy_against_starts_is_followed(
    machine: Machine, packages: Packages
) -> None:
    policy = "/usr/sbin/policy-rc.d"
    machine.write(policy, "#!/bin/sh\nexit 101\n")
    machine.run("chmod", "+x", policy)
    try:
        apt(machine, "install", str(packages.lockd))
        for unit in (*SOCKETS, "lockd.service"):
            assert machine.show(unit, "ActiveState") == "inactive"
    finally:
        machine.run("rm", policy)
    machine.run("systemctl", "start", "lockd.socket")
    machine.run("lockctl", "run", "a", "--", "true")


def test_upgrade_and_downgrade_keep_a_thousand_locks_and_a_hold(
    packaged: Machine, packages: Packages
) -> None:
    machine = packaged
    names = [f"lock-{number}" for number in range(1_000)]
    machine.run("systemctl", "start", "lockd-hold@backup.service")
    with held(machine, "default", *names) as holder:
        before, pid = tokens(machine), status(machine)["pid"]
        assert before.keys() == {*names, "backup"}
        for upgrades, package, version in (
            (1, packages.next_lockd, NEXT_VERSION),
            (2, packages.lockd, __version__),
        ):
            apt(machine, "install", str(package))
            now = status(machine)
            assert (now["version"], now["pid"]) == (version, pid)
            assert (now["compiled"], now["upgrades"]) == (True, upgrades)
            assert tokens(machine) == before
        machine.run("systemctl", "kill", "--signal=KILL", "lockd.service")
        assert tokens(machine) == before
        assert status(machine)["pid"] != pid
        assert released(holder)
    assert machine.show("lockd-hold@backup.service", "ActiveState") == "active"


def test_upgrade_that_the_daemon_rejects_keeps_the_old_program_and_says_so(
    packaged: Machine, packages: Packages
) -> None:
    machine = packaged
    with held(machine, "default", "a") as holder:
        pid = status(machine)["pid"]
        machine.write("/etc/lockd/conf.d/bad.toml", "no_such_key = 1\n")
        said = apt(machine, "install", str(packages.next_lockd))
        assert "lockd: the old version still runs, and keeps all locks" in said
        assert "no_such_key" in machine.journal("lockd.service")
        assert status(machine)["pid"] == pid
        machine.run("rm", "/etc/lockd/conf.d/bad.toml")
        machine.run("systemctl", "reload", "lockd")
        assert status(machine)["version"] == NEXT_VERSION
        assert released(holder)


def test_upgrade_asks_nothing_and_keeps_what_the_operator_set(
    packaged: Machine, packages: Packages
) -> None:
    own = "[lockspaces.own]\nkind = 'memory'\n"
    packaged.write("/etc/lockd/conf.d/own.toml", own)
    packaged.run("systemctl", "disable", "lockd-admin.socket")
    apt(packaged, "install", str(packages.next_lockd))
    assert packaged.say("cat", "/etc/lockd/conf.d/own.toml") == own.strip()
    packaged.run("lockctl", "run", "--lockspace=own", "a", "--", "true")
    enabled = packaged.run("systemctl", "is-enabled", *SOCKETS, check=False)
    assert enabled.stdout == "enabled\ndisabled\n"
    packaged.run("systemctl", "enable", "lockd-admin.socket")
    # Comments alone: nobody has to change it, so dpkg never asks which version to keep.
    lines = packaged.say("cat", "/etc/lockd/lockd.toml").splitlines()
    assert not [line for line in lines if line and not line.startswith("#")]


def test_it_runs_when_python3_is_another_version(packaged: Machine) -> None:
    machine = packaged
    depends = machine.say("dpkg-query", "-W", "-f", "${Depends}", "lockd")
    interpreter = machine.say("readlink", "-f", INTERPRETER)
    assert Path(interpreter).name in depends.split(", ")
    with held(machine, "default", "a") as holder:
        machine.run("mv", INTERPRETER, f"{INTERPRETER}.away")
        try:
            machine.run("systemctl", "reload", "lockd")
            machine.run("systemctl", "restart", "lockd")
            machine.run("lockctl", "run", "b", "--", "true")
        finally:
            machine.run("mv", f"{INTERPRETER}.away", INTERPRETER)
        assert released(holder)


def test_compiled_files_are_used_as_they_are(packaged: Machine) -> None:
    found = sorted(packaged.root.glob("usr/lib/lockd/lockd/**/*.pyc"))
    sources = list(packaged.root.glob("usr/lib/lockd/lockd/**/*.py"))
    assert len(found) == len(sources) > 100
    # By a hash of the source that nobody computes (PEP 552).
    assert {path.read_bytes()[4:8] for path in found} == {b"\1\0\0\0"}
    packaged.run("lockctl", "list")
    assert packaged.say("dpkg", "--verify", "lockd") == ""


def test_removal_says_what_is_lost_and_a_purge_leaves_what_it_says(
    machine: Machine, packages: Packages
) -> None:
    before = files(machine)
    apt(machine, "install", str(packages.lockd))
    own = "/etc/lockd/conf.d/own.toml"
    machine.write(own, "")
    machine.run("systemctl", "enable", "lockd", "lockd-metrics.socket")
    machine.run("systemctl", "enable", "--now", "lockd-hold@b.service")
    run = machine.command("lockctl", "run", "a", "--", "sleep", "1000")
    holder = subprocess.Popen(run, stderr=subprocess.PIPE, text=True)
    try:
        while "a" not in tokens(machine):
            pass
        said = apt(machine, "remove", "lockd")
        assert "1 lock would be lost, and 1 session would end" in said
        _, complaint = holder.communicate(timeout=30)
        assert holder.returncode == 76
        assert "the lock on 'a' was lost" in complaint
    finally:
        holder.kill()
        holder.communicate()
    running = machine.say("systemctl", "list-units", "--no-legend", "lockd*")
    assert running == ""
    assert machine.run("test", "-e", STATE).returncode == 0
    said = apt(machine, "purge", "lockd")
    assert "'/etc/lockd/conf.d' not empty so not removed" in said
    assert files(machine) - before == {"/etc/lockd", "/etc/lockd/conf.d", own}
    assert machine.run("getent", "passwd", "lockd").returncode == 0


def files(machine: Machine) -> set[str]:
    """Returns all files whose path names the program, or one of its commands."""
    named = ("(", "-path", "*lockd*", "-o", "-path", "*lockctl*", ")")
    # The host's files are visible, too, and may change.
    others = ("-path", "/var/tmp", "-prune", "-o")
    places = ("/etc", "/usr", "/var", "/run")
    command = ("find", *places, "-xdev", *others, *named, "-print")
    return set(machine.run(*command, check=False).stdout.splitlines())


def test_removal_returns_the_name_of_virtlockd(packaged: Machine) -> None:
    name = "/etc/systemd/system/virtlockd.socket"
    packaged.run("systemctl", "disable", "--now", "virtlockd.socket")
    packaged.run("systemctl", "enable", "lockd-virtlockd.socket")
    assert packaged.run("test", "-L", name).returncode == 0
    apt(packaged, "remove", "lockd")
    assert packaged.run("test", "-L", name, check=False).returncode == 1
    # Somebody else's link of that name stays.
    packaged.run("ln", "-s", "/dev/null", name)
    apt(packaged, "purge", "lockd")
    packaged.run("rm", name)


LOCKS: Final = """
import importlib, pkgutil, lockd
for module in pkgutil.walk_packages(lockd.__path__, "lockd."):
    importlib.import_module(module.name)
with lockd.connect() as client, client.lock("report"):
    print([x["resource"] for x in client.list_resources()], lockd.__file__)
"""


def test_client_of_the_systems_python_locks(
    packaged: Machine, packages: Packages
) -> None:
    apt(packaged, "install", str(packages.client))
    said = packaged.say(INTERPRETER, "-W", "error", "-c", LOCKS)
    place = "/usr/lib/python3/dist-packages/lockd"
    assert said == f"['report'] {place}/__init__.py"
    compiled = packaged.root / place[1:] / "__pycache__"
    assert compiled.exists()
    apt(packaged, "purge", "python3-lockd")
    assert not compiled.parent.exists()
