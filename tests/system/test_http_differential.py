"""The same requests to tinyproxy and to us: where the answers differ is listed here."""

from __future__ import annotations

import contextlib
import socket
from typing import TYPE_CHECKING, BinaryIO, Final, TypeAlias

import pytest
from support.processes import WAIT_S, Machine, eventually, free_port, program
from support.targets import Target, answer_at_end, visit

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.world import World

Script: TypeAlias = "tuple[bytes | int, ...]"
"""Bytes to say, and numbers of answers to wait for; or one of these two."""
ALL: Final = 0
"""Read to the end of the connection."""
END: Final = -1
"""End our side of it."""
FOUR: Final = -4
"""Read so many bytes."""

NO_WORD: Final = "closed"
SILENT: Final = "silent"
"""Still nothing after a while."""
WHILE_S: Final = 0.5
KNOWN: Final = "1.11.1"

# Origin -------------------------------------------------------------------------------


def read_head(file: BinaryIO) -> tuple[str, dict[str, str]]:
    """Read a first line, which is empty at the end, and fields."""
    line = file.readline(100_000).decode("latin-1").strip()
    fields = {}
    while (field := file.readline(100_000).decode("latin-1").strip()) and line:
        name, _, value = field.partition(":")
        fields[name.lower()] = value.strip()
    return line, fields


def read_chunks(file: BinaryIO) -> bytes:
    body = b""
    while size := int(file.readline(100).strip() or b"0", 16):
        body += file.read(size)
        file.readline(10)
    while file.readline(1_000).strip():
        """Trailers."""
    return body


def read_body(file: BinaryIO, fields: dict[str, str]) -> bytes:
    if "transfer-encoding" in fields:
        return read_chunks(file)
    return file.read(int(fields.get("content-length", 0)))


def with_length(body: bytes, status: bytes = b"200 OK") -> bytes:
    return b"HTTP/1.1 %b\r\nContent-Length: %d\r\n\r\n%b" % (status, len(body), body)


ANSWERS: Final = {
    "/chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"5\r\nhello\r\n6\r\n world\r\n0\r\nX-Trailer: x\r\n\r\n",
    "/until-end": b"HTTP/1.1 200 OK\r\n\r\nall of it",
    "/nothing": b"HTTP/1.1 204 No Content\r\n\r\n",
    "/hints": b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + with_length(b"ok"),
    "/early": with_length(b"", b"413 Too Large"),
    "/nonsense": b"this is not HTTP\r\n\r\n",
    "/short": b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf",
    "/silent": b"",
    "/two-lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n"
    b"Content-Length: 5\r\n\r\nokGET",
}
ENDS_AFTER: Final = ("/until-end", "/early", "/nonsense", "/short", "/silent")


def origin(conn: socket.socket) -> object:
    """A web server with an answer of every kind; leaves who speaks no HTTP."""
    with contextlib.suppress(ValueError):
        serve(conn)
    return None


def serve(conn: socket.socket) -> object:
    with conn.makefile("rb") as file:
        while True:
            line, fields = read_head(file)
            if not line:
                return line
            verb, path = line.split()[:2]
            body = b""
            if path not in ENDS_AFTER:
                if fields.get("expect"):
                    conn.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
                body = read_body(file, fields)
            if path == "/heard":
                heard = (line, *sorted(fields), fields.get("host", "-").split(":")[0])
                conn.sendall(with_length(" ".join(heard).encode()))
            elif verb == "HEAD":
                conn.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n")
            elif path == "/echo":
                conn.sendall(with_length(body))
            else:
                conn.sendall(ANSWERS.get(path, with_length(b"ok")))
            if path in ENDS_AFTER:
                conn.shutdown(socket.SHUT_WR)
                while conn.recv(65_536):
                    """Read on: a close would be a reset."""
                return line


# App ----------------------------------------------------------------------------------


