"""``tunnel pipe``: stdin and stdout joined to a target at the server's side."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Final

import trio

from tunnel.center.client import CenterClient
from tunnel.errors import CODES, Code, Exit, StreamError
from tunnel.net.relay import relay
from tunnel.ops import saved
from tunnel.ops.entries import as_target
from tunnel.ops.signals import ending_signals
from tunnel.ops.stdio import standard_stream

if TYPE_CHECKING:
    from tunnel.addresses import End

GIVE_UP_S: Final = 10.0
"""A program waits behind a pipe: it should hear soon that there is no server."""


async def run_pipe(
    target: End, to: str | None, via: str | None, exit_name: str | None
) -> Exit:
    """Join stdin and stdout to a target, at the server's side or at an exit.

    Raises:
        TunnelError: no server within 10 s, or the target refused.
    """
    join, _ = saved.find(to)
    client = CenterClient(join, give_up_s=GIVE_UP_S, via=saved.find_via(via, join))
    status = Exit.OK
    refusals: list[StreamError] = []  # raised after the goodbye to the server
    async with trio.open_nursery() as nursery:
        relaying = trio.CancelScope()

        async def until_signal(*, task_status: trio.TaskStatus[None]) -> None:
            nonlocal status
            # Without a goodbye, the far end would wait for another link.
            with trio.open_signal_receiver(*ending_signals()) as signals:
                task_status.started()
                if await anext(signals) == signal.SIGINT:
                    status = Exit.INTERRUPTED
                relaying.cancel()
                client.stop()

        await nursery.start(until_signal)
        with relaying:
            await nursery.start(client.run)
            try:
                stream = await client.open(as_target(target), exit_name=exit_name)
            except StreamError as error:
                where = exit_name or "the server"
                why = error.what.removeprefix(f"cannot reach {target}: ")
                error.what = f"cannot reach {target} from {where}: {why}"
                refusals.append(error.with_traceback(None))
            else:
                result = await relay(standard_stream(), stream)
                if result.code is not Code.NORMAL:
                    status = CODES[result.code].exit_status
        client.stop()
        await client.wait_over()
        nursery.cancel_scope.cancel()
    if refusals:
        raise refusals.pop()
    return status
