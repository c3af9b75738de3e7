"""Questions and answers between two processes of one server, over a socket pair.

    u32 length, JSON            with descriptors beside it (SCM_RIGHTS), if it says so

    {"ask": 7, "do": "look_up", "with": {…}}      a question
    {"re": 7, "done": {…}}                        its answer
    {"re": 7, "failed": {…}}                      or why there is none
    {"note": "changes", "with": {…}}              what needs no answer

Both ends trust each other: one has started the other. What one says is bounded all the
same, and so are the questions that are under way.
"""

from __future__ import annotations

import json
import os
import struct
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import trio

from tunnel.errors import AddressError, Code, Exit, TunnelError
from tunnel.net.notify import Notify
from tunnel.platform.channels import receive_beside, send_beside

if TYPE_CHECKING:
    import socket
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    Words = Mapping[str, object]
    Reply = tuple[dict[str, object], Sequence[int]]
    """The answer, and descriptors that go with it; they are closed here then."""
    Answer = Callable[[str, Words, list[int]], Awaitable[Reply]]
    Note = Callable[[str, Words, list[int]], None]

MAX_BYTES: Final = 67_108_864
"""One message: ten thousand users with hundreds of rights each."""
MAX_AT_ONCE: Final = 1_024
"""Questions of the other end that are answered at once; more wait."""
_READ_BYTES: Final = 65_536
_pack: Final = struct.Struct(">I").pack
_SIZE: Final = 4


class ChannelClosedError(TunnelError):
    """The other process has ended."""

    def __init__(self) -> None:
        super().__init__(Code.RESOURCE, "the other process of this server has ended")


class FailedError(TunnelError):
    """The other process could not do what it was asked; its own words."""

    def __init__(self, said: Mapping[str, object]) -> None:
        words = (str(said.get(key, "")) for key in ("what", "cause", "fix"))
        codes = {int(one): one for one in Code}
        super().__init__(codes.get(_number(said, "code"), Code.GENERAL), *words)
        ends = {int(one): one for one in Exit}
        self._status = ends.get(_number(said, "status"))
        self.number = said.get("errno")
        """The error of the system that was the reason, if one was."""


