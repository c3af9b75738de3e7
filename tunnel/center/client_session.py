"""ClientSession: a client that has proved itself, for as long as its session lives.

Knows which link carries it at the moment; who may have a session, and which one goes
on, is the server's business.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

import trio

from tunnel.access.identity import short_id
from tunnel.center.exit.bind import serve_bind
from tunnel.center.exit.tcp import serve_exit
from tunnel.errors import Code, LocalLinkError, LocalSessionError
from tunnel.link.session import Session
from tunnel.log import log_event
from tunnel.proto.frames import CAN_UDP, BindTarget

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from tunnel.access.users import User
    from tunnel.center.server import CenterServer
    from tunnel.link.link import Link
    from tunnel.link.virtual import VirtualStream
    from tunnel.proto.frames import Address, MappingAnswer, ProtMapping, Target
    from tunnel.proto.handshake import AuthClaim, HandshakeResult

VISITOR_WAITS_S: Final = 3.0
"""How long a visitor of a host name waits for a link that was just lost."""
_NO_LOSS: Final = (Code.LINK_LOST, Code.TAKEN_OVER)
"""So end sessions whose client went without a word; only connections are a loss."""

logger = logging.getLogger("tunnel.server")


class ClientSession:
    """A client that has proved itself, while its session lives."""

    nursery: trio.Nursery

    def __init__(
        self,
        server: CenterServer,
        user: User,
        claim: AuthClaim,
        result: HandshakeResult,
        *,
        encrypted: bool,
    ) -> None:
        self.user = user
        self.client_id = claim.client_id
        self.session_id = result.session_id
        self.secret = result.resume_secret
        self.link_no = claim.link_no
        self.encrypted = encrypted
        self.link: Link | None = None
        self._server = server
        self.session = Session(
            client=False,
            ours=server.terms,
            theirs=claim.peer_terms,
            serve_offer=self._serve_offer,
            serve_mapping=self._serve_mapping,
            pools=server.pools,
            resume_s=result.resume_s,
            replay_limit=result.replay_limit,
        )

    async def run(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Host the session and its public ports until it has ended."""
        async with trio.open_nursery() as self.nursery:
            await self.nursery.start(self.session.run)
            task_status.started()
            await self.session.wait_ended()
            self._server.forget(self)
            self._say_end()

    def _say_end(self) -> None:
        error, lost = self.session.ended, self.session.lost_streams
        if error is None:  # pragma: no cover - it has ended
            return
        quiet = error.code is Code.NORMAL or (error.code in _NO_LOSS and not lost)
        log_event(logger, logging.INFO if quiet else logging.WARNING,
            "session.ended" if quiet else "session.lost",
            user=self.user.name, client=short_id(self.client_id),
            code=error.code.name, reason=str(error), connections=lost)  # fmt: skip

    @property
    def gone(self) -> bool:
        """See ``Member``."""
        return self.session.ended is not None

    @property
    def takes_udp(self) -> bool:
        """See ``Member``."""
        return bool(self.session.core.theirs.capabilities & CAN_UDP)

    @property
    def away(self) -> bool:
        """See ``Member``."""
        lost_at = self.session.lost_at
        return self.waiting and (
            lost_at is None or trio.current_time() - lost_at > VISITOR_WAITS_S
        )

    @property
    def waiting(self) -> bool:
        """See ``Member``."""
        return self.link is None

    def open_now(self, target: Target, visitor: Address | None = None) -> VirtualStream:
        """See ``Session.open_now``."""
        return self.session.open_now(target, visitor)

    async def answers(self, timeout_s: float) -> bool:
        """See ``Member``."""
        link, began = self.link, trio.current_time()
        if await self.session.ping(timeout_s) is not None:
            return True
        # On a full line the answer comes late, but bytes come: they prove life too.
        heard_at = self.session.core.liveness.heard_at
        return self.link is link is not None and heard_at > began + timeout_s / 2

    def lose_link(self, code: Code, reason: str) -> None:
        """See ``Member``."""
        if self.link is not None:
            self.link.abandon(LocalLinkError(code, reason))

    def dismiss(self, code: Code, reason: str) -> None:
        """End its session, and tell the client if there is a link."""
        if self.link is not None:
            self.link.close(code, reason)
        else:
            self.session.end(LocalSessionError(code, reason))

    async def _serve_mapping(self, mapping: ProtMapping) -> list[MappingAnswer]:
        return await self._server.mappings.apply(self, mapping)

    def _serve_offer(self, stream: VirtualStream) -> Awaitable[None]:
        create = stream.create
        if create is not None and create.exit is not None:
            return self._server.serve_chained(self.user, stream, create)
        target = create.target if create else None
        user = self.user
        if isinstance(target, BindTarget):
            return serve_bind(
                stream,
                target.expected,
                host=self._server.options.listen.host,
                allow=user.may_reach,
                may_listen=user.may_publish,
            )
        return serve_exit(stream, target, user.may_reach, user.may_reach_unix)
