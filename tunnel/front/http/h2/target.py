"""A target that speaks HTTP/2, as a connection that speaks HTTP/1.1.

The engine asks one request after the other on it, as on any other; each is a stream,
and no other visitor's is beside it. What breaks off here breaks off there: a stream is
reset, so that who works for a visitor that left hears of it.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

import trio
from h2.errors import ErrorCodes
from h2.events import (
    DataReceived,
    InformationalResponseReceived,
    RemoteSettingsChanged,
    ResponseReceived,
    StreamEnded,
    StreamReset,
    TrailersReceived,
    WindowUpdated,
)
from h2.exceptions import H2Error
from h2.settings import SettingCodes, Settings

from tunnel.errors import Code, LocalStreamError
from tunnel.front.http.bodies import BodyReader
from tunnel.front.http.h2.connection import Connection
from tunnel.front.http.h2.frames import FloodError, FrameReader
from tunnel.front.http.h2.messages import (
    LAST_CHUNK,
    MalformedError,
    chunk,
    read_answer,
    request_fields,
    trailer_fields,
    trailer_lines,
)
from tunnel.front.http.heads import NO_BODY, read_request
from tunnel.front.http.limits import LIMITS
from tunnel.net.notify import Notify
from tunnel.net.sockets import CHUNK_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable

    from h2.events import Event

    from tunnel.addresses import Address
    from tunnel.net.relay import ResettableStream
    from tunnel.net.virtual_connection import LocalEnd
    from tunnel.platform.sockets import Buffer

WINDOW_BYTES: Final = 1_048_576
"""A target may send ahead: it fills the kernel's buffers, and nothing of ours."""
READ_BYTES: Final = 65_536
_ANY_FIELDS: Final = 1_000_000
"""The engine has counted them."""


