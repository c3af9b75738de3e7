"""Certificates and proxies that libraries refuse with errors of their own kind."""

from __future__ import annotations

import base64
from functools import partial
from typing import TYPE_CHECKING

import pytest
import trio
from support.hostile_words import der

from tunnel.access.host_certificates import facts_of
from tunnel.access.identity import (
    _make_identity,
    load_or_make_identity,
    pin_of,
)
from tunnel.errors import LocalLinkError, StateError, TlsError, UsageError
from tunnel.link.upstream_proxy import UpstreamProxy, dial_through

if TYPE_CHECKING:
    from pathlib import Path

VERSION = b"\xa0\x03\x02\x01"


def strange(certificate: bytes) -> bytes:
    """Return a certificate of version 42."""
    at = certificate.index(VERSION) + len(VERSION)
    return certificate[:at] + bytes([41]) + certificate[at + 1 :]


def pem(certificate: bytes) -> bytes:
    lines = base64.encodebytes(certificate).decode()
    return f"-----BEGIN CERTIFICATE-----\n{lines}-----END CERTIFICATE-----\n".encode()


def test_a_certificate_of_a_version_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TlsError):
        pin_of(strange(der()))
    with pytest.raises(ValueError, match="version"):
        facts_of(pem(strange(der())))
    path = tmp_path / "identity.pem"
    key = _make_identity().partition("-----BEGIN CERT")[0].encode()
    path.write_bytes(key + pem(strange(der())))
    path.chmod(0o600)
    with pytest.raises(StateError):
        load_or_make_identity(tmp_path)


async def answer(stream: trio.SocketStream, *, said: list[bytes]) -> None:
    """Answer whatever comes with some bytes, as a proxy would."""
    async with stream:
        for piece in said:
            await stream.receive_some()
            await stream.send_all(piece)
        await stream.receive_some()


@pytest.mark.parametrize(
    ("scheme", "said"),
    [
        ("socks5", [b"\5\0", b"\5\0\0\3\2\xff\xfe\0\x50"]),
        ("socks4", [b"\0\x07" + bytes(6)]),
        ("http", [b"HTTP/1.1 xyz\r\n\r\n"]),
    ],
)
@pytest.mark.timeout(30)
def test_a_proxy_whose_answer_cannot_be_read_is_none(
    scheme: str, said: list[bytes]
) -> None:
    async def main() -> str:
        async with trio.open_nursery() as nursery:
            serve = partial(trio.serve_tcp, partial(answer, said=said), 0)
            listeners = await nursery.start(partial(serve, host="127.0.0.1"))
            port = listeners[0].socket.getsockname()[1]
            via = UpstreamProxy.parse(f"{scheme}://127.0.0.1:{port}")
            with pytest.raises(LocalLinkError) as refused:
                await dial_through(via, "a.test", 7443)
            nursery.cancel_scope.cancel()
            return refused.value.what

    assert "127.0.0.1" in trio.run(main)


@pytest.mark.parametrize(
    "user", ["gr%C3%BC%C3%9F:x", "x:gr%C3%BC%C3%9F", f"{'x' * 256}:x", "a%00b:x"]
)
def test_a_user_whom_no_socks_proxy_can_be_told_is_refused(user: str) -> None:
    with pytest.raises(UsageError):
        UpstreamProxy.parse(f"socks5://{user}@proxy.test:1080")
