"""What is open under each public name: one entry, or several of one user (#rules).

Decides nothing: ``mappings`` asks who stands in an entry's way, ``names`` whom a
visitor is led to.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import TYPE_CHECKING, Final, Generic, Protocol, TypeVar

import trio

from tunnel.center.endpoints import PublicName
from tunnel.center.owner import Owner, wait_for
from tunnel.center.sessions import NO_CLIENT_ID
from tunnel.errors import Code
from tunnel.front.http.places import State
from tunnel.link.tally import Tally
from tunnel.proto.frames import MappingAnswer, MappingType, NameTarget
from tunnel.proto.payloads import encode_entry
from tunnel.proto.rules import Rules

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Container, Iterator

    from tunnel.addresses import Address
    from tunnel.center.client_session import ClientSession
    from tunnel.center.endpoints import Endpoint
    from tunnel.front.http.places import Places
    from tunnel.link.virtual import VirtualStream
    from tunnel.proto.frames import MappingEntry

HOSTS: Final = (MappingType.HTTP, MappingType.HTTPS)
"""Whose names are host names, which one user has for both."""
KNOWN_LIVES: Final = 10_000
"""Entries that expire, of which a server remembers when they were published first."""
KNOWN_CHOICES: Final = 4_096
"""Entries of which a server remembers the port that it chose: 1.5 MB."""
MAX_SITE_ENTRIES: Final = 256
"""Entries of one name, by path and in groups: they are looked at one by one."""
NO_RULES: Final = Rules()


Of = TypeVar("Of", bound=Owner, covariant=True)


@dataclass(slots=True, eq=False)
class SiteMapping(Generic[Of]):
    """A mapping that is open, here or at another node: whose it is, and where."""

    owner: Of
    entry: MappingEntry
    names: tuple[PublicName, ...]
    expires_at: float = math.inf
    """On trio's clock."""
    in_flight: int = 0
    """Requests of a name with rules that have no whole answer."""
    turn: int = 0
    """When a visitor was led here last, as its group counts."""
    shunned_until: float = 0.0
    """It took no connection, and others of its group are asked first until then."""

    @property
    def rules(self) -> Rules:
        """What is asked of its visitors."""
        return self.entry.rules or NO_RULES

    @property
    def key(self) -> SiteMapping[Of]:
        """What a visitor's connection to it may be used again for."""
        return self

    @property
    def when_lost(self) -> set[Callable[[], None]]:
        """Called when its client's link is lost."""
        return self.owner.when_lost

    @property
    def state(self) -> State:
        """Whether a visitor can be led there now."""
        if self.rules.out:
            return State.OUT
        if self.owner.away:
            return State.AWAY
        return State.WAITING if self.owner.waiting else State.READY

    async def open(self, visitor: Address) -> VirtualStream:
        """Open for a visitor, who waits for a while for a link that was just lost.

        Raises:
            StreamError: it is refused, or the client does not come back.
        """
        await wait_for(self.owner)
        return self.owner.session.open_now(NameTarget(self.entry.name), visitor)


@dataclass(slots=True, eq=False)
class OpenMapping(SiteMapping["ClientSession"]):
    """A mapping that is open at this server."""

    endpoint: Endpoint = field(kw_only=True)
    counted: int = 0
    """Ports of it that count against ``Rights.most_ports``."""
    tally: Tally = field(default_factory=Tally)
    """What its visitors have sent and received."""

    @property
    def answer(self) -> MappingAnswer:
        """Say that it is open, and where."""
        public, note = self.endpoint.public, self.endpoint.note
        return MappingAnswer(Code.NORMAL, public.host, public.port, note)


AnyMapping = SiteMapping[Owner]


@dataclass(slots=True, eq=False)
class Site:
    """All that is open under one public name; of a port it is one entry."""

    mappings: list[AnyMapping] = field(default_factory=list)
    only: AnyMapping | None = None
    """The one entry, where nothing is asked of its visitors."""
    places: Places | None = None
    """Made by who leads visitors, and made anew when something has changed."""

    def changed(self) -> None:
        """Note that an entry came, left or has other rules."""
        self.places, only = None, self.mappings[:1]
        has_one = len(self.mappings) == 1 and self.mappings[0].rules == NO_RULES
        self.only = only[0] if has_one else None


