"""What the tests of a center's ports share."""

from __future__ import annotations

import pytest
from support import center
from support.ports import in_a_row

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
    return in_a_row(3)
