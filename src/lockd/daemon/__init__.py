"""The process: sockets, files, time and signals around the engine. Trio lives here.

The way of one request: `server` -> `peer` -> `protocol.connection` -> `dispatch` ->
`runtime` -> engine; its effects -> lockspaces, and through `dispatch` back to `peer`.
"""
