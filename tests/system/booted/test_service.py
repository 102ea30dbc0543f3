"""lockd as systemd runs it: started, watched, reloaded, restarted, stopped."""

import json
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from compiled import INTERPRETED
from system.booted.machine import LIBDIR, Machine, make, manner

HOLD = """
import lockd, sys
with lockd.connect() as client:
    for name in sys.argv[2:]:
        client.acquire(name, lockspace=sys.argv[1])
    print("held", flush=True)
    sys.stdin.readline()
    for name in sys.argv[2:]:
        client.release(name, lockspace=sys.argv[1])
    print("released", flush=True)
"""


@contextmanager
def held(
    machine: Machine, lockspace: str, *names: str
) -> Iterator[subprocess.Popen[str]]:
    """A client inside that holds locks; a line on its input ends it."""
    with subprocess.Popen(
        machine.command(*machine.script(HOLD, lockspace, *names)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as client:
        assert client.stdout is not None
        assert client.stdout.readline() == "held\n"
        yield client


def released(client: subprocess.Popen[str]) -> bool:
    """Tells whether a client still had its locks, to the end."""
    said, _ = client.communicate("\n", timeout=30)
    return said == "released\n"


UPGRADED = "continues with"
"""What a new program says when it has the configuration and serves."""

WAITED_FOR = "1 held, 1 waiting, 2 sessions"


def main_pid(machine: Machine) -> str:
    return machine.show("lockd.service", "MainPID")


def drop_in(machine: Machine, unit: str, text: str) -> None:
    machine.write(f"/run/systemd/system/{unit}.d/test.conf", text)
    machine.run("systemctl", "daemon-reload")


def test_units_are_good(machine: Machine) -> None:
    units = [
        "lockd.service",
        "lockd.socket",
        "lockd-admin.socket",
        "lockd-virtlockd.socket",
        "lockd-metrics.socket",
        "lockd-hold@x.service",
    ]
    done = machine.run("systemd-analyze", "verify", *units)
    assert done.stdout + done.stderr == ""
    done = machine.run(
        "env",
        "XDG_RUNTIME_DIR=/run",
        "systemd-analyze",
        "--user",
        "verify",
        "lockd.service",
    )
    assert "lockd" not in done.stdout + done.stderr


@pytest.mark.parametrize("offline", ["true", "false"])
@pytest.mark.parametrize("unit", ["lockd.service", "lockd-hold@x.service"])
def test_service_is_hardened(machine: Machine, unit: str, offline: str) -> None:
    said = machine.say("systemd-analyze", "security", f"--offline={offline}", unit)
    level = re.search(rf"Overall exposure level for {unit}: ([\d.]+)", said)
    assert level is not None
    assert float(level[1]) <= 1.2


def test_first_client_starts_it(machine: Machine) -> None:
    assert machine.show("lockd.service", "ActiveState") == "inactive"
    machine.run("lockctl", "run", "a", "--", "true")
    assert machine.show("lockd.service", "ActiveState") == "active"
    assert machine.show("lockd.service", "SubState") == "running"


def test_first_admin_starts_it(machine: Machine) -> None:
    machine.run("lockctl", "--socket", "/run/lockd/admin.sock", "spaces")
    assert machine.show("lockd.service", "SubState") == "running"


def test_status_counts_what_is_held(machine: Machine) -> None:
    with held(machine, "default", "a", "b"):
        machine.wait_for("lockd.service", "StatusText", "2 held, 0 waiting, 1 session")
        with subprocess.Popen(
            machine.command("lockctl", "run", "a", "--", "true")
        ) as waiter:
            machine.wait_for(
                "lockd.service", "StatusText", "2 held, 1 waiting, 2 sessions"
            )
            machine.run("lockctl", "list")
            waiter.terminate()


def test_everything_is_locked_under_the_hardening(machine: Machine) -> None:
    machine.run("truncate", "-s", "1M", "/srv/disk", "/var/lib/image")
    machine.run("chown", "stranger:", "/srv/disk")
    machine.run("chmod", "600", "/srv/disk")
    device = machine.say("losetup", "--find", "--show", "/var/lib/image")
    try:
        with (
            held(machine, "default", "a") as first,
            held(machine, "files", "a", "b") as second,
            held(machine, "direct", "/srv/disk", "/var/lib/image", device) as third,
        ):
            listed = machine.say("lockctl", "list").splitlines()
            assert len(listed) == 6
            locked = machine.say("ls", "/var/lib/locks").split()
            assert locked == ["a", "b"]
            for path in ("/srv/disk", "/var/lib/image", device, "/var/lib/locks/a"):
                inode = machine.say("stat", "-c", "%i", path)
                assert f":{inode} 0 0" in machine.say("cat", "/proc/locks")
            assert [released(x) for x in (first, second, third)] == [True] * 3
        machine.wait_until_empty("/var/lib/locks")
    finally:
        machine.run("losetup", "--detach", device)


def test_file_in_a_home_can_be_locked_although_lockd_may_only_read_it(
    machine: Machine,
) -> None:
    path = "/home/stranger/file"
    machine.run("touch", path, user="stranger")
    machine.run("lockctl", "run", "--shared", path, "--", "true")
    again = ("lockctl", "run", "-n", path, "--", "true")
    # Not as a part of the first command, which would be let in.
    apart = ("env", "-u", "LOCKD_WITHIN", *again)
    done = machine.run("lockctl", "run", path, "--", *apart, check=False)
    assert done.returncode == 75
    machine.run(*again)


def test_peers_are_known_by_name_user_and_unit(machine: Machine) -> None:
    machine.run("systemctl", "start", "lockd.service")
    machine.run(
        "systemd-run", "--wait", "--unit=under-test", "--uid=member", "-q",
        "lockctl", "run", "a", "-c", "lockctl list --json > /tmp/listed",
    )  # fmt: skip
    told = machine.say("cat", "/tmp/listed")
    assert '"unit": "under-test.service"' in told
    uid = machine.say("id", "-u", "member")
    assert f'"uid": {uid}' in told


def test_only_the_group_may_connect(machine: Machine) -> None:
    assert machine.run("lockctl", "list", user="member").returncode == 0
    done = machine.run("lockctl", "list", user="stranger", check=False)
    assert done.returncode == 77
    assert "join the group 'lockd', which owns the socket, or ask root" in done.stderr


def test_daemon_that_hangs_is_restarted(machine: Machine) -> None:
    drop_in(machine, "lockd.service", "[Service]\nWatchdogSec=1\nRestartSec=2\n")
    machine.run("systemctl", "start", "lockd.service")
    before = main_pid(machine)
    machine.run("kill", "-STOP", before)
    machine.wait_for("lockd.service", "Result", "watchdog")
    machine.wait_for("lockd.service", "NRestarts", "1")
    machine.wait_for("lockd.service", "ActiveState", "active")
    assert main_pid(machine) != before
    machine.run("lockctl", "run", "a", "--", "true")


def test_daemon_that_is_killed_again_and_again_comes_back(machine: Machine) -> None:
    drop_in(machine, "lockd.service", "[Service]\nRestartSec=0\n")
    machine.run("systemctl", "start", "lockd.service")
    for count in range(1, 9):
        machine.run("kill", "-KILL", main_pid(machine))
        machine.wait_for("lockd.service", "NRestarts", str(count))
        machine.run("lockctl", "run", "a", "--", "true")


def test_bad_configuration_is_not_tried_again(machine: Machine) -> None:
    machine.write("/etc/lockd/conf.d/test.toml", "[limits]\nsessions = 'many'\n")
    assert machine.run("systemctl", "start", "lockd", check=False).returncode != 0
    assert machine.show("lockd.service", "ExecMainStatus") == "78"
    assert machine.show("lockd.service", "ActiveState") == "failed"
    assert machine.show("lockd.service", "NRestarts") == "0"
    for _ in range(3):
        done = machine.run("lockctl", "run", "a", "--", "true", check=False)
        assert done.returncode == 69
        assert (
            done.stderr == "lockctl: lockd cannot start: see its log for the reason\n"
        )
    said = machine.journal("lockd.service", "--priority=err")
    assert said.count("sessions: must be a whole") == 4
    assert "/etc/lockd/conf.d/test.toml: [limits] sessions: must be a whole" in said
    machine.write("/etc/lockd/conf.d/test.toml", "[limits]\nsessions = 100\n")
    machine.run("lockctl", "run", "a", "--", "true")


STATE = "/var/lib/lockd"

SPOILT = {
    "a file in its place": f"mv {STATE} {STATE}.away && touch {STATE}",
    "a read-only disk": f"mount -B {STATE} {STATE} && mount -o remount,bind,ro {STATE}",
    "somebody else's": f"chmod 777 {STATE}",
}
MENDED = (
    f"umount {STATE} 2>/dev/null; chmod 700 {STATE}; "
    f"test ! -e {STATE}.away || (rm {STATE} && mv {STATE}.away {STATE})"
)


@pytest.mark.parametrize("how", SPOILT)
def test_start_without_a_state_directory_names_it_and_is_not_tried_again(
    machine: Machine, how: str
) -> None:
    machine.run("systemctl", "start", "lockd.service")
    machine.run("systemctl", "stop", "lockd.service")
    machine.run("sh", "-c", SPOILT[how])
    try:
        with machine.awaited("lockd.service", "lockd: the state directory"):
            machine.run("systemctl", "start", "lockd.service", check=False)
        assert machine.show("lockd.service", "ExecMainStatus") == "78"
        assert machine.show("lockd.service", "ActiveState") == "failed"
        assert machine.show("lockd.service", "NRestarts") == "0"
        told = machine.run("systemctl", "status", "lockd", check=False).stdout
        assert STATE in told[told.index("lockd: the state directory") :]
        done = machine.run("lockctl", "run", "a", "--", "true", check=False)
        assert (
            done.stderr == "lockctl: lockd cannot start: see its log for the reason\n"
        )
    finally:
        machine.run("sh", "-c", MENDED)
    machine.run("lockctl", "run", "a", "--", "true")


@pytest.mark.parametrize("how", SPOILT)
def test_locks_outlive_starts_that_fail_for_want_of_a_state_directory(
    machine: Machine, how: str
) -> None:
    machine.run("systemctl", "start", "lockd.service")
    with held(machine, "files", "a") as client:
        machine.run("sh", "-c", SPOILT[how])
        try:
            since = time.monotonic()
            with machine.awaited("lockd.service", "lockd: the state directory"):
                machine.run("kill", "-KILL", main_pid(machine))
                machine.wait_for("lockd.service", "NRestarts", "3")
            # Each start but the last one took a second: a slow host makes it more.
            assert time.monotonic() - since >= 2
        finally:
            machine.run("sh", "-c", MENDED)
        machine.wait_for("lockd.service", "ActiveState", "active")
        assert released(client)


def test_missing_state_directory_is_made(machine: Machine) -> None:
    machine.run("rm", "-rf", STATE)
    machine.run("lockctl", "run", "a", "--", "true")
    assert machine.say("stat", "-c", "%a %U", STATE) == "700 lockd"


def test_reload_is_a_live_upgrade(machine: Machine) -> None:
    machine.run("touch", "/var/lib/disk")
    machine.run("systemctl", "start", "lockd.service")
    before = main_pid(machine)
    with (
        held(machine, "files", "a") as one,
        held(machine, "direct", "/var/lib/disk") as two,
    ):
        machine.write(
            "/etc/lockd/conf.d/zz-lockd.toml", "[lockspaces.new]\nkind = 'memory'\n"
        )
        with machine.awaited("lockd.service", UPGRADED):
            machine.run("systemctl", "reload", "lockd.service")
        machine.run("lockctl", "run", "--lockspace=new", "a", "--", "true")
        assert main_pid(machine) == before
        machine.wait_for("lockd.service", "ActiveState", "active")
        assert machine.show("lockd.service", "NRestarts") == "0"
        assert released(one)
        assert released(two)


def test_locks_stay_when_the_source_takes_over_and_when_it_is_compiled_again(
    machine: Machine, tmp_path: Path
) -> None:
    make("install", tmp_path, "COMPILED=no")
    assert manner(tmp_path) == f"{INTERPRETED}: COMPILED=no"
    installed = tmp_path / LIBDIR[1:]
    assert not list((installed / "lockd").rglob("*.so"))
    other = Path(f"/proc/{machine.first_pid}/root{LIBDIR}.other")
    shutil.copytree(installed, other)
    compiled = not machine.manner.startswith(INTERPRETED)
    machine.run("systemctl", "start", "lockd.service")
    with held(machine, "files", "a") as one, held(machine, "default", "b") as two:
        for runs_compiled in (False, compiled):
            machine.run("mv", LIBDIR, f"{LIBDIR}.old")
            machine.run("mv", f"{LIBDIR}.other", LIBDIR)
            machine.run("mv", f"{LIBDIR}.old", f"{LIBDIR}.other")
            with machine.awaited("lockd.service", UPGRADED):
                machine.run("systemctl", "reload", "lockd.service")
            status = json.loads(machine.say("lockctl", "status", "--json"))["status"]
            assert status["compiled"] is runs_compiled
            assert machine.run("lockctl", "test", "b", check=False).stdout == "held\n"
        assert released(one)
        assert released(two)
    machine.run("rm", "-r", f"{LIBDIR}.other")


LOAD = """
import lockd, os, sys, threading
lost, rounds = [], [0] * 8
ended = threading.Event()
def work(number):
    with lockd.connect() as client:
        while not ended.is_set():
            for space, mode in (("default", "exclusive"), ("files", "shared")):
                client.acquire("common", lockspace=space, mode=mode, timeout=30)
                client.release("common", lockspace=space)
            rounds[number] += 1
def watched(number):
    try:
        work(number)
    except BaseException as error:
        lost.append(repr(error))
workers = [threading.Thread(target=watched, args=(n,)) for n in range(len(rounds))]
for worker in workers:
    worker.start()
print("works", flush=True)
sys.stdin.readline()
before = rounds[:]
while not lost and any(new < old + 5 for new, old in zip(rounds, before)):
    pass
ended.set()
for worker in workers:
    worker.join()
print(lost, flush=True)
"""


def test_nobody_notices_a_reload_under_load(machine: Machine) -> None:
    with subprocess.Popen(
        machine.command(*machine.script(LOAD)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as clients:
        assert clients.stdout is not None
        assert clients.stdout.readline() == "works\n"
        # A reload of a service that is still being started does nothing.
        machine.wait_for("lockd.service", "ActiveState", "active")
        pid = main_pid(machine)

        # A SIGHUP in the middle of an upgrade is heard by nobody: the new program reads
        # the configuration anyway.
        for _ in range(5):
            with machine.awaited("lockd.service", UPGRADED):
                machine.run("systemctl", "reload", "lockd.service")
            with machine.awaited("lockd.service", "reloaded the configuration"):
                machine.run("kill", "-HUP", pid)
        said, _ = clients.communicate("\n", timeout=60)
    assert said == "[]\n"
    assert main_pid(machine) == pid
    assert machine.show("lockd.service", "NRestarts") == "0"


def test_reload_with_a_bad_configuration_fails_and_changes_nothing(
    machine: Machine,
) -> None:
    with held(machine, "files", "a") as client:
        machine.write("/etc/lockd/conf.d/test.toml", "colour = 1\n")
        done = machine.run("systemctl", "reload", "lockd.service", check=False)
        assert done.returncode != 0
        assert machine.show("lockd.service", "ActiveState") == "active"
        assert released(client)


def test_program_that_cannot_start_does_not_replace_the_old_one(
    machine: Machine,
) -> None:
    launcher = machine.say("cat", "/usr/bin/lockd") + "\n"
    with held(machine, "files", "a") as client:
        pid = main_pid(machine)
        machine.write("/usr/bin/lockd", "#!/usr/bin/python3 -I\nimport no_such_thing\n")
        try:
            with machine.awaited("lockd.service", "the upgrade failed"):
                machine.run("kill", "-USR1", pid)
            assert "No module named 'no_such_thing'" in machine.journal("lockd.service")
            assert "the upgrade failed" in machine.show("lockd.service", "StatusText")
            assert main_pid(machine) == pid
        finally:
            machine.write("/usr/bin/lockd", launcher)
        with machine.awaited("lockd.service", UPGRADED):
            machine.run("kill", "-USR1", pid)
        machine.run("lockctl", "run", "b", "--", "true")
        assert main_pid(machine) == pid
        assert released(client)


def test_stop_releases_everything(machine: Machine) -> None:
    with held(machine, "files", "a") as client:
        machine.run("systemctl", "stop", "lockd.service", "lockd.socket")
        assert not released(client)
    assert machine.show("lockd.service", "Result") == "success"
    # The file stays behind: the daemon cannot tell a stop from a restart.
    machine.run("systemctl", "start", "lockd.socket")
    machine.run("lockctl", "run", "-n", "--lockspace=files", "a", "--", "true")
    machine.run("rm", "/var/lib/locks/a")


def test_process_is_dead_before_its_lock_is_given_away(machine: Machine) -> None:
    script = """
    import lockd, os, signal, subprocess, sys
    LIVES_ON = '''
    import lockd, signal, sys
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    client = lockd.connect()
    client.acquire("a", lockspace="killed")
    print("held", flush=True)
    sys.stdin.readline()
    client.close()
    signal.pause()
    '''.replace("\\n    ", "\\n")
    head = "import sys; sys.path.insert(0, '/usr/lib/lockd')"
    owner = subprocess.Popen(
        [sys.executable, "-I", "-c", head + LIVES_ON],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )
    pidfd = os.pidfd_open(owner.pid)
    assert owner.stdout.readline() == "held\\n"
    owner.stdin.write("\\n")
    owner.stdin.flush()
    with lockd.connect() as client:
        client.acquire("a", lockspace="killed")
        import select
        print(bool(select.select([pidfd], [], [], 0)[0]))
        client.release("a", lockspace="killed")
    print(owner.wait() == -signal.SIGKILL)
    """
    assert machine.python(script) == "True\nTrue\n"


def test_journal_has_priorities(machine: Machine) -> None:
    machine.run("systemctl", "start", "lockd.service")
    machine.write("/etc/lockd/conf.d/test.toml", "colour = 1\n")
    with machine.awaited("lockd.service", "cannot reload the configuration"):
        machine.run("kill", "-HUP", main_pid(machine))
    errors = machine.journal("lockd.service", "--priority=err")
    assert "cannot reload the configuration" in errors
    assert "serves at" not in errors


def test_unit_that_needs_a_lock_runs_while_it_is_held(machine: Machine) -> None:
    machine.write(
        "/run/systemd/system/needs-lockd.service",
        "[Unit]\nBindsTo=lockd-hold@job.service\nAfter=lockd-hold@job.service\n"
        "[Service]\nExecStart=sleep infinity\n",
    )
    machine.run("systemctl", "daemon-reload")
    with held(machine, "default", "job") as other:
        machine.run("systemctl", "start", "--no-block", "needs-lockd.service")
        machine.wait_for("lockd.service", "StatusText", WAITED_FOR)
        assert machine.show("needs-lockd.service", "ActiveState") == "inactive"
        assert machine.show("lockd-hold@job.service", "ActiveState") == "activating"
        assert released(other)
    machine.wait_for("needs-lockd.service", "ActiveState", "active")
    status = machine.show("lockd-hold@job.service", "StatusText")
    assert status.startswith("holds 'job', fencing token ")
    machine.python(
        """
        import lockd
        with lockd.connect() as client:
            (holder,) = client.query("job")["holders"]
            assert holder["name"] == "lockd-hold@job.service"
            client.break_grant(holder["fencing_token"], "maintenance")
        """
    )
    machine.wait_for("needs-lockd.service", "ActiveState", "inactive")
    machine.wait_for("lockd-hold@job.service", "ActiveState", "failed")
    assert "maintenance" in machine.journal("lockd-hold@job.service")


@pytest.mark.parametrize(
    ("name", "lockspace"), [("nightly-job 7", "default"), ("/srv/disk", "direct")]
)
def test_any_lock_can_be_held_by_a_unit(
    machine: Machine, name: str, lockspace: str
) -> None:
    machine.run("touch", "/srv/disk")
    unit = machine.say("systemd-escape", "--template=lockd-hold@.service", name)
    machine.run("systemctl", "start", unit)
    done = machine.run("lockctl", "run", "-n", name, "--", "true", check=False)
    assert done.returncode == 75
    assert f"{name!r} is held exclusively by lockd-hold@" in done.stderr.replace(
        "direct:", ""
    )
    listed = machine.say("lockctl", "list")
    assert f"{lockspace} " in listed.replace("\t", " ")
    machine.run("systemctl", "stop", unit)
    machine.run("lockctl", "run", "-n", name, "--", "true")


@pytest.mark.parametrize(
    "place", ["/dev/lockd-test", "/srv/closed"], ids=["devices", "closed directory"]
)
def test_unit_holds_what_a_link_leads_to_wherever_that_is(
    machine: Machine, place: str
) -> None:
    machine.run("touch", "/srv/disk")
    machine.run("install", "-d", "-o", "member", "-m", "700", place)
    try:
        machine.run("ln", "-sfn", "/srv/disk", f"{place}/link")
        name = f"{place}/link"
        unit = machine.say("systemd-escape", "--template=lockd-hold@.service", name)
        machine.run("systemctl", "start", unit)
        assert "direct" in machine.say("lockctl", "list").split()
        assert machine.run("lockctl", "test", "/srv/disk", check=False).returncode == 1
        machine.run("systemctl", "stop", unit)
        assert machine.run("lockctl", "test", "/srv/disk").returncode == 0
    finally:
        machine.run("rm", "-r", place)


def test_units_that_take_the_lock_by_run_do_not_run_together(machine: Machine) -> None:
    for name in ("dump", "scrub"):
        # Each says that it has begun, and goes on when it is told to.
        machine.run("mkfifo", f"/run/{name}.begun", f"/run/{name}.goes-on")
        script = f"echo {name} > /run/{name}.begun; read x < /run/{name}.goes-on"
        machine.write(f"/run/{name}.sh", script)
        machine.write(
            f"/run/systemd/system/{name}-lockd.service",
            "[Service]\nType=oneshot\n"
            f"ExecStart=/usr/bin/lockctl run storage -- sh /run/{name}.sh\n",
        )
    machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "start", "--no-block", "dump-lockd.service")
    assert machine.say("cat", "/run/dump.begun") == "dump"
    machine.run("systemctl", "start", "--no-block", "scrub-lockd.service")
    machine.wait_for("lockd.service", "StatusText", WAITED_FOR)
    machine.run("tee", "/run/dump.goes-on", text="x\n")
    machine.wait_for("dump-lockd.service", "ActiveState", "inactive")
    assert machine.say("cat", "/run/scrub.begun") == "scrub"
    machine.run("tee", "/run/scrub.goes-on", text="x\n")
    machine.wait_for("scrub-lockd.service", "ActiveState", "inactive")
    for name in ("dump", "scrub"):
        assert machine.show(f"{name}-lockd.service", "Result") == "success"
    assert machine.run("lockctl", "test", "storage").returncode == 0


def test_stop_of_a_unit_reaches_its_command_once_and_ends_all_of_it(
    machine: Machine,
) -> None:
    machine.write(
        "/run/counts.sh",
        "trap 'echo TERM >> /run/terms; kill $!; sleep 1; exit 0' TERM\n"
        "setsid sleep infinity & sleep infinity & echo begun > /run/counts.begun\n"
        "wait\n",
    )
    machine.run("mkfifo", "/run/counts.begun")
    machine.run("rm", "-f", "/run/terms")
    machine.write(
        "/run/systemd/system/counts-lockd.service",
        "[Service]\nExecStart=/usr/bin/lockctl run job -- sh /run/counts.sh\n",
    )
    machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "start", "counts-lockd.service")
    assert machine.say("cat", "/run/counts.begun") == "begun"
    machine.run("systemctl", "stop", "counts-lockd.service")
    assert machine.say("cat", "/run/terms") == "TERM"
    assert machine.show("counts-lockd.service", "Result") == "success"
    assert machine.run("lockctl", "test", "job").returncode == 0


def test_hold_that_nobody_needs_any_more_ends_where_it_is_told_to(
    machine: Machine,
) -> None:
    drop_in(machine, "lockd-hold@job.service", "[Unit]\nStopWhenUnneeded=yes\n")
    machine.write(
        "/run/systemd/system/needs-lockd.service",
        "[Unit]\nBindsTo=lockd-hold@job.service\nAfter=lockd-hold@job.service\n"
        "[Service]\nType=oneshot\nExecStart=true\n",
    )
    machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "start", "needs-lockd.service")
    machine.wait_for("lockd-hold@job.service", "ActiveState", "inactive")
    assert machine.run("lockctl", "test", "job").returncode == 0


def test_lock_is_held_until_a_unit_ends(machine: Machine) -> None:
    machine.run("systemd-run", "--unit=importer", "sleep", "infinity")
    machine.run("lockctl", "acquire", "job", "--owner-unit=importer.service")
    shown = machine.say("lockctl", "show", "job")
    assert "importer.service" in shown
    machine.run("systemctl", "kill", "--signal=KILL", "lockd.service")
    assert machine.run("lockctl", "test", "job", check=False).returncode == 1
    with subprocess.Popen(
        machine.command("lockctl", "run", "job", "--", "echo", "granted"),
        stdout=subprocess.PIPE,
        text=True,
    ) as waiter:
        status = "1 held, 1 waiting, 1 session"
        machine.wait_for("lockd.service", "StatusText", status)
        machine.run("systemctl", "stop", "importer.service")
        said, _ = waiter.communicate(timeout=30)
    assert said == "granted\n"
    done = machine.run(
        *("lockctl", "acquire", "job", "--owner-unit=importer.service"), check=False
    )
    assert done.returncode == 64
    assert "importer.service" in done.stderr


def test_unit_that_holds_a_lock_outlives_a_crash_and_no_stop(machine: Machine) -> None:
    machine.run("systemctl", "start", "lockd-hold@job.service")
    machine.run("kill", "-KILL", main_pid(machine))
    done = machine.run("lockctl", "run", "-n", "job", "--", "true", check=False)
    assert done.returncode == 75
    assert machine.show("lockd-hold@job.service", "ActiveState") == "active"
    machine.run("systemctl", "stop", "lockd.service")
    machine.wait_for("lockd-hold@job.service", "ActiveState", "failed")
    assert machine.show("lockd-hold@job.service", "ExecMainStatus") == "76"


def test_idle_daemon_ends_and_comes_back(machine: Machine) -> None:
    drop_in(
        machine,
        "lockd.service",
        "[Service]\nRestart=on-failure\nExecStart=\n"
        "ExecStart=/usr/bin/lockd --config /etc/lockd/lockd.toml "
        "--state-dir /var/lib/lockd --timeout 0.5\n",
    )
    with held(machine, "default", "a") as client:
        machine.wait_for("lockd.service", "ActiveState", "active")
        assert released(client)
    machine.wait_for("lockd.service", "ActiveState", "inactive")
    assert machine.show("lockd.service", "Result") == "success"
    for _ in range(3):
        machine.run("lockctl", "run", "a", "--", "true")


@pytest.mark.parametrize("user", ["member", "stranger"])
def test_users_have_daemons_of_their_own(machine: Machine, user: str) -> None:
    uid = machine.say("id", "-u", user)
    machine.run("systemctl", "start", f"user@{uid}.service")
    environment = f"XDG_RUNTIME_DIR=/run/user/{uid}"

    def as_user(*words: str) -> str:
        return machine.say("env", environment, *words, user=user)

    as_user("systemctl", "--user", "start", "lockd.socket")
    as_user("lockctl", "run", "a", "--", "true")
    assert as_user("systemctl", "--user", "is-active", "lockd.service") == "active"
    spaces = as_user("lockctl", "spaces")
    assert "direct" in spaces, "a user's own daemon does not know its user for admin"
    pid = as_user("systemctl", "--user", "show", "-P", "MainPID", "lockd.service")
    as_user("systemctl", "--user", "reload", "lockd.service")
    status = ""
    while not status.startswith("0 held"):
        status = as_user(
            "systemctl", "--user", "show", "-P", "StatusText", "lockd.service"
        )
    assert pid == as_user(
        "systemctl", "--user", "show", "-P", "MainPID", "lockd.service"
    )
    # It outlives a crash as the system's does, and is stopped as that is.
    holder = machine.command("env", environment, "lockctl", "hold", "a", user=user)
    with subprocess.Popen(holder, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        assert "the service manager keeps 1 lock and 2 connections" in as_user(
            "lockctl", "status"
        )
        machine.run("kill", "-KILL", pid)
        assert "the service manager keeps 1 lock and 2 connections" in as_user(
            "lockctl", "status"
        )
        assert pid != as_user("systemctl", "--user", "show", "-P", "MainPID", "lockd")
        assert as_user("lockctl", "stop", "--yes").startswith("default\ta\texclusive")
        assert process.wait(timeout=30) == 76
    units = ("lockd.service", "lockd.socket")
    states = as_user("systemctl", "--user", "show", "-P", "ActiveState", *units)
    assert states.split() == ["inactive"] * 2
    assert machine.show("lockd.service", "ActiveState") == "inactive"
    machine.run("systemctl", "stop", f"user@{uid}.service")