def told(file: BinaryIO, verb: str) -> str:
    """Read an answer; give its status, and what a good one says."""
    line, fields = read_head(file)
    if not line.startswith("HTTP/"):
        return NO_WORD
    status = line.split()[1]
    if status.startswith("1") or status == "204" or verb == "HEAD":
        return status
    if verb == "CONNECT" and status == "200":
        return status
    whole = True
    if "transfer-encoding" in fields:
        body = read_chunks(file)
    elif "content-length" in fields:
        body = file.read(int(fields["content-length"]))
        whole = len(body) == int(fields["content-length"])
    else:
        body = file.read()
    cut = "" if whole else " (cut)"
    return f"{status} {body.decode()}{cut}" if status == "200" else status + cut


def ask(port: int, script: Script, patience_s: float = WAIT_S) -> str:
    """Follow a script; give all that was said, or that nothing was."""
    said: list[str] = []
    verb = str(script[0]).strip("b'").split(" ")[0]
    with visit(port) as app, app.makefile("rb") as file:
        app.settimeout(patience_s)
        try:
            for step in script:
                if isinstance(step, bytes):
                    app.sendall(step)
                elif step == END:
                    app.shutdown(socket.SHUT_WR)
                elif step == FOUR:
                    said.append(file.read(4).decode("latin-1"))
                elif step == ALL:
                    said.append(f"{len(file.read())} bytes")
                else:
                    said += [told(file, verb) for _ in range(step)]
        except TimeoutError:
            said.append(SILENT)
        except (ConnectionResetError, BrokenPipeError):
            said.append("reset")
    return " | ".join(said)


