"""What the scripts of visitors are told by a web server, and what each way makes of it.

``DIRECT`` is what the server itself answers. What the way through the tunnel changes is
listed with its reason in ``OURS``; what nginx and frp make of it where they differ from
us is in ``NGINX`` and ``FRP``, each with the reason why we do not. docs/web.md is made
of these: ``PYTHONPATH=tests python -m support.web_answers > docs/web.md``.
"""

from __future__ import annotations

import re
import sys
from typing import Final

from support.web_script import SILENT

NGINX_VERSION: Final = "1.22.1"
FRP_VERSION: Final = "0.61.1"


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

# frp ----------------------------------------------------------------------------------

FRP_ADDS: Final = (
    "/ Accept-Encoding: gzip /",
    "| Content-Type: text/plain; charset=utf-8 |",
    "| Content-Length: 0 |",
)
"""To each request; to each answer that has none; and to each 101."""
LOST: Final = "a target that does not answer well is no page that does not exist"
READ_ON: Final = "an early answer arrives while the body is still being sent"
ORDER: Final = "fields and trailers pass in the order and with the names they came with"
REASON: Final = "the target's own words pass"
ADDED: Final = "nothing is added"
FRP: Final = {
    "percent, dots and slashes": (
        "200 OK | GET /heard//a/../b/%2e%2F%C3 HTTP/1.1 /",
        "a query is the target's to read, and is never lost",
    ),
    "no path, star": ("200 OK | Content-Length: 0", "the target is asked"),
    "empty lines before": ("400", "RFC 9112 2.2 skips them"),
    "absolute": (
        "200 OK | GET http://app.t.test/heard HTTP/1.1 /",
        "RFC 9112 3.2.2: servers behind a gateway expect a path",
    ),
    "absolute with a user": (
        "200 OK | GET http://app.t.test/heard HTTP/1.1 / "
        "Proxy-Authorization: Basic bWU6c2VjcmV0 /",
        "nobody behind is to know a password",
    ),
    "POST without a length": (
        "200 OK | POST /heard HTTP/1.1 / Content-Length: 0 /",
        ADDED,
    ),
    "value in Latin-1": (
        HEARD + "X-A: ä b /",
        "white space goes on as it was written",
    ),
    "an empty value": (HEARD + "X-A:  /", ADDED),
    "TE": (HEARD + "Te: trailers /", "what is for this hop says so to the next one"),
    "trailers": (
        "200 OK | PUT /heard HTTP/1.1 / Trailer: X-Sum / "
        "Transfer-Encoding: chunked / hello",
        "a digest behind a body arrives",
    ),
    "Expect": (
        "100 Continue // 100 Continue | X-Go: 1",
        "it is the target that says go on, once",
    ),
    "HTTP/1.0 and hints": (
        "103 Early Hints | Link: </a.css>; rel=preload // HTTP/1.0 200 OK\r\n"
        "Content-Length: 2\r\nContent-Type: text/plain; charset=utf-8\r\n\r\nok",
        "HTTP/1.0 knows no interim answers",
    ),
    "HTTP/1.0, cut": ("200 OK | half", "a cut body does not seem whole"),
    "/trailers": (
        "200 OK | Trailer: X-Sum | hello + Grpc-Status: 0 + X-Sum: 1",
        ORDER,
    ),
    "/not-modified": (
        "304 Not Modified | Etag: x",
        "the length is a cache's to compare",
    ),
    "/no-colon": ("404", "one broken line costs that line"),
    "/broken-length": ("200 OK | ok", ONE_READING),
    "/identity": ("404", "old servers say it, and mean nothing by it"),
    "/no-reason": ("200 OK | ok", REASON),
    "/empty-reason": ("200 OK | ok", REASON),
    "/big-head": ("200 OK | 102 fields | ok", ADDED),
    "/300-fields": ("200 OK | 301 fields | ok", ADDED),
    "/two-lengths": ("404", LOST),
    "/short": ("closed", "what has come is passed on before it breaks"),
    "/nonsense": ("404", LOST),
    "/nothing": ("404", LOST),
    "/reasons": ("102 Processing // 299 status code 299 | ok", REASON),
    "pipelined": (
        FIELDS + " // 200 OK | Trailer: X-Sum | hello + Grpc-Status: 0 + X-Sum: 1 "
        "// 200 OK | POST /heard HTTP/1.1 / Content-Length: 1 / x",
        ORDER,
    ),
    "our end first": ("404", "who half-closes still gets the answer"),
    "our end within a body": ("404", "the visitor is told whose fault it is"),
    "target leaves, POST": (
        "200 OK | GET /leaves/post HTTP/1.1 / // 404",
        "browsers ask again when there is no answer; 404 is shown",
    ),
    "early answer": (SILENT, READ_ON),
    "early answer, Expect": (
        "100 Continue",
        "the target is asked before the body is sent",
    ),
    "early answer, chunked": (SILENT, READ_ON),
    "websocket": (switched("websocket", "closed"), HALF_CLOSED),
    "WebSocket": (switched("WebSocket", "closed"), HALF_CLOSED),
    "tcp": (switched("tcp", "closed"), HALF_CLOSED),
    "SPDY/3.1": (switched("SPDY/3.1", "closed"), HALF_CLOSED),
    "ts2021": (switched("ts2021", "closed"), HALF_CLOSED),
    "h2c": ("500", "an offer may be passed over (RFC 9110 7.8)"),
}


