"""One port for every kind of proxy: the first byte of an app tells its protocol.

SOCKS begins with its version, 4 or 5. Anything else is HTTP, whose own parser says what
is wrong with it.
"""

from __future__ import annotations

import logging
import secrets
from typing import TYPE_CHECKING, Final

import trio

from tunnel.front.attempt import READ_BYTES
from tunnel.front.http.proxy import handle_http
from tunnel.front.socks import handle_socks
from tunnel.log import log_event
from tunnel.net.listen import LOG, MAX_VISITORS, peer_of, serve
from tunnel.net.sockets import FastSocket

if TYPE_CHECKING:
    from collections.abc import Awaitable, Sequence

    from tunnel.access.proxy_users import ProxyUsers
    from tunnel.addresses import Address
    from tunnel.front.dialer import Dialer

HANDSHAKE_S: Final = 10.0
"""For the words before a request. An app needs milliseconds; a silent one holds a
descriptor."""
_SOCKS: Final = (4, 5)


async def serve_proxy(
    listeners: Sequence[trio.abc.Listener[FastSocket]],
    dialer: Dialer,
    *,
    users: ProxyUsers | None = None,
    handshake_s: float = HANDSHAKE_S,
    max_apps: int = MAX_VISITORS,
) -> None:
    """Serve apps until cancelled; closes the listeners.

    Args:
        listeners: those of one front end.
        dialer: opens what the apps ask for.
        users: None serves every app that reaches the listeners, which only
            ``ops.entry_syntax`` keeps to this machine.
        handshake_s: for an app's first byte, and then for its whole request (SOCKS) or
            for the head of each request (HTTP).
        max_apps: with more, an app waits until one has left.
    """
    # Each proxy has its own: a request that passes two proxies is no loop.
    pseudonym = f"tunnel-{secrets.token_hex(4)}".encode()

    def handle(app: trio.abc.HalfCloseableStream, peer: Address) -> Awaitable[None]:
        return handle_app(app, dialer, peer, users, handshake_s, pseudonym)

    await serve(listeners, handle, max_visitors=max_apps)


async def handle_app(
    app: trio.abc.HalfCloseableStream,
    dialer: Dialer,
    peer: Address | None = None,
    users: ProxyUsers | None = None,
    handshake_s: float = HANDSHAKE_S,
    pseudonym: bytes = b"tunnel",
) -> None:
    """Serve one app to its end, whatever it speaks; owns the stream.

    ``peer`` is the address of the app, where its stream cannot tell.
    """
    peer = peer or peer_of(app)
    first: bytes | None = None
    reason = "the app left"
    try:
        if isinstance(app, FastSocket):  # most apps have spoken by now
            first = app.read_now(READ_BYTES)
        if first is None:
            reason = "no request in time"
            with trio.move_on_after(handshake_s):
                first = bytes(await app.receive_some(READ_BYTES))
                reason = "the app left"
    except trio.BrokenResourceError:
        reason = "the app left"
    except BaseException:
        await trio.aclose_forcefully(app)
        raise
    if not first:
        await trio.aclose_forcefully(app)
        log_event(LOG, logging.INFO, "proxy.refused", peer=str(peer), reason=reason)
    elif first[0] in _SOCKS:
        await handle_socks(app, first, dialer, peer, users, handshake_s)
    else:
        await handle_http(
            app,
            first,
            dialer,
            peer=peer,
            users=users,
            head_s=handshake_s,
            pseudonym=pseudonym,
        )
