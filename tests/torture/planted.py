"""Defects to be planted into the installed daemon, each of which must be found."""

from pathlib import Path
from typing import Final, NamedTuple

TOP: Final = Path(__file__).parents[2]

_INSTALLED: Final = {
    "src/": "/usr/lib/lockd/",
    "systemd/": "/usr/lib/systemd/system/",
}
"""Where `make install` puts what is in these directories."""

UNIT: Final = "systemd/lockd.service"


class Bug(NamedTuple):
    """A text of one file, which is there once, and what stands there instead.

    Attributes:
        file: in this tree.
        scenario: the one in which it is looked for call by call, where a few seconds
            of load hardly meet the moment in which it matters.
    """

    name: str
    file: str
    old: str
    new: str
    scenario: str = ""

    @property
    def path(self) -> str:
        """Where the file is when it is installed."""
        top = next(x for x in _INSTALLED if self.file.startswith(x))
        return _INSTALLED[top] + self.file.removeprefix(top)

    def plant(self, text: str) -> str:
        """Returns the text of the file with the defect.

        Raises:
            ValueError: what is to be replaced is not there exactly once.
        """
        if (count := text.count(self.old)) != 1:
            raise ValueError(f"{self.name}: its text is there {count} times, not once")
        return text.replace(self.old, self.new)


def _in(module: str, name: str, old: str, new: str, scenario: str = "") -> Bug:
    return Bug(name, f"src/lockd/{module}.py", old, new, scenario)


def _unrecorded(kind: str, what: str, scenario: str = "") -> Bug:
    return _in(
        "daemon/survival/recording",
        f"{what} not recorded",
        "        for kind, name, value in records.changes(self._engine):\n",
        "        for kind, name, value in records.changes(self._engine):\n"
        f"            if kind == {kind!r}:\n"
        "                continue\n",
        scenario,
    )


