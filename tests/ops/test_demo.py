from __future__ import annotations

import os
import sys
import tempfile
from contextlib import asynccontextmanager
from hashlib import sha256
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from tunnel.addresses import Address
from tunnel.errors import Exit
from tunnel.front.http.heads import HeadError
from tunnel.net.listen import open_listener
from tunnel.ops import demo
from tunnel.ops.demo_page import (
    CheckFailedError,
    PageClient,
    demo_bytes,
    demo_sha256,
    serve_page,
    serve_visitor,
    socks5_connect,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

PAGE = "127.0.0.1:8000"
PEER = Address("127.0.0.1", 40_000)


@asynccontextmanager
async def visiting() -> AsyncIterator[trio.abc.HalfCloseableStream]:
    ours, theirs = trio.testing.memory_stream_pair()
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery, ours:
            nursery.start_soon(lambda: serve_visitor(theirs, PEER, page=PAGE))
            yield ours
            nursery.cancel_scope.cancel()


async def raw(request: bytes) -> bytes:
    """Send bytes, end, and give all that is answered."""
    async with visiting() as stream:
        await stream.send_all(request)
        await stream.send_eof()
        return b"".join([chunk async for chunk in stream])


def test_the_bytes_of_the_page_are_the_same_every_time() -> None:
    whole = b"".join(demo_bytes(200_001))
    assert len(whole) == 200_001
    assert whole.startswith(b"".join(demo_bytes(70_000)))
    assert sha256(whole).hexdigest() == demo_sha256(200_001)
    assert list(demo_bytes(0)) == []


async def test_one_connection_carries_downloads_uploads_and_heads() -> None:
    async with visiting() as stream:
        page = PageClient(stream, PAGE)
        for _ in range(2):
            digest, answer, nothing = sha256(), bytearray(), bytearray()
            await page.ask("GET", "/bytes/100000", digest.update)
            await page.ask("POST", "/hash", answer.extend, [b"ab", b"c"])
            await page.ask("HEAD", "/", nothing.extend)
            assert digest.hexdigest() == demo_sha256(100_000)
            assert answer.decode() == f"{sha256(b'abc').hexdigest()} 3\n"
            assert not nothing


async def test_the_page_names_what_was_asked_for_without_trusting_it() -> None:
    answer = await raw(b"GET / HTTP/1.1\r\nHost: shop:81\r\n\r\n")
    assert b"<code>shop:81</code>" in answer
    assert PAGE.encode() in answer
    answer = await raw(b"GET / HTTP/1.1\r\nHost: <b>x</b>\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"<b>" not in answer


@pytest.mark.parametrize(
    ("line", "status"),
    [
        ("GET /nothing", 404),
        ("GET /bytes/", 404),
        ("GET /bytes/-1", 404),
        ("GET /bytes/1073741825", 400),
        (f"GET /bytes/{'9' * 5000}", 400),
        ("DELETE /", 405),
        ("GET /bytes/0?x=1", 200),
    ],
)
async def test_a_request_gets_the_status_it_deserves(line: str, status: int) -> None:
    answer = await raw(f"{line} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    assert answer.startswith(b"HTTP/1.1 %d " % status)


async def test_what_is_not_http_is_answered_with_400_and_closed() -> None:
    assert (await raw(b"\x16\x03\x01 hello\r\n\r\n")).startswith(b"HTTP/1.1 400 ")


async def test_a_body_that_nobody_asked_for_ends_the_connection() -> None:
    head = b"GET /bytes/0 HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc"
    assert (await raw(head * 2)).count(b"HTTP/1.1") == 1


async def test_who_waits_for_100_continue_gets_it() -> None:
    async with visiting() as stream:
        await stream.send_all(
            b"POST /hash HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n"
            b"Expect: 100-continue\r\n\r\n"
        )
        assert (await stream.receive_some(12)) == b"HTTP/1.1 100"


@pytest.mark.parametrize(
    ("framing", "body", "answer"),
    [
        ("Transfer-Encoding: chunked", b"2\r\nab\r\n1\r\nc\r\n0\r\n\r\n", b"200 OK"),
        ("Transfer-Encoding: chunked", b"1\r\na\r\n" * 2000 + b"0\r\n\r\n", b"200 OK"),
        ("Transfer-Encoding: chunked", b"no size", b"400 "),
        ("Content-Length: 1073741825", b"", b"400 "),
        ("Content-Length: 3", b"ab", b"400 "),
    ],
)
async def test_a_body_is_hashed_whole_or_refused(
    framing: str, body: bytes, answer: bytes
) -> None:
    head = f"POST /hash HTTP/1.1\r\nHost: x\r\n{framing}\r\n\r\n".encode()
    assert (await raw(head + body)).startswith(b"HTTP/1.1 " + answer)


async def test_a_body_that_stops_is_answered_with_408(
    autojump_clock: trio.testing.MockClock,
) -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    head = b"POST /hash HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nab"
    await ours.send_all(head)
    await serve_visitor(theirs, PEER, page=PAGE)
    assert (await ours.receive_some()).startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize("answer", [b"", b"nonsense\n\n", b"HTTP/1.1 200 OK\r\n"])
async def test_the_check_says_that_the_answer_is_no_http(answer: bytes) -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    await theirs.send_all(answer)
    await theirs.send_eof()
    with pytest.raises(HeadError, match="not HTTP"):
        await PageClient(ours, PAGE).ask("GET", "/", bytearray().extend)


async def test_a_silent_visitor_is_sent_away(
    autojump_clock: trio.testing.MockClock,
) -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    await serve_visitor(theirs, PEER, page=PAGE)
    assert await ours.receive_some() == b""
    assert trio.current_time() >= 30


async def test_a_check_measures_the_page_and_compares(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(demo, "SIZE_BYTES", 300_000)
    listeners = await open_listener("127.0.0.1", 0)
    page = Address("127.0.0.1", listeners[0].socket.getsockname()[1])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_page, listeners)
        seen = await demo.check_way("directly", page, None)
        assert min(seen) > 0
        monkeypatch.setattr(demo, "demo_sha256", lambda _size: "0" * 64)
        with pytest.raises(CheckFailedError, match="download arrived changed"):
            await demo.check_way("directly", page, None)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    "bound", [b"\1" + bytes(6), b"\4" + bytes(18), b"\3\4name\0\0"]
)
async def test_socks5_leaves_the_stream_where_the_target_begins(bound: bytes) -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    await theirs.send_all(b"\5\0\5\0\0" + bound + b"hello")
    await socks5_connect(ours, Address("127.0.0.1", 8000))
    assert await ours.receive_some() == b"hello"
    assert await theirs.receive_some() == b"\5\1\0\5\1\0\3\x09127.0.0.1\x1f\x40"


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"HT", "no SOCKS5 proxy"),
        (b"\5\0\5\2\0\1", "reply 2"),
        (b"\5\0\5", "hung up"),
    ],
)
async def test_a_socks5_refusal_says_what_it_was(answer: bytes, said: str) -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    await theirs.send_all(answer)
    await theirs.send_eof()
    with pytest.raises(CheckFailedError, match=said) as caught:
        await socks5_connect(ours, Address("127.0.0.1", 8000))
    assert caught.value.exit_status is Exit.CHECK_FAILED


