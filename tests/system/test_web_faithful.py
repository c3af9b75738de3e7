"""The same requests to a web server, through nginx, and by name through the tunnel.

And through frp, where it is installed. What each says is in ``support.web_answers``.
"""

from __future__ import annotations

import hashlib
import socket
import ssl
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
import trustme
from support.odd_site import BIG_BYTES, EVENTS, OddSite, big, big_digest
from support.processes import WAIT_S, Machine, eventually, free_port, program
from support.targets import visit
from support.web_answers import (
    DIRECT,
    FRP,
    FRP_ADDS,
    FRP_VERSION,
    NGINX,
    NGINX_VERSION,
    OURS,
    in_case_of_go,
    ours,
    page,
    without_additions,
)
from support.web_script import END, HOST, SCRIPTS, SILENT, ask, get

if TYPE_CHECKING:
    from collections.abc import Iterator

KNOWN: Final = f"nginx/{NGINX_VERSION}"
WHILE_S: Final = 1.0
LATENCY_S: Final = 0.1
DIFFERENCES: Final = Path(__file__).parents[2] / "docs/web.md"


@pytest.fixture(scope="module")
def site() -> Iterator[OddSite]:
    running = OddSite()
    yield running
    running.close()


@pytest.fixture(scope="module")
def by_name(site: OddSite, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Publish the site; give the port."""
    machine = Machine(tmp_path_factory.mktemp("names"))
    yield publish(machine, site, "--http", "127.0.0.1:0")
    machine.close()


def publish(machine: Machine, site: OddSite, *web: str) -> int:
    server = machine.serve(*web, "--domain", "t.test")
    client = machine.up(server.join, "--http", f"app=127.0.0.1:{site.port}")
    url = client.out.wait(f"://{HOST}:").split()[1]
    return int(url.rpartition(":")[2].strip("/"))


@pytest.fixture(scope="module")
def by_tls(
    site: OddSite, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[int, ssl.SSLContext]]:
    """Publish the site with a certificate at the server; give port and context."""
    machine = Machine(tmp_path_factory.mktemp("tls"))
    authority, files = trustme.CA(), [machine.home / "chain", machine.home / "key"]
    leaf = authority.issue_cert(HOST)
    files[0].write_bytes(b"".join(pem.bytes() for pem in leaf.cert_chain_pems))
    leaf.private_key_pem.write_to_path(files[1])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.configure_trust(context)
    web = ("--https", "127.0.0.1:0", "--certificate", *map(str, files))
    yield publish(machine, site, *web), context
    machine.close()


NGINX_CONF: Final = """
daemon off;
worker_processes 1;
pid {home}/nginx.pid;
error_log stderr crit;
events {{ worker_connections 256; }}
http {{
    access_log off;
    client_body_temp_path {home}/body;
    proxy_temp_path {home}/proxy;
    fastcgi_temp_path {home}/fastcgi;
    uwsgi_temp_path {home}/uwsgi;
    scgi_temp_path {home}/scgi;
    large_client_header_buffers 4 64k;
    client_max_body_size 0;
    map $http_upgrade $hop {{ default upgrade; "" ""; }}
    upstream site {{ server 127.0.0.1:{site}; keepalive 8; }}
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://site;
            proxy_http_version 1.1;
            proxy_buffering off;
            proxy_request_buffering off;
            proxy_set_header Host $http_host;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection $hop;
        }}
    }}
}}
"""
"""As its own manual says it for WebSockets and streams."""


@pytest.fixture(scope="module")
def through_nginx(
    site: OddSite, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[int]:
    """Have nginx forward to the site; give its port."""
    nginx = program("nginx")
    machine = Machine(tmp_path_factory.mktemp("nginx"))
    known = machine.run(nginx, "-v").stderr.decode().split()[2]
    if known != KNOWN:
        pytest.skip(f"NOT COMPARED: {known}, the answers are of {KNOWN}")
    port, config = free_port(), machine.home / "nginx.conf"
    config.write_text(NGINX_CONF.format(home=machine.home, site=site.port, port=port))
    machine.start(nginx, "-e", "stderr", "-p", str(machine.home), "-c", str(config))

    def listens() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    eventually(listens, "nginx listens")
    yield port
    machine.close()


FRPS: Final = """
bindAddr = "127.0.0.1"
proxyBindAddr = "127.0.0.1"
bindPort = {inner}
vhostHTTPPort = {port}
"""
FRPC: Final = """
serverAddr = "127.0.0.1"
serverPort = {inner}
[[proxies]]
name = "site"
type = "http"
localPort = {site}
customDomains = ["{host}"]
"""


@pytest.fixture(scope="module")
def through_frp(
    site: OddSite, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[int]:
    """Publish the site by name with frp; give its port."""
    frps, frpc = program("frps"), program("frpc")
    machine = Machine(tmp_path_factory.mktemp("frp"))
    known = machine.run(frps, "--version").stdout.decode().strip()
    if known != FRP_VERSION:
        pytest.skip(f"NOT COMPARED: frp {known}, the answers are of {FRP_VERSION}")
    ports = {"inner": free_port(), "port": free_port(), "site": site.port}
    server, client = machine.home / "frps.toml", machine.home / "frpc.toml"
    server.write_text(FRPS.format(**ports))
    client.write_text(FRPC.format(**ports, host=HOST))
    machine.start(frps, "-c", str(server)).out.wait("started successfully")
    machine.start(frpc, "-c", str(client)).out.wait("start proxy success")
    yield ports["port"]
    machine.close()


def test_the_site_itself_answers_as_listed(site: OddSite) -> None:
    assert {name: ask(site.port, script) for name, script in SCRIPTS.items()} == DIRECT


def test_by_name_only_that_differs_which_is_listed(by_name: int) -> None:
    found = {}
    for name, script in SCRIPTS.items():
        said = ask(by_name, script)
        if said != DIRECT[name]:
            found[name] = said
    assert found == {name: said for name, (said, _reason) in OURS.items()}


def test_over_tls_nothing_is_different(
    by_name: int, by_tls: tuple[int, ssl.SSLContext]
) -> None:
    port, context = by_tls
    # Python's TLS cannot end its own side alone.
    scripts = {name: script for name, script in SCRIPTS.items() if END not in script}
    in_the_clear = {name: ask(by_name, script) for name, script in scripts.items()}
    found = {name: ask(port, script, tls=context) for name, script in scripts.items()}
    assert found == in_the_clear


@pytest.mark.parametrize("piece_bytes", [1, 7])
def test_the_size_of_pieces_changes_nothing(
    site: OddSite, by_name: int, piece_bytes: int
) -> None:
    """A head, a chunk's size, a trailer: each may end anywhere in a segment."""
    whole = {name: ask(by_name, script) for name, script in SCRIPTS.items()}
    site.piece_bytes = piece_bytes
    try:
        pieces = {
            name: ask(by_name, script, piece_bytes=piece_bytes)
            for name, script in SCRIPTS.items()
        }
    finally:
        site.piece_bytes = 1 << 20
    assert pieces == whole


