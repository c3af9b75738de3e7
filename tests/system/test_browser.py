"""Headless Chromium through a real tunnel: every kind of proxy, and a shared folder."""

from __future__ import annotations

import base64
import collections
import ssl
import struct
import threading
import zlib
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Final

import pytest
import trustme
from support.browser import NO_NAMES_HERE, Browser, find_browser
from support.processes import WAIT_S, curl, free_port
from support.websocket import websocket_echo

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.processes import Machine
    from support.world import World

IMAGES: Final = 100
PAGE: Final = (
    "<body><script>let n = 0;"
    f"for (let i = 0; i < {IMAGES}; i++) {{ const image = new Image();"
    "image.onload = () => { n += image.naturalWidth };"
    "image.src = '/' + i + '.png'; document.body.append(image); }"
    "onload = () => { document.body.innerText = n + ' images'; };"
    "</script></body>"
).encode()


def _png() -> bytes:
    """One dot, with enough behind it that it does not fit into one segment."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0))
        + chunk(b"tEXt", b"Comment\0" + b"x" * 5_000)
        + chunk(b"IDAT", zlib.compress(b"\0\0"))
        + chunk(b"IEND", b"")
    )


PNG: Final = _png()


class Site(ThreadingHTTPServer):
    """A page with images; counts what is asked for."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, page: bytes = PAGE) -> None:
        self.page = page
        self.asked: collections.Counter[str] = collections.Counter()
        self.via: set[str] = set()
        self.count = threading.Lock()
        self.done = threading.Event()
        super().__init__(("127.0.0.1", 0), _Pages)


