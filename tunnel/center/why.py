"""Why a virtual TCP connection is slow: what it waits for at this end, and what helps.

    Why         answers the command ``why`` of a process, and looks once a second
    HELP        one sentence for each thing that can be waited for

What holds a connection up at the other end is not asked over the link: the sentence
says that it is there, and the connection has the same id there.
"""

from __future__ import annotations

from heapq import nsmallest
from typing import TYPE_CHECKING, Final, NamedTuple

import trio

from tunnel.addresses import Address
from tunnel.errors import UsageError
from tunnel.link.live import open_streams
from tunnel.link.looks import Looks, Wait
from tunnel.link.waits import AT_ONCE, Sampler, Sight, wait_of
from tunnel.net.carried import Carried
from tunnel.platform import tcp_info

if TYPE_CHECKING:
    import socket
    from collections.abc import Awaitable, Callable, Iterable, Mapping
    from typing import NoReturn

    from tunnel.link.session import Session
    from tunnel.link.virtual import VirtualStream
    from tunnel.platform.tcp_info import TcpInfo

    Args = Mapping[str, object]
    Answer = dict[str, object]

MOST_LISTED: Final = 100
"""Connections of an answer that names none; those that wait most."""
LOSSY_PERCENT: Final = 0.5
"""Bytes sent twice, of all, from which on a line counts as a bad one."""
QUEUED: Final = 1.25
"""With so many times its shortest round trip, a line has a queue in front of it."""

AT_REST: Final = (Wait.NOTHING, Wait.PROGRAM)

HELP: Final = {
    Wait.NOTHING: "Nothing at this end holds it up.",
    Wait.CREDIT: "The reader at the other end has not taken what was sent: a faster "
    "reader helps.",
    Wait.TURN: "The other connections of this link have their turns first: fewer at "
    "once help, or a faster line.",
    Wait.LINE: "The line takes no more: a faster one helps, or less to send.",
    Wait.RATE: "The rate of its user, or of its entry, lets no more pass: a higher one "
    "helps.",
    Wait.LOCAL: "The program at this end has not taken what came: a faster one helps.",
    Wait.TARGET: "The target was asked and has not answered: a faster target helps.",
    Wait.PROGRAM: "The program that opened it has all that it asked for, and sends "
    "nothing.",
    Wait.LINK: "The link is lost, and it waits for another one.",
}
_BUSY: Final = "This program is busy: fewer connections help, or a faster processor."
_LOSSY: Final = "The line loses packets: a better one helps more than a faster one."
_NOT_CONNECTED: Final = "The target is being connected, and has not answered."
_ELSEWHERE: Final = {
    Wait.NOTHING: "What holds it up, if anything, is seen at the other end",
    Wait.CREDIT: "Whether that is a program, or a rate, is seen at the other end",
    Wait.TARGET: "Whether the target or the way back is slow is seen at the other end",
}


class Known(NamedTuple):
    """A session of this process, and whose it is."""

    client: str
    """The short id of its client."""
    user: str
    session: Session


class Why:
    """What the connections of a process wait for.

    Args:
        sessions: returns the sessions that live.
    """

    def __init__(self, sessions: Callable[[], Iterable[Known]]) -> None:
        self._sessions = sessions
        self.sampler = Sampler(lambda: (known.session for known in sessions()))

    async def run(self) -> NoReturn:
        """Look at the connections once a second until cancelled."""
        await self.sampler.run()

    @property
    def handlers(self) -> Mapping[str, Callable[[Args, str], Awaitable[Answer]]]:
        """What the control socket answers."""
        return {"why": self._why}

    async def _why(self, args: Args, _by: str) -> Answer:
        """Tell about the ``connection`` of an id, or list those that wait most.

        Raises:
            UsageError: there is none with this id.
        """
        wanted = str(args.get("connection", ""))
        if not wanted:
            return {"listed": await self._listed()}
        client, _, number = wanted.rpartition("-")
        found = [
            report(known, stream)
            for known in self._sessions()
            if known.client == client
            for stream in open_streams(known.session)
            if str(stream.conn.sock_map) == number and stream.conn.datagrams is None
        ]
        if not found:
            raise UsageError(
                f"there is no connection {wanted:.40}",
                "it may have ended",
                "tunnel why, without an id, lists some",
            )
        return {"found": found}

    async def _listed(self) -> list[Answer]:
        """Return what waits most, with a checkpoint in front of each ``AT_ONCE``."""
        each = [
            (known, stream)
            for known in self._sessions()
            for stream in open_streams(known.session)
        ]
        most: list[tuple[Known, VirtualStream]] = []
        for at in range(0, len(each), AT_ONCE):
            await trio.lowlevel.checkpoint()
            most += (
                one for one in each[at : at + AT_ONCE] if one[1].conn.datagrams is None
            )
            most = nsmallest(MOST_LISTED, most, key=_rank)
        return [brief(*one) for one in most]


