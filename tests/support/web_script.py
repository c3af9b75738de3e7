"""What visitors say to a web server, of every kind, and what they are told."""

from __future__ import annotations

import socket
import ssl
from typing import BinaryIO, Final, TypeAlias

from support.processes import WAIT_S
from support.targets import visit

Script: TypeAlias = "tuple[bytes | int, ...]"
"""Bytes to say, and numbers of answers to read; or one of these."""
ALL: Final = 0
"""Read to the end of the connection."""
END: Final = -1
"""End our side of it."""
SEVEN: Final = -7
"""Read so many bytes."""
NO_WORD: Final = "closed"
SILENT: Final = "silent"
"""Still nothing after a while."""
RESET: Final = "reset"
CUT: Final = " (cut)"
HOST: Final = "app.t.test"

# Visitor ------------------------------------------------------------------------------

_OF_THE_WAY: Final = (
    "connection", "date", "keep-alive", "server", "transfer-encoding",
)  # fmt: skip


def told(file: BinaryIO, verb: bytes) -> str:
    """Read an answer; give all of it that a program may depend on."""
    first = file.readline(1_000).decode("latin-1").rstrip("\r\n")
    if not first.startswith("HTTP/"):
        return first or NO_WORD
    fields = []
    while line := file.readline(200_000).decode("latin-1").rstrip("\r\n"):
        if line.partition(":")[0].lower() not in _OF_THE_WAY:
            fields.append(line.rstrip())
        elif line.lower() == "transfer-encoding: chunked":
            fields.append("chunked")
    word = first.partition(" ")[2]
    status = int(word[:3])
    body, whole = read_body(file, fields) if has_body(status, verb) else ("", True)
    if status >= 400 and status != 413:
        return str(status)  # the words on a page are everybody's own
    if len(fields) > 50:
        fields = [f"{len(fields)} fields"]
    if body or not fields:
        fields = [field for field in fields if not field.startswith("Content-Length")]
    shown = [field for field in fields if field != "chunked"]
    shown.sort(key=lambda field: field.partition(":")[0].lower())
    return " | ".join((word, *shown, body)).rstrip(" |") + ("" if whole else CUT)


def has_body(status: int, verb: bytes) -> bool:
    return status >= 200 and status not in (204, 304) and verb != b"HEAD"


def read_body(file: BinaryIO, fields: list[str]) -> tuple[str, bool]:
    if "chunked" not in fields:
        said = [f for f in fields if f.lower().startswith("content-length:")]
        size = int(said[0].partition(":")[2]) if said else -1
        body = file.read(size)
        return body.decode("latin-1"), size in (-1, len(body))
    body = b""
    while line := file.readline(100).strip():
        size = int(line.split(b";")[0], 16)
        if not size:
            break
        body += file.read(size)
        file.readline(10)
    else:
        return body.decode("latin-1"), False
    while line := file.readline(10_000).strip():
        body += b" + " + line
    return body.decode("latin-1"), True


def _visit(port: int, tls: ssl.SSLContext | None) -> socket.socket:
    app = visit(port)
    if tls is None:
        return app
    # An end without close_notify is none that ends well.
    return tls.wrap_socket(app, server_hostname=HOST, suppress_ragged_eofs=False)


def ask(
    port: int,
    script: Script,
    patience_s: float = WAIT_S,
    piece_bytes: int = 1 << 20,
    tls: ssl.SSLContext | None = None,
) -> str:
    """Follow a script, in pieces of so many bytes; give all that was said."""
    said: list[str] = []
    verb = bytes(script[0]).lstrip().split(b" ")[0]
    with _visit(port, tls) as app, app.makefile("rb") as file:
        app.settimeout(patience_s)
        app.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            for step in script:
                if isinstance(step, bytes):
                    for at in range(0, len(step), piece_bytes):
                        app.sendall(step[at : at + piece_bytes])
                elif step == END:
                    app.shutdown(socket.SHUT_WR)
                elif step == SEVEN:
                    said.append(file.read(7).decode("latin-1"))
                elif step == ALL:
                    said.append(file.read().decode("latin-1") or NO_WORD)
                else:
                    said += [told(file, verb) for _ in range(step)]
        except TimeoutError:
            said.append(SILENT)
        except (ConnectionResetError, BrokenPipeError, ssl.SSLEOFError):
            said.append(RESET)
    return " // ".join(said)


def get(
    path: str | bytes, *fields: str, verb: str = "GET", version: str = "1.1"
) -> bytes:
    target = path.encode() if isinstance(path, str) else path
    head = [verb.encode() + b" " + target + b" HTTP/" + version.encode()]
    head += [f"Host: {HOST}".encode(), *(field.encode() for field in fields)]
    return b"\r\n".join((*head, b"", b""))


def post(path: str, body: bytes, *fields: str) -> bytes:
    return get(path, *fields, f"Content-Length: {len(body)}", verb="POST") + body


