"""The core's record of one virtual TCP connection."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunnel.errors import Code, LocalStreamError
from tunnel.proto.fields import illegal
from tunnel.proto.scheduler import SendQueue
from tunnel.proto.state import StreamState, step
from tunnel.proto.window import RecvWindow, SendWindow

if TYPE_CHECKING:
    from collections.abc import Callable

    from tunnel.errors import RemoteSessionError
    from tunnel.proto.datagrams import DatagramQueue
    from tunnel.proto.frames import SockMap
    from tunnel.proto.state import Signal


class VirtualConn:
    """What a core remembers of one virtual TCP connection until its number is free.

    To everybody else it is a handle, and stays one when the number belongs to another
    connection. At first we may send ``send_limit`` bytes, and the peer ``window``.
    """

    __slots__ = (
        "_give_up",
        "asked",
        "datagrams",
        "held_bytes",
        "lane",
        "offered",
        "recv",
        "send",
        "sock_map",
        "starved",
        "state",
    )

    def __init__(
        self,
        sock_map: SockMap,
        send_limit: int,
        window: int,
        give_up: Callable[[VirtualConn], None],
    ) -> None:
        self.sock_map = sock_map
        self.state = StreamState.IDLE
        """Changed by ``on_send`` and ``on_recv`` alone, until the session ends."""
        self.send = SendWindow(send_limit)
        self.recv = RecvWindow(window, window)
        self.lane = SendQueue(sock_map)
        self.starved = False
        """A CreditGranted follows as soon as there is room to send."""
        self.asked: bool | None = None
        """Our application took bytes last, and has sent none since; None: neither."""
        self.offered = False
        """The peer opened it and the task that serves it has not ended."""
        self.held_bytes = 0
        """Bytes that arrived and that its reader has not taken (``HeldPool``)."""
        self.datagrams: DatagramQueue[bytes] | None = None
        """What a UDP association has to send; None for a virtual TCP connection."""
        self._give_up = give_up
        """Resets the connection, which is its argument, to save memory."""

    def on_send(self, signal: Signal) -> None:
        """Change the state for a frame of ours, or raise LocalStreamError."""
        after = step(self.state, signal)
        if after is None:
            raise LocalStreamError(
                Code.INTERNAL, f"cannot {signal.value} in {self.state.name}"
            )
        self.state = after

    def on_recv(self, signal: Signal) -> None:
        """Change the state for a frame of the peer, or raise RemoteSessionError."""
        after = step(self.state, signal)
        if after is None:
            raise self.broken(signal.value)
        self.state = after

    def broken(self, what: str) -> RemoteSessionError:
        """Make the error for ``what`` of the peer, which the state does not allow."""
        return illegal(f"{what} in state {self.state.name}")

    def evict(self) -> None:
        """Reset it to save memory (called by ``HeldPool``)."""
        self._give_up(self)

    def __repr__(self) -> str:
        return (
            f"<VirtualConn sock_map={self.sock_map} {self.state.name} "
            f"unsent={self.lane.size} credit={self.send.room()} held={self.held_bytes}>"
        )
