"""HTTP/2 beside the one engine for HTTP: each stream is a message of HTTP/1.1 to it.

The library ``h2`` is loaded when somebody speaks it: it is 5 MB.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    import trio

    from tunnel.front.http.server import Visit


async def serve_http_2(
    visit: Visit,
    serve: Callable[[trio.abc.HalfCloseableStream], Awaitable[None]],
) -> None:
    """Serve a visitor that speaks HTTP/2 to its end; owns its stream.

    Args:
        visit: what it has said, from the first byte on, is in ``waiting``.
        serve: serves a connection of HTTP/1.1, which several streams seem to be.
    """
    from tunnel.front.http.h2.visitor import VisitorConnection

    await VisitorConnection(visit, serve).run()
