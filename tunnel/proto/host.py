"""The one decision about which bytes may be the name of a host.

Names come from apps as raw bytes and go on into resolvers, heads and log lines: nothing
that could mean something there (spaces, control bytes, NUL, a scope) passes. Nothing is
resolved here.
"""

from __future__ import annotations

import string
from ipaddress import IPv6Address
from typing import Final

_NAME_LETTERS: Final = frozenset(string.ascii_letters + string.digits + ".-_")
_MAX_NAME_BYTES: Final = 255


def decode_host(raw: bytes) -> str | None:
    """Return a name or a literal as text; None for what no resolver should see.

    An IPv6 literal stands without brackets.
    """
    name = raw.decode("latin-1")
    if ":" in name:
        return name if _is_ipv6(name) else None
    if not name or len(name) > _MAX_NAME_BYTES:
        return None
    return name if _NAME_LETTERS.issuperset(name) else None


def _is_ipv6(text: str) -> bool:
    try:
        return IPv6Address(text).scope_id is None  # a scope means this machine's cards
    except ValueError:
        return False
