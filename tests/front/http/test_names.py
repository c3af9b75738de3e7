from __future__ import annotations

import base64
import re
import time
from email.utils import parsedate_to_datetime

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st
from support.town import OK, VISITOR, Town, get, status, town, until

from tunnel.errors import Code
from tunnel.front.http.guard import Guard
from tunnel.front.http.limits import BETWEEN_S, HEAD_BYTES, HEAD_S, PAGE_S
from tunnel.front.http.names import (
    PSEUDONYM,
    Absent,
    handle_visitor,
)
from tunnel.front.http.pages import HttpError
from tunnel.front.http.request import host_of
from tunnel.front.http.server import Visit
from tunnel.net.timeouts import TIMEOUTS, Timeouts

# Routing ---------------------------------------------------------------------------


async def test_each_request_of_a_kept_connection_goes_where_its_own_host_says() -> None:
    async with town() as it:
        it.names["b.test"] = Code.NORMAL
        await it.say(get("a.test", path="/1"))
        far, head = await it.target()
        assert head.startswith(b"GET /1 HTTP/1.1\r\nHost: a.test\r\n")
        await far.far.send_all(OK)
        assert (await it.hear(b"ok")).startswith(b"HTTP/1.1 200 OK")
        await it.say(get("B.test.:8080", path="/2"))
        far, head = await it.target()
        assert head.startswith(b"GET /2 HTTP/1.1\r\nHost: B.test.:8080\r\n")
        await far.far.send_all(OK)
        await it.hear(b"ok")
        assert it.asked == ["a.test", "b.test"]


async def test_the_same_request_again_is_asked_of_whoever_has_the_name_by_now() -> None:
    async with town() as it:
        it.names["b.test"] = Code.NORMAL
        heads = []
        for again in (False, True):
            await it.say(get("a.test"))
            far, head = await it.target(again=again)
            heads.append(head)
            await far.far.send_all(OK)
            await it.hear(b"ok")
        assert heads[0] == heads[1]
        it.names["a.test"] = Absent.UNKNOWN
        await it.say(get("a.test"))
        assert status(await it.hear()) == 404
        it.names["a.test"] = Code.NORMAL
        await it.say(get("b.test"))
        far, head = await it.target()
        assert b"\r\nHost: b.test\r\n" in head
        assert it.asked == ["a.test", "a.test", "a.test", "b.test"]


async def test_pipelined_requests_are_answered_one_after_the_other() -> None:
    async with town() as it:
        await it.say(get("a.test", path="/1") + get("a.test", path="/2"))
        for path in (b"/1", b"/2"):
            far, head = await it.target(again=path == b"/2")
            assert path in head.split(b"\r\n")[0]
            await far.far.send_all(OK)
            await it.hear(b"ok")


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("a.test", "a.test"),
        ("A.Test", "a.test"),
        ("a.test:80", "a.test"),
        ("a.test.", "a.test"),
        ("a.test.:80", "a.test"),
        ("[::1]:80", "::1"),
        ("xn--bcher-kva.test", "xn--bcher-kva.test"),
        ("with_underscore.test", "with_underscore.test"),
    ],
)
def test_a_host_is_compared_without_its_port_case_and_last_dot(
    host: str, name: str
) -> None:
    assert host_of(host) == name


@pytest.mark.parametrize(
    "host",
    ["a.test:80@b.test", "u@a.test", "a test", "a.test/x", "a.test:http", "..", "a..",
     "bücher.test", "", "-a.test", "a" * 300],
)  # fmt: skip
def test_what_is_no_host_is_refused(host: str) -> None:
    with pytest.raises(HttpError) as caught:
        host_of(host)
    assert caught.value.status == 400


@pytest.mark.parametrize("user", ["", "u@", "u:p@"])
async def test_the_absolute_form_wins_over_host(user: str) -> None:
    """A user in it is dropped: nobody behind is to know a password."""
    async with town() as it:
        await it.say(get("evil.test", path=f"http://{user}a.test:8000?q=1"))
        _, head = await it.target()
        assert head.startswith(b"GET /?q=1 HTTP/1.1\r\nHost: a.test:8000\r\n")
        assert b"evil" not in head


