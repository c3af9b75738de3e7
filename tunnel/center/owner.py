"""Who has published something: a client of this server, or of another node."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

import trio

from tunnel.errors import Code, LocalStreamError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tunnel.addresses import Address
    from tunnel.center.endpoints import PublicName
    from tunnel.link.virtual import VirtualStream
    from tunnel.proto.frames import Target


class Opens(Protocol):
    """Where a visitor is opened: a session, or another node."""

    def open_now(
        self, target: Target, visitor: Address | None = None
    ) -> VirtualStream:  # pragma: no cover
        """Open, without a wait; raises StreamError."""
        ...


class Owner(Protocol):
    """The client that has published a mapping, here or at another node."""

    when_lost: set[Callable[[], None]]

    @property
    def user_name(self) -> str:  # pragma: no cover
        """Of its user."""
        ...

    @property
    def session(self) -> Opens:  # pragma: no cover
        """Where its visitors are opened."""
        ...

    @property
    def gone(self) -> bool:  # pragma: no cover
        """Whether it is no more."""
        ...

    @property
    def waiting(self) -> bool:  # pragma: no cover
        """Whether nothing leads there at the moment."""
        ...

    @property
    def away(self) -> bool:  # pragma: no cover
        """Whether that is so for longer than a visitor should wait."""
        ...

    async def answers(self, timeout_s: float) -> bool:  # pragma: no cover
        """Say whether the client is there."""
        ...


class Owners(Protocol):
    """Which client has which public name."""

    def owner(self, name: PublicName) -> Owner | None:
        """Return the one that has it, as far as this server knows."""
        ...

    def learn(self, name: PublicName) -> Awaitable[None] | None:
        """Return what asks the others; None where all is known that there is.

        Awaited, it raises TunnelError where nobody answers.
        """
        ...


VISITOR_WAITS_S: Final = 3.0
"""How long a visitor of a host name waits for a link that was just lost."""
_LOOK_S: Final = 0.05


async def wait_for(owner: Owner) -> None:
    """Wait for a while for a client that was just lost; no checkpoint if it is there.

    Raises:
        LocalStreamError: ``LINK_LOST``: it does not come back.
    """
    while owner.waiting and not owner.gone:
        if owner.away:
            raise LocalStreamError(Code.LINK_LOST, "the client is not connected")
        await trio.sleep(_LOOK_S)
