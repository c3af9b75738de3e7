"""A visitor of names, the front end, and a target for each name."""

from __future__ import annotations

from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

import trio
import trio.testing
from support import far

from tunnel.addresses import Address
from tunnel.errors import Code, RemoteStreamError, StreamError
from tunnel.front.http.names import (
    Absent,
    Destination,
    handle_visitor,
)
from tunnel.front.http.server import Visit
from tunnel.front.http.service import handle_service
from tunnel.front.http.service_rules import ServiceRules

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tunnel.front.http.guard import Guard

VISITOR = Address("203.0.113.9", 4711)
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Far(far.Far):
    """A virtual TCP connection that can break, as when the far side says why."""

    def __init__(self) -> None:
        super().__init__()
        self.broken: Code | None = None
        self.closed = False

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        if self.broken is not None:
            raise trio.BrokenResourceError from RemoteStreamError(self.broken, "no")
        await super().send_all(data)

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        data = await super().receive_some(max_bytes)
        if not data and self.broken is not None:
            raise trio.BrokenResourceError from RemoteStreamError(self.broken, "no")
        return data

    async def aclose(self) -> None:
        self.closed = True
        await super().aclose()

    def give_way(self, code: Code) -> None:
        self.broken = code
        self.far.send_stream.close()


class Town:
    """A visitor, the front end, and a target for each host name."""

    def __init__(self, visitor: trio.abc.HalfCloseableStream) -> None:
        self.visitor = visitor
        self.names: dict[str, Absent | Code] = {"a.test": Code.NORMAL}
        self.asked: list[str] = []
        self.believed = [VISITOR]
        """Who the visitors may be."""
        self._put, self._opened = trio.open_memory_channel[Far](1_000)

    def route(self, host: str) -> Destination | Absent:
        self.asked.append(host)
        found = self.names.get(host, Absent.UNKNOWN)
        if isinstance(found, Absent):
            return found

        async def open_one(visitor: Address) -> Far:
            await trio.lowlevel.checkpoint()
            assert visitor in self.believed
            if found in (Code.RESOURCE, Code.LINK_LOST):
                raise StreamError(found, "no room")
            far = Far()
            if found is not Code.NORMAL:
                far.give_way(found)
            self._put.send_nowait(far)
            return far

        return Destination(host, open_one)

    async def say(self, data: bytes) -> None:
        await self.visitor.send_all(data)

    async def opened(self) -> Far:
        return await self._opened.receive()

    async def target(self, *, again: bool = False) -> tuple[Far, bytes]:
        """Wait for the next request at a target; give it and what it has read.

        Args:
            again: it comes on the connection of the last one.
        """
        if not again:
            self.last = await self.opened()
        return self.last, await until(self.last.far, b"\r\n\r\n")

    async def hear(self, end: bytes = b"\r\n\r\n") -> bytes:
        return await until(self.visitor, end)

    async def rest(self) -> bytes:
        data = b""
        try:
            while piece := await self.visitor.receive_some():
                data += piece
        except trio.BrokenResourceError:
            data += b"<reset>"
        return data


async def until(stream: trio.abc.ReceiveStream, end: bytes) -> bytes:
    data = b""
    while end not in data:
        piece = await stream.receive_some()
        assert piece, data
        data += piece
    return data


@asynccontextmanager
async def town(
    *, guard: Guard | None = None, secure: bool = False, early: bytes = b""
) -> AsyncIterator[Town]:
    visitor, ours = trio.testing.memory_stream_pair()
    made = Town(visitor)
    visit = Visit(ours, VISITOR, secure=secure, early=early)
    with trio.fail_after(500):
        async with trio.open_nursery() as nursery:
            if guard is None:
                nursery.start_soon(handle_visitor, visit, made.route)
            else:
                there = made.route("a.test")
                assert not isinstance(there, Absent)
                nursery.start_soon(
                    partial(
                        handle_service,
                        visit,
                        ServiceRules(guard),
                        there.open,
                        believe_headers=True,
                    )
                )
            yield made
            nursery.cancel_scope.cancel()


def status(answer: bytes) -> int:
    return int(answer.split()[1])


def get(host: str, *lines: str, path: str = "/", method: str = "GET") -> bytes:
    head = [f"{method} {path} HTTP/1.1", f"Host: {host}", *lines, "", ""]
    return "\r\n".join(head).encode("latin-1")
