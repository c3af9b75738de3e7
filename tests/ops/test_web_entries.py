"""Names of web services as people write them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trustme

import tunnel
from tunnel.addresses import Address
from tunnel.center.tls_target import TargetTls
from tunnel.errors import UsageError
from tunnel.front.http.guard import Guard
from tunnel.front.http.service_rules import Edits, Own, ServiceRules
from tunnel.ops.entries import Service, SharedFolder
from tunnel.ops.entry_syntax import parse_http, parse_https, share_entry
from tunnel.ops.flags import WebFlags
from tunnel.ops.web_words import WORDS, pairs_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tunnel.ops.entries import Published


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("shop", "shop"),
        ("shop.example.", "shop.example"),
        ("Bücher.Example.", "xn--bcher-kva.example"),
        ("*.example.net", "*.example.net"),
        ("", ""),
    ],
)
def test_a_name_is_given_to_the_server_as_it_takes_it(written: str, name: str) -> None:
    assert share_entry("8000", written).wanted.host.lower() == name
    if name:
        assert parse_http(f"{written}=8000").wanted.host.lower() == name


@pytest.mark.parametrize("written", ["a b", "a..b", "::1", "*", "x" * 254, "a/b", "."])
def test_what_is_no_name_is_refused_at_once(written: str) -> None:
    with pytest.raises(UsageError):
        share_entry("8000", written)
    with pytest.raises(UsageError):
        parse_http(f"{written}=8000")


@pytest.mark.parametrize("read", [share_entry, lambda text: parse_http(f"a={text}")])
def test_words_stand_behind_the_target(read: Callable[[str], Published]) -> None:
    entry = read("8000,auth=me:a%2Cb%2cc=d")
    assert isinstance(entry.endpoint, Service)
    assert entry.endpoint.rules == ServiceRules(Guard("me", "a,b,c=d"))
    assert entry.endpoint.target == Address("localhost", 8000)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("aut=me:secret", "did you mean auth=USER:PASSWORD?"),
        ("=me:secret", "known: auth=USER:PASSWORD"),
        ("auth", "it is auth=USER:PASSWORD"),
        ("auth=", "it is auth=USER:PASSWORD"),
        ("auth=secret", "no user and password"),
        ("auth=me:secret,auth=you:secret", "said twice"),
        ("", "not an option"),
        ("host=a b", "cannot be read"),
        ("host=http://a", "cannot be read"),
        ("rewrite", "not an option"),
        ("cors", "auth=USER:PASSWORD"),
        ("auth-header=keep", "auth=USER:PASSWORD"),
        ("auth=me:secret,auth-header=drop", "auth-header=keep"),
        ("auth=me:secret,cors=yes", "it takes no value"),
        ("header=X-A:1", "for example header=+X-From:tunnel"),
        ("header=-X-A:1", "+NAME:VALUE or -NAME"),
        ("header=+X-A", "+NAME:VALUE or -NAME"),
        ("header=+X A:1", "+NAME:VALUE or -NAME"),
        ("header=+X-A:1\r\nX-B: 2", "control character"),
        ("header=+Host:a", "host=rewrite or host=NAME"),
        ("header=-content_length", "framed"),
        ("response-header=+Transfer-Encoding:chunked", "framed"),
    ],
)
def test_a_word_that_cannot_be_read_is_refused(words: str, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_http(f"shop=8000,{words}")
    error = caught.value
    assert says in f"{error.what}: {error.cause}; {error.fix}"
    assert "secret" not in f"{error.what}: {error.cause}; {error.fix}"


def test_what_the_client_enforces_is_read() -> None:
    entry = parse_http(
        "shop=5173,host=rewrite,header=+X-A: 1%2C2,header=+X-A:é,header=-X-B,"
        "response-header=-Server"
    )
    own = Own.of(Address("localhost", 5173), secure=False)
    request = Edits(frozenset((b"x-a", b"x-b")), (b"X-A: 1,2", "X-A: é".encode()))
    answer = Edits(frozenset((b"server",)))
    assert isinstance(entry.endpoint, Service)
    assert entry.endpoint.rules == ServiceRules(
        None, b"localhost:5173", own, request, answer
    )
    entry = parse_http("shop=5173,host=a.test:80")
    assert isinstance(entry.endpoint, Service)
    assert entry.endpoint.rules == ServiceRules(host=b"a.test:80")


def test_words_about_a_password_go_with_it() -> None:
    entry = parse_http("shop=8000,cors,auth=me:secret,auth-header=keep")
    assert isinstance(entry.endpoint, Service)
    assert entry.endpoint.rules == ServiceRules(Guard("me", "secret", True, True))
    flags = WebFlags(cors=True, auth_header="keep").words()
    assert share_entry("8000", "shop", "me:secret", flags) == entry


def test_an_entry_without_words_is_relayed() -> None:
    for entry in (parse_http("shop=8000"), share_entry("8000")):
        assert entry.endpoint == Service(Address("localhost", 8000))
        assert entry.endpoint.rules is None


def test_words_about_requests_are_not_for_a_folder(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        parse_http(f"site={tmp_path},host=rewrite")
    assert caught.value.what == "'host' is not for a folder"


def test_the_library_takes_numbers_and_paths_for_values(tmp_path: Path) -> None:
    said = pairs_of({"max_body": 10, "ca": tmp_path, "allow": ["::1", "::2"]})
    assert said == [
        ("max-body", "10"), ("ca", str(tmp_path)), ("allow", "::1"), ("allow", "::2"),
    ]  # fmt: skip
    with pytest.raises(UsageError, match="expires=7200 cannot be read"):
        tunnel.share(8000, expires=7200)


def test_a_folder_is_listed_if_its_entry_says_so(tmp_path: Path) -> None:
    entry = parse_http(f"site={tmp_path},list")
    assert isinstance(entry.endpoint, SharedFolder)
    assert entry.endpoint.folder.listing
    with pytest.raises(UsageError) as caught:
        parse_http("shop=8000,list")
    assert caught.value.what == "'list' is only for a folder"


@pytest.mark.parametrize(
    ("text", "example"),
    [
        ("shop", "shop=8000"),
        ("shop=", "shop=8000"),
        ("=3000", "shop=3000"),
        ("3000", "shop=3000"),
        ("db.lan:3000", "shop=db.lan:3000"),
    ],
)
def test_half_an_entry_is_answered_with_the_other_half(text: str, example: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_http(text)
    assert caught.value.fix == f"for example --http {example}"


def test_what_cannot_be_shared_is_told_what_can() -> None:
    for wrong in ("ftp://x:1", "./not-there"):
        with pytest.raises(UsageError, match="cannot be shared") as caught:
            share_entry(wrong)
        assert "https://HOST:PORT" in caught.value.cause


def test_tls_that_passes_through_has_no_words_about_requests() -> None:
    with pytest.raises(UsageError) as caught:
        parse_https("shop=8000,auth=me:secret")
    assert "passes through" in str(caught.value)


def test_a_folder_with_a_comma_in_its_name_can_be_shared(tmp_path: Path) -> None:
    folder = tmp_path / "a,auth=b"
    folder.mkdir()
    for entry in (
        share_entry(str(folder)),
        parse_http("site=" + str(folder).replace(",", "%2C")),
    ):
        assert isinstance(entry.endpoint, SharedFolder)
        assert entry.endpoint.guard is None


# Flags and arguments -----------------------------------------------------------------


def test_each_word_is_a_flag_of_share() -> None:
    flags = {name.replace("_", "-") for name in vars(WebFlags())}
    assert flags | {"auth", "list"} == set(WORDS)


def test_flags_and_arguments_say_what_words_say() -> None:
    flags = WebFlags(host="rewrite", header=["+X-A:1,2", "-X-B"])
    entry = parse_http("shop=5173,host=rewrite,header=+X-A:1%2C2,header=-X-B")
    assert share_entry("5173", "shop", words=flags.words()) == entry
    assert WebFlags().words() == []
    argued = pairs_of({"host": "rewrite", "header": ("+X-A:1,2", "-X-B"), "x": None})
    assert share_entry("5173", "shop", words=argued) == entry
    assert pairs_of({"auth_header": True, "cors": False}) == [("auth-header", None)]


def test_an_argument_that_is_no_word_is_refused() -> None:
    with pytest.raises(UsageError) as caught:
        tunnel.share(8000, to="tunnel://x", hots="rewrite")
    assert caught.value.fix == "did you mean host=rewrite|NAME?"


# Targets with TLS --------------------------------------------------------------------

PIN = "cYQIkGDw2OD-wNcb-fb1qsp9lZqzO3p_-wmiF5NPSTk"
IN_CURL = "sha256//cYQIkGDw2OD+wNcb+fb1qsp9lZqzO3p/+wmiF5NPSTk="


def service_of(text: str) -> Service:
    endpoint = parse_http(f"nas={text}").endpoint
    assert isinstance(endpoint, Service)
    return endpoint


@pytest.fixture
def ca(tmp_path: Path) -> Path:
    file = tmp_path / "ca.pem"
    trustme.CA().cert_pem.write_to_path(file)
    return file


def test_a_target_may_be_spoken_to_with_tls(ca: Path) -> None:
    for text, target, tls in (
        ("https://nas.lan:8443", Address("nas.lan", 8443), TargetTls("nas.lan")),
        ("https://nas.lan/", Address("nas.lan", 443), TargetTls("nas.lan")),
        ("https://8443", Address("localhost", 8443), TargetTls("localhost")),
        ("https://[::1]", Address("::1", 443), TargetTls("::1")),
        (
            f"https://10.0.0.5:1,ca={ca},pin={IN_CURL}",
            Address("10.0.0.5", 1),
            TargetTls("10.0.0.5", str(ca), PIN),
        ),
        (
            f"https://10.0.0.5:1,pin={PIN},host=nas.lan:443",
            Address("10.0.0.5", 1),
            TargetTls("nas.lan", pin=PIN),
        ),
        (
            "https://10.0.0.5:1,insecure,host=rewrite",
            Address("10.0.0.5", 1),
            TargetTls("10.0.0.5", insecure=True),
        ),
    ):
        endpoint = service_of(text)
        assert (endpoint.target, endpoint.tls) == (target, tls)
        assert endpoint.rules is not None
    endpoint = service_of("https://10.0.0.5:1,insecure,host=rewrite")
    assert str(endpoint) == "https://10.0.0.5:1"
    assert endpoint.rules is not None
    assert endpoint.rules.own == Own.of(Address("10.0.0.5", 1), secure=True)


def test_a_url_of_http_is_a_target_too() -> None:
    entry = share_entry("http://localhost:8000/")
    assert entry == share_entry("8000")
    assert entry.endpoint == Service(Address("localhost", 8000))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("https://", "https"),
        ("https://nas.lan/app", "a path or a user is not part of it"),
        ("https://me:secret@nas.lan", "a path or a user is not part of it"),
        ("https://unix:/run/x.sock", "not part of it"),
        ("https://nas.lan:99999", "99999"),
        ("8000,insecure", "https://HOST:PORT as TARGET"),
        ("http://localhost:8000,pin=" + PIN, "https://HOST:PORT as TARGET"),
        ("https://nas.lan,pin=abc", "43 letters"),
        ("https://nas.lan,insecure=yes", "it takes no value"),
        ("https://nas.lan,insecure,pin=" + PIN, "contradicts"),
        ("https://nas.lan,ca=/no/such/file", "No such file"),
        ("https://nas.lan,ca=/dev/null", "no certificate in PEM"),
    ],
)
def test_what_is_no_target_with_tls_is_refused(text: str, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_http(f"nas={text}")
    error = caught.value
    assert says in f"{error.what}: {error.cause}; {error.fix}"


def test_a_block_of_python_inspects_nothing() -> None:
    """Nobody could look: it has no control socket."""
    with pytest.raises(UsageError, match="inspect is not for a block"):
        tunnel.share(8000, to="tunnel://a@b:1/", inspect=True)
