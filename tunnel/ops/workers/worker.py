"""One of several processes of a server: what its parent gives it, and asks of it."""

from __future__ import annotations

import os
import socket
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

import trio

from tunnel.addresses import Address
from tunnel.center.cluster.channel import (
    Channel,
    ChannelClosedError,
    FailedError,
    address_error,
)
from tunnel.center.cluster.cluster import Cluster
from tunnel.center.cluster.machine import CHANGES, MachineDirectory
from tunnel.center.cluster.secret import SECRET_BYTES, ClusterSecret
from tunnel.errors import UsageError
from tunnel.net.given import Given, GivenSocket, taken_over
from tunnel.net.listen import PortListener
from tunnel.net.sockets import FastSocket
from tunnel.ops.workers.uses import read_uses, tell_uses

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, MutableMapping, Sequence

    from tunnel.access.identity import Identity
    from tunnel.center.cluster.channel import Words
    from tunnel.center.server import CenterServer
    from tunnel.ops.control import Handlers
    from tunnel.ops.metrics.facts import Facts

VARIABLE: Final = "TUNNEL_WORKER"
"""Tells a process that it is a worker, and which: ``DESCRIPTOR NUMBER NAME GIVEN``."""
COMMAND: Final = "command"
"""What the parent asks: a command of a person."""
LISTEN: Final = "listen"
CONNECT: Final = "connect"
READY: Final = "ready"
PLACES: Final = "places"
PEER: Final = "peer"
VISITOR: Final = "visitor"
"""A visitor's socket, for the worker that has what it asks for."""
USES: Final = "uses"
FACTS: Final = "facts"
"""What the parent asks for those who watch the server."""
USERS: Final = "users"
"""What a worker asks its parent, and that asks the others: the users have changed."""
REOPEN_LOG: Final = "reopen"
STOP: Final = "stop"
"""The note to end at once."""
GO: Final = "go"
"""The note that the whole server is there; it says whether to tell the person so."""
_LOCAL: Final = Address("local", 0)


@dataclass(frozen=True)
class WorkerPlace:
    """Which worker this process is."""

    descriptor: int
    """Of its end of the channel to its parent."""
    number: int
    """The first is 0."""
    name: str
    """As the other workers know it; another after each start."""
    given: str = "[]"
    """The sockets that were given to the parent, as ``passed_on`` says it."""

    @property
    def variable(self) -> str:
        """The text of the variable."""
        return f"{self.descriptor} {self.number} {self.name} {self.given}"


def take_place(environ: MutableMapping[str, str]) -> WorkerPlace | None:
    """Return which worker this process is; None: it is none. Children are none."""
    said = environ.pop(VARIABLE, "").split(maxsplit=3)
    if len(said) != 4:
        return None
    place = WorkerPlace(int(said[0]), int(said[1]), *said[2:])
    os.set_inheritable(place.descriptor, False)
    return place


