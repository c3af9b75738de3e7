"""``TUNNEL_NET=portable``: no epoll of our own, as on systems that have none."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest
import trio
from support.tables import ROOT
from support.wires import Offers, open_one, session_pair

from tunnel.errors import Code
from tunnel.link import virtual
from tunnel.net import poller
from tunnel.net.relay import RelayResult, relay
from tunnel.net.sockets import FastSocket

PORTABLE = {**os.environ, "TUNNEL_NET": "portable"}


async def test_a_relay_carries_a_socket_by_tasks_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(virtual, "HAS_EPOLL", False)
    monkeypatch.setattr(poller, "HAS_EPOLL", False)
    offers = Offers()
    results: list[RelayResult] = []
    program, near = socket.socketpair()
    program.setblocking(False)
    with program, trio.fail_after(10):
        async with session_pair(serve_server=offers) as sessions:
            assert sessions.client.poller._epoll is None
            left, right = await open_one(sessions, offers)

            async def go() -> None:
                results.append(await relay(FastSocket(near), left, early=b"first "))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(go)
                program.sendall(b"question")
                program.shutdown(socket.SHUT_WR)
                heard = b"".join([bytes(piece) async for piece in right])
                assert heard == b"first question"
                await right.send_all(b"answer")
                await right.aclose()
            assert program.recv(100) == b"answer"
            assert program.recv(100) == b""
    assert results == [RelayResult(14, 6, Code.NORMAL)]


@pytest.mark.parametrize(("word", "expected"), [("portable", False), ("", True)])
def test_the_variable_alone_decides(word: str, expected: bool) -> None:
    code = "from tunnel.platform.sockets import HAS_EPOLL; print(HAS_EPOLL)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "TUNNEL_NET": word},
        stdout=subprocess.PIPE,
        check=True,
        timeout=60,
    )
    assert done.stdout.decode().strip() == str(expected)


@pytest.mark.deep
@pytest.mark.timeout(5_400)
@pytest.mark.parametrize("folder", ["link", "net", "front", "center", "system"])
def test_every_suite_passes_without_an_epoll(folder: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n", "2", f"tests/{folder}"],
        cwd=ROOT,
        env=PORTABLE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    assert done.returncode == 0, done.stdout.decode(errors="replace")[-20_000:]
