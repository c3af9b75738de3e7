"""Secrets, join lines, the server's identity, TLS contexts, and the files behind them.

Never prints a secret, and never reads one from a file that other users can read. Proofs
made from tokens are the business of ``proto.handshake``.

    Secret, make_token          a text that does not show itself
    JoinLine, parse_join        what a person carries from the server to the client
    read_private … client_id    files in the state folder
    Identity, pin_of            the server's key and certificate
    *_tls_context               TLS 1.3, nothing older, no tickets
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import hmac
import ipaddress
import os
import re
import secrets
import shlex
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final, NoReturn
from urllib.parse import quote, unquote

from tunnel.addresses import host_of
from tunnel.errors import Code, StateError, TlsError, UsageError
from tunnel.platform.files import (
    lock_file,
    lock_holder,
    open_file,
    open_lockable,
    read_at,
    set_mode,
    sync_folder,
)
from tunnel.platform.process import user_id

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

ALPN: Final = "prot/1"
DEFAULT_PORT: Final = 7443
TOKEN_BYTES: Final = 32
"""128 bits: what is sent is proof against guessing at home (protocol.md#auth)."""
PIN_BYTES: Final = 32
MAX_NAME_BYTES: Final = 255
VALID_DAYS: Final = 36_500
"""The pin, not a date, decides whether a key is trusted; expiry would only hurt."""
CLIENT_ID_BYTES: Final = 16
TRUST_FILES: Final = "TUNNEL_TRUST_FILES"
"""The environment variable that has secrets read whoever may read or write them: for
mounts whose owner and mode nobody can choose. ``yes``, ``true`` or ``1``."""

_JOIN_FORM: Final = "tunnel://NAME:TOKEN@HOST:PORT/#PIN"
_PORT: Final = re.compile(r"[0-9]{1,5}")
_SCOPE: Final = re.compile(r"[\w.-]*")
_BASE64URL: Final = re.compile(r"[A-Za-z0-9_-]+")
_DAMAGED: Final = "the file is damaged"


# --- a text that does not show itself


class Secret:
    """A text that prints as ``***``; ``reveal`` gives it, ``==`` is constant-time."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """The text itself, for the one place that needs it."""
        return self._text

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return hmac.compare_digest(_bytes_of(self), _bytes_of(other))

    def __hash__(self) -> int:
        return hash(self._text)

    def __repr__(self) -> str:
        return "***"


def _bytes_of(secret: Secret) -> bytes:
    return secret.reveal().encode(errors="surrogatepass")


def make_token() -> Secret:
    """A new token: 32 random bytes as base64url without padding."""
    return Secret(_to_base64url(secrets.token_bytes(TOKEN_BYTES)))


def _to_base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _from_base64url(text: str) -> bytes:
    """The bytes of unpadded base64url; ``b""`` for anything else."""
    if not _BASE64URL.fullmatch(text):
        return b""
    try:
        return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except binascii.Error:
        return b""


# --- join lines


@dataclass(frozen=True, slots=True)
class JoinLine:
    """All that a client needs to reach a server and to be let in, in one line of text.

    ``pin`` is the server's (``pin_of``); None means: verify the certificate against the
    system's authorities and the host name. ``plain`` is a link without TLS or pin.
    """

    name: str
    token: Secret
    host: str
    port: int
    pin: str | None
    plain: bool

    def render(self) -> str:
        """The line itself, **with the token**; ``parse_join`` reads it."""
        scheme = "tunnel+plain" if self.plain else "tunnel"
        name = quote(self.name, safe="")
        host = f"[{self.host}]" if ":" in self.host else self.host
        pin = f"#{self.pin}" if self.pin else ""
        return f"{scheme}://{name}:{self.token.reveal()}@{host}:{self.port}/{pin}"


def parse_join(text: str) -> JoinLine:
    """Read a join line; white space around it is ignored, the port may be absent.

    Raises:
        UsageError: with what is wrong. No message contains any part of the line that
            could be the token, also where the parts stand in the wrong order.
    """
    scheme, separator, rest = text.strip().partition("://")
    if not separator or scheme not in ("tunnel", "tunnel+plain"):
        _refuse("it does not begin with tunnel:// or tunnel+plain://")
    rest, _, pin = rest.partition("#")
    authority, _, path = rest.partition("/")
    user, at, where = authority.rpartition("@")
    if not at:
        _refuse("there is no NAME:TOKEN@ before the host")
    if path:
        _refuse("there is a path after the host and the port")
    name, token = _parse_user(user)
    host, port = _parse_where(where)
    plain = scheme == "tunnel+plain"
    if plain and pin:
        _refuse("a plain link has no key to pin", "drop #PIN, or use tunnel://")
    if pin and not _is_pin(pin):
        _refuse(f"the PIN after # is not the base64url of {PIN_BYTES} bytes")
    return JoinLine(name, token, host, port, pin or None, plain)


def _parse_user(user: str) -> tuple[str, Secret]:
    quoted, colon, token = user.partition(":")
    if not colon:
        _refuse("the token is missing", "write NAME:TOKEN before the @")
    if len(_from_base64url(token)) != TOKEN_BYTES:
        _refuse(
            f"the token is not the base64url of {TOKEN_BYTES} bytes",
            "copy the whole line that `tunnel serve` or `tunnel invite NAME` printed",
        )
    try:
        name = unquote(quoted, errors="strict")
    except UnicodeDecodeError:
        _refuse("the name is not UTF-8")
    if not name.isprintable() or not 0 < len(name.encode()) <= MAX_NAME_BYTES:
        _refuse(f"the name is not 1 to {MAX_NAME_BYTES} bytes of printable text")
    return name, Secret(token)


def _parse_where(where: str) -> tuple[str, int]:
    if where.startswith("["):
        host, bracket, after = where[1:].partition("]")
        if not bracket or not _is_ipv6(host) or (after and after[0] != ":"):
            _refuse("what follows the @ is not [IPv6 ADDRESS]:PORT")
        port = after[1:] if after else str(DEFAULT_PORT)
    else:
        host, colon, port = where.partition(":")
        port = port if colon else str(DEFAULT_PORT)
        if ":" in port:
            _refuse("what follows the @ is not HOST:PORT", "put IPv6 addresses in [ ]")
        known = host_of(host)
        if known is None:
            _refuse(f"{host!r} is not a host name or an address")
        host = known
    if not _PORT.fullmatch(port) or not 0 < int(port) < 65_536:
        _refuse(f"the port {port[:8]!r} is not a number from 1 to 65535")
    return host, int(port)


def _is_ipv6(host: str) -> bool:
    address, _, scope = host.partition("%")
    try:
        ipaddress.IPv6Address(address)
    except ValueError:
        return False
    return _SCOPE.fullmatch(scope) is not None


def _is_pin(text: str) -> bool:
    data = _from_base64url(text)
    return len(data) == PIN_BYTES and _to_base64url(data) == text


def _refuse(cause: str, fix: str = f"a join line looks like {_JOIN_FORM}") -> NoReturn:
    raise UsageError("this join line cannot be used", cause, fix)


# --- private files


def read_private(path: Path) -> str:
    """The text of a file that is ours alone, or that only root could have written.

    The latter is how Docker, Kubernetes and systemd mount secrets, whoever may read
    them there. A symbolic link is followed; of whom the folders are does not matter.

    Raises:
        StateError: it is absent, unreadable, not UTF-8, not ours or open to others.
    """
    try:
        with path.open(encoding="utf-8") as file:
            _insist_private(path, os.fstat(file.fileno()))
            return file.read()
    except OSError as error:
        raise _unusable(path, "read", error) from error
    except UnicodeDecodeError as error:
        raise StateError(f"cannot use {path}", _DAMAGED) from error


def _insist_private(path: Path, status: os.stat_result) -> None:
    user = user_id()
    if user is None or (status.st_uid == 0 and not status.st_mode & 0o022):
        return
    if os.environ.get(TRUST_FILES, "").lower() in ("1", "yes", "true"):
        return
    name = shlex.quote(str(path))
    switch = f"or set {TRUST_FILES}=yes if you trust whoever can read and write it"
    if status.st_uid != user:
        ours = f"chown {user} {name}"
        # Root would take it away from a service that needs it.
        way = ours if user else f"run this as user {status.st_uid}"
        fix = f"{way}, {switch}"
        raise StateError(f"will not use {path}", "it belongs to another user", fix)
    if status.st_mode & 0o077:
        cause = f"others may use it: its mode is {status.st_mode & 0o777:03o}"
        raise StateError(f"will not use {path}", cause, f"chmod 600 {name}, {switch}")


def write_private(path: Path, text: str) -> None:
    """Write a file with mode 0600, whole or not at all; an old one is replaced.

    Missing folders are made with mode 0700; existing ones stay as they are.

    Raises:
        StateError: it cannot be written; what was there before is still there.
    """
    try:
        _make_private_dir(path.parent)
        _replace(path, text.encode())
    except OSError as error:
        raise _unusable(path, "write", error) from error


def _make_private_dir(folder: Path) -> None:
    """Make a folder and those above it, each with mode 0700 whatever the umask is."""
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        if not folder.is_dir():
            raise
        return
    except FileNotFoundError:
        if folder.parent == folder:
            raise
        _make_private_dir(folder.parent)
        folder.mkdir(mode=0o700, exist_ok=True)  # in /proc it says "not found" again
    folder.chmod(0o700)


def _open_private(path: Path, flags: int) -> int:
    """Open a file; one that is made has mode 0600 whatever the umask is."""
    descriptor = open_file(path, flags | os.O_CREAT, 0o600)
    try:
        set_mode(descriptor, 0o600)
        return descriptor
    except BaseException:
        os.close(descriptor)
        raise


def _replace(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        with open(_open_private(temporary, os.O_WRONLY | os.O_EXCL), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)  # or the rename may not outlive a power cut


def _unusable(path: Path, verb: str, error: OSError) -> StateError:
    return StateError(f"cannot {verb} {path}", error.strerror or str(error))


# --- what the state folder keeps


def owner_token(state_dir: Path) -> Secret:
    """The token in STATE/join, or a new one where there is no such file.

    A new token is kept only when ``write_join`` saves it.

    Raises:
        StateError: the file is there but damaged, not ours, or open to others.
    """
    join = kept_join(state_dir)
    return make_token() if join is None else join.token


def kept_join(state_dir: Path) -> JoinLine | None:
    """The line in STATE/join, None where there is no such file.

    Raises:
        StateError: the file is there but damaged, not ours, or open to others.
    """
    path = state_dir / "join"
    if not exists(path):
        return None
    try:
        return parse_join(read_private(path))
    except UsageError as error:
        fix = f"rm {shlex.quote(str(path))}, and a new token is made"
        raise StateError(f"cannot use {path}", error.cause, fix) from None


def write_join(state_dir: Path, join: JoinLine) -> None:
    """Save the owner's join line as STATE/join, mode 0600; raises StateError.

    A line that stands there already is not written again: the folder may be read-only.
    """
    path, text = state_dir / "join", join.render() + "\n"
    if not (exists(path) and read_private(path) == text):
        write_private(path, text)


@contextlib.contextmanager
def sole_server(state_dir: Path) -> Iterator[None]:
    """Keep other servers off the state folder while the context is open.

    The kernel's lock of the folder itself: it needs no right to write, and ends with
    the process however that ends. Where there are no locks, nobody is kept off.

    Raises:
        StateError: another process has it, or the folder cannot be made.
    """
    try:
        if not exists(state_dir):
            _make_private_dir(state_dir)
        folder = open_lockable(state_dir)
    except OSError as error:
        raise _unusable(state_dir, "use", error) from error
    try:
        with contextlib.suppress(OSError):
            try:
                lock_file(folder)
            except BlockingIOError:
                raise StateError(
                    f"another server uses {state_dir}",
                    f"{_holder_of(folder)} has its lock; two would share one key and "
                    "one token",
                    "stop that one, or give this one a folder of its own: --state DIR",
                ) from None
        yield
    finally:
        os.close(folder)


def _holder_of(descriptor: int) -> str:
    """Say which process holds the lock of a file, if the kernel tells."""
    holder = lock_holder(descriptor)
    return "another process" if holder is None else f"process {holder}"


class ClientId:
    """What names this client to its server, and where it is kept.

    Args:
        value: 16 bytes.
        lock: the descriptor of its file; None where nothing can be written.
    """

    def __init__(self, value: bytes, lock: int | None = None) -> None:
        self.value = value
        self._lock = lock

    def renew(self) -> bytes:
        """Take another id, for this one is somebody else's too; kept if that works."""
        self.value = secrets.token_bytes(CLIENT_ID_BYTES)
        if self._lock is not None:
            with contextlib.suppress(OSError):
                _keep_id(self._lock, self.value)
        return self.value


@contextlib.contextmanager
def client_id(state_dir: Path | None) -> Iterator[ClientId]:
    """What names this client to its server while the context is open.

    STATE/clients/N.id are made once and kept; a process holds the lock of the first
    that is free. So two processes never share an id, and the successor of a killed one
    gets the same id again, and with it the same public ports (protocol.md#whose-port).
    Where nothing can be written, or no folder is known, it is random and forgotten.
    """
    lock: int | None = None
    value = secrets.token_bytes(CLIENT_ID_BYTES)
    if state_dir is not None:
        with contextlib.suppress(OSError):
            lock, value = _take_id(state_dir / "clients")
    try:
        yield ClientId(value, lock)
    finally:
        if lock is not None:
            os.close(lock)


def _take_id(folder: Path) -> tuple[int, bytes]:
    """The first id that nobody holds, and the descriptor that holds its lock."""
    _make_private_dir(folder.parent)
    _make_private_dir(folder)
    number = 0
    while True:
        number += 1
        path = folder / f"{number}.id"
        lock = _open_private(path, os.O_RDWR)
        try:
            lock_file(lock)
            return lock, _kept_id(lock)
        except BlockingIOError:
            os.close(lock)
        except BaseException:
            os.close(lock)
            raise


def _kept_id(lock: int) -> bytes:
    """Read the id; a new file, or one whose writer was killed, gets a new one."""
    kept = read_at(lock, CLIENT_ID_BYTES + 1, 0)
    if len(kept) == CLIENT_ID_BYTES:
        return kept
    client = secrets.token_bytes(CLIENT_ID_BYTES)
    _keep_id(lock, client)
    return client


def _keep_id(lock: int, client: bytes) -> None:
    os.ftruncate(lock, 0)
    os.lseek(lock, 0, os.SEEK_SET)
    os.write(lock, client)
    os.fsync(lock)


def short_id(client_id: bytes) -> str:
    """Write a client id for logs: enough to tell a user's clients apart."""
    return client_id[:4].hex()


def exists(path: Path) -> bool:
    """Like ``Path.exists``, but a folder that may not be searched is no "no".

    Raises:
        StateError: nobody can tell.
    """
    try:
        path.stat()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise _unusable(path, "read", error) from error
    return True


# --- the server's identity


@dataclass(frozen=True, slots=True)
class Identity:
    """The server's key and certificate, both in one PEM file."""

    pem_path: Path
    pin: str
    certificate_sha256: bytes
    """Of the leaf certificate: what the proofs of a TLS link are bound to."""

    @property
    def fingerprint(self) -> str:
        """The pin as a person sees it."""
        return f"SHA256:{self.pin}"


def load_or_make_identity(state_dir: Path) -> tuple[Identity, bool]:
    """STATE/identity.pem, made at the first start; True when it was made now.

    Of several processes that start at once one makes it and all load the same.

    Raises:
        StateError: the file is damaged, not ours or open to others, or the folder
            cannot be written.
    """
    path = state_dir / "identity.pem"
    created = not exists(path) and _create_private(path, _make_identity)
    return _load_identity(path), created


def _create_private(path: Path, make: Callable[[], str]) -> bool:
    """Write a file that is not there, whole; False when somebody else was first."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.new")
    write_private(temporary, make())
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    except OSError:
        # No hard links here: a server is alone in its folder, so nobody was first.
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return True


def _load_identity(path: Path) -> Identity:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        load_pem_private_key,
    )
    from cryptography.x509 import load_pem_x509_certificate

    pem = read_private(path).encode()
    try:
        key = load_pem_private_key(pem, password=None)
        certificate = load_pem_x509_certificate(pem)
        if key.public_key() != certificate.public_key():
            raise ValueError("the key and the certificate are no pair")
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        fix = f"restore it, or mv {shlex.quote(str(path))} away: clients need a new pin"
        raise StateError(f"cannot use {path}", _DAMAGED, fix) from error
    der = certificate.public_bytes(Encoding.DER)
    return Identity(path, pin_of(der), hashlib.sha256(der).digest())


def _make_identity() -> str:
    """A new P-256 key and a certificate that it signs itself, as PEM."""
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
    key_pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    pem = key_pem + certificate.public_bytes(serialization.Encoding.PEM)
    return pem.decode()


def pin_of(certificate_der: bytes) -> str:
    """The pin of a certificate's public key: base64url of SHA-256 of its SPKI.

    Raises:
        TlsError: the peer's certificate cannot be read.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
    from cryptography.x509 import load_der_x509_certificate

    try:
        key = load_der_x509_certificate(certificate_der).public_key()
    except (ValueError, UnsupportedAlgorithm) as error:
        what = "cannot read the server's certificate"
        raise TlsError(Code.AUTH, what, str(error)) from error
    spki = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return _to_base64url(hashlib.sha256(spki).digest())


# --- TLS


def server_tls_context(identity: Identity) -> ssl.SSLContext:
    """TLS 1.3 with the server's certificate; no tickets, so no 0-RTT either.

    X25519 is the only key exchange, or P-256 where that cannot be chosen: with a large
    finite field, which a stranger may offer alone, one first message would cost 0.1 s.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    if not exchanges_only(context, "X25519"):
        exchanges_only(context, "prime256v1")
    context.num_tickets = 0
    context.load_cert_chain(identity.pem_path)
    return _ours(context)


def exchanges_only(context: ssl.SSLContext, curve: str) -> bool:
    """Have a server take this key exchange alone; False where that cannot be had.

    Python as Debian 12 has it, and any above OpenSSL 1.1.1, knows only curves that
    were there before X25519.
    """
    try:
        context.set_ecdh_curve(curve)  # one: CPython 3.11 takes no list
    except ssl.SSLError:
        return False
    return True


def client_tls_context(pin: str | None) -> ssl.SSLContext:
    """TLS 1.3 towards a server whose key is pinned, or else verified as on the web.

    With a pin the context itself **verifies nothing**: after the handshake the caller
    compares ``pin_of(peer certificate)`` with the pin, before it sends a byte.
    """
    if pin is None:
        return _ours(ssl.create_default_context())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return _ours(context)


def _ours(context: ssl.SSLContext) -> ssl.SSLContext:
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols([ALPN])
    return context
