"""What a center-client serves itself to visitors: a guarded service, a folder.

The password and the files are looked at here, at the client: neither the secret nor the
decision is the server's, and both work the same behind a host name and behind a port.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tunnel.center.exit.direct import DirectStream
from tunnel.front.http.files import Folder
from tunnel.front.http.files import handle_visitor as handle_folder_visitor
from tunnel.front.http.names import Guard, handle_guarded
from tunnel.front.http.server import Visit
from tunnel.net.descriptors import DESCRIPTORS
from tunnel.net.dial import connect
from tunnel.proto.frames import Address

if TYPE_CHECKING:
    from tunnel.center.publisher import Serve
    from tunnel.link.virtual import VirtualStream
    from tunnel.proto.frames import End

_NOBODY: Final = Address("unknown", 0)


def share_guarded(target: End, guard: Guard, *, by_name: bool) -> Serve:
    """Serve visitors with an HTTP service that only who has the password reaches.

    Args:
        target: of the service.
        guard: user and password.
        by_name: the visitors come through the server's HTTP port, which has written
            who they are; else they come to a port, and what they say is not believed.
    """

    async def open_one(visitor: Address) -> DirectStream:
        del visitor
        return DirectStream(await connect(target, opened=DESCRIPTORS.admit))

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