def differences(
    port: int, listed: dict[str, tuple[str, str]], *, frp: bool = False
) -> dict[str, str]:
    """Give what a way makes of the scripts where it is not what we do."""
    found, raw = {}, []
    for name, script in SCRIPTS.items():
        expected, _reason = listed.get(name, ("", ""))
        patience_s = WHILE_S if SILENT in expected else WAIT_S
        said, want = ask(port, script, patience_s), ours(name)
        if frp:
            raw.append(said)
            said, want = without_additions(said), in_case_of_go(want)
        if said != want:
            found[name] = said
    if frp:
        assert all(any(added in said for said in raw) for added in FRP_ADDS)
    return found


def test_nginx_differs_from_us_only_as_listed(through_nginx: int) -> None:
    """Each difference is one that we want."""
    found = differences(through_nginx, NGINX)
    assert found == {name: said for name, (said, _reason) in NGINX.items()}


def test_frp_differs_from_us_only_as_listed(through_frp: int) -> None:
    """The same."""
    found = differences(through_frp, FRP, frp=True)
    assert found == {name: in_case_of_go(said) for name, (said, _) in FRP.items()}


def test_the_page_of_differences_is_made_of_these_tables() -> None:
    assert DIFFERENCES.read_text() == page()


def test_what_is_not_safe_to_repeat_is_sent_once(site: OddSite, by_name: int) -> None:
    site.asked.clear()
    ask(by_name, SCRIPTS["target leaves, GET"])
    ask(by_name, SCRIPTS["target leaves, POST"])
    assert site.asked == {"/leaves/get": 3, "/leaves/post": 2}


def test_100_mb_come_down_as_they_are(by_name: int) -> None:
    with visit(by_name) as app, app.makefile("rb") as file:
        app.sendall(get("/big"))
        while file.readline().strip():
            """The head."""
        digest, left = hashlib.sha256(), BIG_BYTES
        while left:
            piece = file.read(min(left, 1 << 20))
            assert piece
            digest.update(piece)
            left -= len(piece)
    assert digest.hexdigest() == big_digest()


@pytest.mark.parametrize("chunked", [False, True])
def test_100_mb_go_up_as_they_are(by_name: int, *, chunked: bool) -> None:
    with visit(by_name) as app, app.makefile("rb") as file:
        sized = f"Content-Length: {BIG_BYTES}"
        framing = "Transfer-Encoding: chunked" if chunked else sized
        app.sendall(get("/digest", framing, verb="PUT"))
        for piece in big():
            app.sendall(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
        app.sendall(b"0\r\n\r\n" if chunked else b"")
        while file.readline().strip():
            """The head."""
        assert file.read(64).decode() == big_digest()


def test_each_event_of_a_stream_comes_at_once(site: OddSite, by_name: int) -> None:
    took = []
    with visit(by_name) as app, app.makefile("rb") as file:
        app.sendall(get("/events"))
        while file.readline().strip():
            """The head."""
        for number in range(EVENTS):
            began = time.monotonic()
            site.go.release()
            lines = [file.readline() for _ in range(4)]
            assert lines[1] == b"data: %d\n" % number
            took.append(time.monotonic() - began)
    assert min(took) < LATENCY_S  # one may meet a busy machine