def scripts(at: str, off: str, echo: str, at_end: str) -> dict[str, Script]:
    """Give what apps say to a proxy, by what they try."""
    host = f"Host: {at}\r\n".encode()

    def elsewhere(name: str) -> str:
        return name.replace("localhost", "127.0.0.1")

    def head(
        verb: str, path: str, *fields: str, version: str = "1.1", at: str = at
    ) -> bytes:
        lines = (f"{verb} http://{at}{path} HTTP/{version}", f"Host: {at}", *fields)
        return "".join(f"{line}\r\n" for line in (*lines, "")).encode()

    def get(path: str, *fields: str, version: str = "1.1", at: str = at) -> bytes:
        return head("GET", path, *fields, version=version, at=at)

    def raw(line: str, rest: bytes = host) -> Script:
        return (line.encode() + b"\r\n" + rest + b"\r\n", 1)

    def connect(where: str, version: str = "1.1") -> bytes:
        return f"CONNECT {where} HTTP/{version}\r\nHost: {where}\r\n\r\n".encode()

    length, chunked = "Content-Length: 5", "Transfer-Encoding: chunked"
    return {
        # good requests
        "get": (get("/"), 1),
        "get of 1.0": (get("/", version="1.0"), 1),
        "get of 1.0, then the end": (get("/", version="1.0"), 1, ALL),
        "head": (head("HEAD", "/"), 1),
        "options *": raw(f"OPTIONS http://{at} HTTP/1.1"),
        "nothing to say": (get("/nothing"), 1),
        "hints": (get("/hints"), 2),
        "chunks": (get("/chunks"), 1),
        "chunks, for 1.0": (get("/chunks", version="1.0"), 1),
        "until the end": (get("/until-end"), 1),
        "post": (head("POST", "/echo", length) + b"hello", 1),
        "chunked upload": (
            head("POST", "/echo", chunked) + b"5\r\nhello\r\n0\r\n\r\n",
            1,
        ),
        "expect": (
            head("POST", "/echo", length, "Expect: 100-continue"),
            1,
            b"hello",
            1,
        ),
        "early answer": (
            head("PUT", "/early", "Content-Length: 1000000") + bytes(1_000),
            1,
        ),
        "our end first": (get("/"), END, 1),
        "two in a row": (get("/"), 1, get("/chunks"), 1),
        "two at once": (get("/") + get("/chunks"), 2),
        "another host": (get("/"), 1, get("/", at=elsewhere(at)), 1),
        "by address": (get("/", at=elsewhere(at)), 1),
        # what the origin hears
        "heard": (get("/heard", "X-A: 1", "Accept: */*"), 1),
        "heard of hops": (
            get(
                "/heard",
                "Connection: X-Hop, close",
                "X-Hop: 1",
                "Keep-Alive: 5",
                "Proxy-Connection: keep-alive",
                "TE: trailers",
                "Upgrade: h2c",
                "Proxy-Authorization: Basic eDp5",
                "Authorization: mine",
            ),
            1,
        ),
        "heard of another Host": raw(
            f"GET http://{at}/heard HTTP/1.1", b"Host: evil.test\r\n"
        ),
        # targets
        "refused": raw(f"GET http://{off}/ HTTP/1.1"),
        "impossible name": raw(f"GET http://{'x' * 64}.test/ HTTP/1.1"),
        "no name": raw("GET http:///x HTTP/1.1"),
        "port 0": raw("GET http://127.0.0.1:0/ HTTP/1.1"),
        "port 65536": raw("GET http://127.0.0.1:65536/ HTTP/1.1"),
        "https in the clear": raw(f"GET https://{at}/ HTTP/1.1"),
        "ftp": raw(f"GET ftp://{at}/ HTTP/1.1"),
        "user in the URL": raw(f"GET http://me:x@{at}/ HTTP/1.1"),
        "path only": raw("GET / HTTP/1.1"),
        # origins that are wrong
        "origin: not HTTP": (get("/nonsense"), 1),
        "origin: cut": (get("/short"), 1),
        "origin: silent": (get("/silent"), 1),
        "origin: two lengths": (get("/two-lengths"), 1),
        # CONNECT
        "connect": (connect(echo), 1, b"ping", FOUR),
        "connect of 1.0": (connect(echo, "1.0"), 1, b"ping", FOUR),
        "connect and go on": (connect(echo) + b"ping", 1, FOUR),
        "connect by address": (connect(elsewhere(echo)), 1, b"ping", FOUR),
        "connect and end": (connect(at_end), 1, b"ping", END, ALL),
        "connect refused": (connect(off), 1),
        "connect without port": (connect("localhost"), 1),
        "connect port 65536": (connect("localhost:65536"), 1),
        "connect impossible name": (connect(f"{'x' * 64}.test:80"), 1),
        # malformed
        "nonsense": raw("nonsense", b""),
        "http/0.9": raw(f"GET http://{at}/", b""),
        "http/9.9": raw(f"GET http://{at}/ HTTP/9.9"),
        "no Host": raw(f"GET http://{at}/ HTTP/1.1", b""),
        "two Hosts": raw(f"GET http://{at}/ HTTP/1.1", host + host),
        "bare LF": (get("/").replace(b"\r\n", b"\n"), 1),
        "NUL": raw(f"GET http://{at}/ HTTP/1.1", host + b"X: a\0b\r\n"),
        "space before colon": raw(f"GET http://{at}/ HTTP/1.1", host + b"X : a\r\n"),
        "folded": raw(f"GET http://{at}/ HTTP/1.1", host + b"X: a\r\n b\r\n"),
        "two lengths": (
            head("POST", "/echo", length, "Content-Length: 6") + b"hello!",
            1,
        ),
        "length and chunks": (
            head("POST", "/echo", length, chunked) + b"0\r\n\r\n",
            1,
        ),
        "negative length": (head("POST", "/echo", "Content-Length: -5"), 1),
        "bad chunk": (head("POST", "/echo", chunked) + b"zz\r\n", 1),
        "large head": (get("/", "X: " + "x" * 131_072), 1),
        "10,000 fields": (get("/", *(["X: x"] * 10_000)), 1),
        "trace": raw(f"TRACE http://{at}/ HTTP/1.1"),
        "unknown method": raw(f"BREW http://{at}/ HTTP/1.1"),
    }


