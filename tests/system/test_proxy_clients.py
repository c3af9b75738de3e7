"""Programs that know proxies, through a real tunnel: every kind on one port."""

from __future__ import annotations

import hashlib
import http.client
import socket
from typing import TYPE_CHECKING, Final

import pytest
from python_socks import ProxyType
from python_socks.sync import Proxy
from support.processes import WAIT_S, curl
from support.pysocks import socks
from support.targets import END, ask_socks, read_exactly, read_to_end, visit

if TYPE_CHECKING:
    from support.world import World

BY_NAME: Final = "localhost"
BY_ADDRESS: Final = "127.0.0.1"
CURL: Final = {
    "--socks4": BY_ADDRESS,
    "--socks4a": BY_NAME,
    "--socks5": BY_ADDRESS,
    "--socks5-hostname": BY_NAME,
    "--proxy": BY_NAME,
    "--proxytunnel --proxy": BY_NAME,
    "--http1.0 --proxy": BY_ADDRESS,
    "--proxytunnel --proxy1.0": BY_NAME,
}


def by_curl(world: World, how: str, path: str, *args: str) -> tuple[str, ...]:
    proxy = f"127.0.0.1:{world.port('C', 'web')}"
    url = f"http://{CURL[how]}:{world.targets['web'].port}{path}"
    return curl(*how.split(), proxy, url, *args)


@pytest.mark.parametrize("how", CURL)
def test_curl_downloads(world: World, how: str) -> None:
    """Points 10, 23, 24, 38, 45, 51, 69."""
    size = world.content.size
    command = by_curl(world, how, f"/0/{size}")
    assert world.machine.digest_of(*command) == world.content.digest()


@pytest.mark.parametrize("how", ["--socks4a", "--socks5-hostname", "--proxy"])
def test_curl_uploads(world: World, how: str) -> None:
    """Points 10, 24, 50, 57."""
    expect = ("-H", "Expect: 100-continue", "--expect100-timeout", "0.1")
    command = by_curl(world, how, "/", "-T", str(world.content.path), *expect)
    done = world.machine.run(*command)
    assert done.returncode == 0, done.stderr
    assert done.stdout.decode() == world.content.digest()


@pytest.mark.parametrize("how", ["--socks4a", "--socks5-hostname", "--proxytunnel -x"])
def test_curl_says_that_the_target_refuses(world: World, how: str) -> None:
    """Points 14, 23, 40."""
    proxy = f"127.0.0.1:{world.port('C', 'web')}"
    url = f"http://localhost:{world.targets['nobody'].port}/"
    shown = ("--write-out", "%{http_connect}")
    done = world.machine.run(*curl(*how.split(), proxy, *shown, url))
    if how.startswith("--socks"):
        assert done.returncode == 97, done.stderr
    else:
        assert done.returncode in (22, 56), "curl before and after 8"
        assert done.stdout == b"502"


def test_curl_gets_a_bad_gateway_from_the_http_proxy(world: World) -> None:
    """Points 40, 68."""
    proxy = f"127.0.0.1:{world.port('C', 'web')}"
    url = f"http://localhost:{world.targets['nobody'].port}/"
    done = world.machine.run(*curl("-x", proxy, url))
    assert done.returncode == 22
    assert b"502" in done.stderr


def test_one_app_connection_goes_to_many_origins(world: World) -> None:
    """Point 54."""
    port = world.targets["web"].port
    app = http.client.HTTPConnection(
        "127.0.0.1", world.port("C", "web"), timeout=WAIT_S
    )
    for name in (BY_NAME, BY_ADDRESS, BY_NAME, BY_NAME):
        app.request("GET", f"http://{name}:{port}/5/1000")
        kept = app.sock
        answer = app.getresponse()
        assert hashlib.sha256(answer.read()).hexdigest() == world.content.digest(
            5, 1000
        )
        assert app.sock is kept is not None
    app.close()


@pytest.mark.parametrize(
    "kind", [ProxyType.SOCKS4, ProxyType.SOCKS5, ProxyType.HTTP], ids=str
)
def test_python_socks_connects(world: World, kind: ProxyType) -> None:
    """Points 10, 23, 38, 72."""
    port = world.targets["echo"].port
    proxy = Proxy(kind, "127.0.0.1", world.port("C", "web"), rdns=True)
    with proxy.connect("localhost", port, timeout=WAIT_S) as app:
        app.sendall(b"ping")
        assert read_exactly(app, 4) == b"ping"
        app.shutdown(socket.SHUT_WR)
        assert app.recv(1) == b""


@pytest.mark.parametrize("kind", [socks.SOCKS4, socks.SOCKS5, socks.HTTP])
def test_pysocks_connects(world: World, kind: int) -> None:
    """Points 10, 24, 38, 72."""
    with socks.socksocket() as app:
        app.set_proxy(kind, "127.0.0.1", world.port("C", "web"), rdns=True)
        app.settimeout(WAIT_S)
        app.connect(("localhost", world.targets["echo"].port))
        app.sendall(b"ping")
        assert read_exactly(app, 4) == b"ping"


def test_half_close_passes_through_connect(world: World) -> None:
    """Point 41."""
    port = world.targets["answer_at_end"].port
    with visit(world.port("C", "web")) as app:
        app.sendall(f"CONNECT localhost:{port} HTTP/1.1\r\nHost: x\r\n\r\nabc".encode())
        app.shutdown(socket.SHUT_WR)
        data, _ = read_to_end(app)
    head, _, rest = data.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    assert rest[:64].decode() == hashlib.sha256(b"abc").hexdigest()
    assert len(rest) == 64 + (1 << 20)
    assert world.targets["answer_at_end"].next_seen() == END


def test_an_early_answer_is_heard_by_who_still_sends(world: World) -> None:
    """Point 55."""
    port = world.targets["answer_early"].port
    with visit(world.port("C", "web")) as app:
        size = 1 << 30
        app.sendall(
            f"PUT http://localhost:{port}/ HTTP/1.1\r\nHost: x\r\n"
            f"Content-Length: {size}\r\n\r\n".encode()
        )
        app.sendall(bytes(100_000))
        data, _ = read_to_end(app)
    assert data.startswith(b"HTTP/1.1 413 ")
    assert b"connection: close" in data.lower()


def test_a_target_without_a_name_is_answered_as_one_that_refuses(world: World) -> None:
    """Points 12, 13: none of these is looked up here."""
    for host in ("a b", "a\r\nX: y", ""):
        reply, app = ask_socks(world.port("C", "web"), host, 80)
        app.close()
        assert reply == 8
