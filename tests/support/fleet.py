"""Many center-clients in one program, each with one live connection.

As a script: told what to do on stdin, a line at a time; what happens stands on stdout.
The connections lead through the server and back to an echo service of this program.
"""

from __future__ import annotations

import argparse
import logging
import resource
import sys
from functools import partial
from typing import TYPE_CHECKING

import trio

from tunnel.access.join import parse_join
from tunnel.center.client import CenterClient
from tunnel.center.events import LinkDown, LinkResumed, SessionLost
from tunnel.log import LogfmtFormatter

if TYPE_CHECKING:
    from tunnel.center.events import Notice
    from tunnel.link.virtual import VirtualStream


def say(*words: object) -> None:
    print(*words, flush=True)


class Fleet:
    """``size`` clients of one server, and what has happened to them."""

    def __init__(self, join: str, size: int) -> None:
        self._join = parse_join(join)
        self._size = size
        self._down: set[int] = set()
        self._streams: list[VirtualStream] = []
        self._echoed = 0

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            (listener,) = await nursery.start(
                partial(trio.serve_tcp, echo, 0, host="127.0.0.1", backlog=1024)
            )
            self._where = f"127.0.0.1:{listener.socket.getsockname()[1]}"
            async with trio.open_nursery() as starting:
                for number in range(self._size):
                    starting.start_soon(self._start, number, nursery)
            say("up", len(self._streams))
            async for line in trio.wrap_file(sys.stdin):
                if line.strip() == "check":
                    await self._check()
            nursery.cancel_scope.cancel()

    async def _start(self, number: int, nursery: trio.Nursery) -> None:
        client = CenterClient(self._join, tell=partial(self._tell, number))
        await nursery.start(client.run)
        self._streams.append(await client.open(self._where, deadline_s=30))

    def _tell(self, number: int, notice: Notice) -> None:
        match notice:
            case LinkDown(was_up=True):
                self._down.add(number)
                if len(self._down) == self._size:
                    say("down", self._size)
            case LinkResumed():
                self._down.discard(number)
                if not self._down:
                    say("back", self._size)
            case SessionLost():
                say("lost", number, notice.reason)
            case _:
                """Nothing that the test asks for."""

    async def _check(self) -> None:
        """Send a word through every connection; say how many came back."""
        self._echoed = 0
        async with trio.open_nursery() as nursery:
            for stream in self._streams:
                nursery.start_soon(self._ask, stream)
        say("alive", self._echoed)

    async def _ask(self, stream: VirtualStream) -> None:
        try:
            await stream.send_all(b"alive?")
            answer = b""
            while len(answer) < 6 and (data := await stream.receive_some()):
                answer += data
        except trio.BrokenResourceError:
            return
        self._echoed += answer == b"alive?"


async def echo(stream: trio.SocketStream) -> None:
    try:
        async for data in stream:
            await stream.send_all(data)
    except trio.BrokenResourceError:
        pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("join")
    parser.add_argument("size", type=int)
    given = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LogfmtFormatter())
    logging.getLogger("tunnel").addHandler(handler)
    trio.run(Fleet(given.join, given.size).run)


if __name__ == "__main__":
    main()
