"""More programs that people use, through a real tunnel: ssh, git, pip, dig and others.

What curl, PySocks and python-socks do is in ``test_proxy_clients.py``.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import re
import shlex
import socket
import ssl
import struct
import sys
import threading
import time
import zipfile
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler
from typing import TYPE_CHECKING, Final, Self

import dns.message
import dns.query
import httpx
import pytest
import trustme
from python_socks import ProxyType
from python_socks.async_.asyncio import Proxy
from support.processes import WAIT_S, Sshd, curl, eventually, program
from support.pysocks import socks
from support.targets import Target, flood, visit
from support.web_server import web_server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from support.processes import Machine, Program, Server
    from support.world import World

QUESTIONS: Final = 300
LATE_S: Final = 1.0
"""Far above what is measured: the answers must come, however busy the machine is."""


def port_of(client: Program, kind: str) -> int:
    return int(client.out.wait(f"{kind} ").split()[1].rpartition(":")[2])


def proxy_of(world: World) -> str:
    return f"127.0.0.1:{world.port('C', 'web')}"


# curl ---------------------------------------------------------------------------------


@pytest.fixture
def users_proxy(machine: Machine, world: World) -> str:
    """A proxy that asks for a password; give its address."""
    login = ("--auth", "me:s:e%c rét", "--to", world.server.join)
    return (
        f"127.0.0.1:{port_of(machine.tunnel('socks', '127.0.0.1:0', *login), 'socks')}"
    )


@pytest.mark.parametrize(
    "how", ["--socks5", "--socks5-hostname", "-x", "--proxytunnel -x", "--socks4a"]
)
def test_curl_needs_the_right_password(
    world: World, users_proxy: str, how: str
) -> None:
    """Points 4, 5, 26, 42."""
    url = f"http://localhost:{world.targets['web'].port}/0/1000"
    ends = []
    for login in ((), ("--proxy-user", "me:no"), ("--proxy-user", "me:s:e%c rét")):
        done = world.machine.run(*curl(*how.split(), users_proxy, *login, url))
        ends.append((done.returncode, hashlib.sha256(done.stdout).hexdigest()))
    codes = [code for code, _ in ends]
    if how == "--socks4a":  # it has no passwords
        assert codes == [97, 97, 97]
    else:
        assert set(codes[:2]) <= ({97} if "socks" in how else {22, 56})
        assert ends[2] == (0, world.content.digest(0, 1000))


LARGE_BYTES: Final = 200_000_000
KEPT_BYTES: Final = 32_000_000
"""What an allocator may keep of what passed, far below what passed."""


def give_large(conn: socket.socket) -> object:
    """Answer with more than anybody should hold."""
    conn.recv(65_536)
    conn.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % LARGE_BYTES)
    for _ in range(LARGE_BYTES // 1_000_000):
        conn.sendall(bytes(1_000_000))
    return conn.recv(1)


@pytest.mark.parametrize("way", ["up", "down"])
def test_a_large_body_passes_the_http_proxy_and_is_not_kept(
    world: World, tmp_path: Path, way: str
) -> None:
    """Point 57."""
    programs = (world.server.program, world.client)
    before = [running.rss_bytes() for running in programs]
    if way == "up":
        body = tmp_path / "body"
        with body.open("wb") as file:
            file.truncate(LARGE_BYTES)
        url = f"http://localhost:{world.targets['web'].port}/"
        command = curl("-x", proxy_of(world), "-T", str(body), url)
        got = world.machine.run(*command).stdout.decode()
    else:
        with Target(give_large) as target:
            url = f"http://localhost:{target.port}/"
            got = world.machine.digest_of(*curl("-x", proxy_of(world), url))
    assert got == hashlib.sha256(bytes(LARGE_BYTES)).hexdigest()
    for running, had in zip(programs, before, strict=True):
        assert running.rss_bytes() - had < KEPT_BYTES


def test_an_event_passes_the_http_proxy_when_it_is_sent(
    world: World, figures: Callable[[str], None]
) -> None:
    """Point 65: the origin sends one only when the one before has been heard."""
    heard = threading.Semaphore(1)
    sent: list[float] = []

    def events(conn: socket.socket) -> object:
        conn.recv(65_536)
        conn.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
        while heard.acquire(timeout=WAIT_S) and len(sent) < 5:
            sent.append(time.monotonic())
            conn.sendall(b"data: x\n\n")
        return None

    with Target(events) as target:
        url = f"http://localhost:{target.port}/"
        running = world.machine.start(*curl("-N", "-x", proxy_of(world), url))
        delays = []
        for number in range(1, 6):
            running.out.wait("data: x", number)
            delays.append(time.monotonic() - sent[-1])
            heard.release()
        assert running.wait() == 0
    figures(f"events through the HTTP proxy: {1e3 * delays[0]:.1f} ms for the first")


# TLS by name --------------------------------------------------------------------------


def test_h2_passes_by_name_and_is_offered_where_tls_ends_here(
    machine: Machine, tmp_path: Path
) -> None:
    """Points 66, 67."""
    authority = trustme.CA()
    leaf = authority.issue_cert("*.t.test")
    leaf.private_key_pem.write_to_path(tmp_path / "key.pem")
    leaf.cert_chain_pems[0].write_to_path(tmp_path / "chain.pem")
    behind = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    leaf.configure_cert(behind)
    behind.set_alpn_protocols(["h2"])

    def echo(conn: socket.socket) -> object:
        with behind.wrap_socket(conn.dup(), server_side=True) as secure:
            secure.sendall(secure.recv(100))
            return secure.selected_alpn_protocol()

    visitor = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.configure_trust(visitor)
    visitor.set_alpn_protocols(["h2", "http/1.1"])
    server = machine.serve(
        "--http", "127.0.0.1:0", "--https", "127.0.0.1:0", "--domain", "t.test",
        "--certificate", str(tmp_path / "chain.pem"), str(tmp_path / "key.pem"),
    )  # fmt: skip
    with Target(echo) as target:
        port = str(target.port)
        client = machine.up(
            server.join, "--https", f"passed={port}", "--http", f"ended={port}"
        )
        line = client.out.wait("https ")
        public = int(line.split()[1].rstrip("/").rpartition(":")[2])
        found = {}
        for name in ("passed", "ended"):
            with (
                visit(public) as raw,
                visitor.wrap_socket(raw, server_hostname=f"{name}.t.test") as sock,
            ):
                found[name] = sock.selected_alpn_protocol()
                if name == "passed":
                    sock.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
                    assert sock.recv(100) == b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    assert found == {"passed": "h2", "ended": "h2"}


# Python -------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["http", "socks5", "socks5h"])
def test_httpx_fetches_uploads_and_hears_an_error(world: World, scheme: str) -> None:
    """Point 72."""
    web, nobody = world.targets["web"].port, world.targets["nobody"].port
    proxy = f"{scheme}://{proxy_of(world)}"
    with httpx.Client(proxy=proxy, trust_env=False, timeout=WAIT_S) as client:
        got = client.get(f"http://localhost:{web}/7/100000")
        digest = hashlib.sha256(got.content).hexdigest()
        assert digest == world.content.digest(7, 100_000)
        with world.content.path.open("rb") as file:
            size = {"Content-Length": str(world.content.size)}
            put = client.put(f"http://localhost:{web}/", content=file, headers=size)
        assert put.text == world.content.digest()
        if scheme == "http":  # it leaks a socket when a SOCKS proxy says no
            refused = client.get(f"http://localhost:{nobody}/")
            assert refused.status_code == 502


def test_python_socks_connects_with_asyncio(world: World) -> None:
    """Point 72."""

    async def ask(kind: ProxyType) -> bytes:
        proxy = Proxy(kind, "127.0.0.1", world.port("C", "web"), rdns=True)
        sock = await proxy.connect("localhost", world.targets["echo"].port)
        reader, writer = await asyncio.open_connection(sock=sock)
        writer.write(b"ping")
        writer.write_eof()
        heard = await reader.read()
        writer.close()
        await writer.wait_closed()
        return heard

    for kind in (ProxyType.SOCKS4, ProxyType.SOCKS5, ProxyType.HTTP):
        assert asyncio.run(ask(kind)) == b"ping"


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


def folder_on_the_web(
    folder: Path, context: ssl.SSLContext | None
) -> AbstractContextManager[int]:
    return web_server(partial(_Quiet, directory=str(folder)), context)


@pytest.mark.parametrize("scheme", ["http", "socks5h"])
def test_pip_downloads_over_tls_through_a_proxy(
    world: World, tmp_path: Path, scheme: str
) -> None:
    """Point 72: pip is requests and urllib3."""
    index = tmp_path / "site" / "simple" / "thing"
    index.mkdir(parents=True)
    name = "thing-1-py3-none-any.whl"
    with zipfile.ZipFile(index / name, "w") as wheel:
        wheel.writestr("thing.py", "#" * 1_000_000)
        about = "Metadata-Version: 2.1\nName: thing\nVersion: 1\n"
        wheel.writestr("thing-1.dist-info/METADATA", about)
        wheel.writestr("thing-1.dist-info/WHEEL", "Wheel-Version: 1.0\n")
    (index / "index.html").write_text(f"<a href={name}>{name}</a>")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    with folder_on_the_web(tmp_path / "site", context) as port:
        done = world.machine.run(
            sys.executable, "-m", "pip", "--isolated", "-q", "download", "--no-deps",
            "--no-cache-dir", "--disable-pip-version-check",
            "--proxy", f"{scheme}://{proxy_of(world)}",
            "--cert", str(tmp_path / "ca.pem"),
            "--index-url", f"https://localhost:{port}/simple/",
            "-d", str(tmp_path / "got"), "thing",
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "got" / name).read_bytes() == (index / name).read_bytes()


# proxychains --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["strict", "dynamic", "random"])
def test_proxychains_joins_several_of_our_proxies(
    world: World, tmp_path: Path, kind: str
) -> None:
    """Point 71: each proxy of the chain is asked to connect to the next one."""
    port = world.port("C", "web")
    path = tmp_path / "proxychains.conf"
    kinds = ("socks5", "http", "socks4", "http", "socks5")
    chain = "".join(f"{how} 127.0.0.1 {port}\n" for how in kinds)
    path.write_text(
        f"{kind}_chain\nquiet_mode\nproxy_dns\n"
        + ("chain_len = 4\n" if kind == "random" else "")
        + f"tcp_read_time_out 15000\ntcp_connect_time_out 8000\n[ProxyList]\n{chain}"
    )
    url = f"http://localhost:{world.targets['web'].port}/3/1000000"
    proxychains = (program("proxychains4"), "-q", "-f", str(path))
    got = world.machine.digest_of(*proxychains, *curl("--ipv4", url))
    assert got == world.content.digest(3, 1_000_000)


# ssh and git --------------------------------------------------------------------------


@pytest.fixture
def sshd(machine: Machine) -> Sshd:
    program("ssh")
    return Sshd(machine)


@pytest.mark.parametrize("version", ["5", "4", "connect"])
def test_ssh_logs_in_through_nc(
    world: World, machine: Machine, sshd: Sshd, version: str
) -> None:
    """Point 22: the server speaks first."""
    nc = f"{program('nc')} -X {version} -x {proxy_of(world)} %h %p"
    where = ("-p", str(sshd.port), "127.0.0.1")
    data = bytes(range(256)) * 10_000
    command = (program("ssh"), *sshd.options(nc), *where, "sha256sum")
    done = machine.run(*command, stdin=data)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[0].decode() == hashlib.sha256(data).hexdigest()


@pytest.fixture
def repository(machine: Machine) -> Path:
    """Make a git repository with one file."""
    git = program("git")
    work = machine.home / "work"
    work.mkdir()
    (work / "file").write_bytes(bytes(range(256)) * 4000)
    who = ("-c", "user.name=n", "-c", "user.email=e@example.net")
    for words in (
        ("init", "-q", "-b", "main"),
        ("add", "file"),
        (*who, "commit", "-q", "-m", "first"),
        ("update-server-info",),
    ):
        done = machine.run(git, *words, cwd=work)
        assert done.returncode == 0, done.stderr
    return work


def clone(machine: Machine, repository: Path, url: str, *settings: str) -> None:
    """Clone and compare."""
    copy = machine.home / "copy"
    options = [word for setting in settings for word in ("-c", setting)]
    done = machine.run(program("git"), *options, "clone", "-q", url, str(copy))
    assert done.returncode == 0, done.stderr
    assert (copy / "file").read_bytes() == (repository / "file").read_bytes()


@pytest.mark.parametrize("scheme", ["http", "socks5h", "socks5", "socks4a"])
def test_git_clones_over_http(
    world: World, machine: Machine, repository: Path, scheme: str
) -> None:
    with folder_on_the_web(repository, None) as port:
        url = f"http://localhost:{port}/.git"
        clone(machine, repository, url, f"http.proxy={scheme}://{proxy_of(world)}")


def test_git_clones_over_ssh_through_nc(
    world: World, machine: Machine, repository: Path, sshd: Sshd
) -> None:
    """Point 22."""
    nc = f"{program('nc')} -X 5 -x {proxy_of(world)} %h %p"
    ssh = shlex.join((program("ssh"), *sshd.options(nc)))
    url = f"ssh://127.0.0.1:{sshd.port}{repository}"
    clone(machine, repository, url, f"core.sshCommand={ssh}")


# DNS ----------------------------------------------------------------------------------


class Names:
    """A DNS server: every name has one address, and ``large`` a text of 3 kB."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as waker:
            waker.sendto(b"", ("127.0.0.1", self.port))
        self._thread.join()
        self._socket.close()

    def _serve(self) -> None:
        while True:
            data, source = self._socket.recvfrom(65_535)
            if not data:
                return
            self._socket.sendto(answer(data), source)


