from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from support.private import another, mode_of, own

from tunnel.access import identity as identities
from tunnel.access.files import write_private
from tunnel.access.identity import Identity, client_id, load_or_make_identity, pin_of
from tunnel.errors import Exit, StateError, TlsError
from tunnel.proto.proofs import from_base64url

USER = 1234


def test_two_holders_have_different_ids_and_a_successor_gets_the_first(
    tmp_path: Path,
) -> None:
    with client_id(tmp_path) as one:
        with client_id(tmp_path) as two:
            assert len(one.value) == len(two.value) == 16
            assert one.value != two.value
        with client_id(tmp_path) as again:
            assert again.value == two.value
    with client_id(tmp_path) as first:
        assert first.value == one.value
    assert sorted(os.listdir(tmp_path / "clients")) == ["1.id", "2.id"]
    assert mode_of(tmp_path / "clients" / "1.id") == 0o600


HOLD_AN_ID = """
import pathlib, sys
from tunnel.access.identity import client_id
with client_id(pathlib.Path(sys.argv[1])) as client:
    print(client.value.hex(), flush=True)
    sys.stdin.read()
"""


def test_the_successor_of_a_killed_process_gets_its_id(tmp_path: Path) -> None:
    with another(HOLD_AN_ID, tmp_path) as (process, held):
        with client_id(tmp_path) as mine:
            assert mine.value.hex() != held
        process.kill()
    with client_id(tmp_path) as mine:
        assert mine.value.hex() == held


@pytest.mark.parametrize("torn", [b"", b"short", bytes(17)])
def test_a_torn_id_file_gets_a_new_id_that_stays(tmp_path: Path, torn: bytes) -> None:
    (tmp_path / "clients").mkdir()
    (tmp_path / "clients" / "1.id").write_bytes(torn)
    with client_id(tmp_path) as one:
        assert len(one.value) == 16
    with client_id(tmp_path) as two:
        assert two.value == one.value


def test_an_id_is_random_where_nothing_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("")
    with client_id(path) as one, client_id(path) as two:
        assert len(one.value) == len(two.value) == 16
        assert one.value != two.value


def test_a_file_system_without_locks_leaves_no_descriptor_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(_descriptor: int, _how: int) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    before = os.listdir("/proc/self/fd")
    with client_id(tmp_path) as client:
        assert len(client.value) == 16
        assert len(os.listdir("/proc/self/fd")) == len(before)


def test_a_new_id_is_on_the_disk_before_it_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[bytes] = []
    monkeypatch.setattr(os, "fsync", lambda lock: kept.append(os.pread(lock, 99, 0)))
    with client_id(tmp_path) as client:
        assert kept == [client.value]
    with client_id(tmp_path) as client:
        assert kept == [client.value]


def test_an_id_costs_one_descriptor_however_many_are_taken(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with contextlib.ExitStack() as held:
        for number in range(1, 5):
            held.enter_context(client_id(tmp_path))
            assert len(os.listdir("/proc/self/fd")) == before + number
    assert len(os.listdir("/proc/self/fd")) == before


def test_an_os_error_of_the_body_passes_and_frees_the_id(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="body"), client_id(tmp_path) as one:
        raise OSError("body")
    with client_id(tmp_path) as two:
        assert two.value == one.value


def test_a_renewed_id_is_another_one_that_stays(tmp_path: Path) -> None:
    with client_id(tmp_path) as mine:
        old = mine.value
        new = mine.renew()
        assert new == mine.value != old
        assert len(new) == 16
    with client_id(tmp_path) as again:
        assert again.value == new


def test_an_id_can_be_renewed_where_nothing_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("")
    with client_id(path) as mine:
        assert mine.value != mine.renew()


@pytest.fixture(scope="module")
def identity(tmp_path_factory: pytest.TempPathFactory) -> Identity:
    return load_or_make_identity(tmp_path_factory.mktemp("identity"))[0]


def test_an_identity_is_made_once_and_loaded_after(tmp_path: Path) -> None:
    state = tmp_path / "state"
    made, created = load_or_make_identity(state)
    again, created_again = load_or_make_identity(state)
    assert (created, created_again) == (True, False)
    assert again == made
    assert mode_of(state) == 0o700
    assert mode_of(made.pem_path) == 0o600
    assert os.listdir(state) == ["identity.pem"]


def test_an_identity_made_by_a_racing_process_is_the_one_that_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, identity: Identity
) -> None:
    pem = identity.pem_path.read_text()
    make = identities._make_identity

    def somebody_was_first() -> str:
        write_private(tmp_path / "identity.pem", pem)
        return make()

    monkeypatch.setattr(identities, "_make_identity", somebody_was_first)
    loaded, created = load_or_make_identity(tmp_path)
    assert not created
    assert loaded.pin == identity.pin
    assert os.listdir(tmp_path) == ["identity.pem"]


