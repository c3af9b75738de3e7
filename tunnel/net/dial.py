"""Reach a target: resolve its name, check each address, dial, say honestly why not.

The address that was checked is the one that is dialled: a name is resolved once, here,
so an answer that changes between check and use gains nothing. An IPv4 address in IPv6
clothes (``::ffff:127.0.0.1``) is undressed before it is checked.

This module knows nothing of links, users or rules; the decision comes in as ``allow``.
"""

from __future__ import annotations

import errno
import ipaddress
import math
import os
import socket
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from itertools import chain, zip_longest
from typing import TYPE_CHECKING, Final, NamedTuple, NoReturn

import trio

from tunnel.addresses import LOOPBACKS, host_of, is_localhost
from tunnel.errors import Code, LocalStreamError
from tunnel.net.lookup import (
    LOOKUP_S,
    Asked,
    LookupsBusyError,
    known,
    look_up,
    look_up_own,
)
from tunnel.platform.sockets import (
    CONNECT_BEGUN,
    CONNECT_UNDER_WAY,
    EAI_ADDRFAMILY,
    open_unix_socket,
)
from tunnel.platform.sockets import open_tcp_socket as _new_socket
from tunnel.proto.frames import UnixPath

if TYPE_CHECKING:
    from collections.abc import Awaitable, Iterable, Sequence

    from tunnel.net.lookup import Answer, Found
    from tunnel.proto.frames import Address, End

STAGGER_S: Final = 0.25
"""How long one attempt is alone before the next begins (RFC 8305 §5 and §8)."""

MAX_ADDRESSES: Final = 16
"""Addresses of one name that are tried: who owns a name must not buy a port scan."""

_BACKLOG_POLL_S: Final = 0.02
"""The kernel has no event for room in the backlog of a unix socket."""

Within = Callable[[float], AbstractContextManager[object]]
"""Wait inside what this gives, until that time: it raises ``trio.TooSlowError``.

To dial a numeric address it is entered only if the answer does not come at once: a
cancel scope costs as much as all else that is done for it in Python."""

Opened = Callable[[socket.socket], None]
"""Look at a socket before it dials; an ``OSError`` stops it."""

_BY_ERRNO: Final = {
    errno.ECONNREFUSED: Code.REFUSED,
    errno.ENETUNREACH: Code.NET_UNREACHABLE,
    errno.EAFNOSUPPORT: Code.NET_UNREACHABLE,  # a kernel without IPv6
    errno.EHOSTUNREACH: Code.HOST_UNREACHABLE,
    errno.ETIMEDOUT: Code.TIMEOUT,
    errno.EACCES: Code.NOT_ALLOWED,
    errno.EPERM: Code.NOT_ALLOWED,
    errno.EMFILE: Code.RESOURCE,
    errno.ENFILE: Code.RESOURCE,
    errno.ENOBUFS: Code.RESOURCE,
    errno.ENOMEM: Code.RESOURCE,
    errno.EADDRNOTAVAIL: Code.RESOURCE,
}

_BY_RESOLVER: Final = {
    socket.EAI_NONAME: Code.HOST_UNREACHABLE,
    socket.EAI_NODATA: Code.HOST_UNREACHABLE,
    EAI_ADDRFAMILY: Code.HOST_UNREACHABLE,
    socket.EAI_AGAIN: Code.TIMEOUT,
    socket.EAI_MEMORY: Code.RESOURCE,
}

_TELLING: Final = (
    Code.REFUSED,  # the target's machine itself answered
    Code.TIMEOUT,  # packets left, and may have arrived
    Code.HOST_UNREACHABLE,  # a router near the target answered
    Code.NOT_ALLOWED,  # this machine forbade it
    Code.RESOURCE,  # this machine was too short of something even to try
    Code.NET_UNREACHABLE,  # what any IPv6 address says on an IPv4 machine
    Code.GENERAL,
)
"""The order in which one of several failures speaks for all: who got furthest first."""

