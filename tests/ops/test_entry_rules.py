"""The words of an entry that the server enforces, as people write them."""

from __future__ import annotations

from ipaddress import ip_network

import pytest

from tunnel.addresses import Address
from tunnel.center.events import MappingRefused
from tunnel.center.health import Check
from tunnel.errors import Code, UsageError
from tunnel.ops.entries import Published, Service, refuse_twice
from tunnel.ops.entry_syntax import (
    parse_exit,
    parse_http,
    parse_https,
    parse_tcp,
    share_entry,
)
from tunnel.ops.web_words import WORDS
from tunnel.proto.frames import MappingAnswer
from tunnel.proto.rules import MAX_NETWORKS, Rules


@pytest.mark.parametrize(
    ("words", "rules"),
    [
        ("allow=10.0.0.0/8,allow=::1",
         Rules(allow=(ip_network("10.0.0.0/8"), ip_network("::1")))),
        ("deny=198.51.100.7", Rules(deny=(ip_network("198.51.100.7"),))),
        ("expires=90s", Rules(expires_s=90)),
        ("expires=2h", Rules(expires_s=7_200)),
        ("expires=1d", Rules(expires_s=86_400)),
        ("requests=10/s", Rules(requests=10, per_s=1)),
        ("requests=100/m", Rules(requests=100, per_s=60)),
        ("max-body=0", Rules(max_body=0)),
        ("max-body=10M", Rules(max_body=10 << 20)),
        ("path=/api/", Rules(path="/api")),
        ("path=/", Rules()),
        ("path=/api,strip", Rules(path="/api", strip=True)),
        ("path=/a%2Cb", Rules(path="/a,b")),
        ("group=blue", Rules(group="blue")),
    ],
)  # fmt: skip
def test_words_are_rules_of_what_the_server_is_asked_for(
    words: str, rules: Rules
) -> None:
    entry = parse_http(f"shop=8000,{words}")
    assert entry.wanted.rules == rules
    assert entry.wanted.host == "shop"
    assert isinstance(entry.endpoint, Service)
    assert str(entry.endpoint) == "localhost:8000"
    assert entry.check is None


def test_an_entry_without_these_words_has_no_rules() -> None:
    assert parse_http("shop=8000").wanted.rules is None
    assert parse_http("shop=8000,auth=me:x").wanted.rules is None
    both = parse_http("shop=8000,auth=me:x,group=a")
    assert both.wanted.rules == Rules(group="a")
    assert isinstance(both.endpoint, Service)
    assert both.endpoint.rules is not None


@pytest.mark.parametrize(
    ("word", "check"), [("tcp", Check()), ("/healthz?a=1", Check("/healthz?a=1"))]
)
def test_a_check_is_asked_of_who_enforces_it(word: str, check: Check) -> None:
    entry = parse_http(f"shop=8000,check={word}")
    assert entry.check == check
    assert entry.wanted.rules == Rules()


@pytest.mark.parametrize(
    "words",
    ["allow=10.0.0.1/8", "allow=", "allow", "deny=here", "expires=2", "expires=0s",
     "expires=99999999d", "expires=1h,expires=2h", "requests=10", "requests=0/s",
     "requests=1/d", "max-body=-1", "max-body=1T", "path=api", "path=/a/../b",
     "path=/%41", "strip", "strip=,path=/a", "strip=1,path=/a", "group=", "group=a b",
     "check=http", "check=/a b", ",".join(["deny=10.0.0.1"] * (MAX_NETWORKS + 1))],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused_with_an_example(words: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_http(f"shop=8000,{words}")
    name = words.partition("=")[0].partition(",")[0]
    assert name in WORDS
    assert name in f"{caught.value.what} {caught.value.fix}"


def test_tls_that_passes_through_takes_no_words_about_requests() -> None:
    for words in ("requests=1/s", "max-body=1", "path=/a"):
        with pytest.raises(UsageError, match="not for TLS that passes through"):
            parse_https(f"mail=8443,{words}")
    rules = parse_https("mail=8443,allow=10.0.0.0/8,group=a,check=tcp").wanted.rules
    assert rules == Rules(allow=(ip_network("10.0.0.0/8"),), group="a")


def test_what_has_rules_is_not_published_at_a_port_instead() -> None:
    notice = MappingRefused("http-1", Address("a", 0), MappingAnswer(Code.UNSUPPORTED))
    entry = share_entry("8000")
    assert entry.instead(notice, "server.test") is not None
    ruled = share_entry("8000", words=[("group", "a")])
    assert ruled.instead(notice, "server.test") is None


def test_a_server_that_is_too_old_is_named_as_the_reason() -> None:
    entry = parse_http("shop=8000,group=a")
    answer = MappingAnswer(Code.UNSUPPORTED, reason="this server is too old for group")
    error = entry.refused(MappingRefused("http-1", Address("shop", 0), answer))
    assert "too old for group" in error.what
    assert error.fix == "update tunnel there, or publish without these words"


@pytest.mark.parametrize(
    ("word", "cause"),
    [
        ("allow=1.2.3.400", "it is neither an address nor a network"),
        ("allow=10.1.2.3/8", "a network begins at its first address: 10.0.0.0/8"),
        ("deny=fd00::1/8", "a network begins at its first address: fd00::/8"),
        ("expires=2x", ""),
    ],
)
def test_a_value_that_cannot_be_read_is_said_with_its_word(
    word: str, cause: str
) -> None:
    with pytest.raises(UsageError) as caught:
        parse_http(f"shop=8000,{word}")
    assert (caught.value.what, caught.value.cause) == (f"{word} cannot be read", cause)
    assert caught.value.fix.startswith(f"for example {word.partition('=')[0]}=")


@pytest.mark.parametrize(
    ("entries", "twice"),
    [
        (["shop=1", "Shop=2"], "http shop"),
        (["shop=1,path=/a", "shop=2,path=/a,strip"], "http shop/a"),
        (["shop=1,group=a", "shop=2,group=b"], "http shop"),
        (["shop=1,group=a", "shop=2"], "http shop"),
        (["shop=1", "shop=2,path=/a"], ""),
        (["shop=1,group=a", "shop=2,group=a"], ""),
        (["shop=1", "blog=1"], ""),
    ],
)
def test_one_command_publishes_a_name_once(entries: list[str], twice: str) -> None:
    check_once([parse_http(text) for text in entries], twice)


@pytest.mark.parametrize(
    ("entries", "twice"),
    [
        (["6000=1", "6000=2"], "tcp port 6000"),
        (["6000-6003=1-4", "6002=9"], "tcp port 6002"),
        (["6000=1", "127.0.0.1:6000=1"], ""),
        (["1", "2"], ""),
    ],
)
def test_one_command_publishes_a_port_once(entries: list[str], twice: str) -> None:
    check_once([parse_tcp(text) for text in entries], twice)


def test_a_client_is_one_exit() -> None:
    home, work = parse_exit("home,network=10.0.0.0/8"), parse_exit("work")
    refuse_twice([home, parse_http("work=80")])
    with pytest.raises(UsageError, match="home and work are two exits"):
        refuse_twice([home, work])
    check_once([home, home], "exit home")


def check_once(entries: list[Published], twice: str) -> None:
    if not twice:
        refuse_twice(entries)
        return
    with pytest.raises(UsageError) as caught:
        refuse_twice(entries)
    assert caught.value.what == f"{twice} is published twice"
    assert caught.value.fix
