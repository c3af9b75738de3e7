"""Whose names are right below a domain: who wants all of it (``*.DOMAIN``) has to know.

A node tells two users of its own at most: with two, nobody can have all of the domain.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Final

from tunnel.center.sites import HOSTS, domain_of

if TYPE_CHECKING:
    from tunnel.center.endpoints import PublicName

_WORD: Final = "below"
MOST_TOLD: Final = 2


def is_wildcard(name: PublicName) -> bool:
    """Say whether a name stands for all that is right below a domain."""
    return name.type in HOSTS and name.host.startswith("*.")


def below_key(host: str) -> str:
    """Return the key of the domain that a host name is right below."""
    return f"{_WORD}:{domain_of(host)}"


def read_users(value: bytes) -> list[str]:
    """Read the users that a node has told; ValueError: they are none."""
    users = json.loads(value)
    if not isinstance(users, list):
        raise ValueError("no list")
    return [str(user) for user in users]


class Below:
    """The users of this node whose names are right below a domain, by its key."""

    def __init__(self, node: str) -> None:
        self.member = f"{node}/{_WORD}"
        self._users: dict[str, Counter[str]] = {}
        self._told: dict[str, list[str]] = {}

    def add(self, name: PublicName, user: str) -> dict[str, bytes]:
        """Count a name; return what is to be told then, by key: mostly nothing."""
        if name.type not in HOSTS or is_wildcard(name):
            return {}
        key = below_key(name.host)
        users = self._users.setdefault(key, Counter())
        users[user] += 1
        now, told = sorted(users)[:MOST_TOLD], self._told.get(key, [])
        if now == told or len(told) == MOST_TOLD:
            return {}
        return {key: json.dumps(now).encode()}

    def told(self, says: dict[str, bytes]) -> None:
        """Note that the others know."""
        for key, value in says.items():
            self._told[key] = read_users(value)

    def remove(self, name: PublicName, user: str) -> str:
        """Count a name less; return a key that nobody is below any more, or ""."""
        key = below_key(name.host)
        users = self._users.get(key)
        if name.type not in HOSTS or is_wildcard(name) or users is None:
            return ""
        users[user] -= 1
        if users[user] <= 0:
            del users[user]
        if users:
            return ""
        del self._users[key]
        return key if self._told.pop(key, None) else ""

    def is_told(self, key: str) -> bool:
        """Say whether there is somebody again."""
        return key in self._told