class Worker:
    """This worker, towards its parent.

    Args:
        place: which one it is.
    """

    def __init__(self, place: WorkerPlace) -> None:
        self.is_first = place.number == 0
        """It alone does what one process has to do."""
        sock = socket.socket(fileno=place.descriptor)
        # The parent has sent it before it started this process.
        self._secret = ClusterSecret(sock.recv(SECRET_BYTES))
        self._channel = Channel(sock, self._answer, self._heard)
        self.given: Given = _ParentsSockets(self._channel, taken_over(place.given))
        self._directory = MachineDirectory(place.name, lambda: self._channel)
        self._handlers: Handlers = {}
        self._server: CenterServer | None = None
        self._nursery: trio.Nursery | None = None
        self._go = trio.Event()
        self.reopen_log: Callable[[], None] = lambda: None
        self.read_users: Callable[[], Awaitable[None]] | None = None
        """Reads the file of users anew."""
        self.facts: Callable[[], Awaitable[Facts]]
        """Returns the numbers of this moment."""
        self.shows = False
        """This worker tells the person at the terminal what the server is."""

    def cluster(self, identity: Identity | None) -> Cluster:
        """Return what this worker knows of the others."""
        pin = identity.pin if identity is not None else None
        secret, give = self._secret, self._hand
        return Cluster(self._directory, secret, pin, ports=True, give=give)

    def _hand(self, node: str, port: str, descriptor: int) -> None:
        """Have another worker serve a visitor's socket."""
        self._channel.tell(VISITOR, {"node": node, "port": port}, [descriptor])

    async def run(
        self,
        orphaned: Callable[[], None],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Hear the parent; call ``orphaned`` when it is gone."""
        async with trio.open_nursery() as self._nursery:
            await self._channel.run(task_status=task_status)
            orphaned()

    async def ready(self, server: CenterServer, handlers: Handlers) -> None:
        """Tell the parent that this worker serves; return when all of them do."""
        self._server, self._handlers = server, handlers
        assert self._nursery is not None  # noqa: S101 - it runs
        tell = partial(self._channel.tell, USES)
        self._nursery.start_soon(tell_uses, server.accounts, tell)
        self._channel.tell(READY, {"commands": sorted(handlers)})
        await self._go.wait()

    async def users_changed(self, was: str, name: str) -> None:
        """Have the others read the file of users, before whoever changed it goes on.

        Args:
            was: of a user that has another name now; empty for none.
            name: that name.
        """
        with suppress(ChannelClosedError):
            await self._channel.ask(USERS, {"was": was, "name": name})

    async def _answer(
        self, do: str, args: Words, descriptors: list[int]
    ) -> tuple[dict[str, object], Sequence[int]]:
        del descriptors
        if do == USERS:
            if self.read_users is not None:
                await self.read_users()
            return {}, ()
        if do == FACTS:
            return (await self.facts()).to_words(), ()
        if do != COMMAND:
            raise UsageError(f"a worker knows no question {do!r}")
        handler = self._handlers.get(str(args["do"]))
        if handler is None:
            raise UsageError(f"a worker knows no command {args['do']!r}")
        given = args["with"]
        assert isinstance(given, dict)  # noqa: S101 - the parent says so
        return await handler(given, str(args["by"])), ()

    def _heard(self, note: str, args: Words, descriptors: list[int]) -> None:
        if note == CHANGES:
            self._directory.heard(args)
        elif note == USES and self._server is not None:
            self._server.accounts.have_elsewhere(read_uses(args))
        elif note == REOPEN_LOG:
            self.reopen_log()
        elif note == STOP and self._nursery is not None:
            self._nursery.start_soon(self._handlers["stop"], {}, "")
        elif note == GO:
            self.shows = bool(args["shows"])
            self._go.set()
        elif note == VISITOR:
            (number,) = descriptors
            stream = FastSocket(socket.socket(fileno=number))
            if self._server is None:
                stream.reset()
            else:
                self._server.names.visited(str(args["port"]), stream)
        elif note == PEER:
            (number,) = descriptors
            sock = socket.socket(fileno=number)
            sock.setblocking(False)
            server, nursery = self._server, self._nursery
            if server is None or nursery is None:
                sock.close()  # it comes again
            else:
                nursery.start_soon(server.serve_node, FastSocket(sock), _LOCAL)


class _ParentsSockets(Given):
    """What the parent listens on for this worker; it stays, and its backlog with it."""

    def __init__(self, channel: Channel, given: Sequence[GivenSocket]) -> None:
        super().__init__(given)
        self._channel = channel
        self._asked = Counter[Address]()

    async def listeners(self, where: Address) -> list[PortListener]:
        """Return listeners on what the parent has opened for ``where``.

        Raises:
            AddressError: the parent cannot listen there.
        """
        if mine := self.now(where):
            return mine  # of what was given there is one: all accept from it
        try:
            # Of several free ports each is another; every worker asks in one order.
            nth = 0 if where.port else self._asked[where]
            self._asked[where] += 1
            args = {"host": where.host, "port": where.port, "nth": nth}
            _said, came = await self._channel.ask(LISTEN, args)
        except FailedError as error:
            found = address_error(error)
            raise found from found.__cause__
        sockets = [socket.socket(fileno=number) for number in came]
        for sock in sockets:
            sock.setblocking(False)
        return [PortListener(sock) for sock in sockets]

    def keep(self, places: Iterable[Address]) -> None:
        """Tell the parent where is listened from now on: it closes the rest."""
        self._channel.tell(PLACES, {"places": [[one.host, one.port] for one in places]})
