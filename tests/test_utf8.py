"""Names are UTF-8 in a program of another encoding."""

import os
import subprocess
import sys

from lockd.names import hashed_name

IN_ASCII = """
import os
from lockd import canonical_path, hashed_name
from lockd.client.arguments import resource_text
from lockd.errors import InvalidRequestError

typed = os.fsdecode("/\\xfc".encode())
assert resource_text("name", "\\xfc") == "\\xfc"
assert canonical_path(typed) == "/\\xfc"
print(hashed_name(typed))
try:
    canonical_path("/\\xfc")
except InvalidRequestError as error:
    print(ascii(str(error)))
"""


def test_path_is_utf8_on_the_wire_in_a_program_of_another_encoding() -> None:
    without = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(
        [sys.executable, "-c", IN_ASCII],
        env=os.environ | without,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    hashed, refusal = done.stdout.splitlines()
    assert hashed == hashed_name("/ü")
    assert "cannot be written in ascii" in refusal
