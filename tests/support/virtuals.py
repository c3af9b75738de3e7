"""Doubles of a virtual TCP connection, for what only relays it."""

from __future__ import annotations

import trio

from tunnel.errors import Code, RemoteStreamError


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

    async def send_eof(self) -> None:
        await trio.lowlevel.checkpoint()
        self._check()
        self.eof = True
        self._note()

    def _check(self) -> None:
        if self.refuses is not None:
            raise trio.BrokenResourceError from RemoteStreamError(self.refuses, "said")

    async def aclose(self) -> None:
        self.closed = True
        await trio.lowlevel.checkpoint()

    bound = None

    async def put(self, data: bytes | bytearray | memoryview) -> None:
        await self.send_all(data)

    def on_closed(self, call: object) -> None:
        pass

    def reset(self, code: Code) -> None:
        self.resets.append(code)
        self.closed = True
