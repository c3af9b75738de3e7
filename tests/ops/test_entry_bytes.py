"""Each entry says what its visitors have sent and received, at both ends of a link."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio
from support.center import GET, LOOPBACK, center, echo, page, running, target
from support.center import ask as ask_page
from support.ports import in_a_row

from tunnel.addresses import Address
from tunnel.center.names import NameOptions
from tunnel.ops.control.client_handlers import ClientHandlers
from tunnel.ops.control.server_handlers import ServerHandlers
from tunnel.ops.control.status import Passed, Status
from tunnel.ops.control.status_text import status_lines
from tunnel.ops.entry_syntax import parse_exit, parse_http, parse_tcp, parse_udp
from tunnel.ops.reload.entries import RunningEntries

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from support.center import Center

    from tunnel.center.client import CenterClient
    from tunnel.ops.entries import Entry


class Both:
    """A server and a client, as ``tunnel status`` shows their entries."""

    def __init__(
        self, where: Center, made: CenterClient, entries: RunningEntries
    ) -> None:
        self.where, self.made, self.entries = where, made, entries
        self.client = ClientHandlers(made, where.join, entries.shown, [])
        self.server = ServerHandlers(where.server)

    def status(self, of: ClientHandlers | ServerHandlers) -> Status:
        status = Status("up-1", "up", 1, "1", 0.0, "", "", 0, 0, 0, Passed())
        of.fill(status)
        return status

    def passed(self) -> tuple[dict[str, list[int]], dict[str, list[int]]]:
        """Return in and out of each kind of entry: at the server, at the client."""
        server, client = (
            {
                one.kind: [one.passed.received_bytes, one.passed.sent_bytes]
                for one in self.status(of).entries
                if one.passed is not None
            }
            for of in (self.server, self.client)
        )
        return server, client

    async def until(self, kind: str, *, sent: int, answered: int) -> None:
        """Wait until both ends have counted a visitor's bytes."""
        ends = {kind: [answered, sent]}, {kind: [sent, answered]}

        def is_so() -> bool:
            found = self.passed()
            return all(
                one[kind] == end[kind] for one, end in zip(found, ends, strict=True)
            )

        with trio.fail_after(5):
            while not is_so():  # noqa: ASYNC110 - nobody tells of a byte
                await trio.sleep(0.005)


@asynccontextmanager
async def both(ports: range, *entries: Entry) -> AsyncIterator[Both]:
    names = NameOptions(http=Address(LOOPBACK, 0), domain="t.test")
    async with center(names=names, ports=ports) as where:
        made, _ = where.client()
        async with trio.open_nursery() as nursery:
            of_client = RunningEntries(made, nursery)
            await of_client.start(entries)
            async with running(made):
                yield Both(where, made, of_client)
            nursery.cancel_scope.cancel()


async def test_bytes_of_an_entry_move_while_they_pass_and_stay_when_all_have_left() -> (
    None
):
    (port,) = ports = in_a_row(1)
    async with target(echo) as to, both(ports, parse_tcp(f"0={to}")) as pair:
        await pair.until("tcp", sent=0, answered=0)
        async with await trio.open_tcp_stream(LOOPBACK, port) as one:
            await one.send_all(b"hello")
            await pair.until("tcp", sent=5, answered=5)
            async with await trio.open_tcp_stream(LOOPBACK, port) as other:
                await other.send_all(bytes(100))
                await pair.until("tcp", sent=105, answered=105)
        await pair.where.until(lambda: pair.where.server.connections == 0)
        await pair.until("tcp", sent=105, answered=105)
        lines = "\n".join(status_lines(pair.status(pair.client).as_answer()))
        assert "105 B in, 105 B out" in lines


async def test_each_entry_counts_its_own_and_a_new_one_begins_at_nothing() -> None:
    ports = in_a_row(2)
    async with target(echo) as to, target(page) as site:
        web, port = parse_http(f"shop={site}"), parse_tcp(f"{ports[0]}={to}")
        async with both(ports, web, port) as pair:
            http = pair.where.server.names.http
            assert http is not None
            question = GET % b"shop.t.test"
            answer = await ask_page(http, question)
            assert b"200" in answer
            _, at_client = pair.passed()
            assert at_client["http"][0] > 0 < at_client["http"][1]
            assert at_client["tcp"] == [0, 0]
            before = at_client["http"]
            async with await trio.open_tcp_stream(LOOPBACK, ports[0]) as one:
                await one.send_all(b"hello")
                await pair.until("tcp", sent=5, answered=5)
                # The entry is another now; who is in still counts for the old one.
                other = parse_tcp(f"{ports[1]}={to}")
                await pair.entries.change([web, other], now=False)
                await one.send_all(b"hello")
                await pair.until("tcp", sent=0, answered=0)
            assert pair.passed()[1]["http"] == before


async def test_datagrams_count_too() -> None:
    (port,) = ports = in_a_row(1)
    with trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM) as to:
        await to.bind((LOOPBACK, 0))
        entry = parse_udp(f"{port}={LOOPBACK}:{to.getsockname()[1]}")
        async with both(ports, entry) as pair:
            with trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM) as one:
                await one.connect((LOOPBACK, port))
                with trio.fail_after(5):
                    await one.send(b"hello")
                    _, back = await to.recvfrom(100)
                    await to.sendto(b"you there", back)
                    assert await one.recv(100) == b"you there"
            await pair.until("udp", sent=5, answered=9)


async def test_what_leaves_at_an_exit_counts_and_what_this_client_opens_does_not() -> (
    None
):
    async with (
        target(echo) as to,
        both(range(0), parse_exit("home,network=127.0.0.0/8")) as pair,
    ):
        other, _ = pair.where.client()
        async with running(other):
            async with await other.open(str(to), exit_name="home") as stream:
                await stream.send_all(b"hello")
                assert await stream.receive_some() == b"hello"
            async with await pair.made.open(str(to)) as stream:
                await stream.send_all(b"hello")
                assert await stream.receive_some() == b"hello"
            await pair.until("exit", sent=5, answered=5)
