"""Doubles of a virtual TCP connection, for what only relays it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

import trio

from tunnel.errors import Code, RemoteStreamError
from tunnel.net.sockets import CHUNK_BYTES

if TYPE_CHECKING:
    from tunnel.addresses import Address
    from tunnel.net.virtual_connection import LocalEnd

Take = Callable[[], bytes | bytearray | None]


class ScriptedVirtual:
    """A virtual TCP connection whose far end is the test."""

    def __init__(self) -> None:
        self.say, self._heard = trio.open_memory_channel[bytes | Code](100)
        self.sent = bytearray()
        self.eof = False
        self.closed = False
        self.resets: list[Code] = []
        self.refuses: Code | None = None
        self.activity = trio.Event()

    def _note(self) -> None:
        self.activity.set()
        self.activity = trio.Event()

    async def until_sent(self, size: int) -> None:
        while len(self.sent) < size:
            await self.activity.wait()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        item = await self._heard.receive()
        if isinstance(item, Code):
            raise trio.BrokenResourceError from RemoteStreamError(item, "scripted")
        return item

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await trio.lowlevel.checkpoint()
        self._check()
        self.sent += data
        self._note()

    def finish(self) -> None:
        self._check()
        self.eof = True
        self._note()

    def carry(
        self, local: LocalEnd, idle_s: float, *, ready: bool = False
    ) -> Take | None:
        return None

    def _check(self) -> None:
        if self.refuses is not None:
            raise trio.BrokenResourceError from RemoteStreamError(self.refuses, "said")

    async def aclose(self) -> None:
        self.closed = True
        await trio.lowlevel.checkpoint()

    bound: Address | None = None

    async def put(self, data: bytes | bytearray | memoryview) -> None:
        await self.send_all(data)

    async def wait_room(self) -> int:
        return CHUNK_BYTES

    async def receive_piece(self) -> bytes | bytearray:
        return await self.receive_some()

    def close(self) -> None:
        self.closed = True

    def on_closed(self, call: Callable[[Code], None] | None) -> None:
        pass

    def reset(self, code: Code) -> None:
        self.resets.append(code)
        self.closed = True


class ReadingVirtual(ScriptedVirtual):
    """One that carries sockets itself, as a session does, with tasks of the test."""

    def __init__(self, nursery: trio.Nursery) -> None:
        super().__init__()
        self._nursery = nursery
        self._call: Callable[[Code], None] | None = None
        self._waiting: deque[bytes | Code] = deque()
        self._carries = False
        self._lent = False

    def on_closed(self, call: Callable[[Code], None] | None) -> None:
        self._call = call

    def carry(
        self, local: LocalEnd, idle_s: float, *, ready: bool = False
    ) -> Take | None:
        self._carries = True
        self._nursery.start_soon(self._read, local)
        self._nursery.start_soon(self._write, local)
        return self._take

    def _take(self) -> bytes | None:
        self._lent = False
        if not self._waiting:
            return None
        if isinstance(first := self._waiting[0], Code):
            raise trio.BrokenResourceError from RemoteStreamError(first, "scripted")
        self._lent = True
        self._waiting.popleft()
        return first

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        if not self._carries:
            return await super().receive_some()
        while (piece := self._take()) is None:
            await self.activity.wait()
        return piece

    async def _write(self, local: LocalEnd) -> None:
        async for item in self._heard:
            piece = item
            waits = self._waiting or self._lent
            if item and isinstance(piece, bytes) and not waits:
                piece = piece[local.write(piece) :]
            if not item and not waits:
                local.ended()
            elif piece or not item:
                self._waiting.append(piece)
                self._note()
                local.news()

    async def _read(self, local: LocalEnd) -> None:
        number = local.number()
        while True:
            if self.refuses is not None:
                if self._call is not None:
                    self._call(self.refuses)
                return
            data = local.read(CHUNK_BYTES)
            if data is not None and not data:
                return
            if data:
                self.sent += data
                self._note()
            try:
                await trio.lowlevel.wait_readable(number)
            except trio.ClosedResourceError:
                return