def ours(name: str) -> str:
    """Return what we make of a script."""
    said, _reason = OURS.get(name, (DIRECT[name], ""))
    return said


def in_case_of_go(said: str) -> str:
    """Write the names of fields as programs in Go do, whatever was said."""
    return re.sub(
        r"(?<=[|/+] )[\w-]+(?=:)",
        lambda found: "-".join(map(str.capitalize, found[0].split("-"))),
        said,
    )


def without_additions(said: str) -> str:
    """Leave out what frp adds to each, and the time of day."""
    for added in FRP_ADDS:
        said = said.replace(added, added[0])
    return re.sub(r"Date: [^\r]*\r\n", "", said)


# The page -----------------------------------------------------------------------------

PAGE: Final = """\
# What passes, and what is changed on the way

The same {count} requests of every kind to a web server that answers as old, new and
broken ones do: directly, by name through the tunnel, through nginx {nginx} (a reverse
proxy, no tunnel) and through frp {frp} (`type = "http"`). What is not listed passes
as it came. Tests hold each line (tests/system/test_web_faithful.py).

`//` is between answers, `|` between the fields of an answer, and `/` between those
that a request had when it reached the server, which says so in its answer. Bytes are
shown as Latin-1, and of most errors the status alone. `closed` is an end without a
word, `silent` no word within a second.

## HTTP/2

A visitor may speak HTTP/2: by ALPN where TLS ends at the server, by prior knowledge on
the `--http` port. Each of its streams is then a request like one of HTTP/1.1, so all
that is said below holds for it, and a target gets HTTP/1.1, or HTTP/2 with
`protocol=h2c` or `h2`. What is different:

| | |
|---|---|
{http_2}

## What tunnel changes

| | the server itself | by name | why |
|---|---|---|---|
{ours}

## Where nginx differs from tunnel

| | nginx | tunnel | why |
|---|---|---|---|
{by_nginx}

## Where frp differs from tunnel

It also writes all names of fields as Go does, and adds `Accept-Encoding: gzip` to
each request, `Content-Type` to each answer that has none and `Content-Length: 0` to
each 101.

| | frp | tunnel | why |
|---|---|---|---|
{by_frp}
"""


def _cell(said: str) -> str:
    text = said.replace("\r\n", "↵").replace("|", "\\|").strip()
    return f"`{text}`"


def _rows(rows: list[tuple[str, str, str, str]]) -> str:
    return "\n".join(
        f"| {name} | {_cell(one)} | {_cell(other)} | {why} |"
        for name, one, other, why in rows
    )


HTTP_2: Final = {
    "requests at once": (
        "128 of a visitor; 16 over kept connections to their target, and one "
        "more for each that has waited for 50 ms, so that streams that do not"
        " end hold up nobody"
    ),
    "a name that passes through (`--https`), or has another certificate": (
        "421: the browser asks on another connection"
    ),
    (
        "names in capitals, CR, LF, NUL or spaces where none may be, two or "
        "no pseudo-headers, Host against `:authority`, a path without slash, "
        "Connection, Transfer-Encoding, Upgrade"
    ): ("RST_STREAM with PROTOCOL_ERROR; no target hears of it"),
    "a Content-Length that is not that of the DATA": ("GOAWAY with PROTOCOL_ERROR"),
    (
        "more than 1,000 frames at once that bring nothing (PING, SETTINGS, "
        "PRIORITY, empty DATA, windows of a few bytes), and 200/s more; 200 "
        "requests given up at once, and 20/s more; CONTINUATION without end; "
        "a head of more than 128 KiB"
    ): (
        "GOAWAY, mostly with ENHANCE_YOUR_CALM, and one line in the log; for a minute, "
        "100 frames or requests given up are enough from that address"
    ),
    "a connection without a request": (
        "ended 10 s after it began, or 75 s after its last request, whatever else "
        "it sends"
    ),
    "a body that its target does not take": (
        "256 KiB wait for a stream, 1 MiB for a visitor, 128 MiB in all"
    ),
    "`Upgrade: h2c`, WebSocket over HTTP/2 (RFC 8441)": (
        "not offered; browsers open a connection of HTTP/1.1"
    ),
    "an answer that breaks off": ("RST_STREAM with INTERNAL_ERROR"),
    "a visitor that gives up, or whose deadline is over": (
        "a `protocol=h2c` target hears RST_STREAM with CANCEL"
    ),
    "trailers beside a Content-Length": (
        "left out, as HTTP/1.1 has no place for them on the way"
    ),
}
"""What a visitor that speaks it is told, or does not get."""


def page() -> str:
    """Return the text of docs/web.md."""
    changed = [
        (name, DIRECT[name], said, why) for name, (said, why) in OURS.items()
    ]  # fmt: skip
    nginx, frp = (
        [(name, said, ours(name), why) for name, (said, why) in table.items()]
        for table in (NGINX, FRP)
    )
    http_2 = "\n".join(f"| {what} | {how} |" for what, how in HTTP_2.items())
    return PAGE.format(
        http_2=http_2,
        count=len(DIRECT), nginx=NGINX_VERSION, frp=FRP_VERSION,
        ours=_rows(changed), by_nginx=_rows(nginx), by_frp=_rows(frp),
    )  # fmt: skip


if __name__ == "__main__":
    sys.stdout.write(page())
