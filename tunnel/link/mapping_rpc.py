"""MAPPING as a call: a client asks for names, a server answers them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio

from tunnel.errors import Code, LocalLinkError
from tunnel.proto.frames import MappingAnswer, ProtMapping
from tunnel.proto.mappings import MAX_UNANSWERED_MAPPINGS

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tunnel.errors import TunnelError
    from tunnel.link.output import Output
    from tunnel.proto.frames import MappingEntry, MappingOp
    from tunnel.proto.mux import MuxCore

    ServeMapping = Callable[[ProtMapping], Awaitable[list[MappingAnswer]]]

ANSWER_DEADLINE_S: Final = 10.0
"""How long a client waits for the answer to its MAPPING."""


class MappingRpc:
    """The calls of one session (protocol.md#mapping); the session closes it."""

    def __init__(self, core: MuxCore, output: Output) -> None:
        self._core = core
        self._output = output
        self._ended: TunnelError | None = None
        self._ask, self._asked = trio.open_memory_channel[ProtMapping](
            MAX_UNANSWERED_MAPPINGS
        )
        self._answer, self._answers = trio.open_memory_channel[list[MappingAnswer]](
            MAX_UNANSWERED_MAPPINGS
        )
        self._asking = trio.Lock()
        self._unwanted_answers = 0
        """Answers to come whose call was given up."""

    async def ask(
        self, op: MappingOp, entries: list[MappingEntry], client_id: bytes = b""
    ) -> list[MappingAnswer]:
        """Register, withdraw, replace or try names; return an answer for each.

        Args:
            op: TRY only of a server that says CAN_TRY: it ends the session of others.
            entries: at most ``MAX_MAPPING_ENTRIES``.
            client_id: of a TRY, in whose place it is asked.

        Raises:
            TunnelError: the session ended before the answer, or no answer came in time.
        """
        async with self._asking:
            if self._ended is not None:
                raise self._ended.again()
            self._core.ask_mapping(op, entries, client_id)
            self._output.wake()
            try:
                with trio.fail_after(ANSWER_DEADLINE_S):
                    return await self._answers.receive()
            except trio.EndOfChannel:
                assert self._ended is not None  # noqa: S101 - it closes the channel
                raise self._ended.again() from None
            except trio.TooSlowError:
                self._unwanted_answers += 1
                raise LocalLinkError(Code.SILENT, "no answer to MAPPING") from None
            except trio.Cancelled:
                self._unwanted_answers += 1
                raise

    async def serve(self, serve: ServeMapping) -> None:
        """Answer one MAPPING after another, until the session ends."""
        async for mapping in self._asked:
            answers = await serve(mapping)
            if self._ended is None:
                self._core.answer_mapping(answers)
                self._output.wake()

    def asked(self, mapping: ProtMapping) -> None:
        """Take a MAPPING of the peer; the core bounds how many wait."""
        if self._ended is None:
            self._ask.send_nowait(mapping)

    def answered(self, answers: list[MappingAnswer]) -> None:
        """Take the peer's answers, an answer for each entry, in the order of asking."""
        if self._unwanted_answers:
            self._unwanted_answers -= 1
        elif self._ended is None:
            self._answer.send_nowait(answers)

    def close(self, error: TunnelError) -> None:
        """End every call with the error that ended the session."""
        self._ended = error
        self._answer.close()
        self._ask.close()
