from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import io
import os
import ssl
import stat
import string
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st
from support.certs import only_curves_before_x25519

from tunnel.access import security
from tunnel.access.security import JoinLine, Secret, parse_join
from tunnel.errors import Exit, StateError, TlsError, UsageError
from tunnel.platform import files

if TYPE_CHECKING:
    from collections.abc import Iterator

TOKEN = "dG9rZW4tdGhhdC1ub2JvZHktc2hvdWxkLXNlZS4uLi4"
PIN = "UElOUElOUElOUElOUElOUElOUElOUElOUElOUElOUEk"


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# --- Secret


def test_a_secret_shows_itself_nowhere_but_in_reveal() -> None:
    secret = Secret("hush")
    shown = f"{secret} {secret!s} {secret!r} {[secret]}"
    assert "hush" not in shown
    assert str(secret) == "***"
    assert secret.reveal() == "hush"


def test_secrets_are_equal_when_their_texts_are() -> None:
    assert Secret("ä\udc80") == Secret("ä\udc80")
    assert Secret("a") != Secret("b")
    assert Secret("a") != "a"
    assert len({Secret("a"), Secret("a"), Secret("b")}) == 2


def test_a_token_has_32_random_bytes_without_padding() -> None:
    one, two = security.make_token(), security.make_token()
    assert one != two
    assert len(one.reveal()) == 43
    assert set(one.reveal()) <= set(string.ascii_letters + string.digits + "-_")


# --- join lines

names = st.text(min_size=1, max_size=60).filter(str.isprintable)
tokens = st.binary(min_size=32, max_size=32).map(security._to_base64url)
pins = st.binary(min_size=32, max_size=32).map(security._to_base64url)
hosts = st.one_of(
    st.ip_addresses().map(str),
    st.from_regex(
        r"([a-z0-9]([a-z0-9]{0,9}-?[a-z0-9])?\.){0,3}[a-z]{1,9}", fullmatch=True
    ),
    st.just("fe80::1%eth0"),
)


@st.composite
def join_lines(draw: st.DrawFn) -> JoinLine:
    plain = draw(st.booleans())
    return JoinLine(
        name=draw(names),
        token=Secret(draw(tokens)),
        host=draw(hosts),
        port=draw(st.integers(1, 65_535)),
        pin=None if plain else draw(st.none() | pins),
        plain=plain,
    )


@given(join_lines())
def test_a_rendered_join_line_reads_back_as_itself(join: JoinLine) -> None:
    assert parse_join(join.render()) == join
    assert parse_join(f"  {join.render()}\n") == join


def test_a_join_line_looks_as_documented() -> None:
    join = JoinLine("ann/b", Secret(TOKEN), "2001:db8::1", 7443, PIN, plain=False)
    assert join.render() == f"tunnel://ann%2Fb:{TOKEN}@[2001:db8::1]:7443/#{PIN}"
    plain = dataclasses.replace(join, host="h", pin=None, plain=True)
    assert plain.render() == f"tunnel+plain://ann%2Fb:{TOKEN}@h:7443/"


def test_the_repr_of_a_join_line_hides_its_token() -> None:
    assert TOKEN not in repr(parse_join(f"tunnel://a:{TOKEN}@h:1/#{PIN}"))


@pytest.mark.parametrize("where", ["h", "h/", "[::1]", "[::1]/"])
def test_the_default_port_is_7443_and_the_pin_may_be_absent(where: str) -> None:
    join = parse_join(f"tunnel://a:{TOKEN}@{where}")
    assert (join.port, join.pin, join.plain) == (7443, None, False)


