"""What `lockctl virtlockd-check` reads: of the kernel the locks, of libvirt the guests.

The whole command is tried beside the real virtlockd in `system/test_virtlockd_beside`,
and with real guests in `system/booted/test_libvirt`.
"""

import hashlib
from pathlib import Path

import pytest

from lockd.ctl.look.virtlockd_check import Guest, VirtlockdLock, read_guests, read_locks
from lockd.errors import DeniedError
from lockd.terms import Mode
from support.outside import Outside, nobody
from support.rights import needs_root

UUID = "3c84973e-c787-417f-9ba0-dce095f05b47"

# As libvirtd writes it, without what is of no interest here.
STATUS = """<!--
WARNING: THIS IS AN AUTO-GENERATED FILE.
-->
<domstatus state='{state}' reason='booted' pid='686'>
  <monitor path='/var/lib/libvirt/qemu/domain-10-web/monitor.sock' type='unix'/>
  <domain type='qemu' id='10'>
    <name>web</name>
    <uuid>3c84973e-c787-417f-9ba0-dce095f05b47</uuid>
    <devices>
      <disk type='file' device='disk'>
        <source file='{image}' index='1'><privateData/></source>
      </disk>
      <disk type='block' device='disk'><source dev='/dev/vg/web' index='2'/></disk>
      <disk type='file' device='cdrom'/>
      <lease>
        <lockspace>files</lockspace><key>seat</key><target path='/srv/leases'/>
      </lease>
    </devices>
  </domain>
</domstatus>
"""


def guest_of(directory: Path, image: Path, state: str = "running") -> list[Guest]:
    status = STATUS.format(state=state, image=image)
    (directory / "web.xml").write_text(status)
    return list(read_guests(directory))


@pytest.mark.parametrize("kind", ["posix", "ofd"])
@pytest.mark.parametrize("mode", ["exclusive", "shared"])
def test_locks_of_a_process_are_read(
    outside: Outside, image: Path, mode: Mode, kind: str
) -> None:
    assert read_locks(outside.pid, []) == []
    outside.lock(image, mode, kind)
    assert read_locks(outside.pid, []) == [
        VirtlockdLock(str(image), mode, outside.pid, [])
    ]


def test_lock_that_was_lost_is_told_while_its_file_is_open(
    outside: Outside, image: Path
) -> None:
    outside.lock(image)
    outside.unlock(image)
    assert read_locks(outside.pid, []) == [
        VirtlockdLock(str(image), None, outside.pid, [])
    ]


def test_file_that_was_removed_is_called_as_it_was(
    outside: Outside, image: Path
) -> None:
    outside.lock(image)
    image.unlink()
    assert [lock.path for lock in read_locks(outside.pid, [])] == [str(image)]


def test_its_own_pid_file_is_no_lock_of_a_guest(outside: Outside, image: Path) -> None:
    image.write_text(f"{outside.pid}\n")
    outside.lock(image)
    assert read_locks(outside.pid, []) == []
    image.write_text(f"{outside.pid}0\n")
    assert len(read_locks(outside.pid, [])) == 1


def test_process_that_has_ended_holds_nothing(outside: Outside) -> None:
    outside.kill()
    assert read_locks(outside.pid, []) == []


@needs_root
def test_locks_of_others_are_not_shown_to_everybody(outside: Outside) -> None:
    with nobody(), pytest.raises(DeniedError, match="run this as root"):
        read_locks(outside.pid, [])


def test_guest_is_known_by_the_path_of_its_disk(
    tmp_path: Path, outside: Outside, image: Path
) -> None:
    link = tmp_path / "link"
    link.symlink_to(image)
    guests = guest_of(tmp_path, link)
    assert [(g.name, g.uuid, g.pid) for g in guests] == [("web", UUID, 686)]
    outside.lock(image)
    assert read_locks(outside.pid, guests)[0].guests == guests


def test_guest_is_known_by_a_hashed_name_and_by_a_lease(
    tmp_path: Path, image: Path
) -> None:
    (guest,) = guest_of(tmp_path, image)
    hashes = [hashlib.sha256(p).hexdigest() for p in (b"/dev/vg/web", b"/dev/vg/other")]
    assert guest.may_hold(f"/srv/leases/files/{hashes[0]}")
    assert not guest.may_hold(f"/srv/leases/files/{hashes[1]}")
    assert guest.may_hold("/srv/leases/files/seat")
    assert not guest.may_hold("/srv/leases/other/seat")


def test_paused_guest_holds_nothing(tmp_path: Path, image: Path) -> None:
    assert guest_of(tmp_path, image, "paused") == []


@pytest.mark.parametrize("text", ["", "<domstatus", "<networkstatus/>"])
def test_other_files_are_no_guests(tmp_path: Path, text: str) -> None:
    (tmp_path / "other.xml").write_text(text)
    assert list(read_guests(tmp_path)) == []


def test_where_libvirt_is_not_there_are_no_guests(tmp_path: Path) -> None:
    assert list(read_guests(tmp_path / "missing")) == []
