"""What a user has at one node of several, and what that leaves for another node.

Pure. Each node tells the others what its users have; each then holds its own users
against their limits less what they have elsewhere. Rates are divided: see ``flow_part``
and ``asked_part``.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from tunnel.access.limits import Limits

MAX_ADDRESSES: Final = 256
"""Addresses of a user's visitors that a node tells, those with most visitors; for
others the limit holds at each node by itself."""
LEAST_PART: Final = 0.01
"""Of a rate, that a node has in any case. What it wants shows in what waits, so no more
is needed than that nothing stands still for want of news; and even the nodes that use
theirs although it is not due to them stay within some percent of the rate."""

_MOST: Final = 1 << 62
_MONTH: Final = re.compile("[0-9]{4}-[0-9]{2}")
Json = Mapping[str, object]


class Flow(NamedTuple):
    """What nodes want of a rate in one direction."""

    enough: int = 0
    """Bytes per second that pass at the nodes where nothing has to wait."""
    waiting: int = 0
    """Connections that wait at the others, which use whatever they are given."""


class Held(NamedTuple):
    """What a user has that its account does not count, as in ``Use``."""

    sessions: int = 0
    waiting: int = 0
    ports: int = 0
    names: int = 0
    counted_ports: int = 0


class Use(NamedTuple):
    """What one user has at a node, or at several together, at the moment.

    What nobody holds against a limit (from ``connections`` on) is 0; bytes of the month
    are told all the same.
    """

    links: int = 0
    sessions: int = 0
    waiting: int = 0
    """Sessions without a link."""
    ports: int = 0
    names: int = 0
    counted_ports: int = 0
    """Ports that count against ``Rights.most_ports``."""
    connections: int = 0
    opens: int = 0
    """Connections per second that were asked for in the last second, refused or not."""
    datagrams: int = 0
    """The same of datagrams, dropped or not."""
    up: Flow = Flow()
    down: Flow = Flow()
    month: str = ""
    """The month of ``month_bytes``, such as ``2031-05``; empty if they are 0."""
    month_bytes: int = 0
    """Bytes of that month; they only grow, until the next month."""
    visitors: Mapping[str, int] = {}
    """Visitors at once by the key of their address (``access.visitors``)."""

    def bytes_in(self, month: str) -> int:
        """Return the bytes of a month: of another than this is known nothing."""
        return self.month_bytes if self.month == month else 0

    def to_json(self) -> dict[str, object]:
        """Return values that JSON has; what is 0 or empty is left out."""
        return {
            name: list(value) if isinstance(value, Flow) else value
            for name, value in self._asdict().items()
            if value != self._field_defaults[name]
        }

    @classmethod
    def from_json(cls, said: object) -> Use:
        """Read what ``to_json`` has made; what another version adds is skipped.

        Raises:
            ValueError: it is something else.
        """
        if not isinstance(said, Mapping):
            raise ValueError("no use of a user")
        known = {name: said[name] for name in cls._fields if name in said}
        values = {name: _READ.get(name, _count)(one) for name, one in known.items()}
        # The table says what is of which type.
        return cls(**values)  # type: ignore[arg-type]


NOTHING: Final = Use()


def total(uses: Iterable[Use]) -> Use:
    """Return what a user has at several nodes together.

    The bytes are those of the latest month among them: whoever is not there yet has
    none of it.
    """
    uses = tuple(uses)
    if len(uses) == 1:
        return uses[0]
    month = max((one.month for one in uses), default="")
    visitors = Counter[str]()
    for one in uses:
        visitors.update(one.visitors)
    sums = {name: sum(getattr(one, name) for one in uses) for name in _COUNTS}
    return Use(
        **sums,
        up=_flow(one.up for one in uses),
        down=_flow(one.down for one in uses),
        month=month,
        month_bytes=sum(one.bytes_in(month) for one in uses),
        visitors=dict(visitors),
    )


# What is left for a node --------------------------------------------------------------


def less(limits: Limits, elsewhere: Use, month: str) -> Limits:
    """Return what is left of a user's limits for a node, which may be below 0.

    Of rates it leaves all, and of visitors: those count by address.

    Args:
        limits: what the user may have in all.
        elsewhere: what it has at the other nodes.
        month: the present one, at this node.
    """
    most, bytes_left = limits.connections, limits.month
    if most is not None:
        most -= elsewhere.connections
    if bytes_left is not None:
        bytes_left -= elsewhere.bytes_in(month)
    return replace(
        limits,
        links=limits.links - elsewhere.links,
        sessions=limits.sessions - elsewhere.sessions,
        waiting=limits.waiting - elsewhere.waiting,
        ports=limits.ports - elsewhere.ports,
        names=limits.names - elsewhere.names,
        connections=most,
        month=bytes_left,
    )


def flow_part(rate: int, here: Flow, elsewhere: Flow, connections: int) -> float:
    """Return the part of a rate with which bytes may pass at a node.

    Where all wait, the rate is divided as one server does it: in proportion to the
    connections that wait, so each gets the same. What passes at nodes that have enough
    is taken off before. Division by what each has used would not do: of two that both
    use all that they get, who came later would stay with little for ever.

    A node that has enough may use as much as if all of its connections waited.

    Args:
        rate: bytes per second in all.
        here: what this node has told.
        elsewhere: what all others have.
        connections: that the user has here.
    """
    mine = here.waiting or max(connections, 1)
    left = 1 - elsewhere.enough / rate
    return min(max(left * mine / (mine + elsewhere.waiting), LEAST_PART), 1.0)


def asked_part(rate: int, here: int, elsewhere: int) -> float:
    """Return the part of a rate with which a node may let things begin, or pass.

    What is over is refused and not delayed, so what is wanted is known: it is what was
    asked for. If that is more than the rate, each node has the same part of it granted,
    as of whoever asks one server; if not, a node has all that the others do not use.

    Args:
        rate: things per second in all.
        here: asked for at this node, per second.
        elsewhere: the same at all others.
    """
    left = 1 - elsewhere / rate
    in_turn = here / (here + elsewhere) if here else 0.0
    return min(max(left, in_turn, LEAST_PART), 1.0)


# Reading ------------------------------------------------------------------------------


def _count(value: object) -> int:
    # bool is an int, and is none here.
    if type(value) is not int or not 0 <= value <= _MOST:
        raise ValueError("no count")
    return value


def _read_flow(value: object) -> Flow:
    if not isinstance(value, list | tuple) or len(value) != len(Flow._fields):
        raise ValueError("no flow")
    return Flow(*map(_count, value))


def _read_month(value: object) -> str:
    if not isinstance(value, str) or not (_MONTH.fullmatch(value) or not value):
        raise ValueError("no month")
    return value


def _read_visitors(value: object) -> dict[str, int]:
    if not isinstance(value, Mapping):
        raise ValueError("no visitors")
    return {str(key): _count(one) for key, one in value.items()}


def _flow(flows: Iterable[Flow]) -> Flow:
    pairs = tuple(flows)
    return Flow(sum(one.enough for one in pairs), sum(one.waiting for one in pairs))


_READ: Final = {
    "up": _read_flow,
    "down": _read_flow,
    "month": _read_month,
    "visitors": _read_visitors,
}
_COUNTS: Final = tuple(
    name for name in Use._fields if name not in _READ and name != "month_bytes"
)
