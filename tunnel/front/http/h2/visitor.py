"""A visitor that speaks HTTP/2: its streams are visitors of HTTP/1.1 to the engine.

connection   the state machine of ``h2``
frames       what floods, and what h2 is not to see
messages     a head of one version as that of the other
lane         one stream, and the connection of HTTP/1.1 that it seems to be
lanes        which stream is answered on which
here         all that goes over the wire, and the windows
"""

from __future__ import annotations

import logging
import math
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import trio
from h2.errors import ErrorCodes
from h2.events import (
    DataReceived,
    RemoteSettingsChanged,
    RequestReceived,
    StreamEnded,
    StreamReset,
    TrailersReceived,
    WindowUpdated,
)
from h2.exceptions import H2Error, ProtocolError
from h2.settings import SettingCodes, Settings

from tunnel.front.http.h2.connection import Connection
from tunnel.front.http.h2.frames import FloodError, FrameReader
from tunnel.front.http.h2.lane import Stream
from tunnel.front.http.h2.lanes import Lanes
from tunnel.front.http.h2.messages import (
    LAST_CHUNK,
    MalformedError,
    chunk,
    read_request,
    trailer_lines,
)
from tunnel.front.http.heads import HTTP_2
from tunnel.front.http.limits import BETWEEN_S, HEAD_S
from tunnel.log import log_event
from tunnel.net.listen import LOG
from tunnel.net.notify import Notify
from tunnel.net.relay import GRACE_S, reset_socket
from tunnel.net.sockets import quick

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from h2.events import Event

    from tunnel.front.http.h2.lane import Lane
    from tunnel.front.http.h2.messages import Fields
    from tunnel.front.http.server import Visit

MAX_STREAMS: Final = 128
"""Of one visitor at once; browsers and gRPC count on 100."""
STREAM_BYTES: Final = 262_144
"""Of one request's body, sent ahead of its target."""
CONNECTION_BYTES: Final = 1_048_576
"""Of all of one visitor."""
POOL_BYTES: Final = 134_217_728
"""Of all visitors of the process; the one that brings more is shown out."""
OUT_BYTES: Final = 65_536
"""Ready to be sent, and not taken by the visitor's socket."""
READ_BYTES: Final = 65_536
FRAMES_A_TURN: Final = 16
"""Small frames cost as much as large ones; then others have their turn."""
PREFACE: Final = HTTP_2 + b"SM\r\n\r\n"


class _Pool:
    """Bytes of requests that wait in this process."""

    held = 0


