"""What a server has to ask of each visitor of an entry (protocol.md#rules).

The fields of an entry of MAPPING, which are sent only to a server that enforces them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import TYPE_CHECKING, Final

from tunnel.proto.fields import MAX_OFFSET, Reader, broken, check_tlvs

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Network = IPv4Network | IPv6Network

MAX_NETWORKS: Final = 64
"""Of one field: more than an office has, and looked at one by one for each request."""
MAX_PATH_BYTES: Final = 255

_ALLOW: Final = 1
_DENY: Final = 2
_EXPIRES: Final = 3
_REQUESTS: Final = 4
_MAX_BODY: Final = 5
_PATH: Final = 6
_STRIP: Final = 7
_GROUP: Final = 8
_OUT: Final = 9
_KNOWN: Final = range(_ALLOW, _OUT + 1)
_PATH_WORD: Final = re.compile(r"(/(?!\.{1,2}(?:/|$))[A-Za-z0-9._~!$&'()*+,;=:@-]+)+")
_GROUP_WORD: Final = re.compile(r"[A-Za-z0-9._-]{1,63}")
_MAX_U32: Final = (1 << 32) - 1


@dataclass(frozen=True, slots=True)
class Rules:
    """The words of an entry that the server enforces; by default none."""

    allow: tuple[Network, ...] = ()
    """Where visitors may come from; empty: from anywhere."""
    deny: tuple[Network, ...] = ()
    """Where they may not, whatever ``allow`` says."""
    expires_s: int = 0
    """The life of the entry from its first publication; 0: for ever."""
    passed_s: int = 0
    """Of that life, as far as the client knows."""
    requests: int = 0
    """Of one address in ``per_s`` seconds, and at once; 0: any number."""
    per_s: int = 0
    max_body: int | None = None
    """Bytes of a request's body."""
    path: str = ""
    """Below which the entry is asked, of all entries of its name."""
    strip: bool = False
    """The target does not see ``path``."""
    group: str = ""
    """Entries that serve one name and path together."""
    out: bool = False
    """Nobody is led there at the moment: its target does not answer."""


def is_path(text: str) -> bool:
    """Say whether an entry may have this path; ``""`` is every one."""
    return len(text) <= MAX_PATH_BYTES and bool(_PATH_WORD.fullmatch(text))


def is_group(text: str) -> bool:
    """Say whether a group may have this name."""
    return bool(_GROUP_WORD.fullmatch(text))


def rules_tlvs(rules: Rules) -> dict[int, bytes]:
    """Write the fields of an entry."""
    tlvs: dict[int, bytes] = {}
    for kind, networks in ((_ALLOW, rules.allow), (_DENY, rules.deny)):
        if networks:
            tlvs[kind] = b"".join(map(_encode_network, networks))
    if rules.expires_s:
        passed_s = min(rules.passed_s, _MAX_U32)
        tlvs[_EXPIRES] = _two_numbers(rules.expires_s, passed_s)
    if rules.requests:
        tlvs[_REQUESTS] = _two_numbers(rules.requests, rules.per_s)
    if rules.max_body is not None:
        tlvs[_MAX_BODY] = rules.max_body.to_bytes(8, "big")
    for kind, text in ((_PATH, rules.path), (_GROUP, rules.group)):
        if text:
            tlvs[kind] = text.encode()
    for kind, said in ((_STRIP, rules.strip), (_OUT, rules.out)):
        if said:
            tlvs[kind] = b""
    return dict(sorted(tlvs.items()))


def read_rules(tlvs: Mapping[int, bytes]) -> Rules | None:
    """Read the fields of an entry; None if there are none.

    Raises:
        RemoteSessionError: ``PROTOCOL``, a value that is none; ``VERSION``, an unknown
            field below 128.
    """
    check_tlvs(tlvs, _KNOWN)
    if not tlvs.keys() & set(_KNOWN):
        return None
    expires_s, passed_s = _read_numbers(tlvs, _EXPIRES, least=0)
    requests, per_s = _read_numbers(tlvs, _REQUESTS, least=1)
    return Rules(
        _read_networks(tlvs, _ALLOW),
        _read_networks(tlvs, _DENY),
        expires_s,
        passed_s,
        requests,
        per_s,
        _read_max_body(tlvs),
        _read_word(tlvs, _PATH, "path"),
        _read_flag(tlvs, _STRIP),
        _read_word(tlvs, _GROUP, "group"),
        _read_flag(tlvs, _OUT),
    )


def _encode_network(network: Network) -> bytes:
    head = bytes((network.version, network.prefixlen))
    return head + network.network_address.packed


def _two_numbers(one: int, other: int) -> bytes:
    return one.to_bytes(4, "big") + other.to_bytes(4, "big")


def _read_networks(tlvs: Mapping[int, bytes], kind: int) -> tuple[Network, ...]:
    if kind not in tlvs:
        return ()
    reader = Reader(tlvs[kind], "list of networks")
    found: list[Network] = []
    while reader.left() and len(found) < MAX_NETWORKS:
        version, prefix = reader.byte(), reader.byte()
        if version not in (4, 6):
            raise broken(f"a network of version {version}")
        address = reader.take(4 if version == 4 else 16)
        try:
            found.append(ip_network((address, prefix)))
        except ValueError:
            raise broken("a network with bits behind its prefix") from None
    reader.end()
    if not found:  # to allow nobody is not what an empty field says
        raise broken("an empty list of networks")
    return tuple(found)


def _read_numbers(
    tlvs: Mapping[int, bytes], kind: int, *, least: int
) -> tuple[int, int]:
    """Read a number above 0 and another from ``least`` on; zeros if not said."""
    if kind not in tlvs:
        return 0, 0
    reader = Reader(tlvs[kind], "field")
    one, other = reader.number(4), reader.number(4)
    reader.end()
    if not one or other < least:
        raise broken(f"a field {kind} of an entry with a number of 0")
    return one, other


def _read_max_body(tlvs: Mapping[int, bytes]) -> int | None:
    if _MAX_BODY not in tlvs:
        return None
    reader = Reader(tlvs[_MAX_BODY], "field")
    size = reader.number(8)
    reader.end()
    if size > MAX_OFFSET:
        raise broken("a body beyond 2^62")
    return size


def _read_word(tlvs: Mapping[int, bytes], kind: int, what: str) -> str:
    if kind not in tlvs:
        return ""
    text = tlvs[kind].decode("latin-1")
    if not (is_path if kind == _PATH else is_group)(text):
        raise broken(f"an entry with an impossible {what}")
    return text


def _read_flag(tlvs: Mapping[int, bytes], kind: int) -> bool:
    if tlvs.get(kind):
        raise broken(f"a field {kind} of an entry that is not empty")
    return kind in tlvs


def said_words(rules: Rules) -> Sequence[str]:
    """Return the words of an entry that say these rules, without their values."""
    said = {
        "allow": rules.allow,
        "deny": rules.deny,
        "expires": rules.expires_s,
        "requests": rules.requests,
        "max-body": rules.max_body is not None,
        "path": rules.path,
        "strip": rules.strip,
        "group": rules.group,
        "check": rules.out,
    }
    return [word for word, value in said.items() if value] or ["check"]
