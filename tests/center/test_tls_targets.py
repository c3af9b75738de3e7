"""Targets that are spoken to with TLS: a real one, behind a real link."""

from __future__ import annotations

import hashlib
import logging
import ssl
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
import trio
import trustme
from support.center import LOOPBACK, ask, center, running, target
from support.logs import lines

from tunnel.access.identity import pin_of
from tunnel.addresses import Address
from tunnel.center.events import MappingReady
from tunnel.center.names import NameOptions
from tunnel.ops.entry_syntax import parse_http

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tunnel.ops.entries import Line

NAMES = NameOptions(http=Address(LOOPBACK, 0), domain="t.test")
OTHER_PIN = "A" * 43


@dataclass
class Safe:
    """A service that speaks TLS alone, and what is known of it."""

    at: Address
    ca: Path
    pin: str
    connections: list[trio.SSLStream[trio.SocketStream]]

    @property
    def url(self) -> str:
        return f"https://{self.at}"


async def answer(stream: trio.SSLStream[trio.SocketStream]) -> None:
    """Answer with what came, or with a megabyte; switch where that is asked."""
    heard = b""
    while True:
        while b"\r\n\r\n" not in heard:
            piece = await stream.receive_some()
            if not piece:
                return
            heard += piece
        head, _, heard = heard.partition(b"\r\n\r\n")
        if b"upgrade: echo" in head.lower():
            await stream.send_all(b"HTTP/1.1 101 Go\r\nConnection: upgrade\r\n"
                b"Upgrade: echo\r\n\r\n" + heard)  # fmt: skip
            async for data in stream:
                await stream.send_all(data)
            return
        body = bytes(range(256)) * 4_096 if b" /large " in head else head
        length = b"Content-Length: %d\r\n\r\n" % len(body)
        await stream.send_all(b"HTTP/1.1 200 OK\r\n" + length + body)


@asynccontextmanager
async def safe(tmp_path: Path, name: str = LOOPBACK) -> AsyncIterator[Safe]:
    """Run one for the block; its certificate is for ``name``."""
    authority = trustme.CA()
    certificate = authority.issue_cert(name)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    certificate.configure_cert(context)
    ca = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(ca)
    der = ssl.PEM_cert_to_DER_cert(certificate.cert_chain_pems[0].bytes().decode())
    connections: list[trio.SSLStream[trio.SocketStream]] = []

    async def serve(sock: trio.SocketStream) -> None:
        stream = trio.SSLStream(sock, context, server_side=True, https_compatible=True)
        connections.append(stream)
        try:
            await answer(stream)
            await stream.aclose()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            await trio.aclose_forcefully(stream)

    async with target(serve) as at:
        yield Safe(at, ca, pin_of(der), connections)


@asynccontextmanager
async def published(text: str) -> AsyncIterator[tuple[Address, Line]]:
    """Publish ``shop`` for the block; give the server's HTTP port, and its line."""
    entry = parse_http(f"shop={text}")
    async with center(names=NAMES) as where:
        client, notices = where.client()
        await entry.start(client)
        async with running(client):
            ready = await notices.next(MappingReady)
            http = where.server.names.http
            assert http is not None
            yield http, await entry.ready(ready.public)


def get(path: str = "/", *lines: str) -> bytes:
    head = (f"GET {path} HTTP/1.1", "Host: shop.t.test", *lines, "Connection: close")
    return "\r\n".join((*head, "", "")).encode()


@pytest.mark.parametrize("words", ["ca={ca}", "pin={pin}", "ca={ca},pin={pin}",
    "insecure"])  # fmt: skip
async def test_a_target_that_proves_who_it_is_is_served(
    words: str, tmp_path: Path
) -> None:
    async with safe(tmp_path) as it:
        words = words.format(ca=it.ca, pin=it.pin)
        async with published(f"{it.url},{words}") as (http, line):
            assert (line.state, line.warning) == ("answering", "")
            assert line.target == it.url
            heard = await ask(http, get())
            assert heard.startswith(b"HTTP/1.1 200 OK")
            assert b"Host: shop.t.test" in heard
            assert b"X-Forwarded-For: 127.0.0.1" in heard
            large = (await ask(http, get("/large"))).partition(b"\r\n\r\n")[2]
            wanted = bytes(range(256)) * 4_096
            assert hashlib.sha256(large).digest() == hashlib.sha256(wanted).digest()


