"""Requests and answers that are read beside a relay, which knows nothing of them.

    Overheard   hears one connection, and tells who looks at its requests

It changes nothing and holds nothing up: what it cannot read passes unread, and who
looks is told why. A request that never reached its target is told, too.
"""

from __future__ import annotations

from collections import deque
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from tunnel.front.http.answer import AnswerHeads
from tunnel.front.http.bodies import BodyReader
from tunnel.front.http.heads import (
    OPEN,
    HeadError,
    RequestHead,
    end_of_request,
    read_request,
)
from tunnel.front.http.limits import LIMITS
from tunnel.front.http.observer import Guarded

if TYPE_CHECKING:
    from tunnel.addresses import Address
    from tunnel.front.http.observer import Watch
    from tunnel.platform.sockets import Buffer

MOST_ASKED: Final = 64
"""Requests of one connection that wait for their answers: browsers ask one by one."""
MOST_TURNS: Final = 16
"""Of ``bodies.MAX_LINES`` in one read, 8 ms: what comes in smaller chunks passes
unread, as nothing else has a turn meanwhile."""
_LEFT: Final = "the visitor has left, or was cut off"
_SWITCHED: Final = 101
_FINAL: Final = 200


class _Asked:
    """A request whose answer is not whole."""

    __slots__ = ("body", "method", "observer")

    def __init__(self, observer: Guarded) -> None:
        self.observer: Guarded | None = observer
        self.method = b""
        self.body = BodyReader(OPEN)
        """Of the request; without an end until its head is read."""

    def over(self, failure: str = "") -> None:
        """Say the end to who looks, once."""
        observer, self.observer = self.observer, None
        if observer is not None:
            if failure:
                observer.failed(failure)
            observer.over(whole=self.body.done)


