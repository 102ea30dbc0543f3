"""Defects to be planted into the installed daemon, each of which must be found."""

from typing import Final, NamedTuple

LIBRARY: Final = "/usr/lib/lockd/lockd"
UNIT: Final = "/usr/lib/systemd/system/lockd.service"


class Bug(NamedTuple):
    """A text of one file, which is there once, and what stands there instead."""

    name: str
    path: str
    old: str
    new: str


def _in(module: str, name: str, old: str, new: str) -> Bug:
    return Bug(name, f"{LIBRARY}/daemon/{module}.py", old, new)


def _unrecorded(kind: str, what: str) -> Bug:
    return _in(
        "keeping",
        f"{what} not recorded",
        "        for kind, name, value in records.changes(self._engine):\n",
        "        for kind, name, value in records.changes(self._engine):\n"
        f"            if kind == {kind!r}:\n"
        "                continue\n",
    )


BUGS: Final = [
    _in(
        "keeping",
        "a connection is not kept",
        "            self._stores.keeper.keep(label, sock.fileno())\n",
        "            pass\n",
    ),
    _in(
        "keeping",
        "a locked file is not kept",
        "        self._stores.keeper.keep(label_of(FILE, *key), fd)\n",
        "",
    ),
    _unrecorded("counts", "which tokens were given is"),
    _unrecorded("request", "who waits is"),
    _unrecorded("grant", "what was granted is"),
    _unrecorded("owner", "owners are"),
    _unrecorded("session", "sessions are"),
    _in(
        "keeping",
        "what has ended stays recorded",
        "            if value is None:\n                self._remove(kind, name)\n",
        "            if value is None:\n                pass\n",
    ),
    _in(
        "keeping",
        "how far a client's requests are done is not recorded",
        "            put(self._state_keys[peer.session], _encode(peer.dump_state()))\n",
        "            if peer.flow.sent == 0:\n"
        "                key = self._state_keys[peer.session]\n"
        "                put(key, _encode(peer.dump_state()))\n",
    ),
    _in(
        "keeping",
        "who is behind a registered pid is not kept",
        'if record["registered"] and owner_id not in self._pidfds:',
        "if False:",
    ),
    _in(
        "keeping",
        "only each second commit is one",
        "        self._stores.ledger.commit()\n",
        "        if self._turns_untidied % 2:\n"
        "            self._stores.ledger.commit()\n",
    ),
    _in(
        "flow",
        "requests are taken out before they are carried out",
        "        data = self._sock.recv(READ_SIZE, socket.MSG_PEEK)\n"
        "        self._peeked += len(data)\n",
        "        data = self._sock.recv(READ_SIZE)\n"
        "        self._consumed += len(data)\n",
    ),
    _in(
        "flow",
        "what was sent is not stored",
        "            cells.set_sent(self.slot, self.sent)\n",
        "",
    ),
    _in(
        "flow",
        "what is done is not taken out when it goes on",
        "        if rest > 0:\n",
        "        if False:\n",
    ),
    _in(
        "flow",
        "where it peeks is not set back when it goes on",
        "        self._cells.set_consumed(self.slot, done)\n"
        "        sock.setsockopt(socket.SOL_SOCKET, SO_PEEK_OFF, 0)\n",
        "        self._cells.set_consumed(self.slot, done)\n",
    ),
    _in(
        "flow",
        "answers leave without the pipe",
        "            moved = pipe.move(self._fd, size)\n",
        "            moved = os.write(self._fd, os.read(pipe.ends[0], size))\n"
        "            self._cells.set_sent(self.slot, self.sent)\n",
    ),
    _in(
        "keeper",
        "what is kept is consumed when it is recovered",
        "flags = socket.MSG_PEEK | socket.MSG_CMSG_CLOEXEC",
        "flags = socket.MSG_CMSG_CLOEXEC",
    ),
    _in(
        "keeper",
        "of two with one label the oldest counts",
        '        found.sort(key=attrgetter("serial"))\n',
        '        found.sort(key=attrgetter("serial"), reverse=True)\n',
    ),
    _in(
        "keeper",
        "one of what is moved is not sent again",
        "        if wanted:\n            self._target(source).send(wanted)\n",
        "        if len(wanted) > 1:\n"
        "            self._target(source).send(wanted[1:])\n",
    ),
    _in(
        "ledger",
        "a commit does not count before the next",
        "        file.commit()\n        for key",
        "        if len(staged) > 3:\n            file.commit()\n        for key",
    ),
    _in(
        "ledger",
        "removals are not read",
        "            if is_damaged or is_removal:\n",
        "            if is_removal:\n"
        "                continue\n"
        "            if is_damaged:\n",
    ),
    _in(
        "revival",
        "a lock that is recorded is let go",
        "        file = resource, fd, made, modes.get(key)\n",
        "        file = resource, fd, made, None\n",
    ),
    _in(
        "revival",
        "how far an answer had left is not asked",
        "    stores.cells.finish_sending(stores.pipe)\n",
        "    stores.cells.end_sending()\n    stores.pipe.empty()\n",
    ),
    _in(
        "service",
        "what nobody took up stays kept",
        "left = keeping.forget_the_rest(revived.unclaimed, also_files=not damaged)",
        "left = []",
    ),
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
