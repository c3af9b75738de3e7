"""What a center-client tells its user while it runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from tunnel.addresses import Address
    from tunnel.errors import TunnelError
    from tunnel.proto.frames import MappingAnswer


class LinkUp(NamedTuple):
    """The server is reached, and both sides have proved themselves."""

    peer: str
    encrypted: bool
    pinned: bool
    rtt_s: float


class LinkResumed(NamedTuple):
    """The session goes on over a new link; nothing was lost."""

    peer: str
    after_s: float
    connections: int
    repeated_bytes: int


class SessionLost(NamedTuple):
    """The session could not go on: its connections were reset."""

    reason: TunnelError
    connections: int


class LinkDown(NamedTuple):
    """The link is lost, or could not be made; another attempt follows."""

    reason: TunnelError
    retry_s: float
    was_up: bool
    waiting: int
    """Connections that wait for the next link."""


class ClientIdChanged(NamedTuple):
    """Another client that answers has the same client id, so this one took another."""

    client_id: bytes


class MappingReady(NamedTuple):
    """A public address is open."""

    name: str
    public: Address
    over_tls: bool = False
    """It is a web service that ``https://`` leads to."""


class MappingRefused(NamedTuple):
    """The server gave no public address; the other mappings go on."""

    name: str
    wanted: Address
    answer: MappingAnswer


Notice = (
    LinkUp
    | LinkResumed
    | SessionLost
    | LinkDown
    | ClientIdChanged
    | MappingReady
    | MappingRefused
)