class VisitorConnection:
    """One visitor's connection.

    It has 31 methods: one for each event of ``h2``, and what ``lane.Wire`` asks.

    Args:
        visit: as it was for HTTP/1.1; owned.
        serve: serves a lane.
    """

    def __init__(self, visit: Visit, serve: Callable[[Lane], Awaitable[None]]) -> None:
        self._visit = visit
        self._serve = serve
        self._h2 = Connection(client=False)
        self._frames = FrameReader(trio.current_time(), host=visit.peer.host)
        self._streams: dict[int, Stream] = {}
        self._lanes = Lanes(self, self._serve_lane)
        self._out = bytearray()
        self._writes = False
        self._wake = Notify()
        """For the writer."""
        self._room = Notify()
        """For who sends: a window, or a place in ``_out``."""
        self._nursery: trio.Nursery
        self._hearing = trio.CancelScope()
        self._idle_until = trio.current_time() + HEAD_S
        """Infinite while there are streams. Frames that are no request do not move it:
        who asks nothing would keep its place for ever."""
        self._is_over = False
        """Nothing that is said arrives."""
        self._last = 0
        """The highest stream that was begun."""

    # The reader's task ---------------------------------------------------------------

    async def run(self) -> None:
        """Serve it to its end; closes its stream."""
        clean = False
        try:
            async with trio.open_nursery() as self._nursery:
                self._begin()
                clean = await self._converse()
                if clean:
                    await self._say_last()
                self._break_streams()
                self._nursery.cancel_scope.cancel()
        finally:
            self._break_streams()
            self._h2.part()
            del self._lanes  # they held each other; who was served in them is gone
            if clean:
                with trio.move_on_after(GRACE_S, shield=True):
                    await self._visit.stream.aclose()
            else:
                await reset_socket(self._visit.stream)

    def _serve_lane(self, lane: Lane) -> None:
        self._nursery.start_soon(self._serve, lane)

    def _begin(self) -> None:
        conn, limits = self._h2, self._visit.limits
        conn.local_settings = Settings(client=False, initial_values={
            SettingCodes.MAX_CONCURRENT_STREAMS: MAX_STREAMS,
            SettingCodes.INITIAL_WINDOW_SIZE: STREAM_BYTES,
            SettingCodes.MAX_HEADER_LIST_SIZE: limits.head_bytes,
            SettingCodes.ENABLE_CONNECT_PROTOCOL: 0,
        })  # fmt: skip
        conn.decoder.max_header_list_size = limits.head_bytes
        conn.initiate_connection()
        more = CONNECTION_BYTES - conn.max_inbound_frame_size * 4 + 1
        conn.increment_flow_control_window(more)
        self._push()

    async def _converse(self) -> bool:
        """Hear the visitor; return whether it may be told goodbye."""
        data = await self._hear_preface()
        if data is None:
            return False
        while True:
            try:
                if data:
                    await self._take(data)
            except FloodError as flood:
                self._refuse(str(flood))
                return True
            except ProtocolError as error:
                self._complain(error)
                return True
            if self._frames.goaway is not None and not self._streams:
                return True
            data = await self._hear()
            if not data:
                return data is None

    async def _hear_preface(self) -> bytes | None:
        """Return what follows the preface; None: this is none."""
        visit = self._visit
        data, visit.waiting = bytes(visit.waiting), bytearray()
        while len(data) < len(PREFACE):
            more = await self._hear()
            if not more:
                return None
            data += more
        if not data.startswith(PREFACE):
            return None
        self._h2.receive_data(PREFACE)
        return data[len(PREFACE) :]

    async def _hear(self) -> bytes | None:
        """Wait for bytes; nothing at the end of any kind, None when it was idle."""
        with trio.CancelScope(deadline=self._idle_until) as self._hearing:
            while len(self._out) > OUT_BYTES:  # who does not read is not read
                await self._room.wait()
            try:
                return bytes(await self._visit.stream.receive_some(READ_BYTES))
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                return b""
        return None

    async def _take(self, data: bytes) -> None:
        data = self._frames.read(data, trio.current_time())
        turns = self._frames.frames // FRAMES_A_TURN + 1
        size = len(data) // turns + 1
        for at in range(0, len(data), size):
            if at:
                await trio.lowlevel.checkpoint()
            for event in self._h2.receive_data(data[at : at + size]):
                take = _TAKES.get(type(event))
                if take is not None:
                    take(self, event)
        self._push()
        self._lanes.go_on(self._nursery)

    def _on_request(self, event: Event) -> None:
        assert isinstance(event, RequestReceived)  # noqa: S101 - for the type
        number, ended = event.stream_id, event.stream_ended is not None
        assert number is not None and event.headers is not None  # noqa: S101, PT018
        self._last = max(self._last, number)
        try:
            request = read_request(event.headers, ended=ended)
        except MalformedError:
            self._reset(number, ErrorCodes.PROTOCOL_ERROR)
            return
        stream = Stream(number, request, ended=ended)
        self._streams[number] = stream
        self._wait_until(math.inf)
        self._lanes.ask(stream)

    def _on_data(self, event: Event) -> None:
        assert isinstance(event, DataReceived)  # noqa: S101 - for the type
        held = event.flow_controlled_length or 0
        stream = self._streams.get(event.stream_id or 0)
        if stream is None or stream.broken:
            self._give_back(event.stream_id or 0, held)
            return
        data = event.data or b""
        self._frames.pay(len(data))
        if _Pool.held + held > POOL_BYTES:
            raise FloodError("the bodies that wait in this process are too many")
        if not data:
            self._give_back(stream.number, held)
            return
        _Pool.held += held
        stream.add(chunk(data) if stream.request.chunked else data, held)

    def _on_trailers(self, event: Event) -> None:
        assert isinstance(event, TrailersReceived)  # noqa: S101 - for the type
        stream = self._streams.get(event.stream_id or 0)
        if stream is None or stream.broken:
            return
        try:
            lines = trailer_lines(event.headers or ())
        except MalformedError:
            self._give_up(stream, ErrorCodes.PROTOCOL_ERROR)
            return
        stream.ended = True
        if stream.request.chunked:
            stream.add(lines, 0)

    def _on_end(self, event: Event) -> None:
        assert isinstance(event, StreamEnded)  # noqa: S101 - for the type
        stream = self._streams.get(event.stream_id or 0)
        if stream is not None and not stream.ended:
            stream.ended = True
            if stream.request.chunked:
                stream.add(LAST_CHUNK, 0)

    def _on_reset(self, event: Event) -> None:
        assert isinstance(event, StreamReset)  # noqa: S101 - for the type
        stream = self._streams.get(event.stream_id or 0)
        if stream is not None:
            self._forget(stream)

    def _on_window(self, event: Event) -> None:
        del event
        self._room.ring()

    def _on_settings(self, event: Event) -> None:
        del event
        self._h2.settings_changed()
        self._room.ring()

    # What lanes ask (``lane.Wire``) ---------------------------------------------------

    def took(self, stream: Stream, size: int) -> None:
        """Give so much of the windows back."""
        _Pool.held -= size
        self._give_back(stream.number, size)
        self._push()

    def say_head(self, stream: Stream, fields: Fields, *, end: bool) -> None:
        """Send a head or trailers.

        Raises:
            trio.BrokenResourceError: the stream is over.
        """
        try:
            self._h2.send_headers(stream.number, fields, end_stream=end)
        except H2Error as error:
            raise trio.BrokenResourceError from error
        self._push()

    async def say_body(self, stream: Stream, data: bytes, *, end: bool) -> None:
        """Send of a body, as the windows allow.

        Raises:
            trio.BrokenResourceError: the stream is over.
        """
        conn, number, at = self._h2, stream.number, 0
        try:
            while True:
                if stream.broken:
                    raise trio.BrokenResourceError("the visitor gave this up")
                left = len(data) - at
                size = 0
                if len(self._out) < OUT_BYTES:
                    size = min(left, conn.local_flow_control_window(number),
                               conn.max_outbound_frame_size, OUT_BYTES)  # fmt: skip
                if size <= 0 < left or len(self._out) >= OUT_BYTES:
                    await self._room.wait()
                    continue
                last = size == left
                conn.send_data(number, data[at : at + size], end_stream=end and last)
                self._push()
                self._frames.pay(size)
                at += size
                if last:
                    return
        except H2Error as error:
            raise trio.BrokenResourceError from error

    def answered(self, lane: Lane, stream: Stream) -> None:
        """Take that an answer is whole."""
        self._streams.pop(stream.number, None)
        self._frames.pay(1_024)
        if not stream.ended:
            self._reset(stream.number, ErrorCodes.NO_ERROR)
        self._drop(stream)
        if not lane.is_over:
            self._lanes.free(lane)
        self._rest()
        self._lanes.go_on(self._nursery)

    def left(self, lane: Lane) -> None:
        """Take that the engine closed a lane."""
        stream = self._lanes.left(lane)
        if stream is not None:
            self._give_up(stream, ErrorCodes.INTERNAL_ERROR)
        self._lanes.go_on(self._nursery)

    # Ends ----------------------------------------------------------------------------

    def _give_up(self, stream: Stream, code: ErrorCodes) -> None:
        self._reset(stream.number, code)
        self._forget(stream)

    def _forget(self, stream: Stream) -> None:
        """Take it that a stream is no more."""
        self._streams.pop(stream.number, None)
        stream.broken = True
        self._drop(stream)
        self._lanes.give_up(stream)
        self._room.ring()
        self._rest()

    def _drop(self, stream: Stream) -> None:
        if held := stream.drop():
            _Pool.held -= held
            self._give_back(stream.number, held)
            self._push()

    def _give_back(self, number: int, size: int) -> None:
        if size:
            with suppress(H2Error):  # the connection is at its end
                self._h2.acknowledge_received_data(size, number)

    def _reset(self, number: int, code: ErrorCodes) -> None:
        with suppress(H2Error):  # it is over
            self._h2.reset_stream(number, code)
        self._push()

    def _rest(self) -> None:
        """Begin to count the time without streams."""
        if not self._streams:
            leaves = self._is_over or self._frames.goaway is not None
            until = -math.inf if leaves else trio.current_time() + BETWEEN_S
            self._wait_until(until)

    def _wait_until(self, until: float) -> None:
        self._idle_until = self._hearing.deadline = until

    def _break_streams(self) -> None:
        for stream in list(self._streams.values()):
            self._forget(stream)

    def _refuse(self, reason: str) -> None:
        log_event(LOG, logging.INFO, "visitor.refused", peer=str(self._visit.peer),
            reason=f"HTTP/2: {reason}")  # fmt: skip
        self._say_goodbye(ErrorCodes.ENHANCE_YOUR_CALM)

    def _complain(self, error: ProtocolError) -> None:
        """Log what ``h2`` has told the visitor already."""
        log_event(LOG, logging.INFO, "visitor.refused", peer=str(self._visit.peer),
            reason=f"HTTP/2: {type(error).__name__}")  # fmt: skip
        self._push()

    def _say_goodbye(self, code: ErrorCodes) -> None:
        with suppress(H2Error):  # said already
            self._h2.close_connection(code, last_stream_id=self._last)
        self._push()

    async def _say_last(self) -> None:
        """Send what is ready, and let the visitor read it."""
        self._say_goodbye(ErrorCodes.NO_ERROR)
        with trio.move_on_after(GRACE_S):
            while self._out or self._writes:
                await self._room.wait()
            try:
                await self._visit.stream.send_eof()
                while await self._visit.stream.receive_some(READ_BYTES):
                    pass
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass

    # The writer's task ---------------------------------------------------------------

    def _push(self) -> None:
        """Have sent what ``h2`` has ready."""
        data = self._h2.data_to_send()
        if not data:
            return
        self._out += data
        if self._writes:
            self._wake.ring()
        else:
            self._writes = True
            self._nursery.start_soon(self._write)

    async def _write(self) -> None:
        """Send, until there is nothing to send and nobody who might."""
        put = quick(self._visit.stream).put
        try:
            while self._out or self._streams:
                if not self._out:
                    await self._wake.wait()
                    continue
                data, self._out = self._out, bytearray()
                await put(data)
                self._room.ring()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self._is_over = True
            self._break_streams()
            self._rest()
            return
        finally:
            self._writes = False
        self._room.ring()


_TAKES: Final[dict[type[Event], Callable[[VisitorConnection, Event], None]]] = {
    RequestReceived: VisitorConnection._on_request,
    DataReceived: VisitorConnection._on_data,
    TrailersReceived: VisitorConnection._on_trailers,
    StreamEnded: VisitorConnection._on_end,
    StreamReset: VisitorConnection._on_reset,
    WindowUpdated: VisitorConnection._on_window,
    RemoteSettingsChanged: VisitorConnection._on_settings,
}
