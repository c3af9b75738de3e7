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
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        found.update(
            type(one).__name__
            for one in gc.garbage
            if type(one).__module__.startswith(modules)
        )
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
