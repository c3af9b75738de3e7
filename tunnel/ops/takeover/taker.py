"""The process that takes a running server over."""

from __future__ import annotations

import logging
import os
import secrets
import socket
from collections import defaultdict
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import trio

from tunnel.addresses import Address
from tunnel.center.cluster.channel import Channel, ChannelClosedError
from tunnel.center.cluster.cluster import Cluster
from tunnel.center.cluster.embedded import EmbeddedDirectory
from tunnel.center.cluster.machine import answer
from tunnel.center.cluster.secret import SECRET_BYTES, ClusterSecret
from tunnel.center.cluster.store import Store
from tunnel.errors import StateError, UsageError
from tunnel.log import log_event
from tunnel.net.given import Given
from tunnel.net.listen import PortListener
from tunnel.net.sockets import FastSocket
from tunnel.ops.control.ask import FILE, is_nobody, open_question, read_handed
from tunnel.ops.takeover import (
    COMMAND,
    CONNECT,
    GO,
    JOIN,
    PASSED,
    PEER,
    PORT,
    SOCKETS,
    Place,
)
from tunnel.proto.proofs import from_base64url

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from tunnel.access.identity import Identity
    from tunnel.center.cluster.channel import Words
    from tunnel.center.endpoints import PublicName
    from tunnel.center.server import CenterServer

_NAME_BYTES: Final = 4
_LOCAL: Final = Address("local", 0)

logger = logging.getLogger("tunnel.takeover")


def new_place(secret: ClusterSecret | None = None) -> Place:
    """Return which process this one is from now on."""
    secret = secret or ClusterSecret(secrets.token_bytes(SECRET_BYTES))
    return Place(secrets.token_hex(_NAME_BYTES), secret)


def ask_for_takeover(state: Path) -> socket.socket | None:
    """Return what leads to the server of a state folder; None where none runs.

    Raises:
        StateError: it cannot be asked, or cannot be taken over.
    """
    who = f"the server of {state}"
    try:
        with open_question(state / FILE, who, COMMAND, {}) as sock:
            (number,) = read_handed(sock, who)
            return socket.socket(fileno=number)
    except TimeoutError:
        raise StateError(f"{who} does not answer") from None
    except OSError as error:
        if is_nobody(error):
            return None
        why = error.strerror or str(error)
        raise StateError(f"cannot ask {who}", why) from error
    except ValueError:
        raise StateError(f"{who} hands nothing over", "it may be older") from None


