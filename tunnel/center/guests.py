"""Who may come in by a link: the clients of users, and other nodes."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

from tunnel.center.client_session import Counting

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tunnel.access.account import Account
    from tunnel.access.users import User
    from tunnel.center.sessions import Sessions
    from tunnel.link.virtual import VirtualStream


class NamedAccounts(Counting, Protocol):
    """Accounts, by the name of whose they are."""

    def named(self, name: str) -> Account:
        """Return the account of a user that was here a moment ago."""
        ...


class Guests(NamedTuple):
    """One of the two kinds."""

    sessions: Sessions
    """Theirs, within the limits of each."""
    accounts: NamedAccounts
    user: Callable[[str], User | None]
    """Returns the user of a name, if there is one now."""
    serve: Callable[[VirtualStream], Awaitable[None]] | None
    """Serves what one of them opens; None: by the rights of its user."""