_CAUSES: Final = {
    Code.REFUSED: "the machine answers, but nothing listens on this port",
    Code.TIMEOUT: "nobody answered in time: switched off, or a firewall drops packets",
    Code.HOST_UNREACHABLE: "the network there knows no such machine",
    Code.NOT_ALLOWED: "a firewall of this machine forbids it",
    Code.RESOURCE: "this machine is short of descriptors, ports or memory",
    Code.NET_UNREACHABLE: "this machine has no route to that network",
}


_UNIX_CAUSES: Final = {
    Code.REFUSED: "nobody listens on it: a file was left there, or is no socket",
    Code.NOT_ALLOWED: "its mode, or that of a folder above, keeps this user out",
}


class _Endpoint(NamedTuple):
    """One numeric address, ready for connect(2)."""

    family: int
    sockaddr: tuple[str | int | bytes, ...]

    @property
    def host(self) -> str:
        return str(self.sockaddr[0])


def _anywhere(_host: str, _port: int) -> bool:
    return True


def _as_it_is(_sock: socket.socket) -> None:
    pass


async def connect(
    address: Address,
    *,
    allow: Callable[[str, int], bool] = _anywhere,
    deadline_s: float = 10,
    within: Within = trio.fail_at,
    opened: Opened = _as_it_is,
    own: bool = False,
) -> socket.socket:
    """Open a TCP connection to ``address``; the caller closes the socket.

    The socket does not block.

    A name's addresses are tried staggered, IPv6 and IPv4 in turn; the first that
    answers wins and the other attempts are closed. Cancellation closes all of them.

    Args:
        address: an IP address or a name, which is resolved here.
        allow: asked with every numeric address and the port before it is dialled.
        deadline_s: for everything together, the resolution included.
        within: may end a wait sooner, for who has lost interest.
        opened: asked about every socket before it dials.
        own: this program's user wrote the address: see ``look_up_own``.

    Raises:
        LocalStreamError: the code says why. Of several failures it is the first of:
            refused, timed out, host unreachable, forbidden by this machine, out of
            resources, network unreachable, anything else.
    """
    dial = Dial(address, allow=allow, deadline_s=deadline_s, opened=opened)
    if own and not _is_ipv4(address.host):
        _check(address)
        dial.begin(await _look_up(address, deadline_s, look_up_own))
    else:
        dial.look_up()
    return await dial.finish(within)


def begin(
    address: Address,
    *,
    allow: Callable[[str, int], bool] = _anywhere,
    deadline_s: float = 10,
    opened: Opened = _as_it_is,
) -> Dial:
    """Do of ``connect`` what needs no wait; ``finish`` does the rest.

    Whoever begins first is first at the target: its connect(2) is called before this
    returns, or where the name must be looked up, in the order of these calls when the
    answer is there. One that does not answer delays no other.
    """
    dial = Dial(address, allow=allow, deadline_s=deadline_s, opened=opened)
    dial.look_up()
    return dial


