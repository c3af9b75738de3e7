"""Link: one wire that carries a session, with its three tasks.

The reader waits for the wire and for nothing else: not for a stream, not for the
writer. The writer waits for room on the wire; while it rests, whoever says the first
word of a turn writes it (``_push``). The clock asks whether the peer is there.
Between two awaits the core belongs to whoever runs: trio runs one task at a time, so
there is no lock.
"""

from __future__ import annotations

import logging
import math
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import trio

from tunnel.errors import (
    Code,
    LocalLinkError,
    LocalSessionError,
    RemoteSessionError,
    TunnelError,
)
from tunnel.link.session import nowhere
from tunnel.link.transport import lost
from tunnel.link.write_sizer import MIN_TURN_BYTES, WriteSizer
from tunnel.log import log_event
from tunnel.net.notify import Notify
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
its way. Whoever sends more does not listen; reading on would cost a core for 2 s."""

LAST_WORD_S: Final = 0.1
"""How long a wire that was silent may take to accept a last word: another waits."""
_SAID: Final = (Code.SUPERSEDED, Code.SILENT)
"""Why a link is given up while its session lives, in a word for the peer."""

SLEEP_CHECK_S: Final = 5.0
"""How often to look whether this machine slept: no timer runs meanwhile."""
SLEPT_S: Final = 2.0
"""A suspension shorter than this leaves wires as they were."""

logger = logging.getLogger("tunnel.link")


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
        transport.enlarge()
        self.gone = trio.Event()
        """Set when ``run`` is over."""
        self._early = early
        self._scope = trio.CancelScope()
        self._reason: TunnelError | None = None
        self._closing = False
        self._flushing = False
        self._abandoned = False
        self._clock = Notify()
        self._armed = math.inf
        self._pace = WriteSizer()
        self._turn_bytes = 0
        self._turn_began = -math.inf
        self._goodbye = (Code.NORMAL, "")
        self._flush_until = math.inf
        self._in_a_frame = False
        """A write was begun and has not ended: nothing may be said behind it."""

    def __repr__(self) -> str:
        state = "closing" if self._closing else "up"
        return (
            f"<Link {state} peer={self.transport.peer} streams={self.session.streams}>"
        )

    async def run(self) -> TunnelError:
        """Carry the session until the wire ends; give the reason.

        A cancelled link is lost: nobody knows what the wire has taken.
        """
        if not self._abandoned:
            self.session.push = self._push
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._read_loop)
                    nursery.start_soon(self._write_loop)
                    nursery.start_soon(self._clock_loop)
        finally:
            if self.session.push == self._push:
                # It may wait for another link, and our buffers are large.
                self.session.push = nowhere
                self.session.core.drop_input()
                if self.session.ended is not None:
                    # What was to be sent at the end of it is not sent any more.
                    self.session.core.end()
                self.session.let_go()
            with trio.CancelScope(shield=True):
                await self._bow_out()
                await self.transport.aclose()
            self.gone.set()
        reason = self._reason or lost("the peer did not answer the goodbye")
        # Its frames hold this link, which holds it: a cycle for the collector.
        return reason.with_traceback(None)

    def close(self, code: Code, reason: str = "") -> None:
        """End the session in good order: say GO_AWAY, let the peer read it, go.

        NORMAL sends first what closed streams have left; what is still open is reset.
        """
        if self._closing or self._flushing:
            return
        error = LocalSessionError(code, reason or "ended from this side")
        self._reason = self._reason or error
        self._goodbye = (code, reason)
        self._flushing = code is Code.NORMAL
        self.session.end(error, flush=self._flushing)
        if self._flushing:
            self._flush_until = trio.current_time() + FLUSH_S
            self._clock.ring()
        else:
            self._say_goodbye()
        self.session.wake()

    def _stop_flushing(self) -> None:
        """Wait no longer for what the peer has not confirmed: say goodbye now."""
        if self.session.writer.waiting:
            self._say_goodbye()
            self.session.wake()
        else:
            self._end(lost("the peer takes nothing"))

    def _say_goodbye(self) -> None:
        self._flushing, self._closing = False, True
        self.session.core.go_away(*self._goodbye)
        self._scope.deadline = trio.current_time() + LINGER_S

    def abandon(self, reason: LocalLinkError) -> None:
        """Stop at once: another link carries the session from now on, or will.

        From here on not a byte is taken from this wire or given to it, although its
        tasks may still have one turn each.
        """
        self._abandoned = True
        self._end(reason)

    async def _bow_out(self) -> None:
        """Tell a peer whose link is given up, and not its session, if it still reads.

        The end of a wire that was replaced is waited for: closed with bytes unread, the
        kernel would send a RST and destroy the word. A silent one has none.
        """
        code = self._reason.code if isinstance(self._reason, LocalLinkError) else None
        if code not in _SAID or self._in_a_frame or self.transport.owes_output():
            return
        wait_s = LINGER_S if self._abandoned else LAST_WORD_S
        with suppress(TunnelError), trio.move_on_after(wait_s):
            self.transport.write([encode(ProtGoAway(code))])
            await self.transport.flush()
            await self.transport.send_eof()
            if self._abandoned:  # a client may replace its links at a high rate
                self.transport.shrink()
            while self._abandoned and await self.transport.receive_some():
                pass

    def _end(self, reason: TunnelError) -> None:
        self._reason = self._reason or reason
        self._scope.cancel()

    async def _read_loop(self) -> None:
        session, transport = self.session, self.transport
        data: bytes | bytearray | memoryview = self._early
        core = session.core
        while True:
            if self._abandoned:
                return
            if self._closing:
                return await self._linger()
            if data or core.has_input():
                self._take(data)
            if session.go_away is not None:
                return self._end(session.go_away)
            # TLS may owe an answer of its own, which only the writer may send.
            if transport.owes_output() or self._flushing:
                session.wake()
            else:
                session.flush()
            if core.liveness.sooner and core.next_wakeup() < self._armed:
                self._clock.ring()
            if core.has_input():
                # The others' turn. What came is ours, also when the wire ends
                # meanwhile: a GO_AWAY may be the last of it.
                await trio.lowlevel.cancel_shielded_checkpoint()
                data = b""
                continue
            data = await transport.receive_some()
            if not data:
                return self._end(lost("the peer is gone"))

    async def _linger(self) -> None:
        """Wait for the peer's end behind our last word; what it says is dropped."""
        dropped_bytes = 0
        while dropped_bytes <= LINGER_BYTES:
            data = await self.transport.receive_some()
            if not data:
                return self._end(lost("the peer is gone"))
            dropped_bytes += len(data)
        await trio.sleep_forever()  # that is: for what is left of LINGER_S

    def _take(self, data: bytes | bytearray | memoryview) -> None:
        """Do a turn's work: of what the wire has brought, or of what is left of it."""
        session, now = self.session, trio.current_time()
        core = session.core
        try:
            session.dispatch(
                core.receive_data(data, now) if data else core.receive_more(now)
            )
        except RemoteSessionError as error:
            log_event(logger, logging.WARNING, "link.broken", peer=self.transport.peer,
                code=error.code.name, reason=str(error))  # fmt: skip
            self._reason = error
            self.close(error.code, error.what)

    async def _write_loop(self) -> None:
        session, transport = self.session, self.transport
        core = session.core
        while not self._abandoned:
            try:
                # What ``_push`` left goes before anything new.
                if core.has_output() and not transport.owes_output():
                    self._write_turn()
                if transport.owes_output():
                    self._in_a_frame = True
                    await transport.flush()
                    self._in_a_frame = False
                    self._turn_is_out()
            except TunnelError as error:
                return self._end(error)
            if core.has_output():
                # The kernel may take many turns without a wait.
                await trio.lowlevel.checkpoint()
            elif self._flushing and core.flushed():
                self._say_goodbye()
            elif self._closing:
                return await transport.send_eof()
            else:
                await session.writer.wait()

    def _write_turn(self) -> None:
        """Give the wire what is next."""
        core = self.session.core
        self._turn_began = trio.current_time()
        pieces = core.data_to_send(self._pace.turn_bytes, self._turn_began)
        self._turn_bytes = sum(map(len, pieces))
        self.transport.write(pieces)
        if not self.transport.owes_output():
            self._turn_is_out()
        # Behind the write: who has room now reads his socket at once.
        if notices := core.take_notices():
            self.session.dispatch(notices)

    def _turn_is_out(self) -> None:
        # Less says nothing of the line: a word, or what TLS had to say.
        if self._turn_bytes >= MIN_TURN_BYTES:
            took_s = trio.current_time() - self._turn_began
            self._pace.took(self._turn_bytes, took_s)
        self._turn_bytes = 0

    def _push(self) -> bool:
        """Write one turn from whoever has something to say, while the writer rests.

        A wait, every further turn and every end is the writer's affair: True.
        """
        if (
            self._abandoned
            or self._closing
            or self._flushing
            or self.transport.owes_output()
        ):
            return True
        try:
            self._write_turn()
        except TunnelError as error:
            self._end(error)
        return self.transport.owes_output() or self.session.core.has_output()

    async def _clock_loop(self) -> None:
        core = self.session.core
        asleep_s = _asleep_s()
        while True:
            self._armed = min(
                core.next_wakeup(),
                trio.current_time() + SLEEP_CHECK_S,
                self._flush_until,
            )
            with trio.move_on_at(self._armed):
                await self._clock.wait()
            if self._closing or self._abandoned:
                # Nothing is said after the goodbye.
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
                self.session.wake()


def _asleep_s() -> float:
    """Give for how long this machine has been suspended since it started.

    The clock that trio runs on stands still meanwhile.
    """
    return time.clock_gettime(time.CLOCK_BOOTTIME) - time.monotonic()
