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
    from tunnel.front.http.limits import Limits
    from tunnel.front.http.server import Visit

_BEGIN: Final = b"HTTP/1."


class AnswerHeads:
    """Reads heads of answers in what a target says; holds one at most.

    Args:
        limits: of a head.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._buffer = bytearray()

    @property
    def has_begun(self) -> bool:
        """A part of a head has come."""
        return bool(self._buffer)

    def read(
        self, data: bytes, method: bytes
    ) -> tuple[AnswerHead, bytes, bytes] | None:
        """Return a head, its bytes and what is behind it; None while it is not whole.

        Raises:
            HeadError: 502, it is none.
        """
        buffer, limits = self._buffer, self._limits
        seen = len(buffer)
        buffer += data
        size = end_of_answer(buffer, seen)
        if (size or len(buffer)) > limits.head_bytes:
            raise HeadError(
                HTTPStatus.BAD_GATEWAY,
                f"answered with a head of more than {limits.head_bytes} bytes",
            )
        if not size:
            _check_begin(buffer)
            return None
        raw, behind = bytes(buffer[:size]), bytes(buffer[size:])
        buffer.clear()
        try:
            return read_answer(raw, method, limits.fields), raw, behind
        except HeadError:
            _check_begin(raw)
            raise


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
        self._heads = AnswerHeads(visit.limits)
        self._chunked = False
        """The visitor gets the body in chunks."""
        self._look: Look | None = None

    def read_heads(self, data: bytes, output: list[bytes]) -> bytes:
        """Read interim answers and the head of the final one; return what is behind.

        Raises:
            HeadError: this is no answer.
        """
        while (found := self._heads.read(data, self._request.method)) is not None:
            head, _, data = found
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
                break
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


def _check_begin(said: bytes | bytearray) -> None:
    if not _BEGIN.startswith(said[: len(_BEGIN)]):
        raise HeadError(HTTPStatus.BAD_GATEWAY, spoken(said)) from None