@pytest.mark.parametrize(
    ("absent", "code", "words"),
    [(Absent.UNKNOWN, 404, b"nothing is"), (Absent.AWAY, 503, b"is not connected")],
)
async def test_a_page_says_why_a_name_leads_nowhere(
    absent: Absent, code: int, words: bytes
) -> None:
    async with town() as it:
        it.names["a.test"] = absent
        await it.say(get("a.test"))
        answer = await it.hear(words)
        assert status(answer) == code
        assert b"text/plain" in answer
        assert (b"retry-after: 5" in answer.lower()) == (code == 503)
        await it.say(get("a.test", "Accept: text/html,*/*"))
        assert b"<h1>" in await it.hear(words)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (Code.REFUSED, 502),
        (Code.TIMEOUT, 504),
        (Code.NOT_ALLOWED, 502),
        (Code.NO_MAPPING, 502),
        (Code.RESET, 502),
        (Code.RESOURCE, 503),
        (Code.LINK_LOST, 503),
    ],
)
async def test_a_page_says_which_side_is_down(code: Code, expected: int) -> None:
    async with town() as it:
        it.names["a.test"] = code
        await it.say(get("a.test"))
        answer = await it.hear(b"\r\n\r\n")
        assert status(answer) == expected
        # The connection is well: the next request is served.
        it.names["a.test"] = Code.NORMAL
        await it.say(get("a.test"))


async def test_a_target_that_says_nothing_or_no_http_is_a_bad_gateway() -> None:
    async with town() as it:
        for said in (b"", b"SSH-2.0-OpenSSH_9.9\r\n\r\n"):
            await it.say(get("a.test"))
            far, _ = await it.target()
            if said:
                await far.far.send_all(said)
            await far.far.send_eof()
            assert status(await it.hear(b"service behind it")) == 502


# Strictness --------------------------------------------------------------------------

CL = "Content-Length: 5"
TE = "Transfer-Encoding: chunked"
BAD_HEADS = {
    "two framings": get("a.test", CL, TE),
    "two framings, other order": get("a.test", TE, CL),
    "two lengths": get("a.test", CL, "Content-Length: 6"),
    "a list of lengths": get("a.test", "Content-Length: 5, 6"),
    "a signed length": get("a.test", "Content-Length: +5"),
    "a negative length": get("a.test", "Content-Length: -5"),
    "a hexadecimal length": get("a.test", "Content-Length: 0x5"),
    "another coding": get("a.test", "Transfer-Encoding: gzip"),
    "chunked not last": get("a.test", "Transfer-Encoding: chunked, identity"),
    "chunked twice": get("a.test", TE, TE),
    "a coding with a vertical tab": get("a.test", "Transfer-Encoding: \x0bchunked"),
    "a space before the colon": get("a.test", "Transfer-Encoding : chunked"),
    "a folded line": get("a.test", "X: a", " Transfer-Encoding: chunked"),
    "a folded first line": get("a.test").replace(b"Host", b" Host"),
    "bare line feeds": get("a.test").replace(b"\r\n", b"\n"),
    "one bare line feed": get("a.test", "X: a\nTransfer-Encoding: chunked"),
    "a bare carriage return": get("a.test", "X: a\rTransfer-Encoding: chunked"),
    "a NUL": get("a.test", "X: a\0b"),
    "a control character": get("a.test", "X: a\x01b"),
    "a NUL in a name": get("a.test", "Content\0-Length: 5"),
    "a header without a colon": get("a.test", "Content-Length 5"),
    "an empty name": get("a.test", ": 5"),
    "chunks in HTTP/1.0": get("a.test", TE).replace(b"1.1", b"1.0"),
    "two hosts": get("a.test", "Host: b.test"),
    "the same host twice": get("a.test", "Host: a.test"),
    "no host": b"GET / HTTP/1.1\r\n\r\n",
    "a host with a user": get("a.test:80@b.test"),
    "an empty host in the absolute form": get("a.test", path="http:///x"),
    "another scheme": get("a.test", path="ftp://a.test/"),
    "no path": get("a.test", path="a.test"),
    "HTTP/0.9": b"GET /\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "no HTTP": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    "a space in the path": get("a.test", path="/a b"),
    "CONNECT": get("a.test", path="a.test:443", method="CONNECT"),
    "TRACE": get("a.test", method="TRACE"),
}


