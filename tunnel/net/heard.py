"""A socket whose bytes somebody hears while they pass, and that is otherwise as any."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from tunnel.net.sockets import FastSocket

if TYPE_CHECKING:
    import socket

    from tunnel.platform.sockets import Buffer


class Ear(Protocol):
    """Hears a socket. It must not wait or raise; bytes are lent for the call."""

    def wrote(self, data: Buffer) -> None:
        """Hear what the kernel was given, or will be next."""

    def read(self, data: bytes) -> None:
        """Hear what has come; nothing: the end of file."""

    def broke(self) -> None:
        """Hear that the connection is broken; what came before may still be read."""

    def closed(self) -> None:
        """Hear that it is closed."""


class HeardSocket(FastSocket):
    """A ``FastSocket`` that is heard, from the moment on when it has an ear."""

    __slots__ = ("_told_ahead", "ear")

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock)
        self.ear: Ear | None = None
        self._told_ahead = 0
        """Bytes that a cancelled ``put`` has told and not written."""

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Do as a ``FastSocket`` does."""
        data = await super().receive_some(max_bytes)
        if self.ear is not None:
            self.ear.read(data)
        return data

    def read_now(self, max_bytes: int) -> bytes | None:
        """Do as a ``FastSocket`` does."""
        data = super().read_now(max_bytes)
        if self.ear is not None and data is not None:
            self.ear.read(data)
        return data

    async def put(self, data: Buffer) -> None:
        """Do as a ``FastSocket`` does; it is told first, for the answer may come."""
        if self.ear is not None and len(data) > self._told_ahead:
            self.ear.wrote(memoryview(data)[self._told_ahead :])
        try:
            await super().put(data)
        finally:
            self._told_ahead = len(self.unsent)

    def write_now(self, *pieces: Buffer) -> int:
        """Do as a ``FastSocket`` does."""
        size = rest = super().write_now(*pieces)
        if self.ear is not None:
            for piece in pieces:
                if rest <= 0:
                    break
                self.ear.wrote(piece if len(piece) <= rest else piece[:rest])
                rest -= len(piece)
        return size

    def _broken(self, error: OSError) -> Exception:
        if self.ear is not None:
            self.ear.broke()
        return super()._broken(error)

    def _close(self) -> None:
        ear, self.ear = self.ear, None
        super()._close()
        if ear is not None:
            ear.closed()
