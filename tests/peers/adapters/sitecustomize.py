"""Puts lockd in the place of a peer's locks, in every process of the peer's tests.

Python loads this when it starts. $LOCKD_PEER names the peer.
"""

import os

match os.environ.get("LOCKD_PEER"):
    case "filelock":
        import filelock

        import lockd

        filelock.FileLock = lockd.FileLock  # type: ignore[assignment]
    case "fasteners" | "oslo.concurrency":
        import flock_on_lockd
        from fasteners import process_mechanism

        process_mechanism.fcntl = flock_on_lockd
    case "portalocker":
        import flock_on_lockd
        from portalocker import portalocker

        portalocker.LOCKER = flock_on_lockd.flock
