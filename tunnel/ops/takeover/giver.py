"""The server that runs: it hands over what it listens on, and drains."""

from __future__ import annotations

import logging
import os
import signal
import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import trio

from tunnel.addresses import Address
from tunnel.center.book import give_up_ports
from tunnel.center.cluster.channel import Channel, ChannelClosedError
from tunnel.center.cluster.cluster import Cluster
from tunnel.center.cluster.machine import CHANGES, MachineDirectory
from tunnel.center.endpoints import PublicName
from tunnel.errors import UsageError
from tunnel.log import log_event
from tunnel.net.sockets import FastSocket
from tunnel.ops.control.handed import Handed
from tunnel.ops.takeover import COMMAND, GO, JOIN, PASSED, PEER, PORT, SOCKETS
from tunnel.platform.channels import MAX_DESCRIPTORS
from tunnel.proto.frames import MappingType

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from tunnel.access.identity import Identity
    from tunnel.center.cluster.channel import Words
    from tunnel.center.server import CenterServer
    from tunnel.ops.control import Answer, Args, Handlers
    from tunnel.ops.life import Life
    from tunnel.ops.takeover import Place

PASSED_S: Final = 1.0
"""How often the other process hears what users have passed, and how long the last word
about it may take."""
_LOCAL: Final = Address("local", 0)

logger = logging.getLogger("tunnel.takeover")


