"""`lockctl top`: locks, waits, holds and sessions on a terminal, live.

`board` holds the state, `follower` keeps it current, `tables` selects what to show, and
`app` shows it. Only `app` and the modules that it alone imports need textual.
"""