@pytest.mark.parametrize("name", BAD_HEADS)
async def test_a_head_that_two_could_read_in_two_ways_reaches_no_target(
    name: str,
) -> None:
    async with town() as it:
        await it.say(BAD_HEADS[name] + b"0\r\n\r\n" + get("a.test", path="/smuggled"))
        await it.visitor.send_eof()
        answer = await it.rest()
        assert status(answer) in (400, 405, 501, 505)
        assert answer.count(b"HTTP/1.1 ") == 1
        assert b"connection: close" in answer.lower()
        assert it.asked == []


BAD_BODIES = {
    "a chunk size that is none": b"zz\r\nhello\r\n0\r\n\r\n",
    "a negative chunk size": b"-5\r\nhello\r\n0\r\n\r\n",
    "a chunk size with a bare line feed": b"5\nhello\r\n0\r\n\r\n",
    "a chunk longer than its size": b"5\r\nhelloGET /smuggled\r\n0\r\n\r\n",
    "a chunk without its end": b"5\r\nhelloXX0\r\n\r\n",
    "a huge chunk size": b"f" * 40 + b"\r\nhello\r\n0\r\n\r\n",
}


@pytest.mark.parametrize("name", BAD_BODIES)
async def test_a_bad_chunk_ends_both_sides(name: str) -> None:
    async with town() as it:
        await it.say(get("a.test", TE, method="POST") + BAD_BODIES[name])
        answer = await it.hear()
        assert status(answer) == 400
        far = await it.opened()
        assert far.resets == [Code.RESET]
        assert it.asked == ["a.test"]


async def test_a_chunk_extension_is_not_passed_on() -> None:
    async with town() as it:
        body = b"5;x=y\r\nhello\r\n0\r\n\r\n"
        await it.say(get("a.test", TE, method="POST") + body)
        far = await it.opened()
        said = await until(far.far, b"0\r\n\r\n")
        assert said.endswith(b"\r\n\r\n5\r\nhello\r\n0\r\n\r\n")


async def test_what_follows_a_body_is_another_request_and_not_a_part_of_it() -> None:
    async with town() as it:
        await it.say(get("a.test", CL, method="POST") + b"hello" + get("b.test"))
        far = await it.opened()
        assert (await until(far.far, b"hello")).endswith(b"\r\n\r\nhello")
        await far.far.send_all(OK)
        assert status(await it.hear(b"nothing is published")) == 200
        assert it.asked == ["a.test", "b.test"]


async def test_a_head_cut_at_every_byte_is_read_the_same() -> None:
    async with town() as it:
        for byte in b"\r\n" + get("a.test", CL, "X: y", method="POST") + b"hello":
            await it.say(bytes((byte,)))
        far = await it.opened()
        assert b"X: y" in await until(far.far, b"hello")


PIECES = st.sampled_from(
    [b"GET / HTTP/1.1\r\n", b"POST /x HTTP/1.1\r\n", b"Host: a.test\r\n", b"\r\n",
     b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n", b"5\r\n", b"0\r\n",
     b"hello", b"\n", b"\r", b" ", b"\t", b":", b"\0", b"\xff", b"HTTP/1.0",
     b"Connection: upgrade\r\nUpgrade: websocket\r\n", b"Expect: 100-continue\r\n"]
)  # fmt: skip


@given(st.lists(st.one_of(PIECES, st.binary(max_size=8)), max_size=30))
def test_no_bytes_of_a_visitor_end_more_than_its_connection(said: list[bytes]) -> None:
    async def serve() -> None:
        async with town() as it, trio.open_nursery() as nursery:

            async def answer() -> None:
                while True:
                    far = await it.opened()
                    await far.far.send_all(OK)
                    await far.far.send_eof()

            nursery.start_soon(answer)
            await it.say(b"".join(said))
            await it.visitor.send_eof()
            heard = await it.rest()
            assert not heard or heard.startswith(b"HTTP/1.1 ")
            nursery.cancel_scope.cancel()

    trio.run(serve)


