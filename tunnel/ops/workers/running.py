"""A worker that runs, as its parent sees it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tunnel.center.cluster.channel import Channel
    from tunnel.ops.workers.worker import WorkerPlace


class Running:
    """A worker that was started.

    Args:
        place: which one it is.
        channel: leads to it.
    """

    def __init__(self, place: WorkerPlace, channel: Channel) -> None:
        self.place = place
        self.channel = channel
        self.commands: Sequence[str] = ()
        self.ready = trio.Event()
