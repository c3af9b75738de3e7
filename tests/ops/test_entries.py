"""The entries of a command: their text forms, and the lines that scripts rely on."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest
import trio
from support.center import LOOPBACK, Notices

from tunnel.access.join import JoinLine, make_token
from tunnel.access.proxy_users import ProxyUsers
from tunnel.addresses import LOOPBACKS, Address
from tunnel.center.client import CenterClient
from tunnel.center.events import MappingRefused
from tunnel.errors import AddressError, Code, UsageError
from tunnel.net.listen import listen_at
from tunnel.ops.entries import Line, Local, Published, Service
from tunnel.ops.entry_syntax import (
    parse_http,
    parse_https,
    parse_reach,
    parse_socks,
    parse_tcp,
    parse_udp,
    refuse_open_proxy,
    udp_entry,
)
from tunnel.ops.entry_values import parse_far_target
from tunnel.proto.frames import MappingAnswer, MappingEntry, MappingType

if TYPE_CHECKING:
    from collections.abc import Callable

WEB = Address("localhost", 8000)
"""A bare port of this machine: on whichever loopback it answers."""


def published(
    remote: Address, target: Address, kind: MappingType = MappingType.TCP
) -> Published:
    """An entry that leads from one public port to one service."""
    wanted = MappingEntry(kind, "", remote.host, remote.port)
    return Published(kind.name.lower(), wanted, Service(target))


def nobody() -> CenterClient:
    """A client that has no link, and never will."""
    return CenterClient(JoinLine("default", make_token(), LOOPBACK, 1, None, True))


@pytest.mark.parametrize(
    ("text", "remote"),
    [
        ("8000", Address("", 0)),
        ("2222=8000", Address("", 2222)),
        ("[::1]:2222=localhost:8000", Address("::1", 2222)),
        ("0.0.0.0:2222=8000", Address("0.0.0.0", 2222)),
        ("*:2222=8000", Address("", 2222)),
    ],
)
def test_a_tcp_entry_is_a_target_and_where_it_is_public(
    text: str, remote: Address
) -> None:
    assert parse_tcp(text) == published(remote, WEB)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0",
        "x=8000",
        "2222=",
        "1=2=3",
        "70000",
        "*:8000",
        "[fe80::1%eth0]:2222=8000",
        "a b:1",
        "::1:8000",
    ],
)
def test_what_is_no_tcp_entry_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_tcp(text)


@pytest.mark.parametrize(
    ("parse", "text", "fix"),
    [
        (parse_tcp, "80=", "for example --tcp 80=22"),
        (parse_udp, "=53", "for example --udp 2222=53"),
        (parse_reach, "5432=", "--reach 5432=db.lan:5432"),
        (parse_reach, "=db.lan:1", "--reach 5432=db.lan:1"),
        (parse_http, "shop=", "for example --http shop=8000"),
        (parse_http, "=8000", "for example --http shop=8000"),
        (parse_https, "443", "for example --https shop=443"),
    ],
)
def test_an_entry_that_lacks_a_part_is_told_the_flag_and_the_whole(
    parse: Callable[[str], object], text: str, fix: str
) -> None:
    with pytest.raises(UsageError) as raised:
        parse(text)
    assert fix.split()[-2] in raised.value.what
    assert raised.value.fix == fix


def test_a_reach_entry_says_both_ends() -> None:
    entry = parse_reach("5432=db.lan:5433")
    assert entry == Local(Address("localhost", 5432), Address("db.lan", 5433))
    with pytest.raises(UsageError) as raised:
        parse_reach("db.lan:5433")
    assert raised.value.fix == "--reach 5432=db.lan:5433"


@pytest.mark.parametrize("read", [parse_reach, parse_far_target])
def test_a_zone_of_this_machine_is_not_sent_to_another(
    read: Callable[[str], object],
) -> None:
    with pytest.raises(UsageError, match="zone"):
        read("1=[fe80::1%eth0]:80" if read == parse_reach else "[fe80::1%eth0]:80")
    entry = parse_tcp("[fe80::1%eth0]:80")
    assert entry.endpoint == Service(Address("fe80::1%eth0", 80))


def test_a_proxy_without_users_is_for_this_machine_only() -> None:
    assert parse_socks("1080") == Local(Address("localhost", 1080))
    for loopback in ("localhost:1080", "[::1]:1080", "127.0.0.2:1080"):
        assert parse_socks(loopback).users is None
    for public in ("0.0.0.0:1080", "[::]:1080", "*:1080", "localhost.lan:1080"):
        with pytest.raises(UsageError) as raised:
            parse_socks(public)
        assert raised.value.fix.startswith("--socks 1080, or with users ")
    entry = parse_socks("0.0.0.0:1080,auth=me:secret")
    assert entry.users is not None
    assert entry.users.check(b"me", b"secret")


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "::", "lan.example"])
def test_a_proxy_that_others_reach_is_not_opened_without_users(host: str) -> None:
    with pytest.raises(UsageError, match="without users") as caught:
        refuse_open_proxy(Address(host, 1080), None)
    assert "1080" in caught.value.fix
    refuse_open_proxy(Address(host, 1080), ProxyUsers({"me": "secret"}))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
def test_a_proxy_for_this_machine_needs_no_users(host: str) -> None:
    refuse_open_proxy(Address(host, 1080), None)


def test_a_line_is_short_for_a_script_and_says_more_to_a_person() -> None:
    line = Line("tcp", "*:20000", str(WEB), "answering")
    assert line.text(terminal=False) == "tcp *:20000 localhost:8000"
    assert line.text(terminal=True) == "  *:20000 → localhost:8000 (answering)"
    assert line.fields == {
        "kind": "tcp",
        "address": "*:20000",
        "target": "localhost:8000",
        "state": "answering",
    }


async def test_a_local_entry_listens_and_says_where() -> None:
    async with trio.open_nursery() as nursery:
        for entry, kind, target in (
            (parse_socks("0"), "socks", "-"),
            (parse_reach("0=db.lan:1"), "reach", "db.lan:1"),
        ):
            listeners, at = await listen_at(entry.listen)
            nursery.start_soon(entry.serve, nobody(), listeners)
            line = entry.line(at)
            host, _, port = line.where.rpartition(":")
            assert (line.kind, host, line.target) == (kind, "localhost", target)
            for loopback in LOOPBACKS:
                socket.create_connection((loopback, int(port))).close()
            with pytest.raises(AddressError):
                await listen_at(parse_socks(port).listen)
        nursery.cancel_scope.cancel()


async def test_a_published_entry_says_whether_its_target_answers() -> None:
    public = Address("0.0.0.0", 20_000)
    with socket.create_server((LOOPBACK, 0)) as service:
        entry = parse_tcp(str(service.getsockname()[1]))
        line = await entry.ready(public)
        assert line == Line("tcp", str(public), str(entry.endpoint), "answering")
    line = await entry.ready(public)
    assert line.state == "not answering"
    assert str(entry.endpoint) in line.warning


async def test_a_udp_entry_reads_as_a_tcp_entry_and_says_its_own_line() -> None:
    entry, public = parse_udp("5353=53"), Address("*", 5_353)
    assert entry == published(
        Address("", 5_353), Address("localhost", 53), MappingType.UDP
    )
    line = await entry.ready(public)
    assert line.text(terminal=False) == "udp *:5353 localhost:53"
    answer = MappingAnswer(Code.TAKEN, reason="why")
    refused = MappingRefused("udp-1", Address("", 5_353), answer)
    error = entry.refused(refused)
    assert error.fix == "choose another: --udp 0=localhost:53"
    short = udp_entry("53", "5353")
    assert short == entry
    assert short.refused(refused).fix == ("choose another: --remote 0")


async def test_a_published_entry_says_what_it_was_refused() -> None:
    entry, notices = parse_tcp("20000=8000"), Notices()
    wanted = Address("", 20_000)
    name = await entry.start(nobody())
    for code, fix in ((Code.TAKEN, "--tcp 0=localhost:8000"), (Code.NOT_ALLOWED, "")):
        notices(MappingRefused(name, wanted, MappingAnswer(code, reason="why")))
        error = entry.refused(notices.of(MappingRefused)[-1])
        assert (error.code, error.what.endswith(": why")) == (code, True)
        assert fix in error.fix
        assert bool(fix) == bool(error.fix)
