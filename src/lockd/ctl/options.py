"""The options and arguments that several commands share, each declared once."""

import click

from lockd.names import canonical_path, default_lockspace
from lockd.terms import DIRECT_LOCKSPACE, ResourceKey

as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
in_lockspace = click.option(
    "--lockspace", metavar="NAME",
    help="Where the names are; else `direct` if they begin with a slash, or `default`.",
)  # fmt: skip


def meant(name: str, lockspace: str | None) -> ResourceKey:
    """Returns which resource a name on the command line means.

    A file has many paths, but only its canonical one is locked.
    """
    space = lockspace or default_lockspace(name)
    if space == DIRECT_LOCKSPACE:
        name = canonical_path(name)
    return ResourceKey(space, name)
