"""The one rule about what may be the name of a host, and what a bare port stands for.

Names come from apps as raw bytes, and from people as they write them; both go on into
resolvers, frames, heads and log lines: nothing that could mean something there (spaces,
control bytes, NUL) passes. Nothing is resolved here.
"""

from __future__ import annotations

import re
from ipaddress import IPv6Address
from typing import Final

EVERYWHERE: Final = "*"
"""In the place of a host: every address of this machine, IPv4 and IPv6."""
LOCALHOST: Final = "localhost"
"""Both loopback addresses (RFC 6761 §6.3), whatever a resolver thinks of it."""
LOOPBACKS: Final = ("127.0.0.1", "::1")
WILDCARDS: Final = ("0.0.0.0", "::")  # noqa: S104 - what EVERYWHERE stands for

_NAME: Final = re.compile(r"[\w-]{1,63}(\.[\w-]{1,63})*\.?", re.ASCII)
MAX_NAME_BYTES: Final = 253
"""RFC 1035 allows 255 on the wire of the DNS: two of them are no letters. A last dot
(the name is whole) comes on top."""


def host_of(text: str, *, zone: bool = False) -> str | None:
    """Return a name or an IP address as it goes on; None for what is neither.

    Brackets around an IPv6 address are taken off. A name in another script becomes its
    ``xn--`` form; capitals and a last dot stay, for the resolver knows both.

    Args:
        text: what somebody wrote.
        zone: an IPv6 address may have one (``fe80::1%eth0``). It means a card of the
            machine that uses the address: what is sent elsewhere has none.
    """
    if text.startswith("[") and text.endswith("]"):
        text = text[1:-1]
        if ":" not in text:
            return None
    if ":" in text:
        return text if _is_ipv6(text, zone) else None
    if not text.isascii():
        text = _in_ascii(text)
    is_name = len(text.removesuffix(".")) <= MAX_NAME_BYTES and _NAME.fullmatch(text)
    return text if is_name else None


def decode_host(raw: bytes) -> str | None:
    """Return what an app wrote as ``host_of`` does."""
    try:
        return host_of(raw.decode())
    except UnicodeDecodeError:
        return None


def is_localhost(host: str) -> bool:
    """Say whether a host is the name of both loopback addresses."""
    return host.lower().removesuffix(".") == LOCALHOST


def _is_ipv6(text: str, zone: bool) -> bool:
    try:
        scope = IPv6Address(text).scope_id
    except ValueError:
        return False
    return scope is None or (zone and scope.isascii() and scope.isprintable())


def _in_ascii(text: str) -> str:
    import idna  # rarely needed, and its tables are large

    try:
        return idna.encode(text, uts46=True).decode()
    except UnicodeError:  # idna's own errors are of this family
        return ""