@pytest.fixture
def tinyproxy(machine: Machine) -> int:
    """Start one; give its port."""
    known = machine.run(program("tinyproxy"), "-v").stdout.decode().split()[-1]
    if known != KNOWN:
        pytest.skip(f"NOT COMPARED: tinyproxy {known}, the answers are of {KNOWN}")
    port = free_port()
    config = machine.home / "tinyproxy.conf"
    config.write_text(
        f"Port {port}\nListen 127.0.0.1\nTimeout 10\nMaxClients 100\n"
        'LogLevel Critical\nViaProxyName "other"\n'
    )
    machine.start(program("tinyproxy"), "-d", "-c", str(config))

    def listens() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    eventually(listens, "tinyproxy listens")
    return port


@pytest.fixture
def said(world: World) -> Iterator[dict[str, Script]]:
    with Target(origin) as web, Target(answer_at_end) as answers:
        others = (world.targets[name].port for name in ("nobody", "echo"))
        ports = (web.port, *others, answers.port)
        yield scripts(*(f"localhost:{port}" for port in ports))


OURS: Final = {
    "get": "200 ok",
    "get of 1.0": "200 ok",
    "get of 1.0, then the end": "200 ok | 0 bytes",
    "head": "200",
    "options *": "200 ok",
    "nothing to say": "204",
    "hints": "103 | 200 ok",
    "chunks": "200 hello world",
    "chunks, for 1.0": "200 hello world",
    "until the end": "200 all of it",
    "post": "200 hello",
    "chunked upload": "200 hello",
    "expect": "100 | 200 hello",
    "early answer": "413",
    "our end first": "200 ok",
    "two in a row": "200 ok | 200 hello world",
    "two at once": "200 ok | 200 hello world",
    "another host": "200 ok | 200 ok",
    "by address": "200 ok",
    "heard": "200 GET /heard HTTP/1.1 accept host via x-a localhost",
    "heard of hops": "200 GET /heard HTTP/1.1 authorization host via localhost",
    "heard of another Host": "200 GET /heard HTTP/1.1 host via localhost",
    "refused": "502",
    "impossible name": "400",
    "no name": "400",
    "port 0": "400",
    "port 65536": "400",
    "https in the clear": "501",
    "ftp": "501",
    "user in the URL": "200 ok",
    "path only": "400",
    "origin: not HTTP": "502",
    "origin: cut": "200 half (cut)",
    "origin: silent": "502",
    "origin: two lengths": "502",
    "connect": "200 | ping",
    "connect of 1.0": "200 | ping",
    "connect and go on": "200 | ping",
    "connect by address": "200 | ping",
    "connect and end": "200 | 1048640 bytes",
    "connect refused": "502",
    "connect without port": "400",
    "connect port 65536": "400",
    "connect impossible name": "400",
    "nonsense": "400",
    "http/0.9": "400",
    "http/9.9": "505",
    "no Host": "400",
    "two Hosts": "400",
    "bare LF": "400",
    "NUL": "400",
    "space before colon": "400",
    "folded": "400",
    "two lengths": "400",
    "length and chunks": "400",
    "negative length": "400",
    "bad chunk": "400",
    "large head": "431",
    "10,000 fields": "431",
    "trace": "405",
    "unknown method": "200 ok",
}


