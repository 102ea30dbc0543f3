"""Explains the problems of a configuration file, with the allowed values.

It uses the types of the structs in `config`, so a new key needs no change here.
"""

import ast
import re
import tomllib
from collections.abc import Iterator
from typing import Any, Final, get_args, get_origin

import msgspec
from msgspec import Struct, inspect

from lockd.names import plain

_MAX_SHOWN: Final = 60


def find(table: object, kind: type[Struct], where: str = "") -> Iterator[str]:
    """Yields the problems of a table, a sentence each.

    A missing key is no problem: another file may have it.

    Args:
        table: the table.
        kind: its struct.
        where: its name in sentences, `[limits]` for example; empty at the top.
    """
    if not isinstance(table, dict):
        form = ""
        if "allow_" in where and isinstance(table, list):
            # Somebody took the table for the list of one of its keys.
            name = where.rpartition(".")[2].rstrip("]")
            form = f"; write {name}.acquire = {_shown(table)}, for example"
        yield f"{where}: must be a table, not {_shown(table)}{form}"
        return
    fields = {field.encode_name: field for field in msgspec.structs.fields(kind)}
    for key, value in table.items():
        if key in fields:
            yield from _problems_of_value(value, fields[key].type, key, where)
        else:
            import difflib  # an upgrade waits for what is loaded

            close = difflib.get_close_matches(key, fields, 1)
            hint = f'; did you mean "{close[0]}"?' if close else ""
            if not close and "allow_" in where:
                hint = f"; the keys are {', '.join(fields)}"
            place = f"{where}: " if where else ""
            yield f"{place}there is no key {_shown(key)}{hint}"


def _problems_of_value(
    value: object, type_: Any, key: str, where: str
) -> Iterator[str]:
    inner = f"{where[1:-1]}.{key}".lstrip(".")
    if isinstance(type_, type) and issubclass(type_, Struct):
        yield from find(value, type_, f"[{inner}]")
    elif get_origin(type_) is dict:
        if not isinstance(value, dict):
            yield f"[{inner}]: must be a table, not {_shown(value)}"
            return
        of = get_args(type_)[1]
        for name, each in value.items():
            yield from _problems_of_value(each, of, plain(name), f"[{inner}]")
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


def of_syntax(error: Exception) -> str:
    """Returns why a file is not valid TOML, and where.

    Args:
        error: the error of `tomllib` or of the decoding.
    """
    match error:
        case UnicodeDecodeError(object=raw, start=start):
            line = raw.count(b"\n", 0, start) + 1
            return f"is not UTF-8 (at line {line})"
        case RecursionError():
            return "is nested too deeply"
        case tomllib.TOMLDecodeError():
            # The parser shows the name of a table as a tuple.
            return re.sub(r"\(['\"].*['\"],?\)", _table_name, str(error))
        case _:
            return "has a number with too many digits"


def _table_name(shown: re.Match[str]) -> str:
    return f"[{'.'.join(plain(part) for part in ast.literal_eval(shown[0]))}]"


def _wanted(info: inspect.Type) -> str:
    """Returns the allowed values of a type."""
    match info:
        case inspect.IntType(ge=least, le=most):
            return f"a whole number from {least} to {most}"
        case inspect.Metadata(extra_json_schema={"description": str(said)}):
            return said
        case inspect.FloatType(ge=int(least), le=most):
            return f"a number of seconds from {least} to {most:g}"
        case inspect.FloatType(gt=above, le=most):
            return f"a number of seconds above {above:g}, at most {most:g}"
        case inspect.StrType(max_length=int(most)):
            return f"an absolute path of at most {most} bytes"
        case inspect.StrType():
            return "an absolute path"
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
