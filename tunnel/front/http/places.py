"""What a host name asks of its visitors: the rules of its entries (protocol.md#rules).

    place_of    by path        400, 404
    admit       by visitor     410, 403, 429, 413
    member      by load        503

A name whose one entry has no rules has no places, and costs nothing here.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from enum import Enum
from http import HTTPStatus
from math import ceil
from typing import TYPE_CHECKING, Final, Protocol
from urllib.parse import unquote

import trio

from tunnel.access.visitors import address_key
from tunnel.addresses import parse_ip, unmapped
from tunnel.front.http.bodies import LimitedBody
from tunnel.front.http.pages import HttpError, bad_request
from tunnel.log import log_event
from tunnel.net.listen import LOG

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable

    from tunnel.addresses import Address
    from tunnel.front.http.server import Visit
    from tunnel.net.relay import ResettableStream
    from tunnel.proto.rules import Network, Rules

MAX_REMEMBERED: Final = 65_536
"""Addresses whose requests are counted, in some 20 MB for all names of a server. With
more, the one that came longest ago is forgotten, and may come anew."""
RETRY_AFTER_S: Final = 5
SHUNNED_S: Final = 5.0
"""For so long a member that took no connection is asked last: as often as a check asks,
so that one request in 5 s pays for learning that it is back."""

_ROUNDING_S: Final = 1e-6
_LEVELS: Final = re.compile(r"/+")


class State(Enum):
    """Whether a member of a group can be asked."""

    READY = "its client has a link"
    WAITING = "its client has just lost its link, and may come back at once"
    AWAY = "its client is not connected"
    OUT = "its client says that the service behind it does not answer"


class Member(Protocol):
    """One of the entries that serve a place together."""

    in_flight: int
    """Requests that have no whole answer."""
    turn: int
    """When it was chosen last, in choices."""
    shunned_until: float
    """It took no connection, and is asked last until then; on trio's clock."""

    @property
    def when_lost(self) -> set[Callable[[], None]]:  # pragma: no cover
        """Called when its link is lost; who adds removes."""
        ...

    @property
    def key(self) -> Hashable:  # pragma: no cover
        """Equal as long as a connection that was opened may be used again."""
        ...

    @property
    def state(self) -> State:  # pragma: no cover
        """Whether it can be asked now."""
        ...

    async def open(self, visitor: Address) -> ResettableStream:  # pragma: no cover
        """Open for a visitor; raises StreamError."""
        ...


class Rates:
    """The requests of each address at each place, let pass as evenly as is asked."""

    def __init__(self, most: int = MAX_REMEMBERED) -> None:
        self._most = most
        # The time at which all that an address has used is given back to it, and
        # whether it was told off; in the order of coming, so that the first is oldest.
        self._given_back: dict[tuple[Hashable, str], tuple[float, bool]] = {}

    def wait_s(
        self, place: Hashable, host: str, requests: int, per_s: float
    ) -> tuple[float, bool]:
        """Count a request; or return how long it is too early, and if that is news."""
        key, now = (place, address_key(host)), trio.current_time()
        at, told = self._given_back.pop(key, (now, False))
        at = max(at, now)
        each_s = per_s / requests
        wait_s = at + each_s - now - per_s
        if wait_s > _ROUNDING_S:
            self._given_back[key] = at, True
            return wait_s, not told
        self._given_back[key] = at + each_s, False
        if len(self._given_back) > self._most:
            del self._given_back[next(iter(self._given_back))]
        return 0.0, False


