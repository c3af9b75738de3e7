"""A web service of the machine that publishes it, as the words of its entry want it.

At the client's end: a password never leaves the machine that set it, a server that is
broken into does not have it, and the words hold behind a port as behind a name. An
entry without words does not come here: its bytes are relayed as they are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunnel.access.visitors import VISITORS
from tunnel.front.http.forwarded import Origin, origin_of
from tunnel.front.http.guard import Admitted
from tunnel.front.http.heads import values
from tunnel.front.http.login_cookie import take_cookie
from tunnel.front.http.names import Destination, exchange_with, request_lines
from tunnel.front.http.server import Visit, serve_requests
from tunnel.front.login import Login

if TYPE_CHECKING:
    from collections.abc import Callable

    from tunnel.front.http.guard import Guard
    from tunnel.front.http.heads import AnswerHead
    from tunnel.front.http.names import Open
    from tunnel.front.http.request import Request
    from tunnel.front.http.service_rules import ServiceRules


async def handle_service(
    visit: Visit,
    rules: ServiceRules,
    open_one: Open,
    *,
    believe_headers: bool,
) -> None:
    """Serve a visitor to its end; owns its stream.

    Args:
        visit: the visitor.
        rules: what the entry wants.
        open_one: opens the service behind it; what it raises as HttpError becomes a
            page.
        believe_headers: what the headers say about the visitor was written by our
            server, and stays.
    """
    visit.shared = not believe_headers and VISITORS.get().trusts(visit.peer.host)
    login = Login(visit.peer, "share")
    there = Destination(None, open_one)

    async def answer(request: Request) -> None:
        visit.host = request.host
        origin = None
        if not believe_headers:
            origin = origin_of(request, visit.peer, secure=visit.secure)
        public = origin or _written_origin(request, visit)
        asked = request
        if rules.host:
            asked = request._replace(authority=rules.host.decode("latin-1"))
        first, *lines = request_lines(asked, origin)
        to_visitor = rules.answer_lines(public)
        if rules.guard is not None:
            lines, more = _ask(rules.guard, request, lines, login, public)
            if more:
                to_visitor = _with(more, to_visitor)
        lines = rules.request_lines(lines, public)
        head = b"\r\n".join((first, *lines, b"", b""))
        await exchange_with(there, visit, request, head, visit.peer, to_visitor)

    await serve_requests(visit, answer)


def _ask(
    guard: Guard, request: Request, lines: list[bytes], login: Login, origin: Origin
) -> tuple[list[bytes], list[bytes]]:
    """Ask for the password; return the lines without it, and more for the answer.

    Raises:
        HttpError: 401 or 429, as ``Guard.check`` says.
    """
    lines, cookies = take_cookie(lines, origin)
    admitted = guard.check(request, login, cookies)
    by_cookie = admitted is Admitted.BY_COOKIE
    # With the cookie, the Authorization may be one that the target has asked for.
    is_ours = not by_cookie or guard.is_right(request)
    if is_ours and not guard.keeps_header:
        lines = [line for line in lines if not _is_login(line)]
    if by_cookie:  # what would keep an answer to an Authorization (RFC 9111 §3.5)
        return lines, [b"Cache-Control: private"]
    # A browser that opens a page; a program needs no cookie.
    if admitted is Admitted.BY_LOGIN and b"text/html" in b",".join(
        values(request.head.fields, b"accept")
    ):
        return lines, [guard.cookie(request, origin)]
    return lines, []


def _with(
    more: list[bytes], lines_of: Callable[[AnswerHead], list[bytes]]
) -> Callable[[AnswerHead], list[bytes]]:
    return lambda head: [*lines_of(head), *more]


def _is_login(line: bytes) -> bool:
    return line[:14].lower() == b"authorization:"


def _written_origin(request: Request, visit: Visit) -> Origin:
    """Return where a request comes from, as our server has written it."""
    fields = request.head.fields
    proto = values(fields, b"x-forwarded-proto")
    host = values(fields, b"x-forwarded-host")
    return Origin(
        visit.peer,
        "https" if proto[-1:] == [b"https"] else "http",
        host[-1].decode("latin-1") if host else request.authority,
    )
