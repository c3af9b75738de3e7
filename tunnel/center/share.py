"""What a center-client serves itself to visitors: a guarded service, a folder.

The password and the files are looked at here, at the client: neither the secret nor the
decision is the server's, and both work the same behind a host name and behind a port.
"""

from __future__ import annotations

import socket
import struct
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import trio

from tunnel.access.target import connect
from tunnel.center.exit import bound_address
from tunnel.front.folder import Folder
from tunnel.front.folder import handle_visitor as handle_folder_visitor
from tunnel.front.http1 import Visit
from tunnel.front.web import Guard, handle_guarded
from tunnel.proto.frames import Address

if TYPE_CHECKING:
    from collections.abc import Callable

    from tunnel.center.publisher import Serve
    from tunnel.errors import Code
    from tunnel.link.virtual import VirtualStream

_NOBODY: Final = Address("unknown", 0)
_RST_ON_CLOSE: Final = struct.pack("ii", 1, 0)


def share_guarded(target: Address, guard: Guard, *, by_name: bool) -> Serve:
    """Serve visitors with an HTTP service that only who has the password reaches.

    Args:
        target: of the service.
        guard: user and password.
        by_name: the visitors come through the server's HTTP port, which has written
            who they are; else they come to a port, and what they say is not believed.
    """

    async def open_one(visitor: Address) -> _Dialled:
        del visitor
        return _Dialled(await connect(target))

    async def serve(stream: VirtualStream) -> None:
        stream.accept()
        visit = Visit(stream, _visitor_of(stream))
        await handle_guarded(visit, guard, open_one, believe_headers=by_name)

    return serve


def share_folder(folder: Folder, guard: Guard | None) -> Serve:
    """Serve visitors with the files of a folder."""

    async def serve(stream: VirtualStream) -> None:
        stream.accept()
        await handle_folder_visitor(Visit(stream, _visitor_of(stream)), folder, guard)

    return serve


def _visitor_of(stream: VirtualStream) -> Address:
    create = stream.create
    return (create.visitor if create else None) or _NOBODY


class _Dialled:
    """A connection to a target that can be reset, as a virtual TCP connection can."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.bound = bound_address(stream)
        self._stream = stream
        self.receive_some = stream.receive_some
        self.send_all = self.put = stream.send_all
        self.send_eof = stream.send_eof
        self.aclose = stream.aclose

    def on_closed(self, call: Callable[[Code], None] | None) -> None:
        """Do nothing: a socket tells its end to who reads it."""

    def reset(self, code: Code) -> None:
        del code
        with suppress(OSError, trio.ClosedResourceError):
            self._stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RST_ON_CLOSE)
        self._stream.socket.close()