class Dial:
    """A connection that is being made: ``finish`` or ``close`` it."""

    __slots__ = (
        "_address",
        "_allow",
        "_asked",
        "_deadline_s",
        "_failures",
        "_first",
        "_opened",
        "_refusals",
        "_rest",
        "_until",
    )

    def __init__(
        self,
        address: Address,
        *,
        allow: Callable[[str, int], bool],
        deadline_s: float,
        opened: Opened,
    ) -> None:
        self._address = address
        self._allow = allow
        self._opened = opened
        self._deadline_s = deadline_s
        self._until = trio.current_time() + deadline_s
        self._failures: list[OSError] = []
        self._refusals: list[LocalStreamError] = []  # at most one
        self._first: _Begun | None = None
        self._rest: Sequence[_Endpoint] = ()
        self._asked: Asked | None = None

    def look_up(self) -> None:
        """Begin with the address, or with the look-up of the name."""
        address = self._address
        try:
            _check(address)
            if _is_ipv4(address.host):
                self._begin([_Endpoint(socket.AF_INET, (address.host, address.port))])
                return
            if is_localhost(address.host):  # as `known` says, but for every connection
                self._begin(_loopbacks(address.port))
                return
            found = known(address.host)
            if found is None:
                self._asked = Asked(address.host, self._answered)
                return
        except LocalStreamError as error:
            self._refusals.append(error.with_traceback(None))
        except OSError as error:
            self._failures.append(error.with_traceback(None))
        except UnicodeError:
            self._refusals.append(_no_name(address))
        else:
            self.begin(found)

    def _answered(self, answer: Answer) -> None:
        if not isinstance(answer, Exception):
            self.begin(answer)

    def begin(self, found: list[Found]) -> None:
        """Begin with the first of these addresses."""
        endpoints = _endpoints(found, self._address.port)
        if endpoints:
            self._begin(endpoints)
        else:
            self._failures.append(_no_address())

    def _begin(self, endpoints: list[_Endpoint]) -> None:
        allow, port = self._allow, self._address.port
        allowed = [e for e in endpoints if allow(e.host, port)]
        if not allowed:
            self._refusals.append(_not_allowed(self._address))
            return
        self._first, self._rest = _begin_one_of(allowed, self._opened, self._failures)

    async def finish(self, within: Within = trio.fail_at) -> socket.socket:
        """Wait for the connection; see ``connect``.

        Whatever it raises, nothing is left open.
        """
        first = self._first
        if first is not None and not first.waits:
            self._first = None
            return first.sock
        try:
            if self._asked is not None:
                await self._wait_for_answer(self._asked, within)
            if self._first is not None:
                return await self._connected(self._first, within)
        except OSError as error:
            # Its traceback holds this frame, which holds it: a cycle for the collector.
            self._failures.append(error.with_traceback(None))
        except trio.TooSlowError:
            self._failures.append(_no_answer(self._deadline_s))
        except UnicodeError:
            self._refusals.append(_no_name(self._address))
        finally:
            self.close()
        if self._refusals:
            raise self._refusals.pop()  # kept here it would hold this frame, a cycle
        _give_up(self._address, self._failures)

    async def _connected(self, first: _Begun, within: Within) -> socket.socket:
        self._first = None  # whoever has it from here on closes it
        if not (self._rest and first.waits):
            return await _finish(first, self._until, within)
        with within(self._until):
            return await _Race(self._failures, self._opened).run(first, self._rest)

    async def _wait_for_answer(self, asked: Asked, within: Within) -> None:
        """Raise what the resolver has raised.

        Raises:
            trio.TooSlowError: whoever wants this has lost interest.
        """
        patience_s = min(self._deadline_s, LOOKUP_S)
        until = self._until - self._deadline_s + patience_s
        try:
            with within(until):
                await asked.wait()
        except trio.TooSlowError:
            raise asked.why_not(patience_s) from None
        if isinstance(asked.answer, Exception):
            raise asked.answer

    def close(self) -> None:
        """Give it up, unless it is finished; harmless then."""
        if self._asked is not None:
            self._asked.close()
            self._asked = None
        if self._first is not None:
            self._first.sock.close()
            self._first = None


async def resolve(
    address: Address,
    *,
    allow: Callable[[str, int], bool] = _anywhere,
    deadline_s: float = 10,
) -> Address:
    """Give the first numeric address of ``address`` that may be reached.

    For datagrams: what was checked here is what must be sent to.

    Raises:
        LocalStreamError: as ``connect`` does.
    """
    _check(address)
    found = await _look_up(address, deadline_s)
    for endpoint in _endpoints(found, address.port):
        if allow(endpoint.host, address.port):
            return replace(address, host=endpoint.host)
    raise _not_allowed(address)


