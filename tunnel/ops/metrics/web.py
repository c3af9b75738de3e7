"""``--metrics``: ``/metrics`` for Prometheus, ``/livez``, ``/readyz`` for supervisors.

Plain HTTP for reading, without a password: no secret is shown, but names of users and
entries are. So a port alone is on loopback.
"""

from __future__ import annotations

import logging
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

import trio

from tunnel.addresses import is_loopback
from tunnel.front.http.pages import HttpError
from tunnel.front.http.server import Visit, serve_requests
from tunnel.front.http.whole import check_reading, send_whole
from tunnel.log import log_event
from tunnel.net.listen import listen_at, serve
from tunnel.ops.metrics.families import TEXT, text_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tunnel.addresses import Address, End
    from tunnel.front.http.request import Request
    from tunnel.ops.life import Life
    from tunnel.ops.metrics.facts import Facts

MAX_VISITORS: Final = 256
"""At once, 10 kB each: some Prometheus servers, balancers, supervisors, and people."""
HEAD_S: Final = 2.0
"""For a question: programs ask in one piece, and who does not has no place for long."""
HEALTH: Final = "text/plain; charset=utf-8"

logger = logging.getLogger("tunnel.metrics")


class MetricsPort:
    """Answers who asks how a process is.

    Args:
        facts: returns the numbers of the moment.
        life: says whether the process is ready.
    """

    def __init__(self, facts: Callable[[], Awaitable[Facts]], life: Life) -> None:
        self._facts = facts
        self._life = life
        self._one_by_one = trio.Lock()

    async def serve(self, at: Address, *, task_status: trio.TaskStatus[End]) -> None:
        """Answer until cancelled; started, with the address, when it listens.

        Raises:
            AddressError: it cannot be listened on.
        """
        listeners, where = await listen_at(at)
        log_event(logger, logging.INFO, "metrics.listening", address=str(where))
        if not is_loopback(at.host):
            log_event(logger, logging.WARNING, "metrics.open", address=str(where),
                reason="who reaches it reads names of users and entries")  # fmt: skip
        task_status.started(where)
        await serve(listeners, self._visitor, max_visitors=MAX_VISITORS)

    async def _visitor(
        self, stream: trio.abc.HalfCloseableStream, peer: Address
    ) -> None:
        visit = Visit(stream, peer, head_s=HEAD_S)
        await serve_requests(visit, partial(self._answer, visit))

    async def _answer(self, visit: Visit, request: Request) -> None:
        visit.line = None  # who asks this is no visitor, and in no access log
        path = request.target.partition("?")[0]
        if path not in ("/metrics", "/livez", "/readyz"):
            words = "there are /metrics, /livez and /readyz"
            raise HttpError(HTTPStatus.NOT_FOUND, words)
        check_reading(request)
        if path == "/metrics":
            async with self._one_by_one:
                # The numbers are of one moment; to write them takes a while.
                facts = await self._facts()
                text = await trio.to_thread.run_sync(text_of, facts)
            await send_whole(visit, request, text, TEXT)
            return
        words = "ok" if path == "/livez" else self._life.why or "ready"
        ready = path == "/livez" or self._life.is_ready
        status = HTTPStatus.OK if ready else HTTPStatus.SERVICE_UNAVAILABLE
        await send_whole(visit, request, f"{words}\n".encode(), HEALTH, status)
