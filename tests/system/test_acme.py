"""Certificates of an authority that speaks ACME: pebble, on loopback."""

from __future__ import annotations

import signal
import ssl
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
import trustme
from support import often
from support.pebble import HOST, Pebble
from support.processes import (
    WAIT_S,
    WORKERS,
    Machine,
    eventually,
    free_port,
    program,
)
from support.targets import Target, echo, read_exactly, visit

from tunnel.errors import Exit

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator
    from pathlib import Path


pytestmark = pytest.mark.skipif(
    WORKERS > 1, reason="NOT TESTED: --acme is refused where there are --workers"
)
DOMAIN = "t.example.net"
LIFE_S = 3_600


def answer(conn: socket.socket) -> object:
    """Answer any number of requests without a body; say which paths were asked for."""
    said, paths = b"", []
    while data := conn.recv(65_536):
        said += data
        while b"\r\n\r\n" in said:
            head, _, said = said.partition(b"\r\n\r\n")
            paths.append(head.split()[1].decode())
            conn.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    return paths


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pebble]:
    """One that refuses each fifth nonce, as those of the world may."""
    home = tmp_path_factory.mktemp("pebble")
    machine = Machine(home)
    yield Pebble(machine, home, life_s=LIFE_S, rejects=20)
    machine.close()


@pytest.fixture(scope="module")
def web() -> Iterator[Target]:
    with Target(answer) as running:
        yield running


@contextmanager
def shaken_hands(
    port: int, host: str, context: ssl.SSLContext
) -> Iterator[ssl.SSLSocket]:
    conn = visit(port)
    conn.settimeout(WAIT_S)
    with context.wrap_socket(conn, server_hostname=host) as stream:
        yield stream


