"""Reach a target: resolve its name, check each address, dial, say honestly why not.

The address that was checked is the one that is dialled: a name is resolved once, here,
so an answer that changes between check and use gains nothing. An IPv4-mapped IPv6
address (``::ffff:127.0.0.1``) is checked and dialled as the IPv4 address that it means.
What went wrong becomes a code and words in ``dial_failures``.

    connect, begin, probe, Dial     a connection that is being made
    _begin_one, _finish             one attempt
    resolve, endpoints, loopbacks   the addresses that are tried, in order
"""

from __future__ import annotations

import errno
import math
import os
import socket
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from ipaddress import IPv6Address
from itertools import chain, zip_longest
from typing import TYPE_CHECKING, Final, NamedTuple

import trio

from tunnel.addresses import LOOPBACKS, UnixPath, host_of, is_localhost, unmapped
from tunnel.errors import LocalStreamError
from tunnel.net.dial_failures import (
    give_up,
    no_address,
    not_allowed,
    unusable,
)
from tunnel.net.lookup import LOOKUP_S, Asked, known, look_up, silence
from tunnel.platform.sockets import (
    CONNECT_BEGUN,
    CONNECT_UNDER_WAY,
    UNIX_FAMILY,
    open_socket,
    open_unix_socket,
)

if TYPE_CHECKING:
    from tunnel.addresses import Address, End
    from tunnel.net.dial_failures import Failure
    from tunnel.net.lookup import Answer, Found

STAGGER_S: Final = 0.25
"""How long one attempt is alone before the next begins (RFC 8305 §5 and §8)."""

MAX_ADDRESSES: Final = 16
"""Addresses of one name that are tried: who owns a name must not buy a port scan."""
_BACKLOG_POLL_S: Final = 0.02
"""The kernel has no event for room in the backlog of a unix socket."""

SockAddr = tuple[str | int | bytes, ...] | str

Within = Callable[[float], AbstractContextManager[object]]
"""Return a context that raises ``trio.TooSlowError`` at that time of trio's clock.
Entered only if the answer does not come at once: a cancel scope costs as much as all
else that a dial does in Python."""

Allow = Callable[[str, int], bool]
"""Say whether this numeric address and port may be dialled."""

Opened = Callable[[socket.socket], None]
"""Look at a socket before it dials; an ``OSError`` stops it."""


class Endpoint(NamedTuple):
    """One numeric address or unix path, ready for connect(2)."""

    family: int
    sockaddr: SockAddr

    @property
    def host(self) -> str:
        """The IP address, or the path."""
        return str(self.sockaddr[0])


class _Begun(NamedTuple):
    """A socket whose connect(2) was called."""

    sock: socket.socket
    sockaddr: SockAddr
    waits: bool
    """The answer is not there yet."""


def _anywhere(_host: str, _port: int) -> bool:
    return True


def _as_it_is(_sock: socket.socket) -> None:
    pass


async def connect(
    target: End,
    *,
    allow: Allow = _anywhere,
    deadline_s: float = 10,
    within: Within = trio.fail_at,
    opened: Opened = _as_it_is,
    own: bool = False,
) -> socket.socket:
    """Open a connection; the caller closes the socket, which does not block.

    A name's addresses are tried staggered, IPv6 and IPv4 in turn; the first that
    answers wins and the other attempts are closed. Cancellation closes all of them.

    Args:
        target: an IP address, a name, which is resolved here, or a unix socket.
        allow: asked about every address before it is dialled.
        deadline_s: for everything together, the resolution included.
        within: may end a wait sooner, for a caller that has lost interest.
        opened: asked about every socket before it dials.
        own: this program's user wrote the address: see ``look_up``.

    Raises:
        LocalStreamError: the code says why; of several failures, why the attempt
            failed that got furthest.
    """
    dial = begin(target, allow=allow, deadline_s=deadline_s, opened=opened, own=own)
    return await dial.finish(within)


def begin(
    target: End,
    *,
    allow: Allow = _anywhere,
    deadline_s: float = 10,
    opened: Opened = _as_it_is,
    own: bool = False,
) -> Dial:
    """Do of ``connect`` what needs no wait; ``finish`` does the rest.

    A target sees connects in the order of these calls: connect(2) is called before this
    returns, or as soon as the name is looked up. One that is silent delays no other.
    """
    port = 0 if isinstance(target, UnixPath) else target.port
    until = trio.current_time() + deadline_s
    dial = Dial(target, port, allow, opened, deadline_s, until)
    dial.look_up(own=own)
    return dial


async def probe(target: End, timeout_s: float = 2) -> bool:
    """Say whether something answers there: dial once and hang up. Never raises."""
    try:
        sock = await connect(target, deadline_s=timeout_s)
    except LocalStreamError:
        return False
    sock.close()
    return True


