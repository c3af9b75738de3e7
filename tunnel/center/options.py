"""How a center-server is set up; it can have others while it runs."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from tunnel.access.limits import Limits
from tunnel.addresses import EVERYWHERE, Address
from tunnel.center.names import NameOptions
from tunnel.net.given import Given
from tunnel.proto.terms import DEFAULT_RESUME_S

if TYPE_CHECKING:
    from pathlib import Path

    from tunnel.access.identity import Identity
    from tunnel.access.networks import Network


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """How a center-server is set up."""

    listen: Address = field(default_factory=lambda: Address(EVERYWHERE, 7443))
    ports: range = range(20_000, 21_000)
    """For mappings that name no port."""
    plain: bool = False
    """Links without TLS: on loopback, or where both ends are told so."""
    resume_s: int = DEFAULT_RESUME_S
    """How long a session waits for another link; 0 ends it with its link."""
    names: NameOptions = field(default_factory=NameOptions)
    """Where host names are served."""
    limits: Limits = Limits()  # noqa: RUF009 - it cannot change
    """What a user may have whose own limits say nothing else."""
    max_per_address: int | None = None
    """Visitors of one address at once; None for a quarter of the descriptors."""
    client_ca: Path | None = None
    """The authorities whose certificates clients need, each for its user's name."""
    next_identity: Identity | None = None
    """The one whose pin is announced, for clients to accept it after a change."""
    trusted_proxies: tuple[Network, ...] = ()
    """The proxies that are believed about who a visitor, or a client, is."""
    also_listen: tuple[Address, ...] = ()
    """Where links come in besides ``listen``."""

    given: Given = field(default_factory=Given)
    """Sockets to listen on, instead of others for the same."""

    @property
    def listens(self) -> tuple[Address, ...]:
        """Where links come in."""
        return (self.listen, *self.also_listen)

    @property
    def listens_alone(self) -> tuple[Address, ...]:
        """Those of ``listens`` where nothing else comes in."""
        shared = self.names.https if self.shares_https else None
        return tuple(one for one in self.listens if one != shared)

    @property
    def shares_https(self) -> bool:
        """Links come in where TLS by name does: one port for everything."""
        https = self.names.https
        if self.plain or https is None:  # nothing tells a plain link from a visitor
            return False
        return https in self.listens and bool(https.port)

    def instead_of(self, old: ServerOptions) -> ServerOptions:
        """Return these with what stays as it was at the start of a server."""
        of_start = replace(
            self, plain=old.plain, next_identity=old.next_identity, given=old.given
        )
        return of_start.placed()

    def placed(self) -> ServerOptions:
        """Return options that listen where sockets were given by name.

        Links come in there first, unless it is another place of theirs. What was one
        port for everything stays one.
        """
        places = self.given.at
        names, shares, was = self.names, self.shares_https, self.names.https
        listen, https = places.get("listen", self.listen), places.get("https", was)
        if (
            shares
            and was == self.listen
            and ("listen" in places) != ("https" in places)
        ):
            listen = https = places.get("https", listen)
        if listen in self.also_listen:
            listen = self.listen
        also = [https if shares and one == was else one for one in self.also_listen]
        names = replace(names, http=places.get("http", names.http), https=https)
        others = tuple(one for one in also if one is not None)
        return replace(self, listen=listen, names=names, also_listen=others)
