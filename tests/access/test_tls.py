from __future__ import annotations

import contextlib
import ssl

import pytest
from support.certs import only_curves_before_x25519

from tunnel.access.identity import Identity, load_or_make_identity, pin_of
from tunnel.access.tls import ALPN, client_tls_context, server_tls_context


@pytest.fixture(scope="module")
def identity(tmp_path_factory: pytest.TempPathFactory) -> Identity:
    return load_or_make_identity(tmp_path_factory.mktemp("identity"))[0]


def shake_hands(
    client: ssl.SSLContext, server: ssl.SSLContext
) -> tuple[ssl.SSLObject, ssl.SSLObject]:
    """Both ends after their handshake over memory; raises what a handshake raises."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(to_client, to_server, server_hostname="tunnel"),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    for _ in range(4):  # one more where the server asks for another key exchange
        for end in ends:
            with contextlib.suppress(ssl.SSLWantReadError):
                end.do_handshake()
    return ends[0], ends[1]


def test_a_pinned_handshake_is_tls_1_3_with_our_alpn_and_shows_the_pin(
    identity: Identity,
) -> None:
    client, server = shake_hands(
        client_tls_context(identity.pin), server_tls_context(identity)
    )
    der = client.getpeercert(binary_form=True)
    assert der is not None
    assert pin_of(der) == identity.pin
    for end in (client, server):
        assert end.version() == "TLSv1.3"
        assert end.selected_alpn_protocol() == ALPN


def test_the_server_sends_no_session_ticket(identity: Identity) -> None:
    client, server = shake_hands(
        client_tls_context(identity.pin), server_tls_context(identity)
    )
    server.write(b"x")
    assert client.read(1) == b"x"
    assert client.session is None or not client.session.has_ticket


def test_without_a_pin_an_unknown_authority_is_refused(
    identity: Identity,
) -> None:
    client = client_tls_context(None)
    assert client.check_hostname
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(client, server_tls_context(identity))


def test_a_key_exchange_that_costs_the_server_much_is_refused(
    identity: Identity,
) -> None:
    client = client_tls_context(identity.pin)
    client.set_ecdh_curve("secp521r1")
    with pytest.raises(ssl.SSLError, match=r"NO_SUITABLE|NO_SHARED|HANDSHAKE_FAILURE"):
        shake_hands(client, server_tls_context(identity))


def test_where_python_cannot_choose_x25519_p256_is_taken_and_nothing_costly(
    identity: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    only_curves_before_x25519(monkeypatch)
    server = server_tls_context(identity)
    client, _ = shake_hands(client_tls_context(identity.pin), server)
    assert client.version() == "TLSv1.3"
    costly = client_tls_context(identity.pin)
    costly.set_ecdh_curve("secp521r1")
    with pytest.raises(ssl.SSLError, match=r"NO_SUITABLE|NO_SHARED|HANDSHAKE_FAILURE"):
        shake_hands(costly, server)


def test_older_tls_is_refused(identity: Identity) -> None:
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname = False
    old.verify_mode = ssl.CERT_NONE
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(ssl.SSLError):
        shake_hands(old, server_tls_context(identity))
