"""Carry one visitor, as all front ends do, and say how it went."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from tunnel.errors import Code
from tunnel.net.access_log import say_served, wanted
from tunnel.net.relay import Traffic, relay

if TYPE_CHECKING:
    from collections.abc import Callable

    import trio

    from tunnel.addresses import Address
    from tunnel.net.relay import ResettableStream


async def carry(
    stream: trio.abc.HalfCloseableStream,
    virtual: ResettableStream,
    peer: Address | None,
    *,
    early: bytes = b"",
    entry: str = "",
    target: object = None,
    say: Callable[[Code], None] | None = None,
) -> None:
    """Relay to the end, and write the line of the access log. Owns both streams.

    Args:
        stream: the visitor.
        virtual: where it is led.
        peer: the visitor's address.
        early: was read from ``stream`` before, and goes first.
        entry: where it came to, if ``ENTRY`` does not say it.
        target: what it has asked for, where it had a choice.
        say: writes the line instead.
    """
    began, code, traffic = time.monotonic(), Code.RESET, Traffic()
    try:
        result = await relay(stream, virtual, early=early, traffic=traffic)
        code = result.code
    finally:
        if say is not None:
            say(code)
        elif wanted():
            passed = traffic.sent, traffic.received
            say_served(time.monotonic() - began, stream, virtual, peer=peer,
                entry=entry, target=target, passed=passed, code=code)  # fmt: skip