async def _look_up(
    address: Address,
    deadline_s: float,
    ask: Callable[[str], Awaitable[list[Found]]] = look_up,
) -> list[Found]:
    """Give the addresses of a host, at least one.

    Raises:
        LocalStreamError: as ``connect`` does.
    """
    try:
        with trio.fail_after(deadline_s):
            found = await ask(address.host)
        if not found:
            raise _no_address()
    except UnicodeError:
        raise _no_name(address) from None
    except OSError as error:
        _give_up(address, [error])
    except trio.TooSlowError:
        _give_up(address, [_no_answer(deadline_s)])
    return found


def _no_answer(deadline_s: float) -> OSError:
    return TimeoutError(errno.ETIMEDOUT, f"no answer in {deadline_s:g} s")


async def connect_unix(
    target: UnixPath,
    *,
    deadline_s: float = 10,
    within: Within = trio.fail_at,
    opened: Opened = _as_it_is,
) -> socket.socket:
    """Connect to a unix socket of this machine; the caller closes it.

    Raises:
        LocalStreamError: the code says why.
    """
    dial = begin_unix(target, deadline_s=deadline_s, opened=opened)
    return await dial.finish(within)


def begin_unix(
    target: UnixPath, *, deadline_s: float = 10, opened: Opened = _as_it_is
) -> UnixDial:
    """Do of ``connect_unix`` what needs no wait, as ``begin`` does."""
    return UnixDial(target, deadline_s, opened)


class UnixDial:
    """A connection to a unix socket that is being made: ``finish`` or ``close`` it."""

    __slots__ = ("_connected", "_failures", "_sock", "_target", "_until")

    def __init__(self, target: UnixPath, deadline_s: float, opened: Opened) -> None:
        self._target = target
        self._until = trio.current_time() + deadline_s
        self._failures: list[LocalStreamError] = []  # at most one
        self._connected = False
        if not UnixPath.is_usable(target.path):
            what = f"cannot use the path {target.path!r}"
            why = "it is not absolute"
            error = LocalStreamError(Code.ADDRESS_UNSUPPORTED, what, why)
            self._failures.append(error)
            return
        try:
            # trio takes the kernel's "no room in the backlog" (EAGAIN) for a connect
            # that is under way, and would give back a socket that is not connected.
            self._sock = open_unix_socket()
            opened(self._sock)
            self._connected = _connected_at_once(self._sock, target.path)
        except OSError as failed:
            self.close()
            failed.with_traceback(None)
            self._failures.append(_unix_failure(target, failed))

    async def finish(self, within: Within = trio.fail_at) -> socket.socket:
        """Wait for the connection; see ``connect_unix``."""
        if self._failures:
            await trio.lowlevel.checkpoint()
            raise self._failures.pop()
        try:
            with within(self._until):
                await trio.lowlevel.checkpoint()
                while not self._connected:
                    await trio.sleep(_BACKLOG_POLL_S)
                    self._connected = _connected_at_once(self._sock, self._target.path)
        except (OSError, trio.TooSlowError) as error:
            self.close()
            raise _unix_failure(self._target, error) from error
        except BaseException:
            self.close()
            raise
        return self._sock

    def close(self) -> None:
        """Give it up, unless it is finished."""
        if hasattr(self, "_sock"):
            self._sock.close()


def _connected_at_once(sock: socket.socket, path: str) -> bool:
    try:
        sock.connect(path)
    except BlockingIOError:
        return False
    return True


def _unix_failure(
    target: UnixPath, error: OSError | trio.TooSlowError
) -> LocalStreamError:
    if isinstance(error, trio.TooSlowError):
        code, reason = Code.TIMEOUT, "its backlog stays full"
        cause = "the program behind it does not accept"
    elif error.errno in (errno.ENOENT, errno.ENOTDIR):
        code, reason = Code.REFUSED, "no such file"
        cause = "the program that makes this socket does not run"
    else:
        code, reason = _code_of(error), (error.strerror or str(error)).lower()
        cause = _UNIX_CAUSES.get(code, "")
    return LocalStreamError(code, f"cannot reach {target}: {reason}", cause)


