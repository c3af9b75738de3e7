"""Bytes in and out of a connected socket, with as few turns of the scheduler as can be.

Under a ``trio.SocketStream``, which stays the owner: it is closed, finished and asked
for options as ever. trio's own ``receive_some`` begins with a system call that mostly
fails and, when it does not, takes a turn of the scheduler all the same; ``send_all``
takes a turn even for what the kernel swallows at once. Measured over a whole tunnel,
those turns cost as much as the copying.
"""

from __future__ import annotations

import os
import socket
from typing import Final, Protocol

import trio

Buffer = bytes | bytearray | memoryview

CHUNK_BYTES: Final = 131_056
"""One read of a local socket: two of the largest frames, which with their headers fill
eight TLS records."""
MAX_PIECES: Final = 64
"""Written as they are; more would be small ones, and cheaper joined."""


class QuickStream(Protocol):
    """What the inside of a link or a relay needs of a stream.

    Unlike trio's, ``send_all`` is no checkpoint when it has not to wait: whoever calls
    it in a loop must have one, as ``receive_some`` and ``receive_into`` always are.
    """

    async def receive_some(self, max_bytes: int) -> bytes | bytearray:
        """Wait for bytes and give them; empty at end of file."""
        ...

    async def receive_into(self, buffer: memoryview) -> int:
        """Wait for bytes and put them into ``buffer``; give how many, 0 at the end."""
        ...

    async def send_all(self, data: Buffer) -> None:
        """Return when the kernel has all of ``data``."""
        ...

    async def send_eof(self) -> None:
        """End our direction; no checkpoint either."""
        ...

    def write_now(self, *pieces: Buffer) -> int:
        """Give the kernel what it takes without a wait, and say how many bytes.

        0 also when it is broken: ``send_all`` will say so.
        """
        ...


def quick(stream: trio.abc.Stream) -> QuickSocket | _Other:
    """Give the quick way to a stream's bytes; its own methods if it is no socket."""
    if isinstance(stream, trio.SocketStream):
        return QuickSocket(stream)
    return _Other(stream)


class QuickSocket:
    """A ``QuickStream`` that can also be read and written outside of any task.

    Raises what a ``trio.SocketStream`` would.
    """

    __slots__ = ("_more", "_socket", "unsent")

    def __init__(self, stream: trio.SocketStream) -> None:
        self._socket = stream.socket
        self._more = False
        """The last read took all that it asked for: there is likely more."""
        self.unsent = memoryview(b"")
        """What a cancelled ``send_all`` did not give to the kernel."""

    async def receive_some(self, max_bytes: int) -> bytes:
        """See ``QuickStream``; the same for what follows."""
        # Not one helper more: each coroutine on the way is 400 bytes of a stream.
        if self._more:
            await trio.lowlevel.checkpoint()
        while True:
            if not self._more:
                await trio.lowlevel.wait_readable(self.number())
            try:
                data = os.read(self.number(), max_bytes)
            except BlockingIOError:
                self._more = False
            except OSError as error:
                raise _broken(error) from error
            else:
                self._more = len(data) == max_bytes
                return data

    async def receive_into(self, buffer: memoryview) -> int:
        """Wait for bytes and put them into ``buffer``."""
        if self._more:
            await trio.lowlevel.checkpoint()
        while True:
            if not self._more:
                await trio.lowlevel.wait_readable(self.number())
            try:
                size = os.readv(self.number(), (buffer,))
            except BlockingIOError:
                self._more = False
            except OSError as error:
                raise _broken(error) from error
            else:
                self._more = size == len(buffer)
                return size

    async def send_all(self, data: Buffer) -> None:
        """Return when the kernel has all."""
        self.unsent = memoryview(data)
        while True:
            try:
                sent = os.write(self.number(), self.unsent)
            except BlockingIOError:
                sent = 0
            except OSError as error:
                raise _broken(error) from error
            self.unsent = self.unsent[sent:]
            if not self.unsent:
                return
            await trio.lowlevel.wait_writable(self.number())

    async def send_eof(self) -> None:
        """End our direction."""
        self.finish()

    def finish(self) -> None:
        """Do as ``send_eof`` does."""
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except OSError as error:
            raise _broken(error) from error

    def read_now(self, max_bytes: int) -> bytes | None:
        """Give what is there; None if there is nothing yet, empty at end of file.

        Raises:
            trio.BrokenResourceError: as a stream would.
        """
        try:
            return os.read(self.number(), max_bytes)
        except BlockingIOError:
            return None
        except OSError as error:
            raise _broken(error) from error

    def write_now(self, *pieces: Buffer) -> int:
        """Give the kernel what it takes."""
        try:
            if len(pieces) == 1:
                return os.write(self._socket.fileno(), pieces[0])
            if len(pieces) > MAX_PIECES:
                return os.write(self._socket.fileno(), b"".join(pieces))
            return os.writev(self._socket.fileno(), pieces)
        except OSError:
            return 0

    def number(self) -> int:
        """Give the descriptor: asked for each time, for it may have been closed."""
        number = self._socket.fileno()
        if number < 0:
            raise trio.ClosedResourceError("this socket was already closed")
        return number


class _Other:
    """The same promises over any other stream: its own methods."""

    __slots__ = ("_stream", "send_all")

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self.send_all = stream.send_all

    async def send_eof(self) -> None:
        if isinstance(self._stream, trio.abc.HalfCloseableStream):
            await self._stream.send_eof()

    async def receive_some(self, max_bytes: int) -> bytes | bytearray:
        return await self._stream.receive_some(max_bytes)

    async def receive_into(self, buffer: memoryview) -> int:
        data = await self._stream.receive_some(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def write_now(self, *pieces: Buffer) -> int:
        return 0


def close_now(stream: trio.SocketStream) -> None:
    """Close a socket that no task waits for; harmless when it is closed.

    trio would have its epoll forget the descriptor first, which mostly has never heard
    of it: a failing system call for each connection.
    """
    number = stream.socket.detach()
    if number >= 0:
        os.close(number)


def _broken(error: OSError) -> trio.BrokenResourceError:
    return trio.BrokenResourceError(f"socket connection broken: {error}")
