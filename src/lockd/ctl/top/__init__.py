"""`lockctl top`: what happens in a daemon, on a terminal, as it happens.

`board` knows what is held and waited for, `follower` keeps it true, `tables` says what
is shown of it, `app` shows it. Only `app` and what it alone imports need textual.
"""
