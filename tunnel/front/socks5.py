"""SOCKS5 for the programs of this machine: an app asks, the far side connects.

The whole conversation runs here, so that it costs no round trip of the link; the reply
comes after the *real* connect and says what became of it (protocol.md#create).
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import trio

from tunnel.errors import Code, StreamError
from tunnel.front.listen import LOG, MAX_VISITORS, carry, peer_of, serve
from tunnel.link.relay import GRACE_S, IDLE_S, ResettableStream
from tunnel.log import say
from tunnel.proto.frames import Target, TcpTarget
from tunnel.proto.socks5 import Socks5Server

if TYPE_CHECKING:
    from collections.abc import Sequence

OpenTarget = Callable[[Target], Awaitable[ResettableStream]]
"""Return a stream once the far side is connected; raise StreamError with the true code
if it is not. Ends by its own deadline; when cancelled it leaves nothing behind."""

HANDSHAKE_S: Final = 10.0
"""An honest app needs milliseconds; a silent one holds a descriptor."""
EARLY_BYTES: Final = 65_536
"""Kept for an app that talks on before it has its answer; more waits in the kernel."""
_READ_BYTES: Final = 4096


async def serve_socks(
    listeners: Sequence[trio.abc.Listener[trio.SocketStream]],
    open_target: OpenTarget,
    *,
    handshake_s: float = HANDSHAKE_S,
    max_apps: int = MAX_VISITORS,
    idle_s: float = IDLE_S,
) -> None:
    """Serve apps until cancelled; closes the listeners."""

    async def handle(app: trio.abc.HalfCloseableStream) -> None:
        await handle_app(app, open_target, handshake_s=handshake_s, idle_s=idle_s)

    await serve(listeners, handle, max_visitors=max_apps)


async def handle_app(
    app: trio.abc.HalfCloseableStream,
    open_target: OpenTarget,
    *,
    handshake_s: float = HANDSHAKE_S,
    idle_s: float = IDLE_S,
) -> None:
    """Serve one app to its end; owns the stream.

    An app that resets while its target is being reached takes the attempt with it.
    """
    peer = peer_of(app)
    dialogue = Socks5Server()
    early = bytearray()
    virtual: ResettableStream | None = None
    ready = False
    try:
        reason = await _ask(app, dialogue, handshake_s)
        if dialogue.request is not None:
            early += dialogue.leftover
            target = TcpTarget(dialogue.request.address)
            virtual = await _open(app, early, open_target, target)
            if virtual is not None:
                await app.send_all(dialogue.succeed(virtual.bound))
                ready = True
            reason = "the app left"
    except StreamError as error:
        reason = error.code.name
        if dialogue.request is not None:
            await _last_words(app, dialogue.fail(error.code))
    except trio.BrokenResourceError:
        reason = "the app left"
    finally:
        if not ready:
            if virtual is not None:
                virtual.reset(Code.RESET)
            await trio.aclose_forcefully(app)
    if ready and virtual is not None:
        await carry(app, virtual, peer, early=bytes(early), idle_s=idle_s)
    else:
        say(LOG, logging.INFO, "socks.refused", peer=str(peer), reason=reason)


async def _ask(
    app: trio.abc.HalfCloseableStream, dialogue: Socks5Server, handshake_s: float
) -> str:
    """Talk until the request is there or there is none; say why there is none."""
    with trio.move_on_after(handshake_s):
        while not dialogue.over:
            data = await app.receive_some(_READ_BYTES)
            if not data:
                return "the app left"
            dialogue.receive(data)
            output = dialogue.take_output()
            if dialogue.refused is not None:
                await _last_words(app, output)
                return dialogue.refused.name
            if output:
                await app.send_all(output)
    return "no request in time"


async def _open(
    app: trio.abc.HalfCloseableStream,
    early: bytearray,
    open_target: OpenTarget,
    target: Target,
) -> ResettableStream | None:
    """Open while watching the app; None when it left. Adds to ``early``."""
    virtual: ResettableStream | None = None
    refusal: StreamError | None = None
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_watch, app, early, nursery.cancel_scope)
            try:
                virtual = await open_target(target)
            except StreamError as error:
                refusal = error  # not through the nursery: it would make a group of it
            nursery.cancel_scope.cancel()
    except BaseException:
        if virtual is not None:  # opened in the moment of our own cancellation
            virtual.reset(Code.RESET)
        raise
    if refusal is not None:
        raise refusal
    return virtual


async def _watch(
    app: trio.abc.HalfCloseableStream, early: bytearray, opening: trio.CancelScope
) -> None:
    """Keep what the app says too soon; end ``opening`` when it resets.

    Its end of file is only a half-close: ``relay`` meets it again.
    """
    try:
        while len(early) < EARLY_BYTES:
            data = await app.receive_some(_READ_BYTES)
            if not data:
                return
            early += data
    except trio.BrokenResourceError:
        opening.cancel()


async def _last_words(app: trio.abc.HalfCloseableStream, words: bytes) -> None:
    """Send, then let the app close first: unread bytes would turn it into a RST."""
    with trio.move_on_after(GRACE_S), suppress(trio.BrokenResourceError):
        await app.send_all(words)
        await app.send_eof()
        while await app.receive_some(_READ_BYTES):
            pass
