"""What a proxy front end is given: functions that open things at the exit.

A front end sees no link and no session, so each of these can be a few lines in a test.
What an exit cannot do is None here, and the app is told "command not supported".
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from tunnel.addresses import Address
from tunnel.net.relay import ResettableStream
from tunnel.proto.frames import Target

OpenTarget = Callable[[Target], Awaitable[ResettableStream]]
"""Return a stream once the far side is connected; raise StreamError with the true code
if it is not. Ends by its own deadline; when cancelled it leaves nothing behind."""


class Opening(ResettableStream, Protocol):
    """A stream whose far side has not answered yet."""

    async def wait_open(self) -> None:  # pragma: no cover
        """Return once it is connected; raise StreamError with the code if it is not.

        Cancelled, it may be called again.
        """


Begin = Callable[[Target], Opening | None]
"""Begin to open, without a wait; raise StreamError to refuse. None: ask ``OpenTarget``,
which waits. What comes of it is the caller's to reset."""


class PeerPort(Protocol):
    """A port at the exit that waits for one peer (BIND)."""

    address: Address
    """Where the exit listens, as a peer can be told it."""

    async def accept(self) -> tuple[ResettableStream, Address]:  # pragma: no cover
        """Wait for the peer, once; return its stream and its address.

        Raises StreamError when no peer can come. Cancelled, it leaves nothing behind.
        """

    async def aclose(self) -> None:  # pragma: no cover
        """Stop listening. An accepted stream lives on; harmless when repeated."""


class Association(Protocol):
    """A UDP association: a socket at the exit."""

    @property
    def passed(self) -> tuple[int, int]:  # pragma: no cover
        """Bytes that were sent to the exit, and came from it."""

    def put(self, address: Address, payload: bytes) -> None:  # pragma: no cover
        """Have it sent from the exit; names are resolved there. May drop it.

        It leaves with the next ``flush`` of any association of the same front end.
        """

    def flush(self) -> None:  # pragma: no cover
        """Send what was put. Never waits."""

    def deliver_to(
        self, take: Callable[[Address, bytes], bool], over: Callable[[], None]
    ) -> None:  # pragma: no cover
        """Give ``take`` each datagram, with its sender, as it comes.

        It returns False for one that is lost. ``over`` is called when the association
        is lost. Neither waits, raises, or is called after the close.
        """

    def close(self) -> None:  # pragma: no cover
        """End the association, without waiting; harmless when it is over."""

    async def aclose(self) -> None:  # pragma: no cover
        """End the association; harmless when it is over."""


Bind = Callable[[Address], Awaitable[PeerPort]]
"""Listen at the exit for one peer; the argument is the one that the app expects, all
zeros when it does not know. Errors and cancellation as with ``OpenTarget``."""

Associate = Callable[[], Awaitable[Association]]
"""Begin an association at the exit. Errors and cancellation as with ``OpenTarget``."""


@dataclass(frozen=True, slots=True)
class Dialer:
    """What the apps of a proxy can have opened."""

    open: OpenTarget
    bind: Bind | None = None
    associate: Associate | None = None
    udp_public: str | None = None
    """IP address at which apps of other machines find the proxy's UDP sockets; None for
    the one that they came in on. Behind NAT nothing here can find it out."""
    begin: Begin | None = None
    """Does what ``open`` does, in two steps, and costs an app less."""
