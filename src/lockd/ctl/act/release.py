"""`lockctl release`: gives back a lock that was taken for a process."""

import os

import click

from lockd.client.blocking import Client, connect
from lockd.ctl.act import reserve
from lockd.ctl.act.admin import holder_of, is_token
from lockd.ctl.line.clicks import as_json, in_lockspace
from lockd.ctl.look.state import state_of
from lockd.ctl.options import meant
from lockd.ctl.render import Thing, key_of, show_json, user
from lockd.ctl.streams import say
from lockd.errors import (
    DeniedError,
    NotFoundError,
    NotHeldError,
    RequestError,
    UnavailableError,
)
from lockd.names import plain, quoted


@click.command(short_help="Give back a lock that you took for a process.")
@click.argument("held", metavar="NAME-or-TOKEN")
@in_lockspace
@as_json
@click.pass_obj
def release(
    socket: str | None, /, held: str, lockspace: str | None, as_json: bool
) -> None:
    """Give back a lock that you took with `lockctl acquire`, from any shell.

    If you reserved the lock with --for, this also ends the process that holds it.

    A number is a fencing token unless you give --lockspace. lockctl releases only locks
    of your own user, and none that a session uses: end its program instead, or take the
    lock away with `lockctl break`.
    """
    with connect(socket, name="lockctl") as client:
        found = _found(client, held, lockspace)
        released, failures = _released(client, found)
        if not released:
            raise failures[0]
        for pid in {holder["pid"] for holder in released}:
            # It may hold more locks that were reserved with this one.
            if not any(client.list_resources(pid=pid)):
                reserve.end(pid)
    if as_json:
        show_json(released=released)
    for holder in released if not as_json else ():
        by = f"{plain(holder['name'])} (pid {holder['pid']})"
        say(f"{quoted(str(key_of(holder)))} is released; {by} held it")
    for failure in failures:
        say(f"not released: {failure}")


def _found(client: Client, name: str, lockspace: str | None) -> list[Thing]:
    """Returns the own holders of a name, or the holder with a fencing token.

    Raises:
        NotFoundError: nobody in lockd holds the lock.
        DeniedError: only other users hold it.
    """
    if lockspace is None and is_token(name):
        holders = [holder_of(client, int(name))[1]]
    else:
        key = meant(name, lockspace)
        state = state_of(client, key)
        holders = [
            {"lockspace": x["lockspace"], "resource": x["resource"], **holder}
            for x in (state.resource, *state.elsewhere)
            for holder in x["holders"]
        ]
        if not holders:
            is_outside = f"is {state.held}, so lockd cannot release it"
            why = is_outside if state.is_held else "has no holder"
            raise NotFoundError(
                f"{quoted(str(key))} {why}: there is nothing to release"
            )
    own = [holder for holder in holders if holder["uid"] == os.geteuid()]
    if not own:
        first = holders[0]
        raise DeniedError(
            f"{quoted(str(key_of(first)))} is held by {plain(first['name'])} (pid "
            f"{first['pid']}, user {user(first['uid'])}): only that user may release "
            "it; `lockctl break` takes a lock away"
        )
    return own


def _released(
    client: Client, holders: list[Thing]
) -> tuple[list[Thing], list[RequestError]]:
    """Releases what no session uses. Returns that, and why the rest is still held."""
    released: list[Thing] = []
    failures: list[RequestError] = []
    for holder in holders:
        try:
            for _ in range(holder["count"]):
                client.call("release", fencing_token=holder["fencing_token"])
        except DeniedError as error:
            failures.append(error)
        except NotHeldError as error:
            failures.append(_why_not(client, holder, error))
        else:
            released.append(holder)
    return released, failures


def _why_not(client: Client, holder: Thing, error: NotHeldError) -> RequestError:
    """Returns why the daemon found no such lock to release."""
    key, token = key_of(holder), holder["fencing_token"]
    # A daemon that has no name releases only locks of the session itself.
    if client.instance or not client.check(
        key.resource, token, lockspace=key.lockspace
    ):
        return NotFoundError(error.message)
    return UnavailableError(
        "the daemon is older than this program, and does not release the locks of "
        f"other processes: update lockd, or end process {holder['pid']}"
    )
