"""The hint: a link that comes to another server finds the one that has its session."""

from __future__ import annotations

import pytest

from tunnel.proto.claims import ResumeState
from tunnel.proto.frames import Terms
from tunnel.proto.handshake import ClientHandshake, ServerHandshake
from tunnel.proto.proofs import PLAIN_BINDING, verifier_of
from tunnel.proto.terms import MAX_HINT_BYTES

TOKEN = bytes(range(32))
NOBODY = verifier_of("nobody", bytes(32))


def client(hint: bytes | None = None) -> ClientHandshake:
    """One that begins a session, or goes on with one that is where the hint says."""
    resume = None if hint is None else ResumeState(b"s" * 16, 0, bytes(32), hint)
    return ClientHandshake("anna", TOKEN, Terms(), b"c" * 32, PLAIN_BINDING, 1, resume)


def server(hint: bytes = b"", away: frozenset[bytes] = frozenset()) -> ServerHandshake:
    return ServerHandshake(
        Terms(),
        b"s" * 32,
        PLAIN_BINDING,
        {"anna": verifier_of("anna", TOKEN)}.get,
        NOBODY,
        hint=hint,
        leads_away=away.__contains__,
    )


def meet(one: ClientHandshake, other: ServerHandshake) -> None:
    """Let both speak until neither has anything to say."""
    while said := one.data_to_send():
        other.receive(said)
        if other.claim is not None and other.result is None:
            other.accept(b"i" * 16, 0, resumed=False)
        one.receive(other.data_to_send())


def test_a_server_that_is_one_of_several_says_where_the_session_is() -> None:
    ours, theirs = client(), server(b"here")
    meet(ours, theirs)
    assert ours.result is not None
    assert ours.result.hint == b"here"


def test_a_server_that_is_alone_says_nothing() -> None:
    ours, theirs = client(), server()
    meet(ours, theirs)
    assert ours.result is not None
    assert ours.result.hint == b""


@pytest.mark.parametrize("cuts", [1, 7, 400])
def test_who_belongs_elsewhere_hears_nothing_and_loses_nothing(cuts: int) -> None:
    hello = client(b"there").data_to_send()
    theirs = server(b"here", frozenset({b"there"}))
    for at in range(0, len(hello), cuts):
        assert not theirs.away
        theirs.receive(hello[at : at + cuts])
    assert theirs.away == b"there"
    assert theirs.heard() == hello
    assert theirs.data_to_send() == b""
    assert theirs.claim is None


def test_what_came_behind_the_hello_passes_on_too() -> None:
    hello = client(b"there").data_to_send()
    theirs = server(b"here", frozenset({b"there"}))
    theirs.receive(hello + b"more")
    assert theirs.heard() == hello + b"more"


@pytest.mark.parametrize("hint", [b"", b"unknown", b"x" * (MAX_HINT_BYTES + 1)])
def test_a_hint_that_leads_nowhere_is_no_hint(hint: bytes) -> None:
    ours, theirs = client(hint), server(b"here", frozenset({b"there"}))
    meet(ours, theirs)
    assert theirs.away == b""
    assert ours.result is not None


def test_who_belongs_to_a_server_that_is_gone_is_answered_here() -> None:
    ours, theirs = client(b"there"), server(b"here", frozenset({b"there"}))
    theirs.receive(ours.data_to_send())
    assert theirs.away == b"there"
    theirs.stay()
    ours.receive(theirs.data_to_send())
    meet(ours, theirs)
    assert ours.result is not None
    assert ours.result.hint == b"here"
