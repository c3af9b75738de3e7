"""HELLO and AUTH: both sides, strangers, replays, downgrades and hostile bytes."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from hashlib import sha256
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support import frames as by_hand

from tunnel.errors import (
    Code,
    LocalLinkError,
    RemoteLinkError,
    UsageError,
)
from tunnel.proto import terms as terms_module
from tunnel.proto.claims import HandshakeResult, ResumeState
from tunnel.proto.codec import decode_one
from tunnel.proto.fields import check_tlvs
from tunnel.proto.frames import (
    CAN_OWN,
    MAX_FRAME_BYTES,
    MIN_FRAME_BYTES,
    ProtAuth,
    ProtAuthAnswer,
    ProtHello,
    Terms,
)
from tunnel.proto.handshake import MAX_UNPROVEN_BYTES, ClientHandshake, ServerHandshake
from tunnel.proto.payloads import auth_answer_before_proof, encode
from tunnel.proto.proofs import (
    NO_BINDING,
    PLAIN_BINDING,
    Secrets,
    Verifier,
    client_proof,
    is_client_proof,
    secrets_of,
    server_proof,
    transcript,
    verifier_of,
)
from tunnel.proto.terms import (
    DEFAULT_REPLAY_LIMIT,
    DEFAULT_RESUME_S,
    SessionTerms,
    hello_tlvs,
    read_terms,
)

if TYPE_CHECKING:
    from collections.abc import Callable

TOKEN = bytes(range(32))
TOKEN_TEXT = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8"
NAME = "anna"
NONCE_C, NONCE_S = b"c" * 32, b"s" * 32
SESSION_ID = b"0123456789abcdef"
CLIENT_TERMS = Terms(agent="client", client_id=b"i" * 16, max_frame=20_000)
SERVER_TERMS = Terms(agent="server", initial_window=65_536, idle_ping_s=7)
USERS = {NAME: verifier_of(NAME, TOKEN)}
DUMMY = verifier_of("nobody", b"?" * 32)


def client(
    name: str = NAME,
    token: bytes | str = TOKEN,
    terms: Terms = CLIENT_TERMS,
    nonce: bytes = NONCE_C,
    binding: bytes = PLAIN_BINDING,
    link_no: int = 1,
    resume: ResumeState | None = None,
    resume_s: int = 60,
    replay_limit: int = 1 << 20,
) -> ClientHandshake:
    return ClientHandshake(
        name, token, terms, nonce, binding, link_no, resume, resume_s, replay_limit
    )


def server(
    terms: Terms = SERVER_TERMS,
    nonce: bytes = NONCE_S,
    binding: bytes = PLAIN_BINDING,
    lookup: Callable[[str], Verifier | None] = USERS.get,
    resume_s: int = DEFAULT_RESUME_S,
    replay_limit: int = 4096,
    next_pin: bytes = b"",
) -> ServerHandshake:
    return ServerHandshake(
        terms,
        nonce,
        binding,
        lookup,
        DUMMY,
        resume_s,
        replay_limit,
        next_pin=next_pin,
    )


def meet(ours: ClientHandshake, theirs: ServerHandshake) -> ServerHandshake:
    """Bring both to the claim."""
    theirs.receive(ours.data_to_send())
    ours.receive(theirs.data_to_send())
    theirs.receive(ours.data_to_send())
    assert theirs.claim is not None
    return theirs


def finish(
    ours: ClientHandshake,
    theirs: ServerHandshake,
    count: int = 0,
    resumed: bool = False,
) -> tuple[HandshakeResult, HandshakeResult]:
    theirs.accept(SESSION_ID, count, resumed)
    ours.receive(theirs.data_to_send())
    assert ours.result is not None
    assert theirs.result is not None
    return ours.result, theirs.result


def failure(side: ClientHandshake | ServerHandshake, data: bytes) -> RemoteLinkError:
    with pytest.raises(RemoteLinkError) as caught:
        side.receive(data)
    assert side.result is None
    return caught.value


def refused_login(ours: ClientHandshake, theirs: ServerHandshake) -> None:
    """Both sides see that the login failed."""
    theirs.receive(ours.data_to_send())
    ours.receive(theirs.data_to_send())
    assert failure(theirs, ours.data_to_send()).code == Code.AUTH
    assert theirs.claim is None
    assert failure(ours, theirs.data_to_send()).code == Code.AUTH


# Success ---------------------------------------------------------------------------


def test_both_sides_prove_themselves_and_agree() -> None:
    ours = client()
    theirs = meet(ours, server())
    claim = theirs.claim
    assert claim is not None
    assert (claim.name, claim.link_no, claim.client_id) == (NAME, 1, b"i" * 16)
    assert (claim.session_id, claim.count) == (b"", 0)
    ours_result, theirs_result = finish(ours, theirs)
    assert ours_result.peer_terms == SERVER_TERMS
    assert theirs_result.peer_terms == CLIENT_TERMS
    assert replace(ours_result, peer_terms=CLIENT_TERMS) == theirs_result
    assert ours_result.session_id == SESSION_ID
    assert (ours_result.resumed, ours_result.count) == (False, 0)
    assert (ours_result.resume_s, ours_result.replay_limit) == (60, 4096)
    assert ours.data_to_send() == theirs.data_to_send() == b""


def test_the_next_pin_is_announced_with_the_proof() -> None:
    pin = sha256(b"next").digest()
    ours, announcing = client(), server(next_pin=pin)
    result, _ = finish(ours, meet(ours, announcing))
    assert result.next_pin == pin
    ours = client()
    assert finish(ours, meet(ours, server()))[0].next_pin == b""


def test_a_client_of_before_ignores_the_announced_pin() -> None:
    tlvs = terms_module.next_pin_tlvs(bytes(32))
    # What it does with each AUTH: unknown fields from 128 on are nothing to it.
    check_tlvs(tlvs, frozenset((1, 2)))
    assert SessionTerms(1, 2).merged(tlvs) == SessionTerms(1, 2)


@pytest.mark.parametrize("pin", [b"x", bytes(31), bytes(33)])
def test_a_pin_of_another_size_is_a_fault(pin: bytes) -> None:
    ours = client()
    theirs = meet(ours, server(next_pin=pin))
    with pytest.raises(RemoteLinkError, match="a pin of"):
        theirs.accept(SESSION_ID, 0, False)
    assert failure(ours, theirs.data_to_send()).code == Code.PROTOCOL


def test_nobody_changes_the_announced_pin_on_the_way() -> None:
    ours, pin = client(), sha256(b"next").digest()
    theirs = meet(ours, server(next_pin=pin))
    theirs.accept(SESSION_ID, 0, False)
    forged = theirs.data_to_send().replace(pin, sha256(b"mine").digest())
    assert failure(ours, forged).code == Code.AUTH


def test_a_token_may_be_given_as_text() -> None:
    ours = client(token=TOKEN_TEXT)
    finish(ours, meet(ours, server()))


@pytest.mark.parametrize("binding", [PLAIN_BINDING, NO_BINDING, sha256(b"").digest()])
def test_any_binding_will_do_when_both_have_the_same(binding: bytes) -> None:
    ours = client(binding=binding)
    finish(ours, meet(ours, server(binding=binding)))


def wire() -> tuple[bytes, bytes]:
    """Give all bytes of a link start, each direction, with a frame behind it."""
    ours, theirs = client(), server()
    up = ours.data_to_send()
    theirs.receive(up)
    down = theirs.data_to_send()
    ours.receive(down)
    auth = ours.data_to_send()
    theirs.receive(auth)
    theirs.accept(SESSION_ID, 0, False)
    return up + auth, down + theirs.data_to_send() + by_hand.ping()


UP, DOWN = wire()
TAIL = by_hand.ping()


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[a:b] for a, b in pairwise(edges)]


def split_run(up: list[bytes], down: list[bytes]) -> None:
    ours, theirs = client(), server()
    for piece in up:
        theirs.receive(piece)
    theirs.accept(SESSION_ID, 0, False)
    for piece in down:
        if ours.result is None:
            ours.receive(piece)
    assert ours.data_to_send() == UP
    assert theirs.data_to_send() + TAIL == DOWN
    assert ours.result is not None
    assert TAIL.startswith(ours.result.leftover)


def test_every_cut_in_two_gives_the_same_conversation() -> None:
    for at in range(max(len(UP), len(DOWN)) + 1):
        split_run([UP[:at], UP[at:]], [DOWN[:at], DOWN[at:]])


@given(st.lists(st.integers(0, 4096)), st.lists(st.integers(0, 4096)))
def test_any_split_gives_the_same_conversation(
    ups: list[int], downs: list[int]
) -> None:
    split_run(cut(UP, ups), cut(DOWN, downs))


def test_single_bytes_give_the_same_conversation() -> None:
    split_run([bytes((byte,)) for byte in UP], [bytes((byte,)) for byte in DOWN])


def test_what_follows_the_answer_is_left_for_the_frame_decoder() -> None:
    ours = client()
    ours.receive(DOWN)
    assert ours.result is not None
    assert ours.result.leftover == TAIL


def test_what_follows_the_claim_is_left_for_the_frame_decoder() -> None:
    theirs = server()
    theirs.receive(UP + TAIL[:5])
    theirs.receive(TAIL[5:])
    theirs.accept(SESSION_ID, 0, False)
    assert theirs.result is not None
    assert theirs.result.leftover == TAIL


def test_a_newer_client_that_still_speaks_version_1_is_welcome() -> None:
    theirs = server()
    theirs.receive(by_hand.hello(low=1, high=9))
    assert theirs.data_to_send()[:16].hex() == (
        "0000" + DOWN[2:3].hex() + "0501000000" + b"PROT".hex() + "0100" + "7373"
    )


# Resuming --------------------------------------------------------------------------


def first_link() -> tuple[HandshakeResult, HandshakeResult]:
    ours = client()
    return finish(ours, meet(ours, server()))


def test_a_session_goes_on_with_both_counts() -> None:
    before, known = first_link()
    state = ResumeState(before.session_id, 500, before.resume_secret)
    ours = client(link_no=2, resume=state, nonce=b"d" * 32)
    theirs = meet(ours, server(nonce=b"t" * 32))
    claim = theirs.claim
    assert claim is not None
    assert (claim.session_id, claim.count, claim.link_no) == (SESSION_ID, 500, 2)
    assert claim.proves(known.resume_secret)
    ours_result, theirs_result = finish(ours, theirs, 700, resumed=True)
    assert (ours_result.resumed, ours_result.count) == (True, 700)
    assert (theirs_result.resumed, theirs_result.count) == (True, 500)
    assert ours_result.transcript != before.transcript
    assert (
        ours_result.resume_secret == theirs_result.resume_secret == before.resume_secret
    )


def test_a_server_may_answer_a_resume_with_a_new_session() -> None:
    before, _ = first_link()
    state = ResumeState(before.session_id, 500, before.resume_secret)
    ours = client(link_no=2, resume=state, nonce=b"d" * 32)
    ours_result, theirs_result = finish(ours, meet(ours, server()))
    assert (ours_result.resumed, ours_result.count) == (False, 0)
    assert (theirs_result.resumed, theirs_result.count) == (False, 0)
    assert ours_result.resume_secret == theirs_result.resume_secret
    assert ours_result.resume_secret != before.resume_secret


def test_the_token_alone_does_not_resume_a_session() -> None:
    _, known = first_link()
    ours = client(link_no=2, resume=ResumeState(SESSION_ID, 0, b"x" * 32))
    theirs = meet(ours, server())
    assert theirs.claim is not None
    assert not theirs.claim.proves(known.resume_secret)
    with pytest.raises(LocalLinkError):
        theirs.accept(SESSION_ID, 0, resumed=True)


def test_a_client_that_does_not_resume_proves_no_session() -> None:
    theirs = meet(client(), server())
    assert theirs.claim is not None
    assert not theirs.claim.proves(b"")


def test_the_proof_of_one_session_opens_no_other() -> None:
    before, known = first_link()
    state = ResumeState(before.session_id, 0, before.resume_secret)
    theirs = meet(client(link_no=2, resume=state), server())
    assert theirs.claim is not None
    assert theirs.claim.proves(known.resume_secret)
    with pytest.raises(LocalLinkError):
        theirs.accept(b"another session!", 0, resumed=True)


def test_an_answer_needs_a_claim_and_is_given_once() -> None:
    with pytest.raises(LocalLinkError):
        server().accept(SESSION_ID, 0, False)
    theirs = meet(client(), server())
    theirs.accept(SESSION_ID, 0, False)
    with pytest.raises(LocalLinkError):
        theirs.accept(SESSION_ID, 0, False)


def test_a_refusal_after_the_proof_reaches_the_client() -> None:
    ours = client()
    theirs = meet(ours, server())
    theirs.refuse(Code.STALE, "link 1 came after link 2\n", 3)
    error = failure(ours, theirs.data_to_send())
    assert error.code == Code.STALE
    assert error.cause == "link 1 came after link 2?"
    assert error.retry_after_s == 3


# Strangers -------------------------------------------------------------------------


def test_a_wrong_token_is_refused() -> None:
    refused_login(client(token=b"x" * 32), server())


def test_an_unknown_name_is_refused() -> None:
    refused_login(client(name="otto"), server())


def test_the_token_of_another_user_is_refused() -> None:
    users = {NAME: USERS[NAME], "otto": verifier_of("otto", b"o" * 32)}
    refused_login(client(name="otto"), server(lookup=users.get))


def test_the_dummy_verifier_lets_nobody_in() -> None:
    refused_login(client(name="nobody", token=b"?" * 32), server())


def test_an_unknown_name_and_a_wrong_token_get_the_same_answer() -> None:
    answers = set()
    for ours in (client(name="otto"), client(token=b"x" * 32)):
        theirs = server()
        theirs.receive(ours.data_to_send())
        ours.receive(theirs.data_to_send())
        failure(theirs, ours.data_to_send())
        answers.add(theirs.data_to_send())
    assert answers == {by_hand.go_away(Code.AUTH, 0, "unknown name or wrong proof")}


def test_another_certificate_fails_in_spite_of_the_right_token() -> None:
    refused_login(client(binding=b"1" * 32), server(binding=b"2" * 32))


def test_plain_is_not_none() -> None:
    refused_login(client(binding=PLAIN_BINDING), server(binding=NO_BINDING))


def test_a_recorded_login_is_worth_nothing_against_a_new_nonce() -> None:
    theirs = server(nonce=b"t" * 32)
    assert failure(theirs, UP).code == Code.AUTH


def test_after_a_failure_a_good_login_comes_too_late() -> None:
    theirs = server()
    hello = client().data_to_send()
    theirs.receive(hello)
    assert failure(theirs, by_hand.auth(NAME)).code == Code.AUTH
    assert failure(theirs, UP[len(hello) :]).code == Code.AUTH
    assert theirs.claim is None


def test_who_stole_the_verifier_cannot_log_in_as_the_client() -> None:
    stolen = USERS[NAME]
    theirs = server()
    hello = client().data_to_send()
    theirs.receive(hello)
    script = transcript(hello, theirs.data_to_send(), PLAIN_BINDING)
    before = by_hand.auth(NAME, proof=b"")[8:]
    for key in (stolen.stored_key, stolen.server_key, bytes(32)):
        proof = client_proof(Secrets(key, stolen.server_key), script, before)
        assert not is_client_proof(stolen, script, before, proof)
    proof = client_proof(secrets_of(NAME, TOKEN), script, before)
    assert is_client_proof(stolen, script, before, proof)


def test_a_server_without_the_verifier_cannot_answer() -> None:
    fake = verifier_of(NAME, b"x" * 32)
    ours = client()
    theirs = server()
    theirs.receive(ours.data_to_send())
    hello = theirs.data_to_send()
    ours.receive(hello)
    found = decode_one(ours.data_to_send())
    assert found is not None
    auth = found[0]
    assert isinstance(auth, ProtAuth)
    answer = ProtAuthAnswer(SESSION_ID, 0, False)
    script = transcript(client().data_to_send(), hello, PLAIN_BINDING)
    answer.proof = server_proof(
        fake.server_key, script, auth.proof, auth_answer_before_proof(answer)
    )
    error = failure(ours, encode(answer))
    assert error.code == Code.AUTH
    assert "did not prove" in error.what


def test_every_changed_byte_of_a_login_is_noticed() -> None:
    for at in range(len(UP)):
        bad = bytearray(UP)
        bad[at] ^= 0x40
        theirs = server()
        try:
            theirs.receive(bytes(bad))
        except RemoteLinkError:
            pass
        else:
            # Flags without a meaning are no part of AUTH, a longer length waits.
            meaningless = at == len(client().data_to_send()) + 4
            assert meaningless or theirs.claim is None


def test_every_changed_byte_of_an_answer_is_noticed() -> None:
    answers = DOWN[: -len(TAIL)]
    hello_bytes = decode_one(answers)
    assert hello_bytes is not None
    for at in range(len(answers)):
        bad = bytearray(answers)
        bad[at] ^= 0x40
        ours = client()
        try:
            ours.receive(bytes(bad))
        except RemoteLinkError:
            pass
        else:
            assert at == hello_bytes[1] + 4 or ours.result is None


def change_hello(data: bytes, **changes: object) -> bytes:
    found = decode_one(data)
    assert found is not None
    hello, size = found
    assert isinstance(hello, ProtHello)
    return encode(replace(hello, **changes)) + data[size:]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "changes",
    [
        {"tlvs": {}},
        {"tlvs": hello_tlvs(replace(CLIENT_TERMS, capabilities=0), client=True)},
        {"tlvs": hello_tlvs(replace(CLIENT_TERMS, client_id=b"j" * 16), client=True)},
        {"max_version": 2},
        {"nonce": b"x" * 32},
    ],
)
def test_a_hello_that_somebody_changed_on_the_way_breaks_the_proof(
    changes: dict[str, object],
) -> None:
    ours, theirs = client(), server()
    theirs.receive(change_hello(ours.data_to_send(), **changes))
    ours.receive(theirs.data_to_send())
    assert failure(theirs, ours.data_to_send()).code == Code.AUTH


def test_a_servers_hello_that_somebody_changed_breaks_the_proof() -> None:
    ours, theirs = client(), server()
    theirs.receive(ours.data_to_send())
    weaker = hello_tlvs(replace(SERVER_TERMS, capabilities=0), client=False)
    ours.receive(change_hello(theirs.data_to_send(), tlvs=weaker))
    assert failure(theirs, ours.data_to_send()).code == Code.AUTH


# Broken rules ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        by_hand.ping(),
        by_hand.header(by_hand.DATA, 65_528, 0, 1),
        by_hand.header(by_hand.TOKEN, 30),
        by_hand.header(by_hand.HELLO, 4_097),
        by_hand.header(0x80, 10),
        by_hand.auth(NAME),
        by_hand.hello_ack(),
        by_hand.hello(magic=b"WMT1"),
        by_hand.hello(bytes(31)),
        by_hand.go_away(Code.NORMAL),
        b"GET / HTTP/1.1\r\n\r\n",
        b"SSH-2.0-x\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01",
    ],
)
def test_a_stranger_who_begins_otherwise_hears_nothing(data: bytes) -> None:
    theirs = server()
    assert failure(theirs, data).code == Code.PROTOCOL
    assert theirs.data_to_send() == b""


@pytest.mark.parametrize(
    "data",
    [
        by_hand.ping(),
        by_hand.hello(),
        by_hand.auth_ack(),
        by_hand.header(by_hand.AUTH, 1_025),
        by_hand.header(by_hand.CREATE, 9, 0, 1),
        by_hand.auth(NAME, 1, b"\2"),
        by_hand.auth(b"\xff"),
    ],
)
def test_anything_but_auth_after_hello_ends_the_link(data: bytes) -> None:
    theirs = server()
    theirs.receive(client().data_to_send())
    theirs.data_to_send()
    assert failure(theirs, data).code == Code.PROTOCOL
    assert theirs.data_to_send() == b""


@pytest.mark.parametrize("before", [b"", DOWN[: int.from_bytes(DOWN[:3], "big") + 8]])
@pytest.mark.parametrize(
    "data",
    [
        by_hand.ping(),
        by_hand.hello(),
        by_hand.auth(NAME),
        by_hand.received(0),
        by_hand.header(by_hand.DATA, 1, 0, 2),
        by_hand.header(by_hand.GO_AWAY, 1_025),
    ],
)
def test_a_server_that_says_something_else_is_left(before: bytes, data: bytes) -> None:
    assert failure(client(), before + data).code == Code.PROTOCOL


def test_a_stranger_may_not_send_more_than_8_kib() -> None:
    theirs = server()
    theirs.receive(UP)
    theirs.receive(bytes(MAX_UNPROVEN_BYTES - len(UP)))
    assert failure(theirs, b"x").code == Code.PROTOCOL
    assert failure(server(), bytes(MAX_UNPROVEN_BYTES + 1)).code == Code.PROTOCOL


def test_a_link_start_cut_anywhere_just_waits() -> None:
    for at in range(len(UP)):
        theirs = server()
        theirs.receive(UP[:at])
        assert theirs.claim is None
    for at in range(len(DOWN) - len(TAIL)):
        ours = client()
        ours.receive(DOWN[:at])
        assert ours.result is None


@pytest.mark.parametrize(("low", "high"), [(2, 9), (0, 0), (255, 255), (9, 0)])
def test_no_common_version_names_the_servers_own(low: int, high: int) -> None:
    theirs = server()
    assert failure(theirs, by_hand.hello(low=low, high=high)).code == Code.VERSION
    answer = theirs.data_to_send()
    assert answer == by_hand.go_away(Code.VERSION, 0, "1-1")
    error = failure(client(), answer)
    assert error.code == Code.VERSION
    assert "1-1" in error.cause


@pytest.mark.parametrize(
    "fields",
    [
        b"\xff",
        b"\x01\x00",
        by_hand.tlv(1, b"") * 2,
        b"".join(by_hand.tlv(number, b"") for number in range(40)),
        b"fields of a later version",
    ],
)
def test_the_version_is_chosen_before_the_fields_are_read(fields: bytes) -> None:
    theirs = server()
    later = by_hand.hello(tlvs=fields, low=2, high=9)
    assert failure(theirs, later).code == Code.VERSION
    assert theirs.data_to_send() == by_hand.go_away(Code.VERSION, 0, "1-1")
    answer = by_hand.hello_ack(tlvs=fields, version=2)
    assert failure(client(), answer).code == Code.VERSION
    # Of a version that is spoken here they are a fault, and a fault is silence.
    theirs = server()
    assert failure(theirs, by_hand.hello(tlvs=fields, low=1, high=9)).code in (
        Code.PROTOCOL,
        Code.CALM,
        Code.VERSION,
    )


def test_an_empty_name_is_answered_as_an_unknown_one() -> None:
    theirs = server()
    theirs.receive(client().data_to_send())
    theirs.data_to_send()
    assert failure(theirs, by_hand.auth("")).code == Code.AUTH
    words = "unknown name or wrong proof"
    assert theirs.data_to_send() == by_hand.go_away(Code.AUTH, 0, words)


def test_a_client_says_nothing_to_a_server_that_proves_nothing() -> None:
    ours = client()
    theirs = server()
    theirs.receive(ours.data_to_send())
    ours.receive(theirs.data_to_send())
    ours.data_to_send()
    assert failure(ours, by_hand.auth_ack()).code == Code.AUTH
    assert ours.data_to_send() == b""


def test_a_link_no_of_0_begins_a_session() -> None:
    theirs = meet(client(link_no=0), server())
    assert theirs.claim is not None
    assert theirs.claim.link_no == 0


def test_a_server_that_chooses_a_version_that_was_not_offered_is_left() -> None:
    assert failure(client(), by_hand.hello_ack(version=2)).code == Code.VERSION


def test_an_unknown_field_below_128_ends_the_link() -> None:
    theirs = server()
    for number in (0, 9, 11, 127):
        error = failure(server(), by_hand.hello(tlvs=by_hand.tlv(number, b"")))
        assert error.code == Code.VERSION
        error = failure(client(), by_hand.hello_ack(tlvs=by_hand.tlv(number, b"")))
        assert error.code == Code.VERSION
    failure(theirs, by_hand.hello(tlvs=by_hand.tlv(9, b"")))
    assert theirs.data_to_send() == by_hand.go_away(Code.VERSION, 0, "1-1")


def test_an_unknown_field_from_128_on_is_ignored_but_proved() -> None:
    hello = by_hand.hello(NONCE_C, by_hand.tlv(128, b"new") + by_hand.tlv(255, b""))
    theirs = server()
    theirs.receive(hello)
    script = transcript(hello, theirs.data_to_send(), PLAIN_BINDING)
    fields = by_hand.tlv(200, b"newer")
    before = by_hand.auth(NAME, 1, b"\0", fields, b"")[8:]
    proof = client_proof(secrets_of(NAME, TOKEN), script, before)
    theirs.receive(by_hand.auth(NAME, 1, b"\0", fields, proof))
    assert theirs.claim is not None
    assert theirs.claim.peer_terms == Terms(agent="")
    assert theirs.claim.agreed.resume_s == DEFAULT_RESUME_S


def answer_by_hand(
    tlvs: bytes = b"",
    count: int = 0,
    resumed: int = 0,
    session_id: bytes = SESSION_ID,
    resume: ResumeState | None = None,
) -> RemoteLinkError | HandshakeResult:
    """Let a server that knows the verifier say what no good server says."""
    ours = client(resume=resume)
    hello_c, hello_s = ours.data_to_send(), by_hand.hello_ack()
    ours.receive(hello_s)
    auth = ours.data_to_send()
    script = transcript(hello_c, hello_s, PLAIN_BINDING)
    before = by_hand.auth_ack(session_id, count, resumed, tlvs, b"")[8:]
    proof = server_proof(USERS[NAME].server_key, script, auth[-32:], before)
    try:
        ours.receive(by_hand.auth_ack(session_id, count, resumed, tlvs, proof))
    except RemoteLinkError as error:
        return error
    assert ours.result is not None
    return ours.result


def test_a_proved_answer_still_has_to_make_sense() -> None:
    state = ResumeState(SESSION_ID, 5, b"r" * 32)
    good = answer_by_hand(resumed=1, count=7, resume=state)
    assert isinstance(good, HandshakeResult)
    assert good.replay_limit == 1 << 20
    for bad in (
        answer_by_hand(resumed=1),
        answer_by_hand(resumed=1, session_id=b"x" * 16, resume=state),
        answer_by_hand(resumed=2, resume=state),
        answer_by_hand(count=1),
        answer_by_hand(by_hand.tlv(1, b"xyz")),
        answer_by_hand(by_hand.tlv(3, b"")),  # no token was said
    ):
        assert isinstance(bad, RemoteLinkError)
        assert bad.code == Code.PROTOCOL
    later = answer_by_hand(by_hand.tlv(4, b""))
    assert isinstance(later, RemoteLinkError)
    assert later.code == Code.VERSION


def test_the_smaller_resume_time_and_replay_limit_hold() -> None:
    ours = client(resume_s=0, replay_limit=1 << 30)
    results = finish(ours, meet(ours, server(resume_s=9, replay_limit=77)))
    assert {(result.resume_s, result.replay_limit) for result in results} == {(0, 77)}
    silent = answer_by_hand()
    assert isinstance(silent, HandshakeResult)
    assert silent.resume_s == 60
    assert DEFAULT_REPLAY_LIMIT > silent.replay_limit == 1 << 20


@given(st.binary(max_size=300))
@example(b"\xff" * 64)
@example(UP[:-1] + b"x")
@example(DOWN)
def test_any_bytes_raise_only_the_remote_link_error(data: bytes) -> None:
    for side in (server(), client()):
        try:
            side.receive(data)
        except RemoteLinkError:
            side.data_to_send()


near_link_starts = st.lists(
    st.sampled_from([UP, DOWN])
    | st.builds(by_hand.frame, st.sampled_from([5, 6, 9]), st.binary(max_size=120))
    | st.builds(by_hand.hello, st.just(bytes(32)), st.binary(max_size=40))
    | st.builds(by_hand.hello_ack, st.just(bytes(32)), st.binary(max_size=40))
    | st.builds(
        by_hand.auth,
        st.binary(max_size=9),
        st.integers(0, 9),
        st.binary(max_size=60),
        st.binary(max_size=40),
    )
    | st.builds(by_hand.go_away, st.integers(0, 99), st.just(1), st.binary(max_size=9)),
    max_size=4,
).map(b"".join)


@given(near_link_starts, st.lists(st.integers(0, 4096), max_size=4))
def test_frames_that_are_almost_right_raise_only_the_remote_link_error(
    data: bytes, places: list[int]
) -> None:
    for side in (server(), client()):
        for piece in cut(data, places):
            try:
                side.receive(piece)
            except RemoteLinkError:
                break


# Hints -----------------------------------------------------------------------------


def test_a_refused_login_says_what_to_do() -> None:
    error = failure(client(), by_hand.go_away(Code.AUTH, 0, "\x1b[2Jnonsense"))
    assert NAME in error.what
    assert "token" in error.cause
    assert error.fix.startswith("tunnel join")
    assert "nonsense" not in error.what + error.cause + error.fix


def test_a_server_that_is_overrun_says_how_long_to_wait() -> None:
    error = failure(client(), by_hand.go_away(Code.CALM, 45))
    assert error.code == Code.CALM
    assert "45 s" in error.what
    assert error.retry_after_s == 45


def test_what_the_server_says_stays_in_one_line() -> None:
    error = failure(client(), by_hand.go_away(Code.INTERNAL, 0, "a\nb\x1b"))
    assert error.cause == "a?b?"


# Terms -----------------------------------------------------------------------------


def test_terms_come_back_as_they_were_said() -> None:
    assert read_terms(hello_tlvs(CLIENT_TERMS, client=True)) == CLIENT_TERMS
    assert read_terms(hello_tlvs(SERVER_TERMS, client=False)) == SERVER_TERMS
    assert 8 not in hello_tlvs(CLIENT_TERMS, client=False)


def test_what_is_not_said_has_its_default() -> None:
    assert read_terms({}) == Terms(agent="")


def test_a_peer_that_would_take_larger_frames_gets_ours() -> None:
    assert read_terms({1: by_hand.u32(0xFFFF_FFFF)}).max_frame == MAX_FRAME_BYTES
    assert read_terms({1: by_hand.u32(MIN_FRAME_BYTES)}).max_frame == MIN_FRAME_BYTES


@pytest.mark.parametrize(
    "tlvs",
    [
        {1: by_hand.u32(MIN_FRAME_BYTES - 1)},
        {1: by_hand.u16(0xFFFF)},
        {2: by_hand.u32(16_383)},
        {2: by_hand.u32(1 << 31)},
        {3: b""},
        {4: by_hand.u32(1)},
        {5: by_hand.u16(0)},
        {6: bytes(5)},
        {7: b"a" * 65},
        {7: b"\xff"},
        {8: bytes(15)},
        {10: by_hand.u32(0)},
    ],
)
def test_a_value_out_of_its_range_is_the_peers_fault(tlvs: dict[int, bytes]) -> None:
    with pytest.raises(RemoteLinkError) as caught:
        read_terms(tlvs)
    assert caught.value.code == Code.PROTOCOL


@pytest.mark.parametrize(
    "tlvs", [{2: by_hand.u32(16_384)}, {2: by_hand.u32((1 << 31) - 1)}, {7: b"a" * 64}]
)
def test_the_edges_of_a_range_are_in_it(tlvs: dict[int, bytes]) -> None:
    read_terms(tlvs)


def test_an_agent_cannot_break_a_log_line() -> None:
    assert read_terms({7: b"evil\n\x1b[31m\0"}).agent == "evil??[31m?"


def test_a_long_agent_is_cut_between_characters() -> None:
    assert (
        hello_tlvs(Terms(agent="aü" * 40), client=False)[7]
        == ("aü" * 21 + "a").encode()
    )


# Secrets -------------------------------------------------------------------------


def test_no_secret_shows_in_a_repr() -> None:
    secrets = secrets_of(NAME, TOKEN)
    result, _ = first_link()
    state = ResumeState(SESSION_ID, 0, result.resume_secret)
    claim = meet(client(resume=state), server()).claim
    assert repr(secrets) == "Secrets(***)"
    assert repr(secrets.verifier) == "Verifier(***)"
    for shown in (repr(result), repr(state), repr(claim)):
        assert repr(result.resume_secret) not in shown


def test_names_and_tokens_have_their_sizes() -> None:
    for name, token in (("", TOKEN), ("ü" * 128, TOKEN), (NAME, TOKEN + b"x")):
        with pytest.raises(UsageError):
            client(name=name, token=token)
    ours = client(name="ü" * 127)
    users = {"ü" * 127: verifier_of("ü" * 127, TOKEN)}
    finish(ours, meet(ours, server(lookup=users.get)))


@pytest.mark.parametrize(
    ("kind", "name", "size", "least", "most"),
    [
        (1, "max_frame", 4, MIN_FRAME_BYTES, MAX_FRAME_BYTES),
        (2, "initial_window", 4, 16_384, (1 << 31) - 1),
        (3, "max_streams", 4, 0, (1 << 32) - 1),
        (4, "max_datagram", 2, 0, 65_535),
        (5, "idle_ping_s", 2, 1, 65_535),
        (6, "capabilities", 4, 0, (1 << 32) - 1),
        (10, "opens_per_s", 4, 1, (1 << 32) - 1),
    ],
)
def test_a_field_of_terms_may_have_each_end_of_its_range_and_no_more(
    kind: int, name: str, size: int, least: int, most: int
) -> None:
    for value in (least, most):
        terms = read_terms({kind: value.to_bytes(size, "big")})
        assert getattr(terms, name) == value
    if least:
        with pytest.raises(RemoteLinkError):
            read_terms({kind: (least - 1).to_bytes(size, "big")})
    for other in (size - 1, size + 1):
        with pytest.raises(RemoteLinkError):
            read_terms({kind: least.to_bytes(other, "big")})


# A token of the machine's own --------------------------------------------------------

OWN = verifier_of(NAME, b"o" * 32)
TERMS = Terms()
TAKES = Terms(capabilities=CAN_OWN)


def own_login(
    taken: Terms, own: Verifier | None = OWN, *, accept: bool = True
) -> tuple[ClientHandshake, ServerHandshake]:
    """Let a client come with a token of its own to a server that takes it, or not."""
    ours = ClientHandshake(NAME, TOKEN, TERMS, bytes(32), PLAIN_BINDING, own=own)
    theirs = ServerHandshake(taken, bytes(32), PLAIN_BINDING, USERS.get, DUMMY)
    theirs.receive(ours.data_to_send())
    ours.receive(theirs.data_to_send())
    theirs.receive(ours.data_to_send())
    theirs.accept(bytes(16), 0, resumed=False, own=accept)
    return ours, theirs


def test_the_verifier_of_an_own_token_goes_to_a_server_that_takes_it() -> None:
    ours, theirs = own_login(TAKES)
    assert theirs.claim is not None
    assert theirs.claim.own == OWN
    ours.receive(theirs.data_to_send())
    assert ours.result is not None
    assert ours.result.own_taken


def test_no_other_server_gets_it_or_may_say_that_it_took_it() -> None:
    for terms, own in ((TERMS, OWN), (TAKES, None)):
        ours, theirs = own_login(terms, own)
        assert theirs.claim is not None
        assert theirs.claim.own is None
        with pytest.raises(RemoteLinkError) as caught:
            ours.receive(theirs.data_to_send())
        assert caught.value.code is Code.PROTOCOL
        ours, theirs = own_login(terms, own, accept=False)
        ours.receive(theirs.data_to_send())
        assert ours.result is not None
        assert not ours.result.own_taken


def test_a_login_works_with_either_token_and_with_no_third() -> None:
    for token, whose in ((TOKEN, USERS[NAME]), (b"o" * 32, OWN), (b"x" * 32, None)):
        ours = ClientHandshake(NAME, token, TERMS, bytes(32), PLAIN_BINDING)
        theirs = ServerHandshake(
            TERMS, bytes(32), PLAIN_BINDING, USERS.get, DUMMY,
            lookup_own={NAME: OWN}.get,
        )  # fmt: skip
        theirs.receive(ours.data_to_send())
        ours.receive(theirs.data_to_send())
        with nullcontext() if whose else pytest.raises(RemoteLinkError):
            theirs.receive(ours.data_to_send())
        assert (theirs.claim.verifier if theirs.claim else None) == whose


@pytest.mark.parametrize("size", [0, 63, 65])
def test_an_own_token_of_another_size_breaks_the_protocol(size: int) -> None:
    class Odd(Verifier):
        def pack(self) -> bytes:
            return bytes(size)

    with pytest.raises(RemoteLinkError) as caught:
        own_login(TAKES, Odd(b"", b""))
    assert caught.value.code is Code.PROTOCOL


@pytest.mark.parametrize("name", [NAME, "nobody"])
def test_a_login_costs_two_proofs_whoever_it_is(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked: list[Verifier] = []

    def check(verifier: Verifier, *rest: bytes) -> bool:
        checked.append(verifier)
        return is_client_proof(verifier, *rest)

    monkeypatch.setattr("tunnel.proto.handshake.is_client_proof", check)
    ours = ClientHandshake(name, b"x" * 32, TERMS, bytes(32), PLAIN_BINDING)
    theirs = ServerHandshake(TERMS, bytes(32), PLAIN_BINDING, USERS.get, DUMMY)
    theirs.receive(ours.data_to_send())
    ours.receive(theirs.data_to_send())
    with pytest.raises(RemoteLinkError):
        theirs.receive(ours.data_to_send())
    assert len(checked) == 2
