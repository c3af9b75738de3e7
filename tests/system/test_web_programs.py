"""Programs that ask more of HTTP than browsers do, by name: curl --ntlm, git push."""

from __future__ import annotations

import base64
import os
import shutil
import socket
import subprocess
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
from support.odd_site import read_head, with_length
from support.processes import WAIT_S, Machine, curl, eventually, free_port, program
from support.targets import END, Target, visit
from support.web_server import Hello
from support.websocket import websocket_echo
from websockets.sync.client import connect as connect_websocket

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# Logins that belong to a connection ---------------------------------------------------

CHALLENGE: Final = (
    b"NTLMSSP\0\x02\0\0\0" + bytes(4) + b"\x38\0\0\0"
    # Unicode, NTLM, always sign; the nonce; no information about the target.
    + b"\x01\x82\x00\x00" + b"8 bytes!" + bytes(8) + bytes(4) + b"\x38\0\0\0"
    + bytes(8)
)  # fmt: skip


def ask_ntlm(conn: socket.socket) -> object:
    """Log in by NTLM, for this connection: who says type 3 was given a type 2 here."""
    challenged, user = False, b""
    with conn.makefile("rb") as file:
        while head := read_head(file):
            said = b""
            for line in head[1:]:
                name, _, value = line.partition(b": ")
                if name.lower() == b"authorization":
                    said = base64.b64decode(value.removeprefix(b"NTLM "))
            kind = said[8:9]
            if kind == b"\x01":
                challenged = True
                ask = b"WWW-Authenticate: NTLM %b\r\n" % base64.b64encode(CHALLENGE)
                conn.sendall(with_length(b"", b"401 Challenge", ask))
            elif user or (kind == b"\x03" and challenged):
                user = user or ntlm_user(said)
                conn.sendall(with_length(b"hello " + user))
            else:
                ask = b"WWW-Authenticate: NTLM\r\n"
                conn.sendall(with_length(b"", b"401 Who", ask))
    return END


def ntlm_user(message: bytes) -> bytes:
    """Read the name in a type 3 message (MS-NLMP 2.2.1.3)."""
    size = int.from_bytes(message[36:38], "little")
    offset = int.from_bytes(message[40:44], "little")
    return message[offset : offset + size].replace(b"\0", b"")


# git ----------------------------------------------------------------------------------


class GitPages(BaseHTTPRequestHandler):
    """``git http-backend`` as a web server runs it; bodies come sized or in chunks."""

    protocol_version = "HTTP/1.1"
    root: Path
    env: dict[str, str]

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        body = self.headers
        env = self.env | {
            "GIT_PROJECT_ROOT": str(self.root), "GIT_HTTP_EXPORT_ALL": "1",
            "REQUEST_METHOD": self.command, "PATH_INFO": path, "QUERY_STRING": query,
            "CONTENT_TYPE": body.get("Content-Type", ""), "REMOTE_USER": "me",
            "REMOTE_ADDR": "127.0.0.1",
            "HTTP_CONTENT_ENCODING": body.get("Content-Encoding", ""),
            "GIT_PROTOCOL": body.get("Git-Protocol", ""),
        }  # fmt: skip
        if length := body.get("Content-Length"):
            env["CONTENT_LENGTH"] = length
        with subprocess.Popen(
            (program("git"), "http-backend"), env=env,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        ) as cgi:  # fmt: skip
            assert cgi.stdin is not None
            assert cgi.stdout is not None
            for piece in self._pieces():
                cgi.stdin.write(piece)
            cgi.stdin.close()
            self._answer(*cgi.stdout.read().split(b"\r\n\r\n", 1))

    do_POST = do_GET

    def _pieces(self) -> Iterator[bytes]:
        if self.headers.get("Transfer-Encoding"):
            while size := int(self.rfile.readline(), 16):
                yield self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        left = int(self.headers.get("Content-Length", "0"))
        while left and (piece := self.rfile.read(min(left, 65_536))):
            left -= len(piece)
            yield piece

    def _answer(self, head: bytes, body: bytes) -> None:
        fields = dict(line.split(": ", 1) for line in head.decode().split("\r\n"))
        self.send_response(int(fields.pop("Status", "200")[:3]))
        for name, value in (*fields.items(), ("Content-Length", str(len(body)))):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


class _Web6(ThreadingHTTPServer):
    address_family: int = socket.AF_INET6


