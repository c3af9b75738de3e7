"""The values that entries are written with: ports, places, options, users and names.

Each ``parse_…`` raises UsageError where a text is no such value; its error repeats
nothing of a secret.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tunnel.access.join import PIN_BYTES
from tunnel.access.proxy_users import ProxyUsers
from tunnel.addresses import (
    EVERYWHERE,
    LOCALHOST,
    MAX_PORT,
    UNIX_PREFIX,
    Address,
    UnixPath,
    host_of,
    is_host_name,
    parse_end,
)
from tunnel.errors import UsageError
from tunnel.front.http.guard import Guard
from tunnel.net.proxy_protocol import ProxyVersion
from tunnel.ops.saved import secret_file
from tunnel.proto.proofs import from_base64url
from tunnel.words import bare, is_utf_8, meant, whole_number

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from tunnel.addresses import End

SaidWord = tuple[str, str | None]
"""A word of an entry and its value; None if it is said without one."""


# Places ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Ports:
    """An address with one port, or with several in a row."""

    first: Address
    count: int = 1

    def __str__(self) -> str:
        text = str(self.first)
        return text if self.count == 1 else f"{text}-{self.first.port + self.count - 1}"


def parse_ports(text: str, host: str = "") -> Ports:
    """Read ``[HOST:]PORT`` or ``[HOST:]LOW-HIGH``."""
    before, colon, ports = text.rpartition(":")
    low, dash, high = ports.partition("-")
    if not (dash and low.isdigit()):
        return Ports(Address.parse(text, host))
    first = Address.parse(f"{before}{colon}{low}", host)
    last = whole_number(high, MAX_PORT) or 0
    if not 0 < first.port <= last:
        raise UsageError(
            f"{ports!r} is not a range of ports",
            "it is LOW-HIGH, with ports from 1 to 65535",
            "for example 6000-6010",
        )
    return Ports(first, last - first.port + 1)


def parse_public_ports(text: str) -> Ports:
    """Read the public address of one port or several, as ``parse_remote`` does."""
    ports = parse_ports(text, EVERYWHERE)
    return Ports(_public(ports.first, text), ports.count)


def parse_remote(text: str) -> Address:
    """Read a public address; a bare port has no host, for the server's to be used."""
    return _public(Address.parse(text, EVERYWHERE), text)


def _public(where: Address, text: str) -> Address:
    if where.host == EVERYWHERE:  # what the line of a port without a host says
        return Address("", where.port)
    if "%" in where.host:
        raise _zone_refused(text, "the public port is one of the server's")
    return where


def parse_listen(text: str) -> End:
    """Read where to listen here; a bare port listens on both loopbacks."""
    return parse_end(text, LOCALHOST)


def parse_target(text: str) -> End:
    """Read what is to be reached here; a bare port is one of either loopback."""
    return _reachable(parse_end(text, LOCALHOST), text)


def parse_url_target(scheme: str, where: str) -> Address:
    """Read what stands behind ``http://`` or ``https://`` of a target."""
    end: End | None = None
    where = where.removesuffix("/")
    if where and not {"/", "?", "#", "@"} & set(where):
        has_port = where.isdigit() or ":" in where.rpartition("]")[2]
        port = {"http": 80, "https": 443}[scheme]
        end = parse_target(where if has_port else f"{where}:{port}")
    if not isinstance(end, Address):
        raise UsageError(
            f"{scheme}://{where} is no target",
            f"it is {scheme}://HOST:PORT: a path or a user is not part of it",
            f"{scheme}://localhost:8443",
        )
    return end


def parse_targets(text: str) -> tuple[End, int]:
    """Read several targets in a row; return the first, and their number."""
    if text.startswith(UNIX_PREFIX):
        return UnixPath.parse(text), 1
    ports = parse_ports(text, LOCALHOST)
    return _reachable(ports.first, text), ports.count


def parse_far_target(text: str) -> End:
    """Read what is reached from another machine; a zone would mean nothing there."""
    end = parse_target(text)
    if isinstance(end, Address) and "%" in end.host:
        raise _zone_refused(text, "the target is reached from another machine")
    return end


def _reachable(end: End, text: str) -> End:
    if isinstance(end, UnixPath):
        return end
    if not end.port:
        raise UsageError(f"{text!r} names no port", "port 0 cannot be connected to")
    if end.host == EVERYWHERE:
        raise UsageError(
            f"{text!r} cannot be reached",
            "* is a place to listen, for every address",
            f"a port of this machine is {end.port} alone",
        )
    return end


