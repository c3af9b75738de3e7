"""What a front end is given in a test, in place of a tunnel."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias, cast

import pytest
import trio
import trio.testing

from tunnel.errors import Code, RemoteStreamError
from tunnel.net.sockets import CHUNK_BYTES

if TYPE_CHECKING:
    from tunnel.addresses import Address
    from tunnel.net.virtual_connection import ResettableStream
    from tunnel.proto.frames import Target

    MemoryEnd: TypeAlias = trio.StapledStream[
        trio.testing.MemorySendStream, trio.testing.MemoryReceiveStream
    ]


def memory_pair(lockstep: bool = False) -> tuple[MemoryEnd, MemoryEnd]:
    """Give both ends of a connection; ``lockstep``: nothing is held between them."""
    if lockstep:  # its halves have ``close`` too
        return cast("tuple[MemoryEnd, MemoryEnd]", trio.testing.lockstep_stream_pair())
    return trio.testing.memory_stream_pair()


async def open_nothing(target: Target) -> ResettableStream:
    """Fail: this test must not come so far that a connection is opened."""
    pytest.fail(f"a connection to {target} was opened")


class Far:
    """A virtual TCP connection; what it carries comes out of ``far``."""

    def __init__(self, bound: Address | None = None, *, lockstep: bool = False) -> None:
        self._near, self.far = memory_pair(lockstep)
        self.bound = bound
        self.resets: list[Code] = []
        self.is_closed = False
        self._broken: Code | None = None

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        self._check()
        await self._near.send_all(data)

    def finish(self) -> None:
        self._check()
        self._near.send_stream.close()

    def carry(self, local: object, idle_s: float, *, ready: bool = False) -> None:
        return None

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        try:
            data = await self._near.receive_some(max_bytes)
        except trio.BrokenResourceError:
            data = b""
        if not data:
            self._check()
        return data

    async def aclose(self) -> None:
        self.is_closed = True
        await self._near.aclose()

    async def put(self, data: bytes | bytearray | memoryview) -> None:
        await self.send_all(data)

    async def wait_room(self) -> int:
        return CHUNK_BYTES

    async def receive_piece(self) -> bytes | bytearray:
        return await self.receive_some()

    def close(self) -> None:
        self.is_closed = True
        self._near.send_stream.close()
        self._near.receive_stream.close()

    def on_closed(self, call: object) -> None:
        pass

    def reset(self, code: Code) -> None:
        self.resets.append(code)

    async def break_with(self, code: Code) -> None:
        """Have the peer reset it."""
        self._broken = code
        await self.far.send_eof()

    def _check(self) -> None:
        if self._broken is not None:
            error = RemoteStreamError(self._broken, "scripted")
            raise trio.BrokenResourceError from error


async def read(stream: trio.abc.ReceiveStream, size: int) -> bytes:
    """Read so many bytes; the end must not come before."""
    data = b""
    while len(data) < size:
        piece = await stream.receive_some(size - len(data))
        assert piece, f"ended behind {data!r}"
        data += piece
    return data


async def read_to_end(stream: trio.abc.ReceiveStream) -> bytes:
    """Read all that comes."""
    data = b""
    while piece := await stream.receive_some():
        data += piece
    return data


class Head:
    """An HTTP head as a test looks at it.

    Args:
        text: with its blank line.
    """

    def __init__(self, text: bytes) -> None:
        assert text.endswith(b"\r\n\r\n")
        self.line, *rest = text.decode().rstrip().split("\r\n")
        self.fields = [
            (name.lower(), value)
            for name, _, value in (line.partition(": ") for line in rest)
        ]

    def all(self, name: str) -> list[str]:
        return [value for known, value in self.fields if known == name]

    @property
    def names(self) -> set[str]:
        return {name for name, _ in self.fields}

    @property
    def status(self) -> int:
        return int(self.line.split()[1])


async def read_head(stream: trio.abc.ReceiveStream) -> Head:
    """Read a head and nothing behind it."""
    data = b""
    while not data.endswith(b"\r\n\r\n"):
        data += await read(stream, 1)
    return Head(data)
