"""ClientSession: what a client opens is served within the rights of its user."""

from __future__ import annotations

import logging
import math
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol

import trio

from tunnel.access.identity import short_id
from tunnel.addresses import UnixPath, is_localhost, parse_ip
from tunnel.center.denials import Reach, denied
from tunnel.center.endpoints import PublicName
from tunnel.center.exit.bind import serve_bind
from tunnel.center.exit.tcp import anywhere, refuse, serve_chained, serve_exit
from tunnel.center.exit.throughput import Throughput
from tunnel.center.nodes import is_node
from tunnel.center.owner import VISITOR_WAITS_S, wait_for
from tunnel.center.who import WHO, Who
from tunnel.errors import (
    Code,
    LocalLinkError,
    LocalSessionError,
    LocalStreamError,
    StreamError,
    TunnelError,
)
from tunnel.link.link import Link
from tunnel.link.user_session import UserSession
from tunnel.log import log_event
from tunnel.proto.frames import (
    CAN_CHANGE_PIN,
    CAN_UDP,
    BindTarget,
    MappingType,
    TcpTarget,
    ThroughputTarget,
    UdpTarget,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tunnel.access.account import Account
    from tunnel.access.users import User
    from tunnel.center.owner import Owners
    from tunnel.link.transport import Transport
    from tunnel.link.virtual import VirtualStream
    from tunnel.net.dial import Allow
    from tunnel.proto.claims import AuthClaim, HandshakeResult
    from tunnel.proto.frames import MappingAnswer, ProtMapping, Target, Terms
    from tunnel.proto.handshake import ServerHandshake
    from tunnel.proto.pools import Pools

    ApplyMapping = Callable[
        ["ClientSession", ProtMapping], Awaitable[list[MappingAnswer]]
    ]

_RARE: Final = (BindTarget, ThroughputTarget)
_NO_LOSS: Final = (Code.LINK_LOST, Code.TAKEN_OVER)
"""How sessions of clients end that go without a word: only connections are a loss."""

logger = logging.getLogger("tunnel.server")


class Counting(Protocol):
    """Counts what the sessions of a user have."""

    def begin(self, user: User, session: UserSession) -> None:
        """Count a session from now on."""
        ...

    def end(self, session: UserSession) -> None:
        """Count it no more; harmless a second time."""
        ...


class ClientSession:
    """A client that has proved itself, while its session lives.

    Args:
        transport: of its first link.
        accounts: counts what the sessions of each user have.
        host: where a BIND listens for anybody.
        apply_mapping: answers a MAPPING.
        owners: finds the client that is an exit.
        forget: called when the session has ended.
        serve: serves what another node opens; None for a client.
    """

    nursery: trio.Nursery
    """Hosts the client's mappings."""

    def __init__(
        self,
        user: User,
        claim: AuthClaim,
        result: HandshakeResult,
        transport: Transport,
        *,
        terms: Terms,
        pools: Pools,
        accounts: Counting,
        host: str,
        apply_mapping: ApplyMapping,
        owners: Owners,
        forget: Callable[[ClientSession], None],
        serve: Callable[[VirtualStream], Awaitable[None]] | None = None,
    ) -> None:
        self.user = user
        self.client_id = claim.client_id
        self.peer = transport.peer
        """The address of its last link."""
        self.session_id = result.session_id
        self.secret = result.resume_secret
        self.link_no = claim.link_no
        self.encrypted = transport.encrypted
        self._host = host
        self._owners = owners
        self._forget = forget
        self.session = UserSession(
            client=False,
            ours=terms,
            theirs=claim.peer_terms,
            serve_offer=serve or self._serve_offer,
            serve_mapping=partial(apply_mapping, self),
            pools=pools,
            resume_s=result.resume_s,
            replay_limit=result.replay_limit,
        )
        self.session.whose = {
            "user": user.name, "client": short_id(claim.client_id)
        }  # fmt: skip
        accounts.begin(user, self.session)
        self._accounts = accounts
        self._throughput = Throughput()
        self.link: Link | None = Link(self.session, transport, result.leftover)
        """The link that carries it at the moment; None while it waits for another."""
        self.departed = trio.Event()
        """Set when its client has another session elsewhere, while this one drains."""
        self.when_lost: set[Callable[[], None]] = set()
        """Called when a link is lost; who adds removes."""
        self.when_found: set[Callable[[], None]] = set()
        """Called when another one carries it on."""

    async def run(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Host the session and its mappings until it has ended."""
        WHO.set(self.who)
        try:
            await self._run(task_status)
        finally:
            self._accounts.end(self.session)

    async def _run(self, task_status: trio.TaskStatus[None]) -> None:
        async with trio.open_nursery() as self.nursery:
            await self.nursery.start(self.session.run)
            task_status.started()
            await self.session.wait_ended()
            self._forget(self)
            error, lost = self.session.ended, self.session.lost_streams
            assert error is not None  # noqa: S101 - it has ended
            quiet = error.code is Code.NORMAL or (error.code in _NO_LOSS and not lost)
            calm = logging.DEBUG if self.is_node else logging.INFO
            log_event(logger, calm if quiet else logging.WARNING,
                "session.ended" if quiet else "session.lost",
                **self.who,
                code=error.code.name, reason=str(error), connections=lost)  # fmt: skip

    @property
    def user_name(self) -> str:
        """Of its user."""
        return self.user.name

    @property
    def is_node(self) -> bool:
        """Whether it is another node of this server: only its trouble is news."""
        return is_node(self.user_name)

    @property
    def who(self) -> Who:
        """Who it is, as each line of the log about it says."""
        name, client = self.user.name, short_id(self.client_id)
        return Who(peer=self.peer, user=name, client=client)

    def was_told_next_pin(self, claim: AuthClaim) -> None:
        """Log that the client was told the server's next pin, and whether it heard."""
        if self.is_node:
            return  # it has the same identity, and keeps no pin
        heard = bool(claim.peer_terms.capabilities & CAN_CHANGE_PIN)
        log_event(logger, logging.INFO if heard else logging.WARNING, "pin.told",
            **self.who, heard=heard, agent=claim.peer_terms.agent)  # fmt: skip

    @property
    def account(self) -> Account:
        """What all sessions of its user have, and may have."""
        return self.session.account

    @property
    def takes_udp(self) -> bool:
        """Whether the client serves UDP associations."""
        return bool(self.session.core.theirs.capabilities & CAN_UDP)

    @property
    def gone(self) -> bool:
        """Whether the session is over."""
        return self.session.ended is not None

    @property
    def waiting(self) -> bool:
        """Whether the session waits for another link."""
        return self.link is None

    @property
    def away(self) -> bool:
        """Whether it waits for a link for longer than a visitor should."""
        lost_at = self.session.lost_at
        away_s = math.inf if lost_at is None else trio.current_time() - lost_at
        return self.waiting and away_s > VISITOR_WAITS_S

    async def answers(self, timeout_s: float) -> bool:
        """Say whether the client is there."""
        link, began = self.link, trio.current_time()
        if await self.session.ping(timeout_s) is not None:
            return True
        # On a full line the answer comes late, but bytes come: they prove life too.
        heard_at = self.session.core.liveness.heard_at
        return self.link is link is not None and heard_at > began + timeout_s / 2

    def lose_link(self, code: Code, reason: str) -> None:
        """Give the link up; the session may go on over another."""
        if self.link is not None:
            self.link.abandon(LocalLinkError(code, reason))

    def ask_again(self) -> None:
        """Have the client ask for what it publishes: it does so on every new link.

        Nothing is lost. A session that cannot go on over another link stays as it is.
        """
        if self.session.resume_s:
            why = "what is public has moved: resume, and ask again"
            self.lose_link(Code.SUPERSEDED, why)

    def dismiss(self, code: Code, reason: str, within_s: float | None = None) -> None:
        """End the session, and tell the client if there is a link.

        The link is gone after ``within_s``, or when the client has had time to read.
        """
        if self.link is not None:
            self.link.close(code, reason)
            if within_s is not None:
                self.link.cut_within(within_s)
        else:
            self.session.end(LocalSessionError(code, reason))

    # What the client opens -----------------------------------------------------------

    def _serve_offer(self, stream: VirtualStream) -> Awaitable[None]:
        create = stream.create
        if create is not None and create.exit is not None:
            return self._serve_chained(stream, create.target, create.exit)
        target = create.target if create else None
        allow: Allow = anywhere
        if not self.user.rights.everything:
            allow = reach = self._reach(target)
            if reach.missing:
                why = reach.denied(str(target) if target else "nothing")
                return refuse(stream, Code.NOT_ALLOWED, why)
        if isinstance(target, _RARE):
            return self._serve_rare(stream, target, allow)
        return serve_exit(stream, target, allow, unix=True)

    def _reach(self, target: Target | None) -> Reach:
        """Return what is asked about the addresses of a target.

        Its ``missing`` is set if the target is refused before there is an address.
        """
        reach, rights = Reach(self), self.user.rights
        match target:
            case UnixPath(path):
                reach.missing = rights.may_reach_unix(path)
            case UdpTarget(""):
                reach.missing = rights.may_associate()
            case TcpTarget(address) | BindTarget(address):
                if parse_ip(address.host) is None and not is_localhost(address.host):
                    reach = reach.of_name(address)
                else:
                    reach = Reach(self, address.host)
            case ThroughputTarget():
                reach.missing = rights.may_test()
            case _:  # refused by its form
                pass
        return reach

    def _serve_rare(
        self, stream: VirtualStream, target: BindTarget | ThroughputTarget, allow: Allow
    ) -> Awaitable[None]:
        if isinstance(target, BindTarget):
            return serve_bind(stream, target.expected, host=self._host, allow=allow)
        return self._throughput.serve(stream, target)

    def _serve_chained(
        self, stream: VirtualStream, target: Target, name: str
    ) -> Awaitable[None]:
        # The far stream is open before this returns: openers keep their order.
        if not isinstance(target, TcpTarget):
            why = "an exit at a client takes TCP addresses"
            return refuse(stream, Code.UNSUPPORTED, why)
        if missing := self.user.rights.may_leave_at(name):
            why = denied(self, f"{target.address} at {name}", missing)
            return refuse(stream, Code.NOT_ALLOWED, why)
        owner = self._owners.owner(PublicName(MappingType.EXIT, name))
        if not isinstance(owner, ClientSession):
            return self._serve_far(stream, target, name)
        try:
            onward = owner.session.open_now(target)
        except StreamError as error:
            return refuse(stream, error.code, error.what)
        return serve_chained(stream, onward)

    async def _serve_far(
        self, stream: VirtualStream, target: TcpTarget, name: str
    ) -> None:
        """Join an opener and an exit at another server, if there is such a one."""
        public = PublicName(MappingType.EXIT, name)
        try:
            learning = self._owners.learn(public)
            if learning is not None:
                await learning
            owner = self._owners.owner(public)
            if owner is None:
                raise LocalStreamError(Code.NO_MAPPING, f"no client is the exit {name}")
            await wait_for(owner)
            onward = owner.session.open_now(target)
        except TunnelError as error:
            return await refuse(stream, error.code, error.what)
        await serve_chained(stream, onward)


def result_of(handshake: ServerHandshake) -> HandshakeResult:
    """Return what was agreed on; the handshake has accepted."""
    assert handshake.result is not None  # noqa: S101 - accept has set it
    return handshake.result