class Taker:
    """Takes a server over, step by step.

    Args:
        sock: leads to the process that runs it.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._channel = Channel(sock, self._answer, self._heard)
        self._store = Store()
        self._server: CenterServer | None = None
        self._nursery: trio.Nursery
        self._giver = ""
        self._pin: object = None
        self._is_ready = trio.Event()
        self.place: Place
        self.lock = -1
        """Holds the lock of the state folder; the caller's."""
        self.given: _Taken
        """What the other listens on."""
        self.watched_by = "", 0.0
        """Where systemd is told, as ``tell_systemd`` takes it."""
        self._directory: EmbeddedDirectory

    async def run(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Get what there is to get, then hear the other until it has ended.

        Raises:
            StateError: it has ended before that.
        """
        async with trio.open_nursery() as self._nursery:
            self._nursery.start_soon(self._end_with_channel)
            try:
                said, descriptors = await self._channel.ask(SOCKETS)
            except ChannelClosedError:
                why = "it has ended"
                raise StateError("nothing was handed over", why) from None
            secret = from_base64url(str(said["secret"]), SECRET_BYTES)
            assert secret is not None  # noqa: S101 - it is one of ours
            self.place = new_place(ClusterSecret(secret))
            self._giver, self._pin = str(said["name"]), said["pin"]
            self.lock, *listening = descriptors
            places = said["places"]
            assert isinstance(places, list)  # noqa: S101
            self.given = _Taken(
                (Address(str(host), port), number)
                for (host, port), number in zip(places, listening, strict=True)
            )
            seconds = said["watchdog_s"]
            assert isinstance(seconds, float)  # noqa: S101
            self.watched_by = str(said["watched_by"]), seconds
            self._directory = EmbeddedDirectory(
                self._store, self.place.name, connect=self._connect
            )
            await self._nursery.start(self._directory.run)
            task_status.started()
            self._is_ready.set()

    async def _end_with_channel(self) -> None:
        await self._channel.run()
        await self._is_ready.wait()
        self._store.leave(self._giver)
        if self._server is not None:
            self._server.mappings.inherit = None
            self._server.membership.part()
        log_event(logger, logging.INFO, "takeover.over", of=self._giver)
        self._nursery.cancel_scope.cancel()

    def cluster(self, identity: Identity | None) -> Cluster:
        """Return what this process knows of the other.

        Raises:
            StateError: the other has another identity.
        """
        pin = identity.pin if identity is not None else None
        if pin != self._pin:
            raise StateError(
                "the server that runs has another identity",
                "clients would not believe this one",
                "start it with the same --state, and --plain as that one",
            )
        return Cluster(
            self._directory, self.place.secret, pin, ports=True, shares_limits=False
        )

    async def join(self, server: CenterServer) -> None:
        """Know what the other has, before somebody asks ``server`` for it."""
        self._server = server
        server.mappings.inherit = self._inherit
        try:
            await self._channel.ask(JOIN)
        except ChannelClosedError:  # it has died, and all that it had is here
            server.mappings.inherit = None
            server.membership.part()

    async def go(self) -> None:
        """Be the one that accepts: the other does no more, and drains."""
        with suppress(ChannelClosedError):  # it has ended: so much the better
            await self._channel.ask(GO, {"pid": os.getpid()})
        self.given.close()
        log_event(logger, logging.INFO, "takeover.done", of=self._giver)

    async def _inherit(self, name: PublicName) -> list[socket.socket]:
        """Return the sockets that the other leaves of a public port, if it does."""
        args = {"type": name.type.value, "host": name.host, "port": name.port}
        with suppress(ChannelClosedError):
            _said, came = await self._channel.ask(PORT, args)
            sockets = [socket.socket(fileno=number) for number in came]
            for sock in sockets:
                sock.setblocking(False)
            return sockets
        return []

    # What the other asks -----------------------------------------------------------

    async def _answer(
        self, do: str, args: Words, descriptors: list[int]
    ) -> tuple[dict[str, object], Sequence[int]]:
        del descriptors
        await trio.lowlevel.checkpoint()
        if do == CONNECT:
            ours, theirs = socket.socketpair()
            self._serve_node(theirs)
            return {}, [ours.detach()]
        if do == PASSED:
            self._count(args)
            return {}, ()
        try:
            return answer(self._store, self._channel, self._giver, do, args), ()
        except KeyError:
            raise UsageError(f"no takeover knows {do!r}") from None

    def _heard(self, note: str, args: Words, descriptors: list[int]) -> None:
        del descriptors
        if note == PASSED:
            self._count(args)

    def _count(self, args: Words) -> None:
        for name, size in args.items():
            if self._server is not None and isinstance(size, int):
                self._server.accounts.add(name, size)

    def _connect(self, node: str) -> socket.socket:
        if node != self._giver or self._channel.closed:
            raise UsageError(f"{node} is gone")
        ours, theirs = socket.socketpair()
        self._channel.tell(PEER, {}, [theirs.detach()])
        return ours

    def _serve_node(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        if self._server is None:
            sock.close()  # it comes again
        else:
            link = FastSocket(sock)
            self._nursery.start_soon(self._server.serve_node, link, _LOCAL)


class _Taken(Given):
    """What another process listens on, for the first who wants to listen there."""

    def __init__(self, sockets: Iterable[tuple[Address, int]]) -> None:
        super().__init__()
        self._at: defaultdict[Address, list[socket.socket]] = defaultdict(list)
        for where, number in sockets:
            sock = socket.socket(fileno=number)
            sock.setblocking(False)
            self._at[where].append(sock)

    def now(self, where: Address) -> list[PortListener]:
        """Return listeners on what was handed over for ``where``; empty for nothing."""
        return [PortListener(sock) for sock in self._at.pop(where, ())]

    def close(self) -> None:
        """Close what nobody has wanted."""
        while self._at:
            for sock in self._at.popitem()[1]:
                sock.close()
