"""Read and write a connected socket with as few turns of the scheduler as possible.

    FastStream, FastSocket, quick   the fast way to a stream's bytes
    tune_local, end_with_fin        the options of a socket
    Tails                           sockets that are closed with bytes unsent

trio's own ``receive_some`` begins with a system call that mostly fails, and takes a
turn of the scheduler even when it does not; ``send_all`` takes one even for what the
kernel accepts at once. Over a whole tunnel those turns cost as much as the copying, and
trio's three objects for a socket 2 % of a short connection.
"""

from __future__ import annotations

import socket
import struct
from contextlib import suppress
from operator import index
from typing import TYPE_CHECKING, Final, Protocol

import trio

from tunnel.net.timeouts import TIMEOUTS
from tunnel.platform import sockets as kernel
from tunnel.platform.sockets import (
    KEEPALIVE_AFTER,
    KEEPALIVE_EVERY,
    TCP_NOTSENT_LOWAT,
    Buffer,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

CHUNK_BYTES: Final = 131_056
"""One read of a local socket: two of the largest frames, which fill eight TLS records
with their headers."""
MAX_PIECES: Final = 64
"""So many are written as they are; more would be small, and are cheaper joined."""
UNSENT_BYTES: Final = 16_384
"""The kernel takes so much beyond what is on its way; the rest waits here, counted."""
ASKED_AFTER: Final = 0.4
"""Of ``dead_after_s``: the kernel asks who was silent for so long (60 s) …"""
ASKED_EVERY: Final = 0.1
"""… and again after this (15 s): seven times before it counts as dead. How often in
all is left to the kernel, for each option costs a connect 1 µs: Linux ends it by itself
after nine, Darwin after eight, which is all there is where no look is possible."""
MOST_TAILS: Final = 1_024
_READ_BYTES: Final = 65_536
_NOTHING: Final = memoryview(b"")
_RST_ON_CLOSE: Final = struct.pack("ii", 1, 0)
_FIN_ON_CLOSE: Final = struct.pack("ii", 0, 0)


class FastStream(Protocol):
    """What a link or a relay needs of a stream."""

    async def receive_some(self, max_bytes: int) -> bytes | bytearray:
        """Wait for bytes and return them; empty at end of file."""

    async def receive_into(self, buffer: memoryview) -> int:
        """Wait for bytes, put them into ``buffer``, return how many; 0 at the end."""

    async def put(self, data: Buffer) -> None:
        """Return when the kernel has all of ``data``.

        Only a checkpoint when it has to wait; reads always are.
        """

    async def send_eof(self) -> None:
        """End our direction."""

    def write_now(self, *pieces: Buffer) -> int:
        """Give the kernel what it takes at once; return how many bytes.

        0 also when the stream is broken: ``put`` raises then.
        """


def quick(stream: trio.abc.Stream) -> FastSocket | _Other:
    """Return the fast way to a stream's bytes: its own methods if it is no socket."""
    return stream if isinstance(stream, FastSocket) else _Other(stream)


class FastSocket(trio.abc.HalfCloseableStream):
    """A connected socket: a trio stream that can be read and written outside of tasks.

    Its methods raise what those of a ``trio.SocketStream`` raise.

    Args:
        sock: taken over.
    """

    __slots__ = (
        "_more",
        "_number",
        "_reads",
        "_writes",
        "asked_often",
        "finished",
        "given_up",
        "on_given_up",
        "socket",
        "unsent",
    )

    def __init__(self, sock: socket.socket) -> None:
        if sock.gettimeout() != 0:
            sock.setblocking(False)
        self.socket = sock
        """For its options and addresses; only the methods here close it."""
        self._number = sock.fileno()
        self._more = False
        """The last read filled its buffer: there is likely more."""
        self._reads = self._writes = False
        """A task waits for the kernel: a close has to wake it."""
        self.asked_often = False
        """The kernel was told to ask its reader often: see ``Tails``."""
        self.finished = False
        """Our direction has ended."""
        self.given_up = False
        """Its end of file was made here (``give_up``), and means a reset."""
        self.on_given_up: Callable[[], None] | None = None
        """Called then, for who waits for something else: it must not wait."""
        self.unsent = _NOTHING
        """What a cancelled ``put`` has not written."""

    @classmethod
    def of(cls, sock: trio.socket.SocketType) -> FastSocket:
        """Make one of a socket of trio's, for which no task waits."""
        family, kind, proto = sock.family, sock.type, sock.proto
        return cls(socket.socket(family, kind, proto, fileno=sock.detach()))

    # As any stream -------------------------------------------------------------------

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Wait for bytes and return them; empty at end of file."""
        most = _READ_BYTES if max_bytes is None else index(max_bytes)
        if most < 1:
            raise ValueError("max_bytes must be at least 1")
        # No helper for the wait: each coroutine on the way is 400 bytes of a stream.
        if self._more:
            await trio.lowlevel.checkpoint()
        while True:
            if not self._more:
                self._check_free(self._reads)
                self._reads = True
                try:
                    await trio.lowlevel.wait_readable(self._number)
                finally:
                    self._reads = False
            try:
                data = kernel.read(self._number, most)
            except BlockingIOError:
                self._more = False
            except OSError as error:
                raise self._broken(error) from error
            else:
                if not data and self.given_up:
                    raise trio.BrokenResourceError("given up for others")
                self._more = len(data) == most
                return data

    async def receive_into(self, buffer: memoryview) -> int:
        """Wait for bytes and put them into ``buffer``; see ``FastStream``."""
        if self._more:
            await trio.lowlevel.checkpoint()
        while True:
            if not self._more:
                self._check_free(self._reads)
                self._reads = True
                try:
                    await trio.lowlevel.wait_readable(self._number)
                finally:
                    self._reads = False
            try:
                size = kernel.readv(self._number, (buffer,))
            except BlockingIOError:
                self._more = False
            except OSError as error:
                raise self._broken(error) from error
            else:
                self._more = size == len(buffer)
                return size

    async def send_all(self, data: Buffer) -> None:
        """Return when the kernel has all of ``data``; a checkpoint."""
        await trio.lowlevel.checkpoint()
        await self.put(data)

    async def put(self, data: Buffer) -> None:
        """Do the same, see ``FastStream``; cancelled, it leaves ``unsent``."""
        if self.finished:
            raise trio.ClosedResourceError("this direction has ended")
        self._check_free(self._writes)
        self.unsent = memoryview(data)
        while True:
            try:
                sent = kernel.write(self._number, self.unsent)
            except BlockingIOError:
                sent = 0
            except OSError as error:
                raise self._broken(error) from error
            self.unsent = self.unsent[sent:]
            if not self.unsent:
                self.unsent = _NOTHING  # an empty view would hold all of the data
                return
            await self.wait_send_all_might_not_block()

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until the kernel would take something."""
        self._check_free(self._writes)
        self._writes = True
        try:
            await trio.lowlevel.wait_writable(self._number)
        finally:
            self._writes = False

    async def send_eof(self) -> None:
        """End our direction; harmless when repeated. A checkpoint."""
        await trio.lowlevel.checkpoint()
        self.finish()

    async def aclose(self) -> None:
        """Close it; harmless when it is closed. A checkpoint."""
        self.close()
        await trio.lowlevel.checkpoint()

    # Outside of any task -------------------------------------------------------------

    def number(self) -> int:
        """Return the descriptor.

        Raises:
            trio.ClosedResourceError: it is closed.
        """
        if self._number < 0:
            raise trio.ClosedResourceError("this socket was already closed")
        return self._number

    def read_now(self, max_bytes: int) -> bytes | None:
        """Return what is there; None if nothing yet, empty at end of file."""
        try:
            return kernel.read(self._number, max_bytes)
        except BlockingIOError:
            return None
        except OSError as error:
            raise self._broken(error) from error

    def write_now(self, *pieces: Buffer) -> int:
        """Give the kernel what it takes; see ``FastStream``."""
        try:
            if len(pieces) == 1:
                return kernel.write(self._number, pieces[0])
            if len(pieces) > MAX_PIECES:
                return kernel.write(self._number, b"".join(pieces))
            return kernel.writev(self._number, pieces)
        except OSError:
            return 0

    def finish(self) -> None:
        """Do as ``send_eof`` does, without a checkpoint."""
        if not self.finished:
            self._check_free(self._writes)
            try:
                self.socket.shutdown(socket.SHUT_WR)
            except OSError as error:
                raise self._broken(error) from error
            self.finished = True

    def close(self) -> None:
        """Do as ``aclose`` does: a FIN behind what the kernel has not sent yet."""
        if self._number < 0:
            return
        if not self.given_up:
            end_with_fin(self.socket)
        self._close()

    def _close(self) -> None:
        if self._reads or self._writes:
            # Only then: trio tells its epoll to forget the descriptor, which it mostly
            # does not know, and that is a failing system call for each connection.
            trio.lowlevel.notify_closing(self._number)
        self._number = -1
        number = self.socket.detach()
        if self.asked_often:
            TAILS.keep(socket.socket(fileno=number))
        else:
            kernel.close(number)

    def reset(self) -> None:
        """Close with a RST; bytes that the kernel has not sent are lost."""
        if self._number >= 0:
            self.asked_often = False
            _end_with_rst(self.socket)
            self._close()

    def detach(self) -> int:
        """Return the descriptor, which is the caller's from now on.

        No task waits for it, and the peer notices nothing.
        """
        self._number = -1
        return self.socket.detach()

    def give_up(self) -> None:
        """Have its reader find it broken, and its close be a RST; does not close it."""
        self.given_up, self.asked_often = True, False
        _end_with_rst(self.socket)
        with suppress(OSError):
            self.socket.shutdown(socket.SHUT_RD)
        if self.on_given_up is not None:
            self.on_given_up()

    def _check_free(self, busy: bool) -> None:
        if self._number < 0:
            raise trio.ClosedResourceError("this socket was already closed")
        if busy:
            raise trio.BusyResourceError("another task waits for this socket")

    def _broken(self, error: OSError) -> Exception:
        if self._number < 0:
            return trio.ClosedResourceError("this socket was already closed")
        return trio.BrokenResourceError(f"socket connection broken: {error}")


def socket_beneath(stream: trio.abc.AsyncResource) -> FastSocket | None:
    """Return the socket that a stream is, or that is beneath its TLS; or None."""
    beneath = getattr(stream, "beneath", stream)
    return beneath if isinstance(beneath, FastSocket) else None


async def wait_beside(
    stream: trio.abc.AsyncResource, wait: Callable[[], Awaitable[None]], until: float
) -> None:
    """Wait for something else while nobody reads a stream; also returns ``until`` then.

    Raises:
        trio.BrokenResourceError: its socket was given up, as who vanished is.
    """
    sock = socket_beneath(stream)
    with trio.CancelScope(deadline=until) as scope:
        if sock is None:
            return await wait()
        sock.on_given_up = scope.cancel
        if sock.given_up:
            scope.cancel()
        try:
            await wait()
        finally:
            sock.on_given_up = None
    if sock is not None and sock.given_up:
        raise trio.BrokenResourceError("given up")


class _Other:
    """A ``FastStream`` of any other stream: its own methods."""

    __slots__ = ("_stream", "put")

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self.put = stream.send_all

    async def send_eof(self) -> None:
        if isinstance(self._stream, trio.abc.HalfCloseableStream):
            await self._stream.send_eof()

    async def receive_some(self, max_bytes: int) -> bytes | bytearray:
        return await self._stream.receive_some(max_bytes)

    async def receive_into(self, buffer: memoryview) -> int:
        data = await self._stream.receive_some(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def write_now(self, *pieces: Buffer) -> int:
        return 0


def tune_local(sock: socket.socket) -> None:
    """Set the options of a local TCP connection, or of all that a listener accepts.

    Its end is a RST from here on, unless ``FastSocket.close`` makes it a clean one:
    nobody may take for whole an answer that ended with a killed process.
    """
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if TCP_NOTSENT_LOWAT:
            sock.setsockopt(socket.IPPROTO_TCP, TCP_NOTSENT_LOWAT, UNSENT_BYTES)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RST_ON_CLOSE)
        _ask_when_silent(sock)
    except OSError:
        pass  # a kernel or a socket family without an option works without it


def end_with_fin(sock: socket.socket) -> None:
    """Have a close send what is unsent and then a FIN, which ``tune_local`` forbade.

    For clean ends, and for links, whose sessions know an end from a loss.
    """
    try:  # noqa: SIM105 - a context manager for each connection costs more
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _FIN_ON_CLOSE)
    except OSError:
        pass  # it has been closed, or knows no such option


