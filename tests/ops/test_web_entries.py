"""Names of web services as people write them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tunnel.addresses import Address
from tunnel.errors import UsageError
from tunnel.front.http.guard import Guard
from tunnel.ops.entries import Service, SharedFolder
from tunnel.ops.entry_syntax import parse_http, parse_https, share_entry

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
    assert entry.endpoint.guard == Guard("me", "a,b,c=d")
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
    ],
)
def test_a_word_that_cannot_be_read_is_refused(words: str, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_http(f"shop=8000,{words}")
    error = caught.value
    assert says in f"{error.what}: {error.cause}; {error.fix}"
    assert "secret" not in f"{error.what}: {error.cause}; {error.fix}"


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