class Http2Target:
    """A ``ResettableStream`` of HTTP/1.1 to a target that speaks HTTP/2.

    It has 28 methods: those of such a stream, and one for each event of ``h2``.

    Args:
        below: the connection to it; owned.
        secure: that is inside of TLS.
    """

    def __init__(self, below: ResettableStream, *, secure: bool) -> None:
        self.bound: Address | None = below.bound
        self._below = below
        self._scheme = b"https" if secure else b"http"
        self._frames = FrameReader(trio.current_time(), guarded=False)
        self._writing = trio.Lock()
        self._room = Notify()
        """For who waits for a window."""
        self._said = bytearray()
        """Of the request's head, while it is not whole."""
        self._body = BodyReader(NO_BODY)
        """Of the request; done between two."""
        self._number = 0
        """Of the stream; 0 before the first."""
        self._method = b""
        self._heard = deque[bytes]()
        """Of the answer, as HTTP/1.1 has it."""
        self._chunked = False
        self._answers = False
        """The answer is not whole."""
        self._broken: Code | None = None
        self._closed = False
        self._h2 = conn = Connection(client=True)
        most = LIMITS.get().head_bytes
        conn.local_settings = Settings(client=True, initial_values={
            SettingCodes.ENABLE_PUSH: 0,
            SettingCodes.INITIAL_WINDOW_SIZE: WINDOW_BYTES,
            SettingCodes.MAX_HEADER_LIST_SIZE: most,
        })  # fmt: skip
        conn.decoder.max_header_list_size = most
        conn.initiate_connection()
        conn.increment_flow_control_window(WINDOW_BYTES)

    # The request ---------------------------------------------------------------------

    async def send_all(self, data: Buffer) -> None:
        """Return when ``data`` is taken. A checkpoint."""
        await trio.lowlevel.checkpoint()
        await self.put(data)

    async def put(self, data: Buffer) -> None:
        """Send what a request has of HTTP/1.1.

        Raises:
            trio.BrokenResourceError: the target takes no more of it.
            trio.ClosedResourceError: it was closed here.
        """
        if self._closed:
            raise trio.ClosedResourceError
        try:
            await self._put(bytes(data))
        except H2Error as error:
            raise self._as_broken() from error

    async def _put(self, data: bytes) -> None:
        if self._body.done:
            self._said += data
            end = self._said.find(b"\r\n\r\n") + 4
            if end < 4:
                return
            raw, data = bytes(self._said[:end]), bytes(self._said[end:])
            self._said.clear()
            await self._ask(raw)
        body = self._body
        while not body.done:
            pieces, data = body.feed(data)
            trailers = body.trailers
            done: bool = body.done
            piece = b"".join(pieces)
            if piece or (done and not trailers):
                await self._send(piece, end=done and not trailers)
            if done and trailers:
                fields = trailer_fields(trailers)
                self._h2.send_headers(self._number, fields, end_stream=True)
                await self._flush()
            if not data:
                return

    async def _ask(self, raw: bytes) -> None:
        head = read_request(raw, _ANY_FIELDS)
        self._body = BodyReader(head.body)
        self._method = head.method
        self._number = self._h2.get_next_available_stream_id()
        fields = request_fields(head, self._scheme)
        self._answers, self._chunked = True, False
        self._h2.send_headers(self._number, fields, end_stream=self._body.done)
        await self._flush()

    async def _send(self, data: bytes, *, end: bool) -> None:
        conn, at = self._h2, 0
        while True:
            if self._broken is not None or not self._answers:
                raise self._as_broken()
            left = len(data) - at
            window = conn.local_flow_control_window(self._number)
            size = min(left, window, conn.max_outbound_frame_size)
            if size <= 0 < left:
                await self._flush()
                if conn.local_flow_control_window(self._number) <= 0:
                    await self._room.wait()
                continue
            last = size == left
            conn.send_data(self._number, data[at : at + size], end_stream=end and last)
            at += size
            if last or not at % READ_BYTES:
                await self._flush()
            if last:
                return

    async def _flush(self) -> None:
        if self._writing.locked():
            await self._writing.acquire()
        else:
            self._writing.acquire_nowait()
        try:
            if data := self._h2.data_to_send():
                await self._below.put(data)
        finally:
            self._writing.release()

    # The answer ----------------------------------------------------------------------

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Do as ``receive_piece`` does."""
        del max_bytes
        return await self.receive_piece()

    async def receive_piece(self) -> bytes:
        """Wait for bytes of an answer; nothing at the end.

        Raises:
            trio.BrokenResourceError: the target broke off, or speaks no HTTP/2.
            trio.ClosedResourceError: it was closed here.
        """
        while True:
            if self._heard:
                heard = b"".join(self._heard)
                self._heard.clear()
                return heard
            if self._broken is not None:
                raise self._as_broken()
            if self._frames.goaway is not None and not self._answers:
                return b""
            data = await self._below.receive_some(READ_BYTES)
            if self._closed:
                raise trio.ClosedResourceError("the target is closed")
            if not data:
                self._answers = False
                self._room.ring()
                return b""
            try:
                self._take(bytes(data))
            except (H2Error, FloodError, MalformedError):
                self._break(Code.PROTOCOL)
            try:
                await self._flush()
            except trio.BrokenResourceError:
                if not self._heard:
                    raise

    def _take(self, data: bytes) -> None:
        data = self._frames.read(data, trio.current_time())
        if self._frames.goaway is not None and self._frames.goaway < self._number:
            self._break(Code.RESET)
        for event in self._h2.receive_data(data):
            take = _TAKES.get(type(event))
            if take is None:
                continue
            number = getattr(event, "stream_id", None)
            if number in (None, 0, self._number):
                take(self, event)

    def _on_head(self, event: Event) -> None:
        assert isinstance(event, ResponseReceived | InformationalResponseReceived)  # noqa: S101
        head, _, self._chunked = read_answer(
            event.headers or (),
            ended=getattr(event, "stream_ended", None) is not None,
            method=self._method,
        )
        self._heard.append(head)

    def _on_data(self, event: Event) -> None:
        assert isinstance(event, DataReceived)  # noqa: S101 - for the type
        if held := event.flow_controlled_length:
            self._h2.acknowledge_received_data(held, self._number)
        if data := event.data:
            self._heard.append(chunk(data) if self._chunked else data)

    def _on_trailers(self, event: Event) -> None:
        assert isinstance(event, TrailersReceived)  # noqa: S101 - for the type
        if self._chunked:
            lines = trailer_lines(event.headers or ())
            self._heard.append(lines)
            self._chunked = False

    def _on_end(self, event: Event) -> None:
        del event
        if self._chunked:
            self._heard.append(LAST_CHUNK)
            self._chunked = False
        self._answers = False
        self._room.ring()

    def _on_reset(self, event: Event) -> None:
        assert isinstance(event, StreamReset)  # noqa: S101 - for the type
        refused = event.error_code == ErrorCodes.REFUSED_STREAM
        if self._answers:
            self._break(Code.REFUSED if refused else Code.RESET)
        self._answers = False
        self._room.ring()

    def _on_window(self, event: Event) -> None:
        del event
        self._room.ring()

    def _on_settings(self, event: Event) -> None:
        del event
        self._h2.settings_changed()
        self._room.ring()

    # Its end -------------------------------------------------------------------------

    def _break(self, code: Code) -> None:
        self._broken = code
        self._room.ring()

    def _as_broken(self) -> trio.BrokenResourceError:
        error = trio.BrokenResourceError("the target broke off")
        error.__cause__ = LocalStreamError(
            self._broken or Code.RESET, "the target broke the request off"
        )
        return error

    async def wait_room(self) -> int:
        """Say that a read's worth can be sent: how much, only ``put`` finds out."""
        return CHUNK_BYTES

    def finish(self) -> None:
        """Do nothing: a request has said itself where it ends."""

    async def aclose(self) -> None:
        """Do as ``close`` does; a checkpoint."""
        self.close()
        await trio.lowlevel.checkpoint()

    def close(self) -> None:
        """Say goodbye, and close; harmless when it is over."""
        if not self._closed:
            self._closed = True
            self._say_last(ErrorCodes.NO_ERROR)
            self._below.close()

    def reset(self, code: Code = Code.RESET) -> None:
        """Give up what is under way: the target hears CANCEL, and then the end."""
        if self._closed:
            return
        self._closed = True
        self._say_last(ErrorCodes.CANCEL)
        # A RST could overtake the words.
        self._below.close()
        del code

    def _say_last(self, code: ErrorCodes) -> None:
        try:
            if code is ErrorCodes.CANCEL and self._number:
                self._h2.reset_stream(self._number, code)
        except H2Error:
            pass  # it is over
        if not self._writing.locked():
            write_now = getattr(self._below, "write_now", None)
            if write_now is not None:
                write_now(self._h2.data_to_send())
        self._h2.part()
        self._room.ring()

    def carry(self, local: LocalEnd, idle_s: float, *, ready: bool = False) -> None:
        """Carry nothing: the caller has to read and write."""
        del local, idle_s, ready

    def on_closed(self, call: Callable[[Code], None] | None) -> None:
        """Do nothing: only who reads is told."""
        del call


_TAKES: Final[dict[type[Event], Callable[[Http2Target, Event], None]]] = {
    ResponseReceived: Http2Target._on_head,
    InformationalResponseReceived: Http2Target._on_head,
    DataReceived: Http2Target._on_data,
    TrailersReceived: Http2Target._on_trailers,
    StreamEnded: Http2Target._on_end,
    StreamReset: Http2Target._on_reset,
    WindowUpdated: Http2Target._on_window,
    RemoteSettingsChanged: Http2Target._on_settings,
}
