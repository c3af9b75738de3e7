"""What a user may do: pure decisions about what is asked for.

Each decision returns "" where it is allowed, and else the right that would allow it, as
a person would write it: it goes into the reason for the peer and into the log. Without
a right the answer is no. Nothing here is resolved, and nothing does IO: the address
that a decision is asked about is the one that is then dialled.

A decision looks into tables, by kind, host and length of prefix. It costs the same
whether a user has ten rights or ten thousand.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from tunnel.access.closed import least_prefix, meant_ip, translated_ipv4
from tunnel.access.right_words import (
    ANY_PORT,
    Right,
    Span,
    parse_right,
    public_host,
)
from tunnel.addresses import EVERYWHERE, parse_ip

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Mapping

    from tunnel.addresses import IpAddress

DEFAULT_PORTS: Final = 16
"""Ports of the server's own range that a new user may have at once."""

NO_RANGE: Final = range(0)


class Ports:
    """A set of ports, as rows that neither overlap nor touch."""

    __slots__ = ("_firsts", "_lasts")

    def __init__(self, spans: Iterable[Span]) -> None:
        self._firsts: list[int] = []
        self._lasts: list[int] = []
        for first, last in sorted(spans):
            if self._lasts and first <= self._lasts[-1] + 1:
                self._lasts[-1] = max(self._lasts[-1], last)
            else:
                self._firsts.append(first)
                self._lasts.append(last)

    def cover(self, first: int, last: int) -> bool:
        """Say whether all ports from one to the other are in the set."""
        at = bisect_right(self._firsts, first) - 1
        return at >= 0 and last <= self._lasts[at]


@dataclass(frozen=True, slots=True)
class _Labels:
    """Host names right below one domain: whole ones, and how others begin."""

    whole: set[str] = field(default_factory=set)
    begins: set[str] = field(default_factory=set)

    def fit(self, label: str) -> bool:
        if label in self.whole:
            return True
        begins = self.begins
        return bool(begins) and any(
            label[:size] in begins for size in range(len(label) + 1)
        )


_Networks = tuple[tuple[int, "Mapping[int, Ports]"], ...]
"""Lengths of prefixes, the longest first, each with the ports of its networks."""


@dataclass(frozen=True, slots=True)
class Rights:
    """What one user may do; made by ``parse_rights``. Without a word it is nothing."""

    words: tuple[str, ...] = ()
    """The rights, each in its one spelling."""
    everything: bool = field(default=False, compare=False)
    """The owner's: every decision allows."""
    most_ports: int = field(default=0, compare=False)
    """How many ports of the server's own range the user may have at once, besides
    those that are named. The caller counts."""
    _published: Mapping[tuple[str, str], Ports] = field(
        default_factory=dict, compare=False, repr=False
    )
    _names: Mapping[tuple[str, str], _Labels] = field(
        default_factory=dict, compare=False, repr=False
    )
    _owned: frozenset[str] = field(default=frozenset(), compare=False, repr=False)
    _networks: tuple[_Networks, _Networks] = field(
        default=((), ()), compare=False, repr=False
    )
    _asked: Mapping[str, Ports] = field(default_factory=dict, compare=False, repr=False)
    _plain: frozenset[tuple[str, str]] = field(
        default=frozenset(), compare=False, repr=False
    )

    # What visitors reach -------------------------------------------------------------

    def may_publish(
        self, kind: str, host: str, ports: range, of_server: range = NO_RANGE
    ) -> str:
        """Decide about public ports.

        Args:
            kind: ``tcp`` or ``udp``.
            host: where they are; "" where the server's links come in.
            ports: one or more, in a row; from 0 on, so many of the server's choice.
            of_server: the range from which the server chooses. Ports of it count
                against ``most_ports``, unless they are allowed by a right of their own.
        """
        if self.everything:
            return ""
        first, last = ports[0], ports[-1]
        chosen = first == 0 and bool(of_server)
        row = (of_server[0], of_server[-1]) if chosen else (first, last)
        host = public_host(host)
        for where in (host, EVERYWHERE):
            allowed = self._published.get((kind, where))
            if allowed is not None and allowed.cover(*row):
                return ""
        in_range = chosen or (first in of_server and last in of_server)
        if in_range and not host:
            if len(ports) <= self.most_ports:
                return ""
            if chosen:
                return f"ports:{len(ports)}"
        span = ANY_PORT if first == 0 else (first, last)
        return Right(kind, f"[{host}]" if ":" in host else host, (span,)).word

    def may_name(
        self, kind: str, host: str, domain: str | None, users: Container[str] = ()
    ) -> str:
        """Decide about a host name.

        Args:
            kind: ``http`` or ``https``.
            host: the whole name, in small letters; may begin with ``*.``.
            domain: the server's own: names without a dot are below it.
            users: the names of all users. Where ``NAME-…`` fits two of them, it is
                for the one with the longer name.
        """
        if self.everything:
            return ""
        label, _, above = host.partition(".")
        labels = self._names.get((kind, above)) if above else None
        if labels and labels.fit(label):
            return ""
        if not domain or above != domain:
            return f"{kind}:{host}"
        if (labels := self._names.get((kind, ""))) and labels.fit(label):
            return ""
        if self._owned and _longest_user(label, users, self._owned) in self._owned:
            return ""
        return f"{kind}:{label}"

    def may_be_exit(self, name: str) -> str:
        """Decide about being an exit for others under that name."""
        return self._has("be-exit", name)

    # Where the user leaves -----------------------------------------------------------

    def may_associate(self) -> str:
        """Decide about a UDP association; each datagram is decided by itself."""
        nowhere = not (self.everything or self._asked or any(self._networks))
        return "reach:*:*" if nowhere else ""

    def may_look_up(self, asked: str, port: int) -> str:
        """Decide whether a name may be resolved: whether any answer could be allowed.

        Else the server's resolver would be at the service of who may reach nothing.
        """
        if self.everything or any(self._networks) or EVERYWHERE in self._asked:
            return ""
        named = self._asked.get(asked.lower().removesuffix("."))
        if named is not None and named.cover(port, port):
            return ""
        return f"reach:{asked}:{port}"

    def may_reach(
        self, asked: str, ip: str, port: int, own: Container[IpAddress]
    ) -> str:
        """Decide about a connection, or a datagram, to the very address it goes to.

        Args:
            asked: the host as the user's side wrote it: a name, or an address.
            ip: what it was resolved to, as it is dialled.
            port: 0 for any.
            own: the addresses of this machine, as they are now.
        """
        if self.everything:
            return ""
        address = meant_ip(ip)
        if address is None:
            return f"reach:{ip}:{port}"
        least = least_prefix(address, own)
        if self._reaches(address, least, port):
            return ""
        name = asked.lower().removesuffix(".")
        if not least:
            meant = translated_ipv4(address)
            if meant is not None and self._reaches(meant, 0, port):
                return ""
            for known in (name, EVERYWHERE):
                named = self._asked.get(known)
                if named is not None and named.cover(port, port):
                    return ""
            if name and parse_ip(name) is None:
                return f"reach:{name}:{port or EVERYWHERE}"
        host = f"[{address}]" if address.version == 6 else str(address)
        return f"reach:{host}:{port or EVERYWHERE}"

    def _reaches(self, ip: IpAddress, least: int, port: int) -> bool:
        value, whole = int(ip), ip.max_prefixlen
        for length, networks in self._networks[whole != 32]:
            if length < least:
                return False
            ports = networks.get(value >> (whole - length))
            if ports is not None and ports.cover(port, port):
                return True
        return False

    def may_reach_unix(self, path: str) -> str:
        """Decide about a unix socket of the server, by the path as it is sent."""
        return self._has("unix", path)

    def may_leave_at(self, name: str) -> str:
        """Decide about leaving at the client that is the exit of that name."""
        return self._has("exit", name)

    def may_test(self) -> str:
        """Decide about measuring how much passes between the user and the server."""
        return "" if self.everything or ("test", "") in self._plain else "test"

    def _has(self, kind: str, what: str) -> str:
        plain = self._plain
        if self.everything or (kind, what) in plain:
            return ""
        if kind != "unix" and (kind, EVERYWHERE) in plain:
            return ""
        return f"{kind}:{what}"


