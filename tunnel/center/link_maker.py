"""Make a link to the center-server: dial, secure, prove; the client's half.

What a session is, is the business of ``link_keeper``: here it is what a link may claim.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import trio

from tunnel.addresses import Address
from tunnel.center.backoff import WAITING_MOST_S
from tunnel.center.path_mtu import Path
from tunnel.center.whereabouts import ClientTls, secure
from tunnel.errors import Code, LocalLinkError, RemoteLinkError
from tunnel.link.transport import DIAL_S, prove
from tunnel.proto.claims import ResumeState
from tunnel.proto.handshake import ClientHandshake

if TYPE_CHECKING:
    import ssl
    from collections.abc import Awaitable, Callable
    from pathlib import Path as FilePath

    from tunnel.access.join import JoinLine
    from tunnel.access.pins import Pins
    from tunnel.center.own_token import OwnToken
    from tunnel.link.session import Session
    from tunnel.link.transport import Transport
    from tunnel.proto.claims import HandshakeResult
    from tunnel.proto.frames import Terms

    Reach = Callable[[ssl.SSLContext | None], Awaitable[Transport]]

HANDSHAKE_S: Final = 10.0
"""From the first byte to the server's proof."""
_NOBODY: Final = bytes(16)


@dataclass(frozen=True, slots=True)
class Held:
    """A session, and what another link says to go on with it."""

    session: Session
    session_id: bytes
    secret: bytes
    hint: bytes
    """Where it is, as its server has said."""


class LinkMaker:
    """Makes the links of one center-client, one at a time.

    Args:
        join: where the server is, which user joins, and how the server is known.
        terms: what the client announces.
        own: the token of this machine's own, where the server asks for one.
        pins: by which the server is known.
        resume_s: how long sessions are to wait for another link.
        certificate: a client certificate and its key, read anew for each link.
        reach: connects to the server.
    """

    def __init__(
        self,
        join: JoinLine,
        terms: Terms,
        own: OwnToken,
        pins: Pins,
        resume_s: int,
        certificate: tuple[FilePath, FilePath] | None,
        reach: Reach,
    ) -> None:
        self.terms = terms
        self.path = Path()
        self.step = trio.CancelScope()
        """What stands between now and a link: a pause, a dial."""
        self._join = join
        self._own = own
        self._pins = pins
        self._resume_s = resume_s
        self._tls = ClientTls(join, certificate)
        self._reach = reach
        self._link_no = 0

    async def make(
        self, held: Held | None, *, waiting: bool, known: bool, leaves: bool = False
    ) -> tuple[Transport, HandshakeResult]:
        """Return a wire on which both ends have proved themselves; the caller owns it.

        Args:
            held: the session that the link claims.
            waiting: connections wait for the link, so each step is shorter.
            known: the server was reached before.
            leaves: the claim is the only use of the link: a server that does not know
                the session must not take it for a newer one of this client.

        Raises:
            LinkError: there is none.
            StateError, UsageError: the own token or the certificate cannot be used.
        """
        while True:
            try:
                made = await self._try(
                    held, waiting=waiting, known=known, leaves=leaves
                )
            except RemoteLinkError as error:
                if not self._own.make(error):
                    raise
            else:
                if made is not None:
                    return made
                self._join = self._own.keep()

    async def _try(
        self, held: Held | None, *, waiting: bool, known: bool, leaves: bool
    ) -> tuple[Transport, HandshakeResult] | None:
        """Try once; None: our own token was taken."""
        with trio.move_on_after(WAITING_MOST_S if waiting else DIAL_S) as step:
            self.step = step
            transport = await self._reach(self._tls.context(known=known))
        if step.cancelled_caught:
            where = Address(self._join.host, self._join.port)
            why = f"cannot reach {where}: no answer in time, and connections wait"
            raise LocalLinkError(Code.LINK_LOST, why)
        step_s = WAITING_MOST_S if waiting else HANDSHAKE_S
        try:
            with trio.fail_after(HANDSHAKE_S):
                with trio.fail_after(step_s):
                    binding, pin = await secure(transport, self._pins)
                with trio.fail_after(step_s):
                    handshake = self._handshake(binding, held, leaves=leaves)
                    result = await prove(transport, handshake)
            self._pins.proved(pin, result.next_pin)
        except trio.TooSlowError:
            self.path.handshake_silent()
            await transport.aclose()
            why = f"no answer from {transport.peer} within {step_s:.0f} s"
            raise LocalLinkError(Code.SILENT, why) from None
        except BaseException:
            await transport.aclose()
            raise
        if result.own_taken:
            await transport.aclose()
            return None
        return transport, result

    def _handshake(
        self, binding: bytes, held: Held | None, *, leaves: bool
    ) -> ClientHandshake:
        self._link_no += 1
        resume = None
        if held is not None:
            received = held.session.core.received
            resume = ResumeState(held.session_id, received, held.secret, held.hint)
        return ClientHandshake(
            self._join.name,
            self._join.token.reveal(),
            replace(self.terms, client_id=_NOBODY) if leaves else self.terms,
            secrets.token_bytes(32),
            binding,
            link_no=self._link_no,
            resume=resume,
            resume_s=self._resume_s,
            own=self._own.verifier,
        )