def _rank(one: tuple[Known, VirtualStream]) -> tuple[int, int]:
    """Order by how often it was found waiting, then by what has passed."""
    found = b"" if one[1].looks is None else one[1].looks.found
    waited = len(found) - sum(found.count(wait) for wait in AT_REST)
    conn = one[1].conn
    return -waited, -conn.send.taken - conn.recv.received


def id_of(client: str, stream: VirtualStream) -> str:
    """Return how people name a connection; the same at both ends."""
    return f"{client}-{stream.conn.sock_map}"


def brief(known: Known, stream: VirtualStream) -> Answer:
    """Return a connection's id, what it waits for, and what has passed."""
    looks = stream.looks or Looks(0, 0)
    now = wait_of(stream, Sight(known.session), looks)
    shares = looks.shares()
    conn = stream.conn
    return {
        "id": id_of(known.client, stream),
        "user": known.user,
        "end": "opener" if stream.create is None else "exit",
        "now": now.word,
        "minute": {wait.word: round(100 * part, 1) for wait, part in shares.items()},
        "looks": len(looks.found),
        "sent_bytes": conn.send.taken,
        "received_bytes": conn.recv.received,
    }


def report(known: Known, stream: VirtualStream) -> Answer:
    """Return all that is known about what a connection waits for."""
    session, conn, create = known.session, stream.conn, stream.create
    sight = Sight(session)
    looks = stream.looks or Looks(0, 0)
    shares = looks.shares() or {wait_of(stream, sight, looks): 1.0}
    mostly = max(shares, key=lambda wait: shares[wait])
    local = stream.local
    sock = local.tcp if isinstance(local, Carried) else None
    rtt_s = session.core.liveness.rtt_s
    return {
        **brief(known, stream),
        "mostly": mostly.word,
        "target": str(create.target) if create is not None else None,
        "visitor": None if stream.visitor is None else str(stream.visitor),
        "local": None if sock is None else _other_end(sock),
        "credit_bytes": max(conn.send.room(), 0),
        "unsent_bytes": conn.lane.size,
        "unread_bytes": stream.unread_bytes + stream.lent,
        "kept_bytes": session.kept_bytes,
        "waiting": sight.waiting,
        "rtt_ms": None if rtt_s is None else round(rtt_s * 1000, 1),
        "line": _figures(sight.line),
        "local_line": None if sock is None else _figures(tcp_info.read(sock)),
        "help": _help(mostly, stream, sight),
        "elsewhere": _elsewhere(mostly, stream),
    }


def _other_end(sock: socket.socket) -> str | None:
    """Return what a local socket is connected to; None: it is gone, or not TCP."""
    try:
        return str(Address(*sock.getpeername()[:2]))
    except (OSError, TypeError):
        return None


def _help(wait: Wait, stream: VirtualStream, sight: Sight) -> str:
    """Return the sentence that says what would help."""
    if wait is Wait.TURN and sight.waiting <= 1:
        return _BUSY
    if wait is Wait.LINE and _loses(sight.line):
        return _LOSSY
    if wait is Wait.TARGET and not stream.answered:
        return _NOT_CONNECTED
    return HELP[wait]


def _elsewhere(wait: Wait, stream: VirtualStream) -> str:
    """Return where more is known, if that is not here."""
    if wait is Wait.TARGET and stream.create is not None:
        return ""
    return _ELSEWHERE.get(wait, "")


def _loses(line: TcpInfo | None) -> bool:
    """Say whether losses hold a line up, and not how much it can carry.

    At what it can carry, bytes queue on the way, and the round trip is longer.
    """
    if line is None or (_repeated_percent(line) or 0) < LOSSY_PERCENT:
        return False
    return line.min_rtt_s is None or line.rtt_s < QUEUED * line.min_rtt_s


def _repeated_percent(line: TcpInfo | None) -> float | None:
    if line is None or not line.sent_bytes or line.repeated_bytes is None:
        return None
    return 100 * line.repeated_bytes / line.sent_bytes


def _figures(line: TcpInfo | None) -> Answer | None:
    """Return a TCP connection as people count: milliseconds, bytes, percent."""
    if line is None:
        return None
    return {
        "rtt_ms": round(line.rtt_s * 1000, 1),
        "rttvar_ms": round(line.rttvar_s * 1000, 1),
        "min_rtt_ms": _rounded(line.min_rtt_s, 1000),
        "cwnd_bytes": line.cwnd * line.mss,
        "mss_bytes": line.mss,
        "unacked_bytes": line.unacked * line.mss,
        "notsent_bytes": line.notsent_bytes,
        "retransmits": line.retransmits,
        "repeated_percent": _rounded(_repeated_percent(line)),
        "delivery_bytes_per_s": line.delivery_bytes_per_s,
        "app_limited": line.app_limited,
        "busy_s": _rounded(line.busy_s),
        "rwnd_limited_s": _rounded(line.rwnd_limited_s),
        "sndbuf_limited_s": _rounded(line.sndbuf_limited_s),
    }


def _rounded(value: float | None, factor: float = 1) -> float | None:
    return None if value is None else round(factor * value, 3)
