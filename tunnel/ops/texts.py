"""Numbers and errors as people read them. Loads nothing heavy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tunnel.redaction import redact
from tunnel.words import escaped

if TYPE_CHECKING:
    from tunnel.errors import TunnelError

_SPANS: Final = ((86_400, "d"), (3_600, "h"), (60, "min"))


def size_text(count: float) -> str:
    """Return a number of bytes for a person to read."""
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def connections(count: int, kind: str = "") -> str:
    """Return a number of connections for a person to read."""
    return f"{count} {kind}connection{'' if count == 1 else 's'}"


def span_text(seconds: float) -> str:
    """Return how long something lasts, to one unit."""
    for size, unit in _SPANS:
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def shown(text: str) -> str:
    """Return one line without secrets and without what moves the cursor."""
    return escaped(redact(text))


def explained(first: str, error: TunnelError) -> str:
    """Return lines that say what failed, why, and what can be done."""
    parts = ("", first), ("  cause  ", error.cause), ("  fix    ", error.fix)
    return "".join(f"{shown(label + said)}\n" for label, said in parts if said)
