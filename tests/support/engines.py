"""Which engine carries sockets here: see ``TUNNEL_NET`` in tunnel.platform.sockets."""

from __future__ import annotations

import pytest

from tunnel.platform.sockets import HAS_EPOLL

needs_epoll = pytest.mark.skipif(
    not HAS_EPOLL, reason="about sockets that a session carries by an epoll of its own"
)
