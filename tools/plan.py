"""The plan of the house: which rooms, and which of their folders, may know which.

`tests/test_layering.py` holds the source against it, and `picture.py` draws by it.
"""

FLOORS = """
__main__

keep

daemon.main
daemon.start
daemon.service
daemon.survival
daemon.metrics
daemon.assembly
daemon.server
daemon.requests
daemon.replies
daemon.clients
daemon.stores
daemon.system
daemon.config
daemon.activity
daemon

ctl.main
ctl.commands
ctl.act ctl.run
ctl.look ctl.top
ctl.table
ctl.line ctl.others ctl.render
ctl.options
ctl.exits ctl.streams

lockd
aio compat
client.aio client.blocking
client.tasks client.threads
client
compilation engine libvirt lockspaces notify procs protocol text utf8
names parts spans
errors terms
term_types
lean
hints
"""
"""From the top, a floor on each line: an arrow goes down at least one."""

WALLS = {
    "daemon": "aio client ctl",
    "keep": "aio client compilation ctl daemon engine errors hints libvirt lockspaces"
    " names notify parts procs protocol spans terms text utf8",
    "ctl": "aio compilation daemon engine libvirt lockspaces protocol",
    "lockd": "compilation engine libvirt lockspaces notify procs protocol text utf8",
    "aio": "compilation engine libvirt lockspaces notify procs protocol text utf8",
    "compat": "compilation engine libvirt lockspaces notify procs protocol text utf8",
    "client": "compilation engine libvirt lockspaces notify procs utf8",
}
"""What a room may not know although it is further down."""

_FLOOR_OF = {
    box: floor
    for floor, boxes in enumerate(FLOORS.strip().splitlines())
    for box in boxes.split()
}


def box_of(module: str) -> str | None:
    """Returns the box with a floor that a module is, or is in."""
    parts = module.split(".")
    tops = [".".join(parts[:depth]) for depth in range(len(parts), 0, -1)]
    return next((box for box in tops if box in _FLOOR_OF), None)


def may_know(one: str, other: str) -> bool:
    """Says whether a module may import another one, as far as the plan has floors."""
    above, below = box_of(one), box_of(other)
    if above is None or below is None or above == below:
        return True
    behind = WALLS.get(one.split(".")[0], "").split()
    return _FLOOR_OF[above] < _FLOOR_OF[below] and other.split(".")[0] not in behind
