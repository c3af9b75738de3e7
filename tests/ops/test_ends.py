from __future__ import annotations

import pytest

from tunnel.errors import UsageError
from tunnel.ops.ends import (
    Inward,
    Ports,
    TcpEntry,
    parse_ports,
    parse_target,
    parse_tcp,
)
from tunnel.proto.frames import Address, UnixPath
from tunnel.proto.proxy_header import ProxyVersion


def ports(host: str, first: int, count: int = 1) -> Ports:
    return Ports(Address(host, first), count)


@pytest.mark.parametrize(
    ("text", "entry"),
    [
        ("8000", TcpEntry(ports("", 0), ports("127.0.0.1", 8000))),
        ("2222=22", TcpEntry(ports("", 2222), ports("127.0.0.1", 22))),
        (
            "127.0.0.1:2222=db.lan:22,proxy=v2",
            TcpEntry(
                ports("127.0.0.1", 2222), ports("db.lan", 22), ProxyVersion.V2
            ),
        ),
        (
            "6000-6010=10.0.0.5:7000-7010",
            TcpEntry(ports("", 6000, 11), ports("10.0.0.5", 7000, 11)),
        ),
        ("[::1]:6000-6001", TcpEntry(ports("", 0, 2), ports("::1", 6000, 2))),
        ("0=6000-6001", TcpEntry(ports("", 0, 2), ports("127.0.0.1", 6000, 2))),
        ("80=unix:/run/x.sock", TcpEntry(ports("", 80), UnixPath("/run/x.sock"))),
        ("unix:/run/x.sock", TcpEntry(ports("", 0), UnixPath("/run/x.sock"))),
    ],
)  # fmt: skip
def test_an_entry_of_tcp_is_read(text: str, entry: TcpEntry) -> None:
    assert parse_tcp(text) == entry


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0",
        "x",
        "2222=",
        "6000-6010=22",
        "6000=6000-6010",
        "6010-6000",
        "0-5",
        "1-65536",
        "6000-x",
        "8000,proxy=v3",
        "8000,proxi=v1",
        "8000,proxy",
        "8000,auth=a:b",
        "unix:relative",
        "1-2=unix:/run/x.sock",
        "1080=socks",
        "0.0.0.0:1080=socks",
        "1080-1081=socks,auth=a:b",
        "1080=socks,auth=a",
        "127.0.0.1:1080=socks,proxy=v1",
        "127.0.0.1:1080=socks,network=lan",
    ],
)
def test_what_is_no_entry_is_refused(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_tcp(text)
    assert caught.value.what


def test_a_proxy_inward_is_public_only_with_users() -> None:
    target = parse_tcp("1080=socks,auth=me:p:w,network=10.0.0.0/8").target
    assert isinstance(target, Inward)
    assert target.users == {"me": "p:w"}
    assert "p:w" not in repr(target)
    assert target.networks.allow("10.1.1.1", 1)
    assert parse_tcp("127.0.0.1:1080=socks").target == Inward()


def test_a_misspelt_option_is_told_the_right_one() -> None:
    with pytest.raises(UsageError) as caught:
        parse_tcp("8000,porxy=v1")
    assert caught.value.fix == "did you mean proxy=…?"


def test_ports_are_written_as_they_are_read() -> None:
    for text in ("127.0.0.1:80", "[::1]:80-90", "my-host.lan:1-65535"):
        assert str(parse_ports(text)) == text


def test_a_target_is_one_address_or_a_unix_path() -> None:
    assert parse_target("22") == Address("127.0.0.1", 22)
    assert parse_target("unix:/x") == UnixPath("/x")
    for wrong in ("0", "1-2", "unix:"):
        with pytest.raises(UsageError):
            parse_target(wrong)
