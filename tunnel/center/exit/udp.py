"""The far end of a UDP association: its sockets, and the peers it may talk to.

It has one socket for each family, so that all peers see the same port of ours. Nothing
that goes wrong with one datagram ends the association: the datagram is dropped
(protocol.md#datagrams). What comes over the link is sent by the link's reader, and the
sockets are read by the session's poller: no datagram wakes a task.
"""

from __future__ import annotations

import errno
import logging
import socket
import time
from contextlib import suppress
from contextvars import copy_context
from functools import partial
from typing import TYPE_CHECKING, Final

import trio

from tunnel.addresses import (
    LOCALHOST,
    LOOPBACKS,
    NOWHERE,
    WILDCARDS,
    Address,
    is_localhost,
    parse_ip,
    unmapped,
)
from tunnel.center.denials import Reach
from tunnel.center.exit.served import say_left
from tunnel.center.who import WHO
from tunnel.errors import Code, LocalStreamError, StreamError
from tunnel.log import log_event
from tunnel.net.access_log import wanted
from tunnel.net.datagrams import DatagramSocket, make_room, read_turn, when_readable
from tunnel.net.descriptors import DESCRIPTORS, Flows
from tunnel.net.dial import resolve
from tunnel.net.dial_failures import not_allowed
from tunnel.net.notify import Notify
from tunnel.net.timeouts import TIMEOUTS
from tunnel.platform.sockets import HAS_EPOLL, open_socket, send_heard
from tunnel.proto.datagrams import ASSOCIATION_BYTES, DatagramQueue, DatagramRoom

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tunnel.link.datagrams import DatagramStream
    from tunnel.net.datagrams import Source
    from tunnel.net.dial import Allow

MAX_NAMES: Final = 64
"""Resolved names that one association remembers, each with a port, names that it asks
at once, and rights that it was refused for want of and that are logged."""
NAME_S: Final = 30.0
"""How long a name's address is used again. The resolver does not tell the lifetime of
its answer; this is shorter than most zones'."""
MAX_PEERS: Final = 1_024
"""IP addresses whose answers pass: the last ones that something was sent to."""
SHARE: Final = 1 / 2
"""Of the process's descriptors, for associations: most have one socket, some two."""
MAX_ASSOCIATIONS: Final = 16_384
"""Of the process, however many descriptors there are: what a session carries."""
FLOWS: Final = Flows("udp.given_up")
"""The associations of this process, the one that was idle longest first."""

logger = logging.getLogger("tunnel.exit")


def serve_association(
    datagrams: DatagramStream, allow: Allow, *, target: Address | None = None
) -> Awaitable[None]:
    """Accept an association that the peer asked for, and serve it to its end.

    Args:
        datagrams: owned; closed with a code that says why it ended.
        allow: asked about every numeric address before anything is sent to it.
        target: where all of it goes, whatever the datagrams' addresses say; None sends
            each to its own address. ``localhost`` is the loopback that takes them.
    """
    if target is not None and HAS_EPOLL:  # no name is asked, no socket is waited for
        return _serve(datagrams, allow, target)
    return _serve_with_tasks(datagrams, allow, target)


async def _serve_with_tasks(
    datagrams: DatagramStream, allow: Allow, target: Address | None
) -> None:
    async with trio.open_nursery() as nursery:
        await _serve(datagrams, allow, target, nursery)
        nursery.cancel_scope.cancel()


async def _serve(
    datagrams: DatagramStream,
    allow: Allow,
    target: Address | None,
    nursery: trio.Nursery | None = None,
) -> None:
    udp_exit = _UdpExit(datagrams, allow, nursery)
    FLOWS.add(udp_exit, DESCRIPTORS.share(SHARE, MAX_ASSOCIATIONS))
    began, code, reason = time.monotonic(), Code.RESET, ""
    try:
        await udp_exit.open(target)
        udp_exit.begin()
        while (until := udp_exit.silent_at()) is not None:
            with trio.move_on_at(until):
                await udp_exit.news.wait()
    except StreamError as error:
        code, reason = error.code, error.what
        log_event(logger, logging.INFO, "exit.refused", **WHO.get(),
            target=str(target or "udp"), code=code.name, reason=reason)  # fmt: skip
    finally:
        FLOWS.drop(udp_exit)
        udp_exit.give_way()
        datagrams.close(code, reason)
        if wanted():
            down, up = datagrams.passed
            say_left(datagrams.stream, began, (up, down), code)


class _Names:
    """The names that one association has sent to.

    By the port too: of several addresses each may be allowed for other ports.
    """

    def __init__(self) -> None:
        self.found: dict[tuple[str, int], tuple[str, float]] = {}
        self.asked: dict[tuple[str, int], DatagramQueue[bytes]] = {}
        self.room = DatagramRoom(ASSOCIATION_BYTES)


