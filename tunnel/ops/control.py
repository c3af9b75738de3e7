"""The control socket of a running server: STATE/control, for this user's commands.

One question and one answer for each connection, each a line of JSON:

    {"do": "users.revoke", "with": {"name": "alice"}}
    {"done": {"user": "alice", …}}
    {"failed": {"what": "…", "cause": "…", "fix": "…", "status": 2}}

The file has mode 0600, and the kernel says who asks (SO_PEERCRED): another user is not
heard, nor a client that has the server dial this socket, whatever its rights are.
Questions are bounded in size, number and time.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Final

import trio

from tunnel.addresses import UnixPath
from tunnel.errors import AddressError, TunnelError, UsageError
from tunnel.log import log_event
from tunnel.net.listen import open_unix_listener
from tunnel.ops.ask import FILE
from tunnel.platform.process import user_id
from tunnel.platform.sockets import Peer, peer_process

if TYPE_CHECKING:
    from pathlib import Path

    from tunnel.net.listen import UnixListener
    from tunnel.net.sockets import FastSocket

Args = Mapping[str, object]
Answer = dict[str, object]
Handler = Callable[[Args, str], Awaitable[Answer]]
"""Takes the arguments and who asks; returns the answer, or raises TunnelError."""

MAX_QUESTION_BYTES: Final = 1_048_576
"""An invitation with ten thousand rights."""
QUESTION_S: Final = 5.0
"""How long a question may take to arrive, and its answer to be read: both come from
this machine."""
MAX_AT_ONCE: Final = 16
"""Questions at once: scripts that run beside each other."""

logger = logging.getLogger("tunnel.control")


def open_control(state: Path) -> UnixListener | None:
    """Listen on the control socket of a state folder; None where that is not possible.

    What a dead process left is swept away. Without a socket commands change the files,
    which are looked at all the time.
    """
    path = state.absolute() / FILE
    try:
        if not UnixPath.is_usable(str(path)):
            raise AddressError(f"{path} is too long for a unix socket")
        return open_unix_listener(UnixPath(str(path)))
    except AddressError as error:
        log_event(logger, logging.WARNING, "control.absent", reason=error.what,
            cause=error.cause or None)  # fmt: skip
        return None


async def serve_control(
    listener: UnixListener, handlers: Mapping[str, Handler]
) -> None:
    """Answer questions until cancelled; closes the listener, which removes its file."""
    control = _Control(handlers)
    try:
        await trio.serve_listeners(control.serve, [listener])
    finally:
        with trio.CancelScope(shield=True):
            await listener.aclose()


class _Control:
    """The questions of one control socket."""

    def __init__(self, handlers: Mapping[str, Handler]) -> None:
        self._handlers = handlers
        self._at_once = 0

    async def serve(self, stream: FastSocket) -> None:
        """Answer the one question of a connection; owns the stream."""
        self._at_once += 1
        try:
            async with stream:
                peer = peer_process(stream.socket)
                answer = await self._answer(stream, peer)
                with trio.move_on_after(QUESTION_S):
                    await stream.send_all(json.dumps(answer).encode() + b"\n")
                    await stream.send_eof()
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # who asked has gone
        finally:
            self._at_once -= 1

    async def _answer(self, stream: FastSocket, peer: Peer | None) -> Answer:
        if peer is not None and (why := _refusal(peer)):
            log_event(logger, logging.WARNING, "control.refused", reason=why,
                by=f"uid {peer.user} pid {peer.process}")  # fmt: skip
            return _failed(UsageError(why))
        if self._at_once > MAX_AT_ONCE:
            return _failed(UsageError("too many commands at once", fix="try again"))
        try:
            with trio.fail_after(QUESTION_S):
                do, args = _read(await _line(stream))
            handler = self._handlers.get(do)
            if handler is None:
                what = f"this server knows no command {do!r}"
                raise UsageError(what, "it may be older than this program")
            by = f"uid {peer.user} pid {peer.process}" if peer else "this user"
            return {"done": await handler(args, by)}
        except TunnelError as error:
            return _failed(error)
        except trio.TooSlowError:
            return _failed(UsageError("the question came too slowly"))


def _refusal(peer: Peer) -> str:
    """Say why a program is not heard; "" if it is."""
    if peer.user != user_id():
        return "this server belongs to another user"
    if peer.process == os.getpid():  # the server dials what its clients ask for
        return "this socket is not reached through the tunnel"
    return ""


async def _line(stream: FastSocket) -> bytes:
    line = bytearray()
    while not line.endswith(b"\n"):
        if len(line) > MAX_QUESTION_BYTES:
            raise UsageError(f"a question of more than {MAX_QUESTION_BYTES} bytes")
        came = await stream.receive_some()
        if not came:
            raise UsageError("the question has no end")
        line += came
    return bytes(line)


def _read(line: bytes) -> tuple[str, Args]:
    try:
        question: object = json.loads(line)
    except (ValueError, RecursionError):
        raise UsageError("the question is no JSON") from None
    if isinstance(question, dict):
        do, args = question.get("do"), question.get("with", {})
        if isinstance(do, str) and isinstance(args, dict):
            return do, args
    raise UsageError('a question looks like {"do": "users.ls", "with": {}}')


def _failed(error: TunnelError) -> Answer:
    return {
        "failed": {
            "what": error.what,
            "cause": error.cause,
            "fix": error.fix,
            "status": int(error.exit_status),
        }
    }
