"""Explains errors in the parameters of a request, in the words of protocol 6.1."""

import re
from collections.abc import Mapping
from functools import cache
from typing import Final

from msgspec import Struct, inspect

_PATH: Final = re.compile(r" - at `\$\.?([^`\[]*)[^`]*`$")
_UNKNOWN: Final = re.compile(r"unknown field `(.*?)`")
_MISSING: Final = re.compile(r"missing required field `(.*?)`")

_WORDS: Final[Mapping[type, str]] = {
    inspect.StrType: "text",
    inspect.BoolType: "true or false",
    inspect.NoneType: "nil",
    inspect.StructType: "a map",
}


def complaint(params: type[Struct], error: str) -> str:
    """Returns a sentence for an error of msgspec about parameters.

    Args:
        params: the type that the parameters should have.
        error: the message of msgspec.
    """
    found = _PATH.search(error)
    path = found[1] if found else ""
    fields = _fields_at(params, path)
    if unknown := _UNKNOWN.search(error):
        return f"there is no parameter `{_joined(path, unknown[1])}`: {_known(fields)}"
    if missing := _MISSING.search(error):
        name = _joined(path, missing[1])
        return f"`{name}` is missing: it must be {_words(fields[missing[1]])}"
    if path in (allowed := _allowed(params)):
        return f"`{path}` must be {allowed[path]}"
    return f"the name of each parameter must be text: {_known(fields)}"


def _known(fields: Mapping[str, inspect.Type]) -> str:
    if not fields:
        return "this method has none"
    return f"the parameters are {', '.join(f'`{name}`' for name in fields)}"


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


@cache
def _allowed(params: type[Struct]) -> dict[str, str]:
    """Returns the allowed values of each parameter, and of each entry of a map."""
    words = {}
    for name, kind in _fields_at(params, "").items():
        words[name] = _words(kind)
        for entry, kind_of_entry in _fields_of(kind).items():
            words[f"{name}.{entry}"] = _words(kind_of_entry)
    return words


@cache
def _fields_at(params: type[Struct], path: str) -> dict[str, inspect.Type]:
    found: inspect.Type = inspect.type_info(params)
    for name in filter(None, path.split(".")):
        found = _fields_of(found).get(name, found)
    return _fields_of(found)


def _fields_of(kind: inspect.Type) -> dict[str, inspect.Type]:
    if isinstance(kind, inspect.StructType):
        return {field.encode_name: field.type for field in kind.fields}
    return {}


def _words(kind: inspect.Type) -> str:
    match kind:
        case inspect.Metadata(type=inner, extra_json_schema=extra):
            return (extra or {}).get("description") or _words(inner)
        case inspect.UnionType(types=kinds):
            return " or ".join(map(_words, kinds))
        case inspect.LiteralType(values=values):
            return " or ".join(f'"{value}"' for value in values)
        case inspect.IntType(ge=least, le=most, lt=beyond):
            return f"an integer{_range(least, beyond - 1 if beyond else most)}"
        case inspect.StrType(min_length=1):
            return "text that is not empty"
        case inspect.ListType(min_length=least, max_length=most):
            return f"an array of {least} to {most} texts"
        case inspect.TupleType(item_types=kinds):
            return f"an array of {len(kinds)}: {', '.join(map(_words, kinds))}"
    return _WORDS[type(kind)]


def _range(least: int | None, most: int | None) -> str:
    if least is None:
        return ""
    return f" of {least} or more" if most is None else f" from {least} to {most}"
