"""Names of `typing` for modules that must load fast.

To load `typing` takes a third of the time that Python takes to start. A type checker
finds the names of `typing` here. At run time they are stand-ins: annotations can be
evaluated with them, and nothing reads the result.
"""

import sys
from collections import namedtuple
from collections.abc import Callable, Iterable

TYPE_CHECKING = False

if TYPE_CHECKING:
    from typing import Any as Any
    from typing import ClassVar as ClassVar
    from typing import Final as Final
    from typing import NamedTuple as NamedTuple
    from typing import NoReturn as NoReturn
    from typing import Protocol as Protocol
    from typing import Self as Self

    from mypy_extensions import mypyc_attr as mypyc_attr
else:

    class _Hint:
        """Stands for a name in annotations, as in `Final[int]` or `Any | None`."""

        def __init__(self, name: str) -> None:
            self._name = name

        def __repr__(self) -> str:
            return self._name

        def __getitem__(self, _: object) -> "_Hint":
            return self

        def __or__(self, _: object) -> "_Hint":
            return self

        __ror__ = __or__

    Any = _Hint("Any")
    ClassVar = _Hint("ClassVar")
    Final = _Hint("Final")
    NoReturn = _Hint("NoReturn")
    Self = _Hint("Self")

    def mypyc_attr(**_: object) -> Callable[[type], type]:
        """Returns a decorator that only mypyc heeds.

        `acyclic` promises that no object of the class is part of a circle of
        references. The garbage collector passes it over then, which saves 16 bytes.
        """
        return lambda kind: kind

    class Protocol:
        """Stands for the base of classes that only describe others."""

    def NamedTuple(name: str, fields: Iterable[tuple[str, object]]) -> type:  # noqa: N802
        """Returns a base class, as `typing.NamedTuple` does when it is called."""
        types = dict(fields)
        module = sys._getframe(1).f_globals["__name__"]
        found = namedtuple(name, types, module=module)
        found.__annotations__ = types
        return found
