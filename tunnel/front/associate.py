"""One UDP association of SOCKS5: the app's datagrams to the exit, and back.

Only the app may send: its IP address, from one port. What is not a whole, well-formed
datagram of the app is dropped, as UDP does; that others send is logged once.
"""

from __future__ import annotations

import logging
import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import trio

from tunnel.addresses import Address, bare_ip, is_loopback
from tunnel.errors import Code, LocalStreamError, StreamError
from tunnel.front.attempt import drop_resource
from tunnel.log import log_event
from tunnel.net.bind import bind_one
from tunnel.net.datagrams import DatagramSocket, make_room, read_turn, when_readable
from tunnel.net.descriptors import DESCRIPTORS
from tunnel.net.listen import LOG, peer_of
from tunnel.socks.v5 import decode_datagram, encode_datagram

if TYPE_CHECKING:
    from collections.abc import Callable

    from tunnel.front.dialer import Association
    from tunnel.net.datagrams import Source
    from tunnel.net.sockets import FastSocket

_CONTROL_BYTES: Final = 4096


async def associate(
    app: FastSocket,
    far: Association,
    port: int,
    reply: Callable[[Address], bytes],
    public: str | None = None,
) -> None:
    """Serve one association for as long as the app's TCP connection lives.

    What the app sends on TCP is read and ignored; its end or reset is the end of the
    association, as is the loss of the far side. The socket for datagrams is bound on
    the address that the app's TCP connection came in on.

    Args:
        app: awaits its reply; the caller closes it.
        far: the association at the exit; closed in the end.
        port: the one that the app named for its datagrams; 0 for that of the first.
        reply: makes the app's answer of the address that its datagrams are to go to.
        public: the IP address for that answer, for an app of another machine.

    Raises:
        StreamError: there is no socket for it; the app has no reply yet.
        trio.BrokenResourceError: the app was gone before its reply.
    """
    try:
        peer = peer_of(app)
        if peer is None:
            raise trio.BrokenResourceError
        with _socket_for(app) as udp:
            name = udp.getsockname()
            own = bare_ip(name[0])
            if public is not None and not is_loopback(own):
                own = public
            await app.send_all(reply(Address(own, name[1])))
            await _AppDatagrams(udp, far, Address(peer.host, port)).run(app)
    finally:
        await drop_resource(far)


def _socket_for(app: FastSocket) -> DatagramSocket:
    """Bind a UDP socket where the app's connection came in, on a free port."""
    host, _, *scope = app.socket.getsockname()
    host = bare_ip(host)
    family, where = socket.AF_INET6, (host, 0, *scope)
    if ":" not in host:
        family, where = socket.AF_INET, (host, 0)

    def admit(sock: socket.socket) -> None:
        DESCRIPTORS.admit(sock, "datagrams of an app")
        make_room(sock)

    try:
        bound = bind_one(family, where, socket.SOCK_DGRAM, admit, None)
    except OSError as error:
        raise LocalStreamError(Code.RESOURCE, "no socket for datagrams") from error
    return DatagramSocket.of(bound)


class _AppDatagrams:
    """The datagrams of one app, both ways."""

    def __init__(self, udp: DatagramSocket, far: Association, app: Address) -> None:
        self._udp = udp
        self._far = far
        self._app = app
        self._name: Source | None = None  # the app's, for sendto
        self._told = False

    async def run(self, control: FastSocket) -> None:
        """Carry them until the app's TCP connection or the far side ends."""
        async with trio.open_nursery() as nursery:
            self._far.deliver_to(self._downward, nursery.cancel_scope.cancel)
            nursery.start_soon(when_readable, self._udp, self._read)
            with suppress(trio.BrokenResourceError):
                while await control.receive_some(_CONTROL_BYTES):
                    pass
            nursery.cancel_scope.cancel()

    def _read(self) -> None:
        """Carry what the app has sent."""
        read_turn(self._udp, self._upward)
        self._far.flush()

    def _upward(self, data: bytes, name: Source) -> None:
        if self._name is None and self._may_be_the_app(name):
            self._name = name
        if name != self._name:
            self._tell(name)
        elif (found := decode_datagram(data)) is not None:
            self._far.put(*found)

    def _may_be_the_app(self, name: Source) -> bool:
        is_its_host = bare_ip(str(name[0])) == self._app.host
        return is_its_host and self._app.port in (0, name[1])

    def _tell(self, name: Source) -> None:
        """Log once that another address sends: behind NAT it may be the app itself."""
        if not self._told:
            log_event(LOG, logging.INFO, "datagram.dropped", peer=str(self._app),
                source=str(Address(bare_ip(str(name[0])), int(name[1]))),
                reason="it is not from the app")  # fmt: skip
        self._told = True

    def _downward(self, source: Address, payload: bytes) -> bool:
        """Send to the app what comes for it; False if that is lost."""
        if self._name is None:  # the app has sent nothing, so this is no answer
            return False
        try:
            self._udp.sendto(encode_datagram(source, payload), self._name)
        except (OSError, StreamError):  # too large with its header, or no room
            return False
        return True