class Sites:
    """The public names that are open, and which user has which host names."""

    def __init__(self) -> None:
        self._sites: dict[PublicName, Site] = {}
        self._below: dict[str, Counter[str]] = {}
        """By the domain right above: how many whole names each user has there."""
        self.changed = trio.Event()
        """Set, and replaced, when a host name comes or goes."""
        self.below_elsewhere: dict[str, frozenset[str]] = {}
        """By a domain: who has names right below it at other nodes."""

    def __contains__(self, name: object) -> bool:
        return name in self._sites

    def hosts(self, of_type: MappingType) -> Iterator[tuple[str, str]]:
        """Yield the host names of a type that are open, and whose each is."""
        for name, site in self._sites.items():
            if name.type is of_type:
                yield name.host, site.mappings[0].owner.user_name

    def _note_change(self) -> None:
        self.changed.set()
        self.changed = trio.Event()

    def get(self, name: PublicName) -> Site | None:
        """Return what is open under exactly this name."""
        return self._sites.get(name)

    def add(self, mapping: AnyMapping) -> None:
        """Open a mapping under all its names."""
        for name in mapping.names:
            if (site := self._sites.get(name)) is None:
                site = self._sites[name] = Site()
                if name.type in HOSTS:
                    self._note_change()
            site.mappings.append(mapping)
            site.changed()
            if name.type in HOSTS and not name.host.startswith("*."):
                users = self._below.setdefault(domain_of(name.host), Counter())
                users[mapping.owner.user_name] += 1

    def remove(self, mapping: AnyMapping) -> None:
        """Take a mapping from all its names."""
        for name in mapping.names:
            site = self._sites[name]
            site.mappings.remove(mapping)
            if site.mappings:
                site.changed()
            else:
                del self._sites[name]
                if name.type in HOSTS:
                    self._note_change()
            if name.type in HOSTS and not name.host.startswith("*."):
                domain, user = domain_of(name.host), mapping.owner.user_name
                users = self._below[domain]
                users[user] -= 1
                if not users[user]:
                    del users[user]
                if not users:
                    del self._below[domain]

    def replace(self, mapping: AnyMapping, entry: MappingEntry) -> None:
        """Give a mapping other rules."""
        mapping.entry = entry
        for name in mapping.names:
            self._sites[name].changed()

    def is_of_another(self, name: PublicName, user: str) -> bool:
        """Say whether another user has the name, or what visitors of it may reach."""
        for site in map(self.get, family(name)):
            if site is not None and site.mappings[0].owner.user_name != user:
                return True
        if name.type not in HOSTS or not name.host.startswith("*."):
            return False
        domain = domain_of(name.host)
        users = set(self._below.get(domain, ()))
        users |= self.below_elsewhere.get(domain, frozenset())
        return len(users) > (user in users)

    def is_full(self, name: PublicName) -> bool:
        """Say whether no entry more can be open under a name."""
        site = self.get(name)
        return site is not None and len(site.mappings) >= MAX_SITE_ENTRIES

    def has_group(self, name: PublicName, entry: MappingEntry) -> bool:
        """Say whether the entry's group is there, by other rules."""
        group = entry.rules.group if entry.rules else ""
        rivals = self.rivals(name, entry)
        return bool(group) and any(one.rules.group == group for one in rivals)

    def has_room(self, name: PublicName, entry: MappingEntry, user: str) -> bool:
        """Say whether an entry can be open there as it is."""
        return not (
            self.is_of_another(name, user)
            or self.is_full(name)
            or self.rivals(name, entry)
        )

    def rivals(self, name: PublicName, entry: MappingEntry) -> list[AnyMapping]:
        """Return what has to go before an entry can be open there."""
        site = self.get(name)
        rules = entry.rules or NO_RULES
        return [
            one
            for one in (site.mappings if site else ())
            if one.rules.path == rules.path
            and not (rules.group and _lasting(one.rules) == _lasting(rules))
        ]


class SitesWithout(Sites):
    """What would be open if one client had only what is added here.

    Shows what others have at the moment, but for what was removed here; changes
    nothing of it.
    """

    def __init__(self, sites: Sites, owner: ClientSession) -> None:
        vars(self).update(vars(sites))
        self._real = sites
        self._owner = owner
        self._added: dict[PublicName, list[AnyMapping]] = {}
        self._removed: set[AnyMapping] = set()

    def __contains__(self, name: object) -> bool:
        return isinstance(name, PublicName) and self.get(name) is not None

    def get(self, name: PublicName) -> Site | None:
        """Return what would be open under exactly this name."""
        site = self._real.get(name)
        kept = [
            one
            for one in (site.mappings if site else ())
            if one.owner is not self._owner and one not in self._removed
        ]
        kept += self._added.get(name, ())
        return Site(kept) if kept else None

    def add(self, mapping: AnyMapping) -> None:
        """Count a mapping of the client as open."""
        for name in mapping.names:
            self._added.setdefault(name, []).append(mapping)

    def remove(self, mapping: AnyMapping) -> None:
        """Count a mapping as open no more."""
        if mapping.owner is not self._owner:
            self._removed.add(mapping)
            return
        for name in mapping.names:
            self._added[name].remove(mapping)

    def replace(self, mapping: AnyMapping, entry: MappingEntry) -> None:
        """Give a mapping that was added here other rules."""
        mapping.entry = entry


class TakenNames:
    """Names that cannot be chosen: mapped, or found to be another program's.

    Those of ``own`` are free again for the entry that has them.
    """

    def __init__(
        self, mapped: Container[PublicName], own: Container[PublicName] = ()
    ) -> None:
        self._mapped = mapped
        self._own = own
        self.by_others: set[PublicName] = set()

    def __contains__(self, name: object) -> bool:
        is_mapped = name in self._mapped and name not in self._own
        return is_mapped or name in self.by_others


def _lasting(rules: Rules) -> Rules:
    return replace(rules, out=False, passed_s=0)


