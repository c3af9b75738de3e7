"""What is asked of an authority now, and when to look again. No IO, no clock.

All times are seconds since 1970. The ledger says what was asked and what failed; it is
kept over restarts, so that neither a restart nor a crash asks more than is allowed.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

DAY_S: Final = 86_400.0
WEEK_S: Final = 7 * DAY_S
"""In which new names are counted, as Let's Encrypt counts its own 50 of a domain."""
NEW_OF_USER: Final = 5
"""Names of one user in a week for which a first certificate is asked: enough for who
tries things out, and a user who makes up names takes an eighth of what there is."""
NEW_OF_ALL: Final = 40
"""The same of all users: below the 50 a week that Let's Encrypt gives one registered
domain, so that the owner can still ask for some by other means."""
RENEW_AT: Final = 1 / 3
"""The part of a certificate's life that is left when it is renewed, as authorities
advise: a month of 90 days, in which renewing may fail for weeks."""
FIRST_RETRY_S: Final = 60.0
RETRY_FACTOR: Final = 3.0
"""From try to try: 1, 3, 9, 27 minutes … Let's Encrypt takes 5 failures of a name in an
hour, and these are 5."""
MOST_RETRY_S: Final = DAY_S
MOST_AUTHORITY_S: Final = 3_600.0
"""Where the authority itself did not answer, which is nobody's fault, and passes."""
JITTER: Final = 0.25
"""The part by which a pause differs either way: many servers fail at once."""
MOST_RETRY_AFTER_S: Final = WEEK_S
"""What an authority may ask for with Retry-After and is believed."""
AUTHORITY: Final = ""
"""Under this name the ledger keeps what the authority itself failed at."""


class Held(NamedTuple):
    """A certificate that is there."""

    starts_at: float
    ends_at: float

    @property
    def renew_at(self) -> float:
        """When it is to be renewed."""
        return self.ends_at - (self.ends_at - self.starts_at) * RENEW_AT


class Fault(NamedTuple):
    """That a name has failed, again and again."""

    tries: int
    again_at: float
    reason: str = ""


class Asked(NamedTuple):
    """That a first certificate was asked for a name."""

    user: str
    at: float


@dataclass(slots=True)
class Ledger:
    """What was asked and what failed."""

    asked: dict[str, Asked] = field(default_factory=dict)
    """New names by name, of the last week."""
    faults: dict[str, Fault] = field(default_factory=dict)
    """By name."""
    closed_until: float = 0.0
    """No new name before: what was asked is not known."""

    def book(self, name: str, user: str, now: float) -> None:
        """Note that a name without a certificate is asked for; retries count once."""
        self.forget(now)
        self.asked.setdefault(name, Asked(user, now))

    def forget(self, now: float) -> None:
        """Drop what counts no more."""
        old = [name for name, one in self.asked.items() if one.at <= now - WEEK_S]
        for name in old:
            del self.asked[name]
        for name, fault in tuple(self.faults.items()):
            if fault.again_at <= now - WEEK_S:
                del self.faults[name]

    def failed(
        self, name: str, reason: str, now: float, chance: float, after_s: float = 0.0
    ) -> float:
        """Note a failure; return when the name is asked for again.

        Args:
            name: ``AUTHORITY`` holds back all names.
            reason: in words.
            now: the time.
            chance: from 0 to 1, for the jitter.
            after_s: what the authority asked for with Retry-After.
        """
        before = self.faults.get(name)
        tries = before.tries + 1 if before else 1
        most = MOST_RETRY_S if name else MOST_AUTHORITY_S
        pause_s = FIRST_RETRY_S * RETRY_FACTOR ** min(tries - 1, 20)
        pause_s = min(pause_s, most) * (1 - JITTER + 2 * JITTER * chance)
        again_at = now + max(pause_s, min(after_s, MOST_RETRY_AFTER_S))
        self.faults[name] = Fault(tries, again_at, reason)
        return again_at

    def succeeded(self, name: str) -> None:
        """Note that a name has its certificate, and that the authority answers."""
        self.faults.pop(name, None)
        self.faults.pop(AUTHORITY, None)


class Ask(NamedTuple):
    """A certificate that is to be asked for."""

    name: str
    user: str
    is_new: bool
    tries: int
    """How often this has failed."""


class Limited(NamedTuple):
    """A new name that has to wait."""

    why: str
    until: float


class Plan(NamedTuple):
    """What there is to do."""

    asks: tuple[Ask, ...]
    """Now, the most urgent first."""
    limited: Mapping[str, Limited]
    """New names that have to wait."""
    look_at: float
    """When there may be more to do; infinite if only a change brings it."""


def plan(
    wanted: Mapping[str, str],
    ledger: Ledger,
    held: Mapping[str, Held],
    now: float,
) -> Plan:
    """Return what is to be asked for.

    Args:
        wanted: the names of certificates, and the user who has published each.
        ledger: what was asked, and what failed.
        held: the certificates that are there.
        now: the time.
    """
    look_at = math.inf
    asks: list[tuple[float, Ask]] = []
    limited: dict[str, Limited] = {}
    count = _Count(ledger, now)
    shut = ledger.faults.get(AUTHORITY)
    for name, user in wanted.items():
        have = held.get(name)
        fault = ledger.faults.get(name)
        due = now if have is None or have.ends_at <= now else have.renew_at
        for one in (fault, shut):
            due = max(due, one.again_at) if one else due
        if due > now:
            look_at = min(look_at, due)
            continue
        is_new = have is None or have.ends_at <= now
        if is_new and (free_at := count.free_at(name, user)) > now:
            limited[name] = Limited(count.why(user), free_at)
            look_at = min(look_at, free_at)
            continue
        # What is about to end goes first, and new names wait in their order.
        urgency = math.inf if have is None or is_new else have.ends_at
        asks.append((urgency, Ask(name, user, is_new, fault.tries if fault else 0)))
        if is_new:
            count.add(name, user, now)
    asks.sort(key=lambda one: one[0])
    return Plan(tuple(ask for _, ask in asks), limited, look_at)


class _Count:
    """New names of the last week."""

    def __init__(self, ledger: Ledger, now: float) -> None:
        self._now = now
        self._closed_until = ledger.closed_until
        self._asked = {
            name: one for name, one in ledger.asked.items() if one.at > now - WEEK_S
        }

    def add(self, name: str, user: str, now: float) -> None:
        self._asked.setdefault(name, Asked(user, now))

    def free_at(self, name: str, user: str) -> float:
        """Return when a new name may be asked for."""
        if name in self._asked:  # it was counted
            return self._now
        of_user = [one.at for one in self._asked.values() if one.user == user]
        of_all = [one.at for one in self._asked.values()]
        return max(
            self._closed_until,
            _free_at(of_user, NEW_OF_USER, self._now),
            _free_at(of_all, NEW_OF_ALL, self._now),
        )

    def why(self, user: str) -> str:
        if self._closed_until > self._now:
            return "what was asked this week is not known"
        users = Counter(one.user for one in self._asked.values())
        if users[user] >= NEW_OF_USER:
            return f"{NEW_OF_USER} new names of this user in a week"
        return f"{NEW_OF_ALL} new names in a week"


def _free_at(times: list[float], most: int, now: float) -> float:
    """Return when less than ``most`` of what was asked are a week old or less."""
    if len(times) < most:
        return now
    return sorted(times)[-most] + WEEK_S
