"""A client that got a socket but no epoll ended instead of trying again."""

from __future__ import annotations

import errno
import select
from typing import TYPE_CHECKING

import trio
from support.center import center
from support.engines import needs_epoll

from tunnel.center.events import LinkUp
from tunnel.errors import Code
from tunnel.net import poller as poller_module

if TYPE_CHECKING:
    import pytest


@needs_epoll
async def test_a_client_without_a_free_descriptor_tries_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A socket for the new link was to be had, an epoll was not."""
    asked = 0

    def scarce_epoll() -> select.epoll:
        nonlocal asked
        asked += 1
        if asked == 3:  # the client's second session; the server's are 1 and 4
            raise OSError(errno.EMFILE, "Too many open files")
        return select.epoll()

    async with center(resume_s=0) as where, trio.open_nursery() as nursery:
        client, notices = where.client()
        monkeypatch.setattr(poller_module, "open_epoll", scarce_epoll)
        await nursery.start(client.run)
        assert asked == 2
        asked = 1
        (member,) = where.server.clients
        member.lose_link(Code.LINK_LOST, "test")
        await notices.next(LinkUp, 2)
        client.stop()
