"""What a center-client serves to visitors itself: a service, a folder, a proxy.

Neither secret nor decision is the server's, which carries bytes. The services work the
same behind a host name and behind a port.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tunnel.addresses import Address
from tunnel.center.exit.tcp import bound_address
from tunnel.errors import Code, LocalStreamError
from tunnel.front.dialer import Dialer
from tunnel.front.http.files import Folder
from tunnel.front.http.files import handle_visitor as handle_folder_visitor
from tunnel.front.http.server import Visit
from tunnel.front.http.service import handle_service
from tunnel.front.proxy import handle_app
from tunnel.net.descriptors import DESCRIPTORS, TARGETS
from tunnel.net.dial import connect
from tunnel.net.sockets import CHUNK_BYTES, FastSocket, tune_local
from tunnel.proto.frames import TcpTarget

if TYPE_CHECKING:
    import socket
    from collections.abc import Awaitable, Callable

    from tunnel.access.networks import Networks
    from tunnel.access.proxy_users import ProxyUsers
    from tunnel.addresses import End
    from tunnel.center.exit.tcp import Serve
    from tunnel.front.http.guard import Guard
    from tunnel.front.http.rules import Rules
    from tunnel.link.virtual import VirtualStream
    from tunnel.net.relay import ResettableStream
    from tunnel.net.virtual_connection import LocalEnd
    from tunnel.proto.frames import Target

_NOBODY: Final = Address("unknown", 0)


def share_service(target: End, rules: Rules, *, by_name: bool) -> Serve:
    """Serve visitors with an HTTP service, as the words of its entry want it.

    Those that come ``by_name`` come through the server's HTTP port, which has written
    who they are; what those of a port say is not believed.
    """

    async def open_one(visitor: Address) -> DirectStream:
        del visitor
        return DirectStream(await connect(target, opened=DESCRIPTORS.admit))

    return lambda stream: handle_service(
        _accepted(stream), rules, open_one, believe_headers=by_name
    )


def share_folder(folder: Folder, guard: Guard | None) -> Serve:
    """Serve visitors with the files of a folder."""
    return lambda stream: handle_folder_visitor(_accepted(stream), folder, guard)


def share_network(networks: Networks, users: ProxyUsers | None) -> Serve:
    """Serve visitors with a proxy into these networks of this machine.

    ``users`` is None only where just the server's own programs come.
    """

    async def open_target(target: Target) -> ResettableStream:
        if not isinstance(target, TcpTarget):
            raise LocalStreamError(Code.UNSUPPORTED, f"{target} is not offered")
        sock = await connect(
            target.address, allow=networks.allow, opened=DESCRIPTORS.admit
        )
        return DirectStream(sock)

    def serve(stream: VirtualStream) -> Awaitable[None]:
        stream.accept()
        peer = _visitor_of(stream)
        return handle_app(stream, Dialer(open_target), peer=peer, users=users)

    return serve


def _accepted(stream: VirtualStream) -> Visit:
    stream.accept()
    return Visit(stream, _visitor_of(stream) or _NOBODY)


def _visitor_of(stream: VirtualStream) -> Address | None:
    return stream.create.visitor if stream.create else None


class DirectStream(FastSocket):
    """A connection of this machine in the place of a virtual TCP connection.

    So that what a front end serves here can also leave here. Owns the socket.
    """

    __slots__ = ("bound",)

    def __init__(self, sock: socket.socket) -> None:
        tune_local(sock)
        super().__init__(sock)
        self.bound = bound_address(sock)
        TARGETS.add(self, 0)

    async def receive_piece(self) -> bytes:
        """Wait for bytes; nothing at the end."""
        return await self.receive_some(CHUNK_BYTES)

    def carry(self, local: LocalEnd, idle_s: float, *, ready: bool = False) -> None:
        """Carry nothing: the caller has to read and write."""
        del local, idle_s, ready

    def on_closed(self, call: Callable[[Code], None] | None) -> None:
        """Do nothing: the kernel tells only a task that reads or writes."""

    def close(self) -> None:
        """End both directions without a checkpoint."""
        TARGETS.left(self)
        super().close()

    def reset(self, code: Code = Code.RESET) -> None:
        """Close with a RST; there is no peer to be told the code."""
        del code
        TARGETS.left(self)
        super().reset()
