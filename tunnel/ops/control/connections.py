"""The virtual TCP connections of a process: listed for ``top``, ended by ``kick``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from tunnel.errors import Code, UsageError
from tunnel.link.session import open_streams
from tunnel.ops.control.status import ConnectionStatus, Passed
from tunnel.proto.events import StreamClosed
from tunnel.proto.frames import NameTarget, UdpTarget

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from tunnel.link.session import Session
    from tunnel.link.virtual import VirtualStream
    from tunnel.ops.control import Answer, Args

    Why = Callable[[VirtualStream], str]

MOST_LISTED: Final = 1_000
"""Connections of one answer: those that have carried most, half a megabyte of JSON."""
KICKED: Final = "ended by a command"


class Known(NamedTuple):
    """A session of this process, and whose it is."""

    client: str
    """The short id of its client."""
    user: str
    session: Session


def mapping_of(stream: VirtualStream) -> str:
    """Return the name of the mapping whose visitor a stream is; "" for others."""
    match stream.create.target if stream.create else None:
        case NameTarget(name) | UdpTarget(name):
            return name
        case _:
            return ""


class Connections:
    """The connections of the sessions that ``sessions`` returns.

    ``why`` says in a word what one waits for.
    """

    def __init__(
        self, sessions: Callable[[], Iterable[Known]], why: Why | None = None
    ) -> None:
        self._sessions = sessions
        self._why = why

    async def top(self, _args: Args, _by: str) -> Answer:
        """List the connections that have carried most."""

        def passed(one: tuple[Known, VirtualStream]) -> int:
            conn = one[1].conn
            return conn.send.taken + conn.recv.received

        each = list(self._each())
        each.sort(key=passed, reverse=True)
        listed = [self._row(*one) for one in each[:MOST_LISTED]]
        return {"count": len(each), "connections": listed}

    def kick(self, connection: str) -> Answer:
        """Reset one connection; its other end learns that it was on purpose.

        Raises:
            UsageError: there is none with this id.
        """
        for known, stream in self._each():
            if id_of(known, stream) == connection:
                cut(known.session, stream)
                return {"kicked": connection, "connections": 1}
        what = f"there is no link or connection {connection:.60}"
        raise UsageError(what, "it may have ended", "tunnel top lists them")

    def _each(self) -> Iterator[tuple[Known, VirtualStream]]:
        for known in self._sessions():
            for stream in open_streams(known.session):
                yield known, stream

    def _row(self, known: Known, stream: VirtualStream) -> Answer:
        create, conn = stream.create, stream.conn
        row = ConnectionStatus(
            id=id_of(known, stream),
            user=known.user,
            entry=mapping_of(stream) or None,
            target=str(create.target) if create else None,
            visitor=str(create.visitor) if create and create.visitor else None,
            state=conn.state.name.lower(),
            passed=Passed(conn.send.taken, conn.recv.received),
            why=None if self._why is None else self._why(stream),
        )
        return row.as_answer()


def id_of(known: Known, stream: VirtualStream) -> str:
    """Return how people name a connection; the same at both ends."""
    return f"{known.client}-{stream.conn.sock_map}"


def cut(session: Session, stream: VirtualStream) -> None:
    """Reset a connection, both towards its peer and towards its program here."""
    conn = stream.conn
    session.core.close(conn, Code.GENERAL, KICKED)
    session.dispatch([StreamClosed(conn, Code.GENERAL, KICKED, local=True)])
    session.output.wake()
