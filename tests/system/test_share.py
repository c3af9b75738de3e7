"""Web services by name: real programs at both ends."""

from __future__ import annotations

import hashlib
import http.client
import json
import signal
import socket
import ssl
import sys
import threading
import time
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, ClassVar

import pytest
import trustme
from support import lively
from support.processes import curl, eventually, free_port
from support.web_server import web_server
from support.websocket import websocket_echo
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect as connect_websocket

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from support.processes import Machine, Program, Server

NAMES = ("--http", "127.0.0.1:0", "--domain", "t.test")


class Pages(BaseHTTPRequestHandler):
    """What a web framework would do; the stream of events waits for the test."""

    protocol_version = "HTTP/1.1"
    more: ClassVar[threading.Semaphore] = threading.Semaphore(0)
    events: ClassVar[list[float]] = []

    def do_GET(self) -> None:
        if self.path == "/events":
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            while self.more.acquire(timeout=20):
                self.events.append(time.monotonic())
                self.wfile.write(b"9\r\ndata: x\n\n\r\n")
        else:
            self._answer(json.dumps(list(self.headers.items())).encode())

    def do_POST(self) -> None:
        left = int(self.headers["Content-Length"])
        digest = hashlib.sha256()
        while left:
            piece = self.rfile.read(min(left, 65_536))
            digest.update(piece)
            left -= len(piece)
        self._answer(digest.hexdigest().encode())

    def _answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def pages() -> Iterator[int]:
    with web_server(Pages) as port:
        yield port


def share(machine: Machine, server: Server, *args: str) -> tuple[Program, str, int]:
    """Share; give the program, the host name, and the public port."""
    client = machine.tunnel("share", *args, to=server.join)
    url = client.out.wait("http ").split()[1]
    host, _, port = url.removeprefix("http://").strip("/").rpartition(":")
    return client, host, int(port)


