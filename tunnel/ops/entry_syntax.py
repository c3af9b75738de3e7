"""The words of entries: ports in a row, options behind a comma, users."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING

from tunnel.access.proxy_users import ProxyUsers
from tunnel.errors import UsageError
from tunnel.net.proxy_protocol import ProxyVersion
from tunnel.ops.saved import secret_file
from tunnel.proto.frames import Address
from tunnel.words import bare

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


@dataclass(frozen=True, slots=True)
class Ports:
    """An address with one port, or with several in a row."""

    first: Address
    count: int = 1

    def __str__(self) -> str:
        text = str(self.first)
        return text if self.count == 1 else f"{text}-{self.first.port + self.count - 1}"


def parse_ports(text: str, host: str = "") -> Ports:
    """Read ``[HOST:]PORT`` or ``[HOST:]LOW-HIGH``.

    Raises:
        UsageError: it is neither.
    """
    before, colon, ports = text.rpartition(":")
    low, dash, high = ports.partition("-")
    if not (dash and low.isdigit()):
        return Ports(Address.parse(text, host))
    first = Address.parse(f"{before}{colon}{low}", host)
    last = int(high) if high.isascii() and high.isdigit() else 0
    if not 0 < first.port <= last < 65_536:
        raise UsageError(
            f"{ports!r} is not a range of ports",
            "it is LOW-HIGH, with ports from 1 to 65535",
            "for example 6000-6010",
        )
    return Ports(first, last - first.port + 1)


def split_options(text: str, known: Sequence[str]) -> tuple[str, dict[str, list[str]]]:
    """Take the ``,NAME=VALUE…`` from behind an entry; an option may be repeated.

    Raises:
        UsageError: an option is none of ``known``, or has no value.
    """
    body, *words = text.split(",")
    found: dict[str, list[str]] = {name: [] for name in known}
    for word in words:
        name, _, value = word.partition("=")
        if name not in found or not value:
            close = get_close_matches(name, known, 1)
            raise UsageError(
                f"{name!r} is not an option of this entry",
                "known: " + ", ".join(f"{one}=…" for one in known),
                f"did you mean {close[0]}=…?" if close else "",
            )
        found[name].append(value)
    return body, found


def parse_proxy_version(texts: Iterable[str]) -> ProxyVersion | None:
    """Read which PROXY header is wanted: the last word, or none.

    Raises:
        UsageError: there is no such version.
    """
    version = None
    for text in texts:
        try:
            version = ProxyVersion(text)
        except ValueError:
            raise UsageError(
                f"{text!r} is no version of the PROXY protocol",
                "the versions are v1 and v2",
            ) from None
    return version


def parse_users(pairs: list[str]) -> ProxyUsers | None:
    """Read ``USER:PASSWORD``, as often as given; without one ``TUNNEL_AUTH_FILE``.

    Raises:
        UsageError: one is none. The text does not repeat it.
    """
    if not pairs:
        return secret_file("TUNNEL_AUTH_FILE", _users_of_file)
    return _users(pairs)


def _users_of_file(text: str) -> ProxyUsers:
    return _users([bare(pair) for pair in text.split()])


def _users(pairs: list[str]) -> ProxyUsers:
    users = {}
    for pair in pairs:
        name, _, password = pair.partition(":")
        if not (name and password):
            raise UsageError("a user of a proxy is USER:PASSWORD", "a part is missing")
        users[name] = password
    return ProxyUsers(users)
