"""Heads of HTTP/2 as heads of HTTP/1.1, and back. Sans-IO.

``h2`` is told not to look at fields: it would end the connection where one stream is
malformed (RFC 9113 §8.1.1). What passes here can be read in one way only, by us and by
whatever speaks HTTP/1.1 behind us.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NamedTuple

from tunnel.front.http.heads import MAX_SIZE_DIGITS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tunnel.front.http.heads import AnswerHead, Field, RequestHead

Fields = list[tuple[bytes, bytes]]

_NAME: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-z]+")
_METHOD: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_VALUE: Final = re.compile(
    rb"(?:[\x21-\x7e\x80-\xff](?:[\t\x20-\x7e\x80-\xff]*[\x21-\x7e\x80-\xff])?)?"
)
_AUTHORITY: Final = re.compile(rb"[\x21-\x3f\x41-\x7e]+")  # without @
_PATH: Final = re.compile(rb"/[\x21-\x7e\x80-\xff]*")
_STATUS: Final = re.compile(rb"[1-9][0-9][0-9]")
_OF_A_CONNECTION: Final = frozenset(
    (
        b"connection", b"http2-settings", b"keep-alive", b"proxy-connection",
        b"transfer-encoding", b"upgrade",
    )
)  # fmt: skip
"""HTTP/2 has none of them (RFC 9113 §8.2.2)."""
_PSEUDO: Final = (b":method", b":scheme", b":authority", b":path")
_WITH_BODY: Final = (b"PATCH", b"POST", b"PUT")
"""Many servers ask for a length even where there is nothing (RFC 9110 §8.6)."""


class MalformedError(Exception):
    """A message that is none; the text says why."""


class Request(NamedTuple):
    """A request as its stream began it."""

    head: bytes
    """As HTTP/1.1 has it, with its empty line."""
    method: bytes
    authority: bytes
    chunked: bool
    """Its body is to be."""


def read_request(fields: Iterable[tuple[bytes, bytes]], *, ended: bool) -> Request:
    """Make a request of HTTP/1.1 of what begins a stream.

    Args:
        fields: as they came.
        ended: there is no body.

    Raises:
        MalformedError: it is none.
    """
    pseudo: dict[bytes, bytes] = {}
    lines: list[bytes] = []
    hosts: list[bytes] = []
    length: bytes | None = None
    for name, value in fields:
        if name[:1] == b":":
            if name not in _PSEUDO or name in pseudo or lines or hosts:
                raise MalformedError("a pseudo-header field that may not be there")
            pseudo[name] = value
            continue
        _check_field(name, value)
        if name == b"host":
            hosts.append(value)
        elif name == b"te":
            lines.append(_te(value))
        elif name == b"content-length":
            length = _length(value, length)
            lines.append(b"content-length: " + value)
        else:
            lines.append(b"%b: %b" % (name, value))
    method, path, authority = _target(pseudo, hosts)
    if ended and length is not None and int(length):
        raise MalformedError("the body is shorter than its content-length")
    chunked = not ended and length is None
    if chunked:
        lines.append(b"Transfer-Encoding: chunked")
    elif length is None and method in _WITH_BODY:
        lines.append(b"Content-Length: 0")
    first = b"%b %b HTTP/1.1\r\nHost: %b" % (method, path, authority)
    head = b"\r\n".join((first, *lines, b"", b""))
    return Request(head, method, authority, chunked)


def _target(
    pseudo: dict[bytes, bytes], hosts: list[bytes]
) -> tuple[bytes, bytes, bytes]:
    """Return method, path and authority."""
    method, scheme = pseudo.get(b":method", b""), pseudo.get(b":scheme")
    path, authority = pseudo.get(b":path"), pseudo.get(b":authority", b"")
    if not _METHOD.fullmatch(method):
        raise MalformedError("the method is not a word")
    if len(hosts) > 1 or (
        hosts and authority and hosts[0].lower() != authority.lower()
    ):
        raise MalformedError("there are two hosts")
    authority = authority or b"".join(hosts)
    if not _AUTHORITY.fullmatch(authority):
        raise MalformedError("the host is not a name")
    if method == b"CONNECT" and scheme is path is None:
        return method, authority, authority
    if scheme is None or scheme.lower() not in (b"http", b"https"):
        raise MalformedError("the scheme is not that of the web")
    if path == b"*" and method == b"OPTIONS":
        return method, path, authority
    if path is None or not _PATH.fullmatch(path):
        raise MalformedError("the path is none")
    return method, path, authority


def _te(value: bytes) -> bytes:
    if value.lower() != b"trailers":
        raise MalformedError("TE may only say trailers")
    return b"TE: trailers\r\nConnection: TE"


def _check_field(name: bytes, value: bytes) -> None:
    if not _NAME.fullmatch(name):
        raise MalformedError("a field has a name that it may not have")
    if name in _OF_A_CONNECTION:
        raise MalformedError("a field is about a connection of HTTP/1.1")
    if not _VALUE.fullmatch(value):
        raise MalformedError("a value has a character that it may not have")


def _length(value: bytes, other: bytes | None) -> bytes:
    if other is not None or not value.isdigit() or len(value) > MAX_SIZE_DIGITS:
        raise MalformedError("the content-length is not one number")
    return value


def trailer_lines(fields: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return the end of a chunked body, with these trailers.

    Raises:
        MalformedError: they are none.
    """
    lines = [b"0"]
    for name, value in fields:
        _check_field(name, value)
        lines.append(b"%b: %b" % (name, value))
    return b"\r\n".join((*lines, b"", b""))


