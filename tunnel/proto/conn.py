"""The core's record of one virtual TCP connection."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from tunnel.proto.scheduler import SendQueue
from tunnel.proto.state import StreamState
from tunnel.proto.window import RecvWindow, SendWindow

if TYPE_CHECKING:
    from tunnel.proto.datagrams import DatagramQueue
    from tunnel.proto.frames import SockMap
    from tunnel.proto.mux import MuxCore


class VirtualConn:
    """What MuxCore remembers of one virtual TCP connection until its number is free.

    To everybody but its core it is a handle: it stays with its core for ever, also when
    the number belongs to another connection by then.
    """

    __slots__ = (
        "datagrams",
        "granted_at",
        "held_bytes",
        "lane",
        "offered",
        "owner",
        "recv",
        "send",
        "sock_map",
        "starved",
        "state",
    )

    def __init__(
        self, owner: MuxCore, sock_map: SockMap, send_limit: int, window: int
    ) -> None:
        self.owner = owner
        self.sock_map = sock_map
        self.state = StreamState.IDLE
        self.send = SendWindow(send_limit)
        self.recv = RecvWindow(window, window)
        self.lane = SendQueue(sock_map)
        self.starved = False
        self.offered = False
        """The peer opened it and the task that serves it has not ended."""
        self.held_bytes = 0
        self.datagrams: DatagramQueue[bytes] | None = None
        """What a UDP association has to send; None for a virtual TCP connection."""
        self.granted_at = -math.inf
        """When its window was raised last."""

    def evict(self) -> None:
        """Give it up to save memory (called by HeldPool)."""
        self.owner.evict(self)

    def __repr__(self) -> str:
        return (
            f"<VirtualConn sock_map={self.sock_map} {self.state.name} "
            f"unsent={self.lane.size} credit={self.send.room()} held={self.held_bytes}>"
        )