class _Pages(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        site = self.server
        assert isinstance(site, Site)
        with site.count:
            site.asked[self.path] += 1
            site.via.add(self.headers.get("Via", ""))
        if self.path == "/held.png":
            site.done.wait(WAIT_S)
        elif self.path.startswith("/done/"):
            site.done.set()
        if self.path == "/":
            self._answer(200, "text/html", site.page)
        elif self.path.endswith(".png"):
            self._answer(200, "image/png", PNG)
        else:
            self._answer(404, "text/plain", b"")

    def _answer(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def running(site: Site) -> Iterator[Site]:
    thread = threading.Thread(target=site.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield site
    finally:
        site.shutdown()
        site.server_close()
        thread.join()


@pytest.fixture
def browser(machine: Machine) -> Browser:
    return find_browser(machine)


@pytest.mark.parametrize("scheme", ["http", "socks5"])
def test_a_page_with_100_images_loads_through_a_proxy(
    browser: Browser, world: World, scheme: str
) -> None:
    """Points 11, 54, 70: Chromium itself knows no names here."""
    proxy = f"{scheme}://127.0.0.1:{world.port('C', 'web')}"
    with running(Site()) as site:
        url = f"http://localhost:{site.server_port}/"
        assert browser.through(proxy, url, NO_NAMES_HERE) == f"{IMAGES} images"
    del site.asked["/favicon.ico"]
    paths = ["/", *(f"/{number}.png" for number in range(IMAGES))]
    assert site.asked == dict.fromkeys(paths, 1)
    assert all(site.via) == (scheme == "http")


def test_socks4_is_for_addresses(browser: Browser, world: World) -> None:
    """Point 27: Chromium resolves names itself when a proxy speaks socks4."""
    proxy = f"socks4://127.0.0.1:{world.port('C', 'web')}"
    with running(Site()) as site:
        url = f"http://127.0.0.1:{site.server_port}/"
        assert browser.through(proxy, url) == f"{IMAGES} images"
        assert sum(site.asked.values()) >= 1 + IMAGES
        site.asked.clear()
        url = f"http://localhost.localdomain:{site.server_port}/"
        assert browser.through(proxy, url, NO_NAMES_HERE) == ""
        assert not site.asked


@pytest.mark.parametrize("scheme", ["http", "socks5"])
def test_a_page_over_https_loads_through_a_proxy(
    browser: Browser, world: World, scheme: str
) -> None:
    """Points 39, 70: CONNECT with the first words of TLS behind it."""
    proxy = f"{scheme}://127.0.0.1:{world.port('C', 'web')}"
    site = Site()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("localhost").configure_cert(context)
    site.socket = context.wrap_socket(
        site.socket, server_side=True, do_handshake_on_connect=False
    )
    with running(site):
        url = f"https://localhost:{site.server_port}/"
        options = (NO_NAMES_HERE, "--ignore-certificate-errors")
        assert browser.through(proxy, url, *options) == f"{IMAGES} images"
    assert site.via == {""}


def test_a_websocket_echoes_through_a_proxy(browser: Browser, world: World) -> None:
    """Point 61: a browser asks a proxy for it with CONNECT."""

    with websocket_echo() as port:
        page = (
            # A page has loaded when its images have; this one comes when all is done.
            "<body><img src=/held.png><script>"
            f"const ws = new WebSocket('ws://localhost:{port}/');"
            "ws.onopen = () => ws.send('x'.repeat(100000));"
            "ws.onmessage = (e) => fetch('/done/' + e.data.length);</script></body>"
        )
        with running(Site(page.encode())) as site:
            proxy = f"http://127.0.0.1:{world.port('C', 'web')}"
            url = f"http://localhost:{site.server_port}/"
            browser.through(proxy, url, NO_NAMES_HERE)
    assert site.asked["/done/100000"] == 1


def test_nothing_is_loaded_past_a_proxy(browser: Browser) -> None:
    """Point 70: what the others here show came through the proxy."""
    with running(Site()) as site:
        url = f"http://localhost:{site.server_port}/"
        for scheme in ("http", "socks4", "socks5"):
            browser.through(f"{scheme}://127.0.0.1:{free_port()}", url)
    assert not site.asked


def test_a_target_that_refuses_is_a_page_that_says_so(
    browser: Browser, world: World
) -> None:
    """Point 40."""
    proxy = f"http://127.0.0.1:{world.port('C', 'web')}"
    url = f"http://127.0.0.1:{world.targets['nobody'].port}/"
    assert "refuse" in browser.through(proxy, url)


def test_a_proxy_with_users_loads_nothing_for_others(
    browser: Browser, world: World, machine: Machine
) -> None:
    """Points 4, 42: Chromium knows no users of a SOCKS proxy."""
    client = machine.tunnel(
        "socks", "127.0.0.1:0", "--auth", "me:secret", "--to", world.server.join
    )
    port = client.out.wait("socks ").split()[1].rpartition(":")[2]
    with running(Site()) as site:
        url = f"http://localhost:{site.server_port}/"
        for scheme in ("http", "socks5"):
            browser.through(f"{scheme}://127.0.0.1:{port}", url)
    assert not site.asked


def test_a_shared_folder_opens_and_nothing_beside_it(
    browser: Browser, machine: Machine, tmp_path: Path
) -> None:
    (tmp_path / "secret.txt").write_text("secret")
    folder = tmp_path / "site"
    (folder / "sub").mkdir(parents=True)
    dot = base64.b64encode(PNG).decode()
    (folder / "index.html").write_text(
        "<link rel=stylesheet href=sub/style.css><img src=sub/dot.png>"
        f"<img src=data:image/png;base64,{dot}><script src=sub/run.js></script>"
    )
    (folder / "sub" / "style.css").write_text("body { color: rgb(1, 2, 3) }")
    (folder / "sub" / "dot.png").write_bytes(PNG)
    (folder / "sub" / "run.js").write_text(
        "onload = () => { const images = [...document.images];"
        "document.body.innerText = images.map(i => i.naturalWidth) + ' '"
        "+ getComputedStyle(document.body).color; }"
    )
    (folder / "out.txt").symlink_to("../secret.txt")
    (folder / "up").symlink_to("..")
    server = machine.serve("--http", "127.0.0.1:0", "--domain", "localhost")
    client = machine.tunnel("share", str(folder), "--name", "site", to=server.join)
    url = client.out.wait("http ").split()[1]
    assert browser.text(url) == "1,1 rgb(1, 2, 3)"
    where = ("--resolve", f"{url.split('/')[2]}:127.0.0.1", "--path-as-is")
    ways_out = ("../secret.txt", "%2e%2e/secret.txt", "sub/../../secret.txt")
    for path in (*ways_out, "..%2fsecret.txt", "out.txt", "up/secret.txt", "up/"):
        command = [word for word in curl() if word != "--fail"]
        shown = ("--write-out", "%{http_code}")
        done = machine.run(*command, *where, *shown, url + path)
        assert done.stdout.endswith(b"404"), (path, done)
        assert b"secret" not in done.stdout
    assert "secret" not in browser.text(url + "out.txt")


def test_a_page_with_100_images_loads_over_one_connection_of_http_2(
    browser: Browser, machine: Machine, tmp_path: Path
) -> None:
    authority = trustme.CA()
    pair = authority.issue_cert("site.localhost")
    chain, key = tmp_path / "chain.pem", tmp_path / "key.pem"
    chain.write_bytes(b"".join(one.bytes() for one in pair.cert_chain_pems))
    pair.private_key_pem.write_to_path(key)
    ca = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(ca)
    server = machine.serve(
        "--https", "127.0.0.1:0", "--domain", "localhost",
        "--certificate", str(chain), str(key),
    )  # fmt: skip
    page = PAGE.replace(
        b"n + ' images'",
        b"n + ' images ' + [...new Set(performance.getEntriesByType('resource')"
        b".map(one => one.nextHopProtocol))]",
    )
    with running(Site(page)) as site:
        up = machine.up(server.join, "--http", f"site=127.0.0.1:{site.server_port}")
        url = up.out.wait("http ").split()[1]
        found = browser.text(url, "--ignore-certificate-errors")
        assert found == f"{IMAGES} images h2"
        where = ("--resolve", f"{url.split('/')[2]}:127.0.0.1", "--cacert", str(ca))
        shown = ("--write-out", "%{http_version} %{http_code}", "--output", "/dev/null")
        done = machine.run(*curl(), "--http2", *where, *shown, url)
        assert done.stdout == b"2 200", done
    del site.asked["/favicon.ico"]
    paths = ["/", *(f"/{number}.png" for number in range(IMAGES))]
    assert set(paths) <= set(site.asked)
