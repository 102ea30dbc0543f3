"""What the tests of this folder share."""

import shutil
import subprocess
import urllib.request
from pathlib import Path

import pytest

from support.daemon_process import DaemonProcess
from support.exposition import Metrics, read
from support.wire_client import WireClient

PROMTOOL = shutil.which("promtool")


needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="promtool is missing")


def promtool(*words: str, text: str | None = None) -> None:
    assert PROMTOOL is not None
    done = subprocess.run(
        [PROMTOOL, *words], input=text, capture_output=True, text=True, check=False
    )
    # What it advises is on standard error, with a status of 0 or 3.
    assert (done.returncode, done.stderr) == (0, ""), done.stdout


def write_to(lockd: DaemonProcess, path: Path, more: str = "") -> None:
    """Has a daemon write its metrics to a file, and waits until it is there."""
    lockd.config.write_text(f'[metrics]\ntextfile = "{path}"\n{more}')
    lockd.reload()
    while not path.exists() or not path.stat().st_size:
        pass


def metrics(client: WireClient) -> Metrics:
    return read(client.call("metrics")["text"])


def fetched(url: str) -> Metrics:
    with urllib.request.urlopen(url, timeout=20) as answer:
        kind = "application/openmetrics-text; version=1.0.0; charset=utf-8"
        assert answer.headers["Content-Type"] == kind
        return read(answer.read().decode())
