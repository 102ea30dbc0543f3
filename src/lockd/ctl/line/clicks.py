"""Options and types in click, made of what `lockd.ctl.options` says of them."""

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import click

from lockd.ctl import options

CommandT = TypeVar("CommandT", bound=Callable[..., Any])


class Read(click.ParamType[Any]):
    """The type of a parameter with a reader.

    Args:
        read: returns the value for a word. Raises ValueError, which says what is wrong
            with the word.
    """

    name = "value"

    def __init__(self, read: Callable[[str], Any]) -> None:
        self._read = read

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Any:
        """Converts a word; a value stays as it is."""
        if not isinstance(value, str):
            return value
        try:
            return self._read(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


def offers(given: Iterable[options.Option]) -> Callable[[CommandT], CommandT]:
    """Returns a decorator that adds options to a command."""

    def add(command: CommandT) -> CommandT:
        for option in reversed([*given]):
            command = _click_option(option)(command)
        return command

    return add


def _click_option(option: options.Option) -> Callable[[CommandT], CommandT]:
    spelled = (*option.names, option.param)
    if option.is_flag:
        return click.option(*spelled, is_flag=True, help=option.help)
    shown: dict[str, Any] = {"metavar": option.value, "help": option.help}
    if option.default is not None:
        shown |= {"default": option.default, "show_default": True}
    return click.option(*spelled, type=Read(option.read), **shown)


as_json = offers([options.JSON])
in_lockspace = offers([options.LOCKSPACE])
of_holder = offers(options.OF_HOLDERS)
