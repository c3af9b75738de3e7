"""A visitor and a target that speak HTTP/2, of ``h2`` and a memory stream."""

from __future__ import annotations

from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import trio
import trio.testing
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    ResponseReceived,
    StreamEnded,
    StreamReset,
    TrailersReceived,
)
from support.town import VISITOR, Town

from tunnel.front.http.names import by_streams, handle_visitor
from tunnel.front.http.server import Visit

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

_E = TypeVar("_E", bound=Event)
Fields = list[tuple[bytes, bytes]]
HANDS_OFF = {"validate_outbound_headers": False, "normalize_outbound_headers": False}


def request(
    host: str = "a.test", *fields: tuple[bytes, bytes], path: str = "/",
    method: str = "GET",
) -> Fields:  # fmt: skip
    return [
        (b":method", method.encode()), (b":scheme", b"http"),
        (b":authority", host.encode()), (b":path", path.encode()), *fields,
    ]  # fmt: skip


class Two:
    """One end of a connection that speaks HTTP/2."""

    def __init__(self, stream: trio.abc.Stream, *, client: bool) -> None:
        self.stream = stream
        self.conn = H2Connection(H2Configuration(client, None, **HANDS_OFF))  # type: ignore[arg-type]
        self.events: list[Event] = []
        self.acknowledges = True

    async def begin(self) -> None:
        self.conn.initiate_connection()
        await self.flush()

    async def flush(self) -> None:
        if data := self.conn.data_to_send():
            await self.stream.send_all(data)

    async def ask(
        self, fields: Fields, body: bytes | None = None, *, end: bool = True
    ) -> int:
        number = self.conn.get_next_available_stream_id()
        self.conn.send_headers(number, fields, end_stream=end and body is None)
        if body is not None:
            self.conn.send_data(number, body, end_stream=end)
        await self.flush()
        return number

    async def until(self, true: Callable[[], bool]) -> None:
        while not true():
            data = await self.stream.receive_some()
            if not data:
                raise EOFError(self.events)
            for event in self.conn.receive_data(data):
                self.events.append(event)
                if isinstance(event, DataReceived) and self.acknowledges:
                    size = event.flow_controlled_length or 0
                    self.conn.acknowledge_received_data(size, event.stream_id or 0)
            await self.flush()

    def of(self, number: int, kind: type[_E]) -> list[_E]:
        """Return the events of a stream."""
        found = (one for one in self.events if isinstance(one, kind))
        return [one for one in found if getattr(one, "stream_id", 0) == number]

    def size_of(self, number: int) -> int:
        """Return how much of a body has come."""
        return sum(len(one.data or b"") for one in self.of(number, DataReceived))

    async def answer(self, number: int) -> tuple[Fields, bytes, Fields]:
        """Wait for a whole answer: head, body, trailers."""
        await self.until(lambda: bool(self.of(number, StreamEnded)))
        [head] = self.of(number, ResponseReceived)
        fields: Fields = []
        for last in self.of(number, TrailersReceived):
            fields = list(last.headers or ())
        body = b"".join(one.data or b"" for one in self.of(number, DataReceived))
        return list(head.headers or ()), body, fields

    async def status(self, number: int) -> int:
        head, _, _ = await self.answer(number)
        return int(dict(head)[b":status"])

    async def reset_of(self, number: int) -> int:
        await self.until(lambda: bool(self.of(number, StreamReset)))
        return int(self.of(number, StreamReset)[0].error_code or 0)

    async def goodbye(self) -> int:
        """Wait for GOAWAY, and return its code."""

        def ends() -> list[ConnectionTerminated]:
            return [one for one in self.events if isinstance(one, ConnectionTerminated)]

        await self.until(lambda: bool(ends()))
        return int(ends()[0].error_code or 0)


class TwoTown(Town):
    """A visitor that speaks HTTP/2, the front end, and a target for each name."""

    two: Two
    block: Callable[[], None]
    """Have nothing more that the front end sends taken."""


@asynccontextmanager
async def two_town(*, begin: bool = True) -> AsyncIterator[TwoTown]:
    visitor, ours = trio.testing.memory_stream_pair()
    made = TwoTown(visitor)
    made.two = Two(visitor, client=True)

    def block() -> None:
        ours.send_stream.send_all_hook = trio.sleep_forever

    made.block = block
    serve = partial(handle_visitor, route=made.route)
    visit = Visit(ours, VISITOR, http_2=by_streams(serve))
    with trio.fail_after(500):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve, visit)
            if begin:
                await made.two.begin()
            yield made
            nursery.cancel_scope.cancel()
