"""Unmodified libvirt runs its guests on lockd, in virtlockd's place."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from system.booted.guests import (
    LEASES,
    QEMU_WITHOUT_LOCKS,
    Guests,
    disk,
    domain,
    lease,
    path_of,
)
from system.booted.machine import Machine
from system.booted.test_service import held, main_pid, released

A, B, C = map(path_of, "abc")

HASHED = f'file_lockspace_dir = "{LEASES}"\n'

#: The same directory, in lockd's own configuration (in a file that `machine` removes).
IN_LOCKD = f'[lockspaces.guests]\nkind = "directory"\npath = "{LEASES}"\n'

VIRTLOCKD_UNITS = ("virtlockd.service", "virtlockd.socket", "virtlockd-admin.socket")
LOCKD_UNITS = ("lockd.service", "lockd.socket", "lockd-admin.socket")


@pytest.fixture(scope="module")
def prepared(booted: Machine) -> Guests:
    guests = Guests(booted)
    guests.prepare()
    return guests


@pytest.fixture
def guests(prepared: Guests, machine: Machine) -> Iterator[Guests]:
    """Libvirt on lockd, its disks locked by their paths; no guest runs later."""
    to_lockd(machine)
    prepared.configure("")
    yield prepared
    prepared.end_all()
    to_virtlockd(machine)


@pytest.fixture
def hashed(guests: Guests) -> Guests:
    """As `guests`, but disks are locked by their hashed names, and there are leases."""
    guests.machine.run("rm", "-rf", LEASES)
    guests.configure(HASHED)
    return guests


def to_lockd(machine: Machine) -> None:
    machine.run("systemctl", "stop", *VIRTLOCKD_UNITS, *LOCKD_UNITS)
    machine.run("systemctl", "disable", *VIRTLOCKD_UNITS)
    machine.run("systemctl", "enable", "--now", "lockd-virtlockd.socket")
    machine.run("systemctl", "start", "lockd.socket", "lockd-admin.socket")


def to_virtlockd(machine: Machine) -> None:
    machine.run("systemctl", "disable", "--now", "lockd-virtlockd.socket")
    machine.run("systemctl", "stop", *LOCKD_UNITS)
    machine.run("systemctl", "enable", "--now", *VIRTLOCKD_UNITS[1:])


def test_guest_that_runs_holds_its_disks(guests: Guests) -> None:
    guests.start("web", disk("a"), disk("b", "sdb"))
    locks = {lock["resource"]: lock for lock in guests.locks()}
    assert set(locks) == {A, B}
    (holder,) = locks[A]["holders"]
    assert holder["name"] == "web"
    assert holder["uuid"] == guests.uuid("web")
    assert holder["pid"] == guests.pid("web")
    assert holder["mode"] == "exclusive"
    guests.virsh("destroy", "web")
    guests.wait_until_free(A)
    assert guests.held() == {}


def test_guest_that_crashes_holds_nothing(guests: Guests) -> None:
    guests.start("web", disk("a"))
    guests.kill("web")
    guests.wait_until_free(A)
    guests.start("other", disk("a"))
    assert guests.held() == {A: ["other"]}


def test_second_guest_with_the_same_disk_is_told_who_has_it(guests: Guests) -> None:
    guests.start("web", disk("a"), emulator=QEMU_WITHOUT_LOCKS)
    said = guests.start_is_refused("other", disk("a"), emulator=QEMU_WITHOUT_LOCKS)
    assert "by web (pid " in said
    assert str(guests.pid("web")) in said
    assert A in said
    assert guests.held() == {A: ["web"]}


def test_disk_that_a_program_has_locked_is_refused_to_a_guest(guests: Guests) -> None:
    with held(guests.machine, "direct", A) as program:
        said = guests.start_is_refused("web", disk("a"))
        assert "python3" in said
        assert A in said
        assert released(program)
    guests.start("web", disk("a"))


def test_disk_under_lockctl_run_is_refused_to_a_guest(guests: Guests) -> None:
    guests.machine.write("/tmp/create", "virsh create /dev/stdin 2>&1\n")
    words = ("lockctl", "run", "--reason=the backup", A, "--", "sh", "/tmp/create")
    said = guests.machine.run(*words, text=domain("web", disk("a")), check=False)
    assert said.returncode == 1
    assert "by sh (pid " in said.stdout
    assert "the backup" in said.stdout


def test_guest_has_its_disk_before_any_program(guests: Guests) -> None:
    guests.start("web", disk("a"))
    words = ("lockctl", "run", "--nonblock", A, "--", "true")
    done = guests.machine.run(*words, check=False)
    assert done.returncode == 75
    assert "by web (pid " in done.stderr


def test_paused_guest_holds_nothing_until_it_goes_on(guests: Guests) -> None:
    guests.start("web", disk("a"))
    guests.virsh("suspend", "web")
    assert guests.held() == {}
    # Nothing in lockd. But its QEMU has the disk, whatever libvirt says.
    words = ("lockctl", "run", "--nonblock", A, "--", "true")
    done = guests.machine.run(*words, check=False)
    assert (done.returncode, "by QEMU" in done.stderr) == (75, True), done.stderr
    with (
        only_the_first_byte_counts(guests.machine),
        held(guests.machine, "direct", A) as program,
    ):
        assert "python3" in guests.refused("resume", "web")
        assert guests.state("web") == "paused"
        assert released(program)
    guests.virsh("resume", "web")
    assert guests.held() == {A: ["web"]}


@contextmanager
def only_the_first_byte_counts(machine: Machine) -> Iterator[None]:
    path = "/etc/lockd/conf.d/byte.toml"
    machine.write(path, '[lockspaces.direct]\noutside = "byte"\n')
    machine.run("systemctl", "reload", "lockd.service")
    try:
        yield
    finally:
        machine.run("rm", path)
        machine.run("systemctl", "reload", "lockd.service")


def test_disk_is_locked_while_it_is_plugged_in(guests: Guests) -> None:
    guests.start("web", disk("a"))
    guests.virsh(*guests.attach("web", "b"))
    assert guests.held() == {A: ["web"], B: ["web"]}
    guests.start("other", disk("c"))
    assert "by web (pid " in guests.refused(*guests.attach("other", "a"))
    guests.virsh("detach-disk", "web", "sdb", "--live")
    assert guests.held() == {A: ["web"], C: ["other"]}
    guests.virsh(*guests.attach("other", "b"))
    assert guests.held() == {A: ["web"], B: ["other"], C: ["other"]}


def test_saved_guest_holds_nothing_until_it_is_restored(guests: Guests) -> None:
    guests.start("web", disk("a"))
    guests.virsh("save", "web", "/srv/web.save")
    guests.wait_until_free(A)
    with held(guests.machine, "direct", A) as program:
        assert "python3" in guests.refused("restore", "/srv/web.save")
        assert released(program)
    guests.virsh("restore", "/srv/web.save")
    assert guests.held() == {A: ["web"]}
    guests.kill("web")
    guests.wait_until_free(A)


def test_guest_keeps_its_locks_while_libvirtd_is_restarted(guests: Guests) -> None:
    guests.start("web", disk("a"))
    before = guests.locks()[0]["holders"][0]["fencing_token"]
    guests.restart_libvirtd()
    assert guests.state("web") == "running"
    assert guests.locks()[0]["holders"][0]["fencing_token"] == before
    guests.virsh(*guests.attach("web", "b"))
    assert guests.held() == {A: ["web"], B: ["web"]}
    guests.virsh("suspend", "web")
    assert guests.held() == {}


def test_guests_keep_their_disks_when_lockd_is_killed_or_restarted(
    guests: Guests,
) -> None:
    machine = guests.machine
    guests.start("web", disk("a"), emulator=QEMU_WITHOUT_LOCKS)
    guests.start("mail", disk("b"), emulator=QEMU_WITHOUT_LOCKS)
    before = guests.locks()
    for command in ("kill --signal=KILL", "restart", "kill --signal=KILL"):
        pid = main_pid(machine)
        machine.run("systemctl", *command.split(), "lockd.service")
        said = guests.start_is_refused("other", disk("a"), emulator=QEMU_WITHOUT_LOCKS)
        assert f"by web (pid {guests.pid('web')}" in said
        assert main_pid(machine) != pid
        assert [guests.state(x) for x in ("web", "mail")] == ["running"] * 2
        assert tokens(guests.locks()) == tokens(before)
    # They still have the connections with which their locks end.
    guests.kill("web")
    guests.wait_until_free(A)
    guests.start("other", disk("a"), emulator=QEMU_WITHOUT_LOCKS)
    assert guests.held() == {A: ["other"], B: ["mail"]}


def tokens(locks: list[dict[str, Any]]) -> list[tuple[str, int]]:
    return [(x["resource"], x["holders"][0]["fencing_token"]) for x in locks]


def test_shareable_disk_is_shared(guests: Guests) -> None:
    shared = disk("a", extra="<shareable/>")
    guests.start("web", shared)
    guests.start("other", shared)
    (lock,) = guests.locks()
    assert lock["resource"] == A
    assert sorted((h["name"], h["mode"]) for h in lock["holders"]) == [
        ("other", "shared"),
        ("web", "shared"),
    ]
    guests.start("third", disk("c"))
    said = guests.refused(*guests.attach("third", "a"))
    assert "by web (pid " in said
    assert ", other (pid " in said
    guests.kill("web")
    guests.virsh("suspend", "other")
    guests.wait_until_free(A)


def test_disk_by_another_path_is_the_same_disk(guests: Guests) -> None:
    guests.machine.run("ln", "-sf", A, "/srv/link.img")
    guests.start("web", disk("/srv/link.img"))
    assert guests.held() == {A: ["web"]}
    guests.start("other", disk("c"))
    assert "by web (pid " in guests.refused(*guests.attach("other", "a"))
    guests.virsh("destroy", "web")
    guests.wait_until_free(A)


def test_live_upgrade_changes_nothing_for_guests(guests: Guests) -> None:
    machine = guests.machine
    guests.start("web", disk("a"), disk("b", "sdb"))
    guests.start("other", disk("c"))
    guests.virsh("suspend", "other")
    before = guests.locks()
    pid = main_pid(machine)
    with machine.awaited("lockd.service", "continues with"):
        machine.run("systemctl", "reload", "lockd.service")
    after = guests.locks()
    assert main_pid(machine) == pid
    tokens = [lock["holders"][0]["fencing_token"] for lock in before]
    assert [lock["holders"][0]["fencing_token"] for lock in after] == tokens
    guests.virsh("resume", "other")
    guests.virsh("detach-disk", "web", "sdb", "--live")
    assert guests.held() == {A: ["web"], C: ["other"]}
    guests.virsh("destroy", "web")
    guests.kill("other")
    guests.wait_until_free(A)
    guests.wait_until_free(C)
    guests.start("third", disk("a"))
    assert guests.held() == {A: ["third"]}


def test_guests_go_on_when_lockd_is_killed(guests: Guests) -> None:
    machine = guests.machine
    guests.start("web", disk("a"))
    guests.start("other", disk("b"))
    tokens = [lock["holders"][0]["fencing_token"] for lock in guests.locks()]
    running = [guests.pid("web"), guests.pid("other")]
    for _ in range(3):
        pid = main_pid(machine)
        machine.run("kill", "-KILL", str(pid))
        said = guests.start_is_refused("third", disk("a"), emulator=QEMU_WITHOUT_LOCKS)
        assert "by web (pid " in said
        assert main_pid(machine) not in (0, pid)
    after = [lock["holders"][0]["fencing_token"] for lock in guests.locks()]
    assert after == tokens
    assert guests.held() == {A: ["web"], B: ["other"]}
    assert [guests.pid("web"), guests.pid("other")] == running
    assert [guests.state("web"), guests.state("other")] == ["running", "running"]
    guests.virsh("suspend", "other")
    guests.wait_until_free(B)
    guests.virsh("resume", "other")
    guests.virsh("destroy", "web")
    guests.wait_until_free(A)
    guests.start("third", disk("a"))
    assert guests.held() == {A: ["third"], B: ["other"]}


def test_second_guest_with_the_same_lease_is_told_who_has_it(hashed: Guests) -> None:
    hashed.machine.run("touch", f"{LEASES}/seat")
    hashed.start("web", lease("seat"))
    assert hashed.held() == {"seat": ["web"]}
    said = hashed.start_is_refused("other", lease("seat"))
    assert "by web (pid " in said
    assert "seat" in said
    (lock,) = hashed.locks()
    hashed.kill("web")
    hashed.wait_until_free("seat", lock["lockspace"])
    hashed.start("other", lease("seat"))
    assert hashed.held() == {"seat": ["other"]}


def test_lease_without_a_file_is_refused(hashed: Guests) -> None:
    said = hashed.start_is_refused("web", lease("nowhere"))
    assert f"{LEASES}/nowhere" in said
    assert hashed.held() == {}


def test_hashed_names_are_shown_with_their_paths(hashed: Guests) -> None:
    machine = hashed.machine
    hashed.start("web", disk("a"), emulator=QEMU_WITHOUT_LOCKS)
    (lock,) = hashed.locks()
    assert lock["resource"] == machine.say("lockctl", "lock-name", A)
    assert lock["holders"][0]["label"] == A
    assert machine.say("ls", LEASES).split() == [lock["resource"]]
    said = hashed.start_is_refused("other", disk("a"), emulator=QEMU_WITHOUT_LOCKS)
    assert "by web (pid " in said
    assert A in said
    words = ("lockctl", "run", "--nonblock", f"--lockspace={lock['lockspace']}")
    done = machine.run(*words, lock["resource"], "--", "true", check=False)
    assert done.returncode == 75
    assert "by web (pid " in done.stderr
    hashed.virsh("destroy", "web")
    machine.run(*words, "--wait=30", lock["resource"], "--", "true")
    machine.wait_until_empty(LEASES)


def test_lockspace_of_the_configuration_is_there_when_lockd_is_started_anew(
    hashed: Guests,
) -> None:
    machine = hashed.machine
    machine.write("/etc/lockd/conf.d/zz-lockd.toml", IN_LOCKD)
    # A restart would keep the one that libvirtd made.
    machine.run("systemctl", "stop", "lockd.service")
    machine.run("systemctl", "start", "lockd.service")
    hashed.start("web", disk("a"))
    (lock,) = hashed.locks()
    assert (lock["lockspace"], lock["holders"][0]["label"]) == ("guests", A)
    hashed.restart_libvirtd()
    hashed.virsh("suspend", "web")
    hashed.virsh("resume", "web")
    (lock,) = hashed.locks()
    assert lock["lockspace"] == "guests"


def test_virtlockd_cannot_be_started_beside_lockd(guests: Guests) -> None:
    machine = guests.machine
    done = machine.run("systemctl", "start", "virtlockd.service", check=False)
    assert done.returncode != 0
    assert machine.show("lockd-virtlockd.socket", "ActiveState") == "active"
    machine.run("systemctl", "stop", "libvirtd.service")
    guests.start("web", disk("a"))
    assert guests.held() == {A: ["web"]}


def check(machine: Machine) -> tuple[int, dict[str, Any]]:
    """Runs `lockctl virtlockd-check`; returns its status and its JSON."""
    done = machine.run("lockctl", "virtlockd-check", "--json", check=False)
    return done.returncode, json.loads(done.stdout)


def test_guests_are_switched_over_while_they_run(guests: Guests) -> None:
    machine = guests.machine
    to_virtlockd(machine)
    guests.start("web", disk("a"))
    guests.start("other", disk("b"))
    guests.virsh("suspend", "web")
    guests.virsh("suspend", "other")
    assert check(machine)[0] == 0
    to_lockd(machine)
    guests.virsh("resume", "web")
    guests.virsh("resume", "other")
    assert guests.held() == {A: ["web"], B: ["other"]}
    guests.kill("web")
    guests.virsh("destroy", "other")
    guests.wait_until_free(A)
    guests.wait_until_free(B)


def test_check_names_the_guests_that_hold_locks_in_virtlockd(guests: Guests) -> None:
    machine = guests.machine
    to_virtlockd(machine)
    guests.configure(HASHED)
    machine.run("touch", f"{LEASES}/seat")
    guests.start("web", disk("a"), lease("seat"))
    guests.start("paused", disk("b"))
    guests.virsh("suspend", "paused")
    status, told = check(machine)
    web = {"name": "web", "uuid": guests.uuid("web"), "pid": guests.pid("web")}
    virtlockd = int(machine.show("virtlockd.service", "MainPID"))
    common = {"mode": "exclusive", "virtlockd": virtlockd, "guests": [web]}
    name = machine.say("lockctl", "lock-name", A)
    assert status == 75
    assert told == {
        "version": 1,
        "safe": False,
        "virtlockd": [virtlockd],
        "locks": [{"path": f"{LEASES}/{file}", **common} for file in (name, "seat")],
    }
    done = machine.run("lockctl", "virtlockd-check", check=False)
    assert "virtlockd holds 2 locks" in done.stderr
    assert f"{LEASES}/seat\texclusive\tweb\t" in done.stdout


def test_check_tells_of_a_lock_that_virtlockd_has_lost(guests: Guests) -> None:
    machine = guests.machine
    to_virtlockd(machine)
    machine.run("ln", "-sf", A, "/srv/link.img")
    guests.start("web", disk("a"), emulator=QEMU_WITHOUT_LOCKS)
    # The same file by another path: virtlockd takes it for another disk, and drops the
    # one lock that the kernel has when it closes the file once.
    guests.start("other", disk("/srv/link.img"), emulator=QEMU_WITHOUT_LOCKS)
    guests.virsh("suspend", "other")
    status, told = check(machine)
    assert status == 75
    (lock,) = told["locks"]
    assert (lock["path"], lock["mode"]) == (A, None)
    assert [guest["name"] for guest in lock["guests"]] == ["web"]


def test_check_says_that_nobody_holds_a_lock_in_virtlockd(guests: Guests) -> None:
    machine = guests.machine
    done = machine.run("lockctl", "virtlockd-check")
    assert "virtlockd does not run" in done.stderr
    to_virtlockd(machine)
    machine.run("systemctl", "start", "virtlockd.service")
    done = machine.run("lockctl", "virtlockd-check")
    assert "virtlockd holds no lock" in done.stderr
    assert done.stdout == ""


def test_check_takes_root_where_virtlockd_runs(guests: Guests) -> None:
    machine = guests.machine
    words = ("lockctl", "virtlockd-check")
    assert machine.run(*words, user="stranger").returncode == 0
    to_virtlockd(machine)
    machine.run("systemctl", "start", "virtlockd.service")
    done = machine.run(*words, user="stranger", check=False)
    assert done.returncode == 77
    assert "run this as root" in done.stderr
