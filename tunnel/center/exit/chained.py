"""Leaving at another client: the server between an opener and an exit.

The exit alone decides what it dials, and its answer is the answer (protocol.md#exits).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import trio

from tunnel.center.exit.tcp import Opener
from tunnel.errors import Code, StreamError
from tunnel.net.relay import GRACE_S, relay

if TYPE_CHECKING:
    from tunnel.link.virtual import VirtualStream


async def serve_chained(stream: VirtualStream, onward: VirtualStream) -> None:
    """Join an opener and the exit at another client; owns both streams.

    Refusals keep their code and reason; half-closes and resets pass.
    """
    try:
        with Opener(stream).waits(math.inf):
            await onward.wait_open()
    except BaseException as error:
        onward.reset(Code.RESET)
        if isinstance(error, StreamError):
            return stream.reset(error.code, error.what)
        stream.reset(Code.RESET)
        if isinstance(error, trio.TooSlowError):
            return None
        raise
    stream.on_closed(None)
    stream.accept(onward.bound)
    with trio.CancelScope() as scope:

        def opener_lost(code: Code) -> None:
            # Reading would tell, but not while the exit takes nothing. What the opener
            # sent before its reset gets the time that it has on any way.
            if code is not Code.NORMAL:
                scope.deadline = trio.current_time() + GRACE_S

        stream.on_closed(opener_lost)
        await relay(stream, onward)
