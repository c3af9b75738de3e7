from __future__ import annotations

from contextlib import contextmanager
from ipaddress import ip_network
from typing import TYPE_CHECKING

import pytest

from tunnel.access.visitors import VISITORS, Visitors
from tunnel.addresses import Address
from tunnel.front.http.forwarded import Origin, origin_of
from tunnel.front.http.heads import read_request
from tunnel.front.http.request import Request

if TYPE_CHECKING:
    from collections.abc import Iterator

PROXY = Address("10.0.0.1", 40_000)


@contextmanager
def trusting(*networks: str) -> Iterator[None]:
    token = VISITORS.set(Visitors([ip_network(text) for text in networks]))
    yield
    VISITORS.reset(token)


def request(headers: dict[str, str]) -> Request:
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    raw = f"GET / HTTP/1.1\r\nHost: shop.test\r\n{lines}\r\n".encode()
    return Request(read_request(raw, 100), "GET", "/", "shop.test", "shop.test")


def origin(headers: dict[str, str], peer: Address = PROXY) -> Origin:
    with trusting("10.0.0.0/8"):
        return origin_of(request(headers), peer, secure=False)


@pytest.mark.parametrize(
    ("headers", "visitor"),
    [
        ({}, PROXY),
        ({"x-forwarded-for": "198.51.100.1"}, Address("198.51.100.1", 0)),
        ({"x-forwarded-for": "6.6.6.6, 198.51.100.1:77"}, Address("198.51.100.1", 77)),
        ({"x-forwarded-for": "198.51.100.1, 10.1.1.1"}, Address("198.51.100.1", 0)),
        ({"x-forwarded-for": "2001:db8::1"}, Address("2001:db8::1", 0)),
        ({"x-forwarded-for": "[2001:db8::1]:5"}, Address("2001:db8::1", 5)),
        ({"x-forwarded-for": "::ffff:192.0.2.1"}, Address("192.0.2.1", 0)),
        ({"x-forwarded-for": "198.51.100.1, unknown"}, PROXY),
        ({"x-forwarded-for": "6.6.6.6, what, 10.1.1.1"}, Address("10.1.1.1", 0)),
        ({"x-forwarded-for": "1.2.3.4:99999"}, PROXY),
        ({"x-forwarded-for": "fe80::1%eth0"}, PROXY),
        ({"forwarded": "for=198.51.100.1;proto=https"}, Address("198.51.100.1", 0)),
        ({"forwarded": 'for="[2001:db8::1]:5"'}, Address("2001:db8::1", 5)),
        (
            {"forwarded": "for=6.6.6.6, for=198.51.100.1, for=10.1.1.1"},
            Address("198.51.100.1", 0),
        ),
        ({"forwarded": "for=198.51.100.1, for=_hidden"}, PROXY),
        ({"forwarded": 'for="198.51.100.1'}, PROXY),
        (
            {"x-forwarded-for": "198.51.100.1", "forwarded": "for=6.6.6.6"},
            Address("198.51.100.1", 0),
        ),
    ],
)
def test_the_visitor_is_the_last_one_that_a_trusted_proxy_names(
    headers: dict[str, str], visitor: Address
) -> None:
    assert origin(headers).visitor == visitor


def test_who_is_not_trusted_is_believed_nothing() -> None:
    peer = Address("198.51.100.7", 5)
    headers = {
        "x-forwarded-for": "6.6.6.6",
        "x-forwarded-proto": "https",
        "x-forwarded-host": "bank.test",
        "forwarded": "for=6.6.6.6;proto=https",
    }
    assert origin(headers, peer) == Origin(peer, "http", "shop.test")
    assert origin_of(request(headers), PROXY, secure=True) == Origin(
        PROXY, "https", "shop.test"
    )


def test_scheme_and_host_are_those_of_the_visitor() -> None:
    told = origin({"x-forwarded-proto": "https", "x-forwarded-host": "www.test:8443"})
    assert told == Origin(PROXY, "https", "www.test:8443")
    told = origin({"forwarded": 'for=192.0.2.1;host="www.test:81";proto=HTTPS'})
    assert told == Origin(Address("192.0.2.1", 0), "https", "www.test:81")
    told = origin({"x-forwarded-proto": "gopher", "x-forwarded-host": "a b"})
    assert told == Origin(PROXY, "http", "shop.test")
