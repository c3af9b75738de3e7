"""The server's half of each link start: who is there, and who is sent away.

Which key answers for which user, how long a stranger may take, and what it hears.
"""

from __future__ import annotations

import logging
import secrets
from math import ceil
from time import time
from typing import TYPE_CHECKING, Final

import trio

from tunnel.access.gate import MAX_UNPROVEN, Gate
from tunnel.center.nodes import is_node
from tunnel.center.second_lock import check_certificate
from tunnel.errors import Code, LinkError, LocalLinkError, StreamError, TunnelError
from tunnel.link.transport import answer, hear
from tunnel.log import log_event
from tunnel.net.descriptors import DESCRIPTORS
from tunnel.proto.calm import Calm, refusal
from tunnel.proto.frames import LinkTarget
from tunnel.proto.handshake import ServerHandshake
from tunnel.proto.proofs import PLAIN_BINDING, verifier_of

if TYPE_CHECKING:
    from tunnel.access.identity import Identity
    from tunnel.access.users import User, Users
    from tunnel.addresses import Address
    from tunnel.center.cluster.cluster import Cluster
    from tunnel.center.options import ServerOptions
    from tunnel.center.wire import Wire
    from tunnel.link.transport import Transport
    from tunnel.proto.claims import AuthClaim
    from tunnel.proto.frames import Terms
    from tunnel.proto.proofs import Verifier

HANDSHAKE_S: Final = 10.0
"""From the first byte to the client's proof: even a slow client needs less."""
FAILURE_DELAY_S: Final = 1.0
"""How long a wrong proof waits for its answer; a newcomer may take its place."""
UNPROVEN_SHARE: Final = 1 / 16
"""Of the process's descriptors, for links that are not proved: with 1,024 they are 64,
and what is kept back for links is more."""

logger = logging.getLogger("tunnel.server")


