"""Whatever a program gives to the library, it hears one sentence of what it gave.

The functions, methods and parameters are found by introspection, so a new one is tried
as soon as it is there: `KINDS` has to say what it takes.
"""

import inspect
import math
import os
import re
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from functools import partial
from itertools import count
from pathlib import Path, PurePosixPath
from types import GeneratorType
from typing import Any, NamedTuple

import pytest
import trio

import lockd

# What is given.


class BytesPath:
    """A path, but of bytes."""

    def __fspath__(self) -> bytes:
        return b"/srv/a.img"


class Unspeakable:
    """Its repr() raises, as that of a program's own object may."""

    def __repr__(self) -> str:
        raise AssertionError("nobody may ask for it")


ODD: dict[str, Any] = {
    "None": None,
    "True": True,
    "-1": -1,
    "5": 5,
    "2**31": 2**31,
    "2**63": 2**63,
    "2**70": 2**70,
    "5,001 digits": 10**5_000,
    "0.5": 0.5,
    "nan": math.nan,
    "inf": math.inf,
    "-inf": -math.inf,
    "1e300": 1e300,
    "empty": "",
    "text": "text",
    "NUL": "a\0b",
    "line": "a\nb",
    "surrogate": "a\udcff",
    "lone surrogate": "a\ud800",
    "300 characters": "x" * 300,
    "5,000 characters": "x" * 5_000,
    "100,000 characters": "x" * 100_000,
    "long path": "/x" * 40_000,
    "bytes": b"bytes",
    "Path": Path("/nowhere/a.img"),
    "PurePath": PurePosixPath("/nowhere/a.img"),
    "relative Path": Path("a.img"),
    "Path with NUL": Path("/a\0b"),
    "PathLike of bytes": BytesPath(),
    "empty list": [],
    "list": ["text"],
    "list of numbers": [5],
    "list of 70": [str(n) for n in range(70)],
    "dict": {},
    "dict with odd keys": {5: {}},
    "object": object(),
    "no repr": Unspeakable(),
    "function": lambda *_: None,
    "generator": (x for x in "ab"),
}

# What parameters take.

Takes = Callable[[Any], bool]


def is_utf8(value: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in value)


def patience(value: Any) -> bool:
    return number(value, 0, threading.TIMEOUT_MAX) or value in (-1, math.inf)


def anything(value: Any) -> bool:
    return True


def text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= 4_096 and is_utf8(value)


def name(value: Any) -> bool:
    return text(value) and value.isprintable() and 0 < len(value.encode()) <= 255


def path(value: Any) -> bool:
    if not isinstance(value, str | os.PathLike):
        return False
    found = os.fspath(value)
    if isinstance(found, bytes) or not place(found):
        return False
    return len(os.fsencode(found)) <= 4_095


def place(value: Any) -> bool:
    """A path of which nothing is sent: the kernel refuses what is too long."""
    if not isinstance(value, str):
        return False
    return bool(value) and "\0" not in value and "\ud800" not in value


def resource(value: Any) -> bool:
    if isinstance(value, str) and value.startswith("/"):
        return path(value) and is_utf8(value) and value.isprintable()
    return name(value) or (path(value) and isinstance(value, os.PathLike))


def resources(value: Any) -> bool:
    if isinstance(value, list):
        return 0 < len(value) <= 64 and all(map(resource, value))
    return isinstance(value, GeneratorType)


def number(value: Any, least: float, most: float) -> bool:
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and least <= value <= most
    )


def above_zero(value: Any) -> bool:
    return number(value, 0, 1e9) and value > 0


def integer(value: Any, least: int, most: int) -> bool:
    return isinstance(value, int) and number(value, least, most)


def one_of(*choices: str) -> Takes:
    return lambda value: isinstance(value, str) and value in choices


def boolean(value: Any) -> bool:
    return isinstance(value, bool)