async def connect_end(
    target: End, *, deadline_s: float = 10, opened: Opened = _as_it_is
) -> socket.socket:
    """Connect whatever the target is; as ``connect`` or ``connect_unix``."""
    if isinstance(target, UnixPath):
        return await connect_unix(target, deadline_s=deadline_s, opened=opened)
    return await connect(target, deadline_s=deadline_s, opened=opened)


async def probe(target: End, timeout_s: float = 2) -> bool:
    """Is something answering there? Dials once and hangs up; never raises for a no."""
    try:
        sock = await connect_end(target, deadline_s=timeout_s)
    except LocalStreamError:
        return False
    sock.close()
    return True


def _check(address: Address) -> None:
    """Refuse what no resolver and no kernel should be asked about."""
    if not 0 < address.port < 65_536:
        raise _unusable(address, f"{address.port} is not a port to connect to")
    if address.host.startswith("[") or host_of(address.host, zone=True) is None:
        raise _unusable(address, "the host is neither a name nor an IP address")


def _unusable(address: Address, cause: str) -> LocalStreamError:
    what = f"cannot use the address {address.host!r}, port {address.port}"
    return LocalStreamError(Code.ADDRESS_UNSUPPORTED, what, cause)


def _no_name(address: Address) -> LocalStreamError:
    return _unusable(address, "the host is not a valid name")


def _no_address() -> OSError:
    return socket.gaierror(socket.EAI_NODATA, "the name has no IP address")


def _endpoints(found: list[Found], port: int) -> list[_Endpoint]:
    """The addresses of a host, IPv6 and IPv4 in turn, each once.

    The resolver's first choice stays first (RFC 6724).
    """
    endpoints = (
        _undressed(_Endpoint(family, (host, port, *rest)))
        for family, host, rest in found
    )
    return _in_turn(dict.fromkeys(endpoints))[:MAX_ADDRESSES]


def _loopbacks(port: int) -> list[_Endpoint]:
    ipv4, ipv6 = LOOPBACKS
    return [
        _Endpoint(socket.AF_INET, (ipv4, port)),
        _Endpoint(socket.AF_INET6, (ipv6, port, 0, 0)),
    ]


def _is_ipv4(host: str) -> bool:
    try:
        socket.inet_pton(socket.AF_INET, host)
    except OSError:
        return False
    return True


def _undressed(endpoint: _Endpoint) -> _Endpoint:
    """An IPv4-mapped IPv6 address as the IPv4 address that it means."""
    if endpoint.family != socket.AF_INET6:
        return endpoint
    mapped = ipaddress.IPv6Address(endpoint.host).ipv4_mapped
    if mapped is None:
        return endpoint
    return _Endpoint(socket.AF_INET, (str(mapped), endpoint.sockaddr[1]))


def _in_turn(endpoints: Iterable[_Endpoint]) -> list[_Endpoint]:
    """Alternate the families, so that a broken one costs one delay (RFC 8305 §4)."""
    families: dict[int, list[_Endpoint]] = {}
    for endpoint in endpoints:
        families.setdefault(endpoint.family, []).append(endpoint)
    turns = chain.from_iterable(zip_longest(*families.values()))
    return [endpoint for endpoint in turns if endpoint is not None]


class _Begun(NamedTuple):
    """A socket whose connect(2) was called."""

    sock: socket.socket
    sockaddr: tuple[str | int | bytes, ...]
    waits: bool
    """The answer is not there yet."""


def _begin_one(endpoint: _Endpoint, opened: Opened) -> _Begun:
    """Begin one attempt. Raises OSError; then no descriptor is open."""
    sock = _new_socket(endpoint.family)
    sockaddr = endpoint.sockaddr
    try:
        opened(sock)
        error = sock.connect_ex(sockaddr)
        if error in CONNECT_BEGUN:
            # Over loopback it has succeeded or failed by now, and this says how.
            error = sock.connect_ex(sockaddr)
        if error in CONNECT_UNDER_WAY:
            return _Begun(sock, sockaddr, True)
        _check_connected(sock, sockaddr, error)
    except BaseException:
        sock.close()
        raise
    return _Begun(sock, sockaddr, False)


