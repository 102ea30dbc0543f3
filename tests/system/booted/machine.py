"""A machine with a real systemd: PID 1 of namespaces of its own, on this host's files.

The root is an overlay (Documentation/filesystems/overlayfs.rst) of this host's root and
of a directory into which lockd was installed; what is written goes to a tmpfs and is
gone in the end. The network, the processes and the control groups are its own.
"""

import os
import select
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

TOP = Path(__file__).parents[3]
PATIENCE = 60.0

INTERPRETER = "/usr/bin/python3"
LIBDIR = "/usr/lib/lockd"

# The machine's first process enters control groups of its own, and they become the root
# of all that it can see of them: two machines are not in each other's way, and what one
# leaves behind can be removed.
ENTER = """
set -e
while [ "$1" != -- ]; do echo 0 > "$1/cgroup.procs"; shift; done
shift
exec unshare --cgroup "$@"
"""

# unshare(1) made the namespaces; here the root is put together and changed
# (pivot_root(2)). systemd takes a container that has such a control group for its own.
BOOT = """
set -e
mount --make-rprivate /
mount -t tmpfs -o mode=755 lockd-test "$1"
mkdir "$1/work" "$1/root"
cp -a "$2" "$1/changes"
chmod 755 "$1/changes"
mount -t overlay lockd-test "$1/root" \
    -o "lowerdir=/,upperdir=$1/changes,workdir=$1/work"
cd "$1/root"
mount -t proc proc proc
mount -t sysfs sysfs sys
for place in run tmp; do mount -t tmpfs -o mode=1777 tmpfs $place; done
chmod 755 run
mount --rbind /dev dev
mount -t tmpfs -o mode=755 tmpfs sys/fs/cgroup
mkdir sys/fs/cgroup/unified sys/fs/cgroup/systemd
mount -t cgroup2 cgroup2 sys/fs/cgroup/unified || true
mount -t cgroup -o none,name=systemd systemd sys/fs/cgroup/systemd || true
mkdir -p .before
pivot_root . .before
umount -l /.before
ip link set lo up || true
exec env -i container=lxc \
    PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    /lib/systemd/systemd --system --unit=multi-user.target --log-target=console
"""


def make(target: str, stage: Path, *settings: str, umask: int = 0o022) -> None:
    """Installs lockd below a directory, or uninstalls it there."""
    command = ["make", target, f"DESTDIR={stage}", "PREFIX=/usr", *settings]
    command.append(f"TARGET_PYTHON={INTERPRETER}")
    subprocess.run(command, cwd=TOP, check=True, stdout=subprocess.DEVNULL, umask=umask)


def manner(stage: Path) -> str:
    """Returns whether lockd was compiled when it was installed, as that says it."""
    return (stage / LIBDIR[1:] / "compiled.txt").read_text().strip()


