"""The exchange of MAPPINGs (protocol.md#mapping): how many are not answered."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tunnel.proto.calm import Calm, calm
from tunnel.proto.events import MappingAnswered, MappingAsked
from tunnel.proto.fields import illegal
from tunnel.proto.frames import ProtMapping, ProtMappingAnswer
from tunnel.proto.payloads import encode

if TYPE_CHECKING:
    from tunnel.proto.frames import MappingAnswer, MappingEntry, MappingOp
    from tunnel.proto.output import ControlQueue

MAX_UNANSWERED_MAPPINGS: Final = 16
"""MAPPINGs of the peer that wait for our answer; one at a time is sane."""


class MappingExchange:
    """The MAPPINGs of one session that are not answered; the ``client`` alone asks."""

    def __init__(self, control: ControlQueue, *, client: bool) -> None:
        self._control = control
        self._is_client = client
        self._asked = 0
        self._to_answer = 0

    def ask(
        self, op: MappingOp, entries: list[MappingEntry], client_id: bytes = b""
    ) -> None:
        """Queue a MAPPING; MappingAnswered follows, in the order of the questions."""
        self._asked += 1
        self._control.push(encode(ProtMapping(op, entries, client_id=client_id)))

    def answer(self, answers: list[MappingAnswer]) -> None:
        """Answer the oldest MappingAsked, entry by entry."""
        self._to_answer -= 1
        self._control.push(encode(ProtMappingAnswer(answers)))

    def check(self, *, ack: bool) -> None:
        """Refuse a MAPPING of the peer, or an answer, that is out of place.

        Raises:
            RemoteSessionError: ``PROTOCOL``, or ``CALM`` for too many questions.
        """
        if ack != self._is_client or (ack and not self._asked):
            raise illegal("MAPPING is out of place")
        if not ack and self._to_answer >= MAX_UNANSWERED_MAPPINGS:
            raise calm(Calm.MAPPINGS)

    def take(
        self, frame: ProtMapping | ProtMappingAnswer
    ) -> MappingAsked | MappingAnswered:
        """Count a frame of the peer, and return what it means; raises as ``check``."""
        if isinstance(frame, ProtMapping):
            self.check(ack=False)
            self._to_answer += 1
            return MappingAsked(frame)
        self.check(ack=True)
        self._asked -= 1
        return MappingAnswered(frame.answers)