def get(
    machine: Machine, host: str, port: int, path: str, *args: str
) -> tuple[int, bytes]:
    """Fetch by name; give status and body."""
    url = f"http://{host}:{port}{path}"
    done = machine.run(
        *(word for word in curl() if word != "--fail"),
        "--resolve", f"{host}:{port}:127.0.0.1", "-w", "%{http_code}", url, *args,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return int(done.stdout[-3:]), done.stdout[:-3]


def test_names_are_served_by_their_host_and_the_target_hears_the_visitor(
    machine: Machine, pages: int
) -> None:
    """Points 59, 62, 68."""
    server = machine.serve(*NAMES)
    client = machine.up(
        server.join, "--http", f"shop={pages}", "--http", f"*.w.test={pages}",
        "--http", f"down={free_port()}",
    )  # fmt: skip
    port = int(client.out.wait("http://shop.t.test").split()[1].split(":")[2][:-1])
    line = f"http http://shop.t.test:{port}/ localhost:{pages}"
    assert line in client.out.all()
    for host in ("shop.t.test", "SHOP.T.TEST", "a.w.test"):
        status, body = get(machine, host, port, "/", "-H", "X-Forwarded-For: 6.6.6.6")
        headers = {name.lower(): value for name, value in json.loads(body)}
        assert status == 200
        assert headers["x-forwarded-for"] == "127.0.0.1"
        assert headers["x-forwarded-host"] == headers["host"]
    for host, expected, words in (
        ("shop.test", 404, b"nothing is published"),
        ("a.b.w.test", 404, b"nothing is published"),
        ("down.t.test", 502, b"the client is connected, but"),
    ):
        status, body = get(machine, host, port, "/")
        assert status == expected
        assert words in body
    client.stop()
    status, body = get(machine, "shop.t.test", port, "/")
    assert (status, b"is not connected" in body) == (503, True)


def test_a_lost_client_is_said_to_be_away(machine: Machine, pages: int) -> None:
    server = machine.serve(*NAMES)
    client, host, port = share(machine, server, str(pages), "--name", "shop")
    client.send(signal.SIGKILL)
    client.wait()
    server.program.err.wait("link.down")  # who comes before waits for it to come back
    started = time.monotonic()
    status, _ = get(machine, host, port, "/")
    assert status == 503
    assert time.monotonic() - started < 10


def test_a_large_upload_arrives_whole_and_is_not_kept(
    machine: Machine, pages: int, tmp_path: Path
) -> None:
    server = machine.serve(*NAMES)
    _client, host, port = share(machine, server, str(pages), "--name", "shop")
    get(machine, host, port, "/")
    before = server.program.rss_bytes()
    body = tmp_path / "body"
    with body.open("wb") as file:
        file.truncate(200_000_000)
    digest = hashlib.sha256(bytes(200_000_000)).hexdigest()
    status, answer = get(
        machine, host, port, "/", "-T", str(body), "-X", "POST",
        "-H", "Expect: 100-continue",
    )  # fmt: skip
    assert (status, answer.decode()) == (200, digest)
    assert server.program.rss_bytes() - before < 32_000_000


def test_a_websocket_echoes_through_a_name(machine: Machine) -> None:
    """Point 61."""
    server = machine.serve(*NAMES)
    with websocket_echo() as target:
        _client, host, port = share(machine, server, str(target), "--name", "ws")
        sock = socket.create_connection(("127.0.0.1", port))
        with connect_websocket(f"ws://{host}:{port}/chat", sock=sock) as conn:
            for message in ("hello", b"\0" * 100_000, "x" * 70_000, ""):
                conn.send(message)
                assert conn.recv(timeout=20) == message


def test_an_event_arrives_when_it_is_sent(
    machine: Machine, pages: int, figures: Callable[[str], None]
) -> None:
    """Point 65."""
    server = machine.serve(*NAMES)
    _client, host, port = share(machine, server, str(pages), "--name", "events")
    conn = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    conn.request("GET", "/events", headers={"Host": host})
    answer = conn.getresponse()
    delays = []
    for _ in range(5):
        Pages.more.release()
        assert answer.readline() == b"data: x\n"
        delays.append(time.monotonic() - Pages.events[-1])
        assert answer.readline() == b"\n"
    # A front end that stores would wait for the end of the stream, which never comes.
    assert min(delays) < 0.05
    figures(f"events by name: {1000 * delays[0]:.1f} ms for the first, "
            f"{1000 * max(delays):.1f} ms at most")  # fmt: skip
    answer.close()
    conn.close()


def test_many_slow_visitors_do_not_keep_others_out(
    machine: Machine, pages: int
) -> None:
    machine.command = lively.COMMAND
    server = machine.serve(*NAMES)
    _client, host, port = share(machine, server, str(pages), "--name", "shop")
    with ExitStack() as stack:
        slow = [socket.create_connection(("127.0.0.1", port)) for _ in range(300)]
        for visitor in slow:
            stack.enter_context(visitor)
            visitor.sendall(b"GET / HTTP/1.1\r\nX: ")
        started = time.monotonic()
        assert get(machine, host, port, "/")[0] == 200
        assert time.monotonic() - started < 5
        slow[-1].settimeout(20)
        assert slow[-1].recv(100).startswith(b"HTTP/1.1 408 ")


def test_a_password_is_asked_for_by_name_and_by_port(
    machine: Machine, pages: int
) -> None:
    for names in (NAMES, ()):
        server = machine.serve(*names)
        client, host, port = share(
            machine, server, str(pages), "--auth", "me:open sesame"
        )
        assert get(machine, host, port, "/")[0] == 401
        assert get(machine, host, port, "/", "-u", "me:wrong")[0] == 401
        status, body = get(
            machine, host, port, "/", "-u", "me:open sesame", "-H", "X-Real-IP: lie"
        )
        assert status == 200
        headers = {name.lower(): value for name, value in json.loads(body)}
        assert headers["x-forwarded-for"] == "127.0.0.1"
        assert not {"authorization", "x-real-ip"} & set(headers)
        assert "sesame" not in client.errors() + server.program.errors()
        client.stop()
        server.program.stop()


def test_the_password_may_come_from_anywhere_and_is_always_asked_for(
    machine: Machine, pages: int, tmp_path: Path
) -> None:
    server = machine.serve()
    file = tmp_path / "auth"
    file.touch(mode=0o600)
    file.write_text("me:right\n")
    ways: list[tuple[tuple[str, ...], dict[str, str]]] = [
        (("--auth", "me:right"), {}),
        ((), {"TUNNEL_AUTH": "me:right"}),
        ((), {"TUNNEL_AUTH_FILE": str(file)}),
    ]
    for args, env in ways:
        client = machine.tunnel("share", str(pages), *args, to=server.join, env=env)
        url = client.out.wait("http ").split()[1]
        port = int(url.split(":")[2].strip("/"))
        for user, status in (("me:right", 200), ("me:wrong", 401), (":", 401)):
            assert get(machine, "127.0.0.1", port, "/", "-u", user)[0] == status
        assert get(machine, "127.0.0.1", port, "/", "--http1.0")[0] == 401
        client.stop()
    file.chmod(0o666)
    open_to_others = machine.tunnel("share", "1", env={"TUNNEL_AUTH_FILE": str(file)})
    assert open_to_others.wait() == 3
    assert machine.tunnel("share", "1", "--auth", "").wait() == 2


def test_a_websocket_behind_a_password(machine: Machine) -> None:
    server = machine.serve(*NAMES)
    with websocket_echo() as target:
        _client, host, port = share(machine, server, str(target), "--auth", "me:right")
        for user, ok in (("me:right", True), ("me:wrong", False)):
            sock = socket.create_connection(("127.0.0.1", port))
            url = f"ws://{user}@{host}:{port}/"
            if not ok:
                with pytest.raises(InvalidStatus):
                    connect_websocket(url, sock=sock).close()
                continue
            with connect_websocket(url, sock=sock) as conn:
                conn.send("hello")
                assert conn.recv(timeout=20) == "hello"


def test_a_service_is_asked_as_the_flags_say(machine: Machine, pages: int) -> None:
    server = machine.serve(*NAMES)
    _client, host, port = share(
        machine, server, str(pages), "--name", "dev", "--host", "rewrite",
        "--header", "+X-Key: a,b", "--header=-User-Agent", "--response-header=-Server",
    )  # fmt: skip
    status, body = get(machine, host, port, "/", "-i")
    head, _, headers = body.partition(b"\r\n\r\n")
    got = {name.lower(): value for name, value in json.loads(headers)}
    assert status == 200
    assert got["host"] == f"localhost:{pages}"
    assert got["x-forwarded-host"] == f"{host}:{port}"
    assert got["x-key"] == "a,b"
    assert "user-agent" not in got
    assert b"\r\nserver:" not in head.lower()
    misspelt = machine.tunnel("up", "--http", "shop=8000,hots=rewrite")
    assert "did you mean host=" in misspelt.err.wait("fix")
    assert misspelt.wait() == 2


def test_without_names_at_the_server_a_port_shows_the_page(
    machine: Machine, pages: int
) -> None:
    server = machine.serve()
    client, host, port = share(machine, server, str(pages))
    assert host == "127.0.0.1"
    assert get(machine, host, port, "/")[0] == 200
    client.stop()
    assert client.err.count("share.at_a_port") == 1
    assert "level=warning" not in client.errors()
    assert "refused" not in client.errors()
    named = machine.tunnel("share", str(pages), "--name", "shop", to=server.join)
    assert "tunnel serve --http" in named.err.wait("fix")
    assert named.wait() != 0


def test_a_name_that_nobody_chose_stays_the_same(machine: Machine, pages: int) -> None:
    server = machine.serve(*NAMES)
    names = set()
    for _ in range(2):
        client, host, port = share(machine, server, str(pages))
        names.add(host)
        assert get(machine, host, port, "/")[0] == 200
        client.stop()
    assert len(names) == 1
    assert names.pop().endswith(".t.test")


def test_a_folder_opens_and_nothing_beside_it(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "index.html").write_text("<h1>hello")
    (folder / "out").symlink_to("../secret")
    large = bytes(range(256)) * 100_000
    (folder / "large.bin").write_bytes(large)
    server = machine.serve(*NAMES)
    _client, host, port = share(machine, server, str(folder), "--name", "site")
    assert get(machine, host, port, "/") == (200, b"<h1>hello")
    assert get(machine, host, port, "/large.bin") == (200, large)
    assert get(machine, host, port, "/large.bin", "-r", "5-9") == (206, large[5:10])
    for path in ("/../secret", "/%2e%2e/secret", "/out"):
        assert get(machine, host, port, path, "--path-as-is")[0] == 404


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[trustme.CA, trustme.LeafCert]:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    leaf = authority.issue_cert("*.t.test")
    leaf.private_key_pem.write_to_path(tmp_path / "key.pem")
    (tmp_path / "chain.pem").write_bytes(
        b"".join(pem.bytes() for pem in leaf.cert_chain_pems)
    )
    return authority, leaf


def test_tls_passes_through_by_name_and_ends_here_with_a_certificate(
    machine: Machine,
    pages: int,
    tmp_path: Path,
    certificate: tuple[trustme.CA, trustme.LeafCert],
) -> None:
    """Point 60."""
    _, leaf = certificate
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    leaf.configure_cert(context)
    with web_server(Pages, context) as secure:
        server = machine.serve(
            *NAMES, "--https", "127.0.0.1:0",
            "--certificate", str(tmp_path / "chain.pem"), str(tmp_path / "key.pem"),
        )  # fmt: skip
        client = machine.up(
            server.join,
            "--https", f"passed={secure}",
            "--http", f"ended={pages}",
        )  # fmt: skip
        port = int(client.out.wait("https ").split()[1].split(":")[2].strip("/"))
        for host, proto in (("passed.t.test", None), ("ended.t.test", "https")):
            done = machine.run(
                *curl(), "--cacert", str(tmp_path / "ca.pem"),
                "--resolve", f"{host}:{port}:127.0.0.1", f"https://{host}:{port}/",
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
            headers = {name.lower(): value for name, value in json.loads(done.stdout)}
            assert headers.get("x-forwarded-proto") == proto
        client.stop()
        eventually(lambda: "link.down" in server.program.errors(), "the client is gone")


def test_a_server_with_https_alone_has_names_for_web_services(
    machine: Machine,
    pages: int,
    tmp_path: Path,
    certificate: tuple[trustme.CA, trustme.LeafCert],
) -> None:
    del certificate
    server = machine.serve(
        "--domain", "t.test", "--https", "127.0.0.1:0",
        "--certificate", str(tmp_path / "chain.pem"), str(tmp_path / "key.pem"),
    )  # fmt: skip
    client = machine.up(server.join, "--http", f"shop={pages}")
    kind, url, _ = client.out.wait("http ").split()
    assert (kind, url[:20]) == ("http", "https://shop.t.test:")
    port = url.rpartition(":")[2].strip("/")
    done = machine.run(
        *curl(), "--cacert", str(tmp_path / "ca.pem"),
        "--resolve", f"shop.t.test:{port}:127.0.0.1", url,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    headers = {name.lower(): value for name, value in json.loads(done.stdout)}
    assert headers["x-forwarded-proto"] == "https"


def test_a_certificate_that_cannot_be_used_is_said(
    machine: Machine, tmp_path: Path
) -> None:
    one, other = trustme.CA(), trustme.CA()
    (tmp_path / "bad.pem").write_text("no certificate")
    one.cert_pem.write_to_path(tmp_path / "one.pem")
    other.private_key_pem.write_to_path(tmp_path / "other.pem")
    for certificate, key, why in (
        ("bad.pem", "bad.pem", "one of them is not PEM"),
        ("one.pem", "other.pem", "the key is not that of the certificate"),
    ):
        files = str(tmp_path / certificate), str(tmp_path / key)
        done = machine.tunnel(
            "serve", "--listen", "127.0.0.1:0", "--https", "127.0.0.1:0",
            "--certificate", *files,
        )  # fmt: skip
        assert done.wait() == 2
        assert f"{files[0]} with the key {files[1]} cannot be used" in done.errors()
        assert why in done.errors()
        assert "_ssl" not in done.errors()


def test_a_target_that_is_not_ready_is_in_the_log_where_nobody_looks(
    machine: Machine,
) -> None:
    server = machine.serve(*NAMES)
    client, _, _ = share(machine, server, str(free_port()))
    assert "does not answer" in client.err.wait("event=target.not_ready")


SCRIPT = """
import sys, urllib.request, tunnel
port, join, patience_s = sys.argv[1:]
try:
    with tunnel.share(int(port), to=join, timeout_s=float(patience_s)) as shared:
        print(shared.url, flush=True)
        print(urllib.request.urlopen(shared.url, timeout=20).status, flush=True)
except tunnel.TunnelError as error:
    print("failed:", error, flush=True)
"""


def test_a_program_that_knows_no_trio_can_share(machine: Machine, pages: int) -> None:
    server = machine.serve()
    done = machine.run(sys.executable, "-c", SCRIPT, str(pages), server.join, "20")
    url, status = done.stdout.decode().split()
    assert url.startswith("http://127.0.0.1:")
    assert status == "200", done.stderr
    assert done.stderr == b""
    with pytest.raises(ConnectionRefusedError):  # given back at the end of the block
        socket.create_connection(("127.0.0.1", int(url.split(":")[2][:-1]))).close()


def test_a_program_hears_why_it_cannot_share(machine: Machine, pages: int) -> None:
    server = machine.serve()
    server.program.stop()
    done = machine.run(sys.executable, "-c", SCRIPT, str(pages), server.join, "1")
    assert b"failed: cannot reach" in done.stdout
    assert b"connection refused" in done.stdout
