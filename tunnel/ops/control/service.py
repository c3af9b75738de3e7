"""The control socket of a running process, for this user's commands.

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
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import trio

from tunnel.addresses import UnixPath
from tunnel.errors import AddressError, TunnelError, UsageError
from tunnel.log import log_event
from tunnel.net.listen import open_unix_listener
from tunnel.ops.control.ask import FILE
from tunnel.ops.control.handed import Handed
from tunnel.ops.control.processes import is_listed, link_to, own_places
from tunnel.platform.process import user_id
from tunnel.platform.sockets import Peer, peer_process

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from pathlib import Path

    from tunnel.net.listen import UnixListener
    from tunnel.net.sockets import FastSocket
    from tunnel.ops.control import Answer, Args, Handlers

MAX_QUESTION_BYTES: Final = 1_048_576
"""An invitation with ten thousand rights."""
QUESTION_S: Final = 5.0
"""How long a question may take to arrive, and its answer to be read: both come from
this machine."""
LOOK_S: Final = 5.0
"""How often to look whether the socket is still there."""
MAX_AT_ONCE: Final = 16
"""Questions at once: scripts that run beside each other."""

logger = logging.getLogger("tunnel.control")


def open_socket(path: Path) -> UnixListener:
    """Listen on a control socket; the caller closes the listener.

    What a dead process left there is swept away.

    Raises:
        AddressError: that is not possible there.
    """
    if not UnixPath.is_usable(str(path)):
        raise AddressError(f"{path} is too long for a unix socket")
    return open_unix_listener(UnixPath(str(path)))


class OwnSocket:
    """The socket of this process, and its name among those of this user.

    Args:
        role: ``serve`` or ``up``.
        state: the folder of a server, whose socket is there; None for a client.
        kin: returns the other processes that are one with this one.
    """

    def __init__(
        self,
        role: str,
        state: Path | None = None,
        kin: Callable[[], Collection[int]] = tuple,
    ) -> None:
        self.name = ""
        """As ``tunnel ps`` shows it; "" while it is in no list."""
        self._role = role
        self._state = state
        self._kin = kin
        self._place: Path | None = None
        self._absent = ""
        self._open_now = trio.CancelScope()
        self._moved = trio.Event()

    async def serve(
        self,
        handlers: Handlers,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Answer questions until cancelled; started once they can be asked.

        What somebody removes meanwhile, as the runtime folder goes with a login, is
        made again. Where no socket is possible the process goes on without one.
        """
        told = False
        try:
            while True:
                listener = self._open()
                if not told:
                    task_status.started()
                    told = True
                if listener is None:
                    await trio.sleep(LOOK_S)  # perhaps there is a place by then
                    continue
                async with trio.open_nursery() as nursery:
                    self._open_now = nursery.cancel_scope
                    self._moved.set()
                    nursery.start_soon(serve_control, listener, handlers, self._kin)
                    while self._is_there():  # noqa: ASYNC110 - a file has no event
                        await trio.sleep(LOOK_S)
                    nursery.cancel_scope.cancel()
        finally:
            self._unlink()

    async def move_out(self) -> None:
        """Leave the state folder to another server; be asked elsewhere from now on."""
        self._state, self._moved = None, trio.Event()
        self._open_now.cancel()
        with trio.move_on_after(QUESTION_S):
            await self._moved.wait()

    def _open(self) -> UnixListener | None:
        """Listen in the state folder, or else in a runtime folder; None: nowhere."""
        listener, why = None, ""
        self._unlink()
        own = None if self._state is None else self._state.absolute() / FILE
        if own is not None:
            try:
                listener = open_socket(own)
            except AddressError as error:
                why = f"{error.what}: {error.cause}" if error.cause else error.what
        for place in own_places(self._role):
            try:
                if listener is None:
                    listener = open_socket(place)
                elif own is not None and not _linked(own, place):
                    continue
            except (AddressError, OSError) as error:
                why = why or str(error)
            else:
                self._place, self.name = place, place.name
                return listener
        if listener is None and not why:
            why = "no folder of this user's own can be made"
        if why != self._absent:
            log_event(logger, logging.WARNING, "control.absent", reason=why)
            self._absent = why
        self.name = f"{self._role}-{os.getpid()}"
        return listener

    def _is_there(self) -> bool:
        return self._place is None or self._place.exists()

    def _unlink(self) -> None:
        """Remove the link to a socket elsewhere; a socket goes with its listener."""
        place, self._place = self._place, None
        if place is not None and place.is_symlink():
            with suppress(OSError):
                place.unlink()


def _linked(own: Path, place: Path) -> bool:
    """Make a link that leads to a socket; False where another one may be made."""
    # A longer one could be made, but nobody could ask there.
    return UnixPath.is_usable(str(place)) and link_to(own, place)


async def serve_control(
    listener: UnixListener,
    handlers: Handlers,
    kin: Callable[[], Collection[int]] = tuple,
) -> None:
    """Answer questions until cancelled; closes the listener, which removes its file.

    ``kin`` as for ``OwnSocket``.
    """
    control = _Control(handlers, kin)
    try:
        await trio.serve_listeners(control.serve, [listener])
    finally:
        with trio.CancelScope(shield=True):
            await listener.aclose()


class _Control:
    """The questions of one control socket."""

    def __init__(self, handlers: Handlers, kin: Callable[[], Collection[int]]) -> None:
        self._handlers = handlers
        self._kin = kin
        self._at_once = 0

    async def serve(self, stream: FastSocket) -> None:
        """Answer the one question of a connection; owns the stream."""
        self._at_once += 1
        try:
            async with stream:
                peer = peer_process(stream.socket)
                answer = await self._answer(stream, peer)
                raw = json.dumps(answer).encode() + b"\n"
                done = answer.get("done")
                with trio.move_on_after(QUESTION_S):
                    if isinstance(done, Handed):
                        raw = raw[done.send(stream.socket, raw) :]
                    await stream.send_all(raw)
                    await stream.send_eof()
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # who asked has gone
        finally:
            self._at_once -= 1

    async def _answer(self, stream: FastSocket, peer: Peer | None) -> Answer:
        if peer is not None and (why := _refusal(peer, self._kin())):
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
                what = f"this process knows no command {do!r}"
                raise UsageError(what, "it may be older than this program")
            by = f"uid {peer.user} pid {peer.process}" if peer else "this user"
            return {"done": await handler(args, by)}
        except TunnelError as error:
            return _failed(error)
        except trio.TooSlowError:
            return _failed(UsageError("the question came too slowly"))


def _refusal(peer: Peer, kin: Collection[int]) -> str:
    """Say why a program is not heard; "" if it is."""
    if peer.user != user_id():
        return "this process belongs to another user"
    # A server dials what its clients ask for.
    if peer.process == os.getpid() or peer.process in kin:
        return "this socket is not reached through the tunnel"
    if is_listed(
        peer.process
    ):  # it dials what its clients ask for, or for its visitors
        return "another tunnel process has no commands to give"
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
