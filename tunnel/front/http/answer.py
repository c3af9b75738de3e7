"""What a target answers, and what its visitor gets of it; does no IO."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from tunnel.front.http.bodies import BodyReader, framed, last_chunk
from tunnel.front.http.fields import answer_lines, trailers
from tunnel.front.http.heads import (
    NO_BODY,
    HeadError,
    end_of_answer,
    read_answer,
    values,
)
from tunnel.front.http.hints import REFUSALS, Look, may_be_hinted, say_broken, spoken
from tunnel.front.http.pages import head_bytes

if TYPE_CHECKING:
    from collections.abc import Callable

    from tunnel.front.http.heads import AnswerHead, RequestHead
    from tunnel.front.http.server import Visit

_BEGIN: Final = b"HTTP/1."


class AnswerReader:
    """Reads the answer to one request, and appends to ``output`` what goes on.

    Args:
        visit: who asked.
        request: what was asked.
        lines: makes the fields of the answer that go on.
    """

    def __init__(
        self,
        visit: Visit,
        request: RequestHead,
        lines: Callable[[AnswerHead], list[bytes]],
    ) -> None:
        self.status = 0
        """Of the final answer, once it has begun."""
        self.switched = False
        """Both sides leave HTTP behind it."""
        self.head: AnswerHead | None = None
        """Of the final answer."""
        self.body = BodyReader(NO_BODY)
        """Of the final answer."""
        self._visit = visit
        self._request = request
        self._lines = lines
        self._buffer = bytearray()
        """Of a head that is not whole."""
        self._chunked = False
        """The visitor gets the body in chunks."""
        self._look: Look | None = None

    def read_heads(self, data: bytes, output: list[bytes]) -> bytes:
        """Read interim answers and the head of the final one; return what is behind.

        Raises:
            HeadError: this is no answer.
        """
        buffer, limits = self._buffer, self._visit.limits
        while True:
            seen = len(buffer)
            buffer += data
            size = end_of_answer(buffer, seen)
            if (size or len(buffer)) > limits.head_bytes:
                raise HeadError(
                    HTTPStatus.BAD_GATEWAY,
                    f"answered with a head of more than {limits.head_bytes} bytes",
                )
            if not size:
                check_begin(buffer)
                return b""
            raw, data = bytes(buffer[:size]), bytes(buffer[size:])
            buffer.clear()
            try:
                head = read_answer(raw, self._request.method, limits.fields)
            except HeadError:
                check_begin(raw)
                raise
            if head.broken:
                say_broken(self._visit.host, head.broken)
            if head.status >= HTTPStatus.OK:
                output.append(self._final(head))
                return data
            if head.status == HTTPStatus.SWITCHING_PROTOCOLS:
                output += [self._switch(head, data), data]
                return b""
            if not self._request.http_1_0:
                lines = answer_lines(head)
                output.append(head_bytes(head.status, head.reason, lines))
            if not data:
                return b""

    def read_body(self, data: bytes, output: list[bytes]) -> bytes:
        """Read what belongs to the answer's body; return what is behind.

        Raises:
            HeadError: it cannot be read.
        """
        pieces, rest = self.body.feed(data)
        if self._look is not None and not self._look.take(pieces):
            self._look = None
        if self._visit.observer is not None:
            self._visit.observer.answered(pieces)
            if self.body.done:
                self._visit.observer.trailers(self.body.trailers)
        output += framed(pieces, chunked=self._chunked)
        if self.body.done and self._chunked:
            output.append(last_chunk(trailers(self.body.trailers)))
        return rest

    def end(self, output: list[bytes]) -> None:
        """Take the end of the connection for that of the answer.

        Raises:
            BodyError: it is none.
        """
        self.body.end()
        if self._chunked:
            output.append(last_chunk([]))

    def _switch(self, head: AnswerHead, behind: bytes) -> bytes:
        if not self._request.upgrade:
            raise HeadError(
                HTTPStatus.BAD_GATEWAY, "switched to a protocol that nobody asked for"
            )
        if not self._visit.body.done:  # its rest would be taken for the new protocol
            raise HeadError(
                HTTPStatus.BAD_GATEWAY, "switched before it had the whole request"
            )
        self.status = head.status
        self.switched = self._visit.answering = True
        if self._visit.line is not None:
            self._visit.line.status = head.status
        upgrade = next(iter(values(head.fields, b"upgrade")), self._request.upgrade)
        lines = [
            *self._lines(head), b"Connection: Upgrade", b"Upgrade: " + upgrade
        ]  # fmt: skip
        output = head_bytes(head.status, head.reason, lines)
        if self._visit.observer is not None:
            self._visit.observer.answers(head.status, output)
            self._visit.observer.passed(behind, to_visitor=True)
        return output

    def _final(self, head: AnswerHead) -> bytes:
        self.head, self.body = head, BodyReader(head.body)
        self.status = head.status
        if head.status in REFUSALS and may_be_hinted(head):
            self._look = Look(self._visit.host)
        lines = self._lines(head)
        self._chunked = head.body.size is None and not self._request.http_1_0
        if self._chunked:
            lines.append(b"Transfer-Encoding: chunked")
        return self._visit.head(head.status, lines, head.reason)


def check_begin(said: bytes | bytearray) -> None:
    """Raise HeadError, 502, if what a target has said so far begins no answer."""
    if not _BEGIN.startswith(said[: len(_BEGIN)]):
        raise HeadError(HTTPStatus.BAD_GATEWAY, spoken(said)) from None
