"""Sockets: what one operating system does with them, or knows of them, and another not.

``TUNNEL_NET=portable`` has no epoll opened, so that Linux too carries each socket by
tasks of its own, as other systems do.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
import sys
from ipaddress import IPv6Address
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

if sys.platform != "win32":
    import fcntl
    import termios

if TYPE_CHECKING:
    from collections.abc import Sequence

Buffer = bytes | bytearray | memoryview

PORTABLE: Final = os.environ.get("TUNNEL_NET") == "portable"

# Options of TCP, and errors; an option is 0 where there is none ----------------------

TCP_NOTSENT_LOWAT: Final[int] = getattr(socket, "TCP_NOTSENT_LOWAT", 0)
"""How many bytes the kernel takes beyond those that are on their way."""
TCP_USER_TIMEOUT: Final = 18 if sys.platform == "linux" else 0
"""How many milliseconds bytes may wait to be acknowledged."""
TCP_RTO_MAX_MS: Final = 44 if sys.platform == "linux" else 0
"""How many milliseconds lie at most between two repeats or questions: Linux 6.15."""
KEEPALIVE_AFTER: Final[int] = getattr(
    socket, "TCP_KEEPIDLE", getattr(socket, "TCP_KEEPALIVE", 0)
)
"""Seconds of silence before the kernel asks for a sign of life."""
KEEPALIVE_EVERY: Final[int] = getattr(socket, "TCP_KEEPINTVL", 0)
"""Seconds between two such questions."""

EAI_ADDRFAMILY: Final[int] = getattr(socket, "EAI_ADDRFAMILY", socket.EAI_NONAME)
"""The resolver: the name has no address of the family that was asked for."""
ENONET: Final[int] = getattr(errno, "ENONET", errno.ENETDOWN)
"""The machine is not on the network."""

CONNECT_BEGUN: Final = frozenset((errno.EINPROGRESS, errno.EWOULDBLOCK))
"""What the first ``connect_ex`` of a socket that does not block may say."""
CONNECT_UNDER_WAY: Final = frozenset(
    (errno.EALREADY, errno.EINVAL if sys.platform == "win32" else errno.EALREADY)
)
"""What the next one says while there is no answer; EISCONN afterwards, but on Linux."""

# Bytes in and out, by descriptor -----------------------------------------------------


def _read(number: int, most: int, /) -> bytes:
    sock = socket.socket(fileno=number)
    try:
        return sock.recv(most)
    finally:
        sock.detach()


def _readv(number: int, buffers: Sequence[memoryview], /) -> int:
    sock = socket.socket(fileno=number)
    try:
        return sock.recv_into(buffers[0])
    finally:
        sock.detach()


def _write(number: int, data: Buffer, /) -> int:
    sock = socket.socket(fileno=number)
    try:
        return sock.send(data)
    finally:
        sock.detach()


def _writev(number: int, pieces: Sequence[Buffer], /) -> int:
    return _write(number, b"".join(pieces))


if sys.platform != "win32":
    read, readv, write, writev, close = os.read, os.readv, os.write, os.writev, os.close
    UNIX_FAMILY: Final[int] = socket.AF_UNIX
else:  # a socket is not a file
    read, readv, write, writev = _read, _readv, _write, _writev
    close = socket.close
    UNIX_FAMILY: Final[int] = 1

# Making them -------------------------------------------------------------------------


def open_socket(family: int, kind: int) -> socket.socket:
    """Return a new socket that does not block."""
    if sys.platform == "linux":
        return socket.socket(family, kind | socket.SOCK_NONBLOCK)
    else:
        sock = socket.socket(family, kind)
        sock.setblocking(False)
        return sock


def open_unix_socket(
    kind: socket.SocketKind = socket.SOCK_STREAM,
) -> socket.socket:
    """Return a new unix socket that does not block.

    Raises:
        OSError: EAFNOSUPPORT on Windows, whose Python has none.
    """
    if sys.platform == "win32":
        raise OSError(errno.EAFNOSUPPORT, "this system has no unix sockets for Python")
    else:
        return open_socket(socket.AF_UNIX, kind)


def bind_private(sock: socket.socket, path: str, mode: int) -> None:
    """Bind a unix socket to a path whose file has ``mode`` from its first moment on.

    Raises:
        OSError: as bind(2) does.
    """
    if sys.platform == "linux":
        os.fchmod(sock.fileno(), mode)  # the file gets the mode that the socket has now
        sock.bind(path)
    else:
        _bind_under_umask(sock, path, mode)


def _bind_under_umask(sock: socket.socket, path: str, mode: int) -> None:
    before = os.umask(0o777 & ~mode)
    try:
        sock.bind(path)
    finally:
        os.umask(before)


class Peer(NamedTuple):
    """The program at the other end of a unix socket, when it connected."""

    process: int
    user: int


def peer_process(sock: socket.socket) -> Peer | None:
    """Return who is at the other end of a unix socket; None where that is not known.

    Raises:
        OSError: the socket is not connected.
    """
    if sys.platform != "linux":
        return None
    else:
        raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        process, user, _group = _CREDENTIALS.unpack(raw)
        return Peer(process, user)


_CREDENTIALS: Final = struct.Struct("3i")
"""struct ucred of unix(7)."""


# Datagrams ---------------------------------------------------------------------------


def send_heard(sock: socket.socket, payload: bytes, to: tuple[str, int]) -> bool:
    """Send from a UDP socket that has many peers; return False if nobody listens there.

    Only Linux says so, of a peer on this machine. It is asked for this datagram alone:
    else one peer's error would fail what is sent to another.

    Raises:
        OSError: the datagram cannot be sent.
    """
    if sys.platform != "linux":
        sock.sendto(payload, to)
        return True
    else:
        level, option = _HEAR_ERRORS[sock.family]
        sock.setsockopt(level, option, 1)
        try:
            sock.sendto(payload, to)
            while sock.recvmsg(0, 0, socket.MSG_ERRQUEUE)[3][:2] != to:
                pass  # of another peer, in the meantime
        except BlockingIOError:  # there is no error
            return True
        finally:
            sock.setsockopt(level, option, 0)
        return False


_HEAR_ERRORS: Final = {
    socket.AF_INET: (socket.IPPROTO_IP, 11),  # IP_RECVERR of <linux/in.h>
    socket.AF_INET6: (socket.IPPROTO_IPV6, 25),  # IPV6_RECVERR of <linux/in6.h>
}

# What the kernel knows of a connection -----------------------------------------------

KNOWS_PEERS: Final = sys.platform == "linux"
"""``tcp_info`` tells of signs of life."""

_CLOSED: Final = 7
_ACKED_AND_RECEIVED: Final = struct.Struct("=120xQQ")


def is_closed(sock: socket.socket) -> bool:
    """Say whether the kernel has closed a TCP connection; False where it cannot say."""
    try:
        return tcp_info(sock, 1)[0] == _CLOSED
    except OSError:
        return False


def tcp_info(sock: socket.socket, size: int) -> bytes:
    """Return the first ``size`` bytes of Linux's ``struct tcp_info``.

    Raises:
        OSError: the socket is not TCP, or the system is not Linux.
    """
    if sys.platform == "linux":
        return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, size)
    else:
        raise OSError(errno.ENOPROTOOPT, os.strerror(errno.ENOPROTOOPT))


class Passed(NamedTuple):
    """How many bytes passed on a TCP connection."""

    acked: int
    """Of ours, by the other kernel; the SYN counts as one when it was dialled."""
    received: int


def passed(sock: socket.socket) -> Passed | None:
    """Return what has passed on a TCP connection; None where the kernel cannot say."""
    try:
        info = tcp_info(sock, _ACKED_AND_RECEIVED.size)
        return Passed(*_ACKED_AND_RECEIVED.unpack(info))
    except (OSError, struct.error):
        return None


def unsent_bytes(number: int) -> int:
    """Return how many bytes of a socket are not acknowledged; 0 if not known."""
    if sys.platform == "win32":
        return 0
    else:
        # TIOCOUTQ has the number of SIOCOUTQ; the module knows only the former.
        return _queued_bytes(number, termios.TIOCOUTQ)


def unread_bytes(number: int) -> int:
    """Return how many bytes of a socket wait to be read; 0 if not known."""
    if sys.platform == "win32":
        return 0
    else:
        return _queued_bytes(number, termios.FIONREAD)


if sys.platform != "win32":

    def _queued_bytes(number: int, which: int) -> int:
        try:
            answer = fcntl.ioctl(number, which, bytes(4))
        except OSError:
            return 0
        return int.from_bytes(answer, sys.byteorder)


# Epoll -------------------------------------------------------------------------------

READABLE: Final = 1  # EPOLLIN


class _Epoll(Protocol):
    """The part of ``select.epoll`` that is used."""

    def fileno(self) -> int: ...
    def register(self, fd: int, eventmask: int = ..., /) -> None: ...
    def unregister(self, fd: int, /) -> None: ...
    def poll(
        self, timeout: float | None = ..., maxevents: int = ..., /
    ) -> list[tuple[int, int]]: ...
    def close(self) -> None: ...


HAS_EPOLL: Final = sys.platform == "linux" and not PORTABLE


def open_epoll() -> _Epoll:
    """Return a new epoll, which the caller closes.

    Raises:
        OSError: no descriptor is free, or the system has none (``HAS_EPOLL``).
    """
    if sys.platform == "linux":
        return select.epoll()
    else:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))


# This machine's addresses ------------------------------------------------------------


def listed_ipv6() -> str:
    """Return a global IPv6 address of this machine; empty where none is listed."""
    try:
        with open("/proc/net/if_inet6", encoding="ascii") as listed:
            lines = listed.read().splitlines()
    except OSError:
        return ""
    scopes = {words[0]: words[3] for words in map(str.split, lines)}
    own = (digits for digits, scope in scopes.items() if scope == "00")
    return next((str(IPv6Address(bytes.fromhex(digits))) for digits in own), "")