def upgrade(token: str) -> Script:
    """Switch as docker does, with a body; talk; half-close; hear the last word."""
    fields = "Connection: Upgrade", f"Upgrade: {token}"
    return post("/upgrade", b'{"Tty":true}', *fields), 1, b"ping", SEVEN, END, ALL


CHUNKED: Final = "Transfer-Encoding: chunked"
SCRIPTS: Final[dict[str, Script]] = {
    # requests
    "plain": (get("/heard", "X-One: 1", "accept: */*", "X-oNe: 2"), 1),
    "raw UTF-8": (get("/heard/é".encode()), 1),
    "percent, dots and slashes": (get("/heard//a/../b/%2e%2F%C3?x=/../é%"), 1),
    "no path, star": (get("*", verb="OPTIONS"), 1),
    "empty lines before": (b"\r\n\r\n" + get("/heard"), 1),
    "absolute": (get(f"http://{HOST}/heard"), 1),
    "absolute with a user": (get(f"http://me:secret@{HOST}/heard"), 1),
    "PROPFIND": (get("/heard", "Depth: 1", verb="PROPFIND"), 1),
    "QUERY with a body": (get("/heard", "Content-Length: 2", verb="QUERY") + b"{}", 1),
    "a method in lower case": (get("/heard", verb="get"), 1),
    "GET with a body": (get("/heard", "Content-Length: 2") + b"{}", 1),
    "POST without a length": (get("/heard", verb="POST"), 1),
    "value in Latin-1": (get("/heard")[:-2] + b"X-A:  \xe4 b \r\n\r\n", 1),
    "an empty value": (get("/heard", "X-A:"), 1),
    "a name with _": (get("/heard", "X_A: 1"), 1),
    "Range": (get("/range", "Range: bytes=1-2"), 1),
    "TE": (get("/heard", "TE: trailers", "Connection: TE"), 1),
    "named by Connection": (get("/heard", "X-Hop: 1", "Connection: X-Hop"), 1),
    "trailers": (
        get("/heard", CHUNKED, "Trailer: X-Sum", verb="PUT")
        + b"5\r\nhello\r\n0\r\nX-Sum: 1\r\n\r\n",
        1,
    ),
    "Expect": (get("/heard", "Expect: 100-continue", "Content-Length: 2", verb="PUT"),
               1, b"ok", 1),
    "HTTP/1.0": (get("/heard", version="1.0"), 1, ALL),
    "HTTP/1.0 kept": (get("/fields", "Connection: keep-alive", version="1.0"), 1),
    "HTTP/1.0 and chunks": (get("/trailers", version="1.0"), 1, ALL),
    "HTTP/1.0 and hints": (get("/hints", version="1.0"), 1, ALL),
    "HTTP/1.0, cut": (get("/short-chunks", version="1.0"), 1),
    "a large head": (get("/fields", "Cookie: " + "x" * 60_000), 1),
    # answers
    **{
        path: (get(path), 1)
        for path in (
            "/fields", "/trailers", "/no-content", "/not-modified", "/reset-content",
            "/until-end", "/no-colon", "/space-before-colon", "/broken-length",
            "/identity", "/no-reason", "/empty-reason", "/1.0", "/bare-lf",
            "/big-head", "/300-fields", "/two-lengths", "/short", "/short-chunks",
            "/nonsense", "/nothing",
        )
    },
    "/hints": (get("/hints"), 2),
    "/reasons": (get("/reasons"), 2),
    "HEAD": (get("/fields", verb="HEAD"), 1),
    "HEAD of chunks, and another": (
        get("/trailers", verb="HEAD"), 1, get("/fields", verb="HEAD"), 1,
    ),
    "HEAD of something open": (get("/until-end", verb="HEAD"), 1),
    # ends
    "pipelined": (get("/fields") + get("/trailers") + post("/heard", b"x"), 3),
    "our end first": (get("/after-end"), END, 1),
    "our end within a body": (get("/heard", "Content-Length: 5", verb="PUT") + b"he",
                              END, 1),
    "target leaves, GET": (get("/leaves/get"), 1, get("/leaves/get"), 1),
    "target leaves, POST": (get("/leaves/post"), 1, post("/leaves/post", b""), 1),
    "early answer": (get("/early", "Content-Length: 900000", verb="PUT")
                     + bytes(100_000), 1),
    "early answer, Expect": (get("/early", "Expect: 100-continue",
                                 "Content-Length: 900000", verb="PUT"), 1),
    "early answer, chunked": (get("/early", CHUNKED, verb="PUT")
                              + b"186a0\r\n" + bytes(100_000), 1),
    # switching
    "websocket": upgrade("websocket"),
    "WebSocket": upgrade("WebSocket"),
    "tcp": upgrade("tcp"),
    "SPDY/3.1": upgrade("SPDY/3.1"),
    "ts2021": upgrade("ts2021"),
    "h2c": (get("/heard", "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c",
                "HTTP2-Settings: x"), 1),
    "upgrade refused": (get("/fields", "Connection: Upgrade", "Upgrade: websocket"), 1),
}  # fmt: skip
