"""Wait for the far side while the app is watched, and say the last words to an app."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar

import trio

from tunnel.errors import Code, LocalStreamError, StreamError
from tunnel.net.relay import GRACE_S
from tunnel.net.virtual_connection import OPEN_DEADLINE_S

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tunnel.front.dialer import Association, Dialer, Opening, PeerPort
    from tunnel.net.relay import ResettableStream
    from tunnel.proto.frames import Target

EARLY_BYTES: Final = 65_536
"""Kept of what an app sends before it has its answer; more waits in the kernel."""
UNWATCHED_S: Final = 0.05
"""Most answers are there before; to watch and to stop it costs as much as to open."""
READ_BYTES: Final = 4096
"""Largest read of an app's request."""

T = TypeVar("T")


async def attempt(
    app: trio.abc.ReceiveStream,
    early: bytearray,
    make: Callable[[], Awaitable[T]],
    drop: Callable[[T], Awaitable[None]],
    *,
    ends_with_app: bool = False,
) -> T | None:
    """Return what ``make`` has made; None if the app has left before.

    It is watched from ``UNWATCHED_S`` on. What it sends then is added to ``early``. Its
    end of file is only a half-close, which the next read meets again.

    Args:
        app: nothing else may read it meanwhile.
        early: the caller's.
        make: is cancelled when the app leaves; may raise StreamError.
        drop: called with what was made in the moment of our own cancellation.
        ends_with_app: whether the app's end of file counts as leaving, as its reset
            always does.
    """
    made: list[T] = []
    refusals: list[StreamError] = []
    try:
        async with trio.open_nursery() as nursery:
            making, answered = nursery.cancel_scope, trio.Event()
            unwatched = trio.CancelScope(deadline=trio.current_time() + UNWATCHED_S)

            async def watch() -> None:
                with unwatched:
                    return await answered.wait()
                await _watch(app, early, making, ends_with_app)

            nursery.start_soon(watch)
            try:
                made.append(await make())
            except StreamError as error:
                # Not through the nursery, which would make a group of it.
                refusals.append(error)
            if unwatched.cancel_called:
                making.cancel()
            else:  # an exception in the other task would cost as much as all else
                answered.set()
    except BaseException:
        for one in made:
            await drop(one)
        raise
    if refusals:
        raise refusals.pop()  # kept here it would hold this frame, a cycle
    return made[0] if made else None


async def reach(
    app: trio.abc.ReceiveStream, early: bytearray, dialer: Dialer, target: Target
) -> ResettableStream | None:
    """Connect an app to its target, as ``attempt`` does; None if the app has left.

    Most targets answer before the app is watched, and cost no second task.

    Raises:
        StreamError: the target is not reached.
    """
    opening = None if dialer.begin is None else dialer.begin(target)
    if opening is None:
        return await attempt(app, early, partial(dialer.open, target), drop_stream)
    virtual: ResettableStream | None = None
    try:
        with trio.move_on_after(UNWATCHED_S) as unwatched:
            await opening.wait_open()
        if not unwatched.cancelled_caught:
            virtual = opening
        else:
            waiting = partial(_wait_open, opening, target)
            virtual = await attempt(app, early, waiting, drop_stream)
        return virtual
    finally:
        if virtual is None:
            opening.reset(Code.RESET)


async def _wait_open(opening: Opening, target: Target) -> ResettableStream:
    left_s = OPEN_DEADLINE_S - UNWATCHED_S
    with trio.move_on_after(left_s):
        await opening.wait_open()
        return opening
    why = f"{target}: no answer within {OPEN_DEADLINE_S:.0f} s"
    raise LocalStreamError(Code.TIMEOUT, why)


async def drop_stream(stream: ResettableStream) -> None:
    """Reset a stream that will not be used."""
    stream.reset(Code.RESET)
    await trio.lowlevel.cancel_shielded_checkpoint()


async def drop_resource(resource: Association | PeerPort) -> None:
    """Close what will not be used, without waiting."""
    with trio.CancelScope() as scope:
        scope.cancel()
        await resource.aclose()


async def _watch(
    app: trio.abc.ReceiveStream,
    early: bytearray,
    making: trio.CancelScope,
    ends_with_app: bool,
) -> None:
    """Keep what the app sends too soon; cancel ``making`` when it leaves."""
    try:
        while len(early) < EARLY_BYTES:
            data = await app.receive_some(READ_BYTES)
            if not data:
                if ends_with_app:
                    making.cancel()
                return
            early += data
    except trio.BrokenResourceError:
        making.cancel()


async def last_words(app: trio.abc.HalfCloseableStream, words: bytes = b"") -> None:
    """Send, then let the app close first: to close with unread bytes would be a RST."""
    with trio.move_on_after(GRACE_S), suppress(trio.BrokenResourceError):
        if words:
            await app.send_all(words)
        await app.send_eof()
        while await app.receive_some(EARLY_BYTES):
            pass
