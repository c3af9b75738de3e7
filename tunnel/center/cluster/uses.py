"""What users have at each node, told to the others: limits hold for all together.

It is said to whoever listens, and kept nowhere; a node that comes is told all. Bytes of
the month outlive a node: each keeps its own in its state folder, and the others count
for one that is gone what it has told, until it is back.
"""

from __future__ import annotations

import json
import logging
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import trio

from tunnel.access.together import Together
from tunnel.access.use import NOTHING, Use
from tunnel.center.cluster.directory import DirectoryAwayError
from tunnel.log import log_event

if TYPE_CHECKING:
    from tunnel.center.accounts import Accounts
    from tunnel.center.cluster.directory import Change, Directory

EVERY_S: Final = 0.5
"""How often a node tells what has changed: a limit holds for all within two times."""
_KEY: Final = "uses:"

logger = logging.getLogger("tunnel.cluster")


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
        self._unsaid: dict[str, Use] = {}
        """What the others were not told yet; of a user that has gone, nothing."""
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
        for one in [one for one in self._told if _kept(one) == _kept(node) != one]:
            if one != node:  # the same node, before it was started again
                self._forget(one)
        self._forget(_kept(node))
        for value in claim.members.values():
            try:
                said = json.loads(value)
                uses = {user: Use.from_json(use) for user, use in said.items()}
            except (ValueError, TypeError, AttributeError, KeyError) as error:
                log_event(logger, logging.WARNING, "uses.unreadable", node=node,
                    reason=str(error))  # fmt: skip
                continue
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
            self._unsaid |= self._accounts.changed_uses()
            if self._all_is_due:
                self._all_is_due = False
                self._unsaid |= self._accounts.told_uses
            if self._unsaid:
                await self._tell()
            if self._dirty:
                self._dirty = False
                me = self._directory.name
                self._accounts.have_elsewhere(self._together.elsewhere(me))

    async def _tell(self) -> None:
        words = json.dumps({user: use.to_json() for user, use in self._unsaid.items()})
        with suppress(DirectoryAwayError):  # it is told with the next
            await self._directory.tell(_KEY + self._directory.name, words.encode())
            self._unsaid.clear()

    def _forget(self, node: str) -> None:
        if (told := self._told.pop(node, None)) is not None:
            self._together.heard(node, dict.fromkeys(told, NOTHING))


def _kept(node: str) -> str:
    """Return under which name the bytes of a node that is gone are kept."""
    return (node.rpartition(".")[0] or node) + "/"
