"""Link: one wire that carries a session, with its three tasks.

The reader waits for the wire and for nothing else: not for a stream, not for the
writer. The writer waits for room on the wire; while it rests, the first task that has
something to send writes it (``Output``). The clock asks whether the peer is there.
Between two awaits the core belongs to the task that runs: trio runs one at a time, so
there is no lock.
"""

from __future__ import annotations

import logging
import math
from contextlib import suppress
from enum import Enum
from typing import TYPE_CHECKING, Final

import trio

from tunnel.errors import (
    Code,
    LocalLinkError,
    LocalSessionError,
    RemoteSessionError,
    TunnelError,
)
from tunnel.link.transport import READ_BYTES, UNPROVEN_READ_BYTES, lost
from tunnel.log import log_event
from tunnel.net.notify import Notify
from tunnel.platform.process import asleep_s as _asleep_s
from tunnel.proto.frames import ProtGoAway
from tunnel.proto.payloads import encode

if TYPE_CHECKING:
    from tunnel.link.session import Session
    from tunnel.link.transport import Transport

FLUSH_S: Final = 5.0
"""How long the last bytes of closed streams may take before the goodbye."""
LINGER_S: Final = 2.0
"""How long the peer may take to see our end before the wire is cut: closed with bytes
unread, the kernel would send a RST and destroy the tail."""
LINGER_BYTES: Final = 16_777_216
"""What is read and dropped meanwhile: as much as a peer may have unconfirmed, and so on
its way. A peer that sends more does not listen: reading on would cost 2 s of a core."""
LAST_WORD_S: Final = 0.1
"""How long a wire that was silent may take to accept a last word: another waits."""
_SAID: Final = (Code.SUPERSEDED, Code.SILENT)
"""Why a link is given up while its session lives: the peer is told these."""

SLEEP_CHECK_S: Final = 5.0
"""How often to look whether this machine slept: no timer runs meanwhile."""
SLEPT_S: Final = 2.0
"""A suspension shorter than this leaves wires as they were."""

logger = logging.getLogger("tunnel.link")


class _State(Enum):
    """What a link still sends."""

    UP = "whatever the session has to say"
    FLUSHING = "what closed streams have left, then the goodbye"
    CLOSING = "nothing after the goodbye, which the peer may still read"
    ABANDONED = "nothing: another link carries the session, or will"


# A member looked up in its class costs ten times a global, and each turn looks twice.
_UP: Final = _State.UP
_FLUSHING: Final = _State.FLUSHING
_CLOSING: Final = _State.CLOSING
_ABANDONED: Final = _State.ABANDONED


