"""Find out who has vanished: a machine that lost power or network says no goodbye.

The kernel asks whoever is silent (keepalive), but not while bytes of ours wait for an
acknowledgement; what it repeats then, it repeats for a quarter of an hour. So all local
connections are looked at now and then: the kernel knows when it last heard of the other
end, and how often it has asked since.

Who reads nothing, but answers, is alive and may stay; TCP_USER_TIMEOUT would end those
too. The kernel asks such a one ever more rarely, every 2 minutes at last: who vanishes
while it pauses would be found after nine. Where Linux can be told to ask more often
(6.15 and later), it is, at the first look that finds somebody who was asked.
"""

from __future__ import annotations

import logging
import socket
import struct
from contextlib import suppress
from typing import TYPE_CHECKING, Final, NamedTuple

import trio

from tunnel.addresses import Address
from tunnel.log import log_event
from tunnel.net.descriptors import DESCRIPTORS, PRESENT
from tunnel.net.sockets import MOST_TAILS, TAILS
from tunnel.net.timeouts import TIMEOUTS
from tunnel.platform.sockets import KNOWS_PEERS, TCP_RTO_MAX_MS, tcp_info, unsent_bytes

if TYPE_CHECKING:
    from tunnel.net.sockets import FastSocket

LOOK_EVERY: Final = 0.2
"""Of ``dead_after_s``: a look at everybody (30 s). At 5 µs each, ten thousand cost
0.2 % of a processor."""
LOOKS_A_TURN: Final = 64
"""Between two checkpoints: 0.3 ms."""
TAILS_PART: Final = 1 / 16
"""Of all descriptors, for ``Tails``."""
LOST_QUESTIONS: Final = 3
"""So many questions may get lost on the way and say nothing. Who has paused is asked
every 2 minutes at last by Linux before 6.15; on a line that loses one packet in twenty,
fewer in a row would end one in thirty of those each hour."""
PAUSED_ASKED_EVERY: Final = 1 / 6
"""Of ``dead_after_s``: who has paused is asked after this at the latest (25 s), so five
times before it counts as dead, though the kernel's timers are up to an eighth late. It
gives up after 15 of what it repeats: with a tenth that could be before us."""

_INFO: Final = struct.Struct("=BxBBB47xII")
_LEAST_RTO_MAX_MS: Final = 1_000
_MOST_RTO_MAX_MS: Final = 120_000
_CLOSE: Final = 7

LOG: Final = logging.getLogger("tunnel.dead_peers")


class Signs(NamedTuple):
    """What the kernel knows of the other end."""

    is_closed: bool
    """By the kernel: after a reset, unanswered questions, or the FINs of both ends."""
    repeats: int
    """Of bytes of ours, since one was acknowledged."""
    questions: int
    """Keepalive, or for room at who had none, since one was answered."""
    silent_s: float
    """Since it was last heard of."""
    ever_rarer: bool = False
    """The kernel doubles the time until it repeats, or asks for room, again."""

    def why_dead(self, dead_after_s: float) -> str:
        """Say why it must be dead; nothing while it may live."""
        if self.silent_s < dead_after_s:
            return ""
        if self.repeats:
            return "it acknowledges nothing"
        if self.questions > LOST_QUESTIONS:
            return "it does not answer"
        return "the kernel gave it up" if self.is_closed else ""


def signs_of(sock: socket.socket) -> Signs | None:
    """Ask the kernel; None where it cannot say: not TCP, or not Linux."""
    try:
        info = tcp_info(sock, _INFO.size)
        state, repeats, questions, doubled, data_ms, ack_ms = _INFO.unpack(info)
    except (OSError, struct.error):
        return None
    silent_s = min(data_ms, ack_ms) / 1000
    return Signs(state == _CLOSE, repeats, questions, silent_s, doubled > 0)


async def reset_the_dead(scope: trio.CancelScope) -> None:
    """Look at all local connections now and then, and reset who has vanished.

    Runs until ``scope`` is cancelled; several at once are harmless. What is left of
    tails is then left to the kernel.
    """
    dead_after_s = TIMEOUTS.get().dead_after_s
    try:
        with scope:
            while KNOWS_PEERS:  # elsewhere keepalive has to do
                await trio.sleep(dead_after_s * LOOK_EVERY)
                await _look_at_all(dead_after_s)
    finally:
        for sock in tuple(TAILS.kept):
            TAILS.let_go(sock)


async def _look_at_all(dead_after_s: float) -> None:
    TAILS.most = DESCRIPTORS.share(TAILS_PART, MOST_TAILS)
    everybody = tuple(PRESENT)
    for first in range(0, len(everybody), LOOKS_A_TURN):
        for stream in everybody[first : first + LOOKS_A_TURN]:
            _look_at(stream, dead_after_s)
        await trio.lowlevel.checkpoint()
    for sock in tuple(TAILS.kept):  # few
        _look_at_tail(sock, dead_after_s)


def _look_at(stream: FastSocket, dead_after_s: float) -> None:
    if stream not in PRESENT or stream.given_up:
        return  # left, or is about to
    signs = signs_of(stream.socket)
    if not signs:
        return
    if signs.ever_rarer and not stream.asked_often:
        stream.asked_often = _ask_often(stream.socket, dead_after_s)
    why = signs.why_dead(dead_after_s)
    if not why or (signs.is_closed and stream.finished):
        return
    _say_vanished(stream.socket, why, signs)
    carrier = PRESENT[stream]
    if carrier is not None:
        carrier.vanished()
    else:
        _break(stream)


def _look_at_tail(sock: socket.socket, dead_after_s: float) -> None:
    signs = signs_of(sock)
    if not signs or signs.is_closed or not unsent_bytes(sock.fileno()):
        return TAILS.let_go(sock)
    why = signs.why_dead(dead_after_s)
    if why:
        _say_vanished(sock, why, signs)
        TAILS.let_go(sock, reset=True)


def _ask_often(sock: socket.socket, dead_after_s: float) -> bool:
    """Have the kernel bound its pauses; False where it knows no such option.

    A time that it waits for already is not made shorter.
    """
    most_ms = int(dead_after_s * PAUSED_ASKED_EVERY * 1_000)
    most_ms = min(max(most_ms, _LEAST_RTO_MAX_MS), _MOST_RTO_MAX_MS)
    try:
        sock.setsockopt(socket.IPPROTO_TCP, TCP_RTO_MAX_MS, most_ms)
    except OSError:
        return False
    return True


def _say_vanished(sock: socket.socket, why: str, signs: Signs) -> None:
    log_event(LOG, logging.INFO, "peer.vanished", peer=_name_of(sock), reason=why,
        silent_s=round(signs.silent_s))  # fmt: skip


def _break(stream: FastSocket) -> None:
    """Break it for whoever waits for it, to read or to write."""
    stream.give_up()
    DESCRIPTORS.leaving += 1  # until ``Arrivals.left``
    with suppress(OSError):
        stream.socket.shutdown(socket.SHUT_WR)


def _name_of(sock: socket.socket) -> str:
    with suppress(OSError):
        return str(Address(*sock.getpeername()[:2]))
    return "?"
