"""Leaving at another client: the server between an opener and an exit.

The exit's answer is the answer, and it alone decides what it dials
(protocol.md#exits).
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
    """Join an opener and the exit at another client: its answer is the answer.

    Owns both. Refusals keep their code and reason, half-closes and resets pass.
    """
    is_open = False
    try:
        with Opener(stream).waits(math.inf):
            await onward.wait_open()
        is_open = True
    except StreamError as error:
        stream.reset(error.code, error.what)
        return
    except trio.TooSlowError:
        return
    finally:
        if not is_open:
            onward.reset(Code.RESET)
            stream.reset(Code.RESET)
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
