"""What the tests of a center's ports share."""

from __future__ import annotations

import socket

import pytest
from support import center

from tunnel.center import endpoints
from tunnel.net import listen


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Ports that are asked for from here on, in turn; they are opened all the same."""
    ports: list[int] = []
    real = listen.open_listener

    async def counting(host: str, port: int) -> list[listen.PortListener]:
        ports.append(port)
        return await real(host, port)

    monkeypatch.setattr(endpoints, "open_listener", counting)
    return ports


@pytest.fixture
def free_ports() -> range:
    """Ports that were free a moment ago."""
    return center.free_ports()


@pytest.fixture
def ports() -> range:
    """Three ports in a row that were free a moment ago."""
    for start in range(20_000, 60_000, 7):
        try:
            for port in range(start, start + 3):
                with socket.socket() as one:
                    one.bind((center.LOOPBACK, port))
        except OSError:
            continue
        return range(start, start + 3)
    raise AssertionError("no free ports")
