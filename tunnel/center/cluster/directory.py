"""Which node has what: the one thing that the nodes of a cluster share.

A *claim* says who has a key: a host name, the name of an exit, a client. It has one or
more *members*, each of one node, and a fence: a number that grows with every change of
any claim, so that of two owners after a split the one with the lower fence has lost.

A claim is compared and set: who wants to change one says which fence it has seen, and
nothing is changed if another was faster. That is all that the nodes need of a store;
who may have what is decided where the names are (``center.mappings``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

from tunnel.errors import Code, TunnelError

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncIterator, Iterable, Mapping
    from contextlib import AbstractAsyncContextManager


class Claim(NamedTuple):
    """Who has a key."""

    fence: int = 0
    """0: nobody has had it."""
    members: Mapping[str, bytes] = {}
    """What each member says of itself, by its name: ``NODE/…``. Those of nodes that are
    gone may be among them until somebody claims the key."""


NOBODY = Claim()


class DirectoryAwayError(TunnelError):
    """The directory does not answer; what is known already goes on."""

    def __init__(self, cause: str = "") -> None:
        super().__init__(Code.RESOURCE, "the directory does not answer", cause)


class ClaimedError(Exception):
    """A claim is not as it was seen; ``claims`` says how those in question are."""

    def __init__(self, claims: Mapping[str, Claim]) -> None:
        super().__init__("a claim is not as it was seen")
        self.claims = claims


class Change(NamedTuple):
    """A claim has changed, or a node has come or gone."""

    key: str
    """Empty: of nodes."""
    claim: Claim = NOBODY


class Directory(Protocol):
    """What a node asks. Each call raises ``DirectoryAwayError`` after a while."""

    name: str
    """This node's."""

    @property
    def nodes(self) -> Mapping[str, str]:
        """The nodes that live, this one among them: name and address."""
        ...

    async def look_up(self, keys: Iterable[str]) -> dict[str, Claim]:
        """Return the claims on these keys, as they are now."""
        ...

    async def claim(
        self,
        member: str,
        says: Mapping[str, bytes],
        seen: Mapping[str, int],
        without: Iterable[str] = (),
    ) -> dict[str, Claim]:
        """Have ``member`` among the members of each key, or of none; return the claims.

        Args:
            member: begins with this node's name and a slash.
            says: by key, what it says of itself there. What it said before is replaced.
            seen: the fences that must hold, of those keys and of any other.
            without: members of those keys that must go.

        Raises:
            ClaimedError: another fence holds. Nothing has changed.
        """
        ...

    async def release(self, member: str, keys: Iterable[str]) -> None:
        """Take a member out of these claims; harmless where it is in none."""
        ...

    async def remember(self, key: str, value: bytes) -> None:
        """Keep something small that outlives its node, as a chosen port is."""
        ...

    async def recall(self, key: str) -> bytes:
        """Return what was remembered last; empty if nothing is."""
        ...

    async def tell(self, key: str, value: bytes) -> None:
        """Say something to all nodes, as a change of a claim that nobody keeps.

        Its only member is this node's name, and a slash.
        """
        ...

    async def connect(self, node: str) -> socket.socket | None:
        """Return a socket whose other end a node of this machine serves as a link.

        None: it is to be dialled at its address. Raises TunnelError: it is no more.
        """
        ...

    def changes(self) -> AbstractAsyncContextManager[AsyncIterator[list[Change]]]:
        """Hear of every change from now on, in order, those of this node included.

        An empty list says that some may have been missed: look everything up again.
        """
        ...
