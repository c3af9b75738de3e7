"""What all front ends share: listening, and a bounded accept loop.

Each visitor is one task. Whatever goes wrong in it ends that task only.

    open_listener, PortListener         TCP ports
    open_unix_listener, UnixListener    unix sockets, and their files
    serve, _Entrance                    accept, bound, count, refuse, supervise
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import stat
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import trio

from tunnel.access.visitors import VISITORS
from tunnel.addresses import Address, UnixPath, bare_ip
from tunnel.log import log_event
from tunnel.net.bind import bind_all, unix_error
from tunnel.net.descriptors import DESCRIPTORS, Arrivals, Told
from tunnel.net.in_order import InOrder, begun
from tunnel.net.proxy_protocol import MAX_HEADER_BYTES, vouched_peer
from tunnel.net.relay import reset_socket
from tunnel.net.sockets import FastSocket, tune_local
from tunnel.platform.channels import share_port
from tunnel.platform.sockets import ENONET, bind_private, open_unix_socket

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tunnel.addresses import End

LOG: Final = logging.getLogger("tunnel.front")
BACKLOG: Final = 1024
UNIX_MODE: Final = 0o600
"""Only this user: whoever reaches the socket gets what is behind it."""
MAX_VISITORS: Final = 4096
"""Visitors of one front end at once: a quarter of the virtual TCP connections of a
session."""
ENTRY_SHARE: Final = 1 / 2
"""Part of the process's descriptors for the visitors of one front end."""
ADDRESS_SHARE: Final = 1 / 4
"""Part of the process's descriptors for the visitors of one address, by default."""
MAX_PER_ADDRESS: Final = 4_096
"""Visitors of one address, however many descriptors there are."""
ACCEPTS_A_TURN: Final = 16
"""Connections taken from the kernel between two turns of the scheduler."""
ACCEPT_PAUSE_S: Final = 0.1
"""Without a free descriptor accept fails at once, for ever: try again after this."""
_GONE: Final = frozenset(
    # Linux reports errors of the *new* connection from accept: the next may be well.
    (
        errno.ECONNABORTED,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.ENETDOWN,
        errno.ENETUNREACH,
        ENONET,
        errno.ENOPROTOOPT,
        errno.EOPNOTSUPP,
        errno.EPERM,
        errno.EPROTO,
    )
)


class PortListener(trio.abc.Listener[FastSocket]):
    """A TCP port that is listened on; owns its socket, which does not block.

    What waits is accepted at once: trio's own listener takes a turn of the scheduler
    for each, 3 to 4 % of what a short connection costs.
    """

    def __init__(self, listener: socket.socket) -> None:
        tune_local(listener)  # Linux: accepted sockets inherit the options
        self._plain = listener
        self.socket = trio.socket.from_stdlib_socket(listener)
        """To ask for its address, and to close it from outside of any task."""
        self._in_a_row = 0

    async def accept(self) -> FastSocket:
        """Return the stream of the next visitor; the caller closes it.

        A checkpoint only when nobody waits, and after ``ACCEPTS_A_TURN`` visitors.

        Raises:
            trio.ClosedResourceError: the listener was closed, maybe meanwhile.
            OSError: no descriptor is free, or the like. A visitor that has gone again
                is no error.
        """
        while True:
            if self._in_a_row >= ACCEPTS_A_TURN:
                self._in_a_row = 0
                await trio.lowlevel.checkpoint()
            if self._plain.fileno() < 0:
                raise trio.ClosedResourceError
            self._in_a_row += 1
            try:
                visitor, _address = self._plain.accept()
            except BlockingIOError:
                self._in_a_row = 0
                await trio.lowlevel.wait_readable(self._plain)
            except OSError as error:
                if error.errno not in _GONE:
                    raise
            else:
                return FastSocket(visitor)

    def again(self) -> PortListener:
        """Return another listener on the same socket, and close this one.

        Who waits to be accepted waits for the other; without a checkpoint.
        """
        other = PortListener(self._plain.dup())
        self.socket.close()
        return other

    def pending(self) -> Iterator[FastSocket]:
        """Yield who has come and was not accepted yet, without a checkpoint."""
        with suppress(OSError):  # nobody is left, or no descriptor
            while True:
                yield FastSocket(self._plain.accept()[0])

    def copy(self) -> socket.socket:
        """Return a copy of the socket, which is the caller's; this one goes on."""
        return self._plain.dup()

    def handed_over(self) -> socket.socket:
        """Return the socket, which is the caller's from now on, and accept no more."""
        sock = self._plain.dup()
        self.socket.close()
        return sock

    def close(self) -> None:
        """Stop listening, without a checkpoint."""
        self.socket.close()

    async def aclose(self) -> None:
        """Stop listening."""
        self.close()
        await trio.lowlevel.checkpoint()


