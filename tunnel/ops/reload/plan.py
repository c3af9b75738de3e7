"""What a reload changes: pure, from what runs and what is wanted.

Each change is a line for people and for the log:

    + http shop             it is new
    ~ tcp 2222 target       it is there, and differs in this
    - udp 5353              it is wanted no more
    ! state                 it differs, but only a restart can change it
"""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass, replace
from typing import TYPE_CHECKING, Final, Literal, TypeVar

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tunnel.access.users import User

T = TypeVar("T")
Sign = Literal["+", "~", "-", "!"]

AT_ONCE: Final = frozenset(
    ("listen", "ports", "public_host", "resume", "max_sessions", "max_waiting_sessions",
     "limit", "http", "https", "domain", "certificate", "redirect", "client_ca",
     "max_per_address", "trusted_proxy", "drain"),
)  # fmt: skip
"""The flags that change while ``serve`` or ``up`` runs; others need a restart."""


@dataclass(frozen=True, slots=True)
class Change:
    """One line of a plan."""

    sign: Sign
    what: str
    how: str = ""
    """In what it differs."""

    def __str__(self) -> str:
        if self.sign == "!":
            return f"! {self.what}: needs a restart"
        return f"{self.sign} {self.what} {self.how}".rstrip()


# Flags -------------------------------------------------------------------------------


def plan_flags(old: object, new: object) -> list[Change]:
    """Return the changes from one set of flags to another of the same dataclass."""
    assert is_dataclass(old)  # noqa: S101 - flags are
    return [
        Change("~" if one.name in AT_ONCE else "!", one.name)
        for one in fields(old)
        if one.compare and getattr(old, one.name) != getattr(new, one.name)
    ]


def held(old: T, new: T) -> T:
    """Return the new flags, with the old values of those that need a restart."""
    assert is_dataclass(old)  # noqa: S101 - flags are
    kept = {
        one.name: getattr(old, one.name)
        for one in fields(old)
        if one.name not in AT_ONCE
    }
    return replace(new, **kept)  # type: ignore[type-var]


# Users -------------------------------------------------------------------------------


def plan_users(old: Mapping[str, User], new: Mapping[str, User]) -> list[Change]:
    """Return the changes from the users of a file to those of the next."""
    changes = [Change("-", f"user {name}") for name in old if name not in new]
    for name, user in new.items():
        was = old.get(name)
        if was is None:
            changes.append(Change("+", f"user {name}"))
        elif was != user:
            parts = {
                "token": was.verifiers != user.verifiers,
                "rights": was.rights != user.rights,
                "limits": was.limits != user.limits,
                "expires": was.expires_at != user.expires_at,
            }
            how = ", ".join(word for word, differs in parts.items() if differs)
            changes.append(Change("~", f"user {name}", how))
    return changes
