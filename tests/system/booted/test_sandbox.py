"""What a lock daemon that somebody else has taken over could do to the host."""

from collections.abc import Iterator

import pytest

from system.booted.machine import INTERPRETER, Machine

UNIT = "/usr/lib/systemd/system/lockd.service"
INTRUDER = "/run/systemd/system/lockd-intruder.service"
FOREIGN = ("Type=", "Exec", "Sockets=", "Requires=", "Wants=", "Restart", "Watchdog")
"""What a copy of the unit does not keep: all but its sandbox."""

STARTS_PROGRAMS = [
    *("/run/systemd/system", "/run/systemd/generator", "/run/systemd/transient"),
    *("/run/udev/rules.d", "/run/dbus", "/run/sudo", "/run/lockd", "/run", "/var"),
    *("/etc", "/etc/systemd/system", "/etc/cron.d", "/etc/init.d", "/etc/ld.so.conf.d"),
    *("/usr/bin", "/usr/lib/systemd/system", "/usr/local/bin", "/opt", "/boot"),
    *("/var/spool/cron", "/var/spool", "/var/cache", "/var/www", "/var/mail"),
    *("/var/lib/dpkg/info", "/var/lib/systemd", "/var/lib/apt", "/var/lib/polkit-1"),
    *("/var/lib/docker", "/var/lib/cloud", "/var/lib/extensions", "/root"),
    *("/home/stranger", "/sys/fs/cgroup", "/proc/sys/kernel"),
]
HOLDS_LOCKS = ["/srv", "/mnt", "/media", "/var/lib", "/run/lock", "/var/lib/lockd"]

TRY = """
import os, sys
for place in sys.argv[1:]:
    path = place + "/lockd-intruder"
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        os.unlink(path)
        print("wrote to", place)
    except OSError as error:
        print("refused", place, error.strerror)
"""


@pytest.fixture
def intruder(machine: Machine) -> Iterator[Machine]:
    """A machine with a unit that has lockd's sandbox, and writes wherever it can."""
    for place in (*STARTS_PROGRAMS, *HOLDS_LOCKS):
        machine.run("mkdir", "-p", place, check=False)
    machine.write("/srv/try.py", TRY)
    kept = [
        line
        for line in machine.say("cat", UNIT).splitlines()
        if not line.startswith(FOREIGN)
    ]
    command = " ".join(["/srv/try.py", *STARTS_PROGRAMS, *HOLDS_LOCKS])
    at = kept.index("[Service]") + 1
    kept[at:at] = ["Type=oneshot", f"ExecStart={INTERPRETER} -I {command}"]
    machine.write(INTRUDER, "\n".join(kept))
    machine.run("systemctl", "daemon-reload")
    yield machine
    machine.run("rm", "/srv/try.py")


def test_who_takes_it_over_writes_only_where_locks_and_disks_are(
    intruder: Machine,
) -> None:
    intruder.run("systemctl", "start", "lockd-intruder.service")
    said = intruder.journal("lockd-intruder.service").splitlines()
    wrote = {x.removeprefix("wrote to ") for x in said if x.startswith("wrote to ")}
    tried = [x for x in said if x.startswith(("wrote to ", "refused "))]
    assert len(tried) == len(STARTS_PROGRAMS) + len(HOLDS_LOCKS)
    assert wrote == set(HOLDS_LOCKS)


@pytest.fixture
def shared(machine: Machine) -> Machine:
    """The machine with mounts that reach its services, as those of any host do."""
    machine.run("mount", "--make-rshared", "/")
    return machine


@pytest.mark.parametrize(
    "place", ["/srv/late", pytest.param("/late", id="read-only to lockd after it")]
)
def test_file_system_that_is_mounted_later_is_seen(shared: Machine, place: str) -> None:
    """A file that is read-only to lockd is locked without being written."""

    def lock(*options: str) -> int:
        words = ("lockctl", "run", *options, f"{place}/file", "--", "true")
        return shared.run(*words, check=False).returncode

    shared.run("systemctl", "start", "lockd.service")
    shared.run("mkdir", "-p", place)
    shared.run("mount", "-t", "tmpfs", "-o", "mode=755", "late", place)
    try:
        shared.run("touch", f"{place}/file")
        assert lock() == 0
        shared.run("systemctl", "restart", "lockd.service")
        assert lock() == 0
        assert lock("--shared") == 0
    finally:
        shared.run("umount", "--lazy", place)  # the keeper may have it open


@pytest.mark.parametrize("place", ["/tmp", "/var/tmp"])
def test_file_in_a_directory_that_lockd_has_for_itself_is_refused_as_what_it_is(
    machine: Machine, place: str
) -> None:
    machine.run("touch", f"{place}/file")
    done = machine.run("lockctl", "run", f"{place}/file", "--", "true", check=False)
    assert done.returncode == 77
    assert "its unit gives it a private /tmp (PrivateTmp=)" in done.stderr


@pytest.mark.parametrize(
    ("place", "why"),
    [
        ("/locks/here", "Read-only file system): create it yourself and name it in Re"),
        ("/tmp/locks", "only lockd would see"),
    ],
)
def test_lockspace_that_the_sandbox_forbids_is_refused_with_what_to_set(
    machine: Machine, place: str, why: str
) -> None:
    script = """
    import lockd
    with lockd.connect() as client:
        try:
            client.create_lockspace("new", "directory", sys.argv[1])
        except lockd.RequestError as error:
            print(error)
    """
    assert why in machine.python(script, place)
    assert machine.run("test", "-e", place, check=False).returncode == 1


def test_lockspace_below_var_lib_is_made(machine: Machine) -> None:
    script = """
    import lockd
    with lockd.connect() as client:
        client.create_lockspace("made", "directory", "/var/lib/made/for/locks")
        with client.lock("a", lockspace="made"):
            pass
    """
    machine.python(script)
    assert machine.say("stat", "-c", "%a %U", "/var/lib/made") == "700 lockd"
