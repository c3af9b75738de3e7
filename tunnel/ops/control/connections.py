"""The virtual TCP connections of a process: listed for ``top``, ended by ``kick``."""

from __future__ import annotations

import logging
from heapq import nlargest
from typing import TYPE_CHECKING, Final

from tunnel.center.why import id_of
from tunnel.errors import Code, UsageError
from tunnel.link.live import open_streams
from tunnel.link.tally import bytes_of
from tunnel.link.waits import state_of
from tunnel.log import log_event
from tunnel.ops.control.status import ConnectionStatus, Passed
from tunnel.proto.events import StreamClosed
from tunnel.proto.frames import NameTarget, UdpTarget

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from tunnel.center.why import Known
    from tunnel.link.session import Session
    from tunnel.link.tally import Tally
    from tunnel.link.virtual import VirtualStream
    from tunnel.ops.control import Answer, Args

logger = logging.getLogger("tunnel.control")

MOST_LISTED: Final = 1_000
"""Connections of one answer: those that have carried most, half a megabyte of JSON."""
KICKED: Final = "ended by a command"


def mapping_of(stream: VirtualStream) -> str:
    """Return the name of the mapping whose visitor a stream is; "" for others."""
    match stream.create.target if stream.create else None:
        case NameTarget(name) | UdpTarget(name):
            return name
        case _:
            return ""


class Connections:
    """The connections of the sessions that ``sessions`` returns.

    ``entries`` returns what the entries of a session are called, where streams do not
    say it themselves: at a server.
    """

    def __init__(
        self,
        sessions: Callable[[], Iterable[Known]],
        entries: Callable[[Session], Mapping[Tally, str]] = lambda _session: {},
    ) -> None:
        self._sessions = sessions
        self._entries = entries

    async def top(self, args: Args, _by: str) -> Answer:
        """List the connections that have carried most, ``most`` of them."""
        asked = args.get("most")
        most = asked if isinstance(asked, int) and asked > 0 else MOST_LISTED

        def passed(one: tuple[Known, VirtualStream]) -> int:
            return sum(bytes_of(one[1].conn))

        each = list(self._each())
        first = nlargest(min(most, MOST_LISTED), each, key=passed)
        names = {known.session: self._entries(known.session) for known, _ in first}
        listed = [self._row(*one, names[one[0].session]) for one in first]
        return {"count": len(each), "connections": listed}

    def kick(self, connection: str, by: str) -> Answer:
        """Reset one connection; its other end learns that it was on purpose.

        Raises:
            UsageError: there is none with this id.
        """
        for known, stream in self._each():
            if id_of(known.client, stream) == connection:
                cut(known.session, stream)
                log_event(logger, logging.INFO, "connection.kicked", by=by,
                    connection=connection)  # fmt: skip
                return {"kicked": connection, "connections": 1}
        what = f"there is no link or connection {connection:.60}"
        raise UsageError(what, "it may have ended", "tunnel top lists them")

    def _each(self) -> Iterator[tuple[Known, VirtualStream]]:
        for known in self._sessions():
            for stream in open_streams(known.session):
                yield known, stream

    def _row(
        self, known: Known, stream: VirtualStream, names: Mapping[Tally, str]
    ) -> Answer:
        create, conn = stream.create, stream.conn
        entry = mapping_of(stream)
        if not entry and stream.tally is not None:
            entry = names.get(stream.tally, "")
        row = ConnectionStatus(
            id=id_of(known.client, stream),
            user=known.user,
            entry=entry or None,
            target=str(create.target) if create else None,
            visitor=str(stream.visitor) if stream.visitor is not None else None,
            state=conn.state.name.lower(),
            passed=Passed(*bytes_of(conn)),
            why=state_of(stream),
        )
        return row.as_answer()


def cut(session: Session, stream: VirtualStream) -> None:
    """Reset a connection, both towards its peer and towards its program here."""
    conn = stream.conn
    session.core.close(conn, Code.GENERAL, KICKED)
    session.dispatch([StreamClosed(conn, Code.GENERAL, KICKED, local=True)])
    session.output.wake()
