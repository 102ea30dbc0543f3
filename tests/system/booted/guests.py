"""Real guests: libvirt's QEMU driver in a booted machine, machines without a system."""

import json
import subprocess
from typing import Any, Final

from system.booted.machine import Machine

DISKS: Final = "/srv/disks"
LEASES: Final = "/srv/leases/files"
"""A lockspace of libvirt's: what `file_lockspace_dir` is set to, where it is used."""

# Emulated guests of a few MiB that sit in their firmware. QEMU has locks of its own on
# its disks, and opens them before libvirt asks the lock manager: where that is to be
# the one that refuses, an emulator is named that leaves them out.
QEMU: Final = "/usr/bin/qemu-system-x86_64"
QEMU_WITHOUT_LOCKS: Final = "/usr/local/bin/qemu-without-locks"

_WITHOUT_LOCKS: Final = f"""\
#!/bin/bash
exec {QEMU} "${{@//'"driver":"file",'/'"driver":"file","locking":"off",'}}"
"""

_QEMU_CONF: Final = """
lock_manager = "lockd"
# What needs a whole host, and is nothing to a lock manager.
security_driver = "none"
remember_owner = 0
"""

_DOMAIN: Final = """
<domain type='qemu'>
  <name>{name}</name>
  <memory unit='MiB'>16</memory>
  <os><type arch='x86_64' machine='pc'>hvm</type></os>
  <features><acpi/></features>
  <devices>
    <emulator>{emulator}</emulator>
    <controller type='scsi' model='virtio-scsi'/>
    <controller type='usb' model='none'/>
    <memballoon model='none'/>
    {devices}
  </devices>
</domain>
"""


def disk(name: str, target: str = "sda", extra: str = "") -> str:
    """Returns the XML of a disk; `extra` goes into it (`<shareable/>`)."""
    return (
        "<disk type='file' device='disk'><driver name='qemu' type='raw'/>"
        f"<source file='{path_of(name)}'/><target dev='{target}' bus='scsi'/>{extra}"
        "</disk>"
    )


def lease(key: str) -> str:
    """Returns the XML of a lease in the lockspace LEASES."""
    directory, _, lockspace = LEASES.rpartition("/")
    return (
        f"<lease><lockspace>{lockspace}</lockspace><key>{key}</key>"
        f"<target path='{directory}'/></lease>"
    )


def path_of(name: str) -> str:
    """Returns the path of a disk."""
    return name if name.startswith("/") else f"{DISKS}/{name}.img"


class Guests:
    """The guests of a machine, through `virsh`, and what lockd says of them."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine

    def prepare(self) -> None:
        """Makes what guests need."""
        self.machine.run("mkdir", "-p", DISKS)
        for name in ("a", "b", "c"):
            self.machine.run("truncate", "-s", "1M", path_of(name))
        # QEMU's user may not open a device without udev's mode, and libvirt would ask
        # QEMU for its abilities again and again: 8 seconds for each guest.
        if self.machine.run("test", "-e", "/dev/kvm", check=False).returncode == 0:
            self.machine.run("mknod", "-m", "666", "/srv/kvm", "c", "10", "232")
            self.machine.run("mount", "--bind", "/srv/kvm", "/dev/kvm")
        self.machine.write(QEMU_WITHOUT_LOCKS, _WITHOUT_LOCKS)
        self.machine.run("chmod", "755", QEMU_WITHOUT_LOCKS)
        self.machine.write("/etc/libvirt/qemu.conf", _QEMU_CONF)

    def configure(self, lockd_conf: str) -> None:
        """Has libvirtd read another qemu-lockd.conf. Guests that run go on."""
        self.machine.write("/etc/libvirt/qemu-lockd.conf", lockd_conf)
        self.restart_libvirtd()

    def restart_libvirtd(self) -> None:
        self.machine.run("systemctl", "restart", "libvirtd.service")
        # It is ready before its drivers are; whoever connects waits for them.
        self.virsh("list")

    def virsh(
        self, *words: str, text: str = "", check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        return self.machine.run("virsh", *words, text=text, check=check)

    def start(self, name: str, *devices: str, emulator: str = QEMU) -> None:
        """Starts a new guest."""
        self.virsh(
            "create", "/dev/stdin", text=domain(name, *devices, emulator=emulator)
        )

    def start_is_refused(self, name: str, *devices: str, emulator: str = QEMU) -> str:
        """Starts a guest, which must be refused; returns what `virsh` says."""
        text = domain(name, *devices, emulator=emulator)
        return self.refused("create", "/dev/stdin", text=text)

    def refused(self, *words: str, text: str = "") -> str:
        """Has virsh do what must be refused; returns what it says."""
        done = self.virsh(*words, text=text, check=False)
        assert done.returncode == 1, (words, done.stdout)
        return done.stderr

    def attach(self, guest: str, name: str, target: str = "sdb") -> list[str]:
        """Returns the words of virsh that plug a disk into a guest that runs."""
        words = ["attach-disk", guest, path_of(name), target, "--live"]
        return [*words, "--targetbus", "scsi", "--subdriver", "raw"]

    def state(self, name: str) -> str:
        return self.virsh("domstate", name).stdout.strip()

    def uuid(self, name: str) -> str:
        return self.virsh("domuuid", name).stdout.strip()

    def pid(self, name: str) -> int:
        return int(self.machine.say("cat", f"/run/libvirt/qemu/{name}.pid"))

    def kill(self, name: str) -> None:
        """Ends the QEMU of a guest in no good way.

        Returns when libvirtd is done with it, too: it gives the disks back to root.
        """
        self.machine.run("kill", "-KILL", str(self.pid(name)))
        while self.virsh("domstate", name, check=False).returncode == 0:
            pass

    def end_all(self) -> None:
        """Ends all guests, also those whose end libvirtd has not yet seen."""
        while names := self.virsh("list", "--name").stdout.split():
            for name in names:
                self.virsh("destroy", name, check=False)

    # What lockd says.

    def held(self) -> dict[str, list[str]]:
        """Returns the locks: the names of the holders by what is locked."""
        return {
            resource["resource"]: sorted(h["name"] for h in resource["holders"])
            for resource in self.locks()
        }

    def locks(self) -> list[dict[str, Any]]:
        """Returns all that is locked, as `lockctl list` has it."""
        listed = json.loads(self.machine.say("lockctl", "list", "--json"))["resources"]
        return [resource for resource in listed if resource["holders"]]

    def wait_until_free(self, name: str, lockspace: str = "direct") -> None:
        """Waits until nobody holds the lock of a disk, or of a lease, in lockd.

        The QEMU of a paused guest still has its disk, so no program could lock it.
        """
        for _ in range(300):
            held = [(x["lockspace"], x["resource"]) for x in self.locks()]
            if (lockspace, name) not in held:
                return
        raise AssertionError(held)


def domain(name: str, *devices: str, emulator: str = QEMU) -> str:
    """Returns the XML of a guest."""
    return _DOMAIN.format(name=name, devices="\n".join(devices), emulator=emulator)
