"""Entries that a command saves: what runs and the file change together, or neither."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio
from support.center import Center, center, free_ports, running

from tunnel.errors import AddressError, TunnelError
from tunnel.ops.entry_commands import EntryCommands, EntryFile
from tunnel.ops.entry_syntax import parse_reach
from tunnel.ops.reload.entries import RunningEntries
from tunnel.ops.reload.reloader import LOOK_S, Reloader
from tunnel.ops.show import Show

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence
    from pathlib import Path

    from tunnel.ops.control import Handler
    from tunnel.ops.reload.plan import Change

TEXT = '[[client.reach]]\nlisten = {}\ntarget = "db:1"\n'


class Reads:
    """Counts how often a file is read."""

    def __init__(self) -> None:
        self.count = 0

    async def apply(self, _now: bool) -> Sequence[Change]:
        self.count += 1
        return []


@asynccontextmanager
async def commands(
    where: Center,
    file: EntryFile | None,
    port: int,
    say: Callable[[], None] = lambda: None,
) -> AsyncIterator[tuple[Mapping[str, Handler], RunningEntries]]:
    """Give the commands of a client with one entry; ``say`` is called at changes."""
    made, _ = where.client()
    async with trio.open_nursery() as nursery:
        entries = RunningEntries(made, nursery)
        await entries.start([parse_reach(f"{port}=db:1")])
        async with running(made):
            yield EntryCommands(made, entries, lambda _: say(), file).handlers, entries
        nursery.cancel_scope.cancel()


async def test_what_cannot_be_had_or_saved_changes_neither(tmp_path: Path) -> None:
    path, (one, two) = tmp_path / "tunnel.toml", (free_ports()[0], free_ports()[0])
    path.write_text(TEXT.format(one))
    path.chmod(0o600)
    text = path.read_text()
    reloader = Reloader(Reads().apply, Show(log="logfmt"), path)
    file = EntryFile(path, frozenset(), reloader.held)
    disturbed: list[str] = []

    def disturb() -> None:  # between the change and the file
        if disturbed:
            path.write_text(disturbed.pop())

    async with center() as where, commands(where, file, one, disturb) as (do, own):
        add = {"flag": "reach", "text": f"{two}=db:1", "save": True}
        disturbed.append("# somebody else's\n")
        with pytest.raises(TunnelError, match="cannot write"):
            await do["add"](add, "me")
        assert len(own) == 1
        assert path.read_text() == "# somebody else's\n"
        path.write_text(text)
        (taken,) = await trio.open_tcp_listeners(two, host="127.0.0.1")
        async with taken:
            with pytest.raises(AddressError):
                await do["add"](add, "me")
        assert (len(own), path.read_text()) == (1, text)
        path.write_text("[client]\nodd = 1\n")
        answer = await do["add"](add, "me")
        assert answer["changes"] == []
        assert "odd" in str(answer["faults"])
        path.write_text(text)
        with pytest.raises(TunnelError, match="last entry"):
            await do["remove"]({"entry": str(one), "save": True}, "me")
        assert (len(own), path.read_text()) == (1, text)
        answer = await do["add"](add, "me")
        assert answer["file"] == str(path)
        assert len(own) == 2
        path.write_text(text)
        with pytest.raises(TunnelError, match="not in"):
            await do["remove"]({"entry": str(two), "save": True}, "me")
        assert len(own) == 2
        assert [name.name for name in tmp_path.iterdir()] == [path.name]


async def test_without_a_file_there_is_nothing_to_save_in(tmp_path: Path) -> None:
    reloader = Reloader(Reads().apply, Show(log="logfmt"), None)
    absent = EntryFile(tmp_path / "none.toml", frozenset(), reloader.held)
    for file in (None, EntryFile(None, frozenset(), reloader.held), absent):
        one, two = (free_ports()[0], free_ports()[0])
        async with center() as where, commands(where, file, one) as (do, own):
            asked = {"flag": "reach", "text": f"{two}=db:1", "save": True}
            with pytest.raises(TunnelError, match="no file") as caught:
                await do["add"](asked, "me")
            assert "--config" in caught.value.fix
            assert len(own) == 1


async def test_what_a_command_wrote_is_not_read_again_unless_others_wrote_too(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    del autojump_clock
    path, reads = tmp_path / "tunnel.toml", Reads()
    path.write_text("1")
    reloader = Reloader(reads.apply, Show(log="logfmt"), path)
    async with trio.open_nursery() as nursery:
        await reloader.start(nursery)
        await trio.sleep(2 * LOOK_S)
        async with reloader.held():
            path.write_text("of a command")
        await trio.sleep(4 * LOOK_S)
        assert reads.count == 0
        path.write_text("of somebody")
        async with reloader.held():
            path.write_text("of somebody, and of a command")
        await trio.sleep(4 * LOOK_S)
        assert reads.count == 1
        nursery.cancel_scope.cancel()
