"""Defects that the two roles once had, each under its symptom."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

import trio
import trio.testing
from support.center import LOOPBACK, center

from tunnel.access.join import JoinLine, make_token
from tunnel.addresses import Address
from tunnel.center.client import CenterClient
from tunnel.center.events import LinkDown, MappingRefused
from tunnel.errors import Code, TunnelError
from tunnel.link.link import Link
from tunnel.link.session import Session
from tunnel.link.transport import PlainTransport
from tunnel.proto.frames import Terms

if TYPE_CHECKING:
    from tunnel.center.events import Notice
    from tunnel.link.virtual import VirtualStream


class CancelAtStep(trio.abc.Instrument):
    """Cancels a scope when the run has taken so many steps."""

    def __init__(self, scope: trio.CancelScope, steps: int) -> None:
        self._scope = scope
        self._left = steps

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self._left -= 1
        if not self._left:
            self._scope.cancel()


def _cancel(scope: trio.CancelScope, notice: Notice) -> None:
    scope.cancel()


async def test_a_client_cancelled_at_any_step_leaves_no_socket_open() -> None:
    async with center(resume_s=0) as where:
        for steps in range(1, 80, 2):
            with trio.CancelScope() as scope, suppress(TunnelError):
                # Up at last means that no step is left to be tried.
                client = CenterClient(where.join, tell=partial(_cancel, scope))
                instrument = CancelAtStep(scope, steps)
                trio.lowlevel.add_instrument(instrument)
                try:
                    await client.run()
                finally:
                    trio.lowlevel.remove_instrument(instrument)
        # A socket that nobody closed would be a ResourceWarning, and an error here.
        await where.until(lambda: not where.server.clients)
        await where.until(lambda: len(where.server._starts.gate.places) == 0)


async def test_a_link_that_is_closed_before_it_runs_says_its_goodbye() -> None:
    async def nobody(stream: VirtualStream) -> None:
        raise AssertionError(stream)

    wire, stream = trio.testing.memory_stream_pair()
    session = Session(client=True, ours=Terms(), theirs=Terms(), serve_offer=nobody)
    link = Link(session, PlainTransport(stream))
    link.close(Code.TAKEN_OVER)
    await wire.send_eof()
    await link.run()
    said = await wire.receive_some()
    assert said[3] == 0x09
    assert int.from_bytes(said[8:10], "big") == Code.TAKEN_OVER


async def test_a_client_that_is_stopped_before_its_first_link_starts_in_peace() -> None:
    nowhere = JoinLine("default", make_token(), LOOPBACK, 1, None, True)
    stopped = CenterClient(nowhere)
    stopped.stop()
    retrying = CenterClient(nowhere, tell=lambda notice: _stop(retrying, notice))
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            await nursery.start(stopped.run)
            await nursery.start(retrying.run)


def _stop(client: CenterClient, notice: Notice) -> None:
    assert isinstance(notice, LinkDown)
    client.stop()


async def test_a_server_without_ports_of_its_choice_says_so() -> None:
    async with center(ports=range(0)) as where:
        client, notices = where.client()
        await client.publish_target(Address("", 0), where.address)
        async with trio.open_nursery() as nursery:
            await nursery.start(client.run)
            refused = await notices.next(MappingRefused)
            client.stop()
        assert refused.answer.code is Code.TAKEN
        assert "port" in refused.answer.reason
