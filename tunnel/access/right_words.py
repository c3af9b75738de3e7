"""The words of rights, as people write them: ``reach:10.0.0.0/8:5432``."""

from __future__ import annotations

import posixpath
import re
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import TYPE_CHECKING, Final, NamedTuple, NoReturn

from tunnel.addresses import (
    EVERYWHERE,
    MAX_PORT,
    UnixPath,
    bare_ip,
    host_of,
    is_localhost,
    parse_ip,
)
from tunnel.errors import UsageError
from tunnel.words import meant, whole_number

if TYPE_CHECKING:
    from collections.abc import Callable

Network = IPv4Network | IPv6Network
Span = tuple[int, int]

ANY_PORT: Final = (0, MAX_PORT)
"""What ``*`` means; 0 stands for a port that the kernel chooses."""

FORMS: Final = {
    "tcp": "tcp:2200-2299",
    "udp": "udp:5353",
    "ports": "ports:16",
    "http": "http:shop-*",
    "https": "https:*.alice.t.example.net",
    "names": "names:alice",
    "reach": "reach:10.0.0.0/8:5432",
    "socks": "socks",
    "unix": "unix:/run/app.sock",
    "exit": "exit:home",
    "be-exit": "be-exit:home",
    "test": "test",
    "all": "all",
}
"""What there are rights about, each with an example."""

USER_NAME: Final = re.compile(r"[a-z0-9-]{1,32}")
_NUMBER_AT_END: Final = re.compile(r"(.*\.)?(\d+|0x[0-9a-f]*)\.?", re.ASCII)
"""Such a name is an IPv4 address to most programs (WHATWG URL, inet_aton)."""
_MAPPED: Final = IPv6Network("::ffff:0:0/96")


class Right(NamedTuple):
    """One right; its fields mean what its kind says."""

    kind: str
    what: str = ""
    """A host, a name, a pattern or a path, in the one spelling that it is known by."""
    spans: tuple[Span, ...] = ()
    """Ports, first and last."""
    network: Network | None = None
    most: int = 0

    @property
    def word(self) -> str:
        """The right as it is saved and shown."""
        if self.kind in ("all", "socks", "test"):
            return self.kind
        if self.most:
            return f"{self.kind}:{self.most}"
        ports = ",".join(map(_span_text, self.spans))
        if not ports:
            return f"{self.kind}:{self.what}"
        return (
            f"{self.kind}:{self.what}:{ports}" if self.what else f"{self.kind}:{ports}"
        )


def parse_right(text: str, where: str = "") -> Right:
    """Read one right.

    Args:
        text: what a person wrote.
        where: the place of it, for the error: a file and its key, or a flag.

    Raises:
        UsageError: it is none; says the place, the word and what was meant perhaps.
    """
    kind, colon, rest = text.strip().partition(":")
    place = f"{where}: " if where else ""
    if kind not in FORMS or (kind in _READERS) != bool(colon):
        _unknown(place, text, kind)
    if kind not in _READERS:
        return Right(kind)
    try:
        return _READERS[kind](kind, rest)
    except ValueError as error:
        what = f"{place}{text!r} is not a right"
        raise UsageError(what, str(error), f"for example {FORMS[kind]}") from None


def network_text(network: Network) -> str:
    """Return a network as rights write it: one address alone without its length."""
    host = str(network.network_address)
    if network.version == 6:
        host = f"[{host}]"
    if network.prefixlen == network.max_prefixlen:
        return host
    return f"{host}/{network.prefixlen}"


def _unknown(place: str, text: str, kind: str) -> NoReturn:
    fix = meant(kind.lower(), FORMS)
    known = ", ".join(FORMS)
    raise UsageError(f"{place}{text!r} is not a right", f"rights are {known}", fix)


# The readers: each returns a right, or raises ValueError with the reason -------------


def _read_published(kind: str, rest: str) -> Right:
    host, _, ports = rest.rpartition(":")
    if host and host != EVERYWHERE and not is_localhost(host):
        if (bare := host_of(host)) is None or parse_ip(bare) is None:
            raise ValueError("in front of the ports is an IP address of the server")
        host = public_host(bare)
        host = f"[{host}]" if ":" in host else host
    return Right(kind, host.lower(), _spans(ports))


def public_host(host: str) -> str:
    """Return the one spelling of an address of the server."""
    return host.lower() if parse_ip(host) is None else bare_ip(host)


def _read_count(kind: str, rest: str) -> Right:
    if not (most := whole_number(rest, MAX_PORT)):
        raise ValueError("it says how many of the server's own ports")
    return Right(kind, most=most)


