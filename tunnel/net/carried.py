"""A relay whose socket the session carries, without a task for either direction.

The session reads the socket whenever there is room, and writes to it what comes. The
relay's own task only waits: for the end, and for what the socket does not take at once.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import trio

from tunnel.net.descriptors import carried
from tunnel.net.relay_policy import Act, Down, Event, Up, closed
from tunnel.net.relay_state import RelayState, code_of

if TYPE_CHECKING:
    from tunnel.errors import Code
    from tunnel.net.relay_state import Traffic
    from tunnel.net.sockets import FastSocket
    from tunnel.net.virtual_connection import ResettableStream, Take
    from tunnel.platform.sockets import Buffer


class Carried(RelayState):
    """A relay of a socket; to the session it is a ``LocalEnd``."""

    __slots__ = ("_socket",)

    def __init__(
        self,
        local: FastSocket,
        virtual: ResettableStream,
        traffic: Traffic,
        idle_s: float,
        early: bytes,
    ) -> None:
        super().__init__(local, local, virtual, traffic, idle_s, early)
        self._socket = local

    async def run(self) -> None:
        """Return when both directions are over, or two tasks have to do the rest.

        The latter when the session carries nothing, and when the peer reads no more
        while local still sends: local must be able to hear the rest, and a session does
        not read for nobody.
        """
        self.virtual.on_closed(self._heard_close)
        carried(self._socket, self)
        take = self.virtual.carry(self, self.idle_s, ready=bool(self.early))
        if take is not None:
            await self._wait(take)

    async def _wait(self, take: Take) -> None:
        """Bring local what it does not take at once, and wait for the end."""
        while not self.is_over() and self.up is not Up.DROPPED:
            try:
                piece = take() if self.down is Down.OPEN else None
            except trio.BrokenResourceError as error:
                self.happened(Event.PEER_DRAINED, code_of(error))
                return
            if self.is_over():  # to take may tell others, and they us
                return
            try:
                if piece:
                    await self._write_out(piece)
                elif piece is not None:
                    self.ended()
                elif self.grace_until < math.inf:
                    with self.waiting():
                        await self.changed.wait()
                else:
                    await self.changed.wait()
            except trio.BrokenResourceError:
                self.local_write_failed()

    async def _write_out(self, piece: bytes | bytearray) -> None:
        rest = piece[self.write(piece) :]
        if rest:
            # The session watches the time no more if the peer has closed.
            with self.waiting_idly():
                await self._socket.put(rest)
            self.late = bytes(self._socket.unsent)  # the wait was ended
            self.count_received(len(rest) - len(self.late))

    def _heard_close(self, code: Code) -> None:
        if self.happened(closed(code), code) is Act.DROP:
            self.look()

    # For the session: see ``LocalEnd`` ------------------------------------------------

    def number(self) -> int:
        """Return the socket's descriptor."""
        return self._socket.number()

    def read(self, most: int) -> bytes | None:
        """Read local; nothing when it is over, however."""
        if self.early:
            early, self.early = self.early[:most], self.early[most:]
            self.count_sent(len(early))
            return early
        try:
            data = self._socket.read_now(most)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self.happened(Event.LOCAL_BROKE)
            return b""
        if data:
            self.count_sent(len(data))
        elif data is not None:
            self.local_finished()
        return data

    def write(self, *pieces: Buffer) -> int:
        """Write to local what goes at once; the relay's task finds an error."""
        size = self._socket.write_now(*pieces)
        if size:
            self.count_received(size)
        return size

    def news(self) -> None:
        """Have the relay's task look."""
        self.changed.ring()

    def ended(self) -> None:
        """Pass the end on; the relay's task hears of it only when that was the last."""
        if self.happened(Event.PEER_FINISHED) is Act.TELL_LOCAL:
            try:
                self._socket.finish()
            except trio.BrokenResourceError:
                self.local_write_failed()

    def idle(self) -> None:
        """End it."""
        self.happened(Event.IDLE)

    def vanished(self) -> None:
        """End it: see ``descriptors.Carrier``."""
        self.happened(Event.LOCAL_VANISHED)
