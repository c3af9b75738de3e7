"""Tokens that work once: a machine that comes with one leaves with one of its own.

No link carries a session with such a token (protocol.md#own-token).
"""

from __future__ import annotations

import logging
import secrets
from dataclasses import replace
from typing import TYPE_CHECKING

from tunnel.access.identity import short_id
from tunnel.access.users import Once
from tunnel.center.sessions import NO_CLIENT_ID
from tunnel.errors import Code
from tunnel.log import log_event
from tunnel.proto.frames import CAN_OWN
from tunnel.proto.refusals import NEEDS_TLS, NO_ID, TOO_OLD, USED_UP

if TYPE_CHECKING:
    from tunnel.access.users import User
    from tunnel.center.user_changes import UserChanges
    from tunnel.link.transport import Transport
    from tunnel.proto.claims import AuthClaim
    from tunnel.proto.handshake import ServerHandshake

logger = logging.getLogger("tunnel.users")


async def may_begin(
    changes: UserChanges,
    user: User,
    claim: AuthClaim,
    handshake: ServerHandshake,
    transport: Transport,
) -> bool:
    """Say whether a link may carry a session: not with a token that works once.

    Then the answer is queued. The first login with a machine's own token ends the one
    that works once.
    """
    if user.once is None or claim.verifier != user.verifier:
        if user.once is not None:
            own = replace(user, verifier=claim.verifier, once=None)
            await changes.keep(user, own)
        return True
    refusal = _refusal(user.once, claim, encrypted=transport.encrypted)
    if refusal is None and claim.own is not None:
        once = Once(claim.client_id, claim.own)
        if await changes.keep(user, replace(user, once=once)):
            handshake.accept(secrets.token_bytes(16), 0, resumed=False, own=True)
            log_event(logger, logging.INFO, "user.own_token", peer=transport.peer,
                user=user.name, client=short_id(claim.client_id))  # fmt: skip
            return False
        refusal = Code.INTERNAL, "the token cannot be kept"
    code, reason = refusal or (Code.ONCE, "come with a token of your own")
    handshake.refuse(code, reason)
    if code is not Code.ONCE:
        log_event(logger, logging.WARNING, "once.refused", peer=transport.peer,
            user=user.name, client=short_id(claim.client_id), code=code.name,
            reason=reason)  # fmt: skip
    return False


def _refusal(
    once: Once, claim: AuthClaim, *, encrypted: bool
) -> tuple[Code, str] | None:
    """Say why a machine gets no token for one that works once; None if it may."""
    if not claim.peer_terms.capabilities & CAN_OWN:
        return Code.VERSION, TOO_OLD
    if not encrypted:
        return Code.AUTH, NEEDS_TLS
    if once.own is not None and once.client_id != claim.client_id:
        return Code.AUTH, USED_UP
    if claim.client_id == NO_CLIENT_ID:
        return Code.AUTH, NO_ID
    return None
