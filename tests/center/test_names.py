"""Host names at a center-server: who has them, and what visitors hear."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio
from support.center import LOOPBACK, center, page, status, target, user

from tunnel.access.join import make_token
from tunnel.addresses import Address
from tunnel.center.endpoints import HostNames, PublicName
from tunnel.center.events import MappingReady, MappingRefused
from tunnel.center.names import NameOptions
from tunnel.center.own_names import is_own_name, own_name
from tunnel.errors import Code, TunnelError, UsageError
from tunnel.ops.entries import Published, Service, url_of
from tunnel.ops.entry_syntax import parse_http, share_entry
from tunnel.ops.serve_flags import ServeFlags
from tunnel.proto.frames import MappingEntry, MappingType

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from support.center import Center

NAMES = NameOptions(http=Address(LOOPBACK, 0), domain="t.test")


def web(name: str, at: Address) -> Published:
    """An entry that leads from a host name to a web service."""
    wanted = MappingEntry(MappingType.HTTP, "", name)
    return Published("http", wanted, Service(at), scheme="http")


@asynccontextmanager
async def shared(where: Center, name: str, at: Address) -> AsyncIterator[Code]:
    """Publish for the block; give the answer's code."""
    client, notices = where.client()
    async with trio.open_nursery() as nursery:
        await web(name, at).start(client)
        await nursery.start(client.run)
        refused, ready = notices.of(MappingRefused), notices.of(MappingReady)
        assert refused or ready
        yield refused[0].answer.code if refused else Code.NORMAL
        client.stop()


@pytest.mark.parametrize(
    ("asked", "domain", "host"),
    [
        ("shop", "t.test", "shop.t.test"),
        ("Shop", "t.test", "shop.t.test"),
        ("shop.example", "t.test", "shop.example"),
        ("shop.example.", None, "shop.example"),
        ("*.x.example", "t.test", "*.x.example"),
    ],
)
def test_a_name_without_a_dot_is_one_of_the_domain(
    asked: str, domain: str | None, host: str
) -> None:
    kind = HostNames(MappingType.HTTP, 80, domain)
    entry = MappingEntry(MappingType.HTTP, "x", asked)
    assert list(kind.candidates(entry, ())) == [(PublicName(MappingType.HTTP, host),)]


@pytest.mark.parametrize(
    ("asked", "domain"),
    [("shop", None), ("", "t.test"), ("-a.test", None), ("a..test", None),
     ("*.*.test", None), ("a.*.test", None), ("a" * 64 + ".test", None)],
)  # fmt: skip
def test_what_is_no_host_name_is_refused(asked: str, domain: str | None) -> None:
    kind = HostNames(MappingType.HTTP, 80, domain)
    entry = MappingEntry(MappingType.HTTP, "x", asked)
    with pytest.raises(TunnelError) as caught:
        list(kind.candidates(entry, ()))
    assert caught.value.code is Code.ADDRESS_UNSUPPORTED


async def test_a_name_belongs_to_one_client_until_it_leaves() -> None:
    async with center(names=NAMES) as where, target(page) as at:
        assert await status(where.server.names.http, "shop.t.test") == 404
        async with shared(where, "shop", at) as code:
            assert code is Code.NORMAL
            assert await status(where.server.names.http, "shop.t.test") == 200
            async with shared(where, "shop", at) as other:
                assert other is Code.TAKEN
            async with shared(where, "*.t.test", at) as other:
                assert other is Code.NORMAL
                assert await status(where.server.names.http, "else.t.test") == 200
                assert await status(where.server.names.http, "shop.t.test") == 200
        await where.until(lambda: not len(where.server.mappings))
        assert await status(where.server.names.http, "shop.t.test") == 503
        assert await status(where.server.names.http, "never.test") == 404


async def test_a_user_without_rights_gets_no_name() -> None:
    token = make_token()
    guest = user(token, "guest", owner=False)
    async with center(names=NAMES, others=(guest,)) as where:
        client, notices = where.client(name="guest", token=token)
        async with trio.open_nursery() as nursery:
            await web("shop", Address(LOOPBACK, 1)).start(client)
            await nursery.start(client.run)
            (refused,) = notices.of(MappingRefused)
            assert refused.answer.code is Code.NOT_ALLOWED
            client.stop()


async def test_a_taken_http_port_is_said_and_the_link_s_port_is_closed() -> None:
    async with center(names=NAMES) as where:
        taken = NameOptions(http=where.server.names.http)
        with pytest.raises(BaseExceptionGroup) as caught:
            async with center(names=taken):
                raise AssertionError
        assert caught.group_contains(TunnelError, match="already in use")


# Text forms --------------------------------------------------------------------------


def test_an_entry_is_a_name_and_a_target_or_a_folder(tmp_path: Path) -> None:
    assert parse_http("shop=8000") == web("shop", Address("localhost", 8000))
    assert parse_http("*.x.test=a.lan:80").wanted.host == "*.x.test"
    assert parse_http(f"site={tmp_path}").wanted.host == "site"


@pytest.mark.parametrize(
    "text", ["8000", "=8000", "a b=8000", "shop=", "shop=0", "shop=/no/such/folder"]
)
def test_what_is_no_entry_is_refused(text: str) -> None:
    with pytest.raises(TunnelError):
        parse_http(text)


@pytest.mark.parametrize("auth", ["", "me", "me:", ":secret", ":"])
def test_a_password_needs_its_user(auth: str) -> None:
    with pytest.raises(TunnelError) as caught:
        share_entry("8000", auth=auth)
    assert "secret" not in str(caught.value)


def test_a_name_that_nobody_chose_is_the_same_for_the_same_client_and_target() -> None:
    name = own_name(b"a" * 16, "127.0.0.1:8000")
    assert name == own_name(b"a" * 16, "127.0.0.1:8000")
    others = {own_name(b"b" * 16, "127.0.0.1:8000"), own_name(b"a" * 16, "x")}
    assert name not in others
    assert name.isalnum()
    assert all(map(is_own_name, (name, *others)))
    assert not is_own_name(name[:-1] + ("a" if name[-1] != "a" else "b"))
    assert not is_own_name(name[:10])
    assert not is_own_name("shop")


def test_the_usual_ports_are_not_written() -> None:
    assert url_of("http", Address("a.test", 80)) == "http://a.test/"
    assert url_of("http", Address("a.test", 8080)) == "http://a.test:8080/"
    assert url_of("https", Address("a.test", 443)) == "https://a.test/"
    assert url_of("http", Address("::1", 80)) == "http://[::1]/"


def test_names_on_loopback_end_in_localhost(tmp_path: Path) -> None:
    assert ServeFlags(http="127.0.0.1:80").names().domain == "localhost"
    assert ServeFlags(http="80").names().domain is None
    assert ServeFlags(http="80", domain="T.Test.").names().domain == "t.test"
    with pytest.raises(TunnelError):
        ServeFlags(http="80", certificate=(tmp_path, tmp_path)).names()
    with pytest.raises(TunnelError):
        ServeFlags(http="80", domain="a b").names()


def test_a_name_in_another_script_is_known_as_visitors_ask_for_it() -> None:
    assert parse_http("b\u00fccher=8000").wanted.host == "xn--bcher-kva"
    assert parse_http("*.b\u00fccher.de=8000").wanted.host == "*.xn--bcher-kva.de"
    names = ServeFlags(http="80", domain="B\u00fccher.de.").names()
    assert names.domain == "xn--bcher-kva.de"
    assert names.http == Address("*", 80)
    for text in ("a b=8000", "[::1]=8000", "*.=8000"):
        with pytest.raises(UsageError):
            parse_http(text)
