"""The addresses of this machine are known, also when they have just changed."""

from __future__ import annotations

import errno
import socket
import sys
from ipaddress import IPv4Address, ip_address
from typing import TYPE_CHECKING

import pytest

from tunnel.platform import addresses
from tunnel.platform.addresses import OwnAddresses

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def own() -> Iterator[OwnAddresses]:
    made = OwnAddresses()
    yield made
    made.close()


def test_loopback_is_own_and_others_are_not(own: OwnAddresses) -> None:
    for text in ("127.0.0.1", "127.9.9.9", "::1"):
        assert ip_address(text) in own
    for text in ("192.0.2.1", "2001:db8::1", "8.8.8.8"):
        assert ip_address(text) not in own
    assert "127.0.0.1" not in own, "only addresses are compared"


def test_where_nobody_tells_the_kernel_is_asked_about_the_one_address(
    own: OwnAddresses, monkeypatch: pytest.MonkeyPatch
) -> None:
    def closed(*_: object) -> socket.socket:
        raise OSError(errno.EAFNOSUPPORT, "no netlink for this program")

    if sys.platform == "linux":
        monkeypatch.setattr(addresses, "_open_netlink", closed)
    assert IPv4Address("127.9.9.9") in own
    assert IPv4Address("192.0.2.1") not in own


def test_without_a_descriptor_every_address_counts_as_own(
    own: OwnAddresses, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left(*_: object) -> socket.socket:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(socket, "socket", none_left)
    assert IPv4Address("192.0.2.1") in own


def test_lost_news_are_news(own: OwnAddresses, monkeypatch: pytest.MonkeyPatch) -> None:
    if sys.platform != "linux":
        pytest.skip("NOT TESTED: only Linux has netlink")
    else:
        assert IPv4Address("127.0.0.1") in own
        reads: list[dict[tuple[int, int], set[int]]] = []

        def nothing() -> dict[tuple[int, int], set[int]]:
            reads.append({})
            return reads[-1]

        monkeypatch.setattr(addresses, "_read_prefixes", nothing)

        class Overrun:
            def recv(self, _size: int) -> bytes:
                raise OSError(errno.ENOBUFS, "No buffer space available")

            def close(self) -> None:
                pass

        assert IPv4Address("127.0.0.1") in own
        assert not reads
        own.close()
        monkeypatch.setattr(own, "_news", Overrun())
        assert IPv4Address("127.0.0.1") not in own
        assert len(reads) == 1
