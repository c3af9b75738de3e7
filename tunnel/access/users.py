"""Who may log in, with what rights and limits, and until when."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from tunnel.access.limits import Limits
from tunnel.access.right_words import USER_NAME
from tunnel.access.rules import NO_RIGHT, Rights
from tunnel.errors import UsageError
from tunnel.words import meant

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tunnel.proto.proofs import Verifier

OWNER: Final = "default"
"""The user that is made with the server and may do everything."""
RESERVED: Final = frozenset((OWNER, "www", "api", "admin"))
"""Names that nobody is invited under: a visitor would take their hosts for the
server's own."""
MAX_USERS: Final = 10_000
"""Of one server, in its file and in that of their months: some megabytes."""


@dataclass(frozen=True, slots=True)
class Once:
    """A token that works for one machine, which then makes a token of its own."""

    client_id: bytes = b""
    """The machine that has made one; empty before that."""
    own: Verifier | None = None
    """Of the token that it has made. Once it logs in with it, this is over."""


@dataclass(frozen=True, slots=True)
class User:
    """A name, the verifier of its token, and what it may. Default: no right."""

    name: str
    verifier: Verifier
    rights: Rights = NO_RIGHT
    limits: Limits = field(default_factory=Limits)
    expires_at: float | None = None
    """Seconds of Unix time; None is never."""
    once: Once | None = None
    """Set while the token is that of ``--once``."""
    was: str = ""
    """The name before, of a user that was renamed; empty for others."""
    place: str = field(default="", compare=False)
    """FILE:LINE of a user whom a configuration file has; no command changes it."""

    @property
    def verifiers(self) -> tuple[Verifier, ...]:
        """The verifiers of the tokens with which the user logs in: one, or two."""
        own = self.once.own if self.once else None
        return (self.verifier,) if own is None else (self.verifier, own)

    def is_over(self, now: float) -> bool:
        """Say whether the user's time is over at ``now``, in seconds of Unix time."""
        return self.expires_at is not None and now >= self.expires_at


class Users(Mapping[str, User]):
    """The users of a running server: one object, whose content changes.

    Args:
        now: the users that it has, by name.
    """

    def __init__(self, now: Mapping[str, User]) -> None:
        self._now = dict(now)

    def __getitem__(self, name: str) -> User:
        return self._now[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._now)

    def __len__(self) -> int:
        return len(self._now)

    def replace(self, now: Mapping[str, User]) -> None:
        """Have these users and no others from now on."""
        self._now = dict(now)


def check_name(name: str, place: str = "") -> None:
    """Check a name that a user may be invited under.

    Raises:
        UsageError: it is none, or one that is kept for the server; names ``place``.
    """
    place = f"{place}: " if place else ""
    if not USER_NAME.fullmatch(name):
        why = "it has 1 to 32 of a-z, 0-9 and -"
        close = re.sub(r"[^a-z0-9-]+", "-", name.lower())[:32].strip("-")
        meant = f"for example {close}" if close else ""
        raise UsageError(f"{place}{name!r} is no name of a user", why, meant)
    if name in RESERVED:
        why = "it is the owner's" if name == OWNER else "visitors would misread it"
        raise UsageError(f"{place}nobody is invited under the name {name}", why)


def find_user(users: Mapping[str, User], name: str) -> User:
    """Return a user, or raise UsageError with the nearest name."""
    if (user := users.get(name)) is not None:
        return user
    if name == OWNER:
        why = "the owner's token is that of the server"
        fix = "its token is in the state folder: stop the server, rm join, start it"
        raise UsageError("the user default is not changed by commands", why, fix)
    known = ", ".join(sorted(users)[:20]) or "none; `tunnel invite NAME` makes one"
    what = f"there is no user {name!r}"
    raise UsageError(what, f"users: {known}", meant(name, users.keys()))
