"""A running server is taken over by another process, and no visitor notices.

    giver    the server that runs: hands its sockets over, then drains
    taker    the one that was started beside it

They talk over a socket pair (``center.cluster.channel``) that the control socket hands
out, and are two nodes of one server until the first has ended.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from tunnel.center.cluster.secret import ClusterSecret

COMMAND: Final = "takeover"
"""What the control socket is asked."""
SOCKETS: Final = "sockets"
"""The question for the lock and for what is listened on."""
JOIN: Final = "join"
"""The question to tell what is open and who is linked."""
GO: Final = "go"
"""The question to accept nobody any more, and to drain."""
PORT: Final = "port"
"""The question for the sockets of a public port whose client has moved."""
PASSED: Final = "passed"
"""The note, and question, of bytes that users have passed since."""
PEER: Final = "peer"
"""The note that brings one end of a link between the two."""
CONNECT: Final = "connect"
"""The question for such an end."""


@dataclass(frozen=True, slots=True)
class Place:
    """Which process of several on this machine this one is, or can become."""

    name: str
    """Another after each start."""
    secret: ClusterSecret
    """By which such processes know one another: it is handed on."""

    @property
    def hint(self) -> bytes:
        """What clients are told (protocol.md#hint)."""
        return self.secret.hint_of(self.name)
