"""What all nodes have told of their users: kept by whoever carries it between them.

A parent of workers has one of these; so may each node that hears all others.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunnel.access.use import NOTHING, Use, total

if TYPE_CHECKING:
    from collections.abc import Mapping


class Together:
    """The uses of each user, by node.

    Args:
        before: bytes of the month that no node tells, as they passed before the nodes
            were started: by user, with nothing else in them.
    """

    def __init__(self, before: Mapping[str, Use] | None = None) -> None:
        self._kept = dict(before or {})
        """Bytes that passed at nodes which are gone, or before."""
        self._of: dict[str, dict[str, Use]] = {}

    def heard(self, node: str, uses: Mapping[str, Use]) -> None:
        """Take what a node tells of users, or has of new; others are as they were.

        ``NOTHING`` says that a user has nothing more there.
        """
        for user, use in uses.items():
            if use != NOTHING:
                self._of.setdefault(user, {})[node] = use
            elif (there := self._of.get(user)) is not None:
                there.pop(node, None)
                if not there:
                    del self._of[user]

    def gone(self, node: str) -> None:
        """Drop what users had at a node, but for their bytes of the month."""
        for user, there in tuple(self._of.items()):
            use = there.get(node, NOTHING)
            if use.month_bytes:
                passed = Use(month=use.month, month_bytes=use.month_bytes)
                self._kept[user] = total((self._kept.get(user, NOTHING), passed))
            self.heard(node, {user: NOTHING})

    def rename(self, was: str, name: str) -> None:
        """Have bytes that no node tells belong to a user's new name."""
        self._kept.pop(name, None)  # of one who is no user any more
        if (kept := self._kept.pop(was, None)) is not None:
            self._kept[name] = kept

    def elsewhere(self, node: str) -> dict[str, Use]:
        """Return what users have, but for what they have at this node."""
        return self._total(node)

    def everywhere(self) -> dict[str, Use]:
        """Return what users have in all: what of it has passed is to be kept."""
        return self._total()

    def _total(self, without: str = "") -> dict[str, Use]:
        uses = {user: [kept] for user, kept in self._kept.items()}
        for user, there in self._of.items():
            others = [use for node, use in there.items() if node != without]
            if others:
                uses.setdefault(user, []).extend(others)
        return {user: total(all_of_it) for user, all_of_it in uses.items()}
