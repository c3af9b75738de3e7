"""Bind sockets on the address that a person named: one, or several on one port.

``*`` is every address of this machine and ``localhost`` both loopbacks, a socket for
each family. A machine that lacks one of them gets the other. An IPv6 socket takes IPv6
only, so that ``0.0.0.0`` and ``[::]`` each mean what they say.

    bind_all, bind_one                          sockets
    own_address_to, own_address_outwards        which address of ours leads to another
"""

from __future__ import annotations

import errno
import os
import socket
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

from tunnel.addresses import EVERYWHERE, LOOPBACKS, WILDCARDS, Address, is_localhost
from tunnel.errors import AddressError, Exit
from tunnel.net.lookup import addresses_of, why_not_found
from tunnel.platform.sockets import open_socket

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tunnel.addresses import UnixPath

TRIES: Final = 16
"""Attempts to find a port that is free in all families; mostly the first is."""
_FAMILY_LACKING: Final = frozenset(
    # A kernel without IPv6; a machine, or a container, where it is switched off.
    (errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT, errno.EADDRNOTAVAIL)
)
_NUMERIC: Final = socket.AI_PASSIVE | socket.AI_NUMERICHOST

_Where = tuple[int, tuple[str | int | bytes, ...]]
"""A family, and the address that bind(2) takes."""


async def bind_all(
    host: str,
    port: int,
    kind: socket.SocketKind,
    prepare: Callable[[socket.socket], None],
    backlog: int | None = None,
) -> list[socket.socket]:
    """Bind a socket on every address of ``host``; the caller closes the sockets.

    They do not block.

    Args:
        host: an address of this machine, a name of one, ``*`` or ``localhost``.
        port: the same on all addresses; 0 takes one that is free on all of them.
        kind: TCP or UDP.
        prepare: called with each socket before it is bound.
        backlog: listen, with this many places for connections; None for UDP.

    Raises:
        AddressError: taken, not of this machine, or not allowed; nothing is open.
    """
    both = WILDCARDS if host == EVERYWHERE else ()
    if is_localhost(host):
        both = LOOPBACKS
    try:
        where = await _addresses(both or (host,), port, kind)
    except OSError as error:
        raise address_error(host, port, error) from error
    tries = TRIES if port == 0 and len(where) > 1 else 1
    while True:
        tries -= 1
        try:
            return _bind(where, kind, prepare, backlog, may_lack=bool(both))
        except AddressError as error:
            if not tries or not is_in_use(error):
                raise


async def try_port(host: str, port: int, kind: socket.SocketKind) -> None:
    """Raise AddressError if ``bind_all`` would; nobody is let in meanwhile."""

    def share(sock: socket.socket) -> None:
        if kind is socket.SOCK_STREAM:  # as listeners do: the dying are not in the way
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)

    for sock in await bind_all(host, port, kind, share):
        sock.close()


def is_in_use(error: AddressError) -> bool:
    """Say whether another program has the port, so that another one may do."""
    cause = error.__cause__
    return isinstance(cause, OSError) and cause.errno == errno.EADDRINUSE


async def _addresses(
    hosts: Sequence[str], port: int, kind: socket.SocketKind
) -> list[_Where]:
    found: list[_Where] = []
    for host in hosts:
        for ip in await addresses_of(host):
            answers = socket.getaddrinfo(ip or None, port, type=kind, flags=_NUMERIC)
            found += [(family, tuple(where)) for family, _, _, _, where in answers]
    return list(dict.fromkeys(found))


def _bind(
    addresses: Sequence[_Where],
    kind: socket.SocketKind,
    prepare: Callable[[socket.socket], None],
    backlog: int | None,
    *,
    may_lack: bool,
) -> list[socket.socket]:
    bound: list[socket.socket] = []
    with ExitStack() as opened:
        for number, (family, (host, wanted, *rest)) in enumerate(addresses, 1):
            port = int(wanted) or (bound[0].getsockname()[1] if bound else 0)
            try:
                sock = bind_one(family, (host, port, *rest), kind, prepare, backlog)
            except OSError as error:
                lacks = may_lack and error.errno in _FAMILY_LACKING
                if not lacks or (number == len(addresses) and not bound):
                    raise address_error(str(host), port, error) from error
            else:
                bound.append(opened.enter_context(sock))
        opened.pop_all()
    return bound


def bind_one(
    family: int,
    where: tuple[str | int | bytes, ...] | str,
    kind: socket.SocketKind,
    prepare: Callable[[socket.socket], None],
    backlog: int | None,
) -> socket.socket:
    """Bind one socket on what bind(2) takes; arguments as ``bind_all``'s.

    Raises:
        OSError: nothing is open.
    """
    sock = open_socket(family, kind)
    try:
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        prepare(sock)
        sock.bind(where)
        if backlog is not None:
            sock.listen(backlog)
    except BaseException:
        sock.close()
        raise
    return sock


def address_error(host: str, port: int, error: OSError) -> AddressError:
    """Return why an address cannot be listened on, and what would help."""
    if isinstance(error, socket.gaierror):
        return AddressError(
            f"{host} cannot be listened on: {why_not_found(error)}",
            "only a name whose address this machine has can be listened on",
            "use an IP address of this machine, or the port alone",
        )
    match error.errno:
        case errno.EADDRINUSE:
            return AddressError(
                f"port {port} is already in use on {host}",
                "another program, or another tunnel, listens there",
                f"choose another port, or look who has it: ss -ltnp 'sport = :{port}'",
                Exit.ADDRESS_TAKEN,
            )
        case errno.EADDRNOTAVAIL:
            return AddressError(
                f"{host} is not an address of this machine",
                f"nothing can listen on {Address(host, port)} here",
                "use one that this lists: ip -brief address",
            )
        case errno.EACCES | errno.EPERM:
            return AddressError(
                f"port {port} on {host} is not allowed for this user",
                "ports below 1024 need a right of their own",
                "choose a port from 1024 up",
                Exit.AUTH,
            )
        case _:
            return AddressError(
                f"cannot listen on {Address(host, port)}", error.strerror or str(error)
            )


def unix_error(where: UnixPath, error: OSError) -> AddressError:
    """Return the same of a unix path."""
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


# Addresses of this machine: the kernel's routes are asked ---------------------------

_ANY_PORT: Final = 9
_FAR: Final = {False: "192.0.2.1", True: "2001:db8::1"}
"""By whether it is IPv6: addresses for documentation (RFC 5737, RFC 3849). Only a
default route leads there."""


def own_address_to(host: str, port: int = 0) -> str:
    """Return the address of this machine that an IP address can answer to.

    Nothing is sent: to connect a UDP socket only looks the route up.

    Raises:
        OSError: there is no route.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((host, port or _ANY_PORT))
        return str(probe.getsockname()[0])


def own_address_outwards(wildcard: str) -> str:
    """Return the address of the default route in the family of ``0.0.0.0`` or ``::``.

    Raises:
        OSError: there is no default route.
    """
    return own_address_to(_FAR[":" in wildcard])