async def open_listener(
    host: str, port: int, backlog: int = BACKLOG, *, shared: bool = False
) -> list[PortListener]:
    """Listen on every address of ``host``, on the same port; 0 takes a free one.

    The caller closes the listeners; ``serve`` does. ``shared``: others of this user
    that say so too may listen there, and the kernel deals out who comes in.

    Raises:
        AddressError: taken, not of this machine, or not allowed; nothing is open.
    """
    prepare = _share_with_others if shared else _share_port
    opened = await bind_all(host, port, socket.SOCK_STREAM, prepare, backlog)
    return [PortListener(sock) for sock in opened]


def _share_port(sock: socket.socket) -> None:
    """Allow to bind a port while connections of its last owner are dying."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)


def _share_with_others(sock: socket.socket) -> None:
    _share_port(sock)
    share_port(sock)


class UnixListener(PortListener):
    """A unix socket that is listened on; closing it removes its file.

    The file has mode 0600 from its first moment.
    """

    def __init__(self, listener: socket.socket, path: str) -> None:
        super().__init__(listener)
        self._path = path
        self._inode = _inode(path)

    def again(self) -> UnixListener:
        """As of a port; the file stays."""
        other = UnixListener(self._plain.dup(), self._path)
        self._inode = None
        self.socket.close()
        return other

    def close(self) -> None:
        """Stop listening, and remove the file if it is still ours."""
        if self._inode is not None and _inode(self._path) == self._inode:
            with suppress(OSError):
                os.unlink(self._path)
        self._inode = None
        super().close()


def open_unix_listener(where: UnixPath) -> UnixListener:
    """Listen on a unix path; the caller closes the listener.

    A file that a program left behind is replaced, one that a program listens on never.

    Raises:
        AddressError: a program listens there, the path is something else, or this user
            may not make it.
    """
    path = where.path
    try:
        try:
            sock = _bind_unix(path)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or not _is_left_behind(path):
                raise
            os.unlink(path)
            sock = _bind_unix(path)
        return UnixListener(sock, path)
    except OSError as error:
        raise unix_error(where, error) from error


def _bind_unix(path: str) -> socket.socket:
    sock = open_unix_socket()
    try:
        bind_private(sock, path, UNIX_MODE)
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


def peer_of(stream: trio.abc.AsyncResource) -> Address | None:
    """Return the address at the other end; None once the kernel has forgotten it.

    An IP address comes without zone and IPv4 mapping; what is none is ``local``.
    """
    if not isinstance(stream, FastSocket):
        return Address("local", 0)
    try:
        name: tuple[str, int] | tuple[str, int, int, int] | str
        name = stream.socket.getpeername()
    except OSError:
        return None
    if isinstance(name, str):  # a unix socket
        return Address("local", 0)
    if len(name) == 2:  # IPv4, as the kernel writes it
        return Address(*name)
    return Address(bare_ip(name[0]), name[1])


Then = Coroutine[object, object, None] | None
"""What serves a stream that turned out to be no visitor, and takes no place of one."""
Handle = Callable[[trio.abc.HalfCloseableStream, Address], Awaitable[Then]]
"""Begin to serve a visitor, and return what serves it to the end. Owns the stream."""


async def serve(
    listeners: Sequence[trio.abc.Listener[trio.abc.HalfCloseableStream]],
    handle: Handle,
    *,
    max_visitors: int = MAX_VISITORS,
    links: bool = False,
) -> None:
    """Accept until cancelled, or until the listeners were closed and all have left.

    Closes the listeners. What ``handle`` raises is logged and ends that visitor only.
    Cancellation resets every visitor.

    A visitor that has said nothing may be reset at any time, to make room: its stream
    then breaks for ``handle``. A visitor whose address has its share is refused. One
    that comes through a trusted proxy (``access.visitors``) has the address that the
    PROXY header names.

    Args:
        listeners: those of one front end.
        handle: called with the stream and the address of each visitor that is still
            there, in the order in which they came. It owns the stream and must not
            wait; what it returns is awaited in a task of its own.
        max_visitors: at once, unless one front end's share of descriptors is less. Then
            the silent go first; if nobody is silent, newcomers wait until a visitor has
            left, all but the first in the kernel's backlog.
        links: these are links and no visitors. What is kept back is for them: they have
            no share, are never reset and never refused here.
    """
    try:
        async with trio.open_nursery() as nursery:
            entrance = _Entrance(handle, max_visitors, nursery, links=links)
            for listener in listeners:
                nursery.start_soon(entrance.accept_from, listener)
    finally:
        # Shielded: cancellation would end this at the first, and leave the others open.
        with trio.CancelScope(shield=True):
            for listener in listeners:
                await trio.aclose_forcefully(listener)


_Beginning = tuple[Address | None, Awaitable[Then] | None]
"""The address of a visitor, and what serves it; None if it has gone or is refused."""

_FULL: Final = Told("silent.reset")
_WAITS: Final = Told("visitor.waits")
_CROWD: Final = Told("visitor.refused")
_BROKEN: Final = Told("visitor.refused")


class _Entrance:
    """The visitors of one front end, and which of them are silent."""

    def __init__(
        self, handle: Handle, most: int, nursery: trio.Nursery, *, links: bool
    ) -> None:
        self._handle = handle
        self._nursery = nursery
        self._links = links
        self._most = most if links else DESCRIPTORS.share(ENTRY_SHARE, most)
        self._room = trio.Semaphore(self._most)
        self._arrivals = Arrivals()
        self._visitors = VISITORS.get()
        self._newcomers = InOrder[trio.abc.HalfCloseableStream, _Beginning]()
        self._vouched_for = 0
        self._said: dict[int, tuple[FastSocket, Address]] = {}
        self._begun: dict[int, Awaitable[Then] | None] = {}
        self._most_of_one = DESCRIPTORS.share(ADDRESS_SHARE, MAX_PER_ADDRESS)

    async def accept_from(
        self, listener: trio.abc.Listener[trio.abc.HalfCloseableStream]
    ) -> None:
        failing = False
        while True:
            try:
                stream = await listener.accept()
            except trio.ClosedResourceError:
                return
            except OSError as error:
                if not failing:  # one line for each bad period, not ten a second
                    reason = str(error.strerror)
                    log_event(LOG, logging.WARNING, "accept.failed", reason=reason)
                failing = True
                DESCRIPTORS.look()
                DESCRIPTORS.make_room(DESCRIPTORS.limit, "who waits to be accepted")
                await trio.sleep(ACCEPT_PAUSE_S)
                continue
            failing = False
            if isinstance(stream, FastSocket) and (
                stream.number() >= DESCRIPTORS.edge
                and await self._is_one_too_many(stream)
            ):
                continue
            try:
                self._room.acquire_nowait()
            except trio.WouldBlock:
                await self._wait_for_a_place(stream)
            if isinstance(stream, FastSocket) and not self._links:
                self._arrivals.add(stream)
            self._newcomers.add(stream)
            self._nursery.start_soon(self._supervise, stream)

    async def _wait_for_a_place(self, stream: trio.abc.HalfCloseableStream) -> None:
        """Have a newcomer wait; those behind it wait in the kernel's backlog."""
        if self._arrivals.give_up_one():
            _FULL.tell("the entry is full", self._most)
        elif not self._links:
            _WAITS.tell("the entry is full, and nobody is silent", self._most)
        try:
            await self._room.acquire()
        except BaseException:
            await reset_socket(stream)
            raise

    async def _is_one_too_many(self, stream: FastSocket) -> bool:
        """Make room for a visitor with one of the last descriptors, or refuse it.

        After a refusal the others wait in the kernel until there is room.
        """
        if DESCRIPTORS.make_room(stream.number(), peer_of(stream)) or self._links:
            try:
                await trio.lowlevel.checkpoint()  # a turn for those that give way
            except BaseException:
                stream.reset()
                raise
            return False
        stream.reset()
        while DESCRIPTORS.few():  # noqa: ASYNC110  # the kernel has no such event
            await trio.sleep(ACCEPT_PAUSE_S)
        return True

    def _begin_one(self, stream: trio.abc.HalfCloseableStream) -> _Beginning:
        peer = peer_of(stream)
        if peer is None:
            return None, None
        if isinstance(stream, FastSocket) and self._visitors.trusts(peer.host):
            self._vouched_for += 1
            return peer, self._serve_vouched(self._vouched_for, stream, peer)
        return peer, self._begin(stream, peer)

    def _begin(
        self, stream: trio.abc.HalfCloseableStream, peer: Address
    ) -> Awaitable[Then] | None:
        """Begin to serve a visitor, unless its address has its share."""
        visitors = self._visitors
        most = visitors.max_per_address or self._most_of_one
        if self._links or visitors.enter(peer.host, most):
            return begun(self._handle, stream, peer)
        _CROWD.tell("too many of one address", most, peer)
        return None

    async def _serve_vouched(
        self, number: int, stream: FastSocket, proxy: Address
    ) -> Then:
        """Serve a visitor that comes through a trusted proxy, PROXY header included."""
        try:
            visitor = await vouched_peer(stream, proxy)
        except ValueError as error:
            _BROKEN.tell(f"bad PROXY header: {error}", MAX_HEADER_BYTES, proxy)
            return None
        # Behind earlier ones whose header came in the same turn.
        self._said[number] = stream, visitor
        await trio.lowlevel.cancel_shielded_checkpoint()
        for first in sorted(self._said):
            self._begun[first] = self._begin(*self._said.pop(first))
        serving = self._begun.pop(number)
        if serving is None:
            return None
        try:
            return await serving
        finally:
            if not self._links:
                self._visitors.leave(visitor.host)

    async def _supervise(self, stream: trio.abc.HalfCloseableStream) -> None:
        peer, serving = self._newcomers.take(stream, self._begin_one)
        then: Then = None
        try:
            if serving is not None:
                then = await self._watched(serving, stream, peer)
        finally:
            if not self._links:
                if isinstance(stream, FastSocket):
                    self._arrivals.left(stream)
                if serving is not None and peer is not None:
                    self._visitors.leave(peer.host)
            self._room.release()
        if then is not None:
            await self._watched(then, stream, peer)

    async def _watched(
        self,
        serving: Awaitable[Then],
        stream: trio.abc.HalfCloseableStream,
        peer: Address | None,
    ) -> Then:
        """Log what serving raises; the stream is closed unless it goes on."""
        then: Then = None
        try:
            then = await serving
        except* Exception as errors:
            log_event(
                LOG, logging.ERROR, "visitor.failed", exc_info=errors, peer=str(peer)
            )
        finally:
            if then is None:
                await reset_socket(stream)  # closed by now, unless something went wrong
        return then
