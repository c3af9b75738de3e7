"""What a relay and a virtual TCP connection need of each other."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Protocol, runtime_checkable

from tunnel.errors import Code

if TYPE_CHECKING:
    from tunnel.addresses import Address
    from tunnel.platform.sockets import Buffer

OPEN_DEADLINE_S: Final = 10.0
"""How long an opener waits for the real connect at the far end."""
Bytes = bytes | bytearray
Take = Callable[[], Bytes | None]
OnClosed = Callable[[Code], None]
Sink = Callable[[list[bytes | memoryview], int], int]
"""Take pieces, and how many bytes they are in all; return how many were taken at once.
It must not wait or raise."""


class ResettableStream(Protocol):
    """A virtual TCP connection: a half-closeable trio stream that can be reset.

    When the peer reset or refused it, or its link is lost, its methods raise
    ``trio.BrokenResourceError`` from a ``StreamError`` that carries the code. Code
    NORMAL, from ``send_all``, ``put`` or ``finish`` only, means that the peer reads no
    more; what the peer sent still comes.
    """

    bound: Address | None
    """The far side's own end of the connection, once it is open and if it was told."""

    async def receive_some(self, max_bytes: int | None = None) -> Bytes:
        """Wait for at least one byte; return nothing at end of file."""

    def carry(
        self, local: LocalEnd, idle_s: float, *, ready: bool = False
    ) -> Take | None:
        """Carry a socket without a task of its own.

        Args:
            local: the socket.
            idle_s: its ``idle`` is called when nothing has passed for so long.
            ready: it has something to be read already.

        Returns:
            What takes the pieces that the socket did not, and then gives None. None
            instead: the caller has to carry the socket.
        """

    async def receive_piece(self) -> Bytes:
        """Wait for bytes and lend them until the next call; nothing at end of file."""

    async def send_all(self, data: Buffer) -> None:
        """Return when ``data`` is taken; waiting here is the backpressure."""

    async def put(self, data: Buffer) -> None:
        """Do as ``send_all`` does, without a checkpoint when there is room."""

    async def wait_room(self) -> int:
        """Wait until ``put`` takes bytes without a wait; return how many."""

    def finish(self) -> None:
        """End this direction behind what was sent."""

    async def aclose(self) -> None:
        """End both directions behind what was sent; harmless when already over."""

    def close(self) -> None:
        """Do as ``aclose`` does, without a checkpoint."""

    def on_closed(self, call: OnClosed | None) -> None:
        """Have ``call`` called when the peer closes it or the link is lost.

        At once if that has happened. It must not wait. None takes the last one back.
        """

    def reset(self, code: Code) -> None:
        """Give it up at once and tell the peer why; harmless when already over."""


@runtime_checkable
class HasSink(Protocol):
    """A virtual TCP connection that can pass on what comes before anybody takes it."""

    sink: Sink | None
    """Asked first while nothing waits to be taken and nothing that was lent is held."""


@runtime_checkable
class Joinable(HasSink, Protocol):
    """A virtual TCP connection that can be joined with another of this process."""

    async def receive_piece(self) -> Bytes:
        """As for ``ResettableStream``."""

    def put_now(self, pieces: list[bytes | memoryview], size: int) -> int:
        """Take all pieces, ``size`` bytes, at once, or none; return how many bytes.

        0 as well where it is broken, or has ended: ``put`` says why.
        """


class LocalEnd(Protocol):
    """A socket whose two directions a session carries; it must not wait or raise."""

    def number(self) -> int:
        """Return the descriptor: open until ``read`` or the stream is at its end."""

    def read(self, most: int) -> bytes | None:
        """Return what has come, None if nothing yet, nothing at the end of any kind.

        It is not called again after the end.
        """

    def write(self, *pieces: Buffer) -> int:
        """Take what goes at once; return how many bytes, 0 also when it is broken."""

    def news(self) -> None:
        """Note that bytes, the end or an error wait to be taken."""

    def ended(self) -> None:
        """Note that the peer sends no more, and that nothing of it waits."""

    def idle(self) -> None:
        """Note that nothing has passed either way for as long as was asked."""
