"""A server and its clients in one run: where the owner gets, and where a guest does.

    python granted.py RIGHT,RIGHT… HOST:PORT…

A line for each target says what the owner heard and what the guest did; datagrams are
sent by the guest alone, to all targets in turn, unless ``no-datagrams`` is the first.
"""

from __future__ import annotations

import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

import trio

from tunnel.access.join import JoinLine, make_token
from tunnel.access.rules import ALL, parse_rights
from tunnel.access.users import User
from tunnel.addresses import Address
from tunnel.center.client import CenterClient
from tunnel.center.server import CenterServer, ServerOptions
from tunnel.errors import Code, StreamError
from tunnel.proto.frames import TcpTarget
from tunnel.proto.proofs import verifier_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

COMMAND: Final = (sys.executable, __file__)
NO_DATAGRAMS: Final = "no-datagrams"


@asynccontextmanager
async def up(name: str, join: JoinLine) -> AsyncIterator[CenterClient]:
    client = CenterClient(join, tell=lambda _notice: None)
    async with trio.open_nursery() as nursery:
        await nursery.start(client.run)
        yield client
        nursery.cancel_scope.cancel()


async def heard(client: CenterClient, target: Address) -> str:
    try:
        stream = await client.open(TcpTarget(target))
    except StreamError as error:
        return f"{error.code.name} {error.what}"
    stream.reset(Code.RESET)
    return "connected"


async def main(*args: str) -> None:
    words, *texts = args
    silent = texts[0] == NO_DATAGRAMS
    texts = texts[silent:]
    token = make_token()
    rights = {"default": ALL, "guest": parse_rights(words.split(","))}
    users = {
        name: User(name, verifier_of(name, token.reveal()), may)
        for name, may in rights.items()
    }
    options = ServerOptions(Address("127.0.0.1", 0), plain=True)
    server = CenterServer(users, None, options)
    targets = [Address.parse(text) for text in texts]
    async with trio.open_nursery() as nursery:
        at = await nursery.start(server.run)
        joins = [JoinLine(name, token, at.host, at.port, None, True) for name in users]
        async with up("default", joins[0]) as owner, up("guest", joins[1]) as guest:
            for target in targets:
                answers = await heard(owner, target), await heard(guest, target)
                print(target, *answers, sep=" | ", flush=True)
            datagrams = await guest.associate()
            for target in () if silent else targets:
                datagrams.send(target, str(target).encode())
            await trio.sleep_forever()


if __name__ == "__main__":
    trio.run(main, *sys.argv[1:])