KINDS: dict[str, Takes] = {
    "blocking": anything,
    "create": boolean,
    "fencing_token": partial(integer, least=0, most=2**63 - 1),
    "kind": one_of("memory", "directory", "direct"),
    "label": text,
    "lockspace": name,
    "max_hold": above_zero,
    "max_waiting": partial(integer, least=0, most=1_024),
    "method": name,
    "mode": one_of("exclusive", "shared", "slot"),
    "name": name,
    "on_disconnect": one_of("release", "kill"),
    "on_lost": callable,
    "outcome": one_of("ok", "failed", "died"),
    "owner": text,
    "owner_id": partial(integer, least=-(2**63), most=2**63 - 1),
    "path": path,
    "pid": partial(integer, least=1, most=2**31 - 1),
    "reason": text,
    "reconnect": anything,
    "resource": resource,
    "resources": resources,
    "slots": lambda value: value is True or integer(value, least=1, most=1_024),
    "session": partial(integer, least=0, most=2**63 - 1),
    "socket": lambda value: place(value) or path(value),
    "target": resource,
    "targets": resource,
    "timeout": partial(number, least=0, most=1e9),
    "uid": partial(integer, least=0, most=2**32 - 1),
    "unit": text,
    "wait": boolean,
    "until": one_of("either", "both"),
    "uuid": text,
    "waiting": boolean,
    "wanted": boolean,
    "whole": boolean,
}

OF_FUNCTIONS: dict[str, Takes] = {
    "canonical_path path": lambda value: place(value) or path(value),
    "hashed_name path": lambda value: place(value) or path(value),
    # As `threading.Lock` has it: -1 waits for ever.
    "Lock.acquire timeout": patience,
    "Client.lock timeout": patience,
    "lock timeout": patience,
}
"""Where a function takes something else by that name."""

OTHER_WORDS = {
    "targets": "target",
    "resources": "resources|named twice",
    "socket": "socket|lockd cannot be reached",
}

ENTRIES = {
    "list_resources": ["owner", "uid", "pid", "unit", "path", "waiting"],
    "call": ["resource", "timeout", "anything"],
}
"""What can be given where a function takes any names."""

numbers = count()


def good(function: str, parameter: str) -> Any:
    """Returns what a required parameter can be, when another one is tried."""
    if parameter in ("resource", "target", "resources"):
        found = f"free-{next(numbers)}"
        return [found] if parameter == "resources" else found
    return {
        "fencing_token": 2**40,
        "session": 2**40,
        "kind": "memory",
        "lockspace": "default",
        "method": "acquire" if function.endswith("call") else "query",
        "mode": "shared",
        "name": f"named-{next(numbers)}",
        "path": "/nowhere",
        "reason": "why",
    }[parameter]


class Case(NamedTuple):
    """One parameter of one function."""

    function: str
    parameter: str
    how: inspect._ParameterKind
    needed: bool


FUNCTIONS = ("connect", "lock", "canonical_path", "hashed_name")
LOCKS = ("Lock.acquire",)


def cases_of(function: Callable[..., Any], called: str) -> Iterator[Case]:
    for parameter in inspect.signature(function).parameters.values():
        if parameter.name == "self":
            continue
        needed = parameter.default is parameter.empty
        if parameter.kind is parameter.VAR_KEYWORD:
            for entry in ENTRIES[called.split(".")[-1]]:
                yield Case(called, entry, parameter.kind, needed=False)
        else:
            yield Case(called, parameter.name, parameter.kind, needed)


def methods_of(kind: type) -> Iterator[tuple[str, Callable[..., Any]]]:
    for called, method in vars(kind).items():
        if not called.startswith("_") and inspect.isfunction(method):
            yield f"{kind.__name__}.{called}", method


def public_functions(module: Any) -> set[str]:
    names = getattr(module, "__all__", None) or dir(module)
    return {
        called
        for called in names
        if not called.startswith("_") and inspect.isfunction(getattr(module, called))
    }


def all_cases(*kinds: type) -> list[Case]:
    found: list[Case] = []
    for kind in kinds:
        for called, method in methods_of(kind):
            found += cases_of(method, called)
    return found


# What is heard.

