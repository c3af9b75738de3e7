"""Entries of ranges, unix paths, PROXY headers, exits and inward proxies."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio
from support.center import LOOPBACK

from tunnel.access.join import JoinLine, make_token
from tunnel.access.networks import Networks
from tunnel.addresses import Address, UnixPath
from tunnel.center.client import CenterClient
from tunnel.center.events import MappingRefused
from tunnel.errors import Code, UsageError
from tunnel.net.listen import listen_at
from tunnel.net.proxy_protocol import ProxyVersion
from tunnel.ops import saved
from tunnel.ops.entries import ClientProxy, Line, Local, Published, Service
from tunnel.ops.entry_syntax import (
    parse_exit,
    parse_reach,
    parse_socks,
    parse_tcp,
    tcp_entry,
)
from tunnel.ops.entry_values import Ports, parse_exit_name, parse_ports
from tunnel.proto.frames import MappingAnswer, MappingEntry, MappingType

if TYPE_CHECKING:
    from pathlib import Path

    from tunnel.addresses import End


def bare(port: int) -> Address:
    return Address("localhost", port)


def here(port: int) -> Address:
    return Address(LOOPBACK, port)


def service(
    remote: Address, target: End, count: int = 1, proxy: ProxyVersion | None = None
) -> Published:
    """An entry that leads from public ports to as many of a service."""
    wanted = MappingEntry(MappingType.TCP, "", remote.host, remote.port, count)
    return Published("tcp", wanted, Service(target, count, proxy))


def client_proxy(remote: Address, networks: tuple[str, ...] = ()) -> Published:
    """An entry that leads from a public port to a proxy into this network."""
    wanted = MappingEntry(MappingType.TCP, "", remote.host, remote.port)
    return Published("tcp", wanted, ClientProxy(Networks.parse(list(networks))))


def nobody() -> CenterClient:
    """A client that has no link, and never will."""
    return CenterClient(JoinLine("default", make_token(), LOOPBACK, 1, None, True))


@pytest.mark.parametrize(
    ("text", "entry"),
    [
        ("2222=22", service(Address("", 2222), bare(22))),
        (
            "127.0.0.1:2222=db.lan:22,proxy=v2",
            service(here(2222), Address("db.lan", 22), 1, ProxyVersion.V2),
        ),
        (
            "6000-6010=10.0.0.5:7000-7010",
            service(Address("", 6000), Address("10.0.0.5", 7000), 11),
        ),
        (
            "0.0.0.0:6000-6001=6000-6001",
            service(Address("0.0.0.0", 6000), bare(6000), 2),
        ),
        ("[::1]:6000-6001", service(Address("", 0), Address("::1", 6000), 2)),
        ("0=6000-6001", service(Address("", 0), bare(6000), 2)),
        ("80=unix:/run/x.sock", service(Address("", 80), UnixPath("/run/x.sock"))),
        ("unix:/run/x.sock", service(Address("", 0), UnixPath("/run/x.sock"))),
        ("127.0.0.1:1080=socks", client_proxy(here(1080))),
        (
            "127.0.0.1:0=socks,network=10.0.0.0/8,network=::1",
            client_proxy(here(0), ("10.0.0.0/8", "::1")),
        ),
    ],
)
def test_an_entry_of_tcp_is_read(text: str, entry: Published) -> None:
    assert parse_tcp(text) == entry


@pytest.mark.parametrize(
    "text",
    [
        "6000-6010=22",
        "6000=6000-6010",
        "6010-6000",
        "0-5",
        "1-65536",
        "6000-x",
        "8000,proxy=v3",
        "8000,proxi=v1",
        "8000,proxy",
        "8000,network=10.0.0.0/8",
        "unix:relative",
        "1-2=unix:/run/x.sock",
        "socks",
        "1080=socks",
        "0.0.0.0:1080=socks",
        "127.evil.test:1080=socks",
        "127.0.0.1:1080=socks,proxy=v1",
        "127.0.0.1:1080=socks,network=lan",
        "1080=socks,auth=me",
    ],
)
def test_what_is_no_entry_is_refused(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_tcp(text)
    assert caught.value.what


def test_a_proxy_with_users_may_be_public() -> None:
    entry = parse_tcp("1080=socks,auth=me:p:w")
    assert isinstance(entry.endpoint, ClientProxy)
    assert Address(entry.wanted.host, entry.wanted.port) == Address("", 1080)
    assert entry.endpoint.users is not None
    assert entry.endpoint.users.check(b"me", b"p:w")
    assert "p:w" not in repr(entry)


def test_the_users_of_a_proxy_may_lie_in_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "auth"
    file.write_text("me:secret\nyou:other\n")
    file.chmod(0o600)
    monkeypatch.setenv("TUNNEL_AUTH_FILE", str(file))
    entry = parse_tcp("1080=socks")
    assert isinstance(entry.endpoint, ClientProxy)
    assert entry.endpoint.users is not None
    assert entry.endpoint.users.check(b"you", b"other")


def test_a_misspelt_option_is_told_the_right_one() -> None:
    with pytest.raises(UsageError) as caught:
        parse_tcp("8000,porxy=v1")
    assert caught.value.fix == "did you mean proxy=…?"


def test_the_command_of_one_entry_says_the_same() -> None:
    entry = tcp_entry("6000-6001", "7000-7001", "v1", socks=False, auth=[], networks=[])
    assert entry == parse_tcp("7000-7001=6000-6001,proxy=v1")
    entry = tcp_entry(
        None, "127.0.0.1:1080", None, socks=True, auth=[], networks=["::1"]
    )
    assert entry == parse_tcp("127.0.0.1:1080=socks,network=::1")


@pytest.mark.parametrize(
    ("target", "proxy", "socks", "networks"),
    [
        (None, None, False, []),
        ("22", None, True, []),
        (None, "v1", True, []),
        ("22", None, False, ["::1"]),
    ],
)
def test_words_that_contradict_one_another_are_refused(
    target: str | None, proxy: str | None, socks: bool, networks: list[str]
) -> None:
    with pytest.raises(UsageError):
        tcp_entry(target, "127.0.0.1:0", proxy, socks=socks, auth=[], networks=networks)


def test_ports_are_written_as_they_are_read() -> None:
    for text in ("127.0.0.1:80", "[::1]:80-90", "my-host.lan:1-65535"):
        assert str(parse_ports(text)) == text
    assert parse_ports("80-81", LOOPBACK) == Ports(here(80), 2)


def test_unix_paths_stand_where_addresses_do() -> None:
    path = UnixPath("/tmp/x.sock")
    assert parse_reach("unix:/tmp/x.sock=db.lan:1").listen == path
    assert parse_reach("1=unix:/tmp/x.sock", "home") == Local(bare(1), path, "home")
    # Whoever may open the file is this user: no address, so no open proxy.
    assert parse_socks("unix:/tmp/x.sock").listen == path


async def test_a_local_entry_listens_on_a_unix_path(tmp_path: Path) -> None:
    path = f"unix:{tmp_path}/x.sock"
    async with trio.open_nursery() as nursery:
        entry = parse_reach(f"{path}=db.lan:1")
        listeners, at = await listen_at(entry.listen)
        nursery.start_soon(entry.serve, nobody(), listeners)
        line = entry.line(at)
        assert line == Line("reach", path, "db.lan:1")
        await (await trio.open_unix_socket(f"{tmp_path}/x.sock")).aclose()
        nursery.cancel_scope.cancel()
    assert not (tmp_path / "x.sock").exists()


async def test_a_range_is_one_line() -> None:
    entry = parse_tcp("6000-6010=127.0.0.1:1-11")
    line = await entry.ready(Address("0.0.0.0", 6000))
    text = "tcp 0.0.0.0:6000-6010 127.0.0.1:1-11"
    assert line.text(terminal=False) == text


async def test_an_exit_and_a_proxy_say_what_they_lead_to() -> None:
    entry = parse_exit("home,network=10.0.0.0/8,network=::1")
    line = await entry.ready(Address("home", 0))
    assert line.text(terminal=False) == "exit home 10.0.0.0/8,::1/128"
    line = await parse_exit("home").ready(Address("home", 0))
    assert line.text(terminal=False) == "exit home -"
    assert "everything but this machine" in line.text(terminal=True)
    line = await client_proxy(here(0)).ready(here(1080))
    assert line.text(terminal=False) == "tcp 127.0.0.1:1080 socks"


def test_what_was_refused_is_named() -> None:
    notice = MappingRefused("-", here(1080), MappingAnswer(Code.TAKEN, reason="why"))
    assert (
        client_proxy(here(1080))
        .refused(notice)
        .what.endswith("does not give 1080 for a proxy: why")
    )
    assert parse_exit("home").refused(notice).what.endswith("the exit home: why")


def test_the_name_of_an_exit_is_a_plain_word() -> None:
    assert parse_exit_name("my-home.1") == "my-home.1"
    for wrong in ("", "a b", "a/b"):
        with pytest.raises(UsageError):
            parse_exit_name(wrong)


def test_the_way_to_the_server_may_lie_in_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "via"
    file.write_text("http://user:secret@proxy.lan:3128\n")
    file.chmod(0o600)
    for name in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    join = JoinLine("default", make_token(), "203.0.113.7", 7443, None, True)
    assert saved.find_via(None, join) is None
    monkeypatch.setenv("TUNNEL_VIA_FILE", str(file))
    via = saved.find_via(None, join)
    assert via is not None
    assert via.password == "secret"
    assert saved.find_via("none", join) is None
    via = saved.find_via("socks5://other:1080", join)
    assert via is not None
    assert via.host == "other"