@dataclass(slots=True, eq=False)
class Dial:
    """A connection that is being made: ``finish`` or ``close`` it.

    As RFC 8305 (happy eyeballs) has it: ``_first`` is under way, ``_rest`` is next.
    """

    _target: End
    _port: int
    _allow: Allow
    _opened: Opened
    _deadline_s: float
    _until: float
    _failures: list[Failure] = field(default_factory=list)
    _first: _Begun | None = None
    _rest: list[Endpoint] = field(default_factory=list)
    _asked: Asked | None = None
    _own: Address | None = None  # which `finish` looks up

    def look_up(self, *, own: bool) -> None:
        """Begin with the address, or with the look-up of the name."""
        target = self._target
        try:
            if isinstance(target, UnixPath):
                if not UnixPath.is_usable(target.path):
                    raise unusable(target, "it is not absolute")
                self._begin_next([Endpoint(UNIX_FAMILY, target.path)])
                return
            _check(target)
            host = target.host
            if _is_ipv4(host):
                self._begin([Endpoint(socket.AF_INET, (host, self._port))])
                return
            if is_localhost(host):  # as `known` says, but for every connection
                self._begin(loopbacks(self._port))
                return
            found = known(host)
            if found is None:
                if own:
                    self._own = target
                else:
                    self._asked = Asked(host, self.begin)
                return
        except (OSError, UnicodeError, LocalStreamError) as error:
            self._failures.append(error.with_traceback(None))
        else:
            self.begin(found)

    def begin(self, found: Answer) -> None:
        """Begin with these addresses; ``finish`` raises what is none."""
        if isinstance(found, Exception):
            return
        if found:
            self._begin(endpoints(found, self._port))
        else:
            self._failures.append(no_address())

    def _begin(self, endpoints: list[Endpoint]) -> None:
        allow, port = self._allow, self._port
        if allowed := [e for e in endpoints if allow(e.host, port)]:
            self._begin_next(allowed)
        else:
            self._failures.append(not_allowed(self._target))

    def _begin_next(self, endpoints: list[Endpoint]) -> None:
        """Begin with the first that does not fail at once; keep those behind it."""
        for at, endpoint in enumerate(endpoints, 1):
            try:
                self._first = _begin_one(endpoint, self._opened)
            except OSError as error:
                self._failures.append(error.with_traceback(None))
            else:
                self._rest = endpoints[at:]
                return
        self._rest = []

    async def finish(self, within: Within = trio.fail_at) -> socket.socket:
        """Wait for the connection; see ``connect``. No checkpoint if it is there."""
        first = self._first
        if first is not None and not first.waits:
            self._first = None
            return first.sock
        try:
            if self._own is not None:
                self.begin(await _look_up(self._own, self._deadline_s, own=True))
            elif self._asked is not None:
                patience_s = min(self._deadline_s, LOOKUP_S)
                until = self._until - self._deadline_s + patience_s
                await self._asked.wait(within(until), patience_s)
            first, self._first = self._first, None  # closed by those that wait for it
            if first is not None:
                if not (first.waits and self._rest):
                    return await _finish(first, self._until, within)
                with within(self._until):
                    return await self._race(first)
        except (OSError, UnicodeError) as error:
            # Its traceback holds this frame, which holds it: a cycle for the collector.
            self._failures.append(error.with_traceback(None))
        except trio.TooSlowError:
            why = f"no answer in {self._deadline_s:g} s"
            self._failures.append(TimeoutError(errno.ETIMEDOUT, why))
        finally:
            self.close()
        await trio.lowlevel.checkpoint()
        give_up(self._target, self._failures)

    async def _race(self, first: _Begun) -> socket.socket:
        """Begin an attempt every ``STAGGER_S``, or as soon as one has failed.

        The first to succeed ends the others (RFC 8305 §5).

        Raises:
            OSError: the last failure, if all failed.
        """
        winners: list[socket.socket] = []
        failed = trio.Event()

        async def attempt(begun: _Begun) -> None:
            try:
                sock = await _finish(begun)
            except OSError as error:
                self._failures.append(error.with_traceback(None))
                failed.set()
                return
            winners.append(sock)
            nursery.cancel_scope.cancel()

        begun: _Begun | None = first
        try:
            async with trio.open_nursery() as nursery:
                while begun is not None:
                    failed = trio.Event()
                    nursery.start_soon(attempt, begun)
                    with trio.move_on_after(STAGGER_S):
                        await failed.wait()
                    self._begin_next(self._rest)
                    begun, self._first = self._first, None
            if winners:
                return winners.pop(0)
        finally:
            for sock in winners:  # more than one may answer in one turn of the loop
                sock.close()
        raise self._failures.pop()

    def close(self) -> None:
        """Give it up, unless it is finished; harmless then."""
        if self._asked is not None:
            self._asked.close()
            self._asked = None
        if self._first is not None:
            self._first.sock.close()
            self._first = None


# One attempt -------------------------------------------------------------------------


