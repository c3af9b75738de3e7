"""HELLO and AUTH of both roles: who is there, and which session goes on.

The token never goes over the wire: each side proves that it knows it, over everything
both said and over the certificate between them (protocol.md#link-start). Until the
peer's proof is verified nothing that it says has an effect beyond this link, and its
bytes raise ``RemoteLinkError`` and nothing else. Deadlines are the caller's.
"""

from __future__ import annotations

import hmac
from typing import TYPE_CHECKING, ClassVar, Final

from tunnel.errors import (
    Code,
    LocalLinkError,
    RemoteLinkError,
    RemoteSessionError,
)
from tunnel.proto.claims import AuthClaim, HandshakeResult
from tunnel.proto.codec import decode_one
from tunnel.proto.frames import (
    CAN_OWN,
    HEADER_BYTES,
    PROTOCOL_VERSION,
    ProtAuth,
    ProtAuthAnswer,
    ProtGoAway,
    ProtHello,
    ProtKind,
    Terms,
)
from tunnel.proto.payloads import auth_answer_before_proof, auth_before_proof, encode
from tunnel.proto.proofs import (
    PROOF_BYTES,
    client_proof,
    is_client_proof,
    resume_proof,
    resume_secret,
    secrets_of,
    server_proof,
    transcript,
    unpack_verifier,
)
from tunnel.proto.refusals import UNKNOWN_LOGIN, refused_login
from tunnel.proto.terms import (
    DEFAULT_REPLAY_LIMIT,
    DEFAULT_RESUME_S,
    SessionTerms,
    broken,
    hello_tlvs,
    hint_tlvs,
    next_pin_tlvs,
    read_hint,
    read_next_pin,
    read_terms,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tunnel.proto.claims import ResumeState
    from tunnel.proto.frames import ProtFrame
    from tunnel.proto.proofs import Verifier

MAX_UNPROVEN_BYTES: Final = 8_192
"""What a client may send in all before the server's AUTH: a stranger costs no more."""

_OWN: Final = 3
"""The field of AUTH for a token of the machine's own (protocol.md#own-token)."""
_UP_TO_PROOF: Final = slice(HEADER_BYTES, -PROOF_BYTES)
"""Of AUTH as it was on the wire: what its proof is made over."""


class _AwayError(Exception):
    """The client belongs to another server."""

    def __init__(self, hint: bytes) -> None:
        super().__init__(hint)
        self.hint = hint


class _Side:
    """What both roles share: bytes in, bytes out, and one failure for ever."""

    _told: ClassVar[Mapping[Code, str]] = {}
    """The failures that the peer hears of, and in which words."""

    def __init__(self, binding: bytes, resume_s: int, replay_limit: int) -> None:
        self._binding = binding
        self._own = SessionTerms(resume_s, replay_limit)
        self._peer_terms = Terms()
        self._awaited: ProtKind | None = ProtKind.HELLO
        self._transcript = b""
        self._held = bytearray()
        self._taken_bytes = 0
        self._out = bytearray()
        self._failure: RemoteLinkError | None = None
        self.result: HandshakeResult | None = None
        """Set when this side is done; nothing may be received after that."""

    def data_to_send(self) -> bytes:
        """Return what is to be written now, after a failure too; often empty."""
        out = bytes(self._out)
        self._out.clear()
        return out

    def receive(self, data: bytes) -> None:
        """Take what the peer sent, split in any way.

        Raises:
            RemoteLinkError: this link will not do. What ``data_to_send`` then gives
                is still to be written; every later call raises the same.
        """
        if self._failure is not None:
            raise self._failure.again()
        self._held += data
        try:
            self._advance()
        except _AwayError as error:
            self.away = error.hint
            return
        except RemoteLinkError as error:
            self._failure = error.again()
        except RemoteSessionError as error:
            # Nobody is proved yet, so what is wrong here is no fault of a session.
            self._failure = RemoteLinkError(error.code, error.what)
        else:
            return
        self._held.clear()
        if self._failure.code in self._told:
            self.refuse(self._failure.code, self._told[self._failure.code])
        raise self._failure.again()

    def refuse(self, code: Code, reason: str = "", retry_after_s: int = 0) -> None:
        """Say GO_AWAY and nothing else on this link. The caller closes."""
        self._out.clear()
        self._out += encode(ProtGoAway(code, retry_after_s, reason))

    def _advance(self) -> None:
        """Take every frame that is complete."""
        if self._awaited is ProtKind.HELLO and (taken := self._take(ProtKind.HELLO)):
            self._on_hello(*taken)
            self._awaited = ProtKind.AUTH
        if self._awaited is ProtKind.AUTH and (taken := self._take(ProtKind.AUTH)):
            self._on_auth(*taken)
            self._awaited = None

    def _on_hello(self, frame: ProtFrame, raw: bytes) -> None:
        """Keep what the peer promises, and answer."""
        raise NotImplementedError

    def _on_auth(self, frame: ProtFrame, raw: bytes) -> None:
        """Check the peer's proof; only then does its frame say anything."""
        raise NotImplementedError

    def _finish(
        self, answer: ProtAuthAnswer, agreed: SessionTerms, count: int, secret: bytes
    ) -> None:
        """Set ``result``: both sides have proved themselves."""
        self.result = HandshakeResult(
            peer_terms=self._peer_terms,
            session_id=answer.session_id,
            count=count,
            resumed=answer.resumed,
            resume_secret=secret,
            transcript=self._transcript,
            leftover=bytes(self._held),
            resume_s=agreed.resume_s,
            replay_limit=agreed.replay_limit,
            own_taken=_OWN in answer.tlvs,
            next_pin=read_next_pin(answer.tlvs),
            hint=read_hint(answer.tlvs, client=False),
        )

    def _take(self, kind: int, *others: int) -> tuple[ProtFrame, bytes] | None:
        """Take the next frame and its bytes; its kind is judged by the header alone."""
        if len(self._held) < HEADER_BYTES:
            return None
        if self._held[3] not in (kind, *others):
            raise broken(f"a frame of kind {self._held[3]:#04x} before its proof")
        found = decode_one(bytes(self._held))
        if found is None:
            return None
        frame, size = found
        raw = bytes(self._held[:size])
        del self._held[:size]
        self._taken_bytes += size
        return frame, raw


class ClientHandshake(_Side):
    """The center-client's side of a link start.

    Args:
        name: the user's name.
        token: the 32 bytes of the user's token, or their base64url text.
        terms: what this side promises.
        nonce: 32 fresh random bytes.
        binding: see ``proofs.transcript``.
        link_no: higher than that of any earlier link of the session.
        resume: the session to go on with, None for a new one.
        resume_s: how long this side would keep the session without a link.
        replay_limit: unconfirmed session bytes that this side would keep.
        own: of a token that this side has made, where the user's works once; said only
            to a server that takes it. The link must be encrypted.

    Until ``result`` is set the server has proved nothing: a ``RemoteLinkError`` that
    its GO_AWAY caused is a hint from anybody who could write on this link.

    Raises:
        UsageError: the name or the token cannot be used.
    """

    def __init__(
        self,
        name: str,
        token: bytes | str,
        terms: Terms,
        nonce: bytes,
        binding: bytes,
        link_no: int = 1,
        resume: ResumeState | None = None,
        resume_s: int = DEFAULT_RESUME_S,
        replay_limit: int = DEFAULT_REPLAY_LIMIT,
        own: Verifier | None = None,
    ) -> None:
        super().__init__(binding, resume_s, replay_limit)
        self._own_token = own
        self._secrets = secrets_of(name, token)
        self._resume = resume
        self._auth = ProtAuth(name, link_no, tlvs=self._own.tlvs())
        hello = ProtHello(
            ack=False,
            min_version=PROTOCOL_VERSION,
            max_version=PROTOCOL_VERSION,
            nonce=nonce,
            tlvs=hello_tlvs(terms, client=True)
            | hint_tlvs(resume.hint if resume else b"", client=True),
        )
        self._hello = encode(hello)
        self._out += self._hello

    def _take(self, kind: int, *others: int) -> tuple[ProtFrame, bytes] | None:
        taken = super()._take(kind, ProtKind.GO_AWAY)
        if taken is not None and isinstance(taken[0], ProtGoAway):
            raise refused_login(self._auth.name, taken[0])
        return taken

    def _on_hello(self, frame: ProtFrame, raw: bytes) -> None:
        if not isinstance(frame, ProtHello) or not frame.ack:
            raise broken("a client's HELLO")
        if frame.min_version != PROTOCOL_VERSION:
            raise RemoteLinkError(
                Code.VERSION, f"the server chose protocol version {frame.min_version}"
            )
        self._peer_terms = read_terms(frame.tlvs)
        self._transcript = script = transcript(self._hello, raw, self._binding)
        auth, resume = self._auth, self._resume
        if self._own_token and self._peer_terms.capabilities & CAN_OWN:
            auth.tlvs[_OWN] = self._own_token.pack()
        if resume is not None:
            auth.session_id, auth.count = resume.session_id, resume.count
            auth.resume_proof = resume_proof(
                resume.secret, script, resume.session_id, resume.count, auth.link_no
            )
        auth.proof = client_proof(self._secrets, script, auth_before_proof(auth))
        self._out += encode(auth)

    def _on_auth(self, frame: ProtFrame, raw: bytes) -> None:
        if not isinstance(frame, ProtAuthAnswer):
            raise broken("a client's AUTH")
        key, script = self._secrets.server_key, self._transcript
        proof = server_proof(key, script, self._auth.proof, raw[_UP_TO_PROOF])
        if not hmac.compare_digest(proof, frame.proof):
            raise RemoteLinkError(
                Code.AUTH,
                "the server did not prove that it knows this user's token",
                "another program answers at that address, or something between "
                "opens the TLS",
            )
        agreed = self._own.merged(frame.tlvs)
        if frame.tlvs.get(_OWN) or (_OWN in frame.tlvs and _OWN not in self._auth.tlvs):
            raise broken("an answer about a token that was not said")
        self._finish(frame, agreed, frame.count, self._secret_of(frame))

    def _secret_of(self, answer: ProtAuthAnswer) -> bytes:
        if not answer.resumed:
            if answer.count:
                raise broken(f"a new session that begins at {answer.count}")
            return resume_secret(self._secrets.server_key, self._transcript)
        if self._resume is None or answer.session_id != self._resume.session_id:
            raise broken("an answer that resumes another session")
        return self._resume.secret


class ServerHandshake(_Side):
    """The center-server's side of a link start.

    ``receive`` leads to ``claim``; the caller decides which session the link carries
    and calls ``accept`` or ``refuse``, then writes what ``data_to_send`` gives.

    ``lookup`` returns the verifier of a user, None if there is no such user; ``dummy``
    is that of a random token, so that unknown names cost the work of known ones.
    ``lookup_own`` returns that of a user's second token, if there is one. ``next_pin``
    is announced to clients that prove themselves, 32 bytes or none. ``hint`` is what
    they say to come back to this server, ``leads_away`` whether a hint is that of
    another. The other arguments are those of ``ClientHandshake``.
    """

    # A stranger learns nothing else; of a broken rule not even that.
    _told: ClassVar[Mapping[Code, str]] = {
        Code.AUTH: UNKNOWN_LOGIN,
        Code.VERSION: f"{PROTOCOL_VERSION}-{PROTOCOL_VERSION}",
    }

    def __init__(
        self,
        terms: Terms,
        nonce: bytes,
        binding: bytes,
        lookup: Callable[[str], Verifier | None],
        dummy: Verifier,
        resume_s: int = DEFAULT_RESUME_S,
        replay_limit: int = DEFAULT_REPLAY_LIMIT,
        lookup_own: Callable[[str], Verifier | None] = lambda _name: None,
        next_pin: bytes = b"",
        hint: bytes = b"",
        leads_away: Callable[[bytes], bool] = lambda _hint: False,
    ) -> None:
        super().__init__(binding, resume_s, replay_limit)
        self._hint = hint
        self._leads_away = leads_away
        self.away = b""
        """The hint of a client that belongs elsewhere: nothing was said to it."""
        self._lookup_own = lookup_own
        self._next_pin = next_pin
        self._terms = terms
        self._nonce = nonce
        self._lookup = lookup
        self._dummy = dummy
        self._server_key = b""
        self._client_proof = b""
        self.claimed_name = ""
        """The name that the client gave, proved or not."""
        self.claim: AuthClaim | None = None
        """Set when the client has proved itself and waits for an answer."""

    def _advance(self) -> None:
        if self._taken_bytes + len(self._held) > MAX_UNPROVEN_BYTES:
            raise broken(f"more than {MAX_UNPROVEN_BYTES} bytes before its proof")
        super()._advance()

    def _on_hello(self, frame: ProtFrame, raw: bytes) -> None:
        if not isinstance(frame, ProtHello) or frame.ack:
            raise broken("a server's HELLO")
        if not frame.min_version <= PROTOCOL_VERSION <= frame.max_version:
            raise RemoteLinkError(
                Code.VERSION,
                f"the client speaks versions {frame.min_version} to "
                f"{frame.max_version} of the protocol, this program "
                f"{PROTOCOL_VERSION}",
            )
        self._peer_terms = read_terms(frame.tlvs)
        hint = read_hint(frame.tlvs, client=True)
        if hint and self._leads_away(hint):
            self._held[:0] = raw
            raise _AwayError(hint)
        answer = ProtHello(
            ack=True,
            min_version=PROTOCOL_VERSION,
            max_version=0,
            nonce=self._nonce,
            tlvs=hello_tlvs(self._terms, client=False),
        )
        hello = encode(answer)
        self._transcript = transcript(raw, hello, self._binding)
        self._out += hello

    def _on_auth(self, frame: ProtFrame, raw: bytes) -> None:
        if not isinstance(frame, ProtAuth):
            raise broken("a server's AUTH")
        self.claimed_name = frame.name
        known = self._proved_by(frame, raw[_UP_TO_PROOF])
        own = None
        if _OWN in frame.tlvs and (own := unpack_verifier(frame.tlvs[_OWN])) is None:
            raise broken("a verifier that is none")
        agreed = self._own.merged(frame.tlvs)
        self._server_key, self._client_proof = known.server_key, frame.proof
        self.claim = AuthClaim(
            frame.name,
            frame.link_no,
            self._peer_terms.client_id,
            self._peer_terms,
            frame.session_id,
            frame.count,
            agreed,
            known,
            own,
            self._transcript,
            frame.resume_proof,
        )

    def _proved_by(self, frame: ProtAuth, before_proof: bytes) -> Verifier:
        """Return the verifier of the token that was proved, or refuse.

        The work is the same for every name, and however many tokens it has.
        """
        found = self._lookup(frame.name), self._lookup_own(frame.name)
        proved = [
            is_client_proof(
                one or self._dummy, self._transcript, before_proof, frame.proof
            )
            for one in found
        ]
        for one, is_proved in zip(found, proved, strict=True):
            if one is not None and is_proved:
                return one
        raise RemoteLinkError(
            Code.AUTH,
            f"the login of {frame.name!r} was refused",
            "wrong token" if any(found) else "no such user",
        )

    def heard(self) -> bytes:
        """Return all that an ``away`` client has said: it is for another server."""
        return bytes(self._held)

    def stay(self) -> None:
        """Answer an ``away`` client here: the other server is not to be had.

        Raises as ``receive`` does.
        """
        self.away, self._leads_away = b"", lambda _hint: False
        self.receive(b"")

    def accept(
        self, session_id: bytes, count: int, resumed: bool, own: bool = False
    ) -> None:
        """Answer ``claim`` and set ``result``.

        Args:
            session_id: 16 bytes; of a new session, fresh random ones.
            count: session bytes that this side has received; of a new session 0.
            resumed: the claimed session goes on, and ``claim.proves`` has said yes.
            own: the client's own token is kept, and the link carries no session.

        Raises:
            LocalLinkError: ``INTERNAL``: there is nothing to answer, or a session would
                be given to a client that did not prove that it is its own.
        """
        claim = self.claim
        if claim is None or self.result is not None:
            raise LocalLinkError(Code.INTERNAL, "no login waits for an answer")
        if resumed and (not claim._proved or session_id != claim.session_id):
            raise LocalLinkError(
                Code.INTERNAL,
                f"{claim.name!r} did not prove this session to be its own",
            )
        tlvs = self._own.tlvs() | next_pin_tlvs(self._next_pin)
        tlvs |= hint_tlvs(self._hint, client=False)
        tlvs |= {_OWN: b""} if own else {}
        answer = ProtAuthAnswer(session_id, count, resumed, tlvs)
        before = auth_answer_before_proof(answer)
        answer.proof = server_proof(
            self._server_key, self._transcript, self._client_proof, before
        )
        self._out += encode(answer)
        count, secret = claim.count, claim._proved
        if not resumed:
            count, secret = 0, resume_secret(self._server_key, self._transcript)
        self._finish(answer, claim.agreed, count, secret)
