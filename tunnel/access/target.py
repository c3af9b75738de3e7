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
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from itertools import chain, zip_longest
from typing import TYPE_CHECKING, Final, NamedTuple, NoReturn

import trio

from tunnel.errors import Code, LocalStreamError
from tunnel.proto.frames import UnixPath
from tunnel.proto.host import LOOPBACKS, host_of, is_localhost

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

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
    socket.EAI_ADDRFAMILY: Code.HOST_UNREACHABLE,
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

    Raises:
        LocalStreamError: the code says why. Of several failures it is the first of:
            refused, timed out, host unreachable, forbidden by this machine, out of
            resources, network unreachable, anything else.
    """
    _check(address)
    failures: list[OSError] = []
    until = trio.current_time() + deadline_s
    try:
        endpoints = await _resolve(address, until, within)
        endpoints = [e for e in endpoints if allow(e.host, address.port)]
        if not endpoints:
            raise _not_allowed(address)
        if len(endpoints) == 1:
            return await _dial(endpoints[0], until, within, opened)
        if is_localhost(address.host):
            return await _dial_loopbacks(endpoints, failures, until, within, opened)
        with within(until):
            return await _Race(failures, opened).run(endpoints)
    except OSError as error:
        # Its traceback holds this frame, which holds it: a cycle for the collector.
        failures.append(error.with_traceback(None))
    except trio.TooSlowError:
        failures.append(_no_answer(deadline_s))
    _give_up(address, failures)


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
    try:
        endpoints = await _resolve(address, trio.current_time() + deadline_s)
    except OSError as error:
        _give_up(address, [error])
    except trio.TooSlowError:
        _give_up(address, [_no_answer(deadline_s)])
    for endpoint in endpoints:
        if allow(endpoint.host, address.port):
            return replace(address, host=endpoint.host)
    raise _not_allowed(address)


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
    if not UnixPath.is_usable(target.path):
        what = f"cannot use the path {target.path!r}"
        raise LocalStreamError(Code.ADDRESS_UNSUPPORTED, what, "it is not absolute")
    # trio takes the kernel's "no room in the backlog" (EAGAIN) for a connect that is
    # under way, and would give back a socket that is not connected.
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.setblocking(False)
    try:
        opened(sock)
        with within(trio.current_time() + deadline_s):
            await trio.lowlevel.checkpoint()
            while not _connected_at_once(sock, target.path):  # noqa: ASYNC110  # see there
                await trio.sleep(_BACKLOG_POLL_S)
        return sock
    except (OSError, trio.TooSlowError) as error:
        sock.close()
        raise _unix_failure(target, error) from error
    except BaseException:
        sock.close()
        raise


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


async def _resolve(
    address: Address, until: float, within: Within = trio.fail_at
) -> list[_Endpoint]:
    """The numeric addresses of a host, IPv6 and IPv4 in turn, each once.

    An IP literal asks nobody, and waits for nothing. The resolver's first choice stays
    first (RFC 6724).
    """
    if _is_ipv4(address.host):
        return [_Endpoint(socket.AF_INET, (address.host, address.port))]
    if is_localhost(address.host):
        return _loopbacks(address.port)
    try:
        with within(until):
            found = await trio.socket.getaddrinfo(
                address.host, address.port, type=socket.SOCK_STREAM
            )
    except UnicodeError:  # idna's errors are of this family too
        raise _unusable(address, "the host is not a valid name") from None
    endpoints = (
        _undressed(_Endpoint(family, sockaddr))
        for family, _type, _proto, _name, sockaddr in found
        if family in (socket.AF_INET, socket.AF_INET6)
    )
    in_turn = _in_turn(dict.fromkeys(endpoints))[:MAX_ADDRESSES]
    if not in_turn:
        raise socket.gaierror(socket.EAI_NODATA, "the name has no IP address")
    return in_turn


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


async def _dial(
    endpoint: _Endpoint,
    until: float = math.inf,
    within: Within = trio.fail_at,
    opened: Opened = _as_it_is,
) -> socket.socket:
    """One attempt. Raises OSError; whatever is raised, the descriptor is closed.

    No checkpoint when the answer comes at once: then no turn of the scheduler and no
    deadline are needed, which cost more than to ask twice.
    """
    sock = _new_socket(endpoint.family)
    try:
        opened(sock)
        error = sock.connect_ex(endpoint.sockaddr)
        if error == errno.EINPROGRESS:
            # Over loopback it has succeeded or failed by now, and this says how.
            error = sock.connect_ex(endpoint.sockaddr)
        if error == errno.EALREADY:
            with within(until):
                await trio.lowlevel.wait_writable(sock)
            error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error:
            raise OSError(error, os.strerror(error))
        if sock.getsockname() == endpoint.sockaddr:
            # Dialling a free local port may pick this very port as the source, and TCP
            # then joins the socket with itself: an echo where nobody listens.
            raise ConnectionRefusedError(errno.ECONNREFUSED, "reached only itself")
        return sock
    except BaseException:
        sock.close()
        raise


async def _dial_loopbacks(
    endpoints: list[_Endpoint],
    failures: list[OSError],
    until: float,
    within: Within,
    opened: Opened,
) -> socket.socket:
    """Dial the first of two if it answers at once, as loopback does; else both.

    A race costs tasks, which for a connection on the machine is more than all else.
    """
    try:
        return await _dial(endpoints[0], within=_no_wait, opened=opened)
    except OSError as error:
        failures.append(error.with_traceback(None))
        return await _dial(endpoints[1], until, within, opened)
    except trio.TooSlowError:  # it has no room just now
        with within(until):
            return await _Race(failures, opened).run(endpoints)


@contextmanager
def _no_wait(_until: float) -> Iterator[None]:
    if _until:
        raise trio.TooSlowError
    yield


def _new_socket(family: int) -> socket.socket:
    return socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)


class _Race:
    """Staggered attempts of which the first to succeed ends the others."""

    def __init__(self, failures: list[OSError], opened: Opened = _as_it_is) -> None:
        self._failures = failures
        self._opened = opened
        self._winner: socket.socket | None = None
        self._failed = trio.Event()

    async def run(self, endpoints: list[_Endpoint]) -> socket.socket:
        """Raise the last failure if all failed; the others are in ``failures``."""
        try:
            async with trio.open_nursery() as nursery:
                for endpoint in endpoints:
                    self._failed = trio.Event()
                    nursery.start_soon(self._attempt, endpoint, nursery.cancel_scope)
                    with trio.move_on_after(STAGGER_S):
                        await self._failed.wait()
        except BaseException:
            if self._winner is not None:
                self._winner.close()
            raise
        if self._winner is None:
            raise self._failures.pop()
        return self._winner

    async def _attempt(self, endpoint: _Endpoint, race: trio.CancelScope) -> None:
        try:
            sock = await _dial(endpoint, opened=self._opened)
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
    if isinstance(error, socket.gaierror):
        cause = f"the name {address.host} could not be resolved"
    else:
        cause = _CAUSES.get(code, "")
    raise LocalStreamError(code, f"cannot reach {address}: {reason}", cause) from error


def _code_of(error: OSError) -> Code:
    table = _BY_RESOLVER if isinstance(error, socket.gaierror) else _BY_ERRNO
    return table.get(error.errno or 0, Code.GENERAL)
