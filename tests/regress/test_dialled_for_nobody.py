"""A target was dialled, and told who its visitor is, for an opener who had gone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio
import trio.testing
from support.wires import session_pair

from tunnel.addresses import Address
from tunnel.center.exit.tcp import serve_exit
from tunnel.errors import Code
from tunnel.net.listen import open_listener
from tunnel.proto.frames import TcpTarget

if TYPE_CHECKING:
    from tunnel.link.virtual import VirtualStream


async def test_a_target_is_not_dialled_for_who_has_gone() -> None:
    (listener,) = await open_listener("127.0.0.1", 0)
    target = TcpTarget(Address(*listener.socket.getsockname()))
    served = trio.Event()

    async def serve(stream: VirtualStream) -> None:
        await serve_exit(stream, target, lambda _ip, _port: True)
        served.set()

    async with listener, session_pair(serve_server=serve) as sessions:
        sessions.client.open_now(target).reset(Code.RESET)
        with trio.fail_after(10):
            await served.wait()
        with trio.move_on_after(0) as scope:
            await listener.accept()
        assert scope.cancelled_caught
