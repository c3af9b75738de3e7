"""Hosts, ports and unix sockets: what may be one, as text and as bytes.

Names come from apps as raw bytes, and from people as they write them; both go on into
resolvers, frames, heads and log lines. Nothing that could mean something there (spaces,
control bytes, NUL) passes. Nothing is resolved here, and nothing does IO.

    host_of, decode_host        the one rule for the text of a host
    parse_ip, unmapped, bare_ip IP addresses as numbers
    Address, UnixPath           where programs listen and are reached
    read_address, encode_address    bytes, as RFC 1928 §5 has them
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final

from tunnel.errors import Code, LocalStreamError, UsageError
from tunnel.words import whole_number

EVERYWHERE: Final = "*"
"""In the place of a host: every address of this machine, IPv4 and IPv6."""
LOCALHOST: Final = "localhost"
"""Both loopback addresses (RFC 6761 §6.3), whatever a resolver thinks of it."""
LOOPBACKS: Final = ("127.0.0.1", "::1")
WILDCARDS: Final = ("0.0.0.0", "::")  # noqa: S104 - what EVERYWHERE stands for

_NAME: Final = re.compile(r"[\w-]{1,63}(\.[\w-]{1,63})*\.?", re.ASCII)
MAX_PORT: Final = 65_535
MAX_NAME_BYTES: Final = 253
"""RFC 1035 allows 255 on the wire of the DNS: two of them are no letters. A last dot
(the name is whole) comes on top."""
_SENDABLE: Final = frozenset(
    "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_"
)

IpAddress = IPv4Address | IPv6Address


# The text of a host ----------------------------------------------------------------


def host_of(text: str, *, zone: bool = False) -> str | None:
    """Return a name or an IP address as it goes on; None for what is neither.

    Brackets around an IPv6 address are taken off. A name in another script becomes its
    ``xn--`` form; capitals and a last dot stay, for resolvers accept both.

    Args:
        text: what a person or a program wrote.
        zone: whether an IPv6 address may have one (``fe80::1%eth0``). A zone names an
            interface of the machine that uses the address: what is sent to another
            machine has none.
    """
    if text.startswith("[") and text.endswith("]"):
        text = text[1:-1]
        if ":" not in text:
            return None
    if ":" in text:
        return text if _is_ipv6(text, zone) else None
    if not text.isascii():
        try:
            text = ascii_name(text)
        except UnicodeError:
            return None
    is_name = len(text.removesuffix(".")) <= MAX_NAME_BYTES and _NAME.fullmatch(text)
    return text if is_name else None


def decode_host(raw: bytes) -> str | None:
    """Return the host that an app wrote, as ``host_of`` reads it; None for no host."""
    try:
        return host_of(raw.decode())
    except UnicodeDecodeError:
        return None


def ascii_name(text: str) -> str:
    """Return a name as resolvers know it (IDNA 2008, UTS 46), or raise UnicodeError."""
    if text.isascii():
        return text
    import idna  # rarely needed, and its tables are large

    return idna.encode(text, uts46=True).decode()


def is_host_name(text: str) -> bool:
    """Say whether this may be a name in a frame (protocol.md#create).

    That is 1 to 255 letters, digits, ``.``, ``-``, ``_``: anything else could smuggle a
    line end, a NUL or a space into a log or a header.
    """
    return 0 < len(text) <= 255 and _SENDABLE.issuperset(text)


def is_localhost(host: str) -> bool:
    """Say whether a host is the name of both loopback addresses."""
    return host.lower().removesuffix(".") == LOCALHOST


def is_loopback(host: str) -> bool:
    """Say whether only this machine reaches an address."""
    ip = parse_ip(host)
    return is_localhost(host) if ip is None else unmapped(ip).is_loopback


def _is_ipv6(text: str, zone: bool) -> bool:
    try:
        scope = IPv6Address(text).scope_id
    except ValueError:
        return False
    if scope is None:
        return True
    return zone and scope.isascii() and scope.isprintable() and " " not in scope


# IP addresses as numbers -----------------------------------------------------------


def parse_ip(text: str) -> IpAddress | None:
    """Return the IP address that a text is, with its zone; None for anything else."""
    try:
        return ip_address(text)
    except ValueError:
        return None


def unmapped(ip: IpAddress) -> IpAddress:
    """Return an IPv4-mapped IPv6 address as the IPv4 address that it means."""
    if isinstance(ip, IPv6Address):
        return ip.ipv4_mapped or ip
    return ip


def bare_ip(text: str) -> str:
    """Return a socket's address without zone and IPv4 mapping, or raise ValueError.

    Both say something about this machine, not about the peer.
    """
    return str(unmapped(ip_address(text.partition("%")[0])))


# Where programs listen and are reached ---------------------------------------------


@dataclass(frozen=True, slots=True)
class Address:
    """A host (IPv4, IPv6 or a name) and a port, as RFC 1928 §4 and §5 write them."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str, host: str = "") -> Address:
        """Read ``HOST:PORT``, ``[IPV6]:PORT``, or ``PORT`` where ``host`` is given.

        ``*`` and what ``host_of`` takes is a host, an IPv6 zone included. Anything else
        raises UsageError.
        """
        before, colon, port = text.rpartition(":")
        if before != EVERYWHERE:
            bare_ipv6 = ":" in before and not before.startswith("[")
            before = "" if bare_ipv6 else host_of(before, zone=True) or ""
        before = before or ("" if colon else host)
        number = whole_number(port, MAX_PORT)
        if before and number is not None:
            return cls(before, number)
        what = "[HOST:]PORT" if host else "HOST:PORT"
        why = f"an address is {what}, with a port from 0 to 65535"
        fix = f"for example {host or 'db.lan'}:5432"
        if in_brackets := _in_brackets(text):
            why = "an IPv6 address stands in brackets, and a port follows them"
            fix = f"write {in_brackets}"
        raise UsageError(f"{text!r} is not an address", why, fix)

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


def _in_brackets(text: str) -> str:
    """Return an IPv6 address and its port as they must be written; "" for all else."""
    before, _, port = text.rpartition(":")
    for host, then in ((before, port), (text, "PORT")):
        bare = host.removeprefix("[").removesuffix("]")
        is_ipv6 = ":" in bare and host_of(bare, zone=True) is not None
        if is_ipv6 and (then == "PORT" or whole_number(then, MAX_PORT) is not None):
            return f"[{bare}]:{then}"
    return ""


NOWHERE: Final = Address("0.0.0.0", 0)  # noqa: S104  # said, never listened on
"""Stands where there is no address to tell."""

UNIX_PREFIX: Final = "unix:"
MAX_PATH_BYTES: Final = 107
"""What Linux has room for in a socket's address, without the NUL behind it."""


@dataclass(frozen=True, slots=True)
class UnixPath:
    """A unix socket on the machine where it is used; absolute, at most 107 bytes."""

    path: str

    @classmethod
    def parse(cls, text: str) -> UnixPath:
        """Read ``unix:/path``; UsageError says that no socket can have that path."""
        path = text.removeprefix(UNIX_PREFIX)
        if not (text.startswith(UNIX_PREFIX) and cls.is_usable(path)):
            raise UsageError(
                f"{text!r} is not the address of a unix socket",
                f"it is unix:/path: absolute, and at most {MAX_PATH_BYTES} bytes",
                "for example unix:/run/app.sock",
            )
        return cls(path)

    @staticmethod
    def is_usable(path: str) -> bool:
        """Say whether a socket can have that path."""
        size = len(path.encode(errors="replace"))
        return path.startswith("/") and "\0" not in path and size <= MAX_PATH_BYTES

    def __str__(self) -> str:
        return UNIX_PREFIX + self.path


End = Address | UnixPath
"""Where a program of one machine listens or is reached."""


def parse_end(text: str, host: str = "") -> End:
    """Read ``unix:/path``, or an address as ``Address.parse`` does; else UsageError."""
    if text.startswith(UNIX_PREFIX):
        return UnixPath.parse(text)
    return Address.parse(text, host)


# Bytes, as RFC 1928 §5 has them ----------------------------------------------------

_IPV4: Final = 1
_DOMAIN: Final = 3
_IPV6: Final = 4
IPV4_BYTES: Final = 7
"""Kind, host and port of an IPv4 address."""


class ShortAddressError(ValueError):
    """The address goes on behind the bytes that are there."""


class AddressKindError(ValueError):
    """RFC 1928 does not know the kind of the address, so its length is unknown."""


def read_address(data: bytes | bytearray, at: int) -> tuple[str | bytes, int, int]:
    """Read the address (kind, host, port) that begins at ``at``.

    Returns:
        The host, the port, and where the address ends. An IP address comes as text. A
        name comes as raw bytes, for apps and frames have different rules for names.

    Raises:
        ShortAddressError: it is not there as a whole.
        AddressKindError: it is neither an IP address nor a name.
    """
    size, end = len(data), at + 7
    if end <= size and data[at] == _IPV4:  # most are; the library is six times as slow
        _, a, b, c, d, high, low = data[at:end]
        return f"{a}.{b}.{c}.{d}", high << 8 | low, end
    start = at + 1
    if start > size:
        raise ShortAddressError
    kind = data[at]
    if kind == _IPV6:
        end = start + 16
    elif kind == _DOMAIN and start < size:
        start += 1
        end = start + data[at + 1]
    elif kind in (_IPV4, _DOMAIN):
        raise ShortAddressError
    else:
        raise AddressKindError(f"address form {kind}")
    if end + 2 > size:
        raise ShortAddressError
    host, port = bytes(data[start:end]), data[end] << 8 | data[end + 1]
    return host if kind == _DOMAIN else str(IPv6Address(host)), port, end + 2


@lru_cache(1_024)
def read_ipv4(data: bytes) -> Address | None:
    """Return the IPv4 address that is all of ``data``; None if it is anything else.

    Remembered, for datagrams come from the same again.
    """
    if len(data) != IPV4_BYTES or data[0] != _IPV4:
        return None
    host, port, _end = read_address(data, 0)
    return Address(str(host), port)


def encode_address(address: Address) -> bytes:
    """Write kind, host and port.

    Raises:
        LocalStreamError: ``ADDRESS_UNSUPPORTED`` for a host that cannot be sent.
    """
    return _encode_host(address.host) + address.port.to_bytes(2, "big")


@lru_cache(1_024)
def _encode_host(host: str) -> bytes:
    """Write kind and host; remembered, for visitors come from the same again."""
    ip = parse_ip(host)
    if ip is not None:
        return bytes((_IPV4 if ip.version == 4 else _IPV6,)) + ip.packed
    if not is_host_name(host):
        what = f"{host!r} is not a host name"
        raise LocalStreamError(Code.ADDRESS_UNSUPPORTED, what)
    return bytes((_DOMAIN, len(host))) + host.encode()
