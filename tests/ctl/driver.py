"""Runs lockctl many times, each in a process of its own, from one that has it loaded.

As a program it reads one case a line (JSON: `argv`, and `gone`: whether the current
directory is removed first) and writes what came of it. Of `argv` each character up to
255 is one byte.
"""

import json
import os
import subprocess
import sys
import tempfile
from typing import Any, NamedTuple

#: They go on until they are ended: their first words end the case.
ENDLESS = ("watch", "hold")


class Done(NamedTuple):
    """What came of a case; a status below 0 is a signal, as Popen has it."""

    status: int
    out: str
    err: str


class Driver:
    """Starts the program, and gives it cases."""

    def __init__(self, env: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __call__(self, *argv: str, gone: bool = False) -> Done:
        """Runs lockctl to its end."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        words = [os.fsencode(word).decode("latin-1") for word in argv]
        case = json.dumps({"argv": words, "gone": gone})
        self._process.stdin.write(case + "\n")
        self._process.stdin.flush()
        return Done(*json.loads(self._process.stdout.readline()))

    def close(self) -> None:
        """Ends the program."""
        self._process.communicate()


def _run(argv: list[bytes], *, gone: bool) -> Done:
    out_read, out_write = os.pipe()
    err = os.memfd_create("err")
    pid = os.fork()
    if pid == 0:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(out_write, 1)
        os.dup2(err, 2)
        os.close(out_read)
        if gone:
            os.chdir(directory := tempfile.mkdtemp())
            os.rmdir(directory)
        sys.argv = ["lockctl", *map(os.fsdecode, argv)]
        # They are those of this program until now, as is what it has read ahead.
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
        main()
    os.close(out_write)
    said = b""
    while data := os.read(out_read, 65_536):
        said += data
        if argv[0].decode("latin-1") in ENDLESS:
            os.kill(pid, 15)
    os.close(out_read)
    _, status = os.waitpid(pid, 0)
    words = os.pread(err, 65_536, 0).decode("utf-8", "backslashreplace")
    os.close(err)
    out = said.decode("utf-8", "backslashreplace")
    return Done(os.waitstatus_to_exitcode(status), out, words)


if __name__ == "__main__":
    from lockd.ctl.main import _COMMANDS, lockctl, main

    for name in _COMMANDS:
        lockctl.get_command(None, name)  # type: ignore[arg-type]
    for line in sys.stdin:
        case: dict[str, Any] = json.loads(line)
        done = _run([x.encode("latin-1") for x in case["argv"]], gone=case["gone"])
        print(json.dumps(done), flush=True)