class LinkStarts:
    """Begins links, and ends those that nobody proves to be a user's.

    Args:
        users: those who may log in, at any time.
        identity: None where links are plain.
        coming: the identity that is announced, if one is.
        hint: tells clients where their sessions are, while there is no ``cluster``.
    """

    def __init__(
        self,
        users: Users,
        identity: Identity | None,
        coming: Identity | None,
        hint: bytes = b"",
    ) -> None:
        self.next_pin = b"" if coming is None else coming.pin_bytes
        self.gate = Gate(DESCRIPTORS.share(UNPROVEN_SHARE, MAX_UNPROVEN))
        self._users = users
        self._hint = hint
        self.cluster: Cluster | None = None
        """Knows which names are those of other nodes."""
        self._binding = PLAIN_BINDING
        if identity is not None:
            self._binding = identity.certificate_sha256
        # Unknown names are checked against this one: same work, same answer.
        self._nobody = verifier_of("nobody", secrets.token_bytes(32))

    def begin(
        self, terms: Terms, resume_s: int, *, of_nodes: bool = False
    ) -> ServerHandshake:
        """Return the server's half of one link start (protocol.md, "Link start").

        ``of_nodes``: on a plain wire of this machine, where only nodes are heard.
        """
        cluster = self.cluster
        if of_nodes:
            return ServerHandshake(
                terms,
                secrets.token_bytes(32),
                PLAIN_BINDING,
                self._verifier_of_node,
                self._nobody,
                resume_s=resume_s,
            )
        return ServerHandshake(
            terms,
            secrets.token_bytes(32),
            self._binding,
            self._verifier,
            self._nobody,
            resume_s=resume_s,
            next_pin=self.next_pin,
            lookup_own=self._own_verifier,
            hint=cluster.hint if cluster else self._hint,
            leads_away=cluster.leads_away if cluster else lambda _hint: False,
        )

    def node(self, name: str) -> User | None:
        """Return the user that a node is; None if there is no such node."""
        return self.cluster.user(name) if self.cluster else None

    def _verifier_of_node(self, name: str) -> Verifier | None:
        node = self.node(name)
        return node.verifier if node else None

    def _verifier(self, name: str) -> Verifier | None:
        user = self._users.get(name)
        if user is None and self.cluster is not None:
            return self._verifier_of_node(name)
        return user.verifier if user and not user.is_over(time()) else None

    def _own_verifier(self, name: str) -> Verifier | None:
        user = self._users.get(name)
        once = None if user is None or user.is_over(time()) else user.once
        return once.own if once else None

    # One wire ------------------------------------------------------------------------

    async def prove(
        self, wire: Wire, terms: Terms, options: ServerOptions
    ) -> tuple[Transport, ServerHandshake, AuthClaim] | None:
        """Hear who the client is; without a proof, answer it and return None."""
        with trio.CancelScope() as scope:
            now = trio.current_time()
            place = self.gate.enter(wire.peer.host, now, scope.cancel)
            try:
                with trio.fail_after(HANDSHAKE_S):
                    transport = await wire.open(place)
                    wire.handshake = handshake = self.begin(
                        terms, options.resume_s, of_nodes=wire.of_nodes
                    )
                    claim = await hear(transport, handshake)
                    if claim is None and await self._onward(wire, handshake):
                        return None
                    if claim is None:
                        handshake.stay()
                        claim = await hear(transport, handshake)
                    assert claim is not None  # noqa: S101 - it stays
                    if options.client_ca is not None and not is_node(claim.name):
                        check_certificate(wire.users(), handshake, claim.name)
                    return transport, handshake, claim
            except (TunnelError, trio.TooSlowError) as error:
                await self._refuse(wire.transport, wire.handshake, wire.peer, error)
            finally:
                self.gate.leave(place)
        if scope.cancelled_caught:
            log_event(logger, logging.INFO, "link.turned_away", peer=str(wire.peer),
                reason="a newcomer needs its place")  # fmt: skip
        return None

    async def _onward(self, wire: Wire, handshake: ServerHandshake) -> bool:
        """Open the way to the node that has a client's session; False: not reached."""
        transport, cluster = wire.transport, self.cluster
        if transport is None or cluster is None:
            return False
        node = cluster.node_of(handshake.away)
        target = LinkTarget(transport.encrypted, tuple(sorted(wire.users())))
        try:
            wire.onward = await cluster.peers.open(node, target, wire.peer)
        except StreamError as error:
            log_event(logger, logging.INFO, "link.not_passed", peer=str(wire.peer),
                node=node, reason=error.what)  # fmt: skip
            return False
        log_event(logger, logging.DEBUG, "link.passed", peer=str(wire.peer), node=node)
        return True

    async def _refuse(
        self,
        transport: Transport | None,
        handshake: ServerHandshake | None,
        peer: Address,
        error: TunnelError | trio.TooSlowError,
    ) -> None:
        """Answer and log one line; a wrong proof waits, an honest fault does not."""
        if isinstance(error, trio.TooSlowError):
            error = LocalLinkError(Code.SILENT, "it took too long")
        claimed = handshake.claimed_name if handshake is not None else None
        log_event(logger, logging.INFO, "link.refused", peer=str(peer),
            code=error.code.name, claimed=claimed or None,
            reason=str(error))  # fmt: skip
        if isinstance(error, LinkError) and error.code is Code.AUTH and handshake:
            away_s = self.gate.failed(
                peer.host, handshake.claimed_name, trio.current_time()
            )
            if away_s:
                handshake.refuse(*refusal(Calm.FAILED_LOGINS), ceil(away_s))
            await trio.sleep(FAILURE_DELAY_S)
        if transport is not None and (handshake or error.code is Code.AUTH):
            with trio.move_on_after(FAILURE_DELAY_S):
                if handshake is not None:  # else TLS has said its own word
                    await answer(transport, handshake)
                await transport.send_eof()
                await transport.discard()
