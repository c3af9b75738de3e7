"""Heads of HTTP/1 messages: read strictly where they frame, left alone elsewhere.

What a head says about the length of its message is decided here and nowhere else. All
other fields go on as they were written: name, case, order and white space. Sans-IO.

A request that two parsers could read in two ways is refused (RFC 9112 §2.2, §5, §6). Of
an answer one broken line is dropped, unless it says where the message ends.
"""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


class Field(NamedTuple):
    """One field line."""

    name: bytes
    """In lower case, ``-`` for ``_``: to CGI and its heirs, X_Y and X-Y are one."""
    value: bytes
    """Without white space around it."""
    line: bytes
    """As it was written, without its end."""


class Body(NamedTuple):
    """How the body of a message is framed; ``size`` counts where it is known."""

    size: int | None
    """Bytes; None when it is said elsewhere."""
    chunked: bool = False

    @property
    def ends_with_connection(self) -> bool:
        """Nothing says where it ends but the end of the connection."""
        return self.size is None and not self.chunked


NO_BODY: Final = Body(0)
CHUNKED: Final = Body(None, chunked=True)
OPEN: Final = Body(None)
HTTP_2: Final = b"PRI * HTTP/2.0\r\n\r\n"
"""How HTTP/2 begins (RFC 9113 §3.4), as far as it is a head of HTTP/1."""
MAX_SIZE_DIGITS: Final = 18
"""Of a Content-Length: every parser can hold so many."""


class HeadError(Exception):
    """A head that is not passed on.

    Args:
        status: for an answer of ours to a request; 502 for a broken answer.
        words: one line for people, without bytes of the message.
    """

    def __init__(self, status: HTTPStatus, words: str) -> None:
        super().__init__(words)
        self.status = status
        self.words = words


class RequestHead(NamedTuple):
    """The head of a request."""

    method: bytes
    """Any token, as it was written."""
    target: bytes
    """As it was written, but bytes above 0x7f as ``%XX`` (RFC 3986)."""
    http_1_0: bool
    fields: list[Field]
    body: Body
    connection: frozenset[bytes]
    """What Connection lists, in lower case."""
    upgrade: bytes
    """The one token of Upgrade that Connection names; empty for none and for several,
    and for h2c, which would carry requests past their reader (RFC 9110 §7.8)."""

    @property
    def keeps_connection(self) -> bool:
        """Another request may follow."""
        if self.http_1_0:
            return b"keep-alive" in self.connection
        return b"close" not in self.connection


class AnswerHead(NamedTuple):
    """The head of an answer, interim (1xx) or final."""

    status: int
    reason: bytes
    http_1_0: bool
    fields: list[Field]
    body: Body
    connection: frozenset[bytes]
    broken: list[bytes]
    """Lines that were left out, for the log."""
    # It is shared by all answers with these bytes: neither list is to be changed.

    @property
    def keeps_connection(self) -> bool:
        """The target may be asked again on its connection."""
        if self.body.ends_with_connection or b"close" in self.connection:
            return False
        return not self.http_1_0 or b"keep-alive" in self.connection


