"""Which address of this machine leads to another one: the kernel's routes are asked."""

from __future__ import annotations

import socket
from typing import Final

_ANY_PORT: Final = 9
_FAR: Final = {False: "192.0.2.1", True: "2001:db8::1"}
"""By whether it is IPv6: addresses for documentation (RFC 5737, RFC 3849). Only a
default route leads there."""


def own_address_to(host: str, port: int = 0) -> str:
    """Return the address of this machine that an IP address can answer to.

    Nothing is sent: to connect a UDP socket only looks the route up.

    Raises:
        OSError: there is no route.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((host, port or _ANY_PORT))
        return str(probe.getsockname()[0])


def own_address_outwards(wildcard: str) -> str:
    """Return the address of the default route in the family of ``0.0.0.0`` or ``::``.

    Raises:
        OSError: there is no default route.
    """
    return own_address_to(_FAR[":" in wildcard])
