"""Whose connections leave here, for the lines of the log about them."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Final, TypedDict


class Who(TypedDict, total=False):
    """A client of a center-server; a client's own exits serve whoever is let in."""

    peer: str
    """The address of its last link."""
    user: str
    client: str
    """Its id, as ``short_id`` writes it."""


WHO: Final[ContextVar[Who]] = ContextVar("WHO", default=Who())  # noqa: B039 - read only
"""The client whose task this is, or a task that its link began."""
