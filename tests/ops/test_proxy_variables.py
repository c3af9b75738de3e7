"""HTTPS_PROXY, ALL_PROXY and NO_PROXY as curl and Go read them."""

from __future__ import annotations

import pytest

from tunnel.errors import UsageError
from tunnel.ops.proxy_variables import is_exempt, is_here, not_used, proxy_of

SERVER = "t.example.net", 7443


@pytest.mark.parametrize(
    ("variables", "used"),
    [
        ({}, None),
        ({"HTTP_PROXY": "http://a:1"}, None),
        ({"HTTPS_PROXY": ""}, None),
        ({"HTTPS_PROXY": "http://a:1", "ALL_PROXY": "http://b:1"}, "http://a:1"),
        ({"https_proxy": "http://a:1", "HTTPS_PROXY": "http://b:1"}, "http://a:1"),
        ({"HTTPS_PROXY": " ", "all_proxy": "socks5h://b:1"}, "socks5h://b:1"),
        ({"HTTPS_PROXY": "u:p@a:3128"}, "http://a:3128"),
        ({"HTTPS_PROXY": "http://a:1/", "NO_PROXY": "example.net"}, None),
        ({"HTTPS_PROXY": "http://a:1/", "no_proxy": "example.org"}, "http://a:1"),
    ],
)
def test_the_variable_that_counts_is_the_one_of_curl(
    variables: dict[str, str], used: str | None
) -> None:
    via = proxy_of(variables, *SERVER)
    assert (via and str(via)) == used


@pytest.mark.parametrize(
    ("variables", "host", "said"),
    [
        ({}, "t.example.net", None),
        ({"ALL_PROXY": "http://a:1"}, "t.example.net", None),
        ({"ALL_PROXY": "http://a:1", "NO_PROXY": "lan"}, "t.example.net", None),
        (
            {"ALL_PROXY": "http://a:1", "NO_PROXY": "example.net"},
            "t.example.net",
            ("ALL_PROXY", "NO_PROXY names the server"),
        ),
        (
            {"https_proxy": "http://a:1", "no_proxy": "*", "NO_PROXY": "lan"},
            "t.example.net",
            ("https_proxy", "no_proxy names the server"),
        ),
        (
            {"HTTPS_PROXY": "http://a:1"},
            "localhost",
            ("HTTPS_PROXY", "the server is this machine"),
        ),
        (
            {"http_proxy": "http://a:1"},
            "t.example.net",
            ("http_proxy", "the link is not HTTP: HTTPS_PROXY or ALL_PROXY counts"),
        ),
        ({"HTTP_PROXY": "http://a:1", "ALL_PROXY": "http://b:1"}, "a.b", None),
    ],
)
def test_why_a_proxy_is_not_used_is_known(
    variables: dict[str, str], host: str, said: tuple[str, str] | None
) -> None:
    assert not_used(variables, host, 7443) == said
    if said is not None:
        assert proxy_of(variables, host, 7443) is None


def test_a_proxy_knows_its_variable_user_and_password() -> None:
    via = proxy_of({"ALL_PROXY": "socks5://me:s%3Ae@[::1]:1080"}, *SERVER)
    assert via is not None
    assert (via.named, via.host, via.user, via.password) == (
        "ALL_PROXY",
        "::1",
        "me",
        "s:e",
    )


@pytest.mark.parametrize(
    "url", ["https://me:sesame@a:1", "http://me:sesame@a", "ftp://me:sesame@a:b", "::"]
)
def test_a_wrong_url_is_said_with_its_variable_and_without_its_secret(url: str) -> None:
    with pytest.raises(UsageError) as caught:
        proxy_of({"https_proxy": url}, *SERVER)
    said = str(caught.value) + str(caught.value.cause) + str(caught.value.fix)
    assert "https_proxy" in said
    assert "sesame" not in said


@pytest.mark.parametrize(
    "host",
    ["localhost", "LOCALHOST.", "a.localhost", "127.9.9.9", "::1", "::ffff:127.0.0.1"],
)
def test_this_machine_is_reached_without_a_proxy(host: str) -> None:
    assert is_here(host)
    assert proxy_of({"ALL_PROXY": "nonsense"}, host, 7443) is None


@pytest.mark.parametrize("host", ["localhost.lan", "10.0.0.1", "fe80::1", "1.example"])
def test_other_machines_are_no_loopback(host: str) -> None:
    assert not is_here(host)


@pytest.mark.parametrize(
    ("entries", "host", "exempt"),
    [
        ("*", "a.b", True),
        ("x, *", "10.0.0.1", True),
        ("", "a.b", False),
        (" , ,", "a.b", False),
        ("example.net", "example.net", True),
        ("example.net", "t.EXAMPLE.net.", True),
        ("Example.NET.", "t.example.net", True),
        ("example.net", "notexample.net", False),
        (".example.net", "t.example.net", True),
        ("*.example.net", "t.example.net", True),
        ("lan  corp", "db.corp", True),
        ("t.example.net", "example.net", False),
        ("a.b:7443", "a.b", True),
        ("a.b:443", "a.b", False),
        ("10.0.0.0/8", "10.9.9.9", True),
        ("10.0.0.1/8", "10.9.9.9", True),
        ("10.0.0.0/8", "11.0.0.1", False),
        ("10.0.0.0/8", "10.example", False),
        ("10.0.0.1", "10.0.0.1", True),
        ("10.0.0.1", "::ffff:10.0.0.1", True),
        ("10.0.0.1:7443", "10.0.0.1", True),
        ("10.0.0.1:80", "10.0.0.1", False),
        ("0.1", "10.0.0.1", False),
        ("fd00::/8", "fd12::1", True),
        ("fd12::1", "fd12:0::1", True),
        ("[fd12::1]", "fd12::1", True),
        ("[fd12::1]:7443", "fd12::1", True),
        ("[fd12::1]:80", "fd12::1", False),
        ("[nonsense", "fd12::1", False),
        ("a.b:nonsense", "a.b", False),
    ],
)
def test_no_proxy_names_hosts_as_for_other_programs(
    entries: str, host: str, exempt: bool
) -> None:
    assert is_exempt(entries, host, 7443) is exempt
