"""The process: sockets, files, time and signals around the engine. Trio lives here.

A request passes `server`, `peer`, `protocol.connection`, `dispatch`, `runtime` and the
engine. Its effects go to the lockspaces, and through `answers` back to `peer`.
"""

from lockd import compilation

compilation.prefer_source_if_stale()
