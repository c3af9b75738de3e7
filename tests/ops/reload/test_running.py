"""The entries of a running client, and the reloads that change them."""

from __future__ import annotations

import logging
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import pytest
import trio
from support.center import LOOPBACK, Center, center, echo, free_ports, running, target
from trio.testing import wait_all_tasks_blocked

from tunnel.addresses import Address, UnixPath
from tunnel.center.events import MappingReady, MappingRefused
from tunnel.center.names import NameOptions
from tunnel.errors import AddressError, ConfigError, TunnelError
from tunnel.net.listen import listen_at
from tunnel.ops.entries import Local
from tunnel.ops.entry_commands import EntryCommands
from tunnel.ops.entry_syntax import parse_http, parse_reach, parse_tcp, share_entry
from tunnel.ops.flags import RunFlags, ServerFlags
from tunnel.ops.reload import entries
from tunnel.ops.reload.client import ClientChanges, UpAgain
from tunnel.ops.reload.entries import RunningEntries
from tunnel.ops.reload.plan import Change
from tunnel.ops.reload.reloader import Reloader
from tunnel.ops.show import Show

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from support.center import Notices

    from tunnel.addresses import End
    from tunnel.center.client import CenterClient
    from tunnel.net.listen import PortListener
    from tunnel.ops.entries import Entry


@dataclass
class Client:
    center: CenterClient
    entries: RunningEntries
    notices: Notices

    async def have(self, *wanted: Entry, now: bool = False) -> list[str]:
        plan, _ = await self.entries.change(wanted, now=now)
        return [str(line) for line in plan.lines]


@asynccontextmanager
async def client(where: Center, *wanted: Entry) -> AsyncIterator[Client]:
    made, notices = where.client()
    async with trio.open_nursery() as nursery:
        running_entries = RunningEntries(made, nursery)
        await running_entries.start(wanted)
        async with running(made):
            yield Client(made, running_entries, notices)
        nursery.cancel_scope.cancel()


async def shout(stream: trio.SocketStream) -> None:
    try:
        async for data in stream:
            await stream.send_all(data.upper())
    except trio.BrokenResourceError:
        pass


async def hears(stream: trio.abc.HalfCloseableStream) -> bytes:
    await stream.send_all(b"hello")
    got = b""
    while len(got) < 5:
        data = await stream.receive_some()
        assert data, "it has ended"
        got += data
    return got


def reach(port: int, to: Address) -> Local:
    return Local(Address(LOOPBACK, port), to)


async def test_a_local_port_leads_elsewhere_and_its_connections_go_on() -> None:
    port = free_ports()[0]
    async with (
        center() as where,
        target(echo) as one,
        target(shout) as two,
        client(where, reach(port, one)) as own,
    ):
        old = await trio.open_tcp_stream(LOOPBACK, port)
        async with old:
            assert await hears(old) == b"hello"
            assert await own.have(reach(port, two)) == [
                f"~ reach {LOOPBACK}:{port} target"
            ]
            async with await trio.open_tcp_stream(LOOPBACK, port) as new:
                assert await hears(new) == b"HELLO"
            assert await hears(old) == b"hello"
            await own.have(reach(port, one), now=True)
            # The old one is that of the version before the last: it is not cut.
            assert await hears(old) == b"hello"


async def test_who_waits_to_be_accepted_loses_nothing_by_a_change() -> None:
    port = free_ports()[0]
    async with (
        center() as where,
        target(echo) as one,
        client(where, reach(port, one)) as own,
    ):
        for number in range(10):
            # It is in the backlog of the kernel when the change happens.
            async with await trio.open_tcp_stream(LOOPBACK, port) as stream:
                entry = replace(reach(port, one), exit_name=None)
                other = replace(entry, udp_public=str(number))
                await own.have(other)
                assert await hears(stream) == b"hello"


async def test_a_local_entry_that_goes_closes_its_port_and_not_its_connections() -> (
    None
):
    one_port, two_port = free_ports()[0], free_ports()[0]
    async with (
        center() as where,
        target(echo) as to,
        client(where, reach(one_port, to), reach(two_port, to)) as own,
    ):
        async with await trio.open_tcp_stream(LOOPBACK, one_port) as old:
            assert await hears(old) == b"hello"
            await own.have(reach(two_port, to))
            with pytest.raises(OSError, match="attempts"):
                await trio.open_tcp_stream(LOOPBACK, one_port)
            assert await hears(old) == b"hello"
            assert [line.where for line in own.entries.lines] == [
                f"{LOOPBACK}:{two_port}"
            ]
        async with await trio.open_tcp_stream(LOOPBACK, two_port) as cut:
            assert await hears(cut) == b"hello"
            await own.have(parse_tcp("80"), now=True)
            with pytest.raises(trio.BrokenResourceError):
                await cut.receive_some()


