"""The entries of a command: their text forms, and the lines that scripts rely on."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest
import trio
from support.center import LOOPBACK, Notices

from tunnel.access.join import JoinLine, make_token
from tunnel.addresses import LOOPBACKS
from tunnel.center.client import CenterClient
from tunnel.center.events import MappingRefused
from tunnel.errors import AddressError, Code, UsageError
from tunnel.ops.entries import (
    Line,
    ReachEntry,
    SocksEntry,
    TcpEntry,
    UdpEntry,
    parse_far_target,
)
from tunnel.ops.web_entries import PassedEntry, ShareEntry
from tunnel.proto.frames import Address, MappingAnswer

if TYPE_CHECKING:
    from collections.abc import Callable

WEB = Address("localhost", 8000)
"""A bare port of this machine: on whichever loopback it answers."""


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
    assert TcpEntry.parse(text) == TcpEntry(remote, WEB)


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
        TcpEntry.parse(text)


@pytest.mark.parametrize(
    ("parse", "text", "fix"),
    [
        (TcpEntry.parse, "80=", "for example --tcp 80=22"),
        (UdpEntry.parse, "=53", "for example --udp 2222=53"),
        (ReachEntry.parse, "5432=", "--reach 5432=db.lan:5432"),
        (ReachEntry.parse, "=db.lan:1", "--reach 5432=db.lan:1"),
        (ShareEntry.parse, "shop=", "for example --http shop=8000"),
        (ShareEntry.parse, "=8000", "for example --http shop=8000"),
        (PassedEntry.parse, "443", "for example --https shop=443"),
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
    entry = ReachEntry.parse("5432=db.lan:5433")
    assert entry == ReachEntry(Address("localhost", 5432), Address("db.lan", 5433))
    with pytest.raises(UsageError) as raised:
        ReachEntry.parse("db.lan:5433")
    assert raised.value.fix == "--reach 5432=db.lan:5433"


@pytest.mark.parametrize("read", [ReachEntry.parse, parse_far_target])
def test_a_zone_of_this_machine_is_not_sent_to_another(
    read: Callable[[str], object],
) -> None:
    with pytest.raises(UsageError, match="zone"):
        read("1=[fe80::1%eth0]:80" if read == ReachEntry.parse else "[fe80::1%eth0]:80")
    entry = TcpEntry.parse("[fe80::1%eth0]:80")
    assert entry.target == Address("fe80::1%eth0", 80)


def test_a_proxy_without_users_is_for_this_machine_only() -> None:
    assert SocksEntry.parse("1080") == SocksEntry(Address("localhost", 1080))
    for loopback in ("localhost:1080", "[::1]:1080", "127.0.0.2:1080"):
        assert SocksEntry.parse(loopback).users is None
    for public in ("0.0.0.0:1080", "[::]:1080", "*:1080", "localhost.lan:1080"):
        with pytest.raises(UsageError) as raised:
            SocksEntry.parse(public)
        assert raised.value.fix.startswith("--socks 1080, or with users ")
    entry = SocksEntry.parse("0.0.0.0:1080,auth=me:secret")
    assert entry.users is not None
    assert entry.users.check(b"me", b"secret")


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
            (SocksEntry.parse("0"), "socks", "-"),
            (ReachEntry.parse("0=db.lan:1"), "reach", "db.lan:1"),
        ):
            line = await entry.start(nobody(), nursery)
            host, _, port = line.where.rpartition(":")
            assert (line.kind, host, line.target) == (kind, "localhost", target)
            for loopback in LOOPBACKS:
                socket.create_connection((loopback, int(port))).close()
            with pytest.raises(AddressError):
                await SocksEntry.parse(port).start(nobody(), nursery)
        nursery.cancel_scope.cancel()


async def test_a_published_entry_says_whether_its_target_answers() -> None:
    public = Address("0.0.0.0", 20_000)
    with socket.create_server((LOOPBACK, 0)) as service:
        entry = TcpEntry.parse(str(service.getsockname()[1]))
        line = await entry.ready(public)
        assert line == Line("tcp", str(public), str(entry.target), "answering")
    line = await entry.ready(public)
    assert line.state == "not answering"
    assert str(entry.target) in line.warning


async def test_a_udp_entry_reads_as_a_tcp_entry_and_says_its_own_line() -> None:
    entry, public = UdpEntry.parse("5353=53"), Address("*", 5_353)
    assert entry == UdpEntry(Address("", 5_353), Address("localhost", 53))
    line = await entry.ready(public)
    assert line.text(terminal=False) == "udp *:5353 localhost:53"
    answer = MappingAnswer(Code.TAKEN, reason="why")
    error = entry.refused(MappingRefused("udp-1", entry.remote, answer))
    assert error.fix == "choose another: --udp 0=localhost:53"
    short = UdpEntry.of("53", "5353")
    assert short == entry
    assert short.refused(MappingRefused("udp-1", entry.remote, answer)).fix == (
        "choose another: --remote 0"
    )


async def test_a_published_entry_says_what_it_was_refused() -> None:
    entry, notices = TcpEntry.parse("20000=8000"), Notices()
    async with trio.open_nursery() as nursery:
        name = await entry.start(nobody(), nursery)
    for code, fix in ((Code.TAKEN, "--tcp 0=localhost:8000"), (Code.NOT_ALLOWED, "")):
        notices(MappingRefused(name, entry.remote, MappingAnswer(code, reason="why")))
        error = entry.refused(notices.of(MappingRefused)[-1])
        assert (error.code, error.what.endswith(": why")) == (code, True)
        assert fix in error.fix
        assert bool(fix) == bool(error.fix)
