"""What a center-client publishes: its mappings, and who serves their visitors.

Asks for the mappings again on every link of every session, and after growing pauses for
what somebody else still has.
"""

from __future__ import annotations

import logging
import math
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

import trio

from tunnel.addresses import Address
from tunnel.center.backoff import Backoff
from tunnel.center.events import MappingReady, MappingRefused
from tunnel.center.exit.tcp import Serve, refuse, serve_exit
from tunnel.errors import Code, LocalSessionError, TunnelError
from tunnel.link.live import open_streams
from tunnel.link.tally import Tallies, Tally
from tunnel.link.virtual import VirtualStream
from tunnel.log import log_event
from tunnel.proto.events import StreamClosed
from tunnel.proto.frames import (
    BY_TLS,
    CAN_RULE,
    MAX_MAPPING_ENTRIES,
    MappingAnswer,
    MappingEntry,
    MappingOp,
    MappingType,
    NameTarget,
    TcpTarget,
    UdpTarget,
)
from tunnel.proto.payloads import entry_bytes
from tunnel.proto.rules import Rules, said_words

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tunnel.access.networks import Networks
    from tunnel.center.events import Notice
    from tunnel.link.session import Session
    from tunnel.link.tally import Live

_NAMED: Final = (MappingType.HTTP, MappingType.HTTPS)
"""Asked for by host name: the port is the server's, and no wish of ours."""
ASKED_AGAIN: Final = (Code.TAKEN, Code.RESOURCE)
"""Refused so, a name may be had later: its owner leaves, an old server ends."""
QUESTION_BYTES: Final = 65_000
"""Of the entries of one MAPPING: less than its payload may have, and more than one
entry ever needs."""
NOT_OFFERED: Final = (Code.UNSUPPORTED, Code.ADDRESS_UNSUPPORTED)
"""Refused so, a name is never given by this server: something else may do."""

logger = logging.getLogger("tunnel.client")


@dataclass(slots=True)
class _Mapping:
    """What to ask for, what the server said, and who serves the visitors."""

    entry: MappingEntry
    serve: Serve
    said: MappingEntry
    """What its owner wants; ``entry`` has what the server chose besides."""
    public: Address | None = None
    refusal: MappingAnswer | None = None
    or_else: bool = False
    """Where it is not offered, its owner has something else to ask for."""
    had: bool = False
    """It was open once."""
    began_at: float = math.inf
    """When it was open first, on trio's clock."""
    tally: Tally = field(default_factory=Tally)

    def __str__(self) -> str:
        kind, public = MappingType(self.entry.type).name.lower(), self.public
        port = self.entry.port or (public.port if public else 0)
        by_port = self.entry.type in (MappingType.TCP, MappingType.UDP)
        return f"{kind} {port if by_port else self.entry.host}"

    @property
    def wanted(self) -> MappingEntry:
        """What is asked for now: of its life a part may be over."""
        entry, rules = self.entry, self.entry.rules
        if rules is None or not rules.expires_s or not self.had:
            return entry
        passed_s = rules.passed_s + int(trio.current_time() - self.began_at)
        return replace(entry, rules=replace(rules, passed_s=passed_s))

    @property
    def is_due(self) -> bool:
        """Whether it is to be asked for again, on the same link."""
        wanted = self.refusal is None or self.refusal.code in ASKED_AGAIN
        return self.public is None and wanted


