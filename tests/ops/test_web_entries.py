"""Names of web services as people write them."""

from __future__ import annotations

import pytest

from tunnel.errors import UsageError
from tunnel.ops.entry_syntax import parse_http, share_entry


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