def parse_rights(words: Iterable[str], where: str = "") -> Rights:
    """Read rights; one that is there twice counts once.

    Args:
        words: as people write them.
        where: the place of them, for the error.

    Raises:
        UsageError: one is none; says the place, the word and what was meant perhaps.
    """
    found = {right.word: right for right in (parse_right(one, where) for one in words)}
    rights = found.values()
    return Rights(
        tuple(found),
        everything="all" in found,
        most_ports=max((right.most for right in rights), default=0),
        _published=_published(rights),
        _names=_names(rights),
        _owned=frozenset(one.what for one in rights if one.kind == "names"),
        _networks=(_networks(rights, 4), _networks(rights, 6)),
        _asked=_asked(rights),
        _plain=frozenset((one.kind, one.what) for one in rights),
    )


def default_rights(name: str) -> Rights:
    """Return what a new user may: 16 of the server's ports, and names of its own.

    The host names are NAME and NAME-…, below the server's domain.
    """
    return parse_rights((f"ports:{DEFAULT_PORTS}", f"names:{name}"))


def _published(rights: Iterable[Right]) -> dict[tuple[str, str], Ports]:
    spans = defaultdict[tuple[str, str], list[Span]](list)
    for right in rights:
        if right.kind in ("tcp", "udp"):
            spans[right.kind, right.what.strip("[]")].extend(right.spans)
    return {where: Ports(found) for where, found in spans.items()}


def _names(rights: Iterable[Right]) -> dict[tuple[str, str], _Labels]:
    names = defaultdict[tuple[str, str], _Labels](_Labels)
    for right in rights:
        if right.kind in ("http", "https"):
            label, _, above = right.what.partition(".")
            labels = names[right.kind, above]
            if label.endswith("*"):
                labels.begins.add(label[:-1])
            else:
                labels.whole.add(label)
    return dict(names)


def _networks(rights: Iterable[Right], version: int) -> _Networks:
    spans = defaultdict[int, defaultdict[int, list[Span]]](lambda: defaultdict(list))
    for right in rights:
        network = right.network
        if network is not None and network.version == version:
            length = network.prefixlen
            prefix = int(network.network_address) >> (network.max_prefixlen - length)
            spans[length][prefix].extend(right.spans)
    return tuple(
        (length, {prefix: Ports(found) for prefix, found in spans[length].items()})
        for length in sorted(spans, reverse=True)
    )


def _asked(rights: Iterable[Right]) -> dict[str, Ports]:
    spans = defaultdict[str, list[Span]](list)
    for right in rights:
        if right.kind == "socks":
            spans[EVERYWHERE].append(ANY_PORT)
        elif right.kind == "reach" and right.network is None:
            spans[right.what].extend(right.spans)
    return {name: Ports(found) for name, found in spans.items()}


def _longest_user(label: str, users: Container[str], owned: Container[str]) -> str:
    """Return the longest name of a user that a label is, or begins with before a -."""
    name = label
    while name and not (name in owned or name in users):
        name = name.rpartition("-")[0]
    return name


NO_RIGHT: Final = Rights()

ALL: Final = parse_rights(("all",))
"""The owner's."""
