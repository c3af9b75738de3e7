"""The port of the page: its files, its questions, its streams, on our HTTP engine."""

from __future__ import annotations

import json
import logging
from contextlib import aclosing
from functools import partial
from http import HTTPStatus
from importlib.resources import files
from typing import TYPE_CHECKING, Final, NamedTuple

from tunnel.addresses import is_loopback
from tunnel.errors import Exit, TunnelError, UsageError
from tunnel.front.http.bodies import framed, last_chunk
from tunnel.front.http.pages import HttpError, date_line
from tunnel.front.http.server import Visit, serve_requests
from tunnel.front.http.whole import check_reading, send_whole, take_body
from tunnel.front.login import Login
from tunnel.log import log_event
from tunnel.net.listen import listen_at, serve
from tunnel.ops.dashboard.gate import HEADERS, Gate

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Mapping
    from importlib.resources.abc import Traversable

    import trio

    from tunnel.addresses import Address, End
    from tunnel.front.http.request import Request
    from tunnel.ops.control import Answer, Args, Handler

MAX_VISITORS: Final = 256
"""Connections at once, 10 kB each: a browser opens six, and few people look; but who
begins and never ends must not keep them out."""
MAX_STREAMS: Final = 16
"""Pages at once that are told each second."""
HEAD_S: Final = 2.0
"""For a question's head: browsers send it in one piece."""
BODY_S: Final = 5.0
"""For each part of a question's body."""
MAX_QUESTION_BYTES: Final = 2_097_152
"""A request of 1 MiB that is edited, as JSON."""
STALL_S: Final = 30.0
"""A page that does not read for so long is given up: it is told anew when it asks."""
JSON: Final = "application/json"
LINES: Final = "application/x-ndjson"
TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".LICENSE": "text/plain; charset=utf-8",
}
"""The kinds of files that the page has."""

logger = logging.getLogger("tunnel.dashboard")


class File(NamedTuple):
    """A file of the page."""

    content: bytes
    kind: str


def read_pages() -> dict[str, File]:
    """Return the files of the page by their paths; they are few, and small."""
    found: dict[str, File] = {}

    def read(folder: Traversable, path: str) -> None:
        for one in folder.iterdir():
            where = path + one.name
            kind = TYPES.get("." + one.name.rpartition(".")[2])
            if one.is_dir():
                read(one, where + "/")
            elif kind is not None:
                found[where] = File(one.read_bytes(), kind)

    read(files("tunnel.ops.dashboard") / "pages", "/")
    found["/"] = found["/index.html"]
    return found


class DashboardPort:
    """Answers the page of a process.

    Args:
        gate: decides who is heard.
        commands: what can be asked, as of the control socket.
        streams: what goes on being told, by its name.
    """

    def __init__(
        self,
        gate: Gate,
        commands: Mapping[str, Handler],
        streams: Mapping[str, Callable[[Args], AsyncGenerator[Answer, None]]],
    ) -> None:
        self._gate = gate
        self._commands = commands
        self._streams = streams
        self._open = 0
        self._pages = read_pages()

    async def serve(self, at: Address, *, task_status: trio.TaskStatus[End]) -> None:
        """Answer until cancelled; started, with the address, when it listens.

        Raises:
            AddressError: it cannot be listened on.
        """
        listeners, where = await listen_at(at)
        log_event(logger, logging.INFO, "dashboard.listening", address=str(where))
        if not is_loopback(at.host):
            log_event(logger, logging.WARNING, "dashboard.open", address=str(where),
                reason="its token crosses the network in the clear without https "
                       "in front")  # fmt: skip
        task_status.started(where)
        await serve(listeners, self._visitor, max_visitors=MAX_VISITORS)

    async def _visitor(
        self, stream: trio.abc.HalfCloseableStream, peer: Address
    ) -> None:
        visit = Visit(stream, peer, head_s=HEAD_S)
        visit.idle_s = STALL_S
        login = Login(peer, "dashboard")
        await serve_requests(visit, partial(self._answer, visit, login))

    async def _answer(self, visit: Visit, login: Login, request: Request) -> None:
        visit.line = None  # who asks this is no visitor, and in no access log
        path = request.target.partition("?")[0]
        if path.startswith("/api/"):
            self._gate.check(request, login)
            name, args = path.removeprefix("/api/"), await _question(visit)
            if name in self._streams:
                await self._tell(visit, self._streams[name](args))
            else:
                await self._ask(visit, request, name, args)
            return
        self._gate.check_site(request)
        page = self._pages.get(path)
        if page is None:
            raise HttpError(HTTPStatus.NOT_FOUND, "there is no such file")
        check_reading(request)
        await send_whole(visit, request, page.content, page.kind, lines=HEADERS)

    async def _ask(self, visit: Visit, request: Request, name: str, args: Args) -> None:
        """Answer a question as the control socket does."""
        status = HTTPStatus.OK
        try:
            command = self._commands.get(name)
            if command is None:
                raise UsageError(f"this process knows no command {name:.40}")
            answer: Answer = {"done": await command(args, f"the page for {visit.peer}")}
        except TunnelError as error:
            status = HTTPStatus.CONFLICT
            if error.exit_status is Exit.USAGE:
                status = HTTPStatus.BAD_REQUEST
            answer = failed(error)
        text = json.dumps(answer).encode()
        await send_whole(visit, request, text, JSON, status, HEADERS)

    async def _tell(self, visit: Visit, lines: AsyncGenerator[Answer, None]) -> None:
        """Send lines of JSON for as long as somebody reads them."""
        async with aclosing(lines):
            if self._open >= MAX_STREAMS:
                words = f"{MAX_STREAMS} pages look at this process, and no more may"
                raise HttpError(HTTPStatus.SERVICE_UNAVAILABLE, words)
            self._open += 1
            try:
                head = [
                    date_line(), *HEADERS, b"Content-Type: " + LINES.encode(),
                    b"Transfer-Encoding: chunked",
                ]  # fmt: skip
                await visit.send(visit.head(HTTPStatus.OK, head, b"OK"))
                async for line in lines:
                    text = json.dumps(line).encode() + b"\n"
                    await visit.send(b"".join(framed([text], chunked=True)))
                await visit.send(last_chunk([]))
            finally:
                self._open -= 1


def failed(error: TunnelError) -> Answer:
    """Return an answer that says what went wrong, as the control socket does."""
    return {
        "failed": {
            "what": error.what,
            "cause": error.cause,
            "fix": error.fix,
            "status": int(error.exit_status),
        }
    }


async def _question(visit: Visit) -> Args:
    """Read the body of a question.

    Raises:
        HttpError: it is too long, too slow, or no JSON object.
    """
    text = bytearray()
    await take_body(visit, MAX_QUESTION_BYTES, BODY_S, text.extend)
    try:
        args: object = json.loads(text or b"{}")
    except (ValueError, RecursionError):
        args = None
    if not isinstance(args, dict):
        raise HttpError(HTTPStatus.BAD_REQUEST, "a question is a JSON object")
    return args
