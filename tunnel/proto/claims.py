"""What a link start leads to: what each side knows then, and what a client claims."""

from __future__ import annotations

import hmac
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tunnel.proto.proofs import resume_proof

if TYPE_CHECKING:
    from tunnel.proto.frames import Terms
    from tunnel.proto.proofs import Verifier
    from tunnel.proto.terms import SessionTerms


@dataclass(frozen=True, slots=True)
class ResumeState:
    """What a client needs to go on with a session on a new link."""

    session_id: bytes
    count: int
    """Session bytes received so far; reading of the old link has stopped by now."""
    secret: bytes = field(repr=False)
    """``resume_secret`` of the session's first ``HandshakeResult``."""
    hint: bytes = b""
    """What the server has said of where the session is; empty if nothing."""


@dataclass(frozen=True, slots=True)
class HandshakeResult:
    """What both sides know once each has proved itself to the other."""

    peer_terms: Terms
    """The peer's own words; where the smaller holds, the caller compares."""
    session_id: bytes
    count: int
    """Session bytes that the peer has received so far; 0 for a new session."""
    resumed: bool
    resume_secret: bytes = field(repr=False)
    """R of this session, for its later links; it stays the same on all of them."""
    transcript: bytes
    leftover: bytes = field(repr=False)
    """What came after the peer's AUTH: the first bytes for the ``FrameDecoder``."""
    resume_s: int
    """How long the session outlives a link; the smaller of both, 0 = not at all."""
    replay_limit: int
    """Unconfirmed session bytes that are kept; the smaller of both."""
    own_taken: bool = False
    """The server knows the client's own token; there is no session on this link."""
    next_pin: bytes = b""
    """The pin that the server announces as its next, 32 bytes; empty if none."""
    hint: bytes = b""
    """Where the session is, for its later links; empty if it can be nowhere else."""


@dataclass(slots=True)
class AuthClaim:
    """What a client that has proved itself asks for."""

    name: str
    link_no: int
    client_id: bytes
    peer_terms: Terms
    session_id: bytes
    """The session to go on with, empty for a new one."""
    count: int
    """Session bytes that the client has received of it."""
    agreed: SessionTerms
    verifier: Verifier = field(repr=False)
    """Of the token that the client has."""
    own: Verifier | None = field(repr=False)
    """Of a token that the client has made, in the place of one that works once."""
    _transcript: bytes = field(repr=False)
    _resume_proof: bytes = field(repr=False)
    _proved: bytes = field(default=b"", repr=False)

    def proves(self, secret: bytes) -> bool:
        """Say, in constant time, whether the client knows R of the session."""
        proof = resume_proof(
            secret, self._transcript, self.session_id, self.count, self.link_no
        )
        known = hmac.compare_digest(proof, self._resume_proof)
        self._proved = secret if known else b""
        return known