_FRAMING: Final = frozenset(
    (b"content-length", b"transfer-encoding", b"connection", b"upgrade", b"trailer")
)
_TOKEN: Final = (
    b"!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
)
_NOT_IN_LINE: Final = bytes((*range(9), *range(10, 32), 127))
_IN_LINE: Final = bytes(set(range(256)) - set(_NOT_IN_LINE))
_IN_LINES: Final = _IN_LINE + b"\r\n"
_NEVER_IN_HEAD: Final = re.compile(
    rb"(?<!\r)\n|\r(?!\n|\Z)|\n[ \t]|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]"
)
_BEGIN: Final = re.compile(rb"[%b]+(?: |\Z)|\Z" % re.escape(_TOKEN))
_TARGET: Final = bytes(range(0x21, 0x7F))
_HIGH: Final = re.compile(rb"[\x80-\xff]")
_STATUS: Final = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9][0-9])(?: (.*))?", re.DOTALL)
_NOTHING: Final[frozenset[bytes]] = frozenset()
_OF_INTEREST: Final = _FRAMING - {b"trailer"} | {b"host"}
_WITHOUT_MEANING: Final = b"keep-alive"
"""Ends at this hop, and says nothing: Content_Length is no length, here or behind."""
_MAX_NAMES: Final = 1_000
_LONG_NAME_BYTES: Final = 40
_NAMES: Final[dict[bytes, bytes]] = {}
"""Names as they were written, and what ``Field.name`` says: bounded, as strangers fill
it."""
_SAID_AGAIN: Final = frozenset(
    # Every browser and every target says them again and again, and none is a secret.
    (
        b"accept",
        b"accept-encoding",
        b"accept-language",
        b"accept-ranges",
        b"cache-control",
        b"connection",
        b"content-encoding",
        b"content-length",
        b"content-type",
        b"date",
        b"etag",
        b"host",
        b"keep-alive",
        b"last-modified",
        b"pragma",
        b"sec-fetch-dest",
        b"sec-fetch-mode",
        b"sec-fetch-site",
        b"server",
        b"transfer-encoding",
        b"upgrade-insecure-requests",
        b"user-agent",
        b"vary",
    )
)
_MAX_FIELDS: Final = 1_000
_LONG_LINE_BYTES: Final = 160
_FIELDS: Final[dict[bytes, Field]] = {}
"""Lines that were read before: a quarter of what a head costs otherwise. Bounded, as
strangers fill it: 0.5 MB at most, and begun anew then."""
_MAX_ANSWERS: Final = 256
_LONG_ANSWER_BYTES: Final = 1_024
_ANSWERS: Final[dict[tuple[bytes, bytes, int], AnswerHead]] = {}
"""Heads of answers that were read before, bounded alike, 1 MB at most: a target says
the same within a second, to all its visitors. None with a field that may be a secret.
"""
_CONNECTIONS: Final = {
    b"keep-alive": frozenset((b"keep-alive",)),
    b"Keep-Alive": frozenset((b"keep-alive",)),
    b"close": frozenset((b"close",)),
}


def end_of_request(data: bytearray, seen: int) -> int:
    """Return the length of the head that ``data`` begins with; 0 when it goes on.

    Args:
        data: what has come.
        seen: so much of it was looked at before.

    Raises:
        HeadError: what has come cannot become a request.
    """
    end = data.find(b"\r\n\r\n", max(seen - 3, 0))
    if end >= 0:
        return end + 4
    # A slow head may bring its method in pieces: all but the first are read at its end.
    begins = bool(seen) or _BEGIN.match(data)
    if not begins or _NEVER_IN_HEAD.search(data, max(seen - 2, 0)):
        raise _bad("the request is not HTTP")
    return 0


def end_of_answer(data: bytearray, seen: int) -> int:
    """Do the same for an answer, whose lines may end with a bare LF."""
    start = max(seen - 3, 0)
    # Two searches for a string are much faster than one for a pattern, and the second
    # leaves out the body.
    end = data.find(b"\n\r\n", start)
    bare = data.find(b"\n\n", start, end + 1 if end >= 0 else None)
    if bare >= 0:
        return bare + 2
    return end + 3 if end >= 0 else 0


def read_request(raw: bytes, max_fields: int) -> RequestHead:
    """Read the head of a request, with its empty line.

    Raises:
        HeadError: two parsers could read it in two ways, or it is not served.
    """
    lines = raw[:-4].split(b"\r\n")
    if raw.count(b"\n") != len(lines) + 1 or raw.count(b"\r") != len(lines) + 1:
        raise _bad("the request has a line that does not end with CR LF")
    method, target, version = _request_line(lines[0])
    if len(lines) - 1 > max_fields:
        status = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
        raise HeadError(status, f"a request may have {max_fields} header fields")
    if raw.translate(None, _IN_LINES):
        raise _bad("the request has a control character")
    fields = []
    for line in lines[1:]:
        field = _field(line)
        if field is None:
            raise _bad("a line of the head is no header field")
        fields.append(field)
    return _framed_request(method, target, version == b"HTTP/1.0", fields)


