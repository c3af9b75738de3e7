"""The rates of single entries at a client: ``tunnel limit ENTRY 5MB/s``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio

from tunnel.link.live import open_streams
from tunnel.net.notify import Notify
from tunnel.ops.control.connections import mapping_of
from tunnel.proto.entry_pace import EntryPace, let_go

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tunnel.center.client import CenterClient
    from tunnel.link.session import Session
    from tunnel.ops.entries import Published
    from tunnel.proto.conn import VirtualConn

TICK_S: Final = 0.02
"""How often something is let through, as for the rates of users."""


class EntryLimits:
    """The rates of a client's mappings, by their names; ``published`` has those.

    A client without one pays nothing; with one, a look at each connection 50 times a
    second, which takes 1 ms for 3,000 of them.
    """

    def __init__(
        self, client: CenterClient, published: Mapping[str, Published]
    ) -> None:
        self._client = client
        self._published = published
        self._paces: dict[str, EntryPace] = {}
        self._news = Notify()

    def rate_of(self, name: str) -> int | None:
        """Return the bytes per second of a mapping; None: as the link takes them."""
        pace = self._paces.get(name)
        return pace.rate if pace else None

    def set_rate(self, name: str, rate: int | None) -> None:
        """Let its visitors have so many bytes per second each way, from now on."""
        if rate is None:
            self._lift(name)
        elif name in self._paces:
            self._paces[name].set_rate(rate)
        else:
            self._paces[name] = EntryPace(rate, trio.current_time)
            self._news.ring()

    async def run(self) -> None:
        """Let through what may pass, until cancelled."""
        while True:
            while not self._paces:
                await self._news.wait()
            await trio.sleep(TICK_S)
            for name in self._paces.keys() - self._published.keys():
                del self._paces[name]  # its entry was removed
            session = self._client.session
            if session is not None and session.lost_at is None and not session.ended:
                self._tick(session)

    def _tick(self, session: Session) -> None:
        for name, conns in _by_mapping(session, self._paces).items():
            self._paces[name].tick(session.core, conns)
        _act(session)

    def _lift(self, name: str) -> None:
        session = self._client.session
        if self._paces.pop(name, None) is None or session is None or session.ended:
            return
        for conn in _by_mapping(session, {name: None})[name]:
            let_go(session.core, conn)
        _act(session)


def _by_mapping(
    session: Session, names: dict[str, EntryPace] | dict[str, None]
) -> dict[str, list[VirtualConn]]:
    """Return the connections of these mappings; datagrams cannot wait for a rate."""
    found: dict[str, list[VirtualConn]] = {name: [] for name in names}
    for stream in open_streams(session):
        name = mapping_of(stream)
        if name in found and stream.conn.datagrams is None:
            found[name].append(stream.conn)
    return found


def _act(session: Session) -> None:
    """Wake who may send, and write what there is to write."""
    session.dispatch(session.core.take_notices())
    if session.lost_at is None and session.core.has_output():
        session.output.flush()
