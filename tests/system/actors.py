"""Client processes for these tests, each with a connection of its own."""

import json
import os
import select
import signal
import subprocess
import sys
from typing import Any, Final, Self

from lockd import Client
from support.asking import ask_until
from support.nursery import SCRIPTS
from support.places import SRC

LIMIT: Final = 30

_SCRIPT: Final = """
import json, os, sys
from lockd import LockdError, connect

client = connect(sys.argv[1], name=sys.argv[2])

def fork_and_exit():
    child = os.fork()
    if not child:
        sys.exit()
    return os.waitpid(child, 0)[1]

def fork_and_close():
    child = os.fork()
    if not child:
        client.close()
        os._exit(0)
    return os.waitpid(child, 0)[1]

def fork_and_stay(fd):
    child = os.fork()
    if not child:
        os.read(fd, 1)
        os._exit(0)
    return child

FORKS = {f.__name__: f for f in (fork_and_exit, fork_and_close, fork_and_stay)}

def carry_out(verb, positional, named):
    try:
        result = (FORKS.get(verb) or getattr(client, verb))(*positional, **named)
    except LockdError as error:
        return {"error": getattr(error, "code", type(error).__name__)}
    return {"result": getattr(result, "fencing_token", result)}

for line in sys.stdin:
    print(json.dumps(carry_out(*json.loads(line))), flush=True)
"""


class Actor:
    """A client process that does one thing after another, as it is told.

    What a `Client` can do, it can be told to do; a grant comes back as its fencing
    token, an error as its code.
    """

    def __init__(self, socket: object, name: str, pass_fds: tuple[int, ...]) -> None:
        self._process = SCRIPTS.popen(
            [sys.executable, "-c", _SCRIPT, str(socket), name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": SRC},
            pass_fds=pass_fds,
        )
        self.pid = self._process.pid

    def __call__(self, verb: str, *positional: Any, **named: Any) -> Any:
        """Has it do something; returns what came of it."""
        return self.start(verb, *positional, **named).result()

    def start(self, verb: str, *positional: Any, **named: Any) -> Self:
        """Has it begin something; `result` waits for what comes of it."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([verb, positional, named]) + "\n")
        self._process.stdin.flush()
        return self

    def result(self) -> Any:
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], LIMIT)
        assert ready, "nothing came of it in time"
        answer = json.loads(self._process.stdout.readline())
        return answer["error"] if "error" in answer else answer["result"]

    def send_signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        """Ends it as `kill -9` does, and waits until it is gone."""
        self._process.kill()
        self._process.communicate(timeout=LIMIT)


def wait_for_waiter(client: Client, name: str, lockspace: str) -> None:
    ask_until(
        client, name, lambda state: state["waiter_count"] > 0, lockspace=lockspace
    )
