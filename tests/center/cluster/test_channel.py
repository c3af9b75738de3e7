"""Questions, notes and descriptors between two processes of one server."""

from __future__ import annotations

import errno
import os
import socket
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from tunnel.center.cluster import channel as channel_module
from tunnel.center.cluster.channel import (
    Channel,
    ChannelClosedError,
    FailedError,
    address_error,
)
from tunnel.errors import AddressError, Code, Exit, UsageError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

    Reply = tuple[dict[str, object], Sequence[int]]


class End:
    """One end, which answers what the test wants and keeps the notes."""

    def __init__(self, sock: socket.socket) -> None:
        self.notes: list[tuple[str, Mapping[str, object], list[int]]] = []
        self.heard = trio.Event()
        self.channel = Channel(sock, self._answer, self._note)

    async def _answer(
        self, do: str, args: Mapping[str, object], descriptors: list[int]
    ) -> Reply:
        for number in descriptors:
            os.close(number)
        match do:
            case "double":
                return {"is": [args["it"]] * 2}, ()
            case "pipe":
                read, write = os.pipe()
                os.write(write, b"through")
                os.close(write)
                return {}, [read]
            case "taken":
                error = AddressError("port 80 is taken", "somebody", "another", Exit.OK)
                raise error from OSError(errno.EADDRINUSE, "in use")
            case "slow":
                await trio.sleep_forever()
            case _:
                pass
        raise UsageError(f"no {do}")

    def _note(
        self, note: str, args: Mapping[str, object], descriptors: list[int]
    ) -> None:
        self.notes.append((note, args, descriptors))
        self.heard.set()


@asynccontextmanager
async def ends() -> AsyncIterator[tuple[End, End, trio.CancelScope]]:
    """Give both ends, and what ends the second one's process."""
    ours, theirs = map(End, socket.socketpair())
    scope = trio.CancelScope()

    async def other(*, task_status: trio.TaskStatus[None]) -> None:
        with scope:
            await theirs.channel.run(task_status=task_status)

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            await nursery.start(ours.channel.run)
            await nursery.start(other)
            yield ours, theirs, scope
            nursery.cancel_scope.cancel()


async def test_both_ends_ask_and_answer_at_once() -> None:
    async with ends() as (ours, theirs, _), trio.open_nursery() as nursery:

        async def ask(end: End, it: object) -> None:
            said, came = await end.channel.ask("double", {"it": it})
            assert (said, came) == ({"is": [it, it]}, [])

        for number in range(100):
            nursery.start_soon(ask, ours, number)
            nursery.start_soon(ask, theirs, "x" * number * 1_000)


async def test_a_failure_comes_back_as_it_was() -> None:
    async with ends() as (ours, _theirs, _):
        with pytest.raises(FailedError) as caught:
            await ours.channel.ask("taken")
        error = address_error(caught.value)
        assert (error.what, error.cause, error.fix) == (
            "port 80 is taken",
            "somebody",
            "another",
        )
        assert error.code is Code.TAKEN
        assert isinstance(error.__cause__, OSError)
        assert error.__cause__.errno == errno.EADDRINUSE
        with pytest.raises(FailedError, match="no such"):
            await ours.channel.ask("such")


async def test_descriptors_come_with_answers_and_notes() -> None:
    async with ends() as (ours, theirs, _):
        for _ in range(3):
            _said, (number,) = await ours.channel.ask("pipe")
            assert os.read(number, 100) == b"through"
            assert not os.get_inheritable(number)
            os.close(number)
        one, other = socket.socketpair()
        with one:
            ours.channel.tell("here", {"it": 1}, [other.detach()])
            await theirs.heard.wait()
            ((note, args, (number,)),) = theirs.notes
            assert (note, args["it"]) == ("here", 1)
            with socket.socket(fileno=number) as came:
                came.send(b"hello")
                assert one.recv(100) == b"hello"


async def test_who_waits_for_an_end_that_is_gone_hears_of_it() -> None:
    async with ends() as (ours, _theirs, scope), trio.open_nursery() as nursery:

        async def cut_soon() -> None:
            await trio.testing.wait_all_tasks_blocked()
            scope.cancel()

        nursery.start_soon(cut_soon)
        for _ in range(2):
            with pytest.raises(ChannelClosedError):
                await ours.channel.ask("slow")


async def test_a_message_beyond_the_bound_ends_the_channel(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with ends() as (ours, _theirs, _):
        monkeypatch.setattr(channel_module, "MAX_BYTES", 1_000)
        with pytest.raises(ChannelClosedError):
            await ours.channel.ask("double", {"it": "x" * 2_000})