def page(port: int, host: str, context: ssl.SSLContext) -> bytes:
    with shaken_hands(port, host, context) as stream:
        stream.sendall(f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        return stream.recv(4_096)


def serial(port: int, host: str, context: ssl.SSLContext) -> str:
    with shaken_hands(port, host, context) as stream:
        said = stream.getpeercert()
        assert said is not None
        return str(said["serialNumber"])


def anything(*protocols: str) -> ssl.SSLContext:
    """Trust whatever is shown."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(list(protocols))
    return context


def refused(port: int, host: str, *protocols: str) -> bool:
    with (
        pytest.raises((ssl.SSLError, ConnectionError)),
        shaken_hands(port, host, anything(*protocols)),
    ):
        pass
    return True


@pytest.fixture
def acme(tmp_path: Path) -> Iterator[Machine]:
    machine = Machine(tmp_path)
    machine.command = often.COMMAND
    yield machine
    machine.close()


def test_a_published_name_gets_a_certificate_and_no_other_is_asked_for(
    authority: Pebble, web: Target, acme: Machine
) -> None:
    server = acme.serve(*authority.flags, "--domain", DOMAIN)
    acme.up(server.join, "--http", f"shop={web.port}")
    before, port = authority.orders(), authority.https_port
    assert refused(port, f"random-1.{DOMAIN}", "http/1.1")
    said = server.program.err.wait("acme.got")
    assert f"host=shop.{DOMAIN}" in said
    context = authority.context()
    assert page(port, f"shop.{DOMAIN}", context).endswith(b"ok")
    # Visitors of names that nobody has published bring nothing about.
    for host in (f"random-2.{DOMAIN}", f"a.shop.{DOMAIN}", "other.example", HOST):
        assert refused(port, host, "http/1.1")
        assert refused(port, host, "acme-tls/1")
    # Nor is there anything to see for who looks like an authority when none is asked.
    assert refused(port, f"shop.{DOMAIN}", "acme-tls/1")
    assert authority.orders() == before + 1
    for word in ("random", "a.shop", "other"):
        assert not authority.asked_about(f'Value:"{word}')
    done = acme.run(*acme.command, "status", "serve")
    assert f"cert     shop.{DOMAIN}, for" in done.stdout.decode()
    files = list((acme.home / "server" / "acme").rglob("*.*"))
    assert {path.stat().st_mode & 0o077 for path in files} == {0}

    # After a restart it is served at once, and only what is new is asked for.
    old = serial(port, f"shop.{DOMAIN}", context)
    server.program.stop()
    again = acme.serve(
        *authority.flags, "--domain", DOMAIN, listen=f"{HOST}:{server.port}"
    )
    again.program.err.wait("mapping.open")
    assert serial(port, f"shop.{DOMAIN}", context) == old
    acme.up(again.join, "--http", f"wiki={web.port}")
    assert f"host=wiki.{DOMAIN}" in again.program.err.wait("acme.got")
    assert authority.orders() == before + 2


def test_links_names_passed_names_and_the_authority_come_in_at_one_port(
    authority: Pebble, web: Target, acme: Machine
) -> None:
    own = trustme.CA()
    mail = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    own.issue_cert(f"mail.{DOMAIN}").configure_cert(mail)

    def mail_answer(conn: socket.socket) -> object:
        with mail.wrap_socket(conn, server_side=True) as stream:
            stream.recv(4_096)
            stream.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nmail")
        return None

    port = authority.https_port
    with Target(mail_answer) as mail_at, Target(echo) as told:
        server = acme.serve(
            *authority.flags, "--domain", DOMAIN, listen=f"{HOST}:{port}"
        )
        assert server.port == port
        # The link is there before the port has a certificate, and goes on behind it.
        client = acme.up(
            server.join, "--tcp", f"0={told.port}", "--http", f"one={web.port}",
            "--https", f"mail={mail_at.port}",
        )  # fmt: skip
        public = next(one for one in client.out.all() if one.startswith("tcp "))
        with visit(int(public.split()[1].rpartition(":")[2])) as conn:
            conn.sendall(b"before")
            assert read_exactly(conn, 6) == b"before"
            server.program.err.wait("acme.got")
            assert page(port, f"one.{DOMAIN}", authority.context()).endswith(b"ok")
            trusting = ssl.create_default_context()
            own.configure_trust(trusting)
            assert page(port, f"mail.{DOMAIN}", trusting).endswith(b"mail")
            conn.sendall(b"behind")
            assert read_exactly(conn, 6) == b"behind"
        assert not client.err.count("link.lost")


def test_http_01_is_tried_where_tls_is_not_reached(
    authority: Pebble, web: Target, acme: Machine
) -> None:
    port = free_port()  # not the one where the authority looks
    server = acme.serve(
        *authority.flags[2:], "--https", f"{HOST}:{port}",
        "--http", f"{HOST}:{authority.http_port}", "--domain", DOMAIN,
        "--redirect",
    )  # fmt: skip
    acme.up(server.join, "--http", f"plain={web.port}")
    failed = server.program.err.wait("acme.failed")
    assert "tls-alpn-01" in failed
    assert f"plain.{DOMAIN} must lead here by DNS" in failed
    server.program.err.wait("acme.got")
    host = f"plain.{DOMAIN}"
    assert page(port, host, authority.context()).endswith(b"ok")
    # What is no token of ours is for who has published the name.
    with visit(authority.http_port) as conn:
        path = "/.well-known/acme-challenge/of-somebody-else"
        conn.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        assert f"https://{host}:{port}{path}" in conn.recv(4_096).decode()


def test_a_certificate_is_renewed_while_visitors_are_served(
    authority: Pebble, web: Target, acme: Machine
) -> None:
    acme.env[often.RENEW_AT] = "0.9995"  # after two seconds
    server = acme.serve(*authority.flags, "--domain", DOMAIN)
    acme.up(server.join, "--http", f"news={web.port}")
    server.program.err.wait("acme.got")
    context, host = authority.context(), f"news.{DOMAIN}"
    old = serial(authority.https_port, host, context)
    with shaken_hands(authority.https_port, host, context) as kept:
        server.program.err.wait("acme.renewed")
        assert serial(authority.https_port, host, context) != old
        kept.sendall(f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        assert kept.recv(4_096).endswith(b"ok")


def test_a_hook_gets_a_wildcard_by_dns_for_all_names_below_the_domain(
    authority: Pebble, web: Target, acme: Machine
) -> None:
    hook = acme.home / "hook"
    url, curl = authority.dns_control, program("curl")
    hook.write_text(
        "#!/bin/sh\n"
        f'echo "$@" >>{acme.home}/calls\n'
        "verb=set-txt; [ $1 = present ] || verb=clear-txt\n"
        f'{curl} -sf -d "{{\\"host\\":\\"$2.\\",\\"value\\":\\"$3\\"}}" {url}/$verb\n'
    )
    hook.chmod(0o700)
    before = authority.orders()
    server = acme.serve(*authority.flags, "--domain", DOMAIN, "--acme-hook", str(hook))
    acme.up(server.join, "--http", f"a={web.port}", "--http", f"b={web.port}")
    assert f"host=*.{DOMAIN}" in server.program.err.wait("acme.got")
    context = authority.context()
    for host in (f"a.{DOMAIN}", f"b.{DOMAIN}"):
        assert page(authority.https_port, host, context).endswith(b"ok")
    assert authority.orders() == before + 1
    calls = [
        line.split()[:2] for line in (acme.home / "calls").read_text().splitlines()
    ]
    record = f"_acme-challenge.{DOMAIN}"
    assert calls == [["present", record], ["cleanup", record]]


def test_visitors_get_in_while_the_authority_is_slow_and_when_it_is_gone(
    authority: Pebble, web: Target, acme: Machine
) -> None:
    server = acme.serve(*authority.flags, "--domain", DOMAIN)
    acme.up(server.join, "--http", f"one={web.port}")
    log = server.program.err
    log.wait("acme.got")
    context, host = authority.context(), f"one.{DOMAIN}"
    authority.process.send(signal.SIGSTOP)
    acme.up(server.join, "--http", f"two={web.port}")
    log.wait("acme.ordered", 2)
    for _ in range(20):
        assert page(authority.https_port, host, context).endswith(b"ok")
    authority.process.send(signal.SIGCONT)
    log.wait("acme.got", 2)
    authority.process.end()
    acme.up(server.join, "--http", f"three={web.port}")
    failed = log.wait("acme.failed")
    assert "cannot be reached" in failed
    assert authority.directory in failed
    for name in ("one", "two"):
        assert page(authority.https_port, f"{name}.{DOMAIN}", context)
    # It comes back, and knows nobody: that is no fault of ours.
    authority.start()
    log.wait("acme.got", 3)
    eventually(
        lambda: page(
            authority.https_port, f"three.{DOMAIN}", authority.context()
        ).endswith(b"ok"),
        "the third name is served",
    )
    assert "Traceback" not in server.program.errors()


@pytest.mark.deep
def test_no_more_new_names_of_a_user_than_five_a_week_over_restarts(
    authority: Pebble, web: Target, acme: Machine
) -> None:
    entries = [f"n{number}={web.port}" for number in range(7)]
    before = authority.orders()
    for restart in range(2):
        server = acme.serve(*authority.flags, "--domain", DOMAIN)
        client = acme.up(
            server.join, *(word for one in entries for word in ("--http", one))
        )
        server.program.err.wait("acme.limited", 2)
        if not restart:
            server.program.err.wait("acme.got", 5)
        assert authority.orders() == before + 5
        client.stop()
        server.program.stop()


def test_what_is_wrong_with_the_flags_is_said(machine: Machine) -> None:
    for said, fix in (
        (("--https", "0", "--acme", "nobody"), "--acme you@example.net"),
        (("--acme", "me@a.net"), "--https 443"),
        (("--acme-directory", "https://a"), "--acme you@example.net"),
        (("--https", "0", "--acme", "me@a.net", "--acme-directory", "http://a"),
         "begins with https://"),
        (("--https", "0", "--acme", "me@a.net", "--acme-hook", "/no/such"),
         "executable"),
    ):  # fmt: skip
        done = machine.run(*machine.command, "serve", *said)
        assert done.returncode == Exit.USAGE, said
        assert fix in done.stderr.decode(), said