def is_same_but_for_state(one: MappingEntry, other: MappingEntry) -> bool:
    """Say whether entries differ at most in what a client says of the moment."""
    mine, yours = _lasting(one.rules or NO_RULES), _lasting(other.rules or NO_RULES)
    return mine == yours and one.type == other.type


def unruly(entry: MappingEntry) -> str:
    """Say which rules no entry of this type can have; empty if it may have its own."""
    rules = entry.rules
    if rules is None or entry.type == MappingType.HTTP:
        return ""
    if entry.type not in HOSTS:
        return "rules about visitors are of web services"
    if rules.requests or rules.max_body is not None or rules.path or rules.strip:
        return "of TLS that passes through, this server sees no request"
    return ""


def family(name: PublicName) -> Iterator[PublicName]:
    """Yield the names whose visitors may be the same."""
    yield name
    if name.type in HOSTS:
        hosts = [name.host]
        if not name.host.startswith("*."):
            hosts.append(f"*.{domain_of(name.host)}")
        for of_type in HOSTS:
            for host in hosts:
                yield PublicName(of_type, host)


def domain_of(host: str) -> str:
    """Return the domain right above a host name; of a wildcard its own."""
    return host.partition(".")[2]


class Memory(Protocol):
    """What several servers that act as one remember together."""

    def remember(self, key: str, value: bytes) -> None:
        """Have something small outlive this server, soon."""
        ...

    def recall(self, key: str) -> Awaitable[bytes]:
        """Return what one of them had remembered; empty for nothing.

        Awaited, it raises TunnelError where nobody answers.
        """
        ...


class Lives:
    """When what expires was published first; kept when its client leaves."""

    memory: Memory | None = None
    """Where the others have theirs, if there are any."""

    def __init__(self, most: int = KNOWN_LIVES) -> None:
        self._most = most
        self._began: dict[tuple[str, PublicName, str], tuple[int, float]] = {}

    def expires_at(self, user: str, name: PublicName, rules: Rules) -> float:
        """Return when an entry ends that is published now; on trio's clock.

        Another life than last time begins anew.
        """
        key = user, name, rules.path
        life_s, began = self._began.pop(key, (0, 0.0))
        if not rules.expires_s:
            return math.inf
        known = trio.current_time() - rules.passed_s
        began = min(began, known) if life_s == rules.expires_s else known
        self._began[key] = rules.expires_s, began
        if self.memory is not None:
            # They share no other clock; and what lives for hours may end a second off.
            at = time.time() - (trio.current_time() - began)
            self.memory.remember(_life(*key), f"{rules.expires_s} {at:.3f}".encode())
        if len(self._began) > self._most:
            del self._began[next(iter(self._began))]
        return began + rules.expires_s

    async def learn(self, user: str, name: PublicName, rules: Rules | None) -> None:
        """Know when an entry was published first, at whichever server.

        Raises:
            TunnelError: nobody says so.
        """
        if self.memory is None or rules is None or not rules.expires_s:
            return
        key = user, name, rules.path
        if said := (await self.memory.recall(_life(*key))).split():
            began = trio.current_time() - (time.time() - float(said[1]))
            self._began[key] = int(said[0]), began


def _life(user: str, name: PublicName, path: str) -> str:
    return f"life:{user}/{name.type.value}:{name.host}{path}"


class ChosenPorts:
    """Which ports were chosen for a client's entries; kept when the client leaves."""

    memory: Memory | None = None
    """Where other servers have theirs, if there are any."""

    def __init__(self, most: int = KNOWN_CHOICES) -> None:
        self._most = most
        self._first: dict[tuple[str, bytes, MappingEntry], int] = {}

    def note(self, mapping: OpenMapping) -> None:
        """Note where an entry was opened that named no port."""
        key = self._key(mapping.owner, mapping.entry)
        if key is None:
            return
        self._first.pop(key, None)
        self._first[key] = port = mapping.names[0].port
        if self.memory is not None:
            self.memory.remember(_choice(*key), str(port).encode())
        if len(self._first) > self._most:
            del self._first[next(iter(self._first))]

    async def learn(self, client: ClientSession, entry: MappingEntry) -> None:
        """Know which port the entry had last, at whichever server.

        Raises:
            TunnelError: nobody says so.
        """
        key = self._key(client, entry)
        if self.memory is None or key is None:
            return
        if said := await self.memory.recall(_choice(*key)):
            self._first[key] = int(said)

    def before(self, client: ClientSession, entry: MappingEntry) -> int:
        """Return the first port that the same entry of this client had; 0 for none."""
        key = self._key(client, entry)
        return self._first.get(key, 0) if key else 0

    def _key(
        self, client: ClientSession, entry: MappingEntry
    ) -> tuple[str, bytes, MappingEntry] | None:
        chosen = entry.type in (MappingType.TCP, MappingType.UDP) and not entry.port
        if not chosen or client.client_id == NO_CLIENT_ID:
            return None
        return client.user.name, client.client_id, entry


def _choice(user: str, client_id: bytes, entry: MappingEntry) -> str:
    what = sha256(encode_entry(entry)).hexdigest()[:32]
    return f"port:{user}/{client_id.hex()}/{what}"
