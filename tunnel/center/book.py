"""What is open at a center-server, whose it is, and how much each user has of it.

Decides nothing: that is the business of ``mappings``, which writes this book.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final, Protocol
from weakref import WeakKeyDictionary

from tunnel.center.denials import denied
from tunnel.center.endpoints import PublicName
from tunnel.center.sites import ChosenPorts, Lives, OpenMapping, Site, Sites
from tunnel.errors import Code, TunnelError
from tunnel.net.notify import Notify
from tunnel.proto.frames import MappingAnswer, MappingType

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Container, Iterable, Mapping
    from socket import socket

    from tunnel.center.client_session import ClientSession
    from tunnel.center.endpoints import EndpointType
    from tunnel.center.owner import Owner
    from tunnel.center.sites import AnyMapping, Memory
    from tunnel.proto.frames import MappingEntry

KNOWN_NAMES: Final = 10_000
"""Host names whose clients have left that a server remembers, to say so."""


class Shared(Protocol):
    """The tables of other nodes, of which this one has to be told, and they of it."""

    lose: Callable[[OpenMapping], None]
    """Called when another has taken a mapping of this one over."""
    memory: Memory

    async def look_up(self, names: Iterable[PublicName]) -> None:
        """Have what others have of these names stand among what is open here."""
        ...

    async def claim(self, mapping: OpenMapping) -> bool:
        """Tell the others what is open here; False: another was faster."""
        ...

    def release(self, mapping: OpenMapping) -> None:
        """Tell the others, soon, that it is open no more."""
        ...

    def evict(self, mapping: AnyMapping) -> None:
        """Have what another has go, once its name is claimed here."""
        ...

    def left(self, names: Iterable[PublicName]) -> None:
        """Tell the others, soon, that the client of these names has left."""
        ...

    def has_left(self, name: PublicName) -> bool:
        """Say whether a client of this name has left, here or at another."""
        ...


class Book:
    """All mappings of a center-server that are open."""

    _tries = False
    """Whether nothing is done: what would be is said."""

    def __init__(
        self,
        types: Mapping[int, EndpointType | None],
        users: Container[str] = (),
    ) -> None:
        self.types = {of: how for of, how in types.items() if how is not None}
        """What is offered: how entries of each type are opened."""
        self._users = users
        self._counted = Counter[str]()
        """Of each user: ports that count against ``Rights.most_ports``."""
        self.sites = self._open = Sites()
        self._lives = Lives()
        self._chosen = ChosenPorts()
        self._by_owner: dict[ClientSession, dict[str, OpenMapping]] = {}
        """The same, by owner and by the name of the entry."""
        self._count = 0
        self._ports: Counter[str] = Counter()
        """Public ports by user."""
        self._names: Counter[str] = Counter()
        """Other names by user."""
        self.inherit: Callable[[PublicName], Awaitable[list[socket]]] | None = None
        """Returns what another process of this machine leaves of a port."""
        self.closed = Notify()
        """Rings when a mapping is open no more."""
        self._left: dict[PublicName, None] = {}
        self._shared: Shared | None = None
        self._lost: WeakKeyDictionary[ClientSession, set[PublicName]] = (
            WeakKeyDictionary()
        )
        """What another client took from one that lives on: nobody takes it back."""

    def share(self, shared: Shared | None) -> None:
        """Be one of several tables: what the others have stands among ``sites``.

        None: be alone again.
        """
        self._shared = shared
        if shared is not None:
            shared.lose = self.lose
        memory = None if shared is None else shared.memory
        self._lives.memory = self._chosen.memory = memory

    def __len__(self) -> int:
        return self._count

    def counts(self) -> dict[str, Counter[str]]:
        """Return how much of each kind each user has: see ``Held``."""
        counted = self._counted
        return {"ports": self._ports, "names": self._names, "counted_ports": counted}

    def owner(self, name: PublicName) -> Owner | None:
        """Return the client that has this name, here or at another node."""
        site = self._open.get(name)
        return site.mappings[0].owner if site else None

    def learn(self, name: PublicName) -> Awaitable[None] | None:
        """Return what asks the other nodes who has this name; None without any.

        Awaited, it raises TunnelError where nobody answers.
        """
        return None if self._shared is None else self._shared.look_up((name,))

    def _own_at(self, name: PublicName) -> list[OpenMapping]:
        """Return what clients of this server have open under a name."""
        site = self._open.get(name)
        found = site.mappings if site is not None else ()
        return [one for one in found if isinstance(one, OpenMapping)]

    def find(self, of_type: MappingType, host: str) -> Site | None:
        """Return what is open under a host name, or under a wildcard for it."""
        found = self._open.get(PublicName(of_type, host))
        return found or self._open.get(_names_of(of_type, host)[1])

    def is_known(self, of_type: MappingType, host: str) -> bool:
        """Say whether there was such a host name; its client has left."""
        names = _names_of(of_type, host)
        if self._shared is not None:
            return any(map(self._shared.has_left, names))
        return any(name in self._left for name in names)

    def _check_limit(self, client: ClientSession, entry: MappingEntry) -> None:
        """Refuse what is more than the client's user may have."""
        account = client.account
        counts, count = self._count_of(entry)
        ports = counts is self._ports
        most = account.limits.ports if ports else account.limits.names
        older = self._by_owner.get(client, {}).get(entry.name)
        if older is not None and self._count_of(older.entry)[0] is counts:
            count -= self._count_of(older.entry)[1]
        here = account.here.ports if ports else account.here.names
        if count > 0 and counts[account.name] + count > here:
            what = f"{most} public ports" if ports else f"{most} names"
            raise TunnelError(Code.RESOURCE, account.refused(what))

    def _count_of(self, entry: MappingEntry) -> tuple[Counter[str], int]:
        """Return where an entry counts, and for how many."""
        if entry.type in (MappingType.TCP, MappingType.UDP):
            return self._ports, entry.count
        return self._names, 1

    def _too_many(
        self, client: ClientSession, entry: MappingEntry, count: int
    ) -> MappingAnswer | None:
        """Say that the user has all of the server's ports that it may have.

        That passes: RESOURCE is asked for again.
        """
        name = client.user.name
        older = self._by_owner.get(client, {}).get(entry.name)
        held = self._counted[name] - (older.counted if older else 0)
        held += client.account.elsewhere.counted_ports
        if not count or held + count <= client.user.rights.most_ports:
            return None
        right = f"ports:{held + count}"
        why = denied(client, f"{count} more ports", right, Code.RESOURCE)
        return MappingAnswer(Code.RESOURCE, reason=why)

    def lose(self, mapping: OpenMapping) -> None:
        """Close a mapping whose name another node has claimed since."""
        if self._by_owner.get(mapping.owner, {}).get(mapping.entry.name) is mapping:
            self._lose(mapping)

    def _lose(self, mapping: OpenMapping) -> None:
        """Take a mapping from an owner that may come back: it hears TAKEN_OVER then."""
        self._close(mapping)
        self._lost.setdefault(mapping.owner, set()).update(mapping.names)

    def _close(self, mapping: OpenMapping) -> None:
        self._take_out(mapping)
        mapping.owner.session.tallies.end(mapping.entry.name)
        mapping.endpoint.close()

    def _take_out(self, mapping: OpenMapping) -> None:
        if self._shared is not None and not self._tries:
            self._shared.release(mapping)
        self._open.remove(mapping)
        of_owner = self._by_owner[mapping.owner]
        del of_owner[mapping.entry.name]
        if not of_owner:
            del self._by_owner[mapping.owner]
        self._count -= 1
        self.closed.ring()
        self._counted[mapping.owner.user.name] -= mapping.counted
        counts, count = self._count_of(mapping.entry)
        user = mapping.owner.user.name
        counts[user] -= count
        if not counts[user]:
            del counts[user]

    def _remember(self, mapping: OpenMapping) -> None:
        if not mapping.names[0].port:
            if self._shared is not None and not self._tries:
                self._shared.left(mapping.names)
            self._left.update(dict.fromkeys(mapping.names))
            while len(self._left) > KNOWN_NAMES:
                del self._left[next(iter(self._left))]