def _check_connected(
    sock: socket.socket, sockaddr: tuple[str | int | bytes, ...], error: int
) -> None:
    if error and error != errno.EISCONN:
        raise OSError(error, os.strerror(error))
    if sock.getsockname() == sockaddr:
        # Dialling a free local port may pick this very port as the source, and TCP
        # then joins the socket with itself: an echo where nobody listens.
        raise ConnectionRefusedError(errno.ECONNREFUSED, "reached only itself")


def _begin_one_of(
    endpoints: Sequence[_Endpoint], opened: Opened, failures: list[OSError]
) -> tuple[_Begun | None, Sequence[_Endpoint]]:
    """Begin with the first that does not fail at once; give it and those behind it."""
    for at, endpoint in enumerate(endpoints, 1):
        try:
            return _begin_one(endpoint, opened), endpoints[at:]
        except OSError as error:
            failures.append(error.with_traceback(None))
    return None, ()


async def _finish(
    begun: _Begun, until: float = math.inf, within: Within = trio.fail_at
) -> socket.socket:
    """Wait for one attempt. Raises OSError; whatever is raised, it is closed.

    No checkpoint when the answer came at once: then no turn of the scheduler and no
    deadline are needed, which cost more than to ask twice.
    """
    sock = begun.sock
    if begun.waits:
        try:
            with within(until):
                await trio.lowlevel.wait_writable(sock)
            error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            _check_connected(sock, begun.sockaddr, error)
        except BaseException:
            sock.close()
            raise
    return sock


class _Race:
    """Staggered attempts of which the first to succeed ends the others."""

    def __init__(self, failures: list[OSError], opened: Opened = _as_it_is) -> None:
        self._failures = failures
        self._opened = opened
        self._winner: socket.socket | None = None
        self._failed = trio.Event()

    async def run(self, first: _Begun, rest: Sequence[_Endpoint]) -> socket.socket:
        """Raise the last failure if all failed; the others are in ``failures``."""
        begun: _Begun | None = first
        try:
            async with trio.open_nursery() as nursery:
                while begun is not None:
                    self._failed = trio.Event()
                    nursery.start_soon(self._attempt, begun, nursery.cancel_scope)
                    with trio.move_on_after(STAGGER_S):
                        await self._failed.wait()
                    begun, rest = _begin_one_of(rest, self._opened, self._failures)
        except BaseException:
            if self._winner is not None:
                self._winner.close()
            raise
        if self._winner is None:
            raise self._failures.pop()
        return self._winner

    async def _attempt(self, begun: _Begun, race: trio.CancelScope) -> None:
        try:
            sock = await _finish(begun)
        except OSError as error:
            self._failures.append(error.with_traceback(None))
            self._failed.set()
            return
        if self._winner is not None:  # two answered in the same turn of the loop
            sock.close()
            return
        self._winner = sock
        race.cancel()


def _not_allowed(address: Address) -> LocalStreamError:
    what = f"{address} may not be reached from here"
    return LocalStreamError(Code.NOT_ALLOWED, what, "the rules forbid this address")


def _give_up(address: Address, failures: list[OSError]) -> NoReturn:
    """Raise the most telling failure for all of them."""
    error = min(failures, key=lambda failure: _TELLING.index(_code_of(failure)))
    code = _code_of(error)
    reason = (error.strerror or str(error)).lower()
    if isinstance(error, socket.gaierror | LookupsBusyError):
        cause = f"the name {address.host} could not be resolved"
    else:
        cause = _CAUSES.get(code, "")
    raise LocalStreamError(code, f"cannot reach {address}: {reason}", cause) from error


def _code_of(error: OSError) -> Code:
    table = _BY_RESOLVER if isinstance(error, socket.gaierror) else _BY_ERRNO
    return table.get(error.errno or 0, Code.GENERAL)
