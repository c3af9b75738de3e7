"""Who looks at requests, and notes all that it is told."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pytest

from tunnel.addresses import Address

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tunnel.front.http.observer import Piece, ServeSeen

VISITOR: Final = Address("203.0.113.9", 4711)


class Seen:
    """Notes what it is told of one request."""

    def __init__(self, raw: bytes) -> None:
        self.raw = raw
        self.body = self.answer = self.up = self.down = b""
        self.heads: list[tuple[int, bytes]] = []
        self.connects = 0
        self.behind: list[bytes] = []
        self.failures: list[str] = []
        self.ends: list[bool] = []

    def connected(self) -> None:
        self.connects += 1

    def asked(self, pieces: Sequence[Piece]) -> None:
        self.body += b"".join(pieces)

    def answers(self, status: int, head: bytes) -> None:
        self.heads.append((status, head))

    def answered(self, pieces: Sequence[Piece]) -> None:
        self.answer += b"".join(pieces)

    def trailers(self, lines: Sequence[bytes]) -> None:
        self.behind += lines

    def passed(self, data: Piece, *, to_visitor: bool) -> None:
        if to_visitor:
            self.down += data
        else:
            self.up += data

    def failed(self, why: str) -> None:
        self.failures.append(why)

    def over(self, *, whole: bool) -> None:
        self.ends.append(whole)

    @property
    def status(self) -> int:
        ((status, head),) = self.heads
        assert head.startswith(b"HTTP/1.1 %d" % status)
        assert head.endswith(b"\r\n\r\n")
        return status


class Watching:
    """A watch that notes all."""

    def __init__(self) -> None:
        self.all: list[Seen] = []

    def begin(self, visitor: Address, raw: bytes) -> Seen:
        assert visitor == VISITOR
        self.all.append(Seen(raw))
        return self.all[-1]

    def known_as(self, name: str) -> None:
        pytest.fail("there is no entry here")

    def served_by(self, serve: ServeSeen) -> None:
        pytest.fail("nobody serves here")

    @property
    def one(self) -> Seen:
        (one,) = self.all
        return one
