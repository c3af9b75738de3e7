"""``tunnel pipe``: stdin and stdout joined to a target at the server's side."""

from __future__ import annotations

import os
import signal
import stat
import sys
from typing import TYPE_CHECKING, Final

import trio

from tunnel.center.client import CenterClient
from tunnel.errors import CODES, Code, Exit, StateError, StreamError
from tunnel.net.relay import relay
from tunnel.ops import saved
from tunnel.ops.entries import as_target
from tunnel.ops.runtime import ending_signals
from tunnel.platform.files import stream_of

if TYPE_CHECKING:
    from pathlib import Path

    from tunnel.addresses import End

GIVE_UP_S: Final = 10.0
"""A program waits behind a pipe: it should hear soon that there is no server."""


async def run_pipe(
    target: End,
    to: str | None,
    via: str | None,
    exit_name: str | None,
    certificate: tuple[Path, Path] | None = None,
) -> Exit:
    """Join stdin and stdout to a target, at the server's side or at an exit.

    Raises:
        TunnelError: no server within 10 s, or the target refused.
    """
    join, _ = saved.find(to)
    client = CenterClient(
        join,
        give_up_s=GIVE_UP_S,
        via=saved.find_via(via, join),
        pins=saved.pins(join),
        certificate=certificate,
    )
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


# Standard input and output as one trio stream, whatever they are ---------------------


class _ThreadedFile(trio.abc.SendStream, trio.abc.ReceiveStream):
    """A file that epoll does not take (a regular one, /dev/null), read in threads."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        try:
            return await trio.to_thread.run_sync(os.read, self._fd, max_bytes or 65_536)
        except OSError as error:
            raise StateError("cannot read stdin", error.strerror or "") from error

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[await trio.to_thread.run_sync(os.write, self._fd, rest) :]
        except OSError as error:  # a full disk
            raise StateError("cannot write to stdout", error.strerror or "") from error

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        await trio.lowlevel.checkpoint()


def _stream_of(fd: int) -> trio.abc.Stream | _ThreadedFile:
    own = os.dup(fd)
    mode = os.fstat(own).st_mode
    if stat.S_ISREG(mode) or (stat.S_ISCHR(mode) and not os.isatty(own)):
        return _ThreadedFile(own)
    return stream_of(own) or _ThreadedFile(own)


def standard_stream() -> trio.abc.HalfCloseableStream:
    """Return stdin and stdout as one half-closeable stream; closing it closes both.

    ``send_eof`` closes stdout, so that its reader sees the end of file while the other
    direction goes on. ``sys.stdout`` leads nowhere from now on.
    """
    output = _stream_of(sys.stdout.fileno())
    # Else its reader would also wait for the descriptor that we were started with.
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)
    return trio.StapledStream(output, _stream_of(sys.stdin.fileno()))
