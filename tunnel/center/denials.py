"""What users had no right to: one line in the log for each, and words for the peer."""

from __future__ import annotations

import logging
import time
from collections import Counter
from typing import TYPE_CHECKING, Final, Protocol

from tunnel.access.guesses import Failures
from tunnel.addresses import EVERYWHERE, WILDCARDS
from tunnel.errors import Code
from tunnel.log import log_event
from tunnel.platform.addresses import OWN_ADDRESSES

if TYPE_CHECKING:
    from tunnel.access.users import User
    from tunnel.addresses import Address
    from tunnel.center.who import Who
    from tunnel.net.dial import Allow

MAX_LINES: Final = 100
"""Of one user at once: a program that walks through a network meets its wall early."""
LINE_EVERY_S: Final = 1.0
"""One more line is written after this time; the next one says how many were not."""
MAX_REMEMBERED: Final = 4_096
"""Users whose lines are counted, in under 1 MiB."""

NO_RIGHT: Final = " has no right "
"""What stands in the reason of each refusal that is logged here."""

logger = logging.getLogger("tunnel.rights")

_LINES: Final = Failures[str](MAX_LINES, MAX_REMEMBERED, LINE_EVERY_S)
_UNSAID: Final = Counter[str]()


class Asker(Protocol):
    """A client, as far as its rights and the log need it."""

    user: User

    @property
    def who(self) -> Who:
        """Who it is, for the log."""


class Reach:
    """Where one offer of a client may lead, by its user's rights as they are then.

    It is asked as an ``Allow``, about each address that a host was resolved to.

    Args:
        asker: whose user's rights count.
        asked: the host as the client wrote it; "" of datagrams, which have their own.
    """

    __slots__ = ("_asked", "_asker", "missing")

    def __init__(self, asker: Asker, asked: str = "") -> None:
        self._asker = asker
        self._asked = asked
        self.missing = ""
        """The right that the last answer was short of."""

    def __call__(self, ip: str, port: int) -> bool:
        """Say whether the user may reach this address of the host that was asked."""
        return self.leads_to(self._asked, ip, port)

    def leads_to(self, asked: str, ip: str, port: int) -> bool:
        """Say whether the user may reach this address of that host."""
        rights = self._asker.user.rights
        self.missing = rights.may_reach(asked, ip, port, OWN_ADDRESSES)
        return not self.missing

    def of_name(self, asked: Address) -> Reach:
        """Return the same for a name; ``missing`` is set if it may not be looked up."""
        reach = Reach(self._asker, asked.host)
        rights = self._asker.user.rights
        reach.missing = rights.may_look_up(asked.host, asked.port)
        return reach

    def may_listen(self, host: str, of_server: str) -> bool:
        """Say whether the user may have any port there, for the peer of a BIND.

        Args:
            host: where it is.
            of_server: where the server's links come in.
        """
        rights = self._asker.user.rights
        self.missing = rights.may_publish("tcp", host, range(1))
        if self.missing and of_server in (host, EVERYWHERE, *WILDCARDS):
            self.missing = rights.may_publish("tcp", "", range(1))
        return not self.missing

    def denied(self, what: str) -> str:
        """Log that the missing right was asked for; return the reason for the peer."""
        return denied(self._asker, what, self.missing)


def denial(allow: Allow, code: Code, what: str) -> str:
    """Log and return the reason if a refusal is for want of a right; else ""."""
    if code is Code.NOT_ALLOWED and isinstance(allow, Reach) and allow.missing:
        return allow.denied(what)
    return ""


def denied(asker: Asker, what: str, right: str, code: Code = Code.NOT_ALLOWED) -> str:
    """Log what a user was refused for want of a right; return the reason for the peer.

    The reason is always given; lines are bounded for each user.
    """
    name, now = asker.user.name, time.monotonic()
    if _LINES.wait_s(name, now):
        _UNSAID[name] += 1
    else:
        _LINES.failed(name, now)
        log_event(logger, logging.INFO, "right.missing", **asker.who,
            what=what, right=right, code=code.name,
            unsaid=_UNSAID.pop(name, None))  # fmt: skip
    return f"{name}{NO_RIGHT}{right}"