class Giver:
    """Hands a server over, once, while it runs.

    Args:
        server: the server.
        identity: its own; None where links are plain.
        place: which process it is.
        lock: the descriptor that locks the state folder.
        life: hears who has taken over.
        nursery: hosts its tasks.
    """

    def __init__(
        self,
        server: CenterServer,
        identity: Identity | None,
        place: Place,
        lock: int,
        life: Life,
        nursery: trio.Nursery,
    ) -> None:
        self._server = server
        self._pin = identity.pin if identity is not None else None
        self._place = place
        self._lock = lock
        self._life = life
        self.leave: Callable[[], Awaitable[None]]
        """Closes what people and programs on this machine ask."""
        self._channel: Channel | None = None
        self._directory: MachineDirectory
        self._told: dict[str, int] = {}
        self._is_given = False
        self._ports: dict[PublicName, list[int]] = {}
        """Sockets of ports that are closed here, and not asked for yet."""
        self._nursery = nursery
        self.why_not = ""
        """Why this server is not handed over; empty if it is."""

    @property
    def handlers(self) -> Handlers:
        """What the control socket answers."""
        return {COMMAND: self._begin}

    async def finish(self) -> None:
        """Say the last about what users have passed, before this process ends."""
        if self._is_given and self._channel is not None:
            with trio.move_on_after(PASSED_S):
                with suppress(ChannelClosedError):  # who comes next has the file
                    await self._channel.ask(PASSED, self._news())

    async def _begin(self, args: Args, by: str) -> Answer:
        await trio.lowlevel.checkpoint()
        if self.why_not:
            raise UsageError("this server cannot be taken over", self.why_not)
        if self._life.state == "stopping" or self._channel is not None:
            why = "another has, or is about to"
            raise UsageError("this server cannot be taken over now", why)
        ours, theirs = socket.socketpair()
        self._channel = Channel(ours, self._answer, self._heard)
        self._nursery.start_soon(self._serve, self._channel)
        log_event(logger, logging.INFO, "takeover.asked", by=by)
        return Handed([theirs.detach()])

    async def _serve(self, channel: Channel) -> None:
        async with trio.open_nursery() as nursery:
            self._directory = MachineDirectory(self._place.name, lambda: channel)
            nursery.start_soon(self._tell_passed, channel)
            await channel.run()
            nursery.cancel_scope.cancel()
        level = logging.INFO if self._is_given else logging.WARNING
        log_event(logger, level, "takeover.lost",
            reason="the other process has ended", given=self._is_given)  # fmt: skip
        self._directory.nodes = {self._place.name: ""}
        for number in (one for of in self._ports.values() for one in of):
            os.close(number)
        self._ports.clear()
        if not self._is_given:
            self._server.membership.part()
            self._channel = None

    async def _answer(
        self, do: str, args: Words, descriptors: list[int]
    ) -> tuple[dict[str, object], Sequence[int]]:
        del descriptors
        if do == SOCKETS:
            return await self._sockets()
        if do == PORT:
            return {}, self._port(args)
        if do == JOIN:
            await self._join()
        elif do == GO:
            await self._go(int(str(args["pid"])))
        else:
            raise UsageError(f"no takeover knows {do!r}")
        return {}, ()

    async def _sockets(self) -> tuple[dict[str, object], list[int]]:
        self._told = self._server.accounts.keep_now()
        await trio.lowlevel.checkpoint()
        listening = [one for one in self._server.listening if one.where]
        if sum(one.count for one in listening) >= MAX_DESCRIPTORS:
            raise UsageError("this server listens at too many addresses to hand over")
        places: list[tuple[str, int]] = []
        descriptors = [os.dup(self._lock)]
        for one in listening:
            for sock in one.copies():
                assert one.where is not None  # noqa: S101 - see above
                places.append((one.where.host, one.where.port))
                descriptors.append(sock.detach())
        watched_by, watchdog_s = self._life.watched_by
        return {
            "name": self._place.name,
            "secret": self._place.secret.reveal(),
            "pin": self._pin,
            "places": places,
            "watched_by": watched_by,
            "watchdog_s": watchdog_s if watched_by else 0.0,
        }, descriptors

    async def _join(self) -> None:
        secret = self._place.secret
        cluster = Cluster(
            self._directory, secret, self._pin, ports=True, shares_limits=False
        )
        await self._server.membership.join(cluster, self._server.clients)

    def _port(self, args: Words) -> list[int]:
        """Return the sockets of a port; the others of a row are asked for next."""
        numbers = int(str(args["type"])), int(str(args["port"]))
        name = PublicName(MappingType(numbers[0]), str(args["host"]), numbers[1])
        if name not in self._ports:
            self._ports |= give_up_ports(self._server.mappings, name)
        return self._ports.pop(name, [])

    async def _go(self, pid: int) -> None:
        self._is_given = True
        if (cluster := self._server.membership.cluster) is not None:
            cluster.leaves = True
        self._server.accounts.leave_months()
        for one in self._server.listening:
            one.pause()
        # If the other ends now, this one must end too: it listens nowhere any more.
        with trio.CancelScope(shield=True):
            await self.leave()
        self._life.hand_over(pid)
        self._unlock()
        log_event(logger, logging.INFO, "takeover.given", to=pid,
            connections=self._server.connections)  # fmt: skip
        os.kill(os.getpid(), signal.SIGTERM)

    def _unlock(self) -> None:
        """Leave the lock to the other alone: where that dies, a third may start."""
        nothing = os.open(os.devnull, os.O_RDONLY)
        try:
            os.dup2(nothing, self._lock, inheritable=False)  # its owner closes that
        finally:
            os.close(nothing)

    def _heard(self, note: str, args: Words, descriptors: list[int]) -> None:
        if note == CHANGES:
            self._directory.heard(args)
        elif note == PEER:
            (number,) = descriptors
            sock = socket.socket(fileno=number)
            sock.setblocking(False)
            link = FastSocket(sock)
            self._nursery.start_soon(self._server.serve_node, link, _LOCAL)

    async def _tell_passed(self, channel: Channel) -> None:
        while True:
            await trio.sleep(PASSED_S)
            if self._is_given and (news := self._news()):
                channel.tell(PASSED, news)

    def _news(self) -> dict[str, object]:
        """Return what users have passed since this was asked last."""
        before, self._told = self._told, self._server.accounts.passed()
        return {
            name: size - before.get(name, 0)
            for name, size in self._told.items()
            if size > before.get(name, 0)
        }
