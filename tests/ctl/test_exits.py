"""The exit status of every error, also of those that are hard to provoke."""

import pytest

from lockd import errors
from lockd.ctl.exits import status_of
from lockd.errors import ERRORS_BY_CODE, error_for_code

STATUSES = {
    "busy": 75,
    "timeout": 75,
    "deadlock": 73,
    "already_held": 73,
    "denied": 77,
    "restricted": 77,
    "invalid": 64,
    "not_found": 64,
    "unavailable": 69,
    "limit": 69,
    "io": 69,
    "unknown_method": 69,
}


@pytest.mark.parametrize("code", [*ERRORS_BY_CODE, "a_code_of_the_future"])
def test_every_refusal_has_its_exit_status(code: str) -> None:
    assert status_of(error_for_code(code, "no")) == STATUSES.get(code, 70)


def test_daemon_that_is_away_and_lost_lock_have_their_own() -> None:
    assert status_of(errors.ConnectionLostError("away")) == 69
    assert status_of(errors.LockLostError("lost")) == 76
