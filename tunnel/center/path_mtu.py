"""Suspect a path on which large packets vanish, and go on with smaller ones.

Where one hop takes less than the others and its ICMP message about that is lost (a PMTU
black hole: a VPN, PPPoE, a firewall), small packets pass and large ones never do. Links
come up there, and each stands still at the first large packet until it is given up for
silence. Two that did so at the same byte are no accident.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from tunnel.log import log_event

if TYPE_CHECKING:
    from tunnel.proto.mux import MuxCore

SMALL_MSS_BYTES: Final = 1_200
"""Fits, with its headers, into the 1,280 bytes that every path of IPv6 takes. The first
packet announces it, so that it bounds what the server sends as well. It costs a fifth
more packets."""
STILL_S: Final = 15.0
"""A link that was lost sooner without a byte of progress was cut and did not stand
still: silence is noticed later."""
_HANDSHAKE: Final = (b"", "handshake", 0)

_Mark = tuple[bytes, str, int]
"""A byte at which a link stood still: its session, its direction, its number."""

logger = logging.getLogger("tunnel.client")


class Path:
    """The path to the server, as the client's links have found it."""

    def __init__(self) -> None:
        self.mss: int | None = None
        """For the next dial; None leaves it to the kernel."""
        self._still: set[_Mark] = set()
        self.greeted = False
        """The link's first question was answered: what the server had to repeat went
        before that answer, so it has arrived. False again for each link."""
        self._told = False

    def link_lost(self, session_id: bytes, core: MuxCore, lasted_s: float) -> None:
        """Note where a link ended; suspect its path if the last one stood there too.

        Whichever side gave it up first. Less than ``STILL_S`` proves nothing.
        """
        marks = {(session_id, "received", core.received)}
        still = self._still & marks if not self.greeted else set()
        if core.replay is not None and core.replay.unconfirmed:
            sent = (session_id, "sent", core.replay.confirmed)
            still |= self._still & {sent}
            marks.add(sent)
        self._still = marks
        if still and lasted_s >= STILL_S:
            self._suspect()

    def handshake_silent(self) -> None:
        """Count a server that took the connection and did not end the handshake.

        A hello with post-quantum keys is large, and so is a chain of certificates.
        """
        if _HANDSHAKE in self._still:
            self._suspect()
        else:
            self._still.add(_HANDSHAKE)

    def _suspect(self) -> None:
        """Change the size of packets: the one in use was tried twice."""
        self._still.clear()
        self.mss = SMALL_MSS_BYTES if self.mss is None else None
        if self.mss is not None:
            level, self._told = logging.INFO if self._told else logging.WARNING, True
            why = "two links stood still at the same byte: large packets seem to vanish"
            log_event(logger, level, "path.suspected", reason=why, mss=self.mss)