class Machine:
    """A booted machine; ends, with all that runs in it, when it is closed or we die."""

    def __init__(self, place: Path, stage: Path | None = None) -> None:
        """Boots it, on this host's files and those of `stage`.

        Args:
            place: an empty directory.
            stage: what is there besides; None: lockd, as `make install` installs it.
        """
        if stage is None:
            stage = place / "installed"
            # Others must be able to use it, whatever the umask of whoever installed it.
            make("install", stage, umask=0o077)
        root = place / "root"
        root.mkdir()
        self._groups = list(_make_groups(f"lockd-test-{os.getpid()}-{place.name}"))
        self._log = (place / "log").open("w")
        # Whatever kills us kills unshare(1), and that kills PID 1 and all the rest.
        self._outer = subprocess.Popen(
            [
                *("setpriv", "--pdeathsig", "KILL"),
                *("unshare", "--pid", "--fork", "--kill-child", "--mount", "--uts"),
                *("--ipc", "--net"),
                *("bash", "-c", ENTER, "enter", *map(str, self._groups), "--"),
                *("bash", "-c", BOOT, "boot", str(root), str(stage)),
            ],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )
        self._first: int | None = None
        try:
            self._pid = self._first_process()
            self._first = os.pidfd_open(self._pid)
            self._wait_booted()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends everything in it."""
        self._outer.send_signal(signal.SIGKILL)
        self._outer.wait()
        self._log.close()
        if self._first is not None:
            # The first process is dead when all others are (pid_namespaces(7)).
            select.select([self._first], [], [], PATIENCE)
            os.close(self._first)
        for group in self._groups:
            _remove_group(group)

    def _first_process(self) -> int:
        children = Path(f"/proc/{self._outer.pid}/task/{self._outer.pid}/children")
        while not (found := children.read_text().split()):
            assert self._outer.poll() is None, self.boot_log()
        pid = int(found[0])
        comm = Path(f"/proc/{pid}/comm")
        try:
            while comm.read_text() != "systemd\n":
                pass
        except OSError:
            raise AssertionError(self.boot_log()) from None
        return pid

    def _wait_booted(self) -> None:
        for _ in range(600):
            done = self.run("systemctl", "is-system-running", "--wait", check=False)
            if done.stdout.strip() in ("running", "degraded"):
                return
            assert self._outer.poll() is None, self.boot_log()
        raise AssertionError(self.boot_log())

    def boot_log(self) -> str:
        return Path(self._log.name).read_text()

    @property
    def root(self) -> Path:
        """Its files, as they are reached from outside."""
        return Path(f"/proc/{self._pid}/root")

    @property
    def manner(self) -> str:
        """Whether lockd was compiled when it was installed, as that says it."""
        return manner(self.root)

    @property
    def first_pid(self) -> int:
        """Its PID 1, as it is called outside."""
        return self._pid

    # What is done inside.

    def command(self, *words: str, user: str | None = None) -> list[str]:
        """Returns the command that runs another one inside."""
        enter = ["nsenter", "-t", str(self._pid), "-m", "-p", "-u", "-i", "-n", "--"]
        if user is not None:
            enter += ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups"]
        return [*enter, *words]

    def run(
        self, *words: str, check: bool = True, user: str | None = None, text: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Runs a command inside, and waits for its end."""
        done = subprocess.run(
            self.command(*words, user=user),
            input=text,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"},
        )
        if check:
            assert done.returncode == 0, (words, done.stdout, done.stderr)
        return done

    def say(self, *words: str, user: str | None = None) -> str:
        """Runs a command inside; returns what it printed."""
        return self.run(*words, user=user).stdout.strip()

    def python(self, script: str, *words: str, user: str | None = None) -> str:
        """Runs a script inside, with `lockd` to import; returns what it printed."""
        done = self.run(*self.script(script, *words), user=user)
        return done.stdout

    def script(self, script: str, *words: str) -> list[str]:
        head = f"import sys; sys.path.insert(0, {LIBDIR!r})\n"
        return [INTERPRETER, "-I", "-c", head + textwrap.dedent(script), *words]

    def write(self, path: str, text: str) -> None:
        """Writes a file inside."""
        self.run("mkdir", "-p", os.path.dirname(path))
        self.run("tee", path, text=text)

    def show(self, unit: str, name: str) -> str:
        """Returns a property of a unit."""
        return self.say("systemctl", "show", "--value", f"--property={name}", unit)

    def wait_for(self, unit: str, name: str, value: str) -> None:
        """Waits until a property of a unit has a value."""
        for _ in range(3_000):
            if (found := self.show(unit, name)) == value:
                return
        raise AssertionError((unit, name, found, self.journal(unit)))

    def wait_until_empty(self, directory: str) -> None:
        """Waits until no file of a released lock is left (protocol 6.5)."""
        for _ in range(3_000):
            if not (found := self.say("ls", directory)):
                return
        raise AssertionError(found)

    def journal(self, unit: str, *options: str) -> str:
        """Returns what the journal has of a unit."""
        self.run("journalctl", "--sync")
        return self.say("journalctl", "-u", unit, "-o", "cat", "--no-pager", *options)

    @contextmanager
    def awaited(self, unit: str, words: str) -> Iterator[None]:
        """Waits in the end for a unit to say something that what is done here causes.

        The journal has what was said before, by other tests, too.
        """
        before = self.journal(unit).count(words)
        yield
        while self.journal(unit).count(words) == before:
            pass


def _make_groups(name: str) -> Iterator[Path]:
    """Makes a control group in each hierarchy, below that of this process.

    Where none can be made (in a container), the machine is in ours.
    """
    mounts = [x.split() for x in Path("/proc/self/mounts").read_text().splitlines()]
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        kind = "cgroup" if controllers else "cgroup2"
        wanted = set(controllers.split(",")) - {""}
        for _, place, mounted, options, *_ in mounts:
            if mounted == kind and wanted <= set(options.split(",")):
                group = Path(place) / path.lstrip("/") / name
                with suppress(OSError):
                    group.mkdir()
                    _inherit_cpus(group)
                    yield group
                break


def _inherit_cpus(group: Path) -> None:
    """Does for a group of cpuset's first version what later ones do by themselves."""
    for setting in ("cpuset.cpus", "cpuset.mems"):
        if (group / setting).exists():
            (group / setting).write_text((group.parent / setting).read_text())


def _remove_group(group: Path) -> None:
    for place, _, _ in os.walk(group, topdown=False):
        os.rmdir(place)


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as place, Machine(Path(place)) as machine:
        subprocess.run(machine.command(*(sys.argv[1:] or ["bash"])), check=False)