def instead_of_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, do: str) -> None:
    """Let every child be a shell script; temp folders go below ``tmp_path``."""
    script = tmp_path / "fake"
    script.write_text(f"#!/bin/sh\n{do}\n")
    script.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(script))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def left_in(tmp_path: Path) -> list[Path]:
    return list(tmp_path.glob("tunnel-demo-*"))


async def test_a_child_that_dies_is_status_9_with_its_last_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    instead_of_python(tmp_path, monkeypatch, "echo it hurts >&2; exit 3")
    assert await demo.run_demo(once=True) == 9
    said = capsys.readouterr().err
    assert "error: `tunnel serve` ended by itself with status 3" in said
    assert "it hurts" in said
    assert not left_in(tmp_path)


async def test_children_see_no_setting_and_no_folder_of_the_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TUNNEL_TO", "the user's own")
    monkeypatch.setenv("XDG_STATE_HOME", "/the/users/own")
    instead_of_python(tmp_path, monkeypatch, "env | grep -e TUNNEL -e XDG >&2")
    await demo.run_demo(once=True)
    said = capsys.readouterr().err
    assert "own" not in said.replace("its own", "")
    assert "tunnel-demo-" in said


async def test_cancelled_it_leaves_no_child_and_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = tmp_path / "started"
    os_pid = f"echo $$ > {started}.new; mv {started}.new {started}; exec sleep 600"
    instead_of_python(tmp_path, monkeypatch, os_pid)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(demo.run_demo, True)
        with trio.fail_after(10):
            while not started.exists():
                await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()
    with pytest.raises(ProcessLookupError):
        os.kill(int(started.read_text()), 0)
    assert not left_in(tmp_path)
