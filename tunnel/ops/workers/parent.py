"""The process that starts the workers of a server, and stands for all of them.

It opens what they listen on, one socket for each worker, so that the kernel deals out
who comes in; holds their directory; starts one again that has died; and answers
commands. It carries no byte.
"""

from __future__ import annotations

import logging
import os
import secrets
import signal
import socket
import sys
import time
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Final

import trio

from tunnel import __version__
from tunnel.access.files import sole_server
from tunnel.access.months import Months
from tunnel.addresses import Address
from tunnel.center.backoff import Backoff
from tunnel.center.cluster.channel import Channel
from tunnel.center.cluster.machine import answer
from tunnel.center.cluster.secret import SECRET_BYTES
from tunnel.center.cluster.store import Store
from tunnel.errors import Exit, TunnelError, UsageError
from tunnel.log import log_event
from tunnel.net.given import passed_on, take_given
from tunnel.net.listen import open_listener
from tunnel.ops.control.service import OwnSocket
from tunnel.ops.life import Life
from tunnel.ops.runtime import Ending, hangup_reloads
from tunnel.ops.systemd import tell_systemd
from tunnel.ops.workers import worker
from tunnel.ops.workers.commands import Commands
from tunnel.ops.workers.running import Running
from tunnel.ops.workers.uses import Uses
from tunnel.ops.workers.watched import Watched
from tunnel.ops.workers.worker import (
    GO,
    PEER,
    PLACES,
    READY,
    REOPEN_LOG,
    STOP,
    USES,
    VARIABLE,
    VISITOR,
    WorkerPlace,
)
from tunnel.platform.channels import start_child
from tunnel.platform.process import (
    HANGUP,
    REOPEN,
    buries_strangers,
    bury_all_but,
    cores,
    told_of_children,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from tunnel.center.cluster.channel import Words
    from tunnel.net.given import Given
    from tunnel.ops.control import Answer, Args, Handler
    from tunnel.ops.flags import Ports
    from tunnel.ops.show import Show

BURIED_S: Final = 1.0
"""Between two looks for strangers that are to be buried."""
TOLD_S: Final = 5.0
"""How long a worker may take to read the users."""

logger = logging.getLogger("tunnel.workers")

_Place = tuple[Address, int]
"""An address, and which it is of those with any port."""


class Parent:
    """The workers of one server.

    Args:
        count: how many.
        given: sockets that were given to this process.
        months: bytes of this month, which all workers count together.
        buries: see ``bury_strangers``; it is done here as long as there are workers.
    """

    def __init__(
        self, count: int, given: Given, months: Months, *, buries: bool = False
    ) -> None:
        self._count = count
        self._buries = buries
        self._given = given
        self._uses = Uses(months)
        self._store = Store()
        self._workers: dict[int, Running] = {}
        self.workers: Mapping[int, Running] = self._workers
        """Those that serve, by number."""
        self._processes: dict[int, trio.Process] = {}
        self._places: dict[_Place, list[list[socket.socket]]] = {}
        self._secret = secrets.token_bytes(SECRET_BYTES)
        """By which the workers know one another; nobody else ever has it."""
        self._opening = trio.Lock()
        self._ending = False
        self._is_up = False
        self._all_ended = trio.Event()
        self.status = Exit.OK
        """With what this process is to end, if a worker could not begin."""

    # Its workers ----------------------------------------------------------------------

    async def run(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Start the workers and keep them up; started once all serve."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._uses.spread, self._tell_uses)
            if self._buries:
                nursery.start_soon(self._bury_strangers)
            async with trio.open_nursery() as workers:
                for number in range(self._count):
                    began = trio.Event()
                    workers.start_soon(self._keep, number, began)
                    await began.wait()
                    if self.status:
                        break
                task_status.started()
            nursery.cancel_scope.cancel()
        self._all_ended.set()

    def _tell_uses(self) -> None:
        for running in self._workers.values():
            running.channel.tell(USES, self._uses.elsewhere(running.place.name))

    def go(self) -> None:
        """Have the first worker tell the person that the server is there."""
        self._is_up = True
        for number, running in self._workers.items():
            running.channel.tell(GO, {"shows": number == 0})

    async def _keep(self, number: int, began: trio.Event) -> None:
        """Have one worker, and another when it dies."""
        pauses = Backoff()
        while not self._is_ending():
            at = trio.current_time()
            process = await self._start(number, began)
            status = process.returncode
            if self._is_ending():
                break
            if not began.is_set():  # it has said why
                self.status = Exit(status) if status in list(Exit) else Exit.INTERNAL
                self._ending = True
                began.set()
                break
            log_event(logger, logging.ERROR, "worker.lost", worker=number,
                pid=process.pid, status=status)  # fmt: skip
            pauses.carried(trio.current_time() - at, failed=True)
            await trio.sleep(pauses.next_s(waiting=True, took_s=0.0))
        began.set()

    async def _start(self, number: int, began: trio.Event) -> trio.Process:
        """Run one worker to its end."""
        ours, theirs = socket.socketpair()
        name = f"w{number}.{secrets.token_hex(4)}"
        place = WorkerPlace(theirs.fileno(), number, name, passed_on(self._given))
        ours.send(self._secret)  # the first thing that it reads
        running = Running(place, _channel_of(self, ours, lambda: running))
        with theirs:
            given = [theirs.fileno(), *(one.number for one in self._given.sockets)]
            env = {**os.environ, VARIABLE: place.variable}
            process = await start_child(_command(), given, env)
        self._processes[number] = process
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(running.channel.run)
                nursery.start_soon(self._when_ready, number, running, began)
                await process.wait()
                nursery.cancel_scope.cancel()
        finally:
            if process.returncode is None:
                process.kill()
            self._workers.pop(number, None)
            self._processes.pop(number, None)
            self._store.leave(name)
            self._uses.gone(name)
        return process

    async def _when_ready(
        self, number: int, running: Running, began: trio.Event
    ) -> None:
        await running.ready.wait()
        self._workers[number] = running
        log_event(logger, logging.INFO, "worker.ready", worker=number,
            node=running.place.name)  # fmt: skip
        began.set()
        running.channel.tell(USES, self._uses.elsewhere(running.place.name))
        if self._is_up:
            running.channel.tell(GO, {"shows": False})

    def months(self) -> dict[str, int]:
        """Return the bytes of this month of each user."""
        return self._uses.months()

    def pids(self) -> set[int]:
        """Return the workers' processes, which dial what their clients ask for."""
        return {process.pid for process in self._processes.values()}

    async def _bury_strangers(self) -> None:
        while True:
            await trio.sleep(BURIED_S)
            bury_all_but(self.pids())

    def _is_ending(self) -> bool:
        return self._ending

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to every worker."""
        for process in self._processes.values():
            process.send_signal(number)

    async def drain(self, deadline_s: float) -> None:
        """Have all drain, and return when they have ended."""
        del deadline_s  # they know it
        self._ending = True
        self.signal(signal.SIGTERM)
        await self._all_ended.wait()

    async def stop(self) -> None:
        """Have all stop at once, and return when they have ended."""
        self._ending = True
        served = {running.place.number for running in self._workers.values()}
        self.tell(STOP)
        for number, process in self._processes.items():
            if number not in served:
                process.send_signal(signal.SIGTERM)
        await self._all_ended.wait()

    def tell(self, note: str) -> None:
        """Tell every worker that serves."""
        for running in self._workers.values():
            running.channel.tell(note)

    # What they ask --------------------------------------------------------------------

    async def answer(
        self, running: Running, do: str, args: Words, descriptors: list[int]
    ) -> tuple[dict[str, object], Sequence[int]]:
        """Answer a worker's question."""
        del descriptors
        match do:
            case worker.LISTEN:
                where = Address(str(args["host"]), _port(args["port"]))
                place = where, _port(args["nth"])
                return {}, await self._listen(place, running.place.number)
            case worker.USERS:
                await self._users_changed(running, args)
                return {}, ()
            case worker.CONNECT:
                return {}, [self._connect(str(args["node"]))]
            case _:
                name, channel = running.place.name, running.channel
                return answer(self._store, channel, name, do, args), ()

    def heard(
        self, running: Running, note: str, args: Words, descriptors: list[int]
    ) -> None:
        """Take what a worker tells."""
        if note == READY:
            commands = args["commands"]
            assert isinstance(commands, list)  # noqa: S101 - it is one of ours
            running.commands = commands
            running.ready.set()
        elif note == VISITOR:
            self._hand_over(str(args["node"]), args, descriptors)
        elif note == USES:
            self._uses.heard(running.place.name, args)
        elif note == PLACES and running.place.number == 0:
            places = args["places"]
            assert isinstance(places, list)  # noqa: S101
            kept = {Address(str(host), _port(port)) for host, port in places}
            for place in [one for one in self._places if one[0] not in kept]:
                _close(self._places.pop(place))

    async def _listen(self, place: _Place, number: int) -> list[int]:
        """Return copies of what a worker listens on there; AddressError: nobody can."""
        async with self._opening:
            if place not in self._places:
                self._places[place] = await self._open(place[0])
            return [os.dup(sock.fileno()) for sock in self._places[place][number]]

    async def _open(self, where: Address) -> list[list[socket.socket]]:
        """Open an address as often as there are workers."""
        # Others of this user would share the port too: it has to be free first.
        tried = await open_listener(where.host, where.port)
        port = tried[0].socket.getsockname()[1]
        for listener in tried:
            listener.close()
        opened: list[list[socket.socket]] = []
        try:
            for _ in range(self._count):
                listeners = await open_listener(where.host, port, shared=True)
                opened.append([one.handed_over() for one in listeners])
        except BaseException:
            _close(opened)
            raise
        return opened

    def _hand_over(self, node: str, args: Words, descriptors: list[int]) -> None:
        """Pass a visitor's socket on; it is reset if that worker has just died."""
        for running in self._workers.values():
            if running.place.name == node:
                running.channel.tell(VISITOR, args, descriptors)
                return
        for number in descriptors:
            os.close(number)

    async def _users_changed(self, but: Running, args: Words) -> None:
        """Have all read the users anew, but for the one that has changed them."""
        if was := str(args["was"]):
            self._uses.rename(was, str(args["name"]))

        async def tell(running: Running) -> None:
            with suppress(TunnelError):  # it has just died
                await running.channel.ask(worker.USERS)

        with trio.move_on_after(TOLD_S):
            async with trio.open_nursery() as nursery:
                for running in tuple(self._workers.values()):
                    if running is not but:
                        nursery.start_soon(tell, running)

    def _connect(self, node: str) -> int:
        """Return one end of a socket pair, whose other a worker gets."""
        for running in self._workers.values():
            if running.place.name == node:
                ours, theirs = socket.socketpair()
                running.channel.tell(PEER, {}, [theirs.detach()])
                return ours.detach()
        raise UsageError(f"{node} is gone")


async def run_workers(
    state: Path,
    count: int,
    prepare: Callable[[], object],
    drain_s: Callable[[], float],
    ports: Ports,
    show: Show,
) -> Exit:
    """Run a center-server of several processes until a signal ends it.

    Args:
        state: the folder of its key, tokens and join line.
        count: how many workers; 0 is one for each core.
        prepare: makes what all of them read in the state folder.
        drain_s: returns how long they may drain.
        ports: where those who watch the server ask.
        show: writes for the user.

    Raises:
        AddressError, StateError: as ``run_serve``.
    """
    count = count or cores()
    buries = buries_strangers()
    with sole_server(state), told_of_children():
        prepare()
        given = take_given(os.environ)
        parent = Parent(count, given, Months(state), buries=buries)
        life = Life()
        ending = Ending(show, lambda: 0, life, reloads=True)
        own = OwnSocket("serve", state, parent.pids)
        about = partial(_about, own, ending, round(time.time(), 3))

        async with trio.open_nursery() as nursery:
            await nursery.start(tell_systemd, life)
            await nursery.start(parent.run)
            if parent.status:
                nursery.cancel_scope.cancel()
                return parent.status
            commands = Commands(parent.workers, about)
            handlers = commands.handlers() | _endings(ending, own)
            asked = parent.workers, parent.months, parent.pids
            watched = Watched(*asked, commands, show)
            await watched.serve(nursery, ports, handlers, life)
            await nursery.start(own.serve, handlers)
            await nursery.start(_pass_signals, parent, commands, show, life)

            async def until_signal(*, task_status: trio.TaskStatus[None]) -> None:
                await ending.watch(
                    parent.drain, parent.stop, drain_s, task_status=task_status
                )
                nursery.cancel_scope.cancel()

            await nursery.start(until_signal)
            parent.go()
            listens = (await commands.status({}, "the parent"))["address"]
            life.ready(f"listening on {listens}")
        return ending.status


def _about(own: OwnSocket, ending: Ending, began_at: float) -> Answer:
    says: Answer = {"name": own.name, "pid": os.getpid()}
    says |= {"version": __version__, "began_at": began_at}
    return says | ({"state": "draining"} if ending.began else {})


def _command() -> list[str]:
    """Return what starts this program with the words that it was started with."""
    words = sys.argv[1:]
    before = sys.orig_argv[1 : len(sys.orig_argv) - len(words)]
    return [sys.executable, *before, *words]


def _endings(ending: Ending, own: OwnSocket) -> dict[str, Handler]:
    async def drain(_args: Args, _by: str) -> Answer:
        if not ending.began:  # a second signal would end it at once
            os.kill(os.getpid(), signal.SIGTERM)
        return {"name": own.name}

    async def stop(_args: Args, _by: str) -> Answer:
        ending.at_once = True
        os.kill(os.getpid(), signal.SIGTERM)
        return {"name": own.name}

    return {"drain": drain, "stop": stop}


async def _pass_signals(
    parent: Parent,
    commands: Commands,
    show: Show,
    life: Life,
    *,
    task_status: trio.TaskStatus[None],
) -> None:
    """Have all open the log anew at SIGUSR1, and read what they are told at SIGHUP."""
    numbers = [REOPEN] if REOPEN is not None else []
    if HANGUP is not None and hangup_reloads():
        numbers.append(HANGUP)
    if not numbers:
        task_status.started()
        return
    with trio.open_signal_receiver(*numbers) as signals:
        task_status.started()
        async for number in signals:
            show.reopen()
            parent.tell(REOPEN_LOG)
            if number == HANGUP:
                with life.reloading(), suppress(TunnelError):  # they have said why
                    answer = await commands.reload({}, "SIGHUP")
                    faults = answer.get("faults")
                    said = isinstance(faults, list) and faults
                    life.refused = str(said[0]) if said else ""


def _channel_of(
    parent: Parent, sock: socket.socket, running: Callable[[], Running]
) -> Channel:
    async def answered(
        do: str, args: Words, descriptors: list[int]
    ) -> tuple[dict[str, object], Sequence[int]]:
        return await parent.answer(running(), do, args, descriptors)

    def heard(note: str, args: Words, descriptors: list[int]) -> None:
        parent.heard(running(), note, args, descriptors)

    return Channel(sock, answered, heard)


def _close(opened: list[list[socket.socket]]) -> None:
    for sockets in opened:
        for sock in sockets:
            sock.close()


def _port(said: object) -> int:
    assert isinstance(said, int)  # noqa: S101 - a worker of ours says so
    return said