async def tell_all(table: Book) -> None:
    """Tell the other nodes of all that is open here, before they have anything.

    Raises:
        DirectoryAwayError: nobody was told of the rest.
    """
    for mappings in tuple(table._by_owner.values()):
        for mapping in tuple(mappings.values()):
            if table._shared is not None:
                await table._shared.look_up(mapping.names)
                if mapping in table._own_at(mapping.names[0]):
                    await table._shared.claim(mapping)
                if mapping not in table._own_at(mapping.names[0]):
                    table._shared.release(mapping)  # it was closed meanwhile


async def until_closed(table: Book, client: ClientSession) -> None:
    """Wait until a client has nothing open here any more."""
    while client in table._by_owner:
        await table.closed.wait()


def give_up_ports(table: Book, name: PublicName) -> Mapping[PublicName, list[int]]:
    """Close the mapping that has a port, if its client is elsewhere by now.

    Returns copies of the sockets of all its ports, which the caller owns; whoever waits
    to be accepted waits there. Empty: no such client has it.
    """
    for mapping in table._own_at(name):
        if mapping.owner.departed.is_set():
            copies = mapping.endpoint.copies()
            table._close(mapping)
            return dict(zip(mapping.names, copies, strict=True))
    return {}


def _names_of(of_type: MappingType, host: str) -> tuple[PublicName, PublicName]:
    wildcard = f"*.{host.partition('.')[2]}"
    return PublicName(of_type, host), PublicName(of_type, wildcard)
