"""Writes the methods of the client for threads from those of the client for tasks.

`make sync` runs it; tests/client/test_methods.py says when its result is stale.
"""

import re
import subprocess
import sys
from pathlib import Path
from typing import Final

CLIENT: Final = Path(__file__).parents[1] / "src" / "lockd" / "client"
SOURCE: Final = CLIENT / "tasks" / "methods.py"
RESULT: Final = CLIENT / "threads" / "methods.py"

HEADER: Final = '''"""The methods of both clients, for threads.

`make sync` generates this file from `tasks/methods.py`: change that one.
"""
'''

#: Patterns, each with what takes its place; in this order.
REPLACEMENTS: Final = {
    r'\A""".*?"""\n': HEADER,
    r"from lockd\.client\.tasks\.link import Grant, TaskLink\n": (
        "from lockd.client.threads.connection import Connection\n"
        "from lockd.client.threads.grants import Grant\n"
    ),
    r"\blockd\.client\.tasks\b": "lockd.client.threads",
    r"\blink: TaskLink\b": "connection: Connection",
    r"\b(_?)link\b": r"\1connection",
    r"\basync (def|for|with)\b": r"\1",
    r"\bawait ": "",
    r"\bAsyncIterator\b": "Iterator",
    r"\basynccontextmanager\b": "contextmanager",
    r"\b__a(iter|next)__\b": r"__\1__",
    r"\banyio\.Lock\b": "threading.Lock",
}


def threads_methods() -> str:
    """Returns what the file for threads has to say."""
    text = SOURCE.read_text()
    for pattern, replacement in REPLACEMENTS.items():
        text, count = re.subn(pattern, replacement, text, flags=re.DOTALL)
        assert count, f"{SOURCE} has nothing for {pattern}"
    ruff = [sys.executable, "-m", "ruff"]
    for command in (["check", "--fix", "--select", "I"], ["format"]):
        done = subprocess.run(
            [*ruff, *command, "--quiet", "--stdin-filename", str(RESULT), "-"],
            input=text,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        text = done.stdout
    return text


if __name__ == "__main__":
    RESULT.write_text(threads_methods())