async def test_a_unix_socket_changes_and_goes_with_its_file(tmp_path: Path) -> None:
    path = tmp_path / "x.sock"
    where_to = UnixPath(str(path))
    async with (
        center() as where,
        target(echo) as one,
        target(shout) as two,
        client(where, Local(where_to, one)) as own,
    ):
        inode = path.stat().st_ino
        await own.have(Local(where_to, two))
        assert path.stat().st_ino == inode
        async with await trio.open_unix_socket(str(path)) as stream:
            assert await hears(stream) == b"HELLO"
        await own.have(parse_tcp("80"))
        assert not path.exists()


async def test_a_port_may_move_to_another_address_of_the_same_number() -> None:
    port = free_ports()[0]
    async with center() as where, target(echo) as to:
        everywhere = Local(Address("0.0.0.0", port), to)
        async with client(where, reach(port, to)) as own:
            await own.have(everywhere)
            async with await trio.open_tcp_stream(LOOPBACK, port) as stream:
                assert await hears(stream) == b"hello"
            # A second new one cannot listen: the old one is there again.
            async with target(echo) as taken:
                with pytest.raises(AddressError):
                    await own.have(reach(port, to), Local(taken, to))
            async with await trio.open_tcp_stream(LOOPBACK, port) as stream:
                assert await hears(stream) == b"hello"
            assert list(own.entries.wanted.values()) == [everywhere]


async def test_what_the_server_does_not_offer_is_changed_as_what_it_is() -> None:
    async with (
        center() as where,
        target(echo) as one,
        target(shout) as two,
        client(where, share_entry(str(one))) as own,
    ):
        entries, center_client = own.entries, own.center
        refused = (await own.notices.next(MappingRefused)).name
        first = entries.published(refused)
        assert first is not None
        other = first.instead(own.notices.of(MappingRefused)[0], LOOPBACK)
        assert other is not None
        await entries.replace(refused, first, other)
        await own.notices.next(MappingReady)
        assert len(entries) == 1
        assert await own.have(share_entry(str(one))) == []  # as it was wanted
        assert len(await own.have(share_entry(f"{two}"))) == 2
        (name,) = entries.shown
        assert center_client.public(name) is None
        await own.notices.next(MappingRefused, 2)


async def test_what_a_reload_changes_while_it_is_replaced_is_what_is_published() -> (
    None
):
    async with (
        center() as where,
        target(echo) as one,
        client(where, share_entry(str(one))) as own,
    ):
        notice = await own.notices.next(MappingRefused)
        first = own.entries.published(notice.name)
        assert first is not None
        other = first.instead(notice, LOOPBACK)
        assert other is not None
        changed = share_entry(str(one), auth="me:secret")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(own.entries.replace, notice.name, first, other)
            nursery.start_soon(own.have, changed)
        assert list(own.entries.wanted.values()) == [changed]
        # The other way round: what was refused is not what is there by then.
        (name,) = own.entries.shown
        await own.entries.replace(name, first, other)
        assert own.entries.published(name) == changed


async def test_a_thousand_entries_of_which_one_differs_change_at_once() -> None:
    names = NameOptions(http=Address(LOOPBACK, 0), domain="t.test")
    many = [parse_http(f"n{number}=127.0.0.1:9") for number in range(1_000)]
    async with center(names=names) as where, client(where, *many) as own:
        assert len(where.server.mappings) == 1_000
        began = trio.current_time()
        many[500] = parse_http("n500=127.0.0.1:10")
        assert await own.have(*many) == ["~ http n500 target"]
        assert trio.current_time() - began < 1
        ready = len(own.notices.of(MappingReady))
        assert ready == 1_000  # the server was not asked for the others
        await own.have(many[0])
        assert len(where.server.mappings) == 1


async def test_two_changes_at_once_are_made_one_after_another() -> None:
    one_port, two_port = free_ports()[0], free_ports()[0]
    async with (
        center() as where,
        target(echo) as to,
        client(where, parse_tcp("80")) as own,
    ):
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(own.have, reach(one_port, to))
                nursery.start_soon(own.have, reach(two_port, to), parse_tcp("80"))
        await own.have(reach(one_port, to))
        assert len(own.entries) == 1
        async with await trio.open_tcp_stream(LOOPBACK, one_port) as stream:
            assert await hears(stream) == b"hello"


