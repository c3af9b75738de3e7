"""A visitor, and a service of this machine as the words of its entry want it."""

from __future__ import annotations

import base64
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing
from support.far import Far, Head, read_head

from tunnel.addresses import Address
from tunnel.front.http.forwarded import Origin
from tunnel.front.http.guard import Guard
from tunnel.front.http.login_cookie import LIFE_S, cookie_key, is_login, set_cookie
from tunnel.front.http.server import Visit
from tunnel.front.http.service import handle_service
from tunnel.front.http.service_rules import Edits, Own, ServiceRules

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

VISITOR = Address("203.0.113.9", 4711)
TARGET = Address("localhost", 5173)
OWN = Own.of(TARGET, secure=False)
REWRITE = ServiceRules(host=OWN.authority, own=OWN)


class Talk:
    """What a visitor says and hears, and the target."""

    def __init__(self, visitor: trio.abc.HalfCloseableStream) -> None:
        self.visitor = visitor
        self.far = Far()
        self.opened = 0

    async def open_one(self, visitor: Address) -> Far:
        await trio.lowlevel.checkpoint()
        assert visitor == VISITOR
        self.opened += 1
        return self.far

    async def ask(self, *lines: str) -> Head:
        """Send a request; return its head as the target gets it."""
        await self.visitor.send_all("\r\n".join((*lines, "", "")).encode())
        return await read_head(self.far.far)

    async def answer(self, *lines: str) -> Head:
        """Have the target answer; return the head that the visitor gets."""
        await self.far.far.send_all("\r\n".join((*lines, "", "")).encode())
        return await read_head(self.visitor)


@asynccontextmanager
async def talk(
    rules: ServiceRules, *, believe_headers: bool = True
) -> AsyncIterator[Talk]:
    visitor, ours = trio.testing.memory_stream_pair()
    made = Talk(visitor)
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            serve = partial(handle_service, believe_headers=believe_headers)
            nursery.start_soon(serve, Visit(ours, VISITOR), rules, made.open_one)
            yield made
            nursery.cancel_scope.cancel()


async def test_a_dev_server_is_asked_for_by_its_own_name() -> None:
    async with talk(REWRITE) as it:
        head = await it.ask(
            "GET / HTTP/1.1",
            "Host: shop.t.test",
            "X-Forwarded-Host: shop.t.test",
            "X-Forwarded-Proto: https",
            'Forwarded: for="203.0.113.9:4711";host="shop.t.test";proto=https',
            "Origin: https://shop.t.test",
        )
        assert head.all("host") == ["localhost:5173"]
        assert head.all("origin") == ["http://localhost:5173"]
        assert head.all("x-forwarded-host") == ["shop.t.test"]
        assert 'host="shop.t.test"' in head.all("forwarded")[0]
        head = await it.answer(
            "HTTP/1.1 302 Found",
            "Location: http://localhost:5173/login",
            "Set-Cookie: a=b; Domain=localhost",
            "Content-Length: 0",
        )
        assert head.all("location") == ["https://shop.t.test/login"]
        assert head.all("set-cookie") == ["a=b; Domain=shop.t.test"]
        # The connection is kept, and the next request is turned as well.
        head = await it.ask("GET /2 HTTP/1.1", "Host: shop.t.test")
        assert head.all("host") == ["localhost:5173"]
        assert it.opened == 1


async def test_behind_a_port_the_client_says_what_the_visitor_asked_for() -> None:
    async with talk(REWRITE, believe_headers=False) as it:
        head = await it.ask(
            "GET / HTTP/1.1", "Host: t.test:20000", "X-Forwarded-Host: evil.test"
        )
        assert head.all("host") == ["localhost:5173"]
        assert head.all("x-forwarded-host") == ["t.test:20000"]
        head = await it.answer("HTTP/1.1 201 Created", "Content-Length: 0",
            "Location: http://127.0.0.1:5173/new")  # fmt: skip
        assert head.all("location") == ["http://t.test:20000/new"]


async def test_a_websocket_is_switched_with_the_target_s_own_host() -> None:
    async with talk(REWRITE) as it:
        head = await it.ask("GET /ws HTTP/1.1", "Host: t.test", "Origin: http://t.test",
            "Connection: Upgrade", "Upgrade: websocket")  # fmt: skip
        assert head.all("origin") == ["http://localhost:5173"]
        head = await it.answer("HTTP/1.1 101 Switching Protocols",
            "Connection: Upgrade", "Upgrade: websocket",
            "Set-Cookie: a=b; Domain=localhost")  # fmt: skip
        assert head.all("set-cookie") == ["a=b; Domain=t.test"]
        await it.visitor.send_all(b"raw: http://localhost:5173")
        assert await it.far.far.receive_some() == b"raw: http://localhost:5173"