BUGS: Final = [
    # What must be done before what.
    _in(
        "engine/owners",
        "release before fence",
        "            if not self._state.must_fence(grant):\n"
        '                self._lose(grant, "disconnected", now)\n',
        "            if self._state.must_fence(grant):\n"
        '                self._fence(owner, "disconnected")\n'
        '            self._lose(grant, "disconnected", now)\n',
    ),
    _in(
        "daemon/survival/keeping",
        "grant before keep",
        "        self._stores.in_flight.keep(label, fd)\n"
        "        if before is not None and before[1] != label:\n"
        "            self._stores.in_flight.drop(before[1])\n"
        "        self._files[key] = fd, label\n",
        "\n"
        "        def keep() -> None:\n"
        "            space = self._lockspaces[key.lockspace]\n"
        "            is_open = key.resource in space.open_resources()\n"
        "            if is_open and space.dump_file(key.resource)[0] == fd:\n"
        "                self._stores.in_flight.keep(label, fd)\n"
        "                self._files[key] = fd, label\n"
        "\n"
        "        self.drop_file(key)\n"
        '        lowlevel = __import__("trio").lowlevel\n'
        "        lowlevel.current_trio_token().run_sync_soon(keep)\n",
        "acquire (directory)",
    ),
    _in(
        "daemon/server",
        "answer before record",
        "            if not self._keeping.commit(peers):\n"
        "                behind.update(peers)\n"
        "                return\n"
        "            for peer in peers:\n"
        "                try:\n"
        "                    self._send_to(peer)\n"
        "                except Exception as error:\n"
        "                    self._blame(peer, error)\n",
        "            for peer in peers:\n"
        "                try:\n"
        "                    self._send_to(peer)\n"
        "                except Exception as error:\n"
        "                    self._blame(peer, error)\n"
        "            self._keeping.commit(peers)\n",
        "acquire (memory)",
    ),
    # What is trusted: the kernel, or what we remember of it.
    _in(
        "lockspaces/files",
        "the record is trusted over the kernel: what is locked",
        "            try:\n"
        "                kernel.lock_again(fd, mode, marks=file.marks)\n"
        "            except OSError as error:\n"
        "                raise_refusal(error, path)\n"
        "            file.mode = mode\n",
        "            file.mode = mode\n",
        "hand over (disk)",
    ),
    _in(
        "lockspaces/files",
        "the record is trusted over the kernel: what a path leads to",
        "            if self._leads_to(path, file.inode):\n"
        "                if user is not None:\n",
        "            if True:\n                if user is not None:\n",
        "hand over (directory)",
    ),
    _in(
        "daemon/stores/streams",
        "the record is trusted over the kernel: what was taken out",
        "min(done - self._consumed, peeked)",
        "done - self._consumed",
        "acquire (memory)",
    ),
    _in(
        "daemon/stores/streams",
        "the record is trusted over the kernel: what has left",
        "position + size - left",
        "position + size - left * 0",
        "acquire (memory)",
    ),
    # What is kept and recorded.
    _in(
        "daemon/survival/keeping",
        "a connection is not kept",
        "            self._stores.in_flight.keep(label, sock.fileno())\n",
        "            pass\n",
    ),
    _in(
        "daemon/survival/keeping",
        "a locked file is not kept",
        "        if before is not None and before[0] == fd:\n",
        "        if fd >= 0:\n",
    ),
    _unrecorded("counts", "which tokens were given is", "release"),
    _unrecorded("request", "who waits is"),
    _unrecorded("grant", "what was granted is"),
    _unrecorded("owner", "owners are"),
    _unrecorded("session", "sessions are"),
    _in(
        "daemon/survival/recording",
        "what has ended stays recorded",
        "                ledger.remove(key)\n            else:\n",
        "                pass\n            else:\n",
    ),
    _in(
        "daemon/survival/recording",
        "how far a client's requests are done is not recorded",
        "        self._ledger.put(recorded.position_key, _encode(of_this))\n",
        "        if peer.flow.sent == 0:\n"
        "            self._ledger.put(recorded.position_key, _encode(of_this))\n",
    ),
    _in(
        "daemon/survival/keeping",
        "who is behind a registered pid is not kept",
        "            self._stores.in_flight.keep(label_of(PIDFD, owner_id), pidfd)\n"
        "            self._pidfds.add(owner_id)\n",
        "            pass\n",
    ),
    _in(
        "daemon/survival/recording",
        "only each second commit is one",
        "                ledger.commit()\n",
        "                if len(self._recorded) % 2:\n"
        "                    ledger.commit()\n",
    ),
    _in(
        "daemon/stores/streams",
        "requests are taken out before they are carried out",
        "        data = self._sock.recv(READ_SIZE, _PEEK)\n"
        "        self._peeked += len(data)\n",
        "        data = self._sock.recv(READ_SIZE)\n"
        "        self._consumed += len(data)\n",
    ),
    _in(
        "daemon/stores/streams",
        "what was sent is not stored",
        "cells.end_sending(self.slot, self.sent)",
        "cells.end_sending(self.slot, self.sent - moved)",
    ),
    _in(
        "daemon/stores/streams",
        "what is done is not taken out when it goes on",
        "        if rest > 0:\n",
        "        if False:\n",
        "acquire (memory)",
    ),
    _in(
        "daemon/stores/streams",
        "where it peeks is not set back when it goes on",
        "        self._cells.set_consumed(self.slot, done)\n"
        "        sock.setsockopt(socket.SOL_SOCKET, SO_PEEK_OFF, 0)\n",
        "        self._cells.set_consumed(self.slot, done)\n",
    ),
    _in(
        "daemon/stores/streams",
        "answers leave without the pipe",
        "moved = pipe.move(self._fd, size)",
        "moved = os.write(self._fd, os.read(pipe.ends[0], size))",
        "acquire (memory)",
    ),
    _in(
        "daemon/stores/queues",
        "what is kept is consumed when it is recovered",
        "flags = socket.MSG_PEEK | socket.MSG_CMSG_CLOEXEC",
        "flags = socket.MSG_CMSG_CLOEXEC",
    ),
    _in(
        "daemon/stores/in_flight",
        "of two with one label the oldest counts",
        '        found.sort(key=attrgetter("serial"))\n',
        '        found.sort(key=attrgetter("serial"), reverse=True)\n',
    ),
    _in(
        "daemon/stores/in_flight",
        "one of what is moved is not sent again",
        "        if wanted:\n"
        "            self._target(source).send_again(wanted, source)\n",
        "        if len(wanted) > 1:\n"
        "            self._target(source).send_again(wanted[1:], source)\n",
    ),
    _in(
        "daemon/stores/ledger",
        "a commit does not count before the next",
        "        file.commit()\n        self._replace(staged)\n",
        "        if len(staged) > 3:\n"
        "            file.commit()\n"
        "        self._replace(staged)\n",
    ),
    _in(
        "daemon/stores/ledger",
        "removals are not read",
        "                values.update(zip(record.keys, record.values, strict=True))\n",
        "                pairs = zip(record.keys, record.values, strict=True)\n"
        "                values.update((k, v) for k, v in pairs if v is not None)\n",
    ),
    # What is made of it.
    _in(
        "daemon/requests/runtime",
        "a lock that is recorded is let go",
        "                if not self.engine.needs_anchor(key):\n",
        "                found = self.engine.resources.get(key)\n"
        "                if found is None or not found.pending:\n",
    ),
    _in(
        "daemon/start/serve",
        "what nobody took up stays kept",
        "left = keeping.forget_the_rest(revived.unclaimed, owners, at_once=damaged)",
        "left = []",
    ),
    # Slots, locks inside others, notices.
    _in(
        "engine/holding/slots",
        "a slot has the number of those that are held",
        "        number = self.first_free\n",
        "        number = self.taken.bit_count()\n",
    ),
    _in(
        "engine/holding/slots",
        "a slot more than there are",
        "return self.first_free < self.count",
        "return self.first_free <= self.count",
    ),
    _in(
        "engine/resource",
        "one gets inside beside another",
        "            grant.fencing_token in around or strand is request.strand\n",
        "            grant.fencing_token in around or grant.inside\n",
    ),
    _in(
        "engine/resource",
        "the end of a lock frees what is held inside",
        "        return compatible(held, mode)\n\n    def lets_pass",
        "        return all(\n"
        "            compatible(held.mode, mode) or held.inside\n"
        "            for held in holders.values()\n"
        "        )\n\n    def lets_pass",
    ),
    _in(
        "engine/holding/slots",
        "who waits inside what has ended goes before those inside what is held",
        "    return -request.inside[key][-1], request.order\n",
        "    return -len(request.inside[key]), request.order\n",
    ),
    _in(
        "engine/resource",
        "only new holders hear that they are wanted",
        "        whom = new if told == seekers else self.listeners\n",
        "        whom = new\n",
    ),
    _in(
        "engine/lock_table",
        "what holders hear is forgotten at a start",
        "            if grant.notices is not None:\n",
        "            if not grant:\n",
    ),
    _in(
        "engine/lock_state",
        "a lock is overdue at the later of two times",
        "due=min(ends, default=None)",
        "due=max(ends, default=None)",
    ),
    _in(
        "engine/lock_state",
        "a lock is overdue too early",
        "ends = [now + seconds for",
        "ends = [now + seconds / 2 for",
    ),
    # What the manager is told.
    Bug(
        "the manager gives up after five starts",
        UNIT,
        "StartLimitIntervalSec=0\n",
        "StartLimitIntervalSec=60\nStartLimitBurst=5\n",
    ),
    Bug(
        "the manager stores too few",
        UNIT,
        "FileDescriptorStoreMax=64\n",
        "FileDescriptorStoreMax=6\n",
    ),
]
