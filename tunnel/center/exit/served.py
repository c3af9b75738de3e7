"""The lines of the access log about what leaves here; see ``net.access_log``."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from tunnel.net.access_log import say_served
from tunnel.proto.frames import NameTarget

if TYPE_CHECKING:
    from tunnel.errors import Code
    from tunnel.link.virtual import VirtualStream


def say_left(
    stream: VirtualStream, began: float, passed: tuple[int, int], code: Code
) -> None:
    """Write the line of a stream that the peer has opened; ``began`` is monotonic."""
    create = stream.create
    target = create.target if create else None
    chosen = None if isinstance(target, NameTarget) or stream.entry else target
    peer = create.visitor if create else None
    say_served(time.monotonic() - began, stream, peer=peer,
        entry=stream.entry or "exit", target=chosen, passed=passed,
        code=code)  # fmt: skip
