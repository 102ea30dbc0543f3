"""The terms of lockd that are types. `lockd.terms` has them too: import them there.

They need `typing` at run time, because the daemon checks values by them. A client does
not, and starts faster without.
"""

from typing import Literal

Mode = Literal["exclusive", "shared", "slot"]

OnDisconnect = Literal["release", "kill"]
"""What happens to the process of a session that ends with locks held."""

OnOverdue = Literal["notice", "break"]
"""What happens to a lock that is held for too long: it is told, or it is broken."""

Until = Literal["either", "both"]
"""When the locks of a registered process end. "either": with the process, or by the
session that registered it, whichever is first. "both": when the process is dead and
that session has released them or ended."""

WorkOutcome = Literal["ok", "failed", "died"] | None
"""How the work under a lock ended, as the releaser says. "died": a signal ended it.
None: it says nothing."""

Kind = Literal["memory", "directory", "direct"]
"""How the resources of a lockspace are anchored."""

Outside = Literal["file", "byte"]
"""What keeps a file of a direct lockspace from being locked, besides lockd's own table.
"file": any program that has locked any part of the file (`lockspaces.kernel`). "byte":
only a lock on the first byte, as for virtlockd."""

LockedBy = Literal["qemu", "sqlite", "flock", "lease"]
"""How a program has a file: by the bytes of QEMU or SQLite, by flock(2), by a lease."""

Create = bool | Literal["temporary"] | None
"""Whether to create a missing lock file; None for the default of its lockspace. A
created file is removed soon after its last holder. A temporary one is removed at once,
even if it existed before (AUTOCREATE of virtlockd)."""
