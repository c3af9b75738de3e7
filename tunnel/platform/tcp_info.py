"""What the kernel knows of a TCP connection: Linux's ``struct tcp_info``.

The structure grows at its end, so an older kernel gives less of it; what it does not
give is None here. Other systems have other structures: there is nothing to be read.
"""

from __future__ import annotations

import struct
import sys
from typing import TYPE_CHECKING, Final, NamedTuple

from tunnel.platform.sockets import tcp_info

if TYPE_CHECKING:
    import socket

_ALWAYS: Final = struct.Struct("=16xI4xI32xI4xII4xII12xI")
"""Of Linux 2.6: mss, unacked, pmtu, rtt, rttvar, cwnd, advmss and total_retrans."""
_LATER: Final = struct.Struct("=136xI4xII8xQQQQ8xQQ")
"""Of Linux 4.2: segs_out; of 4.6: notsent, min_rtt; of 4.9 and 4.10: delivery_rate,
busy_time, rwnd_limited, sndbuf_limited; of 4.19: bytes_sent, bytes_retrans."""
_ENDS: Final = (140, 148, 152, 168, 176, 184, 192, 208, 216)
"""Where each of the later ones ends."""
_APP_LIMITED: Final = 0x01 if sys.byteorder == "little" else 0x80
_APP_LIMITED_AT: Final = 7
_NEVER: Final = 2**32 - 1


class TcpInfo(NamedTuple):
    """A TCP connection as its kernel sees it; sums are of its whole life."""

    rtt_s: float
    """The smoothed round trip."""
    rttvar_s: float
    """How much it varies."""
    cwnd: int
    """Segments that may be on their way at once."""
    mss: int
    """Bytes of a segment."""
    unacked: int
    """Segments that are on their way."""
    retransmits: int
    """Segments that were sent again."""
    path_mtu: int
    """Bytes of a packet that the path takes, as far as is known."""
    announced_mss: int
    """Bytes of a segment that may come."""
    sent_segments: int | None
    """Segments that were sent, those again too."""
    notsent_bytes: int | None
    """Bytes that wait in the kernel for their first turn."""
    min_rtt_s: float | None
    delivery_bytes_per_s: int | None
    """What the network has carried lately; it can carry more if ``app_limited``."""
    app_limited: bool
    """The rate was measured while there was no more to send."""
    busy_s: float | None
    """For how long anything was on its way or waited."""
    rwnd_limited_s: float | None
    """For how much of that the other kernel had no room."""
    sndbuf_limited_s: float | None
    """For how much of that this kernel's buffer was too small."""
    sent_bytes: int | None
    repeated_bytes: int | None

    @property
    def full(self) -> bool:
        """Say whether the network takes no more: bytes wait, or all that may is out."""
        return bool(self.notsent_bytes) or self.unacked >= self.cwnd

    @property
    def in_pipe_bytes(self) -> int:
        """Return about how many bytes are between this program and that kernel."""
        return self.unacked * self.mss + (self.notsent_bytes or 0)


def read(sock: socket.socket) -> TcpInfo | None:
    """Return what is known of a connection; None: not TCP, not Linux, or closed."""
    try:
        return parse(tcp_info(sock, _LATER.size))
    except OSError:
        return None


def parse(raw: bytes) -> TcpInfo | None:
    """Read a ``struct tcp_info``, which may be cut; None: too short to be of use."""
    if len(raw) < _ALWAYS.size:
        return None
    mss, unacked, path, rtt, rttvar, cwnd, announced, again = _ALWAYS.unpack_from(raw)
    whole = _LATER.unpack_from(raw.ljust(_LATER.size, b"\0"))
    later = [
        value if len(raw) >= end else None
        for value, end in zip(whole, _ENDS, strict=True)
    ]
    segments, notsent, min_rtt, rate, busy, no_room, no_buffer, sent, repeated = later
    return TcpInfo(
        rtt_s=rtt / 1e6,
        rttvar_s=rttvar / 1e6,
        cwnd=cwnd,
        mss=mss,
        unacked=unacked,
        retransmits=again,
        path_mtu=path,
        announced_mss=announced,
        sent_segments=segments,
        notsent_bytes=notsent,
        min_rtt_s=None if min_rtt == _NEVER else _seconds(min_rtt),
        delivery_bytes_per_s=rate,
        app_limited=bool(raw[_APP_LIMITED_AT] & _APP_LIMITED),
        busy_s=_seconds(busy),
        rwnd_limited_s=_seconds(no_room),
        sndbuf_limited_s=_seconds(no_buffer),
        sent_bytes=sent,
        repeated_bytes=repeated,
    )


def _seconds(microseconds: int | None) -> float | None:
    return None if microseconds is None else microseconds / 1e6
