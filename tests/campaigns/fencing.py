"""Random fencings: no lock is given away before its old owner is dead.

    python -m campaigns.fencing [--count 10000] [--seed N]

Owners are processes that leave in every way there is while they hold locks for which
they must be dead first. Whoever gets such a lock next looks through a pidfd, opened
when the owner started: it must be dead by then (pidfd_open(2): readable). Half of the
owners have so much memory that the kernel takes milliseconds to end them after the last
signal: a lock that is given away when that is sent is seen to be.
"""

import argparse
import os
import random
import select
import signal
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

from campaigns.tools import Counts, daemon, end
from support.wire_client import WireClient

AT_ONCE = 8
MEMORY = 16 * 1024 * 1024
WAYS = (
    "closes and lives on",
    "closes and ignores SIGTERM",
    "is killed",
    "ends",
    "is broken by an admin",
    "asks for it by registration",
    "is disconnected by an admin",
)


class Owner:
    """A forked process that holds some locks and leaves in one of the ways."""

    def __init__(
        self, path: Path, way: str, space: str, names: list[str], memory: int
    ) -> None:
        self.way, self.space, self.names = way, space, names
        ready_in, ready_out = os.pipe()
        self.go_in, self.go_out = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            signal.alarm(60)  # should the campaign end before us
            try:
                self._live(path, ready_out, b"x" * memory)
            finally:
                os._exit(1)
        self.pidfd = os.pidfd_open(self.pid)
        os.close(ready_out)
        os.close(self.go_in)
        told = os.read(ready_in, 100).decode()
        os.close(ready_in)
        assert told, (way, names)
        session, *tokens = map(int, told.split())
        self.session, self.tokens = session, tokens

    def _live(self, path: Path, ready: int, memory: bytes) -> None:
        if self.way in ("closes and ignores SIGTERM", "is broken by an admin"):
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        client = WireClient(path)
        session = client.call("hello", protocol=1, client="owner")["session"]
        if self.way == "asks for it by registration":
            owner = {"name": "owner"}
            client.call("register", owner=owner, on_disconnect="kill")
        tokens = [
            client.acquire(name, lockspace=self.space)["fencing_token"]
            for name in self.names
        ]
        os.write(ready, " ".join(map(str, [session, *tokens])).encode())
        os.close(ready)
        os.close(self.go_out)
        os.read(self.go_in, 1)
        if self.way == "ends":
            os._exit(0)
        if self.way.startswith(("closes", "asks")):
            client.close()
        while True:
            signal.pause()

    def leave(self, admin: WireClient) -> None:
        """Makes it leave; returns at once."""
        if self.way == "is killed":
            os.kill(self.pid, signal.SIGKILL)
        elif self.way == "is broken by an admin":
            token = self.tokens[0]
            admin.call("break", fencing_token=token, reason="campaign")
        elif self.way == "is disconnected by an admin":
            admin.call("disconnect", session=self.session, reason="campaign")
        # Not by closing it: processes that were forked later have it, too.
        with suppress(BrokenPipeError):  # it is dead already
            os.write(self.go_out, b"x")
        os.close(self.go_out)

    @property
    def is_dead(self) -> bool:
        return bool(select.select([self.pidfd], [], [], 0)[0])

    def bury(self) -> None:
        os.waitpid(self.pid, 0)
        os.close(self.pidfd)


def campaign(count: int, seed: int) -> Counts:
    chance = random.Random(seed)
    counts = Counts(f"{count:,} random fencings, seed {seed}")
    early, rounds, grants, last_token, falling = 0, 0, 0, 0, 0
    ways: Counter[str] = Counter()
    began = time.monotonic()
    with daemon() as process, WireClient(process.socket) as admin:
        waiter = WireClient(process.socket)
        while waiter.call("statistics")["sessions"] != 2:
            pass
        before = len(os.listdir(f"/proc/{process.pid}/fd"))
        while sum(ways.values()) < count:
            rounds += 1
            owners = []
            for place in range(AT_ONCE):
                way = chance.choice(WAYS)
                space = chance.choice(["killed", "killed-files"])
                if way == "asks for it by registration":
                    space = chance.choice(["default", "files"])
                names = [f"{place}-{i}" for i in range(chance.randint(1, 5))]
                memory = chance.choice([0, MEMORY])
                owners.append(Owner(process.socket, way, space, names, memory))
                ways[way] += 1
            asked = {
                waiter.send("acquire", resource=name, lockspace=owner.space): owner
                for owner in owners
                for name in owner.names
            }
            for owner in chance.sample(owners, len(owners)):
                owner.leave(admin)
            while asked:
                message = waiter.kept.pop(0) if waiter.kept else waiter.receive()
                assert message is not None
                _, msgid, error, result = message
                assert error is None, error
                owner = asked.pop(msgid)
                early += not owner.is_dead
                grants += 1
                grant = result["grant"]
                falling += grant["fencing_token"] <= last_token
                last_token = grant["fencing_token"]
                waiter.send("release", fencing_token=last_token)
                assert waiter.answer(waiter.last_msgid)[0] is None
            for owner in owners:
                owner.bury()
        while admin.call("statistics")["sessions"] != 2:
            pass
        statistics = admin.call("statistics")
        after = len(os.listdir(f"/proc/{process.pid}/fd"))
        waiter.close()
    for way in WAYS:
        counts.show(f"owner {way}", ways[way])
    counts.show("grants that were looked at", grants)
    counts.show("rounds a second", f"{rounds / (time.monotonic() - began):.1f}")
    counts.must("grants before the old owner was dead", early, 0)
    counts.must("tokens that did not rise", falling, 0)
    counts.must("locks left held", statistics["held"], 0)
    counts.must("descriptors left open", after - before, 0)
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    wanted = parser.parse_args()
    end(campaign(wanted.count, wanted.seed))


if __name__ == "__main__":
    main()