class Overheard:
    """Reads what passes one connection to a target: a ``net.heard.Ear``.

    It holds a head of each direction at most (``LIMITS``), and ``MOST_ASKED`` requests.

    Args:
        watch: makes who looks at each request.
        visitor: whose requests they are.
    """

    def __init__(self, watch: Watch, visitor: Address) -> None:
        self._watch = watch
        self._visitor = visitor
        self._limits = LIMITS.get()
        self._head = bytearray()
        """Of a request, as far as it has come."""
        self._answer_heads = AnswerHeads(self._limits)
        self._last: tuple[bytes, RequestHead] | None = None
        """Many ask for the same again."""
        self._asked = deque[_Asked]()
        self._sending: _Asked | None = None
        """Whose body is on its way."""
        self._answer: BodyReader | None = None
        """Of the answer that is on its way: to the first of those that asked."""
        self._ends_with_connection = False
        self._tunnel: Guarded | None = None
        """Both sides have left HTTP."""
        self._is_deaf = self._is_new = False
        self._has_broken = self._has_ended = False

    # As an ear ------------------------------------------------------------------------

    def wrote(self, data: Buffer) -> None:
        """Hear what the visitor says."""
        if self._tunnel is not None:
            self._tunnel.passed(data, to_visitor=False)
        elif not self._is_deaf:
            try:
                self._read_requests(data)
            except HeadError as error:
                self._lose(f"passes unread: {error.words}")

    def read(self, data: bytes) -> None:
        """Hear what the target says; nothing: its end."""
        if not data:
            self._take_end()
        elif self._tunnel is not None:
            self._tunnel.passed(data, to_visitor=True)
        elif not self._is_deaf:
            try:
                self._read_answers(data)
            except HeadError as error:
                self._lose(f"the target {error.words}")

    def broke(self) -> None:
        """Hear that the target's connection is broken."""
        self._has_broken = True

    def closed(self) -> None:
        """Hear the end of it all."""
        tunnel, self._tunnel = self._tunnel, None
        if tunnel is not None:
            tunnel.over(whole=True)
        left = not (self._has_broken or self._has_ended)
        self._lose(_LEFT if left else self._end())

    def connected(self) -> None:
        """Hear that the target was connected for what is asked first."""
        self._is_new = True

    def unserved(self, why: str) -> None:
        """Hear that there is no connection to the target."""
        self._lose(why)

    # What is asked --------------------------------------------------------------------

    def _read_requests(self, data: Buffer) -> None:
        turns = 0
        while len(data):
            asked = self._sending
            if asked is None:
                data = self._read_head(data)
                continue
            turns = _one_more(turns)
            pieces, data = asked.body.feed(bytes(data))
            if pieces and asked.observer is not None:
                asked.observer.asked(pieces)
            if asked.body.done:
                self._sending = None

    def _read_head(self, data: Buffer) -> bytes:
        """Read the head of a request; return what is behind it."""
        head = self._head
        seen = len(head)
        head += data
        size = end_of_request(head, seen)
        most = self._limits.head_bytes
        if (size or len(head)) > most:
            raise _unread(f"its head has more than {most} bytes")
        if not size:
            return b""
        raw, rest = bytes(head[:size]), bytes(head[size:])
        if len(self._asked) >= MOST_ASKED:
            raise _unread(f"{MOST_ASKED} requests wait for an answer")
        head.clear()
        self._begin(raw)
        return rest

    def _begin(self, raw: bytes) -> None:
        observer = Guarded.begin(self._watch, self._visitor, raw)
        asked = _Asked(observer)
        self._asked.append(asked)
        if self._is_new:
            observer.connected()
            self._is_new = False
        if self._last is None or self._last[0] != raw:
            self._last = raw, read_request(raw, self._limits.fields)
        request = self._last[1]
        asked.method = request.method
        asked.body = BodyReader(request.body)
        if not asked.body.done:
            self._sending = asked

    # What is answered -----------------------------------------------------------------

    def _read_answers(self, data: bytes) -> None:
        turns = 0
        while data:
            if self._answer is None:
                data = self._read_answer(data)
                continue
            turns = _one_more(turns)
            pieces, data = self._answer.feed(data)
            observer = self._asked[0].observer
            if pieces and observer is not None:
                observer.answered(pieces)
            if self._answer.done:
                if observer is not None:
                    observer.trailers(self._answer.trailers)
                self._finish()

    def _read_answer(self, data: bytes) -> bytes:
        """Read the head of an answer; return what is behind it."""
        if not self._asked:
            raise _unread("spoke without being asked")
        asked = self._asked[0]
        found = self._answer_heads.read(data, asked.method)
        if found is None:
            return b""
        answer, raw, rest = found
        observer = asked.observer
        if answer.status == _SWITCHED:
            return self._switch(raw, rest)
        if answer.status >= _FINAL:
            if observer is not None:
                observer.answers(answer.status, raw)
            self._answer = BodyReader(answer.body)
            self._ends_with_connection = answer.body.ends_with_connection
            if self._answer.done:
                self._finish()
        return rest

    def _switch(self, raw: bytes, behind: bytes) -> bytes:
        tunnel = self._asked.popleft().observer
        self._lose("the connection has left HTTP")
        if tunnel is not None:
            tunnel.answers(_SWITCHED, raw)
            if behind:
                tunnel.passed(behind, to_visitor=True)
        self._tunnel = tunnel
        return b""

    def _finish(self) -> None:
        self._answer = None
        self._asked.popleft().over()

    def _take_end(self) -> None:
        self._has_ended = True
        if self._ends_with_connection and self._answer and not self._has_broken:
            self._finish()
        self._lose(self._end())

    def _end(self) -> str:
        """Return why there is no whole answer."""
        if self._answer is not None:
            return "the target broke off within its answer"
        if self._answer_heads.has_begun:
            return "the target broke off within its answer's head"
        if self._has_broken:
            return "the target broke off"
        return "the target has closed the connection without an answer"

    def _lose(self, why: str) -> None:
        """Hear no more, and say why to who looks at what is not answered."""
        if self._head:
            begun = Guarded.begin(self._watch, self._visitor, bytes(self._head))
            self._asked.append(_Asked(begun))
        self._is_deaf = True
        self._head, self._answer_heads = bytearray(), AnswerHeads(self._limits)
        self._last = self._sending = self._answer = None
        while self._asked:
            self._asked.popleft().over(why)


def _one_more(turns: int) -> int:
    if turns == MOST_TURNS:
        raise _unread("comes in chunks too small to be read on the way")
    return turns + 1


def _unread(words: str) -> HeadError:
    return HeadError(HTTPStatus.BAD_GATEWAY, words)
