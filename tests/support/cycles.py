"""What the collector alone would free: it comes seldom in our programs."""

from __future__ import annotations

import gc
from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def cycles_of(*modules: str) -> Iterator[Counter[str]]:
    """Count, at the end of the block, what hangs in cycles and is of these modules."""
    found = Counter[str]()
    gc.collect()
    gc.disable()
    try:
        yield found
        # Not what the collector says: it counts nothing that it had to finalize first.
        held = _held(modules)
        gc.collect()
        found.update(held - _held(modules))
    finally:
        gc.enable()


def _held(modules: tuple[str, ...]) -> Counter[str]:
    return Counter(
        type(one).__name__
        for one in gc.get_objects()
        if str(getattr(type(one), "__module__", "")).startswith(modules)
    )