def _begin_one(endpoint: Endpoint, opened: Opened) -> _Begun:
    """Call connect(2).

    Raises:
        OSError: it failed at once; nothing is open.
    """
    sock = _new_socket(endpoint.family)
    sockaddr = endpoint.sockaddr
    try:
        opened(sock)
        error = sock.connect_ex(sockaddr)
        if error in CONNECT_BEGUN:
            # Over loopback it has succeeded or failed by now, and this says how.
            error = sock.connect_ex(sockaddr)
        waits = error in CONNECT_UNDER_WAY or (
            error == errno.EAGAIN and endpoint.family == UNIX_FAMILY
        )
        if not waits:
            _check_connected(sock, sockaddr, error)
    except BaseException:
        sock.close()
        raise
    return _Begun(sock, sockaddr, waits)


def _new_socket(family: int) -> socket.socket:
    if family == UNIX_FAMILY:
        return open_unix_socket()
    return open_socket(family, socket.SOCK_STREAM)


async def _finish(
    begun: _Begun, until: float = math.inf, within: Within = trio.fail_at
) -> socket.socket:
    """Wait for one attempt; its socket is closed whatever this raises.

    No checkpoint when the answer came at once.

    Raises:
        OSError: it failed.
    """
    sock, sockaddr, waits = begun
    if waits:
        try:
            with within(until):
                if isinstance(sockaddr, str):
                    error = await _wait_for_backlog(sock, sockaddr)
                else:
                    await trio.lowlevel.wait_writable(sock)
                    error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            _check_connected(sock, sockaddr, error)
        except BaseException:
            sock.close()
            raise
    return sock


async def _wait_for_backlog(sock: socket.socket, path: str) -> int:
    """Connect to a unix socket as soon as its backlog has room; return the errno.

    Trio would take the kernel's "no room" (EAGAIN) for a connect that is under way.
    """
    error = errno.EAGAIN
    while error == errno.EAGAIN:
        await trio.sleep(_BACKLOG_POLL_S)
        error = sock.connect_ex(path)
    return error


def _check_connected(sock: socket.socket, sockaddr: SockAddr, error: int) -> None:
    if error:
        raise OSError(error, os.strerror(error))
    if sock.getsockname() == sockaddr:
        # Dialling a free local port may pick this very port as the source, and TCP
        # then joins the socket with itself: an echo where nobody listens.
        raise ConnectionRefusedError(errno.ECONNREFUSED, "reached only itself")


# The addresses that are tried, in order ----------------------------------------------


async def resolve(
    address: Address, *, allow: Allow = _anywhere, deadline_s: float = 10
) -> Address:
    """Return the first numeric address of ``address`` that may be reached.

    For datagrams: the address that was checked here must be the one that is sent to.

    Raises:
        LocalStreamError: as ``connect`` does.
    """
    _check(address)
    for endpoint in endpoints(await _look_up(address, deadline_s), address.port):
        if allow(endpoint.host, address.port):
            return replace(address, host=endpoint.host)
    raise not_allowed(address)


async def _look_up(
    address: Address, deadline_s: float, *, own: bool = False
) -> list[Found]:
    """Return the addresses of a host, at least one; raise as ``connect`` does."""
    try:
        with trio.fail_after(deadline_s):
            found = await look_up(address.host, own=own)
        if not found:
            raise no_address()
    except (OSError, UnicodeError) as error:
        give_up(address, [error])
    except trio.TooSlowError:
        give_up(address, [silence(deadline_s)])
    return found


def endpoints(found: list[Found], port: int) -> list[Endpoint]:
    """Return the addresses of a host, each once.

    The resolver's first choice stays first (RFC 6724). The families alternate, so that
    a broken one costs one delay (RFC 8305 §4).
    """
    families: dict[int, dict[Endpoint, None]] = {}
    for family, host, rest in found:
        endpoint = Endpoint(family, (host, port, *rest))
        if family == socket.AF_INET6:
            ip = unmapped(IPv6Address(host))
            if ip.version == 4:
                endpoint = Endpoint(socket.AF_INET, (str(ip), port))
        families.setdefault(endpoint.family, {})[endpoint] = None
    turns = chain.from_iterable(zip_longest(*families.values()))
    return [endpoint for endpoint in turns if endpoint is not None][:MAX_ADDRESSES]


def loopbacks(port: int) -> list[Endpoint]:
    """Return both loopbacks of this machine."""
    ipv4, ipv6 = LOOPBACKS
    return [
        Endpoint(socket.AF_INET, (ipv4, port)),
        Endpoint(socket.AF_INET6, (ipv6, port, 0, 0)),
    ]


def _is_ipv4(host: str) -> bool:
    try:
        socket.inet_pton(socket.AF_INET, host)
    except OSError:
        return False
    return True


def _check(address: Address) -> None:
    """Refuse what no resolver and no kernel should be asked about."""
    if not 0 < address.port < 65_536:
        raise unusable(address, f"{address.port} is not a port to connect to")
    if address.host.startswith("[") or host_of(address.host, zone=True) is None:
        raise unusable(address, "the host is neither a name nor an IP address")
