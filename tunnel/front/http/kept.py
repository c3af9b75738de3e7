"""What a visitor's connection knows of the target's that it keeps."""

from __future__ import annotations

from typing import Protocol


class Kept(Protocol):
    """A target's connection that may be used again: ``exchange.Upstream``."""

    idle_until: float
    """It is given up then; infinite while something is answered."""
    is_over: bool

    def drop(self) -> None:  # pragma: no cover
        """Close it, or reset it if something was under way."""
        ...