# Limits ------------------------------------------------------------------------------


async def test_a_head_of_more_than_128_kib_is_refused(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with town() as it, trio.open_nursery() as nursery:
        nursery.start_soon(it.say, get("a.test", "X: " + "y" * HEAD_BYTES))
        assert status(await it.hear()) == 431


async def test_a_page_has_one_date_of_now_and_an_answer_only_its_own() -> None:
    async with town() as it:
        await it.say(get("b.test"))
        page = await it.hear(b"published under this name\n")
        (said,) = re.findall(rb"\r\nDate: ([^\r]*)\r\n", page)
        now = parsedate_to_datetime(said.decode()).timestamp()
        assert abs(now - time.time()) < 10
        await it.say(get("a.test"))
        far, _ = await it.target()
        await far.far.send_all(OK.replace(b"\r\n", b"\r\nDate: once\r\n", 1))
        assert re.findall(rb"Date: .*", await it.hear(b"ok")) == [b"Date: once\r"]


async def test_more_than_300_headers_are_refused() -> None:
    async with town() as it:
        await it.say(get("a.test", *(f"X-{n}: y" for n in range(300))))
        assert status(await it.hear()) == 431


async def test_a_head_that_does_not_come_in_time_is_refused(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with town() as it:
        await it.say(b"GET / HTT")
        assert status(await it.hear()) == 408
        assert trio.current_time() == pytest.approx(HEAD_S)


async def test_a_silent_connection_is_closed_without_a_word(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with town() as it:
        await it.say(get("nobody.test"))
        await it.hear(b"published under this name\n")
        assert await it.rest() == b""
        assert trio.current_time() >= BETWEEN_S


async def test_a_body_may_pause_for_as_long_as_it_likes(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with town() as it:
        await it.say(get("a.test", CL, method="POST") + b"he")
        far = await it.opened()
        await trio.sleep(400)
        await it.say(b"llo")
        assert (await until(far.far, b"hello")).endswith(b"\r\n\r\nhello")
        assert far.resets == []


async def test_a_visitor_that_does_not_read_its_answer_is_dropped(
    autojump_clock: trio.testing.MockClock,
) -> None:
    visitor, ours = trio.testing.lockstep_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(handle_visitor, Visit(ours, VISITOR), Town(visitor).route)
        await visitor.send_all(get("nobody.test"))
    assert trio.current_time() == pytest.approx(PAGE_S)


# Headers -----------------------------------------------------------------------------


async def forwarded(*lines: str, secure: bool = False) -> dict[str, list[str]]:
    async with town(secure=secure) as it:
        await it.say(get("a.test:81", *lines))
        _, head = await it.target()
    found: dict[str, list[str]] = {}
    for line in head.decode("latin-1").split("\r\n")[1:-2]:
        name, _, value = line.partition(": ")
        found.setdefault(name.lower(), []).append(value)
    return found


async def test_the_target_hears_who_the_visitor_is() -> None:
    """Point 62."""
    headers = await forwarded()
    assert headers["x-forwarded-for"] == ["203.0.113.9"]
    assert headers["x-forwarded-proto"] == ["http"]
    assert headers["x-forwarded-host"] == ["a.test:81"]
    assert headers["forwarded"] == [
        'for="203.0.113.9:4711";host="a.test:81";proto=http'
    ]
    assert headers["via"] == [f"1.1 {PSEUDONYM}"]
    assert (await forwarded(secure=True))["x-forwarded-proto"] == ["https"]


async def test_what_the_visitor_says_about_itself_is_not_believed() -> None:
    lies = ["X-Forwarded-For", "X_Forwarded_For", "x-forwarded-host",
            "X-Forwarded-Proto", "X-Forwarded-Port", "Forwarded",
            "X-Real-IP", "X_Real_IP"]  # fmt: skip
    headers = await forwarded(*(f"{name}: lie" for name in lies))
    assert "lie" not in str(headers)


async def test_naming_our_headers_as_hop_by_hop_does_not_remove_them() -> None:
    named = "X-Forwarded-For, Forwarded, Authorization, Cookie, Host, X-Mine, Via"
    headers = await forwarded(
        f"Connection: close, {named}",
        "Authorization: Basic x",
        "Cookie: c",
        "X-Mine: m",
    )
    assert headers["x-forwarded-for"] == ["203.0.113.9"]
    assert headers["authorization"] == ["Basic x"]
    assert headers["cookie"] == ["c"]
    assert headers["host"] == ["a.test:81"]
    assert "connection" not in headers
    assert "x-mine" not in headers


async def test_headers_of_the_hop_are_not_passed_on() -> None:
    hop = ["Proxy-Authorization: Basic x", "Proxy-Connection: keep-alive", "TE: gzip",
           "Keep-Alive: 5", "HTTP2-Settings: AAMAAABk", "Upgrade: h2c",
           "Connection: Upgrade, HTTP2-Settings"]  # fmt: skip
    headers = await forwarded(*hop)
    assert "connection" not in headers
    for line in hop[:-1]:
        assert line.split(":")[0].lower() not in headers


async def test_a_name_that_leads_to_itself_is_noticed() -> None:
    async with town() as it:
        await it.say(get("a.test", f"Via: 1.0 x, 1.1 {PSEUDONYM}"))
        assert status(await it.hear()) == 508


async def test_headers_of_the_response_s_hop_are_not_passed_on() -> None:
    async with town() as it:
        await it.say(get("a.test"))
        far, _ = await it.target()
        await far.far.send_all(
            b"HTTP/1.1 201 Sure\r\nConnection: close, X-Hop\r\nX-Hop: 1\r\n"
            b"Keep-Alive: 5\r\nSet-Cookie: a\r\nSet-Cookie: b\r\n"
            b"Content-Length: 2\r\n\r\nok"
        )
        answer = await it.hear(b"ok")
        assert answer.startswith(b"HTTP/1.1 201 Sure\r\n")
        lower = answer.lower()
        assert lower.count(b"set-cookie") == 2
        for name in (b"x-hop", b"keep-alive", b"connection"):
            assert name not in lower


# Bodies and streams ------------------------------------------------------------------


async def test_a_response_goes_on_piece_by_piece_as_it_comes() -> None:
    async with town() as it:
        await it.say(get("a.test"))
        far, _ = await it.target()
        await far.far.send_all(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
        )
        assert b"chunked" in await it.hear()
        for number in range(3):
            await far.far.send_all(b"data: %d\n\n" % number)
            assert await it.hear(b"\n\n\r\n") == b"9\r\ndata: %d\n\n\r\n" % number
        await far.far.send_eof()
        assert await it.hear(b"0\r\n\r\n") == b"0\r\n\r\n"


async def test_a_response_that_is_cut_never_looks_complete() -> None:
    for head in (b"Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n", b"\r\nok"):
        async with town() as it:
            await it.say(get("a.test"))
            far, _ = await it.target()
            await far.far.send_all(b"HTTP/1.1 200 OK\r\n" + head)
            await it.hear(b"ok")
            far.give_way(Code.RESET)
            assert b"0\r\n" not in await it.rest()


async def test_a_response_shorter_than_its_length_is_cut() -> None:
    async with town() as it:
        await it.say(get("a.test"))
        far, _ = await it.target()
        await far.far.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nok")
        await far.far.send_eof()
        assert (await it.rest()).endswith(b"\r\n\r\nok")


async def test_an_http_1_0_visitor_gets_the_end_of_the_connection_as_the_end() -> None:
    async with town() as it:
        await it.say(b"GET / HTTP/1.0\r\nHost: a.test\r\n\r\n")
        far, head = await it.target()
        assert b"HTTP/1.1" in head.split(b"\r\n")[0]
        await far.far.send_all(
            b"HTTP/1.1 103 Early Hints\r\n\r\n"
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"
        )
        await it.visitor.send_eof()
        answer = await it.rest()
        assert answer.endswith(b"\r\n\r\nok")
        assert status(answer) == 200
        assert b"chunked" not in answer


@pytest.mark.parametrize(
    ("method", "head"),
    [
        ("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"),
        ("GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n"),
        ("GET", b"HTTP/1.1 204 No Content\r\n\r\n"),
    ],
)
async def test_a_response_without_a_body_keeps_the_connection_in_step(
    method: str, head: bytes
) -> None:
    async with town() as it:
        for again in (False, True):
            await it.say(get("a.test", method=method))
            far, _said = await it.target(again=again)
            await far.far.send_all(head)
            answer = await it.hear()
            assert answer.endswith(b"\r\n\r\n")
            assert (b"content-length: 5" in answer.lower()) == (b"Length" in head)


async def test_expect_continue_is_answered_by_the_target() -> None:
    async with town() as it:
        await it.say(get("a.test", CL, "Expect: 100-continue", method="POST"))
        far, head = await it.target()
        assert b"Expect: 100-continue" in head
        await far.far.send_all(b"HTTP/1.1 100 Continue\r\n\r\n")
        assert status(await it.hear()) == 100
        await it.say(b"hello")
        assert await until(far.far, b"hello") == b"hello"
        await far.far.send_all(OK)
        assert status(await it.hear(b"ok")) == 200


async def test_several_interim_responses_pass() -> None:
    async with town() as it:
        await it.say(get("a.test"))
        far, _ = await it.target()
        hint = b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n"
        await far.far.send_all(hint * 2 + OK)
        answer = await it.hear(b"ok")
        assert re.findall(rb"HTTP/1.1 (\d+)", answer) == [b"103", b"103", b"200"]


async def test_an_early_answer_arrives_while_the_body_is_still_sent() -> None:
    async with town() as it:
        await it.say(get("a.test", "Content-Length: 1000", method="POST") + b"some")
        far, _ = await it.target()
        await far.far.send_all(b"HTTP/1.1 413 No\r\nContent-Length: 2\r\n\r\nno")
        answer = await it.hear(b"no")
        assert status(answer) == 413
        assert b"connection: close" in answer.lower()
        await it.say(b"more")
        await it.visitor.send_eof()
        assert await it.rest() == b""


async def test_an_answer_of_a_target_that_reads_no_more_still_arrives() -> None:
    async with town() as it:
        await it.say(get("a.test", "Content-Length: 1000", method="POST"))
        far, _ = await it.target()
        far.broken = Code.NORMAL
        await it.say(b"x" * 10)
        await far.far.send_all(b"HTTP/1.1 413 No\r\nContent-Length: 2\r\n\r\nno")
        assert status(await it.hear(b"no")) == 413


async def test_trailers_pass_but_for_those_that_would_be_believed() -> None:
    async with town() as it:
        trailers = b"X-Sum: 1\r\nAuthorization: x\r\nX-Forwarded-For: lie\r\n\r\n"
        await it.say(get("a.test", TE, method="POST") + b"1\r\na\r\n0\r\n" + trailers)
        far = await it.opened()
        said = await until(far.far, b"\r\n0\r\n")
        if not said.endswith(b"\r\n\r\n"):
            said += await until(far.far, b"\r\n\r\n")
        assert said.lower().endswith(b"\r\n0\r\nx-sum: 1\r\n\r\n")


async def test_a_visitor_that_ends_its_side_still_gets_its_answer() -> None:
    async with town() as it:
        await it.say(get("a.test"))
        await it.visitor.send_eof()
        far, _ = await it.target()
        assert await far.far.receive_some() == b""
        await far.far.send_all(OK)
        assert (await it.rest()).endswith(b"ok")


async def test_a_visitor_that_breaks_ends_the_stream_to_its_target() -> None:
    async with town() as it:
        await it.say(get("a.test"))
        far, _ = await it.target()
        await far.far.send_all(b"HTTP/1.1 200 OK\r\n\r\nsome")
        await it.hear(b"some")
        await trio.aclose_forcefully(it.visitor)
        await far.far.send_all(b"more")
        await trio.testing.wait_all_tasks_blocked()
        assert far.resets == [Code.RESET] or far.closed


async def test_nothing_either_way_for_too_long_is_a_gateway_timeout(
    autojump_clock: trio.testing.MockClock,
) -> None:
    visitor, ours = trio.testing.memory_stream_pair()
    it = Town(visitor)
    async with trio.open_nursery() as nursery:
        TIMEOUTS.set(Timeouts(idle_s=30))
        nursery.start_soon(handle_visitor, Visit(ours, VISITOR), it.route)
        await it.say(get("a.test"))
        assert status(await it.hear()) == 504
        nursery.cancel_scope.cancel()


# WebSocket -------------------------------------------------------------------------

UPGRADE = (
    "Connection: keep-alive, Upgrade",
    "Upgrade: websocket",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    "Sec-WebSocket-Version: 13",
)


async def test_a_websocket_is_raw_bytes_both_ways_and_none_are_lost() -> None:
    async with town() as it:
        await it.say(get("a.test", *UPGRADE) + b"early")
        far, head = await it.target()
        assert b"\r\nConnection: Upgrade\r\nUpgrade: websocket" in head
        assert b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==" in head
        await far.far.send_all(
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n"
            b"Upgrade: websocket\r\nSec-WebSocket-Accept: x\r\n\r\nbehind"
        )
        answer = await it.hear(b"behind")
        assert status(answer) == 101
        assert b"sec-websocket-accept: x" in answer.lower()
        assert await until(far.far, b"early") == b"early"
        await it.say(b"\x81\x00up\r\n\r\n")
        assert await until(far.far, b"\r\n\r\n") == b"\x81\x00up\r\n\r\n"
        await far.far.send_all(b"\x00down")
        assert await it.hear(b"down") == b"\x00down"
        await far.far.send_eof()
        await it.visitor.send_eof()
        assert await it.rest() == b""


async def test_a_target_may_refuse_to_switch() -> None:
    async with town() as it:
        for again in (False, True):
            await it.say(get("a.test", *UPGRADE))
            far, _head = await it.target(again=again)
            await far.far.send_all(OK)
            assert status(await it.hear(b"ok")) == 200


async def test_a_switch_that_nobody_asked_for_is_a_bad_gateway() -> None:
    async with town() as it:
        await it.say(get("a.test", "Connection: Upgrade", "Upgrade: h2c"))
        far, _ = await it.target()
        await far.far.send_all(
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n"
            b"Upgrade: h2c\r\n\r\n"
        )
        assert status(await it.hear()) == 502


# The password ------------------------------------------------------------------------


def basic(word: str, scheme: str = "Basic") -> str:
    return f"Authorization: {scheme} {base64.b64encode(word.encode()).decode()}"


async def test_the_right_password_opens_and_stays_with_us() -> None:
    async with town(guard=Guard("me", "a:b é")) as it:
        await it.say(get("x", basic("me:a:b é", "bAsIc"), "X-Forwarded-For: 192.0.2.1"))
        _, head = await it.target()
        assert b"authorization" not in head.lower()
        assert b"X-Forwarded-For: 192.0.2.1" in head


@pytest.mark.parametrize(
    "lines",
    [
        (),
        (basic("me:wrong"),),
        (basic("me:"),),
        (basic(""),),
        ("Authorization: Basic !!!",),
        ("Authorization: Basic",),
        (basic("me:right", "Bearer"),),
        (basic("me:right").replace("Authorization", "Proxy-Authorization"),),
        (basic("me:" + "x" * 8000),),
    ],
)
async def test_a_wrong_password_opens_nothing(lines: tuple[str, ...]) -> None:
    async with town(guard=Guard("me", "right")) as it:
        await it.say(get("a.test", *lines))
        answer = await it.hear()
        assert status(answer) == 401
        assert b'www-authenticate: basic realm="tunnel"' in answer.lower()
        # The same connection may bring the right one.
        await it.say(get("a.test", basic("me:right")))
        await it.target()


async def test_two_passwords_are_one_too_many() -> None:
    async with town(guard=Guard("me", "right")) as it:
        await it.say(get("a.test", basic("me:right"), basic("me:wrong")))
        assert status(await it.hear()) == 400


def test_a_guard_does_not_show_its_password() -> None:
    assert "right" not in repr(Guard("me", "right"))
