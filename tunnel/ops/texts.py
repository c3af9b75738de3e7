"""Numbers and errors as people read them. Loads nothing heavy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tunnel.redaction import redact
from tunnel.words import escaped

if TYPE_CHECKING:
    from tunnel.errors import TunnelError

_SIZES: Final = ("kB", "MB", "GB")
_SPANS: Final = ((1, "s", 60), (60, "min", 60), (3_600, "h", 24))
"""Seconds of a unit, its name, and how many of it are one of the next."""
_DAY_S: Final = 86_400


def size_text(count: float) -> str:
    """Return a number of bytes for a person to read."""
    if round(count) < 1_000:
        return f"{count:.0f} B"
    size = count
    for unit in _SIZES:
        size /= 1_000
        if round(size, 1) < 1_000:  # as it is shown
            return f"{size:.1f} {unit}"
    return f"{size / 1_000:.1f} TB"


def connections(count: int, kind: str = "") -> str:
    """Return a number of connections for a person to read."""
    return f"{count} {kind}connection{'' if count == 1 else 's'}"


def span_text(seconds: float) -> str:
    """Return how long something lasts, to one unit."""
    for size, unit, most in _SPANS:
        if round(seconds / size) < most:  # as it is shown
            return f"{max(seconds / size, 0):.0f} {unit}"
    return f"{seconds / _DAY_S:.0f} d"


def shown(text: str) -> str:
    """Return one line without secrets and without what moves the cursor."""
    return escaped(redact(text))


def explained(first: str, error: TunnelError) -> str:
    """Return lines that say what failed, why, and what can be done."""
    parts = ("", first), ("  cause  ", error.cause), ("  fix    ", error.fix)
    return "".join(f"{shown(label + said)}\n" for label, said in parts if said)
