"""What is wrong with a configuration file, and what would be right.

Derived from the types of the structs in `config`, so that a new key needs nothing here.
"""

import difflib
from collections.abc import Iterator
from typing import Any, Final, get_args, get_origin

import msgspec
from msgspec import Struct, inspect

from lockd.names import plain

_MAX_SHOWN: Final = 60


def problems(table: object, kind: type[Struct], where: str = "") -> Iterator[str]:
    """Goes through what is wrong with a table, a sentence each.

    Keys that are missing are no problem: another file may have them.

    Args:
        where: how the table is called, `[limits]` for example; empty at the top.
    """
    if not isinstance(table, dict):
        yield f"{where}: must be a table, not {_shown(table)}"
        return
    fields = {field.encode_name: field for field in msgspec.structs.fields(kind)}
    for key, value in table.items():
        if key in fields:
            yield from _problems_of_value(value, fields[key].type, key, where)
        else:
            close = difflib.get_close_matches(key, fields, 1)
            hint = f'; did you mean "{close[0]}"?' if close else ""
            yield f"{where or 'the file'}: there is no key {_shown(key)}{hint}"


def _problems_of_value(
    value: object, type_: Any, key: str, where: str
) -> Iterator[str]:
    inner = f"{where[1:-1]}.{key}".lstrip(".")
    if isinstance(type_, type) and issubclass(type_, Struct):
        yield from problems(value, type_, f"[{inner}]")
    elif get_origin(type_) is dict:
        if not isinstance(value, dict):
            yield f"[{inner}]: must be a table, not {_shown(value)}"
            return
        for name, table in value.items():
            yield from problems(table, get_args(type_)[1], f"[{inner}.{plain(name)}]")
    else:
        try:
            msgspec.convert(value, type_)
        except msgspec.ValidationError:
            wanted = _wanted(inspect.type_info(type_))
            place = f"{where} {key}".lstrip()
            yield f"{place}: must be {wanted}, not {_shown(value)}"
            return
        if isinstance(value, str) and "\0" in value:
            yield f"{f'{where} {key}'.lstrip()}: has a NUL"


def _wanted(info: inspect.Type) -> str:
    """Says what a value of a type is."""
    match info:
        case inspect.IntType(ge=least, le=most):
            return f"a whole number from {least} to {most}"
        case inspect.FloatType(gt=above, le=most):
            return f"a number of seconds above {above:g}, at most {most:g}"
        case inspect.StrType():
            return "a text"
        case inspect.LiteralType(values=values):
            *others, last = (f'"{value}"' for value in values)
            return f"{', '.join(others)} or {last}"
        case inspect.UnionType(types=types):
            (wanted,) = (x for x in types if not isinstance(x, inspect.NoneType))
            return _wanted(wanted)
        case inspect.ListType():
            return 'a list of names, numbers, or "*" for everybody'
    raise AssertionError(info)


def _shown(value: object) -> str:
    if isinstance(value, str):
        shown = f'"{plain(value)}"'
    elif isinstance(value, bool):
        shown = str(value).lower()
    elif isinstance(value, dict):
        return "a table"
    else:
        shown = str(value)
    return shown if len(shown) <= _MAX_SHOWN else shown[: _MAX_SHOWN - 1] + "…"
