"""Listening on a unix socket: who may connect, and what becomes of the file.

The file has mode 0600 from its first moment. One that a program left behind is
replaced, one that somebody listens on never is. It is removed when we close.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import trio

from tunnel.errors import AddressError
from tunnel.net.listen import BACKLOG, open_listener
from tunnel.net.sockets import FastSocket
from tunnel.platform.sockets import bind_private, open_unix_socket
from tunnel.proto.frames import Address, UnixPath

if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence

    from tunnel.proto.frames import End

MODE: Final = 0o600
"""Only this user: whoever gets through to the socket gets what is behind it."""


class UnixListener(trio.abc.Listener[FastSocket]):
    """A unix socket that is listened on; closing it removes its file."""

    def __init__(self, sock: socket.socket, path: str) -> None:
        self._listener = trio.SocketListener(trio.socket.from_stdlib_socket(sock))
        self._path = path
        self._inode = _inode(path)

    async def accept(self) -> FastSocket:
        """Wait for a program; who calls this owns the stream."""
        return FastSocket.of((await self._listener.accept()).socket)

    async def aclose(self) -> None:
        """Stop listening, and remove the file if it is still ours."""
        if self._inode is not None and _inode(self._path) == self._inode:
            with suppress(OSError):
                os.unlink(self._path)
        self._inode = None
        await self._listener.aclose()


async def listen_at(
    where: End, backlog: int = BACKLOG
) -> tuple[Sequence[trio.abc.Listener[FastSocket]], End]:
    """Listen on an address or a unix path; give the listeners, and where they are.

    The caller closes them; ``serve`` does.

    Raises:
        AddressError: taken, not of this machine, or not allowed; nothing is open.
    """
    if isinstance(where, UnixPath):
        return [open_unix_listener(where, backlog)], where
    listeners = await open_listener(where.host, where.port, backlog)
    port: int = listeners[0].socket.getsockname()[1]
    return listeners, Address(where.host, port)


def open_unix_listener(where: UnixPath, backlog: int = BACKLOG) -> UnixListener:
    """Listen on a unix path; the caller closes the listener.

    Raises:
        AddressError: somebody listens there, the path is something else, or this user
            may not make it.
    """
    try:
        sock = open_unix_socket()
    except OSError as error:
        raise _address_error(where, error) from error
    try:
        _bind(sock, where.path)
        sock.listen(backlog)
        return UnixListener(sock, where.path)
    except OSError as error:
        sock.close()
        raise _address_error(where, error) from error


def _bind(sock: socket.socket, path: str) -> None:
    try:
        bind_private(sock, path, MODE)
    except OSError as error:
        if error.errno != errno.EADDRINUSE or not _is_left_behind(path):
            raise
        os.unlink(path)
        bind_private(sock, path, MODE)


def _is_left_behind(path: str) -> bool:
    """Say whether this is a socket on which nobody listens any more."""
    if not stat.S_ISSOCK(os.lstat(path).st_mode):
        return False
    with open_unix_socket() as probe:
        return probe.connect_ex(path) == errno.ECONNREFUSED


def _inode(path: str) -> tuple[int, int] | None:
    try:
        found = os.lstat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _address_error(where: UnixPath, error: OSError) -> AddressError:
    match error.errno:
        case errno.EADDRINUSE:
            return AddressError(
                f"{where} is already in use",
                "another program listens there, or the file is no socket",
                f"choose another path, or look who has it: ss -lxp src {where.path}",
            )
        case errno.ENOENT | errno.ENOTDIR:
            folder = os.path.dirname(where.path)
            return AddressError(
                f"cannot listen on {where}",
                f"there is no folder {folder}",
                f"mkdir -p {folder}",
            )
        case errno.EACCES | errno.EPERM | errno.EROFS:
            return AddressError(
                f"cannot listen on {where}",
                "this user may not make a file there",
                f"choose a folder of your own: unix:{_own_folder()}/app.sock",
            )
        case _:
            return AddressError(f"cannot listen on {where}", error.strerror or "")


def _own_folder() -> str:
    return os.environ.get("XDG_RUNTIME_DIR") or "/tmp"  # noqa: S108 - a mere proposal
