"""A visitor of a name at another worker goes there as it came; others stay."""

from __future__ import annotations

import os
import socket
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import pytest

from tunnel.center.cluster.handover import TLS, WEB, HandOver
from tunnel.center.cluster.peers import Peers
from tunnel.center.cluster.remote import RemoteClient
from tunnel.center.cluster.secret import ClusterSecret
from tunnel.net.sockets import FastSocket

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from tunnel.center.mappings import MappingTable

HEAD = b"GET / HTTP/1.1\r\nHost: %s\r\n\r\n"


async def _alone(_node: str) -> None:
    """Reach nobody."""


PEERS = Peers("n0", ClusterSecret(bytes(32)), None, dict, _alone)


def client(node: str) -> RemoteClient:
    return RemoteClient(PEERS, node, bytes(16), "alice", "id", b"")


class Table:
    """Has owners of names; the rest is not asked."""

    def __init__(self, **owners: list[object]) -> None:
        self._owners = owners
        self.learned: list[str] = []

    def find(self, _type: object, host: str) -> object:
        owners = self._owners.get(host.partition(".")[0])
        if owners is None:
            return None
        return SimpleNamespace(mappings=[SimpleNamespace(owner=one) for one in owners])

    def learn(self, host: str) -> Awaitable[bool] | None:
        self.learned.append(host)
        return None


async def hand_over(table: Table, said: bytes, port: str = WEB) -> str:
    """Say to which node a visitor goes that says this; what it said is there still."""
    went: list[str] = []
    visitor, came = socket.socketpair()

    def give(node: str, _port: str, number: int) -> None:
        with socket.socket(fileno=number) as there:
            assert there.recv(10_000) == said
            there.send(b"welcome")
        went.append(node)

    over = HandOver(cast("MappingTable", table), table.learn, give)
    with visitor:
        visitor.sendall(said)
        stream = FastSocket(came)
        is_gone = await (over.web if port == WEB else over.tls)(stream)
        assert is_gone == bool(went)
        if is_gone:
            assert visitor.recv(100) == b"welcome"
        else:
            assert os.read(stream.number(), 10_000) == said
            stream.close()
    return went[0] if went else ""


TABLE: dict[str, list[object]] = {
    "far": [client("w1")],
    "near": [object()],
    "both": [client("w1"), object()],
    "two": [client("w1"), client("w2")],
    "group": [client("w1"), client("w1")],
}


@pytest.mark.parametrize(
    ("host", "node"),
    [("far", "w1"), ("FAR.:80", "w1"), ("group", "w1"), ("near", ""), ("both", ""),
     ("two", ""), ("unknown", ""), ("", ""), ("a b", "")],
)  # fmt: skip
async def test_whoever_names_what_is_elsewhere_goes_there(host: str, node: str) -> None:
    assert await hand_over(Table(**TABLE), HEAD % host.encode()) == node


@pytest.mark.parametrize(
    "said", [b"GET / HTTP/1.1\r\nHost: f", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\0\1"]
)
async def test_what_is_not_plain_at_once_stays(said: bytes) -> None:
    assert await hand_over(Table(**TABLE), said) == ""
    assert await hand_over(Table(**TABLE), said, TLS) == ""
