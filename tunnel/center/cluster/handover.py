"""Visitors that came to another worker than the owner of their name has come to.

The kernel deals out who comes in, and knows no names. The first bytes are looked at,
and left where they are; where they name what is at another worker, the socket goes
there, and is served as if it had come there. What is not plain to see so early, or is
named later, is opened over there by a peer link instead.
"""

from __future__ import annotations

import re
import socket
from typing import TYPE_CHECKING, Final

import trio

from tunnel.center.cluster.remote import RemoteClient
from tunnel.front.http.client_hello import HelloError, read_client_hello
from tunnel.front.http.pages import HttpError
from tunnel.front.http.request import host_of
from tunnel.net.sockets import FastSocket
from tunnel.proto.frames import MappingType

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tunnel.center.mappings import MappingTable

    Give = Callable[[str, str, int], None]
    """Have a node serve a descriptor, at the port of this name."""

WEB: Final = "web"
TLS: Final = "tls"
LOOK_BYTES: Final = 4_096
"""Of what a visitor says first: most heads, and all ClientHellos but a few."""
LOOK_S: Final = 10.0
"""How long a visitor may take to say something; the engine waits as long then."""
_HOST: Final = re.compile(rb"\r\nhost:[ \t]*([^\r\n]*?)[ \t]*\r\n", re.IGNORECASE)


class HandOver:
    """Finds whom visitors are for, and hands them over.

    Args:
        table: knows the owners of names.
        learn: has a name known that another node may have.
        give: hands a descriptor to a node.
    """

    def __init__(
        self,
        table: MappingTable,
        learn: Callable[[str], Awaitable[bool] | None],
        give: Give,
    ) -> None:
        self._table = table
        self._learn = learn
        self._give = give

    async def web(self, stream: trio.abc.AsyncResource) -> bool:
        """Say whether a visitor of the HTTP port is another process's now."""
        return await self._hand_over(stream, WEB, _host_of_head)

    async def tls(self, stream: trio.abc.AsyncResource) -> bool:
        """Say whether a visitor of the HTTPS port is another process's now."""
        return await self._hand_over(stream, TLS, _host_of_hello)

    async def _hand_over(
        self,
        stream: trio.abc.AsyncResource,
        port: str,
        host_in: Callable[[bytes], str],
    ) -> bool:
        if not isinstance(stream, FastSocket):
            return False
        said = b""
        with trio.move_on_after(LOOK_S):
            await trio.lowlevel.wait_readable(stream.number())
        try:
            said = stream.socket.recv(LOOK_BYTES, socket.MSG_PEEK)
            host = host_in(said)
        except (OSError, HelloError, HttpError, ValueError):
            return False  # whoever serves it finds that too
        learned = self._learn(host) if host else None
        if learned is not None:
            await learned
        node = self._home(host) if host else ""
        if not node or stream.given_up:
            return False
        self._give(node, port, stream.detach())
        return True

    def _home(self, host: str) -> str:
        """Return the one other node where all is that a name leads to; else nothing."""
        for of_type in (MappingType.HTTPS, MappingType.HTTP):
            site = self._table.find(of_type, host)
            owners = [one.owner for one in site.mappings] if site else []
            nodes = {
                one.node if isinstance(one, RemoteClient) else "" for one in owners
            }
            if len(nodes) == 1:
                return nodes.pop()
        return ""


def _host_of_head(said: bytes) -> str:
    found = _HOST.search(said)
    return host_of(found[1].decode("latin-1")) if found else ""


def _host_of_hello(said: bytes) -> str:
    hello = read_client_hello(bytearray(said))
    return host_of(hello.name) if hello is not None and hello.name else ""
