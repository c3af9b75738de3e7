"""Sessions of a center-client that end at a server which drains, while another goes on.

What runs over them runs on, over other links too if it has to, until the server or the
client is done with it (protocol.md#drain).
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

import trio

from tunnel.center.backoff import Backoff
from tunnel.errors import (
    Code,
    LocalLinkError,
    LocalSessionError,
    RemoteSessionError,
    TunnelError,
)
from tunnel.link.link import Link
from tunnel.link.transport import send
from tunnel.log import log_event
from tunnel.net.notify import Notify
from tunnel.proto.frames import ProtGoAway
from tunnel.proto.payloads import encode

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tunnel.center.link_maker import Held, LinkMaker
    from tunnel.link.session import Session

logger = logging.getLogger("tunnel.client")


class Carried:
    """A link that a task of its own carries to its end.

    Args:
        link: the link.
        news: rings when it is over.
    """

    def __init__(self, link: Link, news: Notify) -> None:
        self.link = link
        self.is_over = False
        self.reason: TunnelError = LocalLinkError(Code.LINK_LOST, "it was cut")
        """Why it ended, once it is over."""
        self._news = news
        self._scope = trio.CancelScope()

    async def run(self) -> None:
        """Carry the link."""
        try:
            with self._scope:
                self.reason = await self.link.run()
        finally:
            self.is_over = True
            self._news.ring()

    async def wait(self) -> None:
        """Wait until it is over."""
        while not self.is_over:
            await self._news.wait()

    async def cut(self) -> None:
        """Lose the link, and wait until it is over."""
        self._scope.cancel()
        with trio.CancelScope(shield=True):  # it is bounded: see Link
            await self.link.gone.wait()


class _Departing:
    """A session that ends where it is.

    Args:
        maker: makes the client's links.
        held: the session.
        carried: the link that it has.
    """

    def __init__(self, maker: LinkMaker, held: Held, carried: Carried) -> None:
        self.session: Final = held.session
        self._maker = maker
        self._held = held
        self._carried: Carried | None = carried
        self._scope = trio.CancelScope()

    def close(self) -> None:
        """End it in good order; without a link at once."""
        if self._carried is not None:
            self._carried.link.close(Code.NORMAL)
        else:
            self.cancel()

    def cancel(self) -> None:
        """End it at once."""
        self._scope.cancel()

    async def run(self) -> None:
        """Carry it to its end, over other links where it loses its own."""
        session, pauses = self.session, Backoff()
        try:
            with self._scope:
                if self._carried is not None:
                    await self._carried.wait()
                    self._is_lost()
                while session.ended is None:
                    if await self._resume(pauses) and self._carried is not None:
                        await self._carried.run()
                        self._is_lost()
        finally:
            if self._carried is not None:
                await self._carried.cut()
            session.end(LocalSessionError(Code.NORMAL, "the client has left"))
        lost, reason = session.lost_streams, str(session.ended)
        log_event(logger, logging.WARNING if lost else logging.DEBUG, "session.left",
            reason=reason, connections=lost)  # fmt: skip

    def _is_lost(self) -> None:
        carried, self._carried = self._carried, None
        if carried is not None:
            self.session.link_lost(carried.reason)

    async def _resume(self, pauses: Backoff) -> bool:
        """Have another link; False, after a pause, where there is none."""
        try:
            transport, result = await self._maker.make(
                self._held, waiting=True, known=True, leaves=True
            )
        except TunnelError:
            await trio.sleep(pauses.next_s(waiting=True))
            return False
        try:
            if not result.resumed:
                why = "the server does not know the session any more"
                self.session.end(LocalLinkError(Code.LINK_LOST, why))
                # It has begun another, which nobody wants.
                await send(transport, [encode(ProtGoAway(Code.NORMAL))])
                await transport.aclose()
                return False
            self.session.resume(result.count)
        except RemoteSessionError as error:
            self.session.end(error)
            await transport.aclose()
            return False
        except BaseException:
            await transport.aclose()
            raise
        link = Link(self.session, transport, result.leftover)
        self._carried = Carried(link, Notify())
        return True


class Departures:
    """All sessions of a client that end where they are.

    Args:
        maker: makes the client's links.
    """

    def __init__(self, maker: LinkMaker) -> None:
        self._maker = maker
        self._departing: dict[_Departing, None] = {}
        self._passed = (0, 0)

    @property
    def sessions(self) -> tuple[Session, ...]:
        """Those that live."""
        return tuple(one.session for one in self._departing)

    @property
    def traffic(self) -> tuple[int, int]:
        """Bytes sent and received, by those that are over too."""
        return passed(self.sessions, self._passed)

    def close(self) -> None:
        """End all in good order."""
        for one in self._departing:
            one.close()

    def cancel(self) -> None:
        """End all at once."""
        for one in self._departing:
            one.cancel()

    async def see_off(self, held: Held, carried: Carried) -> None:
        """Carry a session to its end."""
        departing = _Departing(self._maker, held, carried)
        self._departing[departing] = None
        try:
            await departing.run()
        finally:
            del self._departing[departing]
            self._passed = passed((departing.session,), self._passed)


def passed(sessions: Iterable[Session], before: tuple[int, int]) -> tuple[int, int]:
    """Return the bytes that sessions have sent and received, with those ``before``."""
    sent, received = before
    for session in sessions:
        sent += session.core.data_sent
        received += session.core.data_received
    return sent, received