def _request_line(line: bytes) -> tuple[bytes, bytes, bytes]:
    words = line.split(b" ")
    if len(words) != 3:
        raise _bad("the request line has not three words")
    method, target, version = words
    if version not in (b"HTTP/1.1", b"HTTP/1.0"):
        if re.fullmatch(rb"HTTP/\d\.\d", version):
            status = HTTPStatus.HTTP_VERSION_NOT_SUPPORTED
            raise HeadError(status, "this is HTTP/1.1")
        raise _bad("the request is not HTTP")
    if not method or method.translate(None, _TOKEN):
        raise _bad("the method is not a word")
    if not target or target.translate(None, _TARGET):
        target = _HIGH.sub(lambda found: b"%%%02X" % ord(found[0]), target)
        if not target or target.translate(None, _TARGET):
            raise _bad("the target of the request has a character that it may not have")
    return method, target, version


def read_field(line: bytes) -> Field | None:
    """Read a line of a trailer; None if it is no field."""
    known = _FIELDS.get(line)
    if known is not None:
        return known
    return None if line.translate(None, _IN_LINE) else _field(line)


def _field(line: bytes) -> Field | None:
    known = _FIELDS.get(line)
    if known is not None:
        return known
    written, colon, value = line.partition(b":")
    name = _NAMES.get(written)
    if name is None:
        if not written or written.translate(None, _TOKEN):
            return None
        name = written.lower().replace(b"_", b"-")
        if name in _OF_INTEREST and b"_" in written:
            name = _WITHOUT_MEANING
        if len(_NAMES) < _MAX_NAMES and len(name) <= _LONG_NAME_BYTES:
            _NAMES[written] = name
    if not colon:
        return None
    field = Field(name, value.strip(b" \t"), line)
    if name in _SAID_AGAIN and len(line) <= _LONG_LINE_BYTES:
        if len(_FIELDS) >= _MAX_FIELDS:
            _FIELDS.clear()
        _FIELDS[line] = field
    return field


def _framed_request(
    method: bytes, target: bytes, http_1_0: bool, fields: list[Field]
) -> RequestHead:
    said = _said(fields)
    hosts = len(said.get(b"host", ()))
    if hosts > 1 or not (hosts or http_1_0):
        raise _bad("the request has not one Host")
    connection = _words(said.get(b"connection", ()))
    body = _request_body(
        said.get(b"content-length"), said.get(b"transfer-encoding"), http_1_0
    )
    upgrade = b""
    if not http_1_0 and b"upgrade" in connection:
        upgrade = _one_upgrade(said.get(b"upgrade", ()))
    return RequestHead(method, target, http_1_0, fields, body, connection, upgrade)


def _said(fields: list[Field]) -> dict[bytes, list[bytes]]:
    """Return the values of the fields that matter here."""
    said: dict[bytes, list[bytes]] = {}
    for name, value, _ in fields:
        if name in _OF_INTEREST:
            said.setdefault(name, []).append(value)
    return said


def _request_body(
    lengths: list[bytes] | None, codings: list[bytes] | None, http_1_0: bool
) -> Body:
    if codings:
        if lengths or http_1_0:
            raise _bad("the length of the request is said in two ways")
        if len(codings) > 1 or codings[0].lower() != b"chunked":
            status = HTTPStatus.NOT_IMPLEMENTED
            raise HeadError(status, "only the coding chunked is understood")
        return CHUNKED
    if lengths:
        if len(lengths) > 1 or not _is_size(lengths[0]):
            raise _bad("the Content-Length is not one number")
        return Body(int(lengths[0]))
    return NO_BODY


def _one_upgrade(values: Sequence[bytes]) -> bytes:
    if len(values) != 1 or values[0].translate(None, _TOKEN + b"/"):
        return b""
    return values[0] if values[0].lower() != b"h2c" else b""


