"""The compatibility table of lock modes."""

from lockd.terms import SHARED, Mode

COMPATIBLE: frozenset[tuple[Mode, Mode]] = frozenset({(SHARED, SHARED)})
"""The pairs of modes that two owners may hold at once; any other pair excludes."""


def compatible(held: Mode, wanted: Mode) -> bool:
    """Tells whether one owner may get `wanted` while another holds `held`."""
    return (held, wanted) in COMPATIBLE
