"""Find what virtual TCP connections wait for: a look at plain state, once a second.

Nothing is counted while bytes pass: a look compares how many have. The kernel is asked
about a link, once, if a connection on it may be waiting for the line.

    Sampler     looks, for as long as a process runs
    wait_of     what one connection waits for now
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio

from tunnel.link.live import open_streams
from tunnel.link.looks import MINUTE, Looks, Wait
from tunnel.link.session import Session
from tunnel.platform import tcp_info

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import NoReturn

    from tunnel.link.virtual import VirtualStream
    from tunnel.platform.tcp_info import TcpInfo

EVERY_S: Final = 1.0
"""How often to look, on average."""
UNEVEN_S: Final = 0.5
"""How much the pauses differ: what comes every 100 ms, say, must not be found in one
and the same moment of it each time."""
_GOLDEN: Final = 0.6180339887498949
"""Its multiples are spread evenly over 0 to 1, in any number of them."""
MOST: Final = 1_000
"""Connections at a look; of more, each has its turn after some looks. A look at one
costs 2.5 to 4 µs, so all are at most 0.4 % of a core."""
AT_ONCE: Final = 100
"""Connections between two turns of others: 0.4 ms."""


class Sight:
    """What connections of one session share, at one look."""

    def __init__(self, session: Session) -> None:
        self.session = session
        output = session.output
        self._transport = output.transport
        self.linked = session.lost_at is None and output.transport is not None
        core = session.core
        self.limited = bool(core.lanes.parked)
        """The rate of the user lets nothing go out at the moment."""
        self.waiting = len(core.lanes.waiting) + len(core.lanes.parked)
        """Connections whose bytes wait for their turn."""
        self.window_bytes = core.theirs.initial_window
        self._line: TcpInfo | None = None
        self._asked = False

    @property
    def line(self) -> TcpInfo | None:
        """The kernel's view of the link; asked for once, and only if it is needed."""
        if not self._asked:
            self._asked = True
            sock = None if self._transport is None else self._transport.tcp
            self._line = None if sock is None else tcp_info.read(sock)
        return self._line

    @property
    def line_is_full(self) -> bool:
        """Whether the network takes no more, or the peer confirms too little."""
        replay = self.session.core.replay
        if self.session.output.is_stuck or (replay is not None and replay.full()):
            return True
        return self.line is not None and self.line.full

    def window_is_in_pipe(self) -> bool:
        """Say whether a window's bytes can all be on their way, with none at the peer.

        At least half a window is out whenever there is no credit.
        """
        line = self.line
        return line is None or 2 * line.in_pipe_bytes >= self.window_bytes


def wait_of(stream: VirtualStream, sight: Sight, looks: Looks) -> Wait:
    """Return what a connection waits for now; ``looks`` has what was before."""
    conn, session = stream.conn, sight.session
    if not sight.linked:
        return Wait.LINK
    if conn.datagrams is not None:
        return Wait.NOTHING
    if not stream.answered:
        return Wait.TARGET
    if stream.unread_bytes or stream.lent:
        return Wait.LOCAL
    if session.inflow is not None and session.inflow.holds(conn):
        return Wait.RATE
    if conn.lane.size:
        if sight.limited:
            return Wait.RATE
        return Wait.LINE if sight.waiting <= 1 and sight.line_is_full else Wait.TURN
    if conn.send.room() <= 0:
        if conn.send.taken < conn.send.limit:
            return Wait.RATE  # of its entry: the peer has room
        full = sight.line_is_full and sight.window_is_in_pipe()
        return Wait.LINE if full else Wait.CREDIT
    return _turn_of_talk(stream, looks)


def _turn_of_talk(stream: VirtualStream, looks: Looks) -> Wait:
    """Return which program has to speak: nothing between the two waits.

    Bytes of one direction alone are taken for a transfer, until they end.
    """
    conn = stream.conn
    is_exit = stream.create is not None
    moved_up = conn.send.taken != looks.up
    moved_down = conn.recv.consumed != looks.down
    if moved_down and not moved_up:  # a question, or all that the other end sends
        return Wait.NOTHING
    if moved_up and not moved_down:
        return Wait.TARGET if is_exit else Wait.PROGRAM
    if conn.asked is None:
        return Wait.PROGRAM  # it speaks first, as a rule
    return Wait.TARGET if conn.asked is is_exit else Wait.PROGRAM


class Sampler:
    """Looks at the connections of all sessions of a process.

    Args:
        sessions: returns those that live.
    """

    def __init__(self, sessions: Callable[[], Iterable[Session]]) -> None:
        self._sessions = sessions
        self._at = 0
        self._spread = 0.0
        self.took_s = 0.0
        """How long the last look has taken, without the turns of others."""

    async def run(self) -> NoReturn:
        """Look once a second until cancelled."""
        while True:
            self._spread = (self._spread + _GOLDEN) % 1
            await trio.sleep(EVERY_S + UNEVEN_S * (self._spread - 0.5))
            await self.look()

    async def look(self) -> None:
        """Look once, with a checkpoint in front of each ``AT_ONCE`` connections."""
        streams = [
            (session, stream)
            for session in self._sessions()
            for stream in open_streams(session)
        ]
        total, took_s = len(streams), 0.0
        if total > MOST:
            start = self._at if self._at < total else 0
            self._at = start + MOST
            streams = streams[start : start + MOST]
        most = max(1, MINUTE * MOST // max(total, MOST))
        sights: dict[Session, Sight] = {}
        for at in range(0, len(streams), AT_ONCE):
            await trio.lowlevel.checkpoint()
            began = trio.current_time()
            for session, stream in streams[at : at + AT_ONCE]:
                sight = sights.get(session)
                if sight is None:
                    sight = sights[session] = Sight(session)
                look_at(stream, sight, most)
            sights.clear()  # others have had a turn
            took_s += trio.current_time() - began
        self.took_s = took_s


def look_at(stream: VirtualStream, sight: Sight, most: int = MINUTE) -> None:
    """Look at one connection, and note what is found; so many looks are a minute's."""
    conn, looks = stream.conn, stream.looks
    if looks is None:
        looks = stream.looks = Looks(0, 0)
    looks.add(wait_of(stream, sight, looks), most)
    looks.up, looks.down = conn.send.taken, conn.recv.consumed


def state_of(stream: VirtualStream) -> str:
    """Return in one word what a connection waits for now: see ``Wait``."""
    session = stream.carrier
    if not isinstance(session, Session):  # pragma: no cover - of a test
        return ""
    looks = stream.looks or Looks(0, 0)
    return wait_of(stream, Sight(session), looks).word
