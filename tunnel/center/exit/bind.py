"""The far end of a BIND: a port that takes one connection (protocol.md#bind)."""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import trio

from tunnel.addresses import Address, encode_address, parse_ip
from tunnel.center.denials import Reach, denial
from tunnel.center.who import WHO
from tunnel.errors import AddressError, Code, StreamError
from tunnel.log import log_event
from tunnel.net.bind import own_address_outwards, own_address_to
from tunnel.net.descriptors import DESCRIPTORS, TARGETS
from tunnel.net.dial import resolve
from tunnel.net.listen import open_listener, peer_of
from tunnel.net.relay import relay, reset_socket

if TYPE_CHECKING:
    from tunnel.link.virtual import VirtualStream
    from tunnel.net.dial import Allow
    from tunnel.net.listen import PortListener
    from tunnel.net.sockets import FastSocket

WAIT_S: Final = 120.0
"""For the peer to come: an FTP server comes within seconds, a person within this."""

logger = logging.getLogger("tunnel.exit")


async def serve_bind(
    stream: VirtualStream,
    expected: Address,
    *,
    host: str,
    allow: Allow,
    wait_s: float = WAIT_S,
) -> None:
    """Listen for one connection, tell the opener where and then whose, and relay.

    Args:
        stream: as it was offered; the session ends it.
        expected: the peer that shall come; a host of zeros is anybody.
        host: where to listen for anybody.
        allow: asked about the expected peer, or about each that comes.
        wait_s: for the peer to come.
    """
    try:
        only = await _expected_host(expected, allow)
        where = host if only is None else own_address_to(only.host, only.port)
        if isinstance(allow, Reach) and not allow.may_listen(where, host):
            return stream.reset(Code.NOT_ALLOWED, allow.denied(f"bind {expected}"))
        (listener, *others) = await open_listener(where, 0, backlog=1)
    except StreamError as error:
        if reason := denial(allow, error.code, f"bind {expected}"):
            return stream.reset(error.code, reason)
        return _refuse(stream, expected, error.code, error.what)
    except (AddressError, OSError) as error:
        return _refuse(stream, expected, Code.RESOURCE, str(error))
    for other in others:
        other.socket.close()
    number = listener.socket.fileno()
    if number >= DESCRIPTORS.edge and not DESCRIPTORS.make_room(number, expected):
        listener.socket.close()
        return _refuse(stream, expected, Code.RESOURCE, "no descriptor is free")
    peer = local = None
    with (
        listener.socket,
        trio.CancelScope(deadline=trio.current_time() + wait_s) as wait,
    ):
        stream.on_closed(lambda _code: wait.cancel())
        bound, port = listener.socket.getsockname()[:2]
        stream.accept(Address(_reachable(bound), port))
        local, peer = await _expected_one(listener, only, allow)
    stream.on_closed(None)
    if local is None or peer is None:
        stream.reset(Code.TIMEOUT, "nobody came")
        return
    try:
        await stream.send_all(encode_address(peer))
    except trio.BrokenResourceError:
        await reset_socket(local)
        return
    TARGETS.add(local, 0)
    try:
        await relay(local, stream)
    finally:
        TARGETS.left(local)


async def _expected_host(expected: Address, allow: Allow) -> Address | None:
    """Return the only host that may come, or None; the port is for ``allow`` alone."""
    if _is_anybody(expected.host):
        return None
    return await resolve(
        Address(expected.host, expected.port or 1),
        allow=lambda ip, _port: allow(ip, expected.port),
    )


async def _expected_one(
    listener: PortListener, only: Address | None, allow: Allow
) -> tuple[FastSocket, Address]:
    while True:
        local = await listener.accept()
        peer = peer_of(local)
        if peer is not None and (
            allow(peer.host, peer.port) if only is None else peer.host == only.host
        ):
            return local, peer
        await reset_socket(local)


def _refuse(stream: VirtualStream, expected: Address, code: Code, why: str) -> None:
    log_event(logger, logging.INFO, "exit.refused", **WHO.get(),
        target=f"bind {expected}", code=code.name, reason=why)  # fmt: skip
    stream.reset(code, why)


def _is_anybody(host: str) -> bool:
    ip = parse_ip(host)
    return ip is not None and ip.is_unspecified


def _reachable(host: str) -> str:
    """Return an address that a peer can be told, where we listen on all of them."""
    if _is_anybody(host):
        with suppress(OSError):
            return own_address_outwards(host)
    return host
