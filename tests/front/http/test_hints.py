"""What a target did in place of an answer, and how it should have been published."""

from __future__ import annotations

import itertools
import logging

import pytest
import trio
import trio.testing
from support.logs import lines, text
from support.town import get, status, town

from tunnel.errors import Code
from tunnel.front.http import hints
from tunnel.front.http.hints import LOGGED_BYTES, LOOKED_AT_BYTES, say_once

REFUSALS = {
    "Vite": b'Blocked request. This host ("a.test") is not allowed.',
    "webpack": b"Invalid Host header",
    "webpack 5": b"Invalid Host/Origin header",
    "Rails": b"<body><h1>Blocked hosts: a.test</h1>",
    "Rails 6": b"<body><h1>Blocked host: a.test</h1>",
    "Django": b"<head><title>DisallowedHost\n          at /</title>",
    "Django, plain": b"Invalid HTTP_HOST header: 'a.test'.",
    "Jupyter": b"<!DOCTYPE HTML><title>Jupyter Server</title>403 : Forbidden",
    "Jupyter, API": b'{"message": "Forbidden", "reason": null}',
    "MCP, TypeScript": b'{"error":{"message":"Invalid Host: a.test"}}',
}


@pytest.fixture(autouse=True)
def nothing_said(caplog: pytest.LogCaptureFixture) -> None:
    hints._SAID.clear()
    caplog.set_level(logging.INFO)


def answer(body: bytes, *more: bytes, code: int = 403) -> bytes:
    size = b"Content-Length: %d" % len(body)
    first = b"HTTP/1.1 %d Refused" % code
    return b"\r\n".join((first, size, *more, b"", body))


async def ask(said: bytes, times: int = 1) -> bytes:
    heard = b""
    for _ in range(times):
        async with town() as it:
            await it.say(get("a.test"))
            far, _ = await it.target()
            await far.far.send_all(said)
            await far.far.send_eof()
            await it.visitor.send_eof()
            heard = await it.rest()
    return heard


# In place of an answer ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (b"", "ended the connection without an answer"),
        (b"HTTP/1.1 200 OK\r\nX: y", "broke off within its answer's head"),
        (b"\x15\x03\x01\x00\x02\x02\x46", "speaks TLS"),
        (b"\0\0\x12\x04\0\0\0\0\0\0\x03\0\0\0\x80", "speaks HTTP/2"),
        (b"\0\0\x08\x07\0\0\0\0\0\0\0\0\0\0\0\0\x01", "speaks HTTP/2"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "something that is not HTTP"),
        (b"220 mail ESMTP\r\n\r\n", "something that is not HTTP"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"y" * 140_000, "a head of more than 131072"),
    ],
)
async def test_a_page_and_one_line_of_the_log_say_which_it_was(
    said: bytes, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    heard = await ask(said)
    assert status(heard) == 502
    assert words in heard.decode()
    (line,) = lines(caplog)
    assert line.startswith("request.failed peer=203.0.113.9:4711 host=a.test reason=")
    assert words in line


@pytest.mark.parametrize("said", [b"\x15\x03\x01\x00\x02\x02\x46", b"SSH-2.0-x\r\n"])
async def test_what_is_no_http_is_not_waited_for(said: bytes) -> None:
    async with town() as it:
        await it.say(get("a.test"))
        far, _ = await it.target()
        await far.far.send_all(said)  # and nothing more
        assert status(await it.hear()) == 502
        assert far.resets == [Code.RESET]


async def test_an_answer_may_come_byte_by_byte() -> None:
    async with town() as it:
        await it.say(get("a.test"))
        far, _ = await it.target()
        for byte in b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok":
            await far.far.send_all(bytes((byte,)))
            await trio.testing.wait_all_tasks_blocked()
        assert status(await it.hear(b"ok")) == 200


async def test_an_answer_that_breaks_off_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    await ask(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nsome")
    assert "broke off within its answer" in text(caplog)


@pytest.mark.parametrize("code", [Code.REFUSED, Code.RESET, Code.RESOURCE])
async def test_a_target_that_is_not_reached_is_logged(
    code: Code, caplog: pytest.LogCaptureFixture
) -> None:
    async with town() as it:
        it.names["a.test"] = code
        await it.say(get("a.test"))
        assert status(await it.hear()) in (502, 503)
    assert text(caplog).count("request.failed") == 1


# Lines that are left out -------------------------------------------------------------


async def test_a_line_that_is_left_out_is_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    broken = b"HTTP/1.1 204 No\r\nno colon \x1b[31m\xe9\r\n\r\n"
    assert b"no colon" not in await ask(broken, times=3)
    (line,) = lines(caplog)
    assert line.startswith("answer.line_dropped host=a.test reason=")
    assert "no colon" in line
    assert "\x1b" not in line


async def test_of_a_long_line_the_beginning_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    await ask(b"HTTP/1.1 204 No\r\n" + b"x" * 60_000 + b"\r\n\r\n")
    assert "x" * LOGGED_BYTES + "…" in text(caplog)
    assert len(text(caplog)) < LOGGED_BYTES + 100


# Checks of the host ------------------------------------------------------------------


@pytest.mark.parametrize("name", REFUSALS)
@pytest.mark.parametrize("code", [400, 403, 421])
async def test_a_check_of_the_host_is_known_and_named_once(
    name: str, code: int, caplog: pytest.LogCaptureFixture
) -> None:
    said = answer(REFUSALS[name], b"Content-Type: text/html", code=code)
    assert (await ask(said, times=3)).endswith(REFUSALS[name])
    (line,) = lines(caplog)
    assert line.startswith("host.refused host=a.test ")
    assert "host=rewrite" in line


@pytest.mark.parametrize(
    "said",
    [
        answer(REFUSALS["Vite"], code=200),
        answer(REFUSALS["Vite"], b"Content-Type: image/png"),
        answer(REFUSALS["Vite"], b"Content-Encoding: gzip"),
        answer(b"." * LOOKED_AT_BYTES + REFUSALS["Vite"]),
        answer(b"Forbidden"),
        answer(b'{"message": "Forbidden", "reason": "not yours"}'),
        answer(b""),
    ],
)
async def test_other_answers_are_not(
    said: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    await ask(said)
    assert lines(caplog) == []


async def test_a_refusal_is_looked_at_as_it_passes_and_not_held(
    caplog: pytest.LogCaptureFixture,
) -> None:
    body = REFUSALS["Vite"]
    async with town() as it:
        await it.say(get("a.test"))
        far, _ = await it.target()
        await far.far.send_all(answer(body)[: -len(body)])
        await it.hear()
        for byte in body:
            await far.far.send_all(bytes((byte,)))
            assert await it.visitor.receive_some() == bytes((byte,))
    assert "host=rewrite" in text(caplog)


@pytest.mark.parametrize(
    "body",
    [
        b"Client sent an HTTP request to an HTTPS server.\n",
        b"<center>The plain HTTP request was sent to HTTPS port</center>",
        b"You're speaking plain HTTP to an SSL-enabled server port.<br />",
    ],
)
async def test_a_target_that_wants_tls_is_known_by_its_page(
    body: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    heard = await ask(b"HTTP/1.0 400 Bad Request\r\n\r\n" + body)
    assert status(heard) == 400
    (line,) = lines(caplog)
    assert "https://HOST:PORT" in line


def test_what_was_said_of_any_number_of_names_is_bounded() -> None:
    for number in range(5_000):
        say_once("host.refused", f"{number}.test", "why")
    assert len(hints._SAID) == 1_000
    newest = next(itertools.islice(reversed(hints._SAID), 1))
    assert newest[1] == "4999.test"