@pytest.mark.parametrize(
    ("line", "cause"),
    [
        ("", "begin"),
        (TOKEN, "begin"),
        ("https://h", "begin"),
        ("tunnel://h:7443/", "NAME:TOKEN@"),
        (f"tunnel://{TOKEN}@h:7443/", "token is missing"),
        ("tunnel://a:@h", "the token is not"),
        ("tunnel://a:c2hvcnQ@h", "32 bytes"),
        (f"tunnel://a:{TOKEN}=@h", "the token is not"),
        (f"tunnel://a:{TOKEN}AA@h", "the token is not"),
        (f"tunnel://:{TOKEN}@h", "name"),
        (f"tunnel://{'a' * 256}:{TOKEN}@h", "name"),
        (f"tunnel://%0a:{TOKEN}@h", "name"),
        (f"tunnel://a\udc80:{TOKEN}@h", "name"),
        (f"tunnel://%ff:{TOKEN}@h", "UTF-8"),
        (f"tunnel://a:{TOKEN}@", "host name"),
        (f"tunnel://a:{TOKEN}@h?x", "host name"),
        (f"tunnel://a:{TOKEN}@h:", "port ''"),
        (f"tunnel://a:{TOKEN}@h:0", "port '0'"),
        (f"tunnel://a:{TOKEN}@h:65536", "port '65536'"),
        (f"tunnel://a:{TOKEN}@h:0074430", "port '0074430'"),
        (f"tunnel://a:{TOKEN}@h:http", "port 'http'"),
        (f"tunnel://a:{TOKEN}@::1:7443/", "not HOST:PORT"),
        (f"tunnel://a:{TOKEN}@[::1:7443/", "IPv6"),
        (f"tunnel://a:{TOKEN}@[::g]:7443/", "IPv6"),
        (f"tunnel://a:{TOKEN}@[::1%e h]:7443/", "IPv6"),
        (f"tunnel://a:{TOKEN}@[::1]7443/", "IPv6"),
        (f"tunnel://a:{TOKEN}@h:1/x#{PIN}", "path"),
        (f"tunnel://a:{TOKEN}@h:1/#{PIN[:-1]}", "PIN"),
        (f"tunnel://a:{TOKEN}@h:1/#{PIN[:-1]}l", "PIN"),
        (f"tunnel+plain://a:{TOKEN}@h:1/#{PIN}", "plain"),
    ],
)
def test_a_faulty_join_line_is_refused_with_its_cause(line: str, cause: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_join(line)
    assert cause in caught.value.cause
    assert caught.value.fix
    assert caught.value.exit_status is Exit.USAGE


def complaint(line: str) -> UsageError | None:
    try:
        parse_join(line)
    except UsageError as error:
        return error
    return None


parts = st.sampled_from(
    [TOKEN, PIN, "tunnel", "://", ":", "@", "/", "#", "a", "7443", "[", "]", "%", "?"]
)


@given(st.lists(parts, max_size=12), st.booleans())
def test_no_complaint_shows_the_token_wherever_it_stands(
    pieces: list[str], whole: bool
) -> None:
    error = complaint("".join(["tunnel://" * whole, *pieces]))
    if error is not None:
        assert TOKEN not in f"{error!r} {error.what} {error.cause} {error.fix}"
        assert error.__cause__ is None


# --- private files

USER = 1234


def own(user: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have all files belong to a user, who is the one that runs us."""
    fstat = os.fstat

    def status_of(descriptor: int) -> os.stat_result:
        fields = list(fstat(descriptor))
        fields[stat.ST_UID] = user
        return os.stat_result(fields)

    monkeypatch.setattr(os, "fstat", status_of)
    monkeypatch.setattr(os, "geteuid", lambda: user)


def test_a_private_file_has_mode_600_in_a_folder_of_mode_700(tmp_path: Path) -> None:
    path = tmp_path / "new" / "state" / "secret"
    security.write_private(path, "ä\n")
    assert security.read_private(path) == "ä\n"
    assert mode_of(path) == 0o600
    assert mode_of(path.parent) == 0o700
    assert os.listdir(path.parent) == ["secret"]


def test_writing_a_private_file_again_replaces_it_and_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_text("old")
    path.chmod(0o644)
    security.write_private(path, "new")
    assert security.read_private(path) == "new"
    assert mode_of(path) == 0o600


def test_a_private_file_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, seen = tmp_path / "secret", []

    def fsync(descriptor: int) -> None:
        is_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        size = None if is_folder else os.fstat(descriptor).st_size
        seen.append((size, path.exists()))

    monkeypatch.setattr(os, "fsync", fsync)
    security.write_private(path, "12345")
    assert seen == [(5, False), (None, True)]


def test_a_private_file_leaves_no_descriptor_open(tmp_path: Path) -> None:
    before = os.listdir("/proc/self/fd")
    security.write_private(tmp_path / "secret", "12345")
    assert os.listdir("/proc/self/fd") == before


def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    path = tmp_path / "secret"
    security.write_private(path, "old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StateError) as caught:
        security.write_private(path, "new")
    assert caught.value.cause == "No space left on device"
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["secret"]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o610])
def test_a_secret_file_open_to_others_is_refused_with_its_chmod(
    tmp_path: Path, mode: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a secret"
    security.write_private(path, "x")
    path.chmod(mode)
    own(USER, monkeypatch)
    with pytest.raises(StateError) as caught:
        security.read_private(path)
    assert caught.value.fix.startswith(f"chmod 600 '{path}', or set TUNNEL_TRUST_FILES")
    assert f"{mode:03o}" in caught.value.cause
    assert caught.value.exit_status is Exit.CONFIGURATION
    monkeypatch.setenv("TUNNEL_TRUST_FILES", "yes")
    assert security.read_private(path) == "x"


@pytest.mark.parametrize("mode", [0o400, 0o440, 0o444, 0o600, 0o644])
@pytest.mark.parametrize("folder", [0o755, 0o777, 0o1777])
def test_a_secret_file_that_only_root_could_have_written_is_read_by_anybody(
    tmp_path: Path, mode: int, folder: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "..data"
    data.mkdir()
    (data / "join").write_text("x")
    (data / "join").chmod(mode)
    data.chmod(folder)
    (tmp_path / "join").symlink_to("..data/join")
    own(0, monkeypatch)
    monkeypatch.setattr(os, "geteuid", lambda: USER)
    assert security.read_private(tmp_path / "join") == "x"


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_a_secret_file_of_root_that_others_can_write_is_refused(
    tmp_path: Path, mode: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "secret"
    security.write_private(path, "x")
    path.chmod(mode)
    own(0, monkeypatch)
    with pytest.raises(StateError) as caught:
        security.read_private(path)
    assert "TUNNEL_TRUST_FILES" in caught.value.fix


def test_a_secret_file_of_another_user_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "secret"
    security.write_private(path, "x")
    own(USER + 1, monkeypatch)
    monkeypatch.setattr(os, "geteuid", lambda: USER)
    with pytest.raises(StateError) as caught:
        security.read_private(path)
    assert "another user" in caught.value.cause
    assert f"chown {USER}" in caught.value.fix
    # A file that a service reads stays the service's.
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with pytest.raises(StateError) as caught:
        security.read_private(path)
    assert caught.value.fix.startswith(f"run this as user {USER + 1}, or set")


@pytest.mark.parametrize("place", ["/proc/nowhere/tunnel", "/dev/null/tunnel"])
def test_a_folder_that_cannot_be_made_is_a_state_error(place: str) -> None:
    with pytest.raises(StateError):
        security.write_private(Path(place) / "secret", "x")


def test_an_absent_or_damaged_secret_file_is_a_state_error(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="cannot read"):
        security.read_private(tmp_path / "absent")
    path = tmp_path / "secret"
    security.write_private(path, "")
    path.write_bytes(b"\xff")
    with pytest.raises(StateError) as caught:
        security.read_private(path)
    assert caught.value.cause == "the file is damaged"


# --- the owner's join line


def test_the_owners_token_is_new_until_the_join_line_is_written(tmp_path: Path) -> None:
    token = security.owner_token(tmp_path)
    assert security.owner_token(tmp_path) != token
    join = JoinLine("default", token, "h", 1, PIN, plain=False)
    security.write_join(tmp_path, join)
    assert security.owner_token(tmp_path) == token
    assert mode_of(tmp_path / "join") == 0o600


def test_a_damaged_join_file_is_a_state_error_that_hides_the_token(
    tmp_path: Path,
) -> None:
    security.write_private(tmp_path / "join", f"tunnel://a:{TOKEN}@h:x/")
    with pytest.raises(StateError) as caught:
        security.owner_token(tmp_path)
    error = caught.value
    assert "port 'x'" in error.cause
    assert TOKEN not in f"{error!r} {error.cause} {error.fix}"


def test_a_state_folder_that_is_a_file_is_a_state_error(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("")
    with pytest.raises(StateError):
        security.owner_token(path)
    with pytest.raises(StateError):
        security.load_or_make_identity(path)
    with pytest.raises(StateError):
        security.load_or_make_identity(path / "below")
    nowhere = tmp_path / "nowhere"
    nowhere.symlink_to(tmp_path / "absent")
    with pytest.raises(StateError, match="cannot write"):
        security.load_or_make_identity(nowhere)
    with pytest.raises(StateError, match="cannot use"), security.sole_server(nowhere):
        pass


# --- client ids


def test_two_holders_have_different_ids_and_a_successor_gets_the_first(
    tmp_path: Path,
) -> None:
    with security.client_id(tmp_path) as one:
        with security.client_id(tmp_path) as two:
            assert len(one.value) == len(two.value) == 16
            assert one.value != two.value
        with security.client_id(tmp_path) as again:
            assert again.value == two.value
    with security.client_id(tmp_path) as first:
        assert first.value == one.value
    assert sorted(os.listdir(tmp_path / "clients")) == ["1.id", "2.id"]
    assert mode_of(tmp_path / "clients" / "1.id") == 0o600


@contextlib.contextmanager
def another(program: str, folder: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run ``program`` in the folder, in a process of its own; give what it says."""
    with subprocess.Popen(
        [sys.executable, "-c", program, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
        text=True,
    ) as process:
        assert process.stdout is not None
        yield process, process.stdout.readline().strip()


HOLD_AN_ID = """
import pathlib, sys
from tunnel.access.security import client_id
with client_id(pathlib.Path(sys.argv[1])) as client:
    print(client.value.hex(), flush=True)
    sys.stdin.read()
"""


def test_the_successor_of_a_killed_process_gets_its_id(tmp_path: Path) -> None:
    with another(HOLD_AN_ID, tmp_path) as (process, held):
        with security.client_id(tmp_path) as mine:
            assert mine.value.hex() != held
        process.kill()
    with security.client_id(tmp_path) as mine:
        assert mine.value.hex() == held


@pytest.mark.parametrize("torn", [b"", b"short", bytes(17)])
def test_a_torn_id_file_gets_a_new_id_that_stays(tmp_path: Path, torn: bytes) -> None:
    (tmp_path / "clients").mkdir()
    (tmp_path / "clients" / "1.id").write_bytes(torn)
    with security.client_id(tmp_path) as one:
        assert len(one.value) == 16
    with security.client_id(tmp_path) as two:
        assert two.value == one.value


def test_an_id_is_random_where_nothing_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("")
    with security.client_id(path) as one, security.client_id(path) as two:
        assert len(one.value) == len(two.value) == 16
        assert one.value != two.value


def test_a_file_system_without_locks_leaves_no_descriptor_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(_descriptor: int, _how: int) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    before = os.listdir("/proc/self/fd")
    with security.client_id(tmp_path) as client:
        assert len(client.value) == 16
        assert len(os.listdir("/proc/self/fd")) == len(before)


def test_a_new_id_is_on_the_disk_before_it_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[bytes] = []
    monkeypatch.setattr(os, "fsync", lambda lock: kept.append(os.pread(lock, 99, 0)))
    with security.client_id(tmp_path) as client:
        assert kept == [client.value]
    with security.client_id(tmp_path) as client:
        assert kept == [client.value]


def test_an_id_costs_one_descriptor_however_many_are_taken(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with contextlib.ExitStack() as held:
        for number in range(1, 5):
            held.enter_context(security.client_id(tmp_path))
            assert len(os.listdir("/proc/self/fd")) == before + number
    assert len(os.listdir("/proc/self/fd")) == before


def test_an_os_error_of_the_body_passes_and_frees_the_id(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="body"), security.client_id(tmp_path) as one:
        raise OSError("body")
    with security.client_id(tmp_path) as two:
        assert two.value == one.value


def test_a_renewed_id_is_another_one_that_stays(tmp_path: Path) -> None:
    with security.client_id(tmp_path) as mine:
        old = mine.value
        new = mine.renew()
        assert new == mine.value != old
        assert len(new) == 16
    with security.client_id(tmp_path) as again:
        assert again.value == new


def test_an_id_can_be_renewed_where_nothing_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("")
    with security.client_id(path) as mine:
        assert mine.value != mine.renew()


# --- identity


@pytest.fixture(scope="module")
def identity(tmp_path_factory: pytest.TempPathFactory) -> security.Identity:
    return security.load_or_make_identity(tmp_path_factory.mktemp("identity"))[0]


def test_an_identity_is_made_once_and_loaded_after(tmp_path: Path) -> None:
    state = tmp_path / "state"
    made, created = security.load_or_make_identity(state)
    again, created_again = security.load_or_make_identity(state)
    assert (created, created_again) == (True, False)
    assert again == made
    assert mode_of(state) == 0o700
    assert mode_of(made.pem_path) == 0o600
    assert os.listdir(state) == ["identity.pem"]


def test_an_identity_made_by_a_racing_process_is_the_one_that_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, identity: security.Identity
) -> None:
    pem = identity.pem_path.read_text()
    make = security._make_identity

    def somebody_was_first() -> str:
        security.write_private(tmp_path / "identity.pem", pem)
        return make()

    monkeypatch.setattr(security, "_make_identity", somebody_was_first)
    loaded, created = security.load_or_make_identity(tmp_path)
    assert not created
    assert loaded.pin == identity.pin
    assert os.listdir(tmp_path) == ["identity.pem"]


def test_an_identity_is_made_where_there_are_no_hard_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(_source: Path, _target: Path) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    made, created = security.load_or_make_identity(tmp_path)
    assert created
    assert security.load_or_make_identity(tmp_path) == (made, False)
    assert os.listdir(tmp_path) == ["identity.pem"]


def test_a_new_certificate_is_valid_where_clocks_are_late(
    identity: security.Identity,
) -> None:
    pem = identity.pem_path.read_bytes()
    certificate = x509.load_pem_x509_certificate(pem)
    late = datetime.now(UTC) - timedelta(hours=23)
    assert certificate.not_valid_before_utc < late


def test_the_certificate_is_p256_for_a_hundred_years(
    identity: security.Identity,
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
    pinned = security._from_base64url(identity.pin)
    assert pinned == hashlib.sha256(spki).digest()
    assert security.pin_of(der) == identity.pin
    assert identity.fingerprint == f"SHA256:{identity.pin}"


def test_an_identity_open_to_others_is_refused_with_its_chmod(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, _ = security.load_or_make_identity(tmp_path)
    made.pem_path.chmod(0o640)
    own(USER, monkeypatch)
    with pytest.raises(StateError) as caught:
        security.load_or_make_identity(tmp_path)
    assert caught.value.fix.startswith(f"chmod 600 {made.pem_path}, or set")


def test_a_damaged_identity_is_refused_and_never_replaced(
    tmp_path: Path, identity: security.Identity
) -> None:
    pem = identity.pem_path.read_text()
    key, _, certificate = pem.partition("-----BEGIN CERTIFICATE")
    other = security._make_identity().partition("-----BEGIN CERTIFICATE")[2]
    path = tmp_path / "identity.pem"
    for text in ("", key, "x" + certificate, key + "-----BEGIN CERTIFICATE" + other):
        security.write_private(path, text)
        with pytest.raises(StateError) as caught:
            security.load_or_make_identity(tmp_path)
        assert caught.value.cause == "the file is damaged"
        assert caught.value.fix
        assert path.read_text() == text


def test_a_certificate_that_cannot_be_read_is_a_tls_error() -> None:
    with pytest.raises(TlsError) as caught:
        security.pin_of(b"no certificate")
    assert caught.value.exit_status is Exit.TLS


# --- one server for each folder


SERVE = """
import pathlib, sys
from tunnel.access.security import load_or_make_identity, sole_server
with sole_server(pathlib.Path(sys.argv[1])):
    load_or_make_identity(pathlib.Path(sys.argv[1]))
    print("holds", flush=True)
    sys.stdin.read()
"""


def test_a_folder_has_one_server_until_that_is_killed(tmp_path: Path) -> None:
    state = tmp_path / "state"
    with another(SERVE, state) as (process, said):
        assert said == "holds"
        with pytest.raises(StateError) as caught, security.sole_server(state):
            pass
        assert str(state) in caught.value.what
        assert f"process {process.pid} " in caught.value.cause
        assert "--state" in caught.value.fix
        process.kill()
    with security.sole_server(state):
        pass
    with security.sole_server(state):
        pass


def test_without_locks_nobody_is_kept_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(_descriptor: int, _how: int) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with security.sole_server(tmp_path), security.sole_server(tmp_path):
        pass


def test_an_error_of_the_body_passes_and_frees_the_folder(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="body"), security.sole_server(tmp_path):
        raise OSError("body")
    with security.sole_server(tmp_path):
        pass


def test_a_join_line_that_stands_there_is_not_written_again(tmp_path: Path) -> None:
    join = JoinLine("default", security.make_token(), "h", 1, PIN, plain=False)
    security.write_join(tmp_path, join)
    before = (tmp_path / "join").stat().st_ino
    security.write_join(tmp_path, join)
    assert (tmp_path / "join").stat().st_ino == before


# --- TLS


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
    identity: security.Identity,
) -> None:
    client, server = shake_hands(
        security.client_tls_context(identity.pin), security.server_tls_context(identity)
    )
    der = client.getpeercert(binary_form=True)
    assert der is not None
    assert security.pin_of(der) == identity.pin
    for end in (client, server):
        assert end.version() == "TLSv1.3"
        assert end.selected_alpn_protocol() == security.ALPN


def test_the_server_sends_no_session_ticket(identity: security.Identity) -> None:
    client, server = shake_hands(
        security.client_tls_context(identity.pin), security.server_tls_context(identity)
    )
    server.write(b"x")
    assert client.read(1) == b"x"
    assert client.session is None or not client.session.has_ticket


def test_without_a_pin_an_unknown_authority_is_refused(
    identity: security.Identity,
) -> None:
    client = security.client_tls_context(None)
    assert client.check_hostname
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(client, security.server_tls_context(identity))


def test_a_key_exchange_that_costs_the_server_much_is_refused(
    identity: security.Identity,
) -> None:
    client = security.client_tls_context(identity.pin)
    client.set_ecdh_curve("secp521r1")
    with pytest.raises(ssl.SSLError, match=r"NO_SUITABLE|NO_SHARED|HANDSHAKE_FAILURE"):
        shake_hands(client, security.server_tls_context(identity))


def test_where_python_cannot_choose_x25519_p256_is_taken_and_nothing_costly(
    identity: security.Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    only_curves_before_x25519(monkeypatch)
    server = security.server_tls_context(identity)
    client, _ = shake_hands(security.client_tls_context(identity.pin), server)
    assert client.version() == "TLSv1.3"
    costly = security.client_tls_context(identity.pin)
    costly.set_ecdh_curve("secp521r1")
    with pytest.raises(ssl.SSLError, match=r"NO_SUITABLE|NO_SHARED|HANDSHAKE_FAILURE"):
        shake_hands(costly, server)


def test_older_tls_is_refused(identity: security.Identity) -> None:
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname = False
    old.verify_mode = ssl.CERT_NONE
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(ssl.SSLError):
        shake_hands(old, security.server_tls_context(identity))


def test_importing_the_module_does_not_import_cryptography() -> None:
    code = "import sys, tunnel.access.security; print('cryptography' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "False"


def test_who_holds_the_lock_of_a_folder_is_told_from_who_holds_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inode = tmp_path.stat().st_ino
    table = (
        "1: FLOCK  ADVISORY  WRITE 11 00:1f:999999999 0 EOF\n"
        f"2: POSIX  ADVISORY  WRITE 12 00:1f:{inode} 0 EOF\n"
        f"3: FLOCK  ADVISORY  WRITE 13 00:1f:{inode} 0 EOF\n"
    )
    monkeypatch.setattr(
        files, "open", lambda *_args, **_kw: io.StringIO(table), raising=False
    )
    with (
        security.sole_server(tmp_path),
        pytest.raises(StateError) as caught,
        security.sole_server(tmp_path),
    ):
        pass
    assert "process 13 has its lock" in caught.value.cause
