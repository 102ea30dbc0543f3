"""A plugin of pytest that writes the outcome of each test into $LOCKD_OUTCOMES."""

import os

import pytest


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.failed or report.when == "call" or report.skipped:
        with open(os.environ["LOCKD_OUTCOMES"], "a") as file:
            print(report.outcome, report.nodeid, file=file)
