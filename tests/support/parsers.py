"""What two other programs read in the bytes of a message: h11 and llhttp."""

from __future__ import annotations

from typing import NamedTuple

import h11
import httptools


class Message(NamedTuple):
    """A request as a program understands it."""

    method: bytes
    target: bytes
    fields: list[tuple[bytes, bytes]]
    """Names in lower case; trailers are apart."""
    body: bytes
    trailers: list[tuple[bytes, bytes]]
    whole: bool
    """Its end was there, too."""


class UnreadableError(Exception):
    """The program takes the bytes for no message."""


def by_h11(raw: bytes) -> list[Message]:
    """Read requests with h11; the last may lack its end."""
    messages = []
    while raw:
        talk = h11.Connection(h11.SERVER, max_incomplete_event_size=1_000_000)
        talk.receive_data(raw)
        message, raw = _one_of_h11(talk)
        if message is None:
            break
        messages.append(message)
    return messages


def _one_of_h11(talk: h11.Connection) -> tuple[Message | None, bytes]:
    request, body = None, b""
    while True:
        try:
            event = talk.next_event()
        except h11.RemoteProtocolError as error:
            raise UnreadableError(str(error)) from error
        if isinstance(event, h11.Request):
            request = event
        elif isinstance(event, h11.Data):
            body += event.data
        else:
            break
    if request is None:
        return None, b""
    whole = isinstance(event, h11.EndOfMessage)
    trailers = list(event.headers) if isinstance(event, h11.EndOfMessage) else []
    message = Message(
        request.method, request.target, list(request.headers), body, trailers, whole
    )
    return message, talk.trailing_data[0] if whole else b""


class _Ear:
    """Takes what httptools calls."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.parser: httptools.HttpRequestParser
        self._begin()

    def _begin(self) -> None:
        self._target = self._body = b""
        self._fields: list[tuple[bytes, bytes]] = []
        self._trailers: list[tuple[bytes, bytes]] = []
        self._in_body = False

    def on_message_begin(self) -> None:
        self._begin()

    def on_url(self, url: bytes) -> None:
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        fields = self._trailers if self._in_body else self._fields
        fields.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        self._in_body = True
        self.messages.append(self._message(whole=False))

    def on_body(self, body: bytes) -> None:
        self._body += body
        self.messages[-1] = self._message(whole=False)

    def on_message_complete(self) -> None:
        self.messages[-1] = self._message(whole=True)

    def _message(self, *, whole: bool) -> Message:
        method = self.parser.get_method()
        return Message(
            method, self._target, self._fields, self._body, self._trailers, whole
        )


def by_llhttp(raw: bytes) -> list[Message]:
    """Do the same with llhttp, which knows no methods but its own."""
    ear = _Ear()
    ear.parser = httptools.HttpRequestParser(ear)
    try:
        ear.parser.feed_data(raw)
    except httptools.HttpParserUpgrade:
        """Behind a request that asks for one it reads nothing."""
    except httptools.HttpParserError as error:
        raise UnreadableError(str(error)) from error
    return ear.messages
