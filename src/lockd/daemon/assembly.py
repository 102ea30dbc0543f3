"""Creates the parts of the daemon, in order: each is complete when it is created."""

import os
from collections.abc import Callable
from functools import partial
from typing import Final

from msgspec import Struct

from lockd import compilation
from lockd.daemon.activity.counts import Counts
from lockd.daemon.activity.health import Health
from lockd.daemon.activity.life import Life
from lockd.daemon.clients.access import Access
from lockd.daemon.clients.finder import Finder
from lockd.daemon.clients.keeping import Keeping
from lockd.daemon.clients.limits import Limiter, unreserved_descriptors
from lockd.daemon.config.config import Limits, make_lockspace
from lockd.daemon.replies.answers import Answers
from lockd.daemon.replies.reader import Reader
from lockd.daemon.replies.slow_log import SlowLog
from lockd.daemon.requests.dispatch import Dispatcher, LockspaceMaker
from lockd.daemon.requests.reloads import Reloads
from lockd.daemon.requests.runtime import Runtime
from lockd.daemon.requests.sessions import Sessions
from lockd.daemon.requests.virtlockd import Virtlockd
from lockd.daemon.server import Server
from lockd.daemon.system.epoch import Epoch
from lockd.daemon.system.poller import Poller
from lockd.engine.lock_engine import LockEngine
from lockd.lockspaces.open_files import OpenFiles

CHECK_INVARIANTS: Final = "LOCKD_CHECK_INVARIANTS"
"""If 1, all laws of the lock table are checked after every command, which is slow."""

KeepingMaker = Callable[[LockEngine, Answers, Life, Epoch], Keeping]
"""Creates the keeper of a state."""


class Parts(Struct, frozen=True):
    """The parts of a daemon that does not yet serve.

    Attributes:
        engine: the lock table.
        keeping: keeps the state for a successor.
        limits: checks limits.
        health: the problems for an admin.
        slow_log: logs slow waits and holds.
        make_lockspace: creates a lockspace; its files are in `open_files`.
        server: the loop.
    """

    engine: LockEngine
    life: Life
    epoch: Epoch
    access: Access
    poller: Poller
    answers: Answers
    keeping: Keeping
    limits: Limiter
    open_files: OpenFiles
    runtime: Runtime
    health: Health
    slow_log: SlowLog
    make_lockspace: LockspaceMaker
    dispatcher: Dispatcher
    reloads: Reloads
    server: Server

    def close(self) -> None:
        """Closes everything. Every client sees EOF."""
        self.server.close()
        self.runtime.close()
        self.open_files.mounts.close()
        self.poller.close()


def assemble(
    engine: LockEngine,
    life: Life,
    epoch: Epoch,
    limits: Limits,
    keep: KeepingMaker | None = None,
) -> Parts:
    """Creates the parts of a daemon.

    Args:
        engine: the lock table, empty or restored.
        life: new, or restored.
        epoch: the epoch of this start.
        limits: the limits until the configuration is applied.
        keep: creates the keeper of the state; None for a daemon that keeps nothing.
    """
    access, poller, slow_log = Access(), Poller(), SlowLog(engine)
    answers = Answers(access, Counts(slow_log.tell_end, slow_log.tell_overdue))
    keeping = Keeping() if keep is None else keep(engine, answers, life, epoch)
    open_files = OpenFiles(unreserved_descriptors(), keeping.drop_file)
    make_room = open_files.spares.remove_all
    limiter = Limiter(engine, limits, answers.late_by_user, epoch, keeping, make_room)
    open_files.private.add(epoch.inode)
    runtime = Runtime(
        engine,
        answers,
        poller,
        keeping,
        checks=os.environ.get(CHECK_INVARIANTS) == "1",
    )
    finder = Finder(engine, access, runtime.lockspaces)
    reader = Reader(
        engine,
        runtime.history,
        runtime.lockspaces,
        answers,
        finder,
        answers.redaction,
    )
    health = Health()
    if (problem := compilation.problem()) is not None:
        health.report("compiled", problem)
    make = partial(make_lockspace, open_files=open_files)
    dispatcher = Dispatcher(
        runtime,
        answers,
        access,
        limiter,
        reader,
        finder,
        keeping,
        life,
        epoch.number,
        epoch.instance,
        make,
        health,
    )
    reloads = Reloads(answers, limiter)
    dispatcher.add_handler("reload", reloads.take)
    server = Server(
        poller,
        runtime,
        answers,
        dispatcher,
        Virtlockd(dispatcher, runtime.lockspaces),
        limiter,
        keeping,
        Sessions(runtime, answers, reader, limiter, keeping),
        life,
    )
    return Parts(
        engine=engine,
        life=life,
        epoch=epoch,
        access=access,
        poller=poller,
        answers=answers,
        keeping=keeping,
        limits=limiter,
        open_files=open_files,
        runtime=runtime,
        health=health,
        slow_log=slow_log,
        make_lockspace=make,
        dispatcher=dispatcher,
        reloads=reloads,
        server=server,
    )