def chunk(piece: bytes) -> bytes:
    """Return a piece of a body as a chunk."""
    return b"%x\r\n%b\r\n" % (len(piece), piece)


LAST_CHUNK: Final = b"0\r\n\r\n"


def _fields_of(fields: Iterable[Field], *, te: bool = False) -> Fields:
    """Return fields of HTTP/1.1 as HTTP/2 has them."""
    found: Fields = []
    for name, value, line in fields:
        if name in _OF_A_CONNECTION or (name == b"te" and not te) or name == b"host":
            continue
        written = line.partition(b":")[0].lower()
        found.append((written, b"trailers" if name == b"te" else value))
    return found


def answer_fields(head: AnswerHead) -> Fields:
    """Return the head of an answer of HTTP/1.1 as HTTP/2 has it."""
    return [(b":status", b"%d" % head.status), *_fields_of(head.fields)]


def trailer_fields(fields: Iterable[Field]) -> Fields:
    """Return trailers of HTTP/1.1 as HTTP/2 has them."""
    return _fields_of(fields)


def request_fields(head: RequestHead, scheme: bytes) -> Fields:
    """Return the head of a request of HTTP/1.1 as HTTP/2 has it."""
    host = next((value for name, value, _ in head.fields if name == b"host"), b"")
    return [
        (b":method", head.method), (b":scheme", scheme), (b":authority", host),
        (b":path", head.target), *_fields_of(head.fields, te=True),
    ]  # fmt: skip


def read_answer(
    fields: Iterable[tuple[bytes, bytes]], *, ended: bool, method: bytes
) -> tuple[bytes, int, bool]:
    """Make an answer of HTTP/1.1 of a head that a target sent.

    Args:
        fields: as they came.
        ended: there is no body.
        method: of the request.

    Returns:
        The head as bytes, its status, and whether the body is to be chunked.

    Raises:
        MalformedError: it is none.
    """
    status = b""
    lines: list[bytes] = []
    has_length = tells_trailers = False
    for name, value in fields:
        if name[:1] == b":":
            if name != b":status" or status or lines:
                raise MalformedError("a pseudo-header field that may not be there")
            status = value
            continue
        _check_field(name, value)
        has_length = has_length or name == b"content-length"
        tells_trailers = tells_trailers or name == b"trailer"
        lines.append(b"%b: %b" % (name, value))
    if not _STATUS.fullmatch(status) or status == b"101":
        raise MalformedError("the answer has no status")
    code = int(status)
    chunked = False
    if code >= 200 and method != b"HEAD" and code not in (204, 304):
        if ended and not has_length:
            lines.append(b"content-length: 0")
        elif not ended and (tells_trailers or not has_length):
            lines = [one for one in lines if not one.startswith(b"content-length:")]
            lines.append(b"transfer-encoding: chunked")
            chunked = True
    head = b"\r\n".join((b"HTTP/1.1 %b " % status, *lines, b"", b""))
    return head, code, chunked