def _read_pattern(kind: str, rest: str) -> Right:
    head, star, tail = rest.partition("*")
    why = "it is a host name; * stands at the end of its first part"
    if star and ("." in head or not head.isascii() or tail[:1] not in ("", ".")):
        raise ValueError(why)
    # The name without its star has to be one too: any label does in its place.
    name = host_of(f"{head}x{tail}" if star else rest)
    if name is None or ":" in name or name.endswith(".."):
        raise ValueError(why)
    name = name.lower().removesuffix(".")
    if star:
        name = f"{head.lower()}*{name[len(head) + 1 :]}"
    return Right(kind, name)


def _read_user(kind: str, rest: str) -> Right:
    if not USER_NAME.fullmatch(rest):
        raise ValueError("a name is of a-z, 0-9 and -, at most 32")
    return Right(kind, rest)


def _read_reach(kind: str, rest: str) -> Right:
    host, colon, ports = rest.rpartition(":")
    if not colon or ports.endswith("]") or "/" in ports:
        raise ValueError(f"the ports are missing: reach:{rest}:*")
    if host == EVERYWHERE:
        return Right(kind, host, _spans(ports))
    address, slash, bits = host.partition("/")
    in_brackets = address.startswith("[") and address.endswith("]")
    if ":" in address and not in_brackets:
        raise ValueError("an IPv6 address stands in brackets")
    if slash or in_brackets or parse_ip(address) is not None:
        network = _network(address.strip("[]"), bits if slash else None)
        return Right(kind, network_text(network), _spans(ports), network)
    name = (host_of(host) or "").lower().removesuffix(".")
    if not name:
        raise ValueError(f"{host!r} is neither a name nor an address")
    if is_localhost(name):
        raise ValueError("a name opens no closed address: write reach:127.0.0.1:PORT")
    if _NUMBER_AT_END.fullmatch(name):
        raise ValueError(f"{host!r} is no plain form of an address")
    return Right(kind, name, _spans(ports))


def _network(address: str, bits: str | None) -> Network:
    if "%" in address:
        raise ValueError("a zone is no part of a right")
    if bits is None:
        return ip_network(bare_ip(address))
    ip_address(address)  # the module would also take a netmask, and lone numbers
    if not (bits.isascii() and bits.isdigit()):
        raise ValueError(f"/{bits} is no length of a network")
    network = ip_network(f"{address}/{bits}")
    if isinstance(network, IPv6Network) and network.subnet_of(_MAPPED):
        ipv4 = network.network_address.ipv4_mapped
        return IPv4Network(f"{ipv4}/{network.prefixlen - 96}")
    return network


def _read_path(kind: str, rest: str) -> Right:
    if not UnixPath.is_usable(rest):
        raise ValueError("it is an absolute path of at most 107 bytes")
    if not rest.isprintable():
        raise ValueError("it has characters that cannot be shown")
    # POSIX would let two slashes at the beginning mean something else.
    if (plain := posixpath.normpath("/" + rest.lstrip("/"))) != rest:
        raise ValueError(f"write {plain}: paths are compared as they are sent")
    return Right(kind, rest)


def _read_exit(kind: str, rest: str) -> Right:
    if rest != EVERYWHERE and host_of(rest) is None:
        raise ValueError("it is the name of an exit, or *")
    return Right(kind, rest)


_READERS: Final[dict[str, Callable[[str, str], Right]]] = {
    "tcp": _read_published,
    "udp": _read_published,
    "ports": _read_count,
    "http": _read_pattern,
    "https": _read_pattern,
    "names": _read_user,
    "reach": _read_reach,
    "unix": _read_path,
    "exit": _read_exit,
    "be-exit": _read_exit,
}


# Ports -------------------------------------------------------------------------------


def _spans(text: str) -> tuple[Span, ...]:
    if text == EVERYWHERE:
        return (ANY_PORT,)
    return tuple(map(_span, text.split(",")))


def _span(text: str) -> Span:
    first, dash, last = text.partition("-")
    ports = _port(first), _port(last if dash else first)
    if ports[0] > ports[1]:
        raise ValueError(f"{text} ends before it begins")
    return ports


def _port(text: str) -> int:
    if not (port := whole_number(text, MAX_PORT)):
        raise ValueError(f"{text!r} is no port: they are 1 to 65535, A-B, A,B or *")
    return port


def _span_text(span: Span) -> str:
    first, last = span
    if span == ANY_PORT:
        return EVERYWHERE
    return f"{first}" if first == last else f"{first}-{last}"
