"""The same requests to a web server, through nginx, and by name through the tunnel.

``DIRECT`` is what the server itself answers. What a way through the tunnel changes is
listed with its reason in ``OURS``, and what nginx makes of it in ``NGINX``.
"""

from __future__ import annotations

import hashlib
import socket
import ssl
import time
from typing import TYPE_CHECKING, Final

import pytest
import trustme
from support.odd_site import BIG_BYTES, EVENTS, OddSite, big, big_digest
from support.processes import WAIT_S, Machine, eventually, free_port, program
from support.targets import visit
from support.web_script import END, HOST, SCRIPTS, SILENT, ask, get

if TYPE_CHECKING:
    from collections.abc import Iterator

KNOWN: Final = "nginx/1.22.1"
WHILE_S: Final = 1.0
LATENCY_S: Final = 0.1


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


def switched(token: str, last: str = " bye") -> str:
    return (
        f'101 UPGRADED | Upgrade: {token} | X-Body: {{"Tty":true}} // hi ping // {last}'
    )


FIELDS: Final = (
    "200 OK | set-cookie: a=1 | Set-Cookie: b=2 | WWW-Authenticate: "
    "NTLM | WWW-Authenticate: Negotiate | X-Empty: | x-lower: äÃ¤ | "
    "X_Under: 1 | ok"
)
ONE_READING: Final = "what two could read in two ways reaches nobody"
HEARD: Final = "200 OK | GET /heard HTTP/1.1 / "
DIRECT: Final = {
    "plain": HEARD + "accept: */* / X-One: 1 / X-oNe: 2 /",
    "raw UTF-8": "200 OK | GET /heard/Ã© HTTP/1.1 /",
    "percent, dots and slashes": (
        "200 OK | GET /heard//a/../b/%2e%2F%C3?x=/../Ã©% HTTP/1.1 /"
    ),
    "no path, star": "200 OK | OPTIONS * HTTP/1.1 /",
    "empty lines before": "closed",
    "absolute": "200 OK | GET http://app.t.test/heard HTTP/1.1 /",
    "absolute with a user": "200 OK | GET http://me:secret@app.t.test/heard HTTP/1.1 /",
    "PROPFIND": "200 OK | PROPFIND /heard HTTP/1.1 / Depth: 1 /",
    "QUERY with a body": "200 OK | QUERY /heard HTTP/1.1 / Content-Length: 2 / {}",
    "a method in lower case": "200 OK | get /heard HTTP/1.1 /",
    "GET with a body": HEARD + "Content-Length: 2 / {}",
    "POST without a length": "200 OK | POST /heard HTTP/1.1 /",
    "value in Latin-1": HEARD + "X-A:  ä b  /",
    "an empty value": HEARD + "X-A: /",
    "a name with _": HEARD + "X_A: 1 /",
    "Range": "206 Partial Content | Content-Range: bytes 1-2/9 | ok",
    "TE": HEARD + "Connection: TE / TE: trailers /",
    "named by Connection": HEARD + "Connection: X-Hop / X-Hop: 1 /",
    "trailers": (
        "200 OK | PUT /heard HTTP/1.1 / Trailer: X-Sum / "
        "Transfer-Encoding: chunked / hello / X-Sum: 1"
    ),
    "Expect": (
        "100 Go On | X-Go: 1 // 200 OK | PUT /heard HTTP/1.1 / "
        "Content-Length: 2 / Expect: 100-continue / ok"
    ),
    "HTTP/1.0": "200 OK | GET /heard HTTP/1.0 / // closed",
    "HTTP/1.0 kept": FIELDS,
    "HTTP/1.0 and chunks": (
        "200 OK | Trailer: X-Sum | hello + X-Sum: 1 + grpc-status: 0 // closed"
    ),
    "HTTP/1.0 and hints": (
        "103 Early Hints | Link: </a.css>; rel=preload // HTTP/1.1 200 "
        "OK\r\nContent-Length: 2\r\n\r\nok"
    ),
    "HTTP/1.0, cut": "200 OK | half (cut)",
    "a large head": FIELDS,
    "/fields": FIELDS,
    "/trailers": "200 OK | Trailer: X-Sum | hello + X-Sum: 1 + grpc-status: 0",
    "/no-content": "204 No Content | X-A: 1",
    "/not-modified": "304 Not Modified | Content-Length: 700 | ETag: x",
    "/reset-content": "205 Reset Content | Content-Length: 0",
    "/until-end": "200 OK | Content-Type: text/plain | all of it",
    "/no-colon": "200 OK | this line is broken | ok",
    "/space-before-colon": "200 OK | X-A : 1 | ok",
    "/broken-length": "200 OK | ok",
    "/identity": "200 OK | ok",
    "/no-reason": "200 | ok",
    "/empty-reason": "200  | ok",
    "/1.0": "200 OK | ok",
    "/bare-lf": "200 OK | ok",
    "/big-head": "200 OK | 101 fields | ok",
    "/300-fields": "200 OK | 300 fields | ok",
    "/two-lengths": "200 OK | ok",
    "/short": "200 OK | half (cut)",
    "/short-chunks": "200 OK | half (cut)",
    "/nonsense": "SSH-2.0-OpenSSH_9.2",
    "/nothing": "closed",
    "/hints": "103 Early Hints | Link: </a.css>; rel=preload // 200 OK | ok",
    "/reasons": "102 Still At It // 299 As You Like | ok",
    "HEAD": (
        "200 OK | Content-Length: 2 | set-cookie: a=1 | Set-Cookie: b=2 | "
        "WWW-Authenticate: NTLM | WWW-Authenticate: Negotiate | X-Empty: | "
        "x-lower: äÃ¤ | X_Under: 1"
    ),
    "HEAD of chunks, and another": (
        "200 OK | Trailer: X-Sum // 200 OK | Content-Length: 2 | "
        "set-cookie: a=1 | Set-Cookie: b=2 | WWW-Authenticate: NTLM | "
        "WWW-Authenticate: Negotiate | X-Empty: | x-lower: äÃ¤ | X_Under: 1"
    ),
    "HEAD of something open": "200 OK | Content-Type: text/plain",
    "pipelined": FIELDS
    + (
        " // 200 OK | Trailer: X-Sum | hello + X-Sum: 1 + grpc-status: 0 "
        "// 200 OK | POST /heard HTTP/1.1 / Content-Length: 1 / x"
    ),
    "our end first": "200 OK | end",
    "our end within a body": "200 OK | PUT /heard HTTP/1.1 / Content-Length: 5 / he",
    "target leaves, GET": "200 OK | GET /leaves/get HTTP/1.1 / // closed",
    "target leaves, POST": "200 OK | GET /leaves/post HTTP/1.1 / // closed",
    "early answer": "413 Too Large | too large",
    "early answer, Expect": "413 Too Large | too large",
    "early answer, chunked": "413 Too Large | too large",
    "websocket": switched("websocket"),
    "WebSocket": switched("WebSocket"),
    "tcp": switched("tcp"),
    "SPDY/3.1": switched("SPDY/3.1"),
    "ts2021": switched("ts2021"),
    "h2c": HEARD
    + "Connection: Upgrade, HTTP2-Settings / HTTP2-Settings: x / Upgrade: h2c /",
    "upgrade refused": FIELDS,
}
OURS: Final = {
    # What is different through the tunnel, and why.
    "raw UTF-8": (
        "200 OK | GET /heard/%C3%A9 HTTP/1.1 /",
        "RFC 3986 has no such bytes; percent-encoded, every target reads them",
    ),
    "percent, dots and slashes": (
        "200 OK | GET /heard//a/../b/%2e%2F%C3?x=/../%C3%A9% HTTP/1.1 /",
        "the same; the rest of a path is the target's to read",
    ),
    "empty lines before": ("200 OK | GET /heard HTTP/1.1 /", "RFC 9112 2.2 skips them"),
    "absolute": (
        "200 OK | GET /heard HTTP/1.1 /",
        "RFC 9112 3.2.2: servers behind a gateway expect a path",
    ),
    "absolute with a user": (
        "200 OK | GET /heard HTTP/1.1 /",
        "nobody behind is to know a password",
    ),
    "named by Connection": (
        "200 OK | GET /heard HTTP/1.1 /",
        "RFC 9110 7.6.1: it is for this hop",
    ),
    "HTTP/1.0": (
        HEARD + "// closed",
        "each hop has a version of its own",
    ),
    "HTTP/1.0 and chunks": (
        "200 OK | Trailer: X-Sum | hello // closed",
        "HTTP/1.0 knows no chunks, and so no trailers",
    ),
    "HTTP/1.0 and hints": (
        "200 OK | ok // closed",
        "HTTP/1.0 knows no interim answers",
    ),
    "HTTP/1.0, cut": (
        "reset",
        "what ends with the connection must not end well when it is cut",
    ),
    "/no-colon": ("200 OK | ok", "one broken line costs that line"),
    "/space-before-colon": ("200 OK | ok", "the same"),
    "/broken-length": ("502", ONE_READING),
    "/no-reason": ("200  | ok", "RFC 9112 4 has a space behind the status"),
    "/two-lengths": ("502", ONE_READING),
    "/nonsense": ("502", "the visitor is told whose fault it is"),
    "/nothing": ("502", "the same"),
    "our end within a body": ("400", "a request is never shorter than it says"),
    "target leaves, GET": (
        "200 OK | GET /leaves/get HTTP/1.1 / // 200 OK | GET /leaves/get HTTP/1.1 /",
        "asked once more, what is safe to repeat",
    ),
    "h2c": (
        "200 OK | GET /heard HTTP/1.1 /",
        "would carry requests past who reads them (RFC 9113 3.1)",
    ),
}
HALF_CLOSED: Final = "what is said after a half-close arrives"
NGINX: Final = {
    # What nginx says where it differs from us, and why we do not.
    "raw UTF-8": (
        "200 OK | GET /heard/Ã© HTTP/1.1 /",
        "passed as it came: targets in Node answer 400",
    ),
    "percent, dots and slashes": (
        "200 OK | GET /heard//a/../b/%2e%2F%C3?x=/../Ã©% HTTP/1.1 /",
        "the same",
    ),
    "no path, star": ("400", "OPTIONS * is in RFC 9110 9.3.7"),
    "absolute with a user": ("400", "browsers of yesterday and scripts send it"),
    "a method in lower case": ("400", "any token is a method (RFC 9110 9.1)"),
    "value in Latin-1": (
        HEARD + "X-A: ä b /",
        "white space goes on as it was written",
    ),
    "an empty value": (HEARD + "X-A:  /", "nothing is added to what came"),
    "a name with _": (
        "200 OK | GET /heard HTTP/1.1 /",
        "only those that would say who the visitor is end here",
    ),
    "TE": ("200 OK | GET /heard HTTP/1.1 /", "gRPC asks for it"),
    "named by Connection": (
        HEARD + "X-Hop: 1 /",
        "it is for this hop",
    ),
    "trailers": (
        "200 OK | PUT /heard HTTP/1.1 / Content-Length: 5 / Trailer: X-Sum / hello",
        "a digest behind a body arrives",
    ),
    "Expect": (
        "100 Continue // 200 OK | PUT /heard HTTP/1.1 / Content-Length: 2 / ok",
        "it is the target that says go on, or not",
    ),
    "HTTP/1.0 and hints": (
        "103 Early Hints | Link: </a.css>; rel=preload // silent",
        "HTTP/1.0 knows no interim answers",
    ),
    "HTTP/1.0, cut": ("200 OK | half", "a cut body does not seem whole"),
    "/trailers": ("200 OK | Trailer: X-Sum | hello", "gRPC-Web and digests need them"),
    "/no-colon": ("502", "one broken line costs that line"),
    "/space-before-colon": ("502", "the same"),
    "/no-reason": ("200 | ok", "the space is asked for"),
    "/big-head": ("502", "heads of 128 KiB pass without being told"),
    "/two-lengths": ("200 OK | okGET", ONE_READING),
    "/nonsense": (
        "SSH-2.0-OpenSSH_9.2",
        "a page that says it, not the bytes of another protocol",
    ),
    "pipelined": (
        FIELDS
        + (
            " // 200 OK | Trailer: X-Sum | hello // 200 OK | POST /heard "
            "HTTP/1.1 / Content-Length: 1 / x"
        ),
        "trailers, as above",
    ),
    "our end first": ("closed", "who half-closes still gets the answer"),
    "our end within a body": ("closed", "the visitor is told"),
    "target leaves, POST": (
        "200 OK | GET /leaves/post HTTP/1.1 / // 502",
        "browsers ask again when there is no answer; 502 is shown",
    ),
    "early answer, Expect": (
        "100 Continue",
        "the target is asked before the body is sent",
    ),
    "websocket": (
        switched("websocket", "closed"),
        HALF_CLOSED,
    ),
    "WebSocket": (
        switched("WebSocket", "closed"),
        HALF_CLOSED,
    ),
    "tcp": (
        switched("tcp", "closed"),
        HALF_CLOSED,
    ),
    "SPDY/3.1": (
        switched("SPDY/3.1", "closed"),
        HALF_CLOSED,
    ),
    "ts2021": (
        switched("ts2021", "closed"),
        HALF_CLOSED,
    ),
    "h2c": (
        HEARD + "Connection: upgrade / HTTP2-Settings: x / Upgrade: h2c /",
        "would carry requests past who reads them",
    ),
}


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


def test_nginx_differs_from_us_only_as_listed(through_nginx: int) -> None:
    """Each difference is one that we want."""
    found = {}
    for name, script in SCRIPTS.items():
        ours, _reason = OURS.get(name, (DIRECT[name], ""))
        expected, _reason = NGINX.get(name, (ours, ""))
        patience_s = WHILE_S if SILENT in expected else WAIT_S
        said = ask(through_nginx, script, patience_s)
        if said != ours:
            found[name] = said
    assert found == {name: said for name, (said, _reason) in NGINX.items()}


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
