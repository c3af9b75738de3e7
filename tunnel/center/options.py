"""How a center-server is set up; it can have others while it runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tunnel.access.limits import Limits
from tunnel.addresses import EVERYWHERE, Address
from tunnel.center.names import NameOptions
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
        return https is not None and https in self.listens and bool(https.port)
