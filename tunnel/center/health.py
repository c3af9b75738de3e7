"""A client's check of what it publishes: visitors are led there while it answers."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final, NamedTuple

import trio

from tunnel.errors import LocalStreamError
from tunnel.log import log_event
from tunnel.net.dial import connect

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tunnel.addresses import End

EVERY_S: Final = 5.0
"""Between two checks, and for the answer to one."""
FAILURES: Final = 2
"""In a row, until the target is out: one may be a restart."""
_LINE_BYTES: Final = 8_192
"""The first line of an answer is far shorter."""

logger = logging.getLogger("tunnel.client")


class Check(NamedTuple):
    """How to ask a target whether it is well."""

    path: str = ""
    """It answers a GET with a status below 400; empty: it takes a connection."""

    def __str__(self) -> str:
        return self.path or "tcp"


async def keep_checking(
    target: End, check: Check, tell: Callable[[bool], Awaitable[None]]
) -> None:
    """Check a target until cancelled.

    Args:
        target: which one.
        check: how.
        tell: called with True when it is out, and with False when it is back.
    """
    failures, is_out = 0, False
    while True:
        began = trio.current_time()
        failures = 0 if await is_well(target, check) else failures + 1
        if is_out != (failures >= FAILURES):
            is_out = not is_out
            await tell(is_out)
            event = "target.out" if is_out else "target.back"
            log_event(logger, logging.WARNING, event, target=str(target),
                check=str(check))  # fmt: skip
        await trio.sleep_until(began + EVERY_S)


async def is_well(target: End, check: Check) -> bool:
    """Ask once; never raises."""
    with trio.move_on_after(EVERY_S):
        try:
            sock = await connect(target)
        except LocalStreamError:
            return False
        async with trio.SocketStream(trio.socket.from_stdlib_socket(sock)) as stream:
            try:
                return not check.path or await _answers(stream, target, check.path)
            except trio.BrokenResourceError:
                return False
    return False


async def _answers(stream: trio.SocketStream, target: End, path: str) -> bool:
    await stream.send_all(
        f"GET {path} HTTP/1.1\r\nHost: {target}\r\nUser-Agent: tunnel\r\n"
        "Connection: close\r\n\r\n".encode()
    )
    line = b""
    while b"\n" not in line and len(line) < _LINE_BYTES:
        data = await stream.receive_some(_LINE_BYTES)
        if not data:
            break
        line += data
    words = line.split(b"\n")[0].split()
    return len(words) > 1 and words[0].startswith(b"HTTP/1.") and words[1][:1] in b"23"