def answer(query: bytes) -> bytes:
    """Answer by hand: the time that this takes is in what is measured."""
    end = query.index(0, 12)
    name = query[13:end].partition(b"\4test")[0]
    if name == b"large":
        kind, data = 16, (b"\xfa" + b"x" * 250) * 12
    else:
        number = int(name[1:])
        kind, data = 1, bytes((10, 0, number // 250, number % 250))
    head = query[:2] + struct.pack(">HHHHH", 0x8580, 1, 1, 0, 0)
    record = struct.pack(">HHHIH", 0xC00C, kind, 1, 60, len(data))
    return head + query[12 : end + 5] + record + data


@pytest.fixture
def names() -> Iterator[Names]:
    with Names() as made:
        yield made


@pytest.fixture(params=["tls", pytest.param("plain", marks=pytest.mark.deep)])
def server(request: pytest.FixtureRequest, machine: Machine) -> Server:
    return machine.serve(*(("--plain",) if request.param == "plain" else ()))


@contextmanager
def downloading(port: int) -> Iterator[Callable[[], int]]:
    """Fetch without an end; give a function that tells how many bytes came."""
    got = 0
    with visit(port) as download:

        def read() -> None:
            nonlocal got
            with contextlib.suppress(OSError):
                while data := download.recv(1 << 20):
                    got += len(data)

        reader = threading.Thread(target=read)
        reader.start()
        try:
            eventually(lambda: got > 1 << 25, "the download fills the link")
            yield lambda: got
        finally:
            download.shutdown(socket.SHUT_RDWR)
            reader.join()


def test_dig_is_answered_while_a_download_fills_the_link(
    machine: Machine,
    server: Server,
    names: Names,
    tmp_path: Path,
    figures: Callable[[str], None],
) -> None:
    """One try for each question: none may be lost."""
    dig = program("dig")
    asked = tmp_path / "asked"
    asked.write_text("".join(f"n{number}.test A\n" for number in range(QUESTIONS)))
    with Target(flood) as bulk:
        client = machine.up(
            server.join, "--udp", str(names.port), "--tcp", f"0=127.0.0.1:{bulk.port}"
        )
        where = ("@127.0.0.1", "-p", str(port_of(client, "udp")))
        with downloading(port_of(client, "tcp")) as count:
            before = count()
            done = machine.run(
                dig, "-r", "-u", *where, "+tries=1", "+timeout=5", "-f", str(asked)
            )
            assert count() > before, "the questions stopped the download"
    assert done.returncode == 0, done.stdout[-1_000:]
    text = done.stdout.decode()
    answers = re.findall(r"^n(\d+)\.test\.\s+60\s+IN\s+A\s+(\S+)$", text, re.MULTILINE)
    assert answers == [(str(n), f"10.0.{n // 250}.{n % 250}") for n in range(QUESTIONS)]
    took = sorted(int(us) for us in re.findall(r"Query time: (\d+) usec", text))
    assert len(took) == QUESTIONS
    p50, p99 = took[QUESTIONS // 2], took[QUESTIONS * 99 // 100]
    figures(f"dig beside a download: p50 {p50 / 1e3:.1f} ms, p99 {p99 / 1e3:.1f} ms")
    assert p99 < LATE_S * 1e6


def test_a_large_answer_comes_to_dig_in_one_piece(
    machine: Machine, server: Server, names: Names
) -> None:
    client = machine.up(server.join, "--udp", str(names.port))
    where = ("@127.0.0.1", "-p", str(port_of(client, "udp")))
    question = ("+bufsize=4096", "+short", "large.test", "TXT")
    done = machine.run(program("dig"), "-r", *where, "+notcp", *question)
    assert done.stdout.decode().count('"' + "x" * 250 + '"') == 12


def test_dnspython_asks_through_socks(
    machine: Machine, server: Server, names: Names
) -> None:
    """Points 28, 29: it checks that the answer comes from whom it asked."""
    client = machine.tunnel("socks", "127.0.0.1:0", to=server.join)
    with socks.socksocket(socket.AF_INET, socket.SOCK_DGRAM) as app:
        app.set_proxy(socks.SOCKS5, "127.0.0.1", port_of(client, "socks"))
        app.settimeout(WAIT_S)
        ask = partial(
            dns.query.udp, where="127.0.0.1", port=names.port, sock=app, timeout=WAIT_S
        )
        for number in range(20):
            query = dns.message.make_query(f"n{number}.test", "A", use_edns=True)
            answer = ask(query)
            assert answer.answer[0][0].address == f"10.0.0.{number}"
        large = dns.message.make_query("large.test", "TXT", use_edns=True, payload=4096)
        answer = ask(large)
        assert len(answer.answer[0][0].strings) == 12
