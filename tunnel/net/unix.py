"""Listening on unix sockets: their files, and the one call for ports and paths.

The file has mode 0600 from its first moment. A file that a program left behind is
replaced, one that a program listens on never is. It is removed on close.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from tunnel.addresses import Address, UnixPath
from tunnel.errors import AddressError, Exit
from tunnel.net.listen import BACKLOG, PortListener, open_listener
from tunnel.platform.sockets import bind_private, open_unix_socket

if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence

    from tunnel.addresses import End

MODE: Final = 0o600
"""Only this user: whoever reaches the socket gets what is behind it."""


class UnixListener(PortListener):
    """A unix socket that is listened on; closing it removes its file."""

    def __init__(self, listener: socket.socket, path: str) -> None:
        super().__init__(listener)
        self._path = path
        self._inode = _inode(path)

    async def aclose(self) -> None:
        """Stop listening, and remove the file if it is still ours."""
        if self._inode is not None and _inode(self._path) == self._inode:
            with suppress(OSError):
                os.unlink(self._path)
        self._inode = None
        await super().aclose()


async def listen_at(where: End) -> tuple[Sequence[PortListener], End]:
    """Listen on an address or a unix path; return the listeners, and where they are.

    The caller closes the listeners; ``serve`` does.

    Raises:
        AddressError: taken, not of this machine, or not allowed; nothing is open.
    """
    if isinstance(where, UnixPath):
        return [open_unix_listener(where)], where
    listeners = await open_listener(where.host, where.port)
    port: int = listeners[0].socket.getsockname()[1]
    return listeners, Address(where.host, port)


def open_unix_listener(where: UnixPath) -> UnixListener:
    """Listen on a unix path; the caller closes the listener.

    Raises:
        AddressError: a program listens there, the path is something else, or this user
            may not make it.
    """
    path = where.path
    try:
        try:
            sock = _bind(path)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or not _is_left_behind(path):
                raise
            os.unlink(path)
            sock = _bind(path)
        return UnixListener(sock, path)
    except OSError as error:
        raise _address_error(where, error) from error


def _bind(path: str) -> socket.socket:
    sock = open_unix_socket()
    try:
        bind_private(sock, path, MODE)
        sock.listen(BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock


def _is_left_behind(path: str) -> bool:
    """Say whether this is a socket that nobody listens on any more."""
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
                Exit.ADDRESS_TAKEN,
            )
        case errno.ENOENT | errno.ENOTDIR:
            folder = os.path.dirname(where.path)
            return AddressError(
                f"cannot listen on {where}",
                f"there is no folder {folder}",
                f"mkdir -p {folder}",
            )
        case errno.EACCES | errno.EPERM | errno.EROFS:
            own_folder = os.environ.get("XDG_RUNTIME_DIR") or "/tmp"  # noqa: S108
            return AddressError(
                f"cannot listen on {where}",
                "this user may not make a file there",
                f"choose a folder of your own: unix:{own_folder}/app.sock",
                Exit.AUTH,
            )
        case _:
            return AddressError(f"cannot listen on {where}", error.strerror or "")
