"""lockd answers as virtlockd does: a slice of `campaigns.virtlockd_diff`."""

import pytest

from campaigns.virtlockd_diff import campaign
from support.virtlockd_process import why_not

CALLS = 3_000
FEWER = 1_000


@pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
@pytest.mark.slow
def test_lockd_does_what_virtlockd_does() -> None:
    assert not campaign(CALLS, seed=4).failed


@pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
@pytest.mark.slow
def test_virtlockd_does_what_virtlockd_does() -> None:
    # Otherwise chance is what is compared.
    assert not campaign(FEWER, seed=4, self_check=True).failed