def _end_with_rst(sock: socket.socket) -> None:
    with suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RST_ON_CLOSE)


def _ask_when_silent(sock: socket.socket) -> None:
    """Have the kernel ask for signs of life."""
    dead_after_s = TIMEOUTS.get().dead_after_s
    if KEEPALIVE_AFTER:
        after_s = int(dead_after_s * ASKED_AFTER)
        sock.setsockopt(socket.IPPROTO_TCP, KEEPALIVE_AFTER, after_s)
    if KEEPALIVE_EVERY:
        every_s = int(dead_after_s * ASKED_EVERY) or 1
        sock.setsockopt(socket.IPPROTO_TCP, KEEPALIVE_EVERY, every_s)
    # At last: with it each of the others would start the kernel's clock anew.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)


class Tails:
    """Sockets whose sending direction has ended, and which nobody reads here.

    A socket that is closed with bytes unsent is the kernel's alone. Linux asks its
    reader for room until the time between two questions is the longest that it may be,
    and then throws the bytes away. Where the kernel was told to ask often, that is
    soon; so such a socket is kept until its reader has everything, or has vanished.
    """

    def __init__(self) -> None:
        self.kept: dict[socket.socket, None] = {}
        """In the order in which they came."""
        self.most = MOST_TAILS
        """With one more, the oldest is left to the kernel."""

    def keep(self, sock: socket.socket) -> None:
        """Take over a socket whose close is a clean one; end its sending direction.

        It is closed when its reader has everything: at once if nothing is unsent.
        """
        with suppress(OSError):
            sock.shutdown(socket.SHUT_WR)
        if not kernel.unsent_bytes(sock.fileno()):
            return sock.close()
        while len(self.kept) >= self.most:
            self.let_go(next(iter(self.kept)))
        self.kept[sock] = None

    def let_go(self, sock: socket.socket, *, reset: bool = False) -> None:
        """Close one; what is unsent is lost with ``reset``, or else the kernel's."""
        del self.kept[sock]
        if reset:
            _end_with_rst(sock)
        sock.close()


TAILS: Final = Tails()
"""Of this process."""