THE_APPS_FAULT: Final = "the app is told that the fault is in what it said"
KEPT: Final = "an app keeps its connection"
WHOSE_FAULT: Final = "502 is what the target did, 500 a fault of the proxy"
ONE_READING: Final = "what two could read in two ways reaches nobody"
ORIGIN_KEPT: Final = "a connection to an origin is kept for the next request"
ORIGINS_FAULT: Final = "the app is told what is wrong with the origin"
DIFFERENCES: Final = {
    # What tinyproxy says, and why we do not.
    "expect": ("silent", "an app that waits for 100 hears it from the origin"),
    "early answer": (
        "silent",
        "an answer is passed on when it comes, not when the upload has ended",
    ),
    "two in a row": ("200 ok | closed", KEPT),
    "two at once": ("200 ok | closed", KEPT),
    "another host": ("200 ok | closed", KEPT),
    "heard": (
        "200 GET /heard HTTP/1.1 accept connection host via x-a localhost",
        ORIGIN_KEPT,
    ),
    "heard of hops": (
        "200 GET /heard HTTP/1.1 authorization connection host proxy-authorization via "
        "localhost",
        "a password for the proxy is not shown to an origin",
    ),
    "heard of another Host": (
        "200 GET /heard HTTP/1.1 connection host via localhost",
        ORIGIN_KEPT,
    ),
    "refused": ("500", WHOSE_FAULT),
    "impossible name": ("500", THE_APPS_FAULT),
    "no name": ("500", THE_APPS_FAULT),
    "port 0": ("500", THE_APPS_FAULT),
    "port 65536": ("500", THE_APPS_FAULT),
    "https in the clear": ("200 ok", "what should be secret is not sent in the clear"),
    "ftp": ("200 ok", "another protocol is not taken for HTTP"),
    "path only": ("200 ok", "a proxy is no page: the app is told what to set"),
    "origin: not HTTP": ("closed", ORIGINS_FAULT),
    "origin: silent": ("closed", ORIGINS_FAULT),
    "origin: two lengths": (
        "200 ok",
        "what two could read in two ways is not passed on",
    ),
    "connect and end": (
        "200 | 0 bytes",
        "an answer that comes after the end of our side arrives",
    ),
    "connect refused": ("500", WHOSE_FAULT),
    "connect without port": ("500", THE_APPS_FAULT),
    "connect port 65536": ("500", THE_APPS_FAULT),
    "connect impossible name": ("500", THE_APPS_FAULT),
    "http/0.9": ("silent", "an app of 1991 is answered, and does not wait for ever"),
    "http/9.9": ("200 ok", "nobody knows what that version would mean"),
    "no Host": ("200 ok", "RFC 9112 3.2 demands it"),
    "two Hosts": ("200 ok", "RFC 9112 3.2 demands it"),
    "bare LF": ("200 ok", ONE_READING),
    "NUL": ("200 ok", ONE_READING),
    "space before colon": ("200 ok", "RFC 9112 5.1 demands it"),
    "folded": ("200 ok", "RFC 9112 5.2 lets a proxy refuse it"),
    "two lengths": ("200 hello", ONE_READING),
    "length and chunks": ("200 ", ONE_READING),
    "negative length": ("closed", "the app is told what is wrong"),
    "bad chunk": (
        "silent",
        "the app is told what is wrong, and does not wait for ever",
    ),
    "large head": ("400", "the status says which limit it was"),
    "10,000 fields": ("400", "the status says which limit it was"),
    "trace": ("200 ok", "what it shows to others is nobody's business"),
}


def test_every_request_is_answered_as_listed(
    world: World, said: dict[str, Script]
) -> None:
    proxy = world.port("C", "web")
    assert {name: ask(proxy, script) for name, script in said.items()} == OURS


def test_the_answers_of_tinyproxy_differ_only_as_listed(
    tinyproxy: int, said: dict[str, Script]
) -> None:
    """Points 38 to 56: each difference is one that we want."""
    found = {}
    del said["our end first"]  # what it hears first is a matter of luck there
    for name, script in said.items():
        expected, _reason = DIFFERENCES.get(name, (OURS[name], ""))
        patience_s = WHILE_S if expected == SILENT else WAIT_S
        theirs = ask(tinyproxy, script, patience_s)
        if theirs != OURS[name]:
            found[name] = theirs
    assert found == {name: theirs for name, (theirs, _) in DIFFERENCES.items()}