@contextmanager
def served(handler: type[BaseHTTPRequestHandler], host: str) -> Iterator[int]:
    """Run a web server; give its port."""

    kind = _Web6 if ":" in host else ThreadingHTTPServer
    with kind((host, 0), handler) as web:
        thread = threading.Thread(target=web.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield web.server_address[1]
        finally:
            web.shutdown()
            thread.join()


# Tests --------------------------------------------------------------------------------


def publish(machine: Machine, target: str, *words: str) -> str:
    """Publish a target by a name that every resolver knows; give its URL."""
    server = machine.serve("--http", "127.0.0.1:0", "--domain", "localhost", *words)
    client = machine.up(server.join, "--http", f"app={target}")
    return client.out.wait("http://app.localhost").split()[1]


def fetch(machine: Machine, url: str, *args: str) -> bytes:
    port = url.rpartition(":")[2].strip("/")
    resolve = ("--resolve", f"app.localhost:{port}:127.0.0.1")
    done = machine.run(*curl(*resolve, *args, url))
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_login_that_belongs_to_a_connection_works(machine: Machine) -> None:
    with Target(ask_ntlm) as target:
        url = publish(machine, f"127.0.0.1:{target.port}")
        login = ("--ntlm", "--user", "anna:secret")
        assert fetch(machine, url, *login) == b"hello anna"
        again = fetch(machine, url, *login, url)
        assert again == b"hello anna" * 2


def test_a_login_that_belongs_to_a_connection_is_nobody_elses(
    machine: Machine,
) -> None:
    with Target(ask_ntlm) as target:
        url = publish(machine, f"127.0.0.1:{target.port}")
        fetch(machine, url, "--ntlm", "--user", "anna:secret")
        port = url.rpartition(":")[2].strip("/")
        done = machine.run(*curl("--resolve", f"app.localhost:{port}:127.0.0.1", url))
        assert b"401" in done.stderr


def push(machine: Machine, root: Path, size: int) -> None:
    """Push a commit with a file of so many random bytes, and clone it back."""
    git = (program("git"), "-c", "user.name=me", "-c", "user.email=me@t.test",
           "-c", "gc.auto=0", "-c", "core.compression=0")  # fmt: skip
    work, back, bare = machine.home / "work", machine.home / "back", root / "it.git"

    def run(*words: str) -> None:
        done = machine.run(*git, *words, timeout_s=240)
        assert done.returncode == 0, done.stderr

    run("init", "-q", "--bare", str(bare))
    run("-C", str(bare), "config", "http.receivepack", "true")
    run("init", "-q", "-b", "main", str(work))
    with (work / "large").open("wb") as file:
        for _ in range(size >> 20):
            file.write(os.urandom(1 << 20))
    run("-C", str(work), "add", ".")
    run("-C", str(work), "commit", "-q", "-m", "x")
    handler = type("_", (GitPages,), {"root": root, "env": machine.env})
    with served(handler, "127.0.0.1") as port:
        url = publish(machine, str(port)).rstrip("/") + "/it.git"
        run("-C", str(work), "push", "-q", url, "main")
        run("clone", "-q", "-b", "main", url, str(back))
    digests = [machine.digest_of("cat", str(at / "large")) for at in (work, back)]
    assert digests[0] == digests[1]
    shutil.rmtree(work)
    shutil.rmtree(back)


def test_git_pushes_and_clones_20_mb(machine: Machine, tmp_path: Path) -> None:
    push(machine, tmp_path / "root", 20 << 20)


@pytest.mark.deep
@pytest.mark.timeout(400)
def test_git_pushes_and_clones_300_mb(
    machine: Machine, tmp_path: Path, figures: Callable[[str], None]
) -> None:
    began = time.monotonic()
    push(machine, tmp_path / "root", 300 << 20)
    figures(f"git push and clone of 300 MB: {time.monotonic() - began:.0f} s")


class Heard(Hello):
    """Say the fields that came."""

    def do_GET(self) -> None:
        said = str(self.headers).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)


@pytest.mark.parametrize("written", ["{}", "localhost:{}", "[::1]:{}"])
def test_a_target_on_ipv6_alone_is_found(machine: Machine, written: str) -> None:
    """Node listens so when ``localhost`` is ::1 first."""
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("NOT TESTED: no IPv6 here")
    with served(Hello, "::1") as port:
        url = publish(machine, written.format(port))
        assert fetch(machine, url) == b"hello"


README: Final = Path(__file__).parents[2] / "README.md"
CONF: Final = """
daemon off;
worker_processes 1;
pid {home}/pid;
error_log stderr crit;
events {{ worker_connections 64; }}
http {{
    access_log off;
    client_body_temp_path {home}/1;
    proxy_temp_path {home}/2;
    fastcgi_temp_path {home}/3;
    uwsgi_temp_path {home}/4;
    scgi_temp_path {home}/5;
    {recipe}
}}
"""


def behind_nginx(machine: Machine, inner: str) -> int:
    """Run nginx as README says, in front of a port; give its own."""
    nginx, port = program("nginx"), str(free_port())
    recipe = README.read_text().split("<!-- nginx -->\n```nginx\n")[1].split("```")[0]
    for said, here in (
        ("listen 80;", f"listen 127.0.0.1:{port};"),
        (".t.example.net", ".localhost"),
        ("127.0.0.1:8080", inner),
    ):
        assert said in recipe
        recipe = recipe.replace(said, here)
    config = machine.home / "nginx.conf"
    config.write_text(CONF.format(home=machine.home, recipe=recipe))
    machine.start(nginx, "-e", "stderr", "-p", str(machine.home), "-c", str(config))

    def listens() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", int(port))) == 0

    eventually(listens, "nginx listens")
    return int(port)


def test_the_recipe_for_nginx_says_who_visitors_are(machine: Machine) -> None:
    with served(Heard, "127.0.0.1") as target:
        url = publish(machine, str(target), "--trusted-proxy", "127.0.0.1")
        port = behind_nginx(machine, f"127.0.0.1:{url.rpartition(':')[2].strip('/')}")
        forged = ("-H", "X-Forwarded-For: 6.6.6.6", "-H", "X-Forwarded-Host: evil.test")
        said = fetch(machine, f"http://app.localhost:{port}/", *forged).decode()
        heard = dict(line.split(": ", 1) for line in said.split("\n") if line)
    assert heard["X-Forwarded-For"] == "127.0.0.1"
    assert heard["X-Forwarded-Host"] == heard["Host"] == f"app.localhost:{port}"


def test_websockets_and_uploads_pass_nginx_as_the_recipe_has_it(
    machine: Machine,
) -> None:
    with websocket_echo() as target:
        url = publish(machine, str(target), "--trusted-proxy", "127.0.0.1")
        port = behind_nginx(machine, f"127.0.0.1:{url.rpartition(':')[2].strip('/')}")
        with connect_websocket(f"ws://app.localhost:{port}/", sock=visit(port)) as talk:
            talk.send("x" * 100_000)
            assert talk.recv(WAIT_S) == "x" * 100_000
