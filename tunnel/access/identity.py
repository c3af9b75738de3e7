"""Who a server and a client are: key, certificate and pin of the one, id of the other.

The only module that uses ``cryptography``, which takes long to import: only where a key
or a certificate is made or read.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shlex
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

from tunnel.access.files import (
    DAMAGED,
    create_private,
    exists,
    make_private_dir,
    open_private,
    read_private,
    rename_private,
    try_lock,
)
from tunnel.access.host_certificates import read_certificate
from tunnel.errors import Code, StateError, TlsError
from tunnel.platform.files import read_at
from tunnel.proto.frames import CLIENT_ID_BYTES
from tunnel.proto.proofs import from_base64url, to_base64url

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


MOST_KEPT: Final = 64
"""Client ids that are read to be asked about; programs of one user that run at once."""
VALID_DAYS: Final = 36_500
"""The pin, not a date, decides whether a key is trusted; expiry would only hurt."""
_NEXT: Final = "identity.next.pem"


# The server's key ------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Identity:
    """The server's key and certificate, both in one PEM file."""

    pem_path: Path
    pin: str
    certificate_sha256: bytes
    """Of the leaf certificate: what the proofs of a TLS link are bound to."""

    @property
    def pin_bytes(self) -> bytes:
        """Return the pin as the protocol says it."""
        raw = from_base64url(self.pin, 32)
        assert raw is not None  # noqa: S101 - pin_of has written it
        return raw

    @property
    def fingerprint(self) -> str:
        """Return the pin as a person sees it."""
        return f"SHA256:{self.pin}"


def load_or_make_identity(state_dir: Path) -> tuple[Identity, bool]:
    """Return the identity in STATE/identity.pem, and whether it was made now.

    It is made at the first start. Of several processes that start at once one makes it
    and all load the same.

    Raises:
        StateError: the file is damaged, not ours or open to others, or the folder
            cannot be written.
    """
    path = state_dir / "identity.pem"
    created = not exists(path) and create_private(path, _make_identity())
    return _load_identity(path), created


def next_identity(state_dir: Path, *, begin: bool) -> Identity | None:
    """Return the identity in STATE/identity.next.pem, which is announced to clients.

    ``begin`` makes it where there is none; raises as ``load_or_make_identity``.
    """
    path = state_dir / _NEXT
    if not exists(path):
        if not begin:
            return None
        create_private(path, _make_identity())
    return _load_identity(path)


def change_identity(state_dir: Path) -> bool:
    """Put the next identity in the place of the old one, which is gone then.

    Return False where there is no next one: it was changed before, or nothing was
    announced. Raises StateError as ``load_or_make_identity``; nothing has changed then.
    """
    path = state_dir / _NEXT
    if not exists(path):
        return False
    _load_identity(path)
    rename_private(path, state_dir / "identity.pem")
    return True


def _load_identity(path: Path) -> Identity:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization
    from cryptography.x509 import load_pem_x509_certificate

    pem = read_private(path).encode()
    try:
        key = serialization.load_pem_private_key(pem, password=None)
        certificate = read_certificate(load_pem_x509_certificate, pem)
        if key.public_key() != certificate.public_key():
            raise ValueError("the key and the certificate are no pair")
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        fix = f"restore it, or mv {shlex.quote(str(path))} away: clients need a new pin"
        raise StateError(f"cannot use {path}", DAMAGED, fix) from error
    der = certificate.public_bytes(serialization.Encoding.DER)
    return Identity(path, pin_of(der), hashlib.sha256(der).digest())


def _make_identity() -> str:
    """Return a new P-256 key and a certificate that it signs itself, as PEM."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "tunnel")])
    yesterday = datetime.now(UTC) - timedelta(days=1)  # clocks differ
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(yesterday)
        .not_valid_after(yesterday + timedelta(days=VALID_DAYS))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("tunnel")]), False)
        .sign(key, hashes.SHA256())
    )
    form, no_password = serialization.Encoding.PEM, serialization.NoEncryption()
    pem = key.private_bytes(form, serialization.PrivateFormat.PKCS8, no_password)
    return (pem + certificate.public_bytes(form)).decode()


def pin_of(certificate_der: bytes) -> str:
    """Return the pin of a certificate's public key: base64url of SHA-256 of its SPKI.

    Raises:
        TlsError: the peer's certificate cannot be read.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
    from cryptography.x509 import load_der_x509_certificate

    try:
        key = read_certificate(load_der_x509_certificate, certificate_der).public_key()
    except (ValueError, UnsupportedAlgorithm) as error:
        what = "cannot read the server's certificate"
        raise TlsError(Code.AUTH, what, str(error)) from error
    spki = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return to_base64url(hashlib.sha256(spki).digest())


# The client's id -------------------------------------------------------------------


@dataclass(slots=True)
class ClientId:
    """What names this client to its server, and where it is kept."""

    value: bytes
    lock: int | None = None
    """The descriptor of its file; None where nothing can be written."""

    def renew(self) -> bytes:
        """Take another id, for this one is somebody else's too; keep it if possible."""
        self.value = secrets.token_bytes(CLIENT_ID_BYTES)
        if self.lock is not None:
            with suppress(OSError):
                _keep_id(self.lock, self.value)
        return self.value


@contextmanager
def client_id(state_dir: Path | None) -> Iterator[ClientId]:
    """Hold the id that names this client to its server while the context is open.

    The files STATE/clients/N.id are made once and kept; a process holds the lock of the
    first that is free. So two processes never share an id, and the successor of a
    killed one gets the same id again, and with it the same public ports
    (protocol.md#whose-port). Where nothing can be written, or no folder is known, the
    id is random and forgotten.
    """
    lock: int | None = None
    value = secrets.token_bytes(CLIENT_ID_BYTES)
    if state_dir is not None:
        with suppress(OSError):
            lock, value = _take_id(state_dir / "clients")
    try:
        yield ClientId(value, lock)
    finally:
        if lock is not None:
            os.close(lock)


def kept_ids(state_dir: Path | None) -> list[bytes]:
    """Return the ids that this user's clients have, or had; none is held for it."""
    found: list[bytes] = []
    if state_dir is not None:
        for number in range(1, MOST_KEPT + 1):
            try:
                raw = (state_dir / "clients" / f"{number}.id").read_bytes()
            except OSError:
                break
            if len(raw) == CLIENT_ID_BYTES:
                found.append(raw)
    return found


def _take_id(folder: Path) -> tuple[int, bytes]:
    """Return the descriptor that locks the first id which nobody holds, and the id."""
    make_private_dir(folder.parent)
    make_private_dir(folder)
    number = 0
    while True:
        number += 1
        lock = open_private(folder / f"{number}.id", os.O_RDWR)
        try:
            if try_lock(lock):
                return lock, _kept_id(lock)
        except BaseException:
            os.close(lock)
            raise
        os.close(lock)


def _kept_id(lock: int) -> bytes:
    """Read the id; a new file, or one whose writer was killed, gets a new one."""
    kept = read_at(lock, CLIENT_ID_BYTES + 1, 0)
    if len(kept) != CLIENT_ID_BYTES:
        kept = secrets.token_bytes(CLIENT_ID_BYTES)
        _keep_id(lock, kept)
    return kept


def _keep_id(lock: int, client: bytes) -> None:
    os.ftruncate(lock, 0)
    os.lseek(lock, 0, os.SEEK_SET)
    os.write(lock, client)
    os.fsync(lock)


def short_id(client_id: bytes) -> str:
    """Write a client id for logs: enough to tell a user's clients apart."""
    return client_id[:4].hex()