class Channel:
    """One end of a socket pair.

    Args:
        sock: the end; owned.
        answer: answers a question: what is to be done, with what, and descriptors,
            which it owns. Raises TunnelError.
        note: takes what needs no answer, without a wait.
    """

    def __init__(self, sock: socket.socket, answer: Answer, note: Note) -> None:
        sock.setblocking(False)
        self._sock = trio.socket.from_stdlib_socket(sock)
        self._answer = answer
        self._note = note
        self._asked: dict[int, Notify] = {}
        self._said: dict[int, tuple[Words, list[int]]] = {}
        self._count = 0
        self._sending = trio.Lock()
        self._out: deque[tuple[bytes, Sequence[int]]] = deque()
        self._has_out = Notify()
        self._at_once = trio.CapacityLimiter(MAX_AT_ONCE)
        self.closed = False
        """The other end is gone."""

    async def run(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Hear and say until the other end is gone."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._write)
                task_status.started()
                await self._read(nursery)
                nursery.cancel_scope.cancel()
        except* OSError:
            pass  # so it is gone
        finally:
            self.closed = True
            for waiting in self._asked.values():
                waiting.ring()
            self._sock.close()
            while self._out:
                _close_all(self._out.popleft()[1])

    async def ask(
        self, do: str, args: Words | None = None, descriptors: Sequence[int] = ()
    ) -> tuple[Words, list[int]]:
        """Ask, and return the answer with its descriptors, which the caller owns.

        Raises:
            FailedError: the other end could not do it.
            ChannelClosedError: it is gone.
        """
        self._count = number = self._count + 1
        heard = self._asked[number] = Notify()
        try:
            self._say({"ask": number, "do": do, "with": args or {}}, descriptors)
            while number not in self._said and not self.closed:
                await heard.wait()
        finally:
            del self._asked[number]
            said = self._said.pop(number, None)
        if said is None:
            raise ChannelClosedError
        words, came = said
        failed = words.get("failed")
        if isinstance(failed, dict):
            _close_all(came)
            raise FailedError(failed)
        done = words.get("done")
        return (done if isinstance(done, dict) else {}), came

    def tell(
        self, note: str, args: Words | None = None, descriptors: Sequence[int] = ()
    ) -> None:
        """Say something that needs no answer, soon; closes the descriptors then."""
        self._say({"note": note, "with": args or {}}, descriptors)

    def _say(self, words: Words, descriptors: Sequence[int]) -> None:
        if self.closed:
            _close_all(descriptors)
            return
        message = {**words, "fds": len(descriptors)} if descriptors else words
        raw = json.dumps(message).encode()
        self._out.append((_pack(len(raw)) + raw, descriptors))
        self._has_out.ring()

    async def _write(self) -> None:
        while True:
            while self._out:
                raw, descriptors = self._out.popleft()
                try:
                    sent = await send_beside(self._sock, raw, descriptors)
                finally:
                    _close_all(descriptors)
                while sent < len(raw):
                    sent += await self._sock.send(memoryview(raw)[sent:])
            await self._has_out.wait()

    async def _read(self, nursery: trio.Nursery) -> None:
        held, came = bytearray(), deque[int]()
        try:
            while True:
                data, beside = await receive_beside(self._sock, _READ_BYTES)
                came.extend(beside)
                if not data:
                    return
                held += data
                while len(held) >= _SIZE:
                    size = int.from_bytes(held[:_SIZE], "big")
                    if size > MAX_BYTES:
                        return  # no process of ours says so much
                    if len(held) < _SIZE + size:
                        break
                    words = json.loads(held[_SIZE : _SIZE + size])
                    del held[: _SIZE + size]
                    mine = [came.popleft() for _ in range(words.get("fds", 0))]
                    self._take(words, mine, nursery)
        finally:
            _close_all(came)

    def _take(
        self, words: dict[str, object], came: list[int], nursery: trio.Nursery
    ) -> None:
        args = words.get("with")
        given = args if isinstance(args, dict) else {}
        if "note" in words:
            self._note(str(words["note"]), given, came)
        elif "ask" in words:
            nursery.start_soon(self._serve, words["ask"], str(words["do"]), given, came)
        else:
            number = words.get("re")
            waiting = self._asked.get(number) if isinstance(number, int) else None
            if waiting is None or not isinstance(number, int):
                _close_all(came)  # who asked has gone
            else:
                self._said[number] = words, came
                waiting.ring()

    async def _serve(
        self, number: object, do: str, args: Words, came: list[int]
    ) -> None:
        async with self._at_once:
            try:
                done, beside = await self._answer(do, args, came)
            except TunnelError as error:
                self._say({"re": number, "failed": _failure(error)}, ())
            else:
                self._say({"re": number, "done": done}, beside)


def _number(said: Mapping[str, object], key: str) -> int:
    number = said.get(key)
    return number if isinstance(number, int) else -1


def _failure(error: TunnelError) -> dict[str, object]:
    cause = error.__cause__
    return {
        "what": error.what,
        "cause": error.cause,
        "fix": error.fix,
        "code": int(error.code),
        "status": int(error.exit_status),
        "errno": cause.errno if isinstance(cause, OSError) else None,
    }


def address_error(error: FailedError) -> AddressError:
    """Return what an address could not be listened on for, as if it was tried here."""
    found = AddressError(error.what, error.cause, error.fix, error.exit_status)
    if isinstance(error.number, int):
        found.__cause__ = OSError(error.number, os.strerror(error.number))
    return found


def _close_all(descriptors: Sequence[int] | deque[int]) -> None:
    for number in descriptors:
        with suppress(OSError):
            os.close(number)
