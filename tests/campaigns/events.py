"""One step of the comparison with virtlockd, and what both made of it."""

from dataclasses import dataclass, field
from typing import Final

from campaigns.twins import Files, Line, Owner, Pair
from support import libvirt_client as lc

NAME_OF: Final = {
    lc.NEW: "NEW",
    lc.CREATE_RESOURCE: "CREATE_RESOURCE",
    lc.DELETE_RESOURCE: "DELETE_RESOURCE",
    lc.ACQUIRE: "ACQUIRE",
    lc.RELEASE: "RELEASE",
    lc.CREATE_LOCKSPACE: "CREATE_LOCKSPACE",
}


@dataclass(frozen=True)
class Hold:
    """What a call got, according to both."""

    owner: Owner
    flags: int


@dataclass
class Event:
    """One step, for the table of what is allowed."""

    what: str
    line: Line | None = None
    procedure: int = 0
    space: bytes = b""
    name: bytes = b""
    flags: int = 0
    owner: Owner | None = None
    answers: Pair = ("", "")
    files: tuple[Files, Files] = field(default_factory=lambda: ({}, {}))
    is_healed: bool = False
    is_undone: bool = False
    is_held_otherwise: bool = False

    def is_same(self) -> bool:
        answers_are = self.is_healed or self.answers[0] == self.answers[1]
        return answers_are and self.files[0] == self.files[1]

    def __str__(self) -> str:
        said = [self.what]
        if self.procedure == lc.REGISTER:
            said.append(f"for {self.owner}")
        if self.procedure in (lc.ACQUIRE, lc.RELEASE) or self.name:
            said.append(f"{_short(self.space)} {_short(self.name)} flags {self.flags}")
        elif self.space:
            said.append(_short(self.space))
        if self.line is not None:
            said.append(f"of {self.line.persona} for {self.line.owner}")
        if self.answers[0] != self.answers[1]:
            said.append(f"answers {self.answers[0]!r} | {self.answers[1]!r}")
        first, second = self.files
        said.extend(
            f"{path[:40]!r}: {first.get(path)} | {second.get(path)}"
            for path in sorted(first.keys() | second.keys())
            if first.get(path) != second.get(path)
        )
        return ", ".join(said)


def _short(text: bytes) -> str:
    return repr(text if len(text) < 80 else text[:20] + b"..%d" % len(text))[1:]
