"""What users have at each node, told to the others: limits hold for all together.

It is said to whoever listens, and kept nowhere; a node that comes is told all. Bytes of
the month outlive a node: each keeps its own in its state folder, and the others count
for one that is gone what it has told, until it is back.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

import trio

from tunnel.access.together import Together
from tunnel.access.use import NOTHING, Use
from tunnel.center.cluster.directory import DirectoryAwayError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tunnel.center.accounts import Accounts
    from tunnel.center.cluster.directory import Change, Directory

EVERY_S: Final = 0.5
"""How often a node tells what has changed: a limit holds for all within two times."""
_KEY: Final = "uses:"


class SharedUses:
    """The uses of this node's users, and those of the others.

    Args:
        directory: tells the others.
        accounts: those of this node.
    """

    def __init__(self, directory: Directory, accounts: Accounts) -> None:
        self._directory = directory
        self._accounts = accounts
        self._together = Together()
        self._told: dict[str, dict[str, Use]] = {}
        """By node, what it has told last of each user."""
        self._fences: dict[str, int] = {}
        """Of the last that each node has told: what is older was put back."""
        self._all_is_due = True
        self._dirty = False

    def heard(self, change: Change) -> None:
        """Take what a node tells."""
        node = change.key.removeprefix(_KEY)
        if not change.key.startswith(_KEY) or node == self._directory.name:
            return
        claim = change.claim
        if node not in self._directory.nodes:
            return
        if claim.fence <= self._fences.get(node, 0):
            return
        self._fences[node] = claim.fence
        self._forget(_kept(node))
        for value in claim.members.values():
            uses = {user: Use.from_json(use) for user, use in json.loads(value).items()}
            self._told.setdefault(node, {}).update(uses)
            self._together.heard(node, uses)
        self._dirty = True

    def nodes_changed(self) -> None:
        """Take that nodes have come, which know nothing, or have gone."""
        self._all_is_due = True
        for node in self._told.keys() - self._directory.nodes.keys():
            if node.endswith("/"):
                continue
            passed = {
                user: Use(month=use.month, month_bytes=use.month_bytes)
                for user, use in self._told[node].items()
                if use.month_bytes
            }
            self._forget(node)
            self._fences.pop(node, None)
            # A node of the same name that began meanwhile tells that itself.
            if not any(_kept(one) == _kept(node) for one in self._told):
                self._told[_kept(node)] = passed
                self._together.heard(_kept(node), passed)
            self._dirty = True

    async def look_again(self) -> None:
        """Tell all: something may have been missed."""
        self._all_is_due = True

    async def run(self) -> None:
        """Tell, and hold users against what they have elsewhere, until cancelled."""
        while True:
            await trio.sleep(EVERY_S)
            changed: Mapping[str, Use] = self._accounts.changed_uses()
            if self._all_is_due:
                changed = {**changed, **self._accounts.told_uses}
            if changed:
                await self._tell(changed)
            if self._dirty:
                self._dirty = False
                me = self._directory.name
                self._accounts.have_elsewhere(self._together.elsewhere(me))

    async def _tell(self, uses: Mapping[str, Use]) -> None:
        words = json.dumps({user: use.to_json() for user, use in uses.items()})
        try:
            await self._directory.tell(_KEY + self._directory.name, words.encode())
        except DirectoryAwayError:
            self._all_is_due = True  # once it is back
        else:
            self._all_is_due = False

    def _forget(self, node: str) -> None:
        if (told := self._told.pop(node, None)) is not None:
            self._together.heard(node, dict.fromkeys(told, NOTHING))


def _kept(node: str) -> str:
    """Return under which name the bytes of a node that is gone are kept."""
    return (node.rpartition(".")[0] or node) + "/"