class Publisher:
    """All mappings of a center-client, over one session after another."""

    def __init__(self, server_host: str, tell: Callable[[Notice], None]) -> None:
        self._server_host = server_host
        """Names the public address where the server does not."""
        self._tell = tell
        self.exit_networks: Networks | None = None
        """Where other clients of the server may go from here, while it is an exit."""
        self._exit = ""
        self._mappings: dict[str, _Mapping] = {}
        self._tallies = Tallies(opened=False)
        self._names = 0
        self._session: Session | None = None
        self._nursery: trio.Nursery | None = None
        self._asking_again: trio.CancelScope | None = None

    # The session ---------------------------------------------------------------------

    def attach(self, session: Session, nursery: trio.Nursery) -> None:
        """Ask this session from now on; ``nursery`` outlives it."""
        self._session, self._nursery = session, nursery
        session.tallies = self._tallies

    def detach(self) -> None:
        """Ask nobody: the session is over, and nothing is public any more."""
        self._session = self._nursery = None
        if self._asking_again is not None:
            self._asking_again.cancel()
            self._asking_again = None
        for mapping in self._mappings.values():
            mapping.public = None

    async def register(self, *, resumed: bool) -> None:
        """Ask for everything, on a new link: what was ours may have been taken."""
        if self._mappings:
            op = MappingOp.ADD if resumed else MappingOp.REPLACE
            await self._ask(op, list(self._mappings))

    # Mappings ------------------------------------------------------------------------

    async def publish(
        self, wanted: MappingEntry, serve: Serve, *, or_else: bool = False
    ) -> str:
        """Ask for a mapping, now and on every later link.

        Args:
            wanted: of any type; its ``name`` is given here. Of a port: host ``""`` for
                the address that the server's links come in on, port 0 for one of the
                server's choice, which is asked for again later. Of HTTP and HTTPS:
                ``host`` is the public name.
            serve: called for each visitor, in a task of its own; the ``index`` of the
                stream's ``NameTarget`` says to which port of a range it came.
            or_else: the caller asks for something else where this is not offered, and
                says so; the caller is told, but nothing is logged here.

        Returns:
            The mapping's name, for ``withdraw`` and in the notices about it.
        """
        name = self.add(wanted, serve, or_else=or_else)
        try:
            await self.ask([name])
        except BaseException:
            self._give_back(name)
            raise
        return name

    def add(self, wanted: MappingEntry, serve: Serve, *, or_else: bool = False) -> str:
        """Do as ``publish``, but without asking: ``ask`` does, or the next link."""
        self._names += 1
        name = f"{MappingType(wanted.type).name.lower()}-{self._names}"
        entry = replace(wanted, name=name)
        self._mappings[name] = _Mapping(entry, serve, wanted, or_else=or_else)
        is_exit = wanted.type == MappingType.EXIT
        if is_exit:
            self._exit = name
        self._tallies.begin(name, self._mappings[name].tally, is_exit=is_exit)
        return name

    async def ask(self, names: list[str]) -> None:
        """Ask for these mappings now, if there is a session; many in one question."""
        if names and self._session is not None:
            await self._ask(MappingOp.ADD, names)

    def change(self, name: str, wanted: MappingEntry, serve: Serve) -> bool:
        """Serve the next visitors of a mapping so, and want it otherwise.

        Visitors that are in stay with what serves them. What is open stays open where
        the server can change it.

        Returns:
            Whether the server has to be asked, with ``ask``; notices follow then.
        """
        mapping = self._mappings[name]
        mapping.serve, was, mapping.said = serve, mapping.said, wanted
        if was == wanted:
            return False
        port = wanted.port
        if (wanted.type, wanted.host, port) == (was.type, was.host, was.port):
            port = mapping.entry.port  # as it was chosen
        mapping.entry = replace(wanted, name=name, port=port)
        if (was.rules and was.rules.expires_s) != (
            wanted.rules and wanted.rules.expires_s
        ):
            mapping.began_at = trio.current_time()
        mapping.public = mapping.refusal = None
        return True

    def cut(self, name: str) -> None:
        """Reset the visitors of a mapping that are in."""
        if (session := self._session) is None:
            return
        code, why = Code.NO_MAPPING, "its entry was changed"
        for stream in open_streams(session):
            if stream.create is not None and stream.create.leads_to(name):
                session.core.close(stream.conn, code, why)
                session.dispatch([StreamClosed(stream.conn, code, why, local=True)])
        session.output.wake()

    async def lead_nobody(self, name: str, *, out: bool) -> None:
        """Tell the server whether a web service is out, from now on; no error if it
        cannot be told at once, for a new link tells it."""
        mapping = self._mappings.get(name)
        if mapping is None:
            return
        rules = replace(mapping.entry.rules or Rules(), out=out)
        mapping.entry = replace(mapping.entry, rules=rules)
        if self._session is not None:  # what it is asked for meanwhile was older
            await self._ask(MappingOp.ADD, [name])

    def public(self, name: str) -> Address | None:
        """Return where a mapping is open, None while it is not."""
        mapping = self._mappings.get(name)
        return mapping.public if mapping else None

    @property
    def begun(self) -> int:
        """Virtual TCP connections and UDP associations of this client so far."""
        return self._tallies.begun

    def passed(self, name: str, live: Live) -> tuple[int, int]:
        """Return the bytes sent and received for a mapping, with those ``live``."""
        mapping = self._mappings.get(name)
        return mapping.tally.passed(live) if mapping else (0, 0)

    def refusal(self, name: str) -> MappingAnswer | None:
        """Return what the server said where it does not give a mapping."""
        mapping = self._mappings.get(name)
        return mapping.refusal if mapping else None

    async def withdraw(self, name: str) -> None:
        """Give a mapping up, and wait until it is; cancelled, it still is."""
        await self._give_back(name).wait()

    async def withdraw_all(self, names: list[str]) -> None:
        """Give mappings up, many in one question; cancelled, they still are."""
        gone = [self._mappings.pop(name) for name in names if name in self._mappings]
        for name in names:
            self._tallies.end(name)
        if not gone or self._session is None or self._nursery is None:
            return
        done = trio.Event()
        self._nursery.start_soon(_remove, self._session, gone, done)
        await done.wait()

    async def listen(self, wanted: MappingEntry) -> MappingListener:
        """Publish; see ``CenterClient.listen``."""
        listener = MappingListener(self)
        name = await self.publish(wanted, listener.take)
        mapping = self._mappings[name]
        if mapping.public is None:
            self._give_back(name)
            refusal = mapping.refusal
            raise LocalSessionError(
                refusal.code if refusal else Code.LINK_LOST,
                "the server gave no public address for "
                f"{Address(wanted.host, wanted.port)}",
                refusal.reason if refusal else "there is no link at the moment",
            )
        listener.name, listener.public = name, mapping.public
        return listener

    def serve_offer(self, stream: VirtualStream) -> Awaitable[None]:
        """Serve a visitor of a mapping or of this exit: no other target is reached."""
        match stream.create.target if stream.create else None:
            case (NameTarget() | UdpTarget()) as target:
                mapping = self._mappings.get(target.name)
                is_udp = isinstance(target, UdpTarget)
                if mapping is None or (mapping.entry.type == MappingType.UDP) != is_udp:
                    return refuse(stream, Code.NO_MAPPING)
                stream.entry = mapping
                return mapping.serve(stream)
            case TcpTarget() as target:
                mapping, networks = self._mappings.get(self._exit), self.exit_networks
                if networks is None or mapping is None or mapping.refusal is not None:
                    return refuse(stream, Code.NOT_ALLOWED, "this client is no exit")
                stream.entry = mapping
                return serve_exit(stream, target, networks.allow)
            case _:
                return refuse(stream, Code.UNSUPPORTED)

    def _give_back(self, name: str) -> trio.Event:
        """Begin to give a mapping up; the event is set when it is."""
        done = trio.Event()
        mapping = self._mappings.pop(name, None)
        self._tallies.end(name)
        if mapping is None or self._session is None or self._nursery is None:
            done.set()
        else:
            self._nursery.start_soon(_remove, self._session, [mapping], done)
        return done

    async def _ask(self, op: MappingOp, names: list[str]) -> None:
        session = self._session
        if session is None:
            return
        asked = self._enforced(session, names)
        while asked or op is MappingOp.REPLACE:  # which says also what is no more
            entries = _one_question(asked)
            answers = await _answers(session, op, entries)
            if answers is None:
                break
            op = MappingOp.ADD
            for mapping, answer in zip(asked, answers, strict=False):
                self._take_answer(mapping, answer)
            asked = asked[len(entries) :]
        if self._asking_again is None and self._nursery is not None and self._due():
            self._asking_again = trio.CancelScope()
            self._nursery.start_soon(self._keep_asking, self._asking_again)

    def _enforced(self, session: Session, names: list[str]) -> list[_Mapping]:
        """Return what may be asked of this server; refuse what it would not guard."""
        found = [self._mappings[name] for name in names if name in self._mappings]
        ruled = [mapping for mapping in found if mapping.entry.rules is not None]
        if not ruled or session.core.theirs.capabilities & CAN_RULE:
            return found
        for mapping in ruled:
            said = said_words(mapping.entry.rules or Rules())
            why = f"this server is too old for {', '.join(said)}"
            self._take_answer(mapping, MappingAnswer(Code.UNSUPPORTED, reason=why))
        return [mapping for mapping in found if mapping.entry.rules is None]

    def _due(self) -> list[str]:
        return [name for name, mapping in self._mappings.items() if mapping.is_due]

    async def _keep_asking(self, scope: trio.CancelScope) -> None:
        """Ask for what is due, with growing pauses, until nothing is."""
        pauses = Backoff()
        with scope:
            while due := self._due():
                # Who knows the address of what was open may wait for it.
                waiting = any(self._mappings[name].had for name in due)
                await trio.sleep(pauses.next_s(waiting=waiting))
                await self._ask(MappingOp.ADD, self._due())
            self._asking_again = None

    def _take_answer(self, mapping: _Mapping, answer: MappingAnswer) -> None:
        entry, name = mapping.entry, mapping.entry.name
        if answer.code is Code.NORMAL:
            if not mapping.had:
                mapping.began_at = trio.current_time()
            mapping.refusal, mapping.had = None, True
            public = Address(answer.host or self._server_host, answer.port)
            known, mapping.public = mapping.public, public
            if entry.type not in _NAMED:
                # What was given once is asked for again: its address is known.
                mapping.entry = replace(entry, port=answer.port)
            if known != public:
                log_event(logger, logging.INFO, "mapping.ready", name=name,
                    public=str(public))  # fmt: skip
                self._tell(MappingReady(name, public, answer.reason == BY_TLS))
            return
        mapping.public = None
        if mapping.refusal == answer:
            return  # that it goes on is no news
        mapping.refusal = answer
        if not (mapping.or_else and answer.code in NOT_OFFERED):
            log_event(logger, logging.WARNING, "mapping.refused", name=name,
                code=answer.code.name, reason=answer.reason)  # fmt: skip
        self._tell(MappingRefused(name, Address(entry.host, entry.port), answer))


