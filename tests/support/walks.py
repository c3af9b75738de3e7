"""Which functions a piece of data passes, as a run of the program finds them."""

from __future__ import annotations

import sys
from collections import deque
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

import tunnel
from tunnel.access.join import JoinLine, Secret

if TYPE_CHECKING:
    from types import FrameType

_SOURCE: Final = f"{Path(tunnel.__file__).parent}/"
_DEPTH: Final = 4
"""Records within records: an event, its list, a frame, its address."""


class Walk:
    """Notes, inside ``with``, each function of tunnel that has what is followed.

    That is one which is given a marker, finds it, or gets it returned: as it is, within
    other bytes or text, or in a list or record. What an object keeps is not looked at
    (else its every method would count), and a join line that is only passed on neither.

    Args:
        markers: bytes and texts, no others, that are the followed thing.
        until: a function whose return ends it.
        stacks: with these, only what is on the stack when one of them is called: the
            calls that lead to it from the first one that has a marker.
    """

    def __init__(
        self, *markers: bytes | str, until: str = "", stacks: tuple[str, ...] = ()
    ) -> None:
        self._markers = markers
        self._until = until
        self._stacks = stacks
        self._calls = 0
        self._number: dict[FrameType, int] = {}
        self._over = False
        self._ways: list[dict[str, int]] = [{}]

    def __enter__(self) -> Self:
        sys.setprofile(self._profile)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)
        self._number.clear()

    def ways(self) -> list[list[str]]:
        """Return the functions in the order of their calls, this end's and the other's.

        The other's begin where a link reads what a transport has written.
        """
        return [sorted(way, key=way.__getitem__) for way in self._ways]

    def _profile(self, frame: FrameType, event: str, result: object) -> None:
        if self._over or not _is_ours(frame):
            return
        if event == "call":
            self._calls += 1
            self._number[frame] = self._calls
            if frame.f_code.co_name == "_read_loop" and any(
                name.endswith("Transport.write") for name in self._ways[-1]
            ):
                self._ways.append({})
        if self._stacks:
            if event == "call" and frame.f_code.co_qualname in self._stacks:
                self._note_stack(frame)
            return
        if event in ("call", "return") and self._has(frame):
            self._note(frame)
        if event == "return" and self._is_in(result):
            self._note(frame)
            if frame.f_back is not None and _is_ours(frame.f_back):
                self._note(frame.f_back)
        if event == "return" and frame.f_code.co_qualname == self._until:
            self._over = True

    def _note_stack(self, frame: FrameType) -> None:
        stack = []
        above: FrameType | None = frame
        while above is not None:
            stack.append(above)
            above = above.f_back
        while stack and not (_is_ours(stack[-1]) and self._has(stack[-1])):
            stack.pop()
        for one in filter(_is_ours, stack):
            self._note(one)

    def _note(self, frame: FrameType) -> None:
        code = frame.f_code
        name = f"{code.co_filename.removeprefix(_SOURCE)} {code.co_qualname}"
        self._ways[-1].setdefault(name, self._number.get(frame, 0))

    def _has(self, frame: FrameType) -> bool:
        return any(
            self._is_in(value)
            for name, value in frame.f_locals.items()
            if name not in ("self", "cls")
        )

    def _is_in(self, value: object, depth: int = _DEPTH) -> bool:
        match value:
            case bytes() | bytearray() | memoryview():
                whole = bytes(value)
                return any(isinstance(m, bytes) and m in whole for m in self._markers)
            case str():
                return any(isinstance(m, str) and m in value for m in self._markers)
            case Secret():
                return self._is_in(value.reveal())
            case JoinLine() | type():
                return False
            case list() | tuple() | deque():
                parts = list(value)
            case _ if is_dataclass(value) and type(value).__module__.startswith("tu"):
                parts = [getattr(value, one.name, None) for one in fields(value)]
            case _:
                return False
        return depth > 0 and any(self._is_in(part, depth - 1) for part in parts)


def _is_ours(frame: FrameType) -> bool:
    return frame.f_code.co_filename.startswith(_SOURCE)