@dataclass(eq=False, slots=True)
class Place:
    """What is below one path of a name: one entry, or the members of a group."""

    name: str
    """The host name, as in the log."""
    rules: Rules
    """The same for all members, but for who is out."""
    expires_at: float
    """On trio's clock."""
    members: list[Member]
    turns: int = 0
    """How often one was chosen."""
    told_over: bool = False
    """That it has expired was logged."""

    @property
    def path(self) -> str:
        """Below which it is; empty for everything."""
        return self.rules.path

    def admit(self, visitor: Address, rates: Rates) -> None:
        """Let a visitor ask once more.

        Raises:
            HttpError: 410, 403 or 429.
        """
        rules = self.rules
        if trio.current_time() >= self.expires_at:
            if not self.told_over:
                self.told_over = True
                log_event(LOG, logging.INFO, "name.expired", address=visitor.host,
                    host=self.name, path=self.path or "/")  # fmt: skip
            words = "this was published for a while, and the while is over"
            raise HttpError(HTTPStatus.GONE, words)
        if (rules.allow or rules.deny) and not _is_allowed(visitor, rules):
            log_event(LOG, logging.WARNING, "visitor.denied", address=visitor.host,
                host=self.name, path=self.path or "/")  # fmt: skip
            # One line for each connection, and no more.
            words = "this is not open to your address"
            raise HttpError(HTTPStatus.FORBIDDEN, words, close=True)
        if rules.requests:
            self._count(visitor, rates)

    def _count(self, visitor: Address, rates: Rates) -> None:
        requests, per_s = self.rules.requests, self.rules.per_s
        place = self.name, self.path
        wait_s, is_news = rates.wait_s(place, visitor.host, requests, per_s)
        if is_news:
            log_event(LOG, logging.WARNING, "visitor.slowed", address=visitor.host,
                host=self.name, requests=requests, seconds=per_s)  # fmt: skip
        if wait_s:
            raise HttpError(
                HTTPStatus.TOO_MANY_REQUESTS, "too many requests from your address",
                headers=[("Retry-After", str(ceil(wait_s)))],
            )  # fmt: skip

    def limit_body(self, visit: Visit) -> None:
        """Have the body of a request end with 413 where it passes its limit.

        Raises:
            HttpError: 413, it says that it will.
        """
        most, request = self.rules.max_body, visit.request
        if most is None or request is None or visit.body.done:
            return
        size = request.body.size
        if size is None:
            visit.body = LimitedBody(request.body, most)
        elif size > most:
            words = f"a request's body may have {most} bytes here"
            status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE
            raise HttpError(status, words, close=True)

    def member(self, kept: Hashable, visitor: Address) -> Member:
        """Choose who is asked: who has the visitor's connection, or the least to do.

        Args:
            kept: of the connection that the visitor has; None for none.
            visitor: for whom.

        Raises:
            HttpError: 503, nobody can be asked.
        """
        ready: list[Member] = []
        waiting: list[Member] = []
        is_away = False
        for one in self.members:
            state = one.state
            if state is State.READY:
                if (one.key, visitor.host) == kept:
                    return one
                ready.append(one)
            elif state is State.WAITING:
                waiting.append(one)
            is_away = is_away or state is State.AWAY
        if not (found := ready or waiting):
            raise HttpError(
                HTTPStatus.SERVICE_UNAVAILABLE,
                "the client that publishes this is not connected at the moment"
                if is_away else
                "the service behind this does not answer at the moment",
                headers=[("Retry-After", str(RETRY_AFTER_S))],
            )  # fmt: skip
        return self._least_busy(found)

    def other(self, tried: list[Member]) -> Member | None:
        """Choose who is asked when others were in vain; None: nobody is left."""
        found = [one for one in self.members if _is_ready(one) and one not in tried]
        return self._least_busy(found) if found else None

    def has_other(self, tried: list[Member]) -> bool:
        """Say whether ``other`` would find somebody."""
        return any(_is_ready(one) and one not in tried for one in self.members)

    def _least_busy(self, found: list[Member]) -> Member:
        def order(one: Member) -> tuple[bool, int, int]:
            until = one.shunned_until
            return bool(until) and trio.current_time() < until, one.in_flight, one.turn

        chosen = min(found, key=order)
        self.turns += 1
        chosen.turn = self.turns
        return chosen

    def stripped(self, target: str) -> str:
        """Return the path and query that the target sees."""
        if not (self.rules.strip and self.path):
            return target
        rest = target[len(self.path) :]
        return rest if rest.startswith("/") else f"/{rest}"


class Places:
    """The places of one name.

    Args:
        places: no two of one path.
        rates: shared by all names of a server.
    """

    def __init__(self, places: Iterable[Place], rates: Rates) -> None:
        self.rates = rates
        self._places = sorted(places, key=lambda place: -len(place.path))

    def place_of(self, target: str) -> Place:
        """Return the place of a request's target.

        Raises:
            HttpError: 404, there is none. 400, the target's own reading of the path
                may lead to another: no rule could be relied upon.
        """
        first = self._places[0]
        if not first.path:
            return first
        path = target.partition("?")[0]
        found = self._below(path)
        if found is not self._below(_plain(path)):
            raise bad_request("the path can be read in more than one way")
        if found is None:
            raise HttpError(HTTPStatus.NOT_FOUND, "nothing is published at this path")
        return found

    def admit_connection(self, visitor: Address) -> Member:
        """Let a visitor's connection pass through, of which no request is seen.

        Raises:
            HttpError: 410, 403 or 503.
        """
        place = self._places[-1]
        place.admit(visitor, self.rates)
        return place.member(None, visitor)

    def _below(self, path: str) -> Place | None:
        for place in self._places:
            below = place.path
            if not below or path == below or path.startswith(f"{below}/"):
                return place
        return None


def _is_ready(member: Member) -> bool:
    return member.state is State.READY


def _plain(path: str) -> str:
    """Return a path as the most lenient of targets reads it."""
    levels: list[str] = []
    for level in _LEVELS.split(unquote(path, "latin-1").replace("\\", "/")):
        name = level.partition(";")[0]
        if name == "..":
            del levels[-1:]
        elif name not in ("", "."):
            levels.append(name)
    return "/" + "/".join(levels)


def _is_allowed(visitor: Address, rules: Rules) -> bool:
    ip = parse_ip(visitor.host)
    if ip is None:  # a unix peer has no address that could be allowed
        return not rules.allow
    ip = unmapped(ip)

    def is_in(networks: tuple[Network, ...]) -> bool:
        return any(ip in network for network in networks)

    return not is_in(rules.deny) and (not rules.allow or is_in(rules.allow))