def read_answer(raw: bytes, method: bytes, max_fields: int) -> AnswerHead:
    """Read the head of an answer, with its empty line.

    Args:
        raw: the head.
        method: of the request.
        max_fields: it may have.

    Raises:
        HeadError: 502, it is no answer, or not said where it ends.
    """
    key = (raw, method, max_fields)
    known = _ANSWERS.get(key)
    if known is not None:
        return known
    head = _read_answer(raw, method, max_fields)
    if len(raw) <= _LONG_ANSWER_BYTES and all(
        name in _SAID_AGAIN for name, _, _ in head.fields
    ):
        if len(_ANSWERS) >= _MAX_ANSWERS:
            _ANSWERS.clear()
        _ANSWERS[key] = head
    return head


def _read_answer(raw: bytes, method: bytes, max_fields: int) -> AnswerHead:
    lines = raw.rstrip(b"\r\n").split(b"\n")
    found = _STATUS.fullmatch(lines[0].rstrip(b"\r"))
    if found is None:
        raise _fault("answered something that is not HTTP")
    if len(lines) - 1 > max_fields:
        raise _fault(f"answered with more than {max_fields} header fields")
    status, reason = int(found[2]), found[3] or b""
    fields: list[Field] = []
    broken: list[bytes] = []
    for line in lines[1:]:
        line = line.removesuffix(b"\r")
        field = read_field(line)
        if field is not None:
            fields.append(field)
        elif line.partition(b":")[0].strip().lower() in _FRAMING or line[:1] in b" \t":
            raise _fault("answered with a broken line in its head")
        else:
            broken.append(line)
    reason = reason.translate(None, _NOT_IN_LINE)
    return _framed_answer(status, reason, found[1] == b"0", fields, broken, method)


def _framed_answer(
    status: int, reason: bytes, http_1_0: bool, fields: list[Field],
    broken: list[bytes], method: bytes,
) -> AnswerHead:  # fmt: skip
    said = _said(fields)
    lengths = set(said.get(b"content-length", ()))
    codings = [
        value.lower()
        for value in said.get(b"transfer-encoding", ())
        if value.lower() != b"identity"  # RFC 2616 §3.6 knew it
    ]
    connection = _words(said.get(b"connection", ()))
    if len(lengths) > 1 or not all(map(_is_size, lengths)) or (lengths and codings):
        raise _fault("answered with two lengths, or with one that is no number")
    if codings and (codings != [b"chunked"] or http_1_0):
        raise _fault("answered in a transfer coding that is not understood")
    if method == b"HEAD" or status < 200 or status in (204, 304):
        body = NO_BODY
    elif codings:
        body = CHUNKED
    else:
        body = Body(int(lengths.pop())) if lengths else OPEN
    return AnswerHead(status, reason, http_1_0, fields, body, connection, broken)


def _words(said: Sequence[bytes]) -> frozenset[bytes]:
    if not said:
        return _NOTHING
    if len(said) == 1 and said[0] in _CONNECTIONS:
        return _CONNECTIONS[said[0]]
    words = (word.strip() for value in said for word in value.lower().split(b","))
    return frozenset(word for word in words if word)


def _is_size(value: bytes) -> bool:
    return value.isdigit() and len(value) <= MAX_SIZE_DIGITS


def _bad(words: str) -> HeadError:
    return HeadError(HTTPStatus.BAD_REQUEST, words)


def _fault(words: str) -> HeadError:
    return HeadError(HTTPStatus.BAD_GATEWAY, words)


def tokens(fields: Iterable[Field], wanted: bytes) -> list[bytes]:
    """Return the comma-separated members of all fields of a name, in lower case."""
    return [
        token.strip().lower()
        for name, value, _ in fields
        if name == wanted
        for token in value.split(b",")
        if token.strip()
    ]


def values(fields: Iterable[Field], wanted: bytes) -> list[bytes]:
    """Return the values of all fields of a name, which is given in lower case."""
    return [value for name, value, _ in fields if name == wanted]