async def test_what_is_removed_is_not_said_by_us_either() -> None:
    edits = Edits(frozenset((b"x-forwarded-for", b"x-a")), (b"X-A: mine",))
    async with talk(ServiceRules(request=edits), believe_headers=False) as it:
        head = await it.ask("GET / HTTP/1.1", "Host: t.test", "X-A: theirs",
            "Connection: X-A, close")  # fmt: skip
        assert head.all("x-a") == ["mine"]
        assert head.all("x-forwarded-for") == []
        assert head.all("x-forwarded-host") == ["t.test"]
        assert head.all("host") == ["t.test"]
        # Those of the visitor that are about it go, whatever they are set to.
    edits = Edits(frozenset((b"x-forwarded-proto",)), (b"X-Forwarded-Proto: https",))
    async with talk(ServiceRules(request=edits), believe_headers=False) as it:
        head = await it.ask("GET / HTTP/1.1", "Host: t", "X-Forwarded-Proto: http")
        assert head.all("x-forwarded-proto") == ["https"]


# The password ------------------------------------------------------------------------

RIGHT = "Authorization: Basic " + base64.b64encode(b"me:right").decode()
PREFLIGHT = (
    "OPTIONS /api HTTP/1.1", "Host: shop.t.test", "Origin: https://app.test",
    "Access-Control-Request-Method: PUT",
)  # fmt: skip


async def test_the_target_gets_the_password_if_it_is_to_keep_it() -> None:
    for keeps, lines in ((False, []), (True, [RIGHT.partition(": ")[2]])):
        async with talk(ServiceRules(Guard("me", "right", keeps))) as it:
            head = await it.ask("GET / HTTP/1.1", "Host: shop.t.test", RIGHT)
            assert head.all("authorization") == lines


async def test_a_preflight_needs_no_password_where_cors_is_said() -> None:
    async with talk(ServiceRules(Guard("me", "right", cors=True))) as it:
        head = await it.ask(*PREFLIGHT)
        assert head.line == "OPTIONS /api HTTP/1.1"
        head = await it.answer("HTTP/1.1 204 No Content",
            "Access-Control-Allow-Origin: https://app.test")  # fmt: skip
        assert head.status == 204
        assert await refused(it, "PUT /api HTTP/1.1", *PREFLIGHT[1:])


@pytest.mark.parametrize(
    "lines",
    [
        ("GET /api HTTP/1.1", *PREFLIGHT[1:]),
        PREFLIGHT[:3],
        (*PREFLIGHT[:2], PREFLIGHT[3]),
        (*PREFLIGHT, "Content-Length: 1"),
        (*PREFLIGHT, "Transfer-Encoding: chunked"),
        (*PREFLIGHT, "Connection: Upgrade", "Upgrade: websocket"),
        (*PREFLIGHT, RIGHT[:-4]),
    ],
)
async def test_what_is_no_preflight_needs_it(
    lines: tuple[str, ...],
) -> None:
    async with talk(ServiceRules(Guard("me", "right", cors=True))) as it:
        assert await refused(it, *lines)


async def test_without_cors_a_preflight_needs_it_too() -> None:
    async with talk(ServiceRules(Guard("me", "right"))) as it:
        assert await refused(it, *PREFLIGHT)


# The cookie of a browser that was asked once ------------------------------------------

HERE = "Host: shop.t.test"
PAGE = ("GET / HTTP/1.1", HERE, "Accept: text/html,*/*;q=0.8")
HTTPS = "X-Forwarded-Proto: https"
OK = ("HTTP/1.1 200 OK", "Content-Length: 0")
GUARDED = ServiceRules(Guard("me", "right"))


async def login(rules: ServiceRules, *lines: str) -> str:
    """Open a page with the password; return the cookie that the browser gets."""
    async with talk(rules) as it:
        await it.ask(*PAGE, RIGHT, *lines)
        head = await it.answer(*OK)
        (said,) = head.all("set-cookie")
        secure = "; Secure" if HTTPS in lines else ""
        cookie, _, words = said.partition("; ")
        assert words == f"Path=/; HttpOnly; SameSite=Lax{secure}"
        assert cookie.startswith("__Host-" if secure else "tunnel-login=")
        return cookie