class _UdpExit:
    """The sockets of one association, at the end where it leaves the tunnel."""

    __slots__ = (
        "_allow",
        "_answered",
        "_context",
        "_datagrams",
        "_denied",
        "_homes",
        "_names",
        "_nursery",
        "_over",
        "_patience",
        "_peer_ended",
        "_peers",
        "_reach",
        "_seen",
        "_sockets",
        "_target",
        "news",
    )

    def __init__(
        self, datagrams: DatagramStream, allow: Allow, nursery: trio.Nursery | None
    ) -> None:
        self._target: Address | None = None
        self._datagrams = datagrams
        self._allow = allow
        self._reach = allow if isinstance(allow, Reach) else None
        self._denied: list[str] = []  # rights whose want is in the log
        self._patience = TIMEOUTS.get()
        self._answered = False
        self._seen = trio.current_time()  # when the last datagram passed, either way
        self._over = False  # nothing is sent or read any more
        self._peer_ended = False
        self.news = Notify()
        """To be woken at: ``silent_at`` says something else now."""
        self._context = copy_context()  # others call what logs, and begins tasks
        self._sockets: dict[int, DatagramSocket] = {}
        self._names: _Names | None = None  # most send to none
        self._peers: dict[str, None] = {}
        self._homes: list[Address] = []  # the loopbacks of a target, best first
        self._nursery = nursery

    async def open(self, target: Address | None) -> None:
        """Open the socket that is surely needed, and accept; or raise StreamError."""
        family: int = socket.AF_INET
        if target is not None:
            self._target = await resolve(target, allow=self._allow)
            family = _family(self._target.host)
            if is_localhost(target.host):
                hosts = [host for host in LOOPBACKS if self._allow(host, target.port)]
                self._homes = [Address(host, target.port) for host in hosts]
                self._peers = dict.fromkeys(hosts)
        try:
            sock = self._open_socket(family)
        except OSError as error:
            short = error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS)
            raise LocalStreamError(
                Code.RESOURCE if short else Code.NET_UNREACHABLE,
                f"no UDP socket: {error.strerror}",
            ) from error
        bound = Address(WILDCARDS[family == socket.AF_INET6], sock.getsockname()[1])
        self._datagrams.stream.accept(bound)

    def give_way(self) -> None:
        """End at once, also for others (``Flow``); harmless when repeated."""
        self._over = True
        for sock in self._sockets.values():
            self._datagrams.poller.forget(sock.fileno())
            sock.close()
        self.news.ring()

    def begin(self) -> None:
        """Carry datagrams both ways, until ``give_way`` and the close of the stream."""
        for sock in self._sockets.values():
            self._begin_reading(sock)
        self._datagrams.deliver_to(self._outward, self._ended)

    def _ended(self) -> None:
        self._peer_ended = True
        self.news.ring()

    def silent_at(self) -> float | None:
        """Return until when it may be silent; None: it is over, or is closed now."""
        until = self._seen + self._patience.udp_s(answered=self._answered)
        if self._peer_ended:
            return None
        if self._over or until <= trio.current_time():
            self._datagrams.close(Code.IDLE)
            return None
        return until

    def _touch(self) -> None:
        self._seen = trio.current_time()  # a deadline moved for each costs more
        FLOWS.touch(self)

    def _begin(self, task: Callable[[], Awaitable[None]]) -> None:
        if self._nursery is not None:
            self._context.run(self._nursery.start_soon, task)

    # Out -----------------------------------------------------------------------------

    def _outward(self, address: Address, payload: bytes) -> bool:
        """Send what came over the link; False if it is lost here."""
        if self._over:
            return False
        self._touch()
        if self._homes:
            return self._send_home(payload)
        if (to := self._target or self._numeric(address)) is not None:
            return self._send(to, payload, address.host)
        if is_localhost(address.host):
            return self._send_local(address.port, payload)
        return self._wait_for_name(address, payload)

    def _numeric(self, address: Address) -> Address | None:
        """Return the address with an IP address for a host; None if it is not known."""
        ip = parse_ip(address.host)
        if ip is not None:
            return Address(str(unmapped(ip)), address.port)
        names = self._names
        found = names and names.found.get((address.host, address.port))
        host, until = found or ("", 0.0)
        return Address(host, address.port) if until >= trio.current_time() else None

    def _wait_for_name(self, address: Address, payload: bytes) -> bool:
        """Keep a datagram until its name is resolved, and ask for it if nobody does."""
        key = address.host, address.port
        names = self._names = self._names or _Names()
        queue = names.asked.get(key)
        if queue is None:
            if len(names.asked) >= MAX_NAMES:
                return False
            queue = names.asked[key] = DatagramQueue(names.room)
            # In a task of its own: one slow name delays nothing else.
            self._begin(partial(self._ask, names, address))
        queue.push(payload, len(payload))
        return True

    async def _ask(self, names: _Names, address: Address) -> None:
        """Resolve a name, remember it, and send what waits for it."""
        key = address.host, address.port
        reach = self._reach and self._reach.of_name(address)
        try:
            if reach and reach.missing:
                raise not_allowed(address)
            found = await resolve(address, allow=reach or self._allow)
        except StreamError as error:
            if reach and error.code is Code.NOT_ALLOWED:
                self._note(reach, address)
            names.asked.pop(key).clear()
            return
        queue = names.asked.pop(key)
        names.found.pop(key, None)
        names.found[key] = found.host, trio.current_time() + NAME_S
        if len(names.found) > MAX_NAMES:
            del names.found[next(iter(names.found))]
        while queue:
            self._send(found, queue.pop(), address.host)

    def _may_send(self, to: Address, asked: str) -> bool:
        """Say whether a numeric address may be sent to, which was asked for so."""
        if not to.port:
            return False
        if self._reach is None:
            return self._allow(to.host, to.port)
        if self._reach.leads_to(asked, to.host, to.port):
            return True
        self._note(self._reach, to)
        return False

    def _note(self, reach: Reach, to: Address) -> None:
        """Log each right once that a datagram was short of."""
        if reach.missing not in self._denied and len(self._denied) < MAX_NAMES:
            self._denied.append(reach.missing)
            self._context.run(reach.denied, f"udp {to}")

    def _send(self, to: Address, payload: bytes, asked: str) -> bool:
        """Send to a numeric address that the rules allow; False: that failed."""
        if self._reach is None:  # as below, a call less for each
            allowed = to.port > 0 and self._allow(to.host, to.port)
        else:
            allowed = self._may_send(to, asked)
        if not allowed:
            return False
        self._hear(to.host.partition("%")[0])  # of an answer the zone is known apart
        try:
            self._socket(_family(to.host)).sendto(payload, (to.host, to.port))
        except OSError:
            return False
        return True

    def _hear(self, host: str) -> None:
        """Let the answers of an IP address pass."""
        self._peers.pop(host, None)
        self._peers[host] = None
        if len(self._peers) > MAX_PEERS:
            del self._peers[next(iter(self._peers))]

    def _send_local(self, port: int, payload: bytes) -> bool:
        """Send to the loopback on which somebody listens, as TCP finds it."""
        for host in LOOPBACKS:
            if self._may_send(Address(host, port), LOCALHOST):
                with suppress(OSError):  # no such loopback, or its socket has no room
                    sock = self._socket(_family(host))
                    if send_heard(sock, payload, (host, port)):
                        self._hear(host)
                        return True
        return False

    def _send_home(self, payload: bytes) -> bool:
        """Send to the loopback that takes it: a bare port may be open on either.

        The sockets are connected, so where nobody listens the kernel says so at once,
        to whichever call asks first: between the two calls the reader must not run.
        """
        for home in tuple(self._homes):
            with suppress(OSError):
                sock = self._socket(_family(home.host))
                sock.send(payload)
                if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                    return True
            self._leave(home)
        return False

    def _leave(self, home: Address) -> None:
        """Try the other loopback first from now on."""
        self._homes.remove(home)
        self._homes.append(home)

    # In ------------------------------------------------------------------------------

    def _begin_reading(self, sock: DatagramSocket) -> None:
        turn = partial(self._read, sock)
        if HAS_EPOLL:
            self._datagrams.poller.watch(sock.fileno(), turn)
        else:
            self._begin(partial(when_readable, sock, turn))

    def _read(self, sock: DatagramSocket) -> None:
        read_turn(sock, self._inward, lambda: self._failed(sock))
        if not HAS_EPOLL:  # else the poller does it, for all that it has read
            self._datagrams.flush()

    def _failed(self, sock: DatagramSocket) -> None:
        """Take what an earlier datagram met."""
        if self._homes and _family(self._homes[0].host) == sock.family:
            self._leave(self._homes[0])

    def _inward(self, payload: bytes, source: Source) -> None:
        host, port = source[0].partition("%")[0], source[1]
        if host not in self._peers:
            return
        whence = NOWHERE
        if self._target is None:
            whence = Address(host, port)
        elif port != self._target.port:
            return
        self._answered = True
        self._touch()
        self._datagrams.put(whence, payload)

    # Sockets -------------------------------------------------------------------------

    def _socket(self, family: int) -> DatagramSocket:
        sock = self._sockets.get(family)
        if sock is None:
            sock = self._open_socket(family)
            self._begin_reading(sock)
        return sock

    def _open_socket(self, family: int) -> DatagramSocket:
        """Make the socket of a family, on a port that the kernel chooses now."""
        raw = open_socket(family, socket.SOCK_DGRAM)
        try:
            if raw.fileno() >= DESCRIPTORS.edge and not FLOWS.give_up_one(but=self):
                DESCRIPTORS.admit(raw, "datagrams")
            if family == socket.AF_INET6:
                raw.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            make_room(raw)
            raw.bind((WILDCARDS[family == socket.AF_INET6], 0))
            for home in self._homes:
                if _family(home.host) == family:
                    raw.connect((home.host, home.port))
        except BaseException:
            raw.close()
            raise
        sock = self._sockets[family] = DatagramSocket.of(raw)
        return sock


def _family(host: str) -> int:
    return socket.AF_INET6 if ":" in host else socket.AF_INET
