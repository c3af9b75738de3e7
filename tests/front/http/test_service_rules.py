"""The words of an entry, on heads alone."""

from __future__ import annotations

import pytest

from tunnel.addresses import Address, UnixPath
from tunnel.front.http.forwarded import Origin
from tunnel.front.http.heads import read_answer
from tunnel.front.http.service_rules import Edits, Own, ServiceRules

VISITOR = Address("203.0.113.9", 4711)
PUBLIC = Origin(VISITOR, "https", "shop.t.test:8443")
DEV = Own.of(Address("localhost", 5173), secure=False)


def rewriting(own: Own = DEV) -> ServiceRules:
    return ServiceRules(host=own.authority, own=own)


def answered(rules: ServiceRules, line: str, origin: Origin = PUBLIC) -> str:
    """Return what becomes of a field of an answer."""
    raw = f"HTTP/1.1 302 Found\r\n{line}\r\nContent-Length: 0\r\n\r\n".encode()
    changed, length = rules.answer_lines(origin)(read_answer(raw, b"GET", 10))
    assert length == b"Content-Length: 0"
    return changed.decode()


def asked(rules: ServiceRules, line: str, origin: Origin = PUBLIC) -> str:
    (changed,) = rules.request_lines([line.encode()], origin)
    return changed.decode()


@pytest.mark.parametrize(
    ("target", "secure", "authority"),
    [
        (Address("localhost", 5173), False, b"localhost:5173"),
        (Address("127.0.0.1", 80), False, b"127.0.0.1"),
        (Address("127.0.0.1", 80), True, b"127.0.0.1:80"),
        (Address("nas.lan", 443), True, b"nas.lan"),
        (Address("::1", 8000), False, b"[::1]:8000"),
        (Address("fe80::1%eth0", 8000), False, b"[fe80::1]:8000"),
        (UnixPath("/run/x.sock"), False, b"localhost"),
    ],
)
def test_a_target_is_asked_for_by_its_own_address(
    target: Address | UnixPath, secure: bool, authority: bytes
) -> None:
    assert Own.of(target, secure=secure).authority == authority


@pytest.mark.parametrize(
    ("said", "public"),
    [
        ("http://127.0.0.1:5173/login?a=b#c", "https://shop.t.test:8443/login?a=b#c"),
        ("http://LOCALHOST:5173/", "https://shop.t.test:8443/"),
        ("HTTPS://localhost:5173", "https://shop.t.test:8443/"),
        ("//[::1]:5173/x", "https://shop.t.test:8443/x"),
        ("http://0.0.0.0:5173?q", "https://shop.t.test:8443/?q"),
    ],
)
def test_a_redirect_to_the_target_s_own_address_becomes_public(
    said: str, public: str
) -> None:
    for name in ("Location", "location", "Content-Location"):
        assert answered(rewriting(), f"{name}: {said}") == f"{name}: {public}"


@pytest.mark.parametrize(
    "line",
    [
        "Location: /login",
        "Location: login?to=http://localhost:5173/",
        "Location: http://localhost:5174/",
        "Location: http://localhost/",
        "Location: http://localhost:5173@evil.test/",
        "Location: http://localhost:5173.evil.test/",
        "Location: http://me@localhost:5173/",
        "Location: http://evil.test/http://localhost:5173/",
        "Location: ftp://localhost:5173/",
        "Location: http://localhost:5173\\@evil.test/",
        "X-Location: http://localhost:5173/",
        "Set-Cookie: a=b; Path=/; Domain=t.test",
        "Set-Cookie: domain=localhost; Path=/",
        "Set-Cookie: a=b; X-Domain=localhost",
    ],
)
def test_what_is_of_another_address_stays(line: str) -> None:
    assert answered(rewriting(), line) == line


@pytest.mark.parametrize(
    "line", ["Location: http://localhost:5173/", "Set-Cookie: a=b; Domain=localhost"]
)
def test_without_rewrite_nothing_is_turned(line: str) -> None:
    assert answered(ServiceRules(), line) == line
    assert answered(ServiceRules(host=b"localhost:5173"), line) == line


def test_a_visitor_that_names_no_host_is_sent_to_a_path() -> None:
    nobody = PUBLIC._replace(host="")
    line = answered(rewriting(), "Location: http://localhost:5173/a", nobody)
    assert line == "Location: /a"


@pytest.mark.parametrize(
    ("said", "host", "public"),
    [
        ("a=b; Domain=localhost; Path=/", "shop.t.test:8443", "shop.t.test"),
        ("a=b;domain = .LocalHost ;Path=/", "shop.t.test", "shop.t.test"),
        ("a=b; Domain=127.0.0.1; Path=/", "Shop.t.test.:1", "Shop.t.test"),
        ("a=b; Domain=localhost; Path=/", "203.0.113.1:8000", ""),
        ("a=b; Domain=localhost; Path=/", "[2001:db8::1]:8000", ""),
        ("a=b; Domain=localhost; Path=/", "shop", ""),
    ],
)
def test_a_cookie_of_the_target_s_own_host_becomes_public(
    said: str, host: str, public: str
) -> None:
    line = answered(rewriting(), f"Set-Cookie: {said}", PUBLIC._replace(host=host))
    domain = f"; Domain={public}" if public else ""
    assert line.replace(";Path", "; Path") == f"Set-Cookie: a=b{domain}; Path=/"


def test_a_page_of_this_site_is_the_target_s_own_and_no_other_is() -> None:
    rules = rewriting()
    for line, becomes in (
        ("Origin: https://shop.t.test:8443", "Origin: http://localhost:5173"),
        ("referer: https://SHOP.t.test:8443/a?b", "referer: http://localhost:5173/a?b"),
        ("Origin: https://shop.t.test", "Origin: https://shop.t.test"),
        ("Origin: https://evil.test", "Origin: https://evil.test"),
        ("Origin: null", "Origin: null"),
        ("X-Origin: https://shop.t.test:8443", "X-Origin: https://shop.t.test:8443"),
    ):
        assert asked(rules, line) == becomes
    assert asked(ServiceRules(), "Origin: https://shop.t.test:8443").startswith(
        "Origin: htt"
    )


def test_fields_are_set_and_removed() -> None:
    edits = Edits(frozenset((b"x-a", b"server")), (b"X-A: 1", b"X-A: 2"))
    lines = [b"Server: s", b"x_a: 0", b"X-Ab: 3", b"X-A:4"]
    assert ServiceRules(request=edits).request_lines(lines, PUBLIC) == [
        b"X-Ab: 3", b"X-A: 1", b"X-A: 2"
    ]  # fmt: skip
    head = read_answer(
        b"HTTP/1.1 200 OK\r\n%b\r\n\r\n" % b"\r\n".join(lines), b"GET", 9
    )
    assert ServiceRules(answer=edits).answer_lines(PUBLIC)(head) == [
        b"X-Ab: 3", b"X-A: 1", b"X-A: 2"
    ]  # fmt: skip