async def test_a_command_and_a_reload_at_once_lose_nothing_of_each_other() -> None:
    """The command took what ran before the reload for what it was to add to."""
    async with center() as where, client(where, parse_tcp("80")) as own:
        commands = EntryCommands(own.center, own.entries, lambda _lines: None).handlers
        two, three = parse_tcp("81"), parse_tcp("82")

        async def add(text: str) -> None:
            await commands["add"]({"flag": "tcp", "text": text}, "a test")

        # Each waits for the lock, in this order.
        async with trio.open_nursery() as nursery, own.entries._one_by_one:
            nursery.start_soon(own.have, two, three)
            await wait_all_tasks_blocked(0.01)
            nursery.start_soon(add, "83")
            nursery.start_soon(add, "84")
            await wait_all_tasks_blocked(0.01)
        targets = [str(one.endpoint) for one in own.entries.shown.values()]
        assert sorted(one.rpartition(":")[2] for one in targets) == [
            "81",
            "82",
            "83",
            "84",
        ]


async def test_a_change_that_is_cut_short_closes_no_port(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    port = free_ports()[0]
    other = Address("0.0.0.0", port)
    scope, tries = trio.CancelScope(), []

    async def listen(where: End) -> tuple[Sequence[PortListener], End]:
        tries.append(where)
        if tries == [other, other]:  # ours has just been closed for it
            scope.cancel()
        return await listen_at(where)

    async with (
        center() as where,
        target(echo) as to,
        client(where, reach(port, to), parse_tcp("80")) as own,
    ):
        monkeypatch.setattr(entries, "listen_at", listen)
        with scope:
            await own.have(Local(other, to), parse_tcp("80"))
        assert scope.cancelled_caught
        async with await trio.open_tcp_stream(LOOPBACK, port) as stream:
            assert await hears(stream) == b"hello"


# Reloads ------------------------------------------------------------------------------


class Reads:
    """What a file says, and how often it was read."""

    def __init__(self) -> None:
        self.count = 0
        self.error: TunnelError | None = None

    async def apply(self, now: bool) -> Sequence[Change]:
        self.count += 1
        await trio.lowlevel.checkpoint()
        if self.error is not None:
            raise self.error
        return [Change("~", "tcp 1", "now" if now else "later")]


async def test_a_save_counts_once_and_a_file_that_is_away_is_waited_for(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    del autojump_clock
    path = tmp_path / "tunnel.toml"
    path.write_text("one")
    reads = Reads()
    reloader = Reloader(reads.apply, Show(log="logfmt"), path)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(reloader._watch_file)
        await trio.sleep(5.5)
        assert reads.count == 0
        path.write_text("tw")  # an editor that is not done yet
        await trio.sleep(1)
        path.write_text("two and more")
        await trio.sleep(1)
        assert reads.count == 0
        await trio.sleep(5)
        assert reads.count == 1
        path.unlink()
        await trio.sleep(5)
        (tmp_path / "new").write_text("three")
        (tmp_path / "new").rename(path)
        await trio.sleep(5)
        assert reads.count == 2
        reads.error = ConfigError(["x:1: no"])
        path.write_text("faulty")
        await trio.sleep(5)
        assert reads.count == 3  # and not again before the next save
        assert reloader.faults == ["x:1: no"]
        nursery.cancel_scope.cancel()


async def test_a_command_hears_what_was_changed_or_all_faults(
    caplog: pytest.LogCaptureFixture,
) -> None:
    reads = Reads()
    reloader = Reloader(reads.apply, Show(log="logfmt"), None)
    logging.getLogger("tunnel").propagate = True
    ask = reloader.handlers["reload"]
    assert await ask({}, "me") == {"changes": ["~ tcp 1 later"], "faults": []}
    answer = await ask({"now": True}, "me")
    assert answer["changes"] == ["~ tcp 1 now"]
    reads.error = ConfigError(["x:1: no", "x:2: neither"])
    assert await ask({}, "me") == {"changes": [], "faults": reads.error.faults}
    assert reloader.faults == reads.error.faults
    assert sum("config.refused" in one.getMessage() for one in caplog.records) == 2
    reads.error = AddressError("port 1 is taken")
    with pytest.raises(AddressError):
        await ask({}, "me")
    reads.error = None
    await ask({}, "me")
    assert not reloader.faults


async def test_a_client_without_entries_stays_as_it_is() -> None:
    def nothing() -> tuple[ServerFlags, list[Entry], RunFlags]:
        return ServerFlags(), [], RunFlags()

    async with center() as where, client(where, parse_reach("0=db:1")) as own:
        again = UpAgain(ServerFlags(), RunFlags(), nothing, None)
        changes = ClientChanges(again, own.entries, lambda _lines: None)
        with pytest.raises(TunnelError, match="nothing to do"):
            await changes.apply(False)
        assert len(own.entries) == 1
