"""`lockctl stop` under systemd: tells who loses what, asks, and stops for good."""

from system.booted.machine import Machine
from system.booted.test_service import held, released

UNITS = ("lockd.service", "lockd.socket", "lockd-admin.socket")
ON_A_TERMINAL = ("script", "--quiet", "--return", "--command")


def states(machine: Machine) -> list[str]:
    return [machine.show(unit, "ActiveState") for unit in UNITS]


def test_stop_tells_who_loses_what_and_stops_all(machine: Machine) -> None:
    with held(machine, "files", "a", "b") as holder:
        done = machine.run("lockctl", "stop", "--yes")
        lines = [line.split("\t") for line in done.stdout.splitlines()]
        assert [line[:2] for line in lines] == [["files", "a"], ["files", "b"]]
        assert "2 locks would be lost, and 1 session would end" in done.stderr
        again = "systemctl start lockd-admin.socket lockd.socket"
        assert sorted(again.split()) == sorted(done.stderr.split("`")[1].split())
        assert states(machine) == ["inactive"] * 3
        assert not released(holder)
    assert machine.run("lockctl", "list", check=False).returncode == 69
    machine.run("systemctl", "start", "lockd.socket")
    assert machine.say("lockctl", "list") == ""


def test_stop_that_nobody_confirms_stops_nothing(machine: Machine) -> None:
    with held(machine, "default", "a") as holder:
        done = machine.run("lockctl", "stop", check=False)
        assert done.returncode == 64
        assert "add --yes" in done.stderr
        for answer in ("n\n", "\n"):
            done = machine.run(*ON_A_TERMINAL, "lockctl stop", text=answer, check=False)
            assert done.returncode == 1, done.stdout
            assert "run `systemctl stop lockd.service" in done.stdout
            assert "nothing was changed" in done.stdout
        assert states(machine) == ["active"] * 3
        assert released(holder)


def test_stop_that_is_confirmed_stops(machine: Machine) -> None:
    with held(machine, "default", "a") as holder:
        done = machine.run(*ON_A_TERMINAL, "lockctl stop", text="y\n", check=False)
        assert done.returncode == 0, done.stdout
        assert "LOCKSPACE" in done.stdout
        assert states(machine) == ["inactive"] * 3
        assert not released(holder)


def test_stop_is_for_those_who_may_stop_units(machine: Machine) -> None:
    with held(machine, "default", "a") as holder:
        done = machine.run("lockctl", "stop", "--yes", user="member", check=False)
        assert done.returncode == 69
        assert "failed with status" in done.stderr
        assert states(machine) == ["active"] * 3
        assert released(holder)


def test_status_says_that_everything_survives(machine: Machine) -> None:
    with held(machine, "default", "a") as holder:
        said = machine.say("lockctl", "status")
        assert "unit\tlockd.service" in said
        assert "everything: the service manager keeps 1 lock and 2 connections" in said
        machine.run("systemctl", "kill", "--signal=KILL", "lockd.service")
        machine.run("lockctl", "status")
        machine.run("systemctl", "restart", "lockd.service")
        assert "everything: the service manager keeps 1 lock and 2 conn" in machine.say(
            "lockctl", "status"
        )
        assert released(holder)
