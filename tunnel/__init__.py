"""Any number of TCP connections over one long-lived link.

The public names; each is loaded when it is first asked for, so that a small command
does not pay for what it does not use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from tunnel.access.join import parse_join as parse_join
    from tunnel.blocking import Shared as Shared
    from tunnel.blocking import share as share
    from tunnel.center.client import CenterClient as CenterClient
    from tunnel.center.client import connect as connect
    from tunnel.center.publisher import MappingListener as MappingListener
    from tunnel.center.server import CenterServer as CenterServer
    from tunnel.center.server import ServerOptions as ServerOptions
    from tunnel.errors import Code as Code
    from tunnel.errors import LinkError as LinkError
    from tunnel.errors import SessionError as SessionError
    from tunnel.errors import StreamError as StreamError
    from tunnel.errors import TunnelError as TunnelError
    from tunnel.link.bind import BoundPort as BoundPort
    from tunnel.link.datagrams import DatagramStream as DatagramStream
    from tunnel.link.virtual import VirtualStream as VirtualStream
    from tunnel.proto.codec import FrameDecoder as FrameDecoder
    from tunnel.proto.mux import MuxCore as MuxCore

__version__ = "0.1.0"

_HOMES: Final = {
    "BoundPort": "tunnel.link.bind",
    "CenterClient": "tunnel.center.client",
    "CenterServer": "tunnel.center.server",
    "Code": "tunnel.errors",
    "DatagramStream": "tunnel.link.datagrams",
    "FrameDecoder": "tunnel.proto.codec",
    "LinkError": "tunnel.errors",
    "MappingListener": "tunnel.center.publisher",
    "MuxCore": "tunnel.proto.mux",
    "ServerOptions": "tunnel.center.server",
    "SessionError": "tunnel.errors",
    "Shared": "tunnel.blocking",
    "StreamError": "tunnel.errors",
    "TunnelError": "tunnel.errors",
    "VirtualStream": "tunnel.link.virtual",
    "connect": "tunnel.center.client",
    "parse_join": "tunnel.access.join",
    "share": "tunnel.blocking",
}

__all__ = tuple(_HOMES)


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'tunnel' has no attribute {name!r}")
    value: object = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value
