"""The methods of both clients are written once, and known to editors."""

import pydoc
import runpy
from collections.abc import AsyncIterator, Iterator
from inspect import iscoroutinefunction, signature
from pathlib import Path
from typing import Any, assert_type

import pytest

import lockd
from lockd.client.tasks import methods as tasks
from lockd.client.threads import methods as threads
from support.places import ROOT

TOOL = ROOT / "tools" / "unasync.py"

METHODS = [name for name in vars(tasks.Methods) if not name.startswith("_")]


def test_methods_for_threads_are_written_from_those_for_tasks() -> None:
    assert threads.__file__ is not None
    written = runpy.run_path(str(TOOL))["threads_methods"]()
    assert Path(threads.__file__).read_text() == written, "run `make sync`"


@pytest.mark.parametrize("name", METHODS)
def test_method_has_parameters_and_an_explanation_for_both(name: str) -> None:
    task_method, method = getattr(lockd.aio.Client, name), getattr(lockd.Client, name)
    known = signature(method).parameters
    assert signature(task_method).parameters.keys() == known.keys()
    assert method.__doc__
    assert not iscoroutinefunction(method)


@pytest.mark.parametrize("client", [lockd.Client, lockd.aio.Client])
def test_help_tells_of_every_method(client: type) -> None:
    told = pydoc.plain(pydoc.render_doc(client))
    for name in METHODS:
        assert f" |  {name}(self" in told or f" |  async {name}(self" in told, name
    assert "AlreadyHeldError: this thread or task holds the lock" in told


async def types(client: lockd.Client, tasks: lockd.aio.Client) -> None:
    """`make check` holds these types: a method for tasks is awaited for the same."""
    assert_type(client.acquire("disk"), lockd.Grant)
    assert_type(await tasks.acquire("disk"), lockd.aio.Grant)
    assert_type(client.try_acquire("disk"), lockd.Grant | None)
    assert_type(await tasks.try_acquire("disk"), lockd.aio.Grant | None)
    assert_type(client.acquire_all(["disk"]), tuple[lockd.Grant, ...])
    assert_type(await tasks.acquire_all(["disk"]), tuple[lockd.aio.Grant, ...])
    assert_type(client.lock("disk"), lockd.Lock)
    assert_type(tasks.lock("disk"), lockd.aio.Lock)
    assert_type(client.check("disk", 7), bool)
    assert_type(await tasks.check("disk", 7), bool)
    assert_type(client.query("disk"), dict[str, Any])
    assert_type(await tasks.query("disk"), dict[str, Any])
    assert_type(client.list_waiters(), Iterator[dict[str, Any]])
    assert_type(tasks.list_waiters(), AsyncIterator[dict[str, Any]])
    assert_type(client.list_sessions(), list[dict[str, Any]])
    assert_type(await tasks.list_sessions(), list[dict[str, Any]])
    with client.watch() as events:
        assert_type(next(events), dict[str, Any])
    async with tasks.watch() as task_events:
        assert_type(await anext(task_events), dict[str, Any])