INSIDE = re.compile(
    r"Expected |\$\.|object has no attribute|MessagePack|codec|msgid|unexpected"
    r"|embedded|'direct'|Exceeds|NoneType|unhashable|not supported"
    r"|positional|keyword|iterable|surrogates"
)
"""What the inside of a program says of itself, and nobody has given."""

ALLOWED = re.compile(
    r"must be|must have|at most \d+ are|is empty|is not UTF-8|has a NUL character"
    r"|has control or invisible|relative path|named twice|cannot be reached"
)


def judge(case: Case, odd: Any, error: Exception | None) -> str | None:
    """Returns what is wrong with the answer to a case; None if nothing is."""
    own = OF_FUNCTIONS.get(f"{case.function} {case.parameter}")
    takes = own or KINDS.get(case.parameter, anything)
    fits = takes(odd) or (odd is None and not case.needed)
    if error is None:
        return None if fits else "taken"
    sentence = str(error)
    if not isinstance(error, lockd.LockdError | TypeError | ValueError):
        return f"{type(error).__name__} is not in the tree: {sentence}"
    if INSIDE.search(sentence):
        return f"speaks of the inside: {sentence}"
    if not sentence.isprintable() or not 0 < len(sentence) < 500:
        return f"no one sentence of {len(sentence)} characters: {sentence[:100]!r}"
    if fits:
        if isinstance(error, TypeError) and takes is not anything:
            return f"refused: {sentence}"
        return None
    if not isinstance(error, TypeError | ValueError | lockd.ConnectionLostError):
        return f"refused late: {sentence}"
    words = OTHER_WORDS.get(case.parameter, case.parameter)
    if not re.search(rf"\b({words})\b", sentence):
        return f"does not name {case.parameter}: {sentence}"
    if not ALLOWED.search(sentence):
        return f"does not say what is allowed: {sentence}"
    return None


def arguments_of(
    case: Case, function: Callable[..., Any], odd: Any
) -> tuple[list[Any], dict[str, Any]]:
    """Returns what is given: all that is needed, nothing that waits, and one odd."""
    args: list[Any] = []
    params: dict[str, Any] = {}
    for parameter in inspect.signature(function).parameters.values():
        if parameter.name in ("self", case.parameter):
            continue
        if parameter.kind is parameter.VAR_KEYWORD:
            continue
        if parameter.kind is parameter.VAR_POSITIONAL:
            args.append(good(case.function, "target"))
            continue
        if parameter.name == "timeout":
            params["timeout"] = 0
        elif parameter.default is parameter.empty:
            params[parameter.name] = good(case.function, parameter.name)
    if case.how is inspect.Parameter.VAR_POSITIONAL:
        args.append(odd)
    else:
        params[case.parameter] = odd
    return args, params


def try_blocking(
    client: lockd.Client, case: Case, function: Callable[..., Any], odd: Any
) -> Exception | None:
    args, params = arguments_of(case, function, odd)
    try:
        found = function(*args, **params)
        if isinstance(found, lockd.Grant):
            client.release(found)
        elif isinstance(found, tuple):
            client.release(*found)
        elif isinstance(found, AbstractContextManager):
            with found:
                pass
        elif isinstance(found, Iterator):
            list(found)
    except Exception as error:
        return error
    return None


def try_all(cases: list[Case], attempt: Callable[[Case, Any], Exception | None]) -> str:
    """Tries each case with each odd value; returns what is wrong."""
    wrong = []
    for case in cases:
        for called, odd in ODD.items():
            said = judge(case, odd, attempt(case, odd))
            if said:
                wrong.append(f"{case.function}({case.parameter}={called}): {said}")
    return "\n".join(wrong)


def test_each_parameter_of_the_library_has_a_kind() -> None:
    kinds = (lockd.Client, lockd.Lock, lockd.Grant, lockd.aio.Client, lockd.aio.Lock)
    cases = all_cases(*kinds)
    for called in FUNCTIONS:
        cases += cases_of(getattr(lockd, called), called)
    unknown = {case.parameter for case in cases} - KINDS.keys() - {"anything"}
    assert not unknown
    assert public_functions(lockd) == set(FUNCTIONS)
    assert public_functions(lockd.aio) == {"connect"}


