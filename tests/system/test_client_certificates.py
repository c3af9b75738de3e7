"""``--client-ca``: a token alone lets nobody in, nor does a certificate alone."""

from __future__ import annotations

import re
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from support.processes import free_port
from support.targets import Target, echo, visit

if TYPE_CHECKING:
    from support.processes import Machine, Program, Server

Pair = tuple[str, str]


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


def written(home: Path, name: str, certificate: bytes, key: bytes) -> Pair:
    """Write a certificate and its key; replace those of that name."""
    cert_path, key_path = home / f"{name}.pem", home / f"{name}.key"
    cert_path.write_bytes(certificate)
    key_path.write_bytes(key)
    key_path.chmod(0o600)
    return str(cert_path), str(key_path)


def pair(machine: Machine, authority: trustme.CA, name: str, *dns: str) -> Pair:
    """Give a certificate whose CN is ``name``, or whose DNS names are ``dns``."""
    names = dns or ("somewhere.test",)
    leaf = authority.issue_cert(*names, common_name=None if dns else name)
    pems = b"".join(one.bytes() for one in leaf.cert_chain_pems)
    return written(machine.home, name, pems, leaf.private_key_pem.bytes())


def odd_pair(machine: Machine, authority: trustme.CA, *, expired: bool = False) -> Pair:
    """Give one for ``default`` that is for servers, or of the past."""
    key = ec.generate_private_key(ec.SECP256R1())
    root = x509.load_pem_x509_certificate(authority.cert_pem.bytes())
    signer = serialization.load_pem_private_key(
        authority.private_key_pem.bytes(), password=None
    )
    assert isinstance(signer, ec.EllipticCurvePrivateKey)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "default")])
    usage = x509.oid.ExtendedKeyUsageOID
    now = datetime.now(UTC)
    purpose = usage.CLIENT_AUTH if expired else usage.SERVER_AUTH
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(root.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=9))
        .not_valid_after(now + timedelta(days=-1 if expired else 1))
        .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        .sign(signer, hashes.SHA256())
    )
    form = serialization.Encoding.PEM
    pem = key.private_bytes(
        form, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return written(machine.home, f"odd{expired}", certificate.public_bytes(form), pem)


def serve(machine: Machine, authority: trustme.CA, **listen: str) -> Server:
    ca = machine.home / "ca.pem"
    ca.write_bytes(authority.cert_pem.bytes())
    return machine.serve("--client-ca", str(ca), **listen)


def up(machine: Machine, server: Server, shown: Pair | tuple[()]) -> Program:
    words = ("--client-cert", *shown) if shown else ()
    return machine.tunnel(
        *("up", "--reach", "127.0.0.1:0=127.0.0.1:1", *words), to=server.join
    )


@pytest.mark.parametrize("dns", [(), ("default",)], ids=["CN", "SAN"])
def test_a_token_and_a_certificate_of_its_user_let_in(
    machine: Machine, authority: trustme.CA, dns: tuple[str, ...]
) -> None:
    server = serve(machine, authority)
    shown = pair(machine, authority, "default", *dns)
    with Target(echo) as target:
        there = f"0=127.0.0.1:{target.port}"
        client = machine.up(
            server.join, "--tcp", there, "--client-cert", *shown, ready=1
        )
        public = client.out.wait("tcp ").split()[1]
        with visit(int(public.rpartition(":")[2])) as conn:
            conn.sendall(b"hello")
            assert conn.recv(5) == b"hello"
        done = machine.run(
            *machine.command,
            *("pipe", f"127.0.0.1:{target.port}", "--to", server.join),
            *("--client-cert", *shown),
            stdin=b"through a pipe",
        )
        assert (done.returncode, done.stdout) == (0, b"through a pipe")


PROGRAM = """
import sys, trio, tunnel
_, join, port, *files = sys.argv
shown = tuple(files) or None

async def main():
    with trio.fail_after(20):
        async with tunnel.connect(join, client_cert=shown) as session:
            async with await session.open("127.0.0.1:" + port) as stream:
                await stream.send_all(b"hello")
                print(bytes(await stream.receive_some(5)))

try:
    trio.run(main)
    with tunnel.share(int(port), to=join, client_cert=shown) as shared:
        print(shared.url.startswith("http://127.0.0.1:"))
except tunnel.TunnelError as error:
    print(type(error).__name__, error)
"""


def test_a_program_shows_a_certificate_too(
    machine: Machine, authority: trustme.CA
) -> None:
    server = serve(machine, authority)
    shown = pair(machine, authority, "default")
    with Target(echo) as target:

        def printed(join: str, *files: str) -> str:
            command = (sys.executable, "-c", PROGRAM, join, str(target.port), *files)
            done = machine.run(*command)
            return done.stdout.decode() + done.stderr.decode()

        assert printed(server.join, *shown) == "b'hello'\nTrue\n"
        assert "wants a client certificate" in printed(server.join)
        missing = printed(server.join, shown[0], f"{shown[1]}.none")
        assert missing.startswith("StateError ")
        other = pair(machine, authority, "alice")
        foreign = printed(server.join, shown[0], other[1])
        assert foreign.startswith("UsageError --client-cert: cannot use")
        plain = f"tunnel+plain://default:{'A' * 43}@127.0.0.1:1/"
        assert "without TLS shows no client" in printed(plain, *shown)


def test_without_the_right_certificate_the_token_is_worth_nothing(
    machine: Machine, authority: trustme.CA
) -> None:
    server = serve(machine, authority)
    refused = server.program.err
    cases: dict[str, tuple[Pair | tuple[()], int, str]] = {
        "wants a client certificate": ((), 5, "shows no certificate"),
        "unknown ca": (
            pair(machine, trustme.CA(), "default"), 5, "unable to get local issuer",
        ),
        "for another user": (
            pair(machine, authority, "alice"), 6,
            "is for alice, somewhere.test, not for default",
        ),
        "not take this client's certificate": (
            odd_pair(machine, authority), 5, "purpose",
        ),
        "certificate expired": (
            odd_pair(machine, authority, expired=True), 5, "has expired",
        ),
    }  # fmt: skip
    for number, (said, (shown, status, logged)) in enumerate(cases.items(), 1):
        client = up(machine, server, shown)
        assert client.wait() == status, client.errors()
        assert said in client.errors()
        line = refused.wait("event=link.refused", number)
        assert re.search(r"peer=127\.0\.0\.1:\d+ code=AUTH .*" + logged, line)
    assert not refused.count("event=link.up")


def test_a_certificate_without_the_token_is_worth_nothing(
    machine: Machine, authority: trustme.CA
) -> None:
    server = serve(machine, authority)
    other = re.sub(r":[\w-]{43}@", f":{'A' * 43}@", server.join)
    shown = pair(machine, authority, "default")
    client = machine.tunnel("tcp", "1", "--client-cert", *shown, to=other)
    assert client.wait() == 6
    assert "code=AUTH claimed=default" in server.program.err.wait("link.refused")


def test_a_renewed_certificate_is_shown_to_the_next_link(
    machine: Machine, authority: trustme.CA
) -> None:
    listen = f"127.0.0.1:{free_port()}"
    server = serve(machine, authority, listen=listen)
    shown = pair(machine, authority, "default")
    client = up(machine, server, shown)
    client.out.wait("reach")
    server.program.stop()
    Path(shown[1]).write_text("in the middle of a renewal")
    other = trustme.CA()
    server = serve(machine, other, listen=listen)  # which does not know the old one
    server.program.err.wait("unable to get local issuer")
    client.err.wait("event=certificate.not_read")
    pair(machine, other, "default")
    server.program.err.wait("event=link.up")
    assert client.stop() == 0


def test_files_of_no_use_are_named_at_the_start(
    machine: Machine, authority: trustme.CA
) -> None:
    bad = machine.home / "bad.pem"
    bad.write_text("nothing")
    server = machine.tunnel("serve", "--listen", "127.0.0.1:0", "--client-ca", str(bad))
    assert server.wait() == 2
    assert f"no authority can be read from {bad}" in server.errors()
    plain = machine.tunnel("serve", "--plain", "--client-ca", str(bad))
    assert plain.wait() == 2
    assert "--client-ca needs TLS" in plain.errors()

    running = serve(machine, authority)
    shown = pair(machine, authority, "default")
    Path(shown[1]).chmod(0o666)
    client = up(machine, running, shown)
    assert client.wait() == 3
    assert "others may use it" in client.errors()
    Path(shown[1]).chmod(0o600)
    key = serialization.load_pem_private_key(Path(shown[1]).read_bytes(), None)
    Path(shown[1]).write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"word"),
        )
    )
    client = up(machine, running, shown)
    assert client.wait() == 2
    assert "its PEM key without a password" in client.errors()
