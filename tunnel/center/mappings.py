"""Whose public port is whose (protocol.md#whose-port).

A mapping belongs to an owner: a user's client. Opens and closes the listeners, and
decides what happens when two want the same port; carries no byte.
"""

from __future__ import annotations

import errno
import logging
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol

from tunnel.errors import AddressError, Code
from tunnel.front.listen import open_listener
from tunnel.front.ports import serve_port
from tunnel.log import say
from tunnel.proto.frames import (
    Address,
    MappingAnswer,
    MappingEntry,
    MappingOp,
    MappingType,
    NameTarget,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    import trio

    from tunnel.access.users import User
    from tunnel.link.virtual import VirtualStream
    from tunnel.proto.frames import ProtMapping, Target

SILENT_OWNER_S: Final = 2.0
"""How long the owner of a wanted port may take to prove that it is there."""
MAX_VISITORS: Final = 16_384
"""At once on one mapping: what a session carries."""

logger = logging.getLogger("tunnel.mappings")


class Member(Protocol):
    """A client that is connected: who owns mappings and serves their visitors."""

    user: User
    nursery: trio.Nursery

    @property
    def waiting(self) -> bool:
        """Whether its link is lost and its session waits for another."""
        ...

    @property
    def gone(self) -> bool:
        """Whether its session is over."""
        ...

    def open_now(self, target: Target, visitor: Address | None = None) -> VirtualStream:
        """Begin to open a virtual TCP connection to the client."""
        ...

    async def answers(self, timeout_s: float) -> bool:
        """Say whether the client is there."""
        ...

    def lose_link(self, code: Code, reason: str) -> None:
        """Give its link up; its session may go on over another."""
        ...


@dataclass(slots=True, eq=False)
class _Claim:
    """A public port in use, its owner, and its open sockets."""

    owner: Member
    entry: MappingEntry
    public: Address
    listeners: list[trio.SocketListener] = field(default_factory=list)


class MappingTable:
    """All public ports of a center-server.

    Args:
        host: where a mapping listens that names no host.
        ports: from which a mapping gets one that names no port.
    """

    def __init__(self, host: str, ports: range) -> None:
        self._host = host
        self._ports = ports
        self._claims: dict[Address, _Claim] = {}

    def __len__(self) -> int:
        return len(self._claims)

    async def apply(self, member: Member, mapping: ProtMapping) -> list[MappingAnswer]:
        """Do what a MAPPING asks for; an answer for each entry, in order."""
        if mapping.op is MappingOp.REMOVE:
            return [self._remove(member, entry) for entry in mapping.entries]
        if mapping.op is MappingOp.REPLACE:
            self.drop(member)
        return [await self._add(member, entry) for entry in mapping.entries]

    def drop(self, member: Member) -> None:
        """Close all ports of a client. Visitors who are in are not touched."""
        for claim in [c for c in self._claims.values() if c.owner is member]:
            self._close(claim)

    def _remove(self, member: Member, entry: MappingEntry) -> MappingAnswer:
        for claim in self._claims.values():
            if claim.owner is member and claim.entry.name == entry.name:
                self._close(claim)
                return MappingAnswer(Code.NORMAL)
        return MappingAnswer(Code.NO_MAPPING, reason=f"{entry.name} is not registered")

    def _close(self, claim: _Claim) -> None:
        del self._claims[claim.public]
        for listener in claim.listeners:
            listener.socket.close()

    async def _add(self, member: Member, entry: MappingEntry) -> MappingAnswer:
        if entry.type != MappingType.TCP or entry.count != 1:
            return MappingAnswer(
                Code.UNSUPPORTED, reason="this server offers single TCP ports"
            )
        host = entry.host or self._host
        if not member.user.may_publish(host, entry.port):
            return MappingAnswer(
                Code.NOT_ALLOWED,
                reason=f"{member.user.name} may not publish port {entry.port}",
            )
        answer = MappingAnswer(Code.TAKEN, reason=self._all_taken())
        try:
            for port in self._candidates(host, entry.port):
                answer = await self._claim(member, entry, Address(host, port))
                if answer.code is not Code.TAKEN:
                    break
        except AddressError as error:
            code = Code.NOT_ALLOWED if "not allowed" in error.what else Code.TAKEN
            answer = MappingAnswer(code, reason=error.what)
        return answer

    def _candidates(self, host: str, port: int) -> Iterable[int]:
        if port:
            return (port,)
        return [p for p in self._ports if Address(host, p) not in self._claims]

    def _all_taken(self) -> str:
        return f"every port from {self._ports[0]} to {self._ports[-1]} is taken"

    async def _claim(
        self, member: Member, entry: MappingEntry, public: Address
    ) -> MappingAnswer:
        claimed = self._claims.get(public)
        if claimed is not None and claimed.owner is member:
            if claimed.entry.name == entry.name:
                return MappingAnswer(Code.NORMAL, public.host, public.port)
            self._close(claimed)
            claimed = None
        if claimed is not None and not await self._yields(claimed, member):
            return MappingAnswer(
                Code.TAKEN, reason=f"port {public.port} belongs to another client"
            )
        try:
            listeners = await open_listener(public.host, public.port)
        except AddressError as error:
            if not _is_in_use(error):
                raise  # no other port will do either
            return MappingAnswer(Code.TAKEN, reason=error.what)
        if member.gone:  # it left while we waited: nobody would give the port back
            for listener in listeners:
                listener.socket.close()
            return MappingAnswer(Code.NO_MAPPING, reason="the client has left")
        claim = _Claim(member, entry, public, listeners)
        self._claims[public] = claim
        member.nursery.start_soon(self._serve, claim)
        return MappingAnswer(Code.NORMAL, public.host, public.port)

    async def _yields(self, claim: _Claim, member: Member) -> bool:
        """Say whether the port is free for ``member`` now."""
        owner = claim.owner
        if owner.user.name != member.user.name:
            return False
        if owner.waiting:
            # The port follows the living; what runs over that session may go on.
            self._close(claim)
            return True
        if await owner.answers(SILENT_OWNER_S):
            return False
        owner.lose_link(Code.SILENT, "no answer while another client wants its port")
        self.drop(owner)
        return True

    async def _serve(self, claim: _Claim) -> None:
        target = NameTarget(claim.entry.name)
        open_now = partial(claim.owner.open_now, target)
        say(logger, logging.INFO, "mapping.open", public=str(claim.public),
            user=claim.owner.user.name)  # fmt: skip
        await serve_port(claim.listeners, open_now, max_visitors=MAX_VISITORS)
        say(logger, logging.INFO, "mapping.closed", public=str(claim.public))


def _is_in_use(error: AddressError) -> bool:
    cause = error.__cause__
    return isinstance(cause, OSError) and cause.errno == errno.EADDRINUSE