@pytest.mark.parametrize("called", FUNCTIONS)
def test_functions_say_what_is_wrong(called: str, sock: str) -> None:
    function = getattr(lockd, called)

    def attempt(case: Case, odd: Any) -> Exception | None:
        args, params = arguments_of(case, function, odd)
        if called == "connect" and case.parameter != "socket":
            params["socket"] = sock
        try:
            found = function(*args, **params)
        except Exception as error:
            return error
        if called == "connect":
            found.close()
        return None

    assert try_all(list(cases_of(function, called)), attempt) == ""


def test_blocking_client_says_what_is_wrong(sock: str) -> None:
    with lockd.connect(sock) as client:

        def attempt(case: Case, odd: Any) -> Exception | None:
            method = getattr(client, case.function.split(".")[1])
            return try_blocking(client, case, method, odd)

        assert try_all(all_cases(lockd.Client), attempt) == ""
        assert client.acquire("afterwards").held  # all of it cost nothing else


def test_blocking_lock_says_what_is_wrong(sock: str) -> None:
    with lockd.connect(sock) as client:

        def attempt(case: Case, odd: Any) -> Exception | None:
            lock = client.lock("disk")
            method = getattr(lock, case.function.split(".")[1])
            error = try_blocking(client, case, method, odd)
            if lock.locked():
                lock.release()
            return error

        assert try_all(all_cases(lockd.Lock), attempt) == ""


async def try_async(
    client: lockd.aio.Client | None,
    case: Case,
    function: Callable[..., Any],
    odd: Any,
) -> Exception | None:
    args, params = arguments_of(case, function, odd)
    try:
        found = function(*args, **params)
        if isinstance(found, Awaitable):
            found = await found
        if client is not None and isinstance(found, lockd.aio.Grant):
            await client.release(found)
        elif client is not None and isinstance(found, tuple):
            await client.release(*found)
        elif isinstance(found, AsyncIterator):
            async for _ in found:
                pass
        elif isinstance(found, AbstractAsyncContextManager):
            async with found:
                pass
    except Exception as error:
        return error
    return None


def test_async_client_says_what_is_wrong(sock: str) -> None:
    async def main() -> str:
        wrong = []
        async with lockd.aio.connect(sock) as client:
            for case in all_cases(lockd.aio.Client):
                method = getattr(client, case.function.split(".")[1])
                for called, odd in ODD.items():
                    said = judge(case, odd, await try_async(client, case, method, odd))
                    if said:
                        wrong.append(
                            f"{case.function}({case.parameter}={called}): {said}"
                        )
            assert (await client.acquire("afterwards")).held
        return "\n".join(wrong)

    assert trio.run(main) == ""


def test_async_lock_says_what_is_wrong(sock: str) -> None:
    async def main() -> str:
        wrong = []
        async with lockd.aio.connect(sock) as client:
            for case in all_cases(lockd.aio.Lock):
                for called, odd in ODD.items():
                    lock = client.lock("disk")
                    method = getattr(lock, case.function.split(".")[1])
                    said = judge(case, odd, await try_async(client, case, method, odd))
                    if said:
                        wrong.append(f"Lock {case.parameter}={called}: {said}")
        return "\n".join(wrong)

    assert trio.run(main) == ""


def test_async_connect_says_what_is_wrong(sock: str) -> None:
    async def main() -> str:
        wrong = []
        for case in cases_of(lockd.aio.connect, "connect"):
            function = lockd.aio.connect
            if case.parameter != "socket":
                function = partial(function, socket=sock)
            for called, odd in ODD.items():
                said = judge(case, odd, await try_async(None, case, function, odd))
                if said:
                    wrong.append(f"connect({case.parameter}={called}): {said}")
        return "\n".join(wrong)

    assert trio.run(main) == ""
