"""Standard input and output as one trio stream, whatever they are."""

from __future__ import annotations

import os
import stat
import sys

import trio

from tunnel.errors import StateError
from tunnel.platform.files import stream_of


class _ThreadedFile(trio.abc.SendStream, trio.abc.ReceiveStream):
    """A file that epoll does not take (a regular one, /dev/null), read in threads."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        try:
            return await trio.to_thread.run_sync(os.read, self._fd, max_bytes or 65_536)
        except OSError as error:
            raise StateError("cannot read stdin", error.strerror or "") from error

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[await trio.to_thread.run_sync(os.write, self._fd, rest) :]
        except OSError as error:  # a full disk
            raise StateError("cannot write to stdout", error.strerror or "") from error

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        await trio.lowlevel.checkpoint()


def _stream_of(fd: int) -> trio.abc.Stream | _ThreadedFile:
    own = os.dup(fd)
    mode = os.fstat(own).st_mode
    if stat.S_ISREG(mode) or (stat.S_ISCHR(mode) and not os.isatty(own)):
        return _ThreadedFile(own)
    return stream_of(own) or _ThreadedFile(own)


class _Output(trio.abc.SendStream):
    """Standard output; closing it is how its reader sees the end of file."""

    def __init__(self) -> None:
        self._below = _stream_of(sys.stdout.fileno())

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._below.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._below.wait_send_all_might_not_block()

    async def send_eof(self) -> None:
        """Close it, and also the descriptor that the process was started with."""
        await self._below.aclose()
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)

    async def aclose(self) -> None:
        await self._below.aclose()


def standard_stream() -> trio.abc.HalfCloseableStream:
    """Return stdin and stdout as one half-closeable stream; closing it closes both.

    ``send_eof`` closes stdout, so that its reader sees the end of file while the other
    direction goes on.
    """
    return trio.StapledStream(_Output(), _stream_of(sys.stdin.fileno()))