def test_an_identity_is_made_where_there_are_no_hard_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(_source: Path, _target: Path) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    made, created = load_or_make_identity(tmp_path)
    assert created
    assert load_or_make_identity(tmp_path) == (made, False)
    assert os.listdir(tmp_path) == ["identity.pem"]


def test_a_new_certificate_is_valid_where_clocks_are_late(
    identity: Identity,
) -> None:
    pem = identity.pem_path.read_bytes()
    certificate = x509.load_pem_x509_certificate(pem)
    late = datetime.now(UTC) - timedelta(hours=23)
    assert certificate.not_valid_before_utc < late


def test_the_certificate_is_p256_for_a_hundred_years(
    identity: Identity,
) -> None:
    pem = identity.pem_path.read_bytes()
    certificate = x509.load_pem_x509_certificate(pem)
    der = certificate.public_bytes(serialization.Encoding.DER)
    key = certificate.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    assert isinstance(key.curve, ec.SECP256R1)
    lasts = certificate.not_valid_after_utc - certificate.not_valid_before_utc
    assert lasts.days >= 36_500
    assert certificate.subject.rfc4514_string() == "CN=tunnel"
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert names.value.get_values_for_type(x509.DNSName) == ["tunnel"]
    assert identity.certificate_sha256 == hashlib.sha256(der).digest()
    spki = key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    pinned = from_base64url(identity.pin, 32)
    assert pinned == hashlib.sha256(spki).digest()
    assert pin_of(der) == identity.pin
    assert identity.fingerprint == f"SHA256:{identity.pin}"


def test_an_identity_open_to_others_is_refused_with_its_chmod(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, _ = load_or_make_identity(tmp_path)
    made.pem_path.chmod(0o640)
    own(USER, monkeypatch)
    with pytest.raises(StateError) as caught:
        load_or_make_identity(tmp_path)
    assert caught.value.fix.startswith(f"chmod 600 {made.pem_path}, or set")


def test_a_damaged_identity_is_refused_and_never_replaced(
    tmp_path: Path, identity: Identity
) -> None:
    pem = identity.pem_path.read_text()
    key, _, certificate = pem.partition("-----BEGIN CERTIFICATE")
    other = identities._make_identity().partition("-----BEGIN CERTIFICATE")[2]
    path = tmp_path / "identity.pem"
    for text in ("", key, "x" + certificate, key + "-----BEGIN CERTIFICATE" + other):
        write_private(path, text)
        with pytest.raises(StateError) as caught:
            load_or_make_identity(tmp_path)
        assert caught.value.cause == "the file is damaged"
        assert caught.value.fix
        assert path.read_text() == text


def test_a_certificate_that_cannot_be_read_is_a_tls_error() -> None:
    with pytest.raises(TlsError) as caught:
        pin_of(b"no certificate")
    assert caught.value.exit_status is Exit.TLS


def test_importing_the_module_does_not_import_cryptography() -> None:
    code = "import sys, tunnel.access.identity; print('cryptography' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "False"