class Link:
    """One wire under ``session``, from the end of the handshake on.

    Args:
        session: its core is read and written by this link alone until ``run`` returns.
        transport: closed when ``run`` returns.
        early: bytes that came behind the handshake.
    """

    def __init__(
        self, session: Session, transport: Transport, early: bytes = b""
    ) -> None:
        self.session = session
        self.transport = transport
        transport.read_at_most(READ_BYTES)  # the peer has proved who it is
        self.gone = trio.Event()
        """Set when ``run`` is over."""
        self.began_at = trio.current_time()
        self._early = early
        self._scope = trio.CancelScope()
        self._reason: TunnelError | None = None
        self._state = _UP
        self._clock = Notify()
        self._armed = math.inf
        self._goodbye = (Code.NORMAL, "")
        self._flush_until = math.inf
        self._in_a_frame = False
        """A write was begun and has not ended: nothing may be said behind it."""

    def __repr__(self) -> str:
        state = "closing" if self._state is _CLOSING else "up"
        return (
            f"<Link {state} peer={self.transport.peer} streams={self.session.streams}>"
        )

    async def run(self) -> TunnelError:
        """Carry the session until the wire ends; return the reason.

        A cancelled link is lost: nobody knows what the wire has taken.
        """
        output = self.session.output
        if self._state is not _ABANDONED:
            output.open(self.transport, self.session.dispatch, self._end)
        if self._state is not _UP:
            output.shut(self.transport)
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._read_loop)
                    nursery.start_soon(self._write_loop)
                    nursery.start_soon(self._clock_loop)
        finally:
            if output.transport is self.transport:
                # The session may wait for another link, and our buffers are large.
                output.close()
                self.session.core.drop_input()
                if self.session.ended is not None:
                    # What was to be sent at its end is not sent any more.
                    self.session.core.end()
                self.session.let_go()
            with trio.CancelScope(shield=True):
                await self._bow_out()
                await self.transport.aclose()
                # Who returns at once is still what trio sent last: a cancellation,
                # with the frames that it went through, and in them this link.
                await trio.lowlevel.checkpoint()
            self.gone.set()
        reason = self._reason or lost("the peer did not answer the goodbye")
        # Its frames hold this link, which holds it: a cycle for the collector.
        return reason.with_traceback(None)

    def close(self, code: Code, reason: str = "") -> None:
        """End the session in good order: send GO_AWAY, let the peer read it, go.

        NORMAL first sends what closed streams have left. Streams still open are reset.
        """
        if self._state in (_FLUSHING, _CLOSING):
            return
        error = LocalSessionError(code, reason or "ended from this side")
        self._reason = self._reason or error
        self._goodbye = (code, reason)
        if code is Code.NORMAL and self._state is _UP:
            self._state = _FLUSHING
            self._flush_until = trio.current_time() + FLUSH_S
            self._clock.ring()
            self.session.output.shut(self.transport)
        self.session.end(error, flush=code is Code.NORMAL)
        if self._state is _UP:
            self._say_goodbye()
        self.session.output.wake()

    def _stop_flushing(self) -> None:
        """Wait no longer for what the peer has not confirmed: say goodbye now."""
        if self.session.output.writer.waiting:
            self._say_goodbye()
            self.session.output.wake()
        else:
            self._end(lost("the peer takes nothing"))

    def _say_goodbye(self) -> None:
        self._state = _CLOSING
        self.session.output.shut(self.transport)
        self.session.core.go_away(*self._goodbye)
        self.cut_within(LINGER_S)

    def cut_within(self, within_s: float) -> None:
        """End ``run`` after ``within_s`` at the latest, whatever the peer does."""
        until = trio.current_time() + within_s
        self._scope.deadline = min(self._scope.deadline, until)

    def abandon(self, reason: LocalLinkError) -> None:
        """Stop at once: another link carries the session from now on, or will.

        No byte is taken from this wire or given to it any more, although its tasks may
        still have one turn each.
        """
        self._state = _ABANDONED
        self.session.output.shut(self.transport)
        self._end(reason)

    async def _bow_out(self) -> None:
        """Tell the peer that its link, but not its session, is given up, if it reads.

        A wire that was replaced stays until its end comes: closed with bytes unread,
        the kernel would send a RST and destroy the word. A silent wire has no end.
        """
        code = self._reason.code if isinstance(self._reason, LocalLinkError) else None
        if code not in _SAID or self._in_a_frame or self.transport.owes_output():
            return
        abandoned = self._state is _ABANDONED
        wait_s = LINGER_S if abandoned else LAST_WORD_S
        with suppress(TunnelError), trio.move_on_after(wait_s):
            self.transport.write([encode(ProtGoAway(code))])
            await self.transport.flush()
            await self.transport.send_eof()
            if abandoned:  # a client may replace its links at a high rate
                self.transport.read_at_most(UNPROVEN_READ_BYTES)
            while abandoned and await self.transport.receive_some():
                pass

    def _end(self, reason: TunnelError) -> None:
        self._reason = self._reason or reason
        self._scope.cancel()

    async def _read_loop(self) -> None:
        session, transport = self.session, self.transport
        core, output = session.core, session.output
        data: bytes | bytearray | memoryview = self._early
        self._early = b""
        while self._state is not _ABANDONED:
            if self._state is _CLOSING:
                return await self._linger()
            if data or core.has_input():
                self._take(data)
            if session.go_away is not None:
                return self._end(session.go_away)
            # TLS may owe an answer of its own, which only the writer may send.
            if transport.owes_output() or self._state is _FLUSHING:
                output.wake()
            elif core.has_output():
                output.flush()
            if core.liveness.sooner and core.next_wakeup() < self._armed:
                self._clock.ring()
            if core.has_input():
                # It is the other tasks' turn. What came is taken even if the wire
                # ends meanwhile: a GO_AWAY may be the last of it.
                await trio.lowlevel.cancel_shielded_checkpoint()
                data = b""
                continue
            data = await transport.receive_some()
            if not data:
                return self._end(lost("the peer is gone"))

    async def _linger(self) -> None:
        """Wait for the peer's end behind our last word; drop what comes before it."""
        dropped_bytes = 0
        while dropped_bytes <= LINGER_BYTES:
            data = await self.transport.receive_some()
            if not data:
                return self._end(lost("the peer is gone"))
            dropped_bytes += len(data)
        await trio.sleep_forever()  # that is: for what is left of LINGER_S

    def _take(self, data: bytes | bytearray | memoryview) -> None:
        """Do a turn's work: on what the wire has brought, or on what is left of it."""
        core, now = self.session.core, trio.current_time()
        try:
            self.session.dispatch(
                core.receive_data(data, now) if data else core.receive_more(now)
            )
        except RemoteSessionError as error:
            log_event(logger, logging.WARNING, "link.broken", peer=self.transport.peer,
                code=error.code.name, reason=str(error))  # fmt: skip
            self._reason = error
            self.close(error.code, error.what)

    async def _write_loop(self) -> None:
        output, transport = self.session.output, self.transport
        core = self.session.core
        while self._state is not _ABANDONED:
            try:
                # The rest of a turn goes before anything new.
                if core.has_output() and not transport.owes_output():
                    output.write_turn(transport)
                if transport.owes_output():
                    self._in_a_frame = True
                    await transport.flush()
                    self._in_a_frame = False
                    if output.transport is transport:  # else it is another link's
                        output.turn_is_out()
            except TunnelError as error:
                return self._end(error)
            if core.has_output():
                # The kernel may take many turns without a wait.
                await trio.lowlevel.checkpoint()
            elif self._state is _FLUSHING and core.flushed():
                self._say_goodbye()
            elif self._state is _CLOSING:
                return await transport.send_eof()
            else:
                await output.writer.wait()

    async def _clock_loop(self) -> None:
        core = self.session.core
        asleep_s = _asleep_s()
        while True:
            self._armed = min(
                core.next_wakeup(),
                trio.current_time() + SLEEP_CHECK_S,
                self._flush_until,
                self.session.rest.next_at,
            )
            with trio.move_on_at(self._armed):
                await self._clock.wait()
            if self._state in (_CLOSING, _ABANDONED):
                return
            if trio.current_time() >= self._flush_until:
                return self._stop_flushing()
            slept_s, asleep_s = _asleep_s() - asleep_s, _asleep_s()
            if slept_s > SLEPT_S:
                core.ping(trio.current_time(), slept=True)
            try:
                core.on_time(trio.current_time())
            except TunnelError as error:
                return self._end(error)
            self.session.look_for_rest(trio.current_time())
            if core.has_output():
                self.session.output.wake()
