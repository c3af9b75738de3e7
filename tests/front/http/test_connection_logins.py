"""NTLM and Negotiate log a connection in: behind a proxy it may be somebody else's."""

from __future__ import annotations

from ipaddress import ip_network
from typing import TYPE_CHECKING

import pytest
from support.town import VISITOR, get, town

from tunnel.access.visitors import VISITORS, Visitors
from tunnel.addresses import Address

if TYPE_CHECKING:
    from collections.abc import Iterator

KEPT = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n%b\r\nok"


@pytest.fixture
def _proxy() -> Iterator[None]:
    token = VISITORS.set(Visitors([ip_network(VISITOR.host)]))
    yield
    VISITORS.reset(token)


async def answered(said: tuple[str, ...], fields: bytes) -> bool:
    """Ask twice on one connection; return whether the target's was the same."""
    async with town() as it:
        await it.say(get("a.test", *said, path="/anna"))
        first, _ = await it.target()
        await first.far.send_all(KEPT % fields)
        await it.hear(b"ok")
        await it.say(get("a.test", path="/berta"))
        if first.is_closed:
            other, head = await it.target()
        else:
            other, head = await it.target(again=True)
        assert head.startswith(b"GET /berta ")
        assert (other is first) is not first.is_closed
        return other is first


LOGINS = [
    (("Authorization: NTLM TlRMTVNTUAAB",), b""),
    (("Authorization: negotiate YIIJ",), b""),
    ((), b"WWW-Authenticate: NTLM TlRMTVNTUAAC\r\n"),
    ((), b"WWW-Authenticate: Basic realm=x, Negotiate\r\n"),
]


@pytest.mark.usefixtures("_proxy")
@pytest.mark.parametrize(("said", "fields"), LOGINS)
async def test_two_visitors_behind_a_trusted_proxy_never_share_a_login(
    said: tuple[str, ...], fields: bytes
) -> None:
    assert not await answered(said, fields)


@pytest.mark.parametrize(("said", "fields"), LOGINS)
async def test_the_connection_of_one_visitor_stays_logged_in(
    said: tuple[str, ...], fields: bytes
) -> None:
    assert await answered(said, fields)


@pytest.mark.usefixtures("_proxy")
@pytest.mark.parametrize(
    ("said", "fields"),
    [
        ((), b""),
        (("Authorization: Basic bnRsbTpuZWdvdGlhdGU=",), b""),
        (("Authorization: Bearer ntlmnegotiate",), b""),
        ((), b"WWW-Authenticate: Basic realm=x\r\n"),
    ],
)
async def test_logins_of_single_requests_keep_the_connection_even_there(
    said: tuple[str, ...], fields: bytes
) -> None:
    assert await answered(said, fields)


@pytest.mark.usefixtures("_proxy")
async def test_visitors_with_other_addresses_share_nothing() -> None:
    anna, berta = "198.51.100.1", "198.51.100.2"
    async with town() as it:
        it.believed = [Address(anna, 0), Address(berta, 0)]
        await it.say(get("a.test", f"X-Forwarded-For: {anna}"))
        first, _ = await it.target()
        await first.far.send_all(KEPT % b"")
        await it.hear(b"ok")
        await it.say(get("a.test", f"X-Forwarded-For: {berta}"))
        other, head = await it.target()
        assert other is not first
        assert f"X-Forwarded-For: {berta}".encode() in head
