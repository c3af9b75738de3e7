"""The words of an entry: ports, unix paths, and options behind a comma.

An entry of TCP is ``[REMOTE=]TARGET[,OPTION=VALUE…]``. REMOTE and TARGET are one port
or ``LOW-HIGH``; TARGET may also be ``unix:/path``, or ``socks`` for a proxy into this
machine's network.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from difflib import get_close_matches
from ipaddress import ip_address
from typing import Final

from tunnel.access.networks import Networks
from tunnel.errors import UsageError
from tunnel.proto.frames import UNIX_PREFIX, Address, UnixPath, parse_end
from tunnel.proto.proxy_header import ProxyVersion

LOOPBACK: Final = "127.0.0.1"
SOCKS_WORD: Final = "socks"
_OPTIONS: Final = ("proxy", "auth", "network")


@dataclass(frozen=True, slots=True)
class Ports:
    """An address with one port, or with several in a row."""

    first: Address
    count: int = 1

    def __str__(self) -> str:
        text = str(self.first)
        return text if self.count == 1 else f"{text}-{self.first.port + self.count - 1}"


@dataclass(frozen=True, slots=True)
class Inward:
    """A proxy whose visitors come to a public port and leave in our network."""

    users: dict[str, str] = field(default_factory=dict, repr=False)
    """Passwords by name."""
    networks: Networks = field(default_factory=Networks)

    def __str__(self) -> str:
        return "-"


@dataclass(frozen=True, slots=True)
class TcpEntry:
    """A public TCP port, or several, and what is behind each."""

    remote: Ports
    target: Ports | UnixPath | Inward
    proxy: ProxyVersion | None = None
    """Which PROXY header the target hears first."""


def parse_tcp(text: str) -> TcpEntry:
    """Read an entry of TCP.

    Raises:
        UsageError: it is none, or would open a proxy to everybody.
    """
    body, *options = text.split(",")
    remote, _, target = body.rpartition("=")
    values = _options(options)
    return tcp_entry(
        remote,
        target,
        proxy=next(iter(values["proxy"]), None),
        auth=values["auth"],
        networks=values["network"],
    )


def tcp_entry(
    remote: str,
    target: str,
    *,
    proxy: str | None = None,
    auth: list[str] | None = None,
    networks: list[str] | None = None,
) -> TcpEntry:
    """Make an entry of its words; an empty REMOTE leaves the port to the server.

    Raises:
        UsageError: a word that cannot be, or a proxy that is open to everybody.
    """
    if target == SOCKS_WORD:
        if proxy is not None:
            raise _no_such(proxy, "the PROXY protocol is for a target")
        where = parse_remote(remote or "0")
        inward = Inward(_users(auth or []), Networks.parse(networks or []))
        _refuse_open(where, inward)
        return TcpEntry(where, inward)
    if auth or networks:
        raise _no_such("auth and network", f"they are for {SOCKS_WORD} entries")
    end = _target(target)
    count = end.count if isinstance(end, Ports) else 1
    where = parse_remote(remote) if remote else Ports(Address("", 0), count)
    if where.count != count and where.first.port:
        raise UsageError(
            f"{where.count} public ports do not fit {end}",
            "the visitor of a port reaches the target of the same place in the row",
            f"--tcp {where}={LOOPBACK}:{str(where).rpartition(':')[2]}",
        )
    return TcpEntry(Ports(where.first, count), end, _version(proxy))


def parse_remote(text: str) -> Ports:
    """Read public ports; without a host they have none of their own."""
    ports = parse_ports(text, LOOPBACK)
    if ":" in text:
        return ports
    return Ports(Address("", ports.first.port), ports.count)


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


def parse_target(text: str) -> Address | UnixPath:
    """Read where a connection ends: ``[HOST:]PORT`` or ``unix:/path``.

    Raises:
        UsageError: it is neither, or port 0.
    """
    target = parse_end(text, LOOPBACK)
    if isinstance(target, Address) and not target.port:
        raise UsageError(f"{text!r} names no port", "port 0 cannot be connected to")
    return target


def _target(text: str) -> Ports | UnixPath:
    if text.startswith(UNIX_PREFIX):
        return UnixPath.parse(text)
    ports = parse_ports(text, LOOPBACK)
    if not ports.first.port:
        raise UsageError(f"{text!r} names no port", "port 0 cannot be connected to")
    return ports


def _options(words: list[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {name: [] for name in _OPTIONS}
    for word in words:
        name, equals, value = word.partition("=")
        if name not in found or not (equals and value):
            close = get_close_matches(name, _OPTIONS, 1)
            raise UsageError(
                f"{name!r} is not an option of an entry",
                "known: proxy=v1, proxy=v2; of socks: auth=USER:PASSWORD, network=NET",
                f"did you mean {close[0]}=…?" if close else "",
            )
        found[name].append(value)
    return found


def _version(text: str | None) -> ProxyVersion | None:
    if text is None:
        return None
    try:
        return ProxyVersion(text)
    except ValueError:
        raise _no_such(text, "versions of the PROXY protocol are v1 and v2") from None


def _users(pairs: list[str]) -> dict[str, str]:
    users = {}
    for pair in pairs:
        name, colon, password = pair.partition(":")
        if not (name and colon and password):
            # Not repeated: it may be a password.
            raise UsageError("--auth takes USER:PASSWORD", "one of the two is missing")
        users[name] = password
    return users


def _refuse_open(where: Ports, inward: Inward) -> None:
    """A proxy that everybody can use would open this network to everybody."""
    if where.count != 1:
        raise UsageError("a proxy listens on one port", f"{where} are {where.count}")
    if not (inward.users or is_loopback(where.first.host)):
        raise UsageError(
            "a public proxy without users is not opened",
            "whoever reaches the server could use it to enter this network",
            "add --auth USER:PASSWORD, or --remote 127.0.0.1:1080 for the server alone",
        )


def is_loopback(host: str) -> bool:
    """Say whether only programs of the same machine reach that address."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _no_such(word: str, cause: str) -> UsageError:
    return UsageError(f"{word!r} cannot be used here", cause)