@pytest.mark.parametrize("lines", [(), (HTTPS,)])
async def test_a_browser_that_brought_the_password_is_not_asked_again(
    lines: tuple[str, ...],
) -> None:
    cookie = await login(GUARDED, *lines)
    async with talk(GUARDED) as it:
        head = await it.ask("GET /ws HTTP/1.1", HERE, *lines, "Connection: Upgrade",
            "Upgrade: websocket", f"Cookie: a=1; {cookie};b=2")  # fmt: skip
        assert head.all("cookie") == ["a=1; b=2"]
        head = await it.answer("HTTP/1.1 101 Go", "Upgrade: websocket",
            "Connection: Upgrade")  # fmt: skip
        assert head.status == 101
        assert head.all("set-cookie") == []
    async with talk(GUARDED) as it:  # a connection and a client of the same words
        head = await it.ask(*PAGE, *lines, f"Cookie: {cookie}")
        assert head.all("cookie") == []
        assert (await it.answer(*OK)).all("cache-control") == ["private"]


async def test_with_the_cookie_the_authorization_is_the_target_s_own() -> None:
    cookie = await login(GUARDED)
    async with talk(GUARDED) as it:
        head = await it.ask(*PAGE, f"Cookie: {cookie}", "Authorization: Bearer x")
        assert head.all("authorization") == ["Bearer x"]
        await it.answer(*OK)
        head = await it.ask(*PAGE, f"Cookie: {cookie}", RIGHT)
        assert head.all("authorization") == []


async def test_a_program_gets_no_cookie() -> None:
    async with talk(GUARDED) as it:
        await it.ask("GET / HTTP/1.1", HERE, "Accept: */*", RIGHT)
        assert (await it.answer(*OK)).all("set-cookie") == []


async def test_a_cookie_opens_only_what_it_was_given_for() -> None:
    cookie = await login(GUARDED)
    until, _, signature = cookie.partition("=")[2].partition(".")
    for rules, *lines in (
        (GUARDED, "Host: else.t.test", f"Cookie: {cookie}"),
        (GUARDED, HERE, HTTPS, f"Cookie: {cookie}"),
        (GUARDED, HERE, f"Cookie: __Host-{cookie}"),
        (GUARDED, HERE, f"Cookie: tunnel-login={int(until) + 1}.{signature}"),
        (GUARDED, HERE, f"Cookie: {cookie[:-1]}"),
        (GUARDED, HERE, "Cookie: tunnel-login="),
        (GUARDED, HERE, "Cookie: tunnel-login=²." + signature),
        (GUARDED, HERE, f"Cookie: tunnel-login={'9' * 5_000}.{signature}"),
        (ServiceRules(Guard("me", "other")), HERE, f"Cookie: {cookie}"),
        (ServiceRules(Guard("you", "right")), HERE, f"Cookie: {cookie}"),
    ):
        async with talk(rules) as it:
            assert await refused(it, "GET / HTTP/1.1", *lines)


def test_a_cookie_ends_after_a_week() -> None:
    key = cookie_key("me", "right")
    line = set_cookie(key, "a.test", Origin(VISITOR, "http", "a.test"), 1_000.5)
    value = line.split(b"=")[1].partition(b";")[0]
    assert is_login(value, key, "a.test", 1_000 + LIFE_S - 1)
    assert not is_login(value, key, "a.test", 1_000 + LIFE_S)


async def test_a_site_with_a_password_sets_no_cookie_for_its_neighbours() -> None:
    async with talk(GUARDED) as it:
        await it.ask("GET / HTTP/1.1", "Host: Shop.t.test", RIGHT)
        head = await it.answer(*OK, "Set-Cookie: a=1; Domain=.T.test; Path=/",
            "Set-Cookie: b=1; domain=shop.t.test", "Set-Cookie: c=1; Domain=test",
            "Set-Cookie: d=1; Domain=op.t.test")  # fmt: skip
        assert head.all("set-cookie") == ["a=1; Path=/", "b=1; domain=shop.t.test",
            "c=1", "d=1; Domain=op.t.test"]  # fmt: skip


async def refused(it: Talk, *lines: str) -> bool:
    """Say whether a request is asked for a password, and the target hears nothing."""
    await it.visitor.send_all("\r\n".join((*lines, "", "")).encode())
    opened = it.opened
    head = await read_head(it.visitor)
    return head.status == 401 and it.opened == opened
