"""The walks of docs/architecture.md are those that the program takes."""

from __future__ import annotations

import re
from functools import partial
from socket import inet_aton
from typing import TYPE_CHECKING, Final

import pytest
import trio
import trio.testing
from support.center import LOOPBACK, center, running, target
from support.engines import needs_epoll
from support.tables import ROOT
from support.walks import Walk

from tunnel.access.join import parse_join
from tunnel.addresses import Address
from tunnel.center.client import CenterClient
from tunnel.center.events import MappingReady
from tunnel.front.dialer import Dialer
from tunnel.front.proxy import serve_proxy
from tunnel.net.listen import listen_at
from tunnel.proto.proofs import from_base64url, secrets_of

if TYPE_CHECKING:
    from pathlib import Path

PAGE: Final = (ROOT / "docs/architecture.md").read_text()
WORD: Final = b"\x9dthe word that is followed\xf1"


def told(heading: str) -> list[list[str]]:
    """Return the tables below a heading of the page: file and function of each row."""
    _, _, text = PAGE.partition(f"\n## {heading}\n")
    tables: list[list[str]] = []
    row = r"^\| (\d+) \| (\S+\.py) \| `([^`]+)` \|"
    for number, file, function in re.findall(
        row, text.partition("\n## ")[0], re.MULTILINE
    ):
        if number == "1":
            tables.append([])
        tables[-1].append(f"{file} {function}")
        assert len(tables[-1]) == int(number)
    return tables


@needs_epoll
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
async def test_the_walk_of_a_byte(tmp_path: Path, tls: bool) -> None:
    there, back = told("The walk of a byte")
    assert len(there) <= 12
    assert len(back) <= 12
    if tls:  # what goes over the wire cannot be known again
        there, back = (
            [one.replace("Plain", "Tls") for one in way if "net/sockets" not in one]
            for way in (there, back)
        )
    began, came = trio.Event(), trio.Event()

    async def take(stream: trio.SocketStream) -> None:
        data = b""
        async for piece in stream:
            data += piece
            began.set()
            if WORD in data:
                return came.set()

    async with (
        center(tmp_path if tls else None) as where,
        target(take) as service,
        running((pair := where.client())[0]),
    ):
        client, notices = pair
        await client.publish_target(Address(LOOPBACK, 0), service)
        public = (await notices.next(MappingReady)).public
        assert isinstance(public, Address)
        async with await trio.open_tcp_stream(public.host, public.port) as visitor:
            await visitor.send_all(b"before")
            await began.wait()  # later bytes walk as this one does not
            await trio.testing.wait_all_tasks_blocked()
            with Walk(WORD) as walk, trio.fail_after(10):
                await visitor.send_all(WORD)
                await came.wait()
    found = walk.ways()
    if tls:
        found = [[one for one in way if "net/sockets" not in one] for way in found]
    assert found == [there, back]


async def test_the_walk_of_a_socks_target() -> None:
    asked, dialled = told("The walk of a SOCKS target")
    stacks = "SocksServer._decide", "ConnTable.open", "_begin_one"
    asked_for = "127.0.0.9"  # no other thing here has this address
    raw = inet_aton(asked_for)
    listener = (await trio.open_tcp_listeners(0, host=asked_for))[0]
    port = listener.socket.getsockname()[1].to_bytes(2, "big")
    async with (
        center() as where,
        running(client := where.client()[0]),
        listener,
        trio.open_nursery() as nursery,
    ):
        listeners, proxy = await listen_at(Address(LOOPBACK, 0))
        assert isinstance(proxy, Address)
        dialer = Dialer(client.open, begin=client.begin)
        nursery.start_soon(partial(serve_proxy, listeners, dialer))
        async with await trio.open_tcp_stream(proxy.host, proxy.port) as app:
            await app.send_all(b"\5\1\0")
            assert await app.receive_some() == b"\5\0"
            with Walk(raw, asked_for, stacks=stacks) as walk:
                await app.send_all(b"\5\1\0\1" + raw + port)
                assert (await app.receive_some())[:2] == b"\5\0"
        nursery.cancel_scope.cancel()
    assert walk.ways() == [asked + dialled]


async def test_the_walk_of_a_token() -> None:
    (told_walk,) = told("The walk of a token")
    assert len(told_walk) <= 12
    async with center() as where:
        line, token = where.join.render(), where.join.token.reveal()
        raw = from_base64url(token, 32)
        assert raw is not None
        key = secrets_of(where.join.name, token).client_key
        with Walk(token, raw, key, until="client_proof") as walk:
            join = parse_join(line)
            async with running(CenterClient(join)):
                pass
    assert walk.ways() == [told_walk]
