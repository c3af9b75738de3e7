"""A token of this machine's own, in the place of one that works once.

The server is told its verifier, and only asks for it when the token of the join line
works once (protocol.md#own-token). The token itself stays here.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from tunnel.access.join import make_token
from tunnel.errors import Code
from tunnel.proto.proofs import verifier_of

if TYPE_CHECKING:
    from tunnel.access.join import JoinLine
    from tunnel.errors import TunnelError
    from tunnel.proto.proofs import Verifier


class JoinKeeper(Protocol):
    """Saves the join line of this machine."""

    def check(self) -> None:
        """Raise StateError if no line could be saved; nothing has changed then."""

    def keep(self, join: JoinLine) -> None:
        """Save a line, or raise StateError."""


class OwnToken:
    """Makes the token, says its verifier, keeps it; once in the life of a client.

    Args:
        join: the line that the client came with.
        keeper: saves another; None for a client that keeps nothing.
    """

    def __init__(self, join: JoinLine, keeper: JoinKeeper | None) -> None:
        self._join = join
        self._keeper = keeper
        self._new: JoinLine | None = None
        self.verifier: Verifier | None = None
        """Of the token while the server does not know it."""

    def make(self, refusal: TunnelError) -> bool:
        """Make the token if a server asks for it; say whether to come with it.

        Raises:
            StateError: it could not be kept, so the server is not asked to take it.
        """
        asked = refusal.code is Code.ONCE and not self._join.plain
        if not asked or self._new is not None or self._keeper is None:
            return False
        self._keeper.check()
        token = make_token()
        self._new = replace(self._join, token=token)
        self.verifier = verifier_of(self._join.name, token.reveal())
        return True

    def keep(self) -> JoinLine:
        """Save the line with the token, which the server knows now, and return it.

        Raises:
            StateError: it cannot be saved; the old line still works for this machine.
        """
        assert self._new is not None  # noqa: S101 - the server has taken it
        assert self._keeper is not None  # noqa: S101 - else none is made
        self._keeper.keep(self._new)
        self.verifier = None
        return self._new
