"""SOCKS4, 4a and 5 for the programs of this machine.

The whole conversation runs here, so that it costs no round trip of the link. The reply
comes after the *real* connect and tells its result (protocol.md#create). Names are
carried to the exit and never resolved here.
"""

from __future__ import annotations

import logging
import time
from functools import partial
from typing import TYPE_CHECKING, Final

import trio

from tunnel.errors import Code, LocalStreamError, StreamError
from tunnel.front.associate import associate
from tunnel.front.attempt import (
    READ_BYTES,
    attempt,
    drop_resource,
    drop_stream,
    last_words,
    reach,
)
from tunnel.front.login import Login
from tunnel.front.udp import say_flow
from tunnel.log import log_event
from tunnel.net.access_log import wanted
from tunnel.net.carry import carry
from tunnel.net.listen import LOG, peer_of
from tunnel.net.sockets import FastSocket, quick
from tunnel.proto.frames import TcpTarget
from tunnel.socks.common import SocksCommand
from tunnel.socks.v4 import Socks4Server
from tunnel.socks.v5 import Socks5Server

if TYPE_CHECKING:
    from tunnel.access.proxy_users import ProxyUsers
    from tunnel.addresses import Address
    from tunnel.front.dialer import Dialer, PeerPort
    from tunnel.net.relay import ResettableStream
    from tunnel.socks.common import SocksRequest, SocksServer

SLOWED_S: Final = 1.0
"""Pause before a password is refused that was not looked at: SOCKS has no "later"."""
BIND_S: Final = 180.0
"""For the peer of a BIND to come: a person may have to do something first."""


async def handle_socks(
    app: trio.abc.HalfCloseableStream,
    first: bytes,
    dialer: Dialer,
    peer: Address | None,
    users: ProxyUsers | None,
    handshake_s: float,
) -> None:
    """Serve one app to its end; owns the stream.

    An app that resets while its target is being reached takes the attempt with it.

    Args:
        app: the stream that ``first`` was read from.
        first: at least one byte; the first is the version.
        dialer: opens what the app asks for.
        peer: the address of the app, as far as it is known.
        users: None serves every app; with users only SOCKS5 is served.
        handshake_s: for all that is said before the request is there.
    """
    login = Login(peer, "proxy")
    serving = _Serving(app, dialer, _server_for(first, users, login), login)
    ready = False
    try:
        reason = await serving.ask(first, handshake_s)
        if serving.server.request is not None:
            ready = await serving.answer(serving.server.request)
            reason = "the app left"
    except StreamError as error:
        reason = error.code.name
        if serving.server.request is not None:
            await last_words(app, serving.server.fail(error.code))
    except trio.BrokenResourceError:
        reason = "the app left"
    finally:
        if serving.virtual is not None and not ready:
            serving.virtual.reset(Code.RESET)
        if serving.virtual is None or not ready:
            await trio.aclose_forcefully(app)
    if ready and serving.virtual is not None:
        early, target = bytes(serving.early), serving.server.request
        await carry(
            app, serving.virtual, peer, early=early, target=target and target.address
        )
    elif not ready:
        log_event(LOG, logging.INFO, "proxy.refused", peer=str(peer), reason=reason)


def _server_for(first: bytes, users: ProxyUsers | None, login: Login) -> SocksServer:
    if first[0] == 4:
        return Socks4Server(closed=users is not None)
    if users is None:
        return Socks5Server(None)

    def check(name: bytes, password: bytes) -> bool:
        return not login.wait_s() and login.said(right=users.check(name, password))

    return Socks5Server(check)


class _Serving:
    """One app's request, and what came of it."""

    def __init__(
        self,
        app: trio.abc.HalfCloseableStream,
        dialer: Dialer,
        server: SocksServer,
        login: Login,
    ) -> None:
        self._app = app
        self._fast = quick(app)
        self._dialer = dialer
        self._login = login
        self.server = server
        self.early = bytearray()
        self.virtual: ResettableStream | None = None

    async def ask(self, data: bytes | bytearray, handshake_s: float) -> str:
        """Talk until the request is there; return why there will be none."""
        server = self.server
        with trio.move_on_after(handshake_s):
            while True:
                server.receive(data)
                output = server.take_output()
                if server.refused is not None:
                    if self._login.wait_s():
                        await trio.sleep(SLOWED_S)
                    await last_words(self._app, output)
                    return server.refused.name
                if output:
                    await self._fast.put(output)
                if server.over:
                    break
                data = await self._app.receive_some(READ_BYTES)
                if not data:
                    return "the app left"
        return "no request in time"

    async def answer(self, request: SocksRequest) -> bool:
        """Do what was asked for and say so; return False when the app has left.

        Afterwards ``virtual`` is to be relayed, or everything is over.

        Raises:
            StreamError: it cannot be done; nothing but that remains to be said.
        """
        self.early += self.server.leftover
        match request.command:
            case SocksCommand.CONNECT:
                return await self._connect(request.address)
            case SocksCommand.BIND:
                return await self._bind(request.address)
            case SocksCommand.ASSOCIATE:
                return await self._associate(request.address)

    async def _connect(self, target: Address) -> bool:
        wanted = TcpTarget(target)
        self.virtual = await reach(self._app, self.early, self._dialer, wanted)
        if self.virtual is None:
            return False
        # To relay is the checkpoint.
        await self._fast.put(self.server.succeed(self.virtual.bound))
        return True

    async def _bind(self, expected: Address) -> bool:
        if self._dialer.bind is None:
            raise LocalStreamError(Code.UNSUPPORTED, "this exit does not listen")
        make = partial(self._dialer.bind, expected)
        port = await attempt(self._app, self.early, make, drop_resource)
        if port is None:
            return False
        try:
            await self._app.send_all(self.server.succeed(port.address))
            return await self._accept(port)
        finally:
            await drop_resource(port)

    async def _accept(self, port: PeerPort) -> bool:
        async def drop(accepted: tuple[ResettableStream, Address]) -> None:
            await drop_stream(accepted[0])

        with trio.move_on_after(BIND_S) as waiting:
            # A peer may take minutes to come: a port must not outlive its app so long,
            # and an app that ends its side before a peer is there has left.
            accepted = await attempt(
                self._app, self.early, port.accept, drop, ends_with_app=True
            )
            if accepted is None:
                return False
            self.virtual, peer = accepted
        if waiting.cancelled_caught or self.virtual is None:
            raise LocalStreamError(Code.TIMEOUT, "nobody came")
        await self._app.send_all(self.server.succeed(peer))
        return True

    async def _associate(self, source: Address) -> bool:
        make, app = self._dialer.associate, self._app
        if make is None or not isinstance(app, FastSocket):
            raise LocalStreamError(Code.UNSUPPORTED, "no datagrams here")
        far = await attempt(app, bytearray(), make, drop_resource)
        if far is None:
            return False
        reply, public = self.server.succeed, self._dialer.udp_public
        peer, began = peer_of(app), time.monotonic()
        try:
            await associate(app, far, source.port, reply, public)
        finally:
            if wanted():
                say_flow(began, far, peer)
        return True