@pytest.mark.parametrize(
    ("words", "name", "says"),
    [
        ("", LOOPBACK, "certificate is not trusted"),
        ("ca={ca}", "other.test", "certificate is not trusted"),
        ("pin=" + OTHER_PIN, LOOPBACK, "its pin is {pin}"),
        ("ca={ca},pin=" + OTHER_PIN, LOOPBACK, "its pin is {pin}"),
        ("ca={other}", LOOPBACK, "certificate is not trusted"),
    ],
)
async def test_one_that_does_not_is_told_nothing(
    words: str, name: str, says: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = tmp_path / "other.pem"
    trustme.CA().cert_pem.write_to_path(other)
    async with safe(tmp_path, name) as it:
        words = words.format(ca=it.ca, other=other)
        says = says.format(pin=it.pin)
        entry = f"{it.url},{words}" if words else it.url
        with caplog.at_level(logging.WARNING):
            async with published(entry) as (http, line):
                assert line.state == "not trusted"
                assert says in line.warning
                assert it.pin in line.warning
                secret = get("/", "Cookie: secret")
                heard = await ask(http, secret)
        assert heard.startswith(b"HTTP/1.1 502 ")
        assert b"did not prove who it is" in heard
        assert it.pin.encode() not in heard
        (said,) = [line for line in lines(caplog) if line.startswith("target.refused")]
        assert says in said
        assert f"target={it.at} peer=127.0.0.1" in said


async def test_one_that_does_not_speak_tls_is_said_so(tmp_path: Path) -> None:
    async def plain(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await stream.aclose()

    async def silent(stream: trio.SocketStream) -> None:
        await stream.aclose()

    for serve, status in ((plain, b"502"), (silent, b"502")):
        async with target(serve) as at, published(f"https://{at},insecure") as found:
            http, line = found
            assert line.state == "not trusted"
            heard = await ask(http, get())
            assert heard.startswith(b"HTTP/1.1 " + status)
            assert b"does not speak TLS" in heard or b"broke the connection" in heard


async def test_requests_of_one_visitor_share_a_connection(tmp_path: Path) -> None:
    async with safe(tmp_path) as it, published(f"{it.url},pin={it.pin}") as (http, _):
        before = len(it.connections)
        request = get().replace(b"Connection: close\r\n", b"")
        heard = b""
        async with await trio.open_tcp_stream(http.host, http.port) as stream:
            await stream.send_all(request + request + get("/last"))
            async for data in stream:
                heard += data
        assert heard.count(b"HTTP/1.1 200 OK") == 3
        assert len(it.connections) == before + 1


async def test_bytes_pass_both_ways_after_a_switch(tmp_path: Path) -> None:
    async with safe(tmp_path) as it, published(f"{it.url},pin={it.pin}") as (http, _):
        stream = await trio.open_tcp_stream(http.host, http.port)
        ask_for = b"GET / HTTP/1.1\r\nHost: shop.t.test\r\nConnection: upgrade\r\n"
        async with stream:
            await stream.send_all(ask_for + b"Upgrade: echo\r\n\r\nearly ")
            heard = b""
            while b"early " not in heard:
                heard += await stream.receive_some()
            assert heard.startswith(b"HTTP/1.1 101 Go")
            sent = bytes(range(256)) * 2_048
            async with trio.open_nursery() as nursery:
                nursery.start_soon(stream.send_all, sent)
                heard = b""
                while len(heard) < len(sent):
                    heard += await stream.receive_some()
            assert heard == sent
            await stream.send_eof()
            assert await stream.receive_some() == b""


async def test_with_rewrite_it_is_asked_for_by_its_own_address(tmp_path: Path) -> None:
    async with safe(tmp_path) as it:
        words = f"pin={it.pin},host=rewrite"
        async with published(f"{it.url},{words}") as (http, _):
            heard = await ask(http, get("/", "Origin: http://shop.t.test"))
            assert f"Host: {it.at}\r\n".encode() in heard
            assert f"Origin: https://{it.at}\r\n".encode() in heard
            assert b"X-Forwarded-Host: shop.t.test" in heard
