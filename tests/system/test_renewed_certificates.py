"""A certificate for host names is renewed while connections run."""

from __future__ import annotations

import hashlib
import ssl
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import trustme
from support import often
from support.processes import WAIT_S, WORKERS
from support.targets import Target, read_exactly, visit

if TYPE_CHECKING:
    import socket
    from pathlib import Path

    from support.processes import Machine

HOST = "web.localhost"


def write(folder: Path, leaf: trustme.LeafCert) -> None:
    leaf.private_key_pem.write_to_path(folder / "key.pem")
    leaf.cert_chain_pems[0].write_to_path(folder / "chain.pem")


def shown(leaf: trustme.LeafCert) -> str:
    pem = leaf.cert_chain_pems[0].bytes().decode()
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem)).hexdigest()


def enter(port: int) -> ssl.SSLSocket:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context.wrap_socket(visit(port), server_hostname=HOST)


def seen(conn: ssl.SSLSocket) -> str:
    leaf = conn.getpeercert(binary_form=True)
    assert leaf is not None
    return hashlib.sha256(leaf).hexdigest()


def answer(conn: socket.socket) -> object:
    """Answer any number of requests without a body."""
    said = b""
    while data := conn.recv(65_536):
        said += data
        while b"\r\n\r\n" in said:
            said = said.partition(b"\r\n\r\n")[2]
            conn.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    return None


def is_served(conn: ssl.SSLSocket) -> bool:
    conn.sendall(f"GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
    said = b""
    while not said.endswith(b"ok"):
        said += read_exactly(conn, 1)
    return said.startswith(b"HTTP/1.1 200")


def test_a_renewed_certificate_is_taken_and_a_broken_one_is_not(
    machine: Machine,
) -> None:
    authority = trustme.CA()
    soon = datetime.now(UTC) + timedelta(days=3)
    old = authority.issue_cert(HOST, not_after=soon)
    new, last = authority.issue_cert(HOST), authority.issue_cert(HOST)
    chain, key = machine.home / "chain.pem", machine.home / "key.pem"
    write(machine.home, old)
    machine.command = often.COMMAND
    with Target(answer) as target, ExitStack() as stack:
        server = machine.serve(
            "--https", "127.0.0.1:0", "--certificate", str(chain), str(key)
        )
        client = machine.up(server.join, "--http", f"web={target.port}")
        port = int(client.out.all()[0].split()[1].strip("/").rpartition(":")[2])
        log = server.program.err
        assert soon.strftime("%Y-%m-%d") in log.wait("certificate.ends")
        running = [stack.enter_context(enter(port)) for _ in range(100)]
        for conn in running:
            conn.settimeout(WAIT_S)
            assert seen(conn) == shown(old)
            assert is_served(conn)

        write(machine.home, new)
        log.wait("certificate.renewed", WORKERS)
        with enter(port) as conn:
            assert seen(conn) == shown(new)
            assert is_served(conn)
        assert all(map(is_served, running))

        for broken in (b"no certificate", b"", old.cert_chain_pems[0].bytes()):
            kept = log.count("certificate.kept")
            chain.write_bytes(broken)
            log.wait("certificate.kept", kept + WORKERS)
            with enter(port) as conn:
                assert seen(conn) == shown(new)
                assert is_served(conn)
        chain.unlink()
        log.wait("certificate.kept", 4 * WORKERS)
        assert all(map(is_served, running))

        write(machine.home, last)
        log.wait("certificate.renewed", 2 * WORKERS)
        with enter(port) as conn:
            assert seen(conn) == shown(last)
            assert is_served(conn)
        assert all(map(is_served, running))
        assert log.count("certificate.ends") == WORKERS
        assert "Traceback" not in server.program.errors()
