"""What a node is called where users have names."""

from __future__ import annotations

from typing import Final

AT: Final = "@"
"""The first letter of a node's name where users have theirs: no user's begins so."""


def is_node(name: str) -> bool:
    """Say whether this is the name of a node, where users have theirs."""
    return name.startswith(AT)
