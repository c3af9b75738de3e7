"""Names and passwords of another character set were a fault, some only at a request."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tunnel.errors import UsageError
from tunnel.link.upstream_proxy import UpstreamProxy
from tunnel.ops.entry_syntax import parse_http, parse_socks, parse_tcp

if TYPE_CHECKING:
    from collections.abc import Callable

LATIN_1 = b"gr\xfc\xdf".decode("utf-8", "surrogateescape")
"""As a command line has it that was written in another character set."""


@pytest.mark.parametrize(
    ("read", "words"),
    [
        (parse_tcp, "0=socks,auth=me:{}"),
        (parse_tcp, "0=socks,auth={}:secret"),
        (parse_socks, "1080,auth=me:{}"),
        (parse_http, "shop=8000,auth=me:{}"),
        (parse_http, "shop=8000,auth={}:secret"),
        (UpstreamProxy.parse, "http://me:{}@proxy.test:3128"),
        (UpstreamProxy.parse, "http://{}@proxy.test:3128"),
    ],
)
def test_a_name_or_password_that_is_no_utf_8_is_refused_and_not_repeated(
    read: Callable[[str], object], words: str
) -> None:
    with pytest.raises(UsageError) as refused:
        read(words.format(LATIN_1))
    said = refused.value.what + refused.value.cause + refused.value.fix
    assert "UTF-8" in said
    assert "gr" not in said
    read(words.format("grüß"))


def test_a_folder_whose_name_nobody_could_write_is_refused() -> None:
    with pytest.raises(UsageError):
        parse_http("shop=./a\0b")