def _zone_refused(text: str, why: str) -> UsageError:
    return UsageError(
        f"{text!r} has a zone, which names a network card of this machine",
        why,
        "use an address without %…, or a name",
    )


# Options -----------------------------------------------------------------------------


def split_words(text: str) -> tuple[str, list[SaidWord]]:
    """Part an entry from its ``,WORD=VALUE…``; give the words in their order.

    A comma within either is written ``%2C``. A word without ``=`` has no value.
    """
    body, *words = (_comma(part) for part in text.split(","))
    pairs = (word.partition("=") for word in words)
    return body, [(name, value if sign else None) for name, sign, value in pairs]


def _comma(text: str) -> str:
    return text.replace("%2C", ",").replace("%2c", ",")


def split_options(text: str, known: Sequence[str]) -> tuple[str, dict[str, list[str]]]:
    """Part an entry from its ``,NAME=VALUE…``; an option may be repeated."""
    body, words = split_words(text)
    found: dict[str, list[str]] = {name: [] for name in known}
    for name, value in words:
        if name not in found or not value:
            raise unknown_word(name, dict.fromkeys(known, "…"))
        found[name].append(value)
    return body, found


def unknown_word(name: str, known: Mapping[str, str]) -> UsageError:
    """Return the error about a word that an entry does not have.

    Args:
        name: of the word.
        known: the words that it has, and the form of their values.
    """
    forms = {one: f"{one}={takes}" if takes else one for one, takes in known.items()}
    return UsageError(
        f"{name!r} is not an option of this entry",
        "known: " + ", ".join(forms.values()),
        meant(name, forms),
    )


def parse_proxy_version(texts: Iterable[str]) -> ProxyVersion | None:
    """Return the version of the PROXY header that the last word names, if any."""
    version = None
    for text in texts:
        try:
            version = ProxyVersion(text)
        except ValueError:
            what = f"{text!r} is no version of the PROXY protocol"
            raise UsageError(what, "the versions are v1 and v2") from None
    return version


# Users and names ---------------------------------------------------------------------


def parse_users(pairs: list[str]) -> ProxyUsers | None:
    """Read ``USER:PASSWORD``, as often as given; without one ``TUNNEL_AUTH_FILE``."""
    if not pairs:
        return secret_file(
            "TUNNEL_AUTH_FILE", lambda text: _users(map(bare, text.split()))
        )
    return _users(pairs)


def _users(pairs: Iterable[str]) -> ProxyUsers:
    users = {}
    for pair in pairs:
        name, _, password = pair.partition(":")
        if not (name and password):
            raise UsageError("a user of a proxy is USER:PASSWORD", "a part is missing")
        _check_utf_8(pair)
        users[name] = password
    return ProxyUsers(users)


def _check_utf_8(pair: str) -> None:
    if not is_utf_8(pair):
        what = "a user and a password are given in UTF-8"
        raise UsageError(what, "apps and browsers send them so", "see `locale`")


def parse_guard(text: str) -> Guard:
    """Read the ``USER:PASSWORD`` of a web service."""
    user, _, password = text.partition(":")
    if not (user and password):
        raise UsageError("that is no user and password", fix="--auth USER:PASSWORD")
    _check_utf_8(text)
    return Guard(user, password)


def parse_pin(text: str) -> str:
    """Read the pin of a public key: SHA-256 of its SPKI, in either base64.

    As curl takes it (``sha256//…``), or as a join line has it.
    """
    word = re.sub(r"^sha256/+", "", text).rstrip("=").replace("+", "-")
    pin = word.replace("/", "_")
    if from_base64url(pin, PIN_BYTES) is None:
        raise UsageError(
            f"{text!r} is no pin",
            "it is the SHA-256 of a public key (SPKI) in base64, 43 letters",
        )
    return pin


def parse_exit_name(text: str) -> str:
    """Read the name of an exit."""
    if is_host_name(text):
        return text
    what = f"{text!r} is not the name of an exit"
    raise UsageError(what, "letters, digits, dot, - and _")


def public_name(text: str) -> str:
    """Return a host name in ASCII, as the server takes it; empty if it is none."""
    any_label = "*." if text.startswith("*.") else ""
    name = host_of(text.removeprefix(any_label).removesuffix("."))
    return any_label + name if name and ":" not in name else ""
