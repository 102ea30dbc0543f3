"""What is locked: resources by number, as workers, prober and judge know them."""

from dataclasses import dataclass
from typing import Final

DIRECTORY: Final = "/var/lib/locks"
DISKS: Final = "/srv/torture"

HURRIED: Final = "hurried"
"""The lockspace where a lock is broken that is held for too long."""

HURRIED_SECONDS: Final = 0.3
"""For how long it may be held there."""


@dataclass(frozen=True)
class Place:
    """A resource; `path` is the file that is locked, None if there is none."""

    number: int
    lockspace: str
    name: str
    path: str | None


def _places() -> list[Place]:
    found: list[Place] = []

    def add(lockspace: str, name: str, path: str | None) -> None:
        found.append(Place(len(found), lockspace, name, path))

    for index in range(6):
        add("default", f"counter-{index}", None)
    for index in range(6):
        add("files", f"counter-{index}", f"{DIRECTORY}/counter-{index}")
    for index in range(2):
        add("direct", f"{DISKS}/disk-{index}", f"{DISKS}/disk-{index}")
    for index in range(10):
        add("default", f"kept-{index}", None)
    for index in range(20):
        add("files", f"kept-{index}", f"{DIRECTORY}/kept-{index}")
    for index in range(3):
        add("direct", f"{DISKS}/guest-{index}", f"{DISKS}/guest-{index}")
    for index in range(2):
        add("killed", f"fenced-{index}", None)
    for index in range(4):
        add("files", f"dwelt-{index}", f"{DIRECTORY}/dwelt-{index}")
    for index, slots in enumerate((3, 2)):
        for _ in range(slots):
            add("default", f"pool-{index}", None)
    for name in ("tree", "idle"):
        add("default", name, None)
        add("files", name, f"{DIRECTORY}/{name}")
    add(HURRIED, "late", None)
    add("default", "late", None)
    return found


PLACES: Final = _places()

MEMORY: Final = PLACES[0:6]
FILES: Final = PLACES[6:12]
SHARED_DISKS: Final = PLACES[12:14]
KEPT: Final = PLACES[14:44]
GUEST_DISKS: Final = PLACES[44:47]
FENCED: Final = PLACES[47:49]
DWELT: Final = PLACES[49:53]

POOLS: Final = (PLACES[53:56], PLACES[56:58])
"""The slots of a pool, each a place of its own: nobody else may be there."""

CONFIGURED: Final = POOLS[1]
"""The pool whose slots are counted in the configuration."""

TREES: Final = PLACES[58:60]
"""Held by some, so that others can get inside."""

IDLE: Final = PLACES[60:62]
"""Held by those who yield when they hear that somebody waits."""

LATE: Final = PLACES[62:64]
"""Held for longer than allowed: the first is taken away then, the second is not."""