def _one_question(asked: list[_Mapping]) -> list[MappingEntry]:
    """Return the first entries of those asked for, as many as one MAPPING takes."""
    entries: list[MappingEntry] = []
    room = QUESTION_BYTES
    for mapping in asked[:MAX_MAPPING_ENTRIES]:
        entry = mapping.wanted
        room -= entry_bytes(entry)
        if room < 0:
            break
        entries.append(entry)
    return entries


async def _answers(
    session: Session, op: MappingOp, entries: list[MappingEntry]
) -> list[MappingAnswer] | None:
    try:
        return await session.ask_mapping(op, entries)
    except TunnelError as error:
        log_event(logger, logging.WARNING, "mapping.unanswered", reason=str(error))
        return None


async def _remove(session: Session, gone: list[_Mapping], done: trio.Event) -> None:
    try:
        while gone:
            asked = _one_question(gone)
            gone = gone[len(asked) :]
            # Only its name counts, and who knows no rules would end the session.
            entries = [replace(entry, rules=None) for entry in asked]
            await _answers(session, MappingOp.REMOVE, entries)
    finally:
        done.set()


class MappingListener(trio.abc.Listener[VirtualStream]):
    """A public address at the server as a trio listener: each visitor is a stream.

    Works with ``trio.serve_listeners``. A visitor is accepted when ``accept`` returns
    it; up to 64 wait, and more are refused. ``aclose`` gives the address up.
    """

    def __init__(self, publisher: Publisher) -> None:
        self.name = ""
        self.public = Address("", 0)
        self._publisher = publisher
        self._put, self._waiting = trio.open_memory_channel[VirtualStream](64)

    async def take(self, stream: VirtualStream) -> None:
        """Queue a visitor, and return when the user who accepted it has closed it."""
        try:
            self._put.send_nowait(stream)
        except (trio.WouldBlock, trio.BrokenResourceError):
            stream.reset(Code.RESOURCE, "the listener's backlog is full")
            return
        await stream.wait_closed()

    async def accept(self) -> VirtualStream:
        """Wait for a visitor; the caller owns the stream."""
        stream = await self._waiting.receive()
        stream.accept()
        return stream

    async def aclose(self) -> None:
        """Give the public address up, and refuse the visitors that wait."""
        with suppress(trio.WouldBlock, trio.EndOfChannel, trio.ClosedResourceError):
            while True:
                waiting = self._waiting.receive_nowait()
                waiting.reset(Code.NO_MAPPING, "the listener was closed")
        self._waiting.close()
        await self._publisher.withdraw(self.name)
