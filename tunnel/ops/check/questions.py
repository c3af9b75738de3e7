"""Ask a server what it would answer to entries (protocol.md#try)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final, NamedTuple

from tunnel.center.publisher import QUESTION_BYTES
from tunnel.center.sessions import NO_CLIENT_ID
from tunnel.errors import Code, RemoteSessionError
from tunnel.proto.frames import MAX_MAPPING_ENTRIES, MappingOp
from tunnel.proto.payloads import entry_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tunnel.link.session import Session
    from tunnel.ops.entries import Published
    from tunnel.proto.frames import MappingAnswer, MappingEntry

MOST_PLACES: Final = 8
"""Client ids of this user that are tried: each is a program that ran at once."""


class Asked(NamedTuple):
    """An entry, what it asks for, and what it would be answered."""

    entry: Published
    wanted: MappingEntry
    answer: MappingAnswer


async def ask(
    session: Session, entries: list[Published], places: list[bytes]
) -> list[Asked]:
    """Return what each entry would be answered, in order.

    Args:
        session: with a server that says CAN_TRY.
        entries: of one client.
        places: ids that this client may have had: of them that one counts in whose
            place the most would be given. It is the client that runs with them.

    Raises:
        TunnelError: the server does not answer.
    """
    best: list[Asked] = []
    for place in (*places[:MOST_PLACES], NO_CLIENT_ID):
        found = await _ask_in(session, entries, place)
        if not best or _given(found) > _given(best):
            best = found
        if _given(best) == len(entries):
            break
    return best


def _given(found: list[Asked]) -> int:
    return sum(one.answer.code is Code.NORMAL for one in found)


async def _ask_in(
    session: Session, entries: list[Published], place: bytes
) -> list[Asked]:
    """Ask in the place of one client.

    The entries of one question count together, those of two do not: beyond a hundred
    entries a limit of the user may be found too late.
    """
    wanted = [
        replace(entry.wanted_by(place), name=f"{entry.kind}-{number}")
        for number, entry in enumerate(entries, 1)
    ]
    answers: list[MappingAnswer] = []
    for question in _questions(wanted):
        found = await session.ask_mapping(MappingOp.TRY, question, place)
        if len(found) != len(question):
            raise RemoteSessionError(Code.PROTOCOL, "the server gave too few answers")
        answers += found
    return [Asked(*one) for one in zip(entries, wanted, answers, strict=True)]


def _questions(wanted: list[MappingEntry]) -> Iterator[list[MappingEntry]]:
    question: list[MappingEntry] = []
    room = QUESTION_BYTES
    for entry in wanted:
        size = entry_bytes(entry)
        if question and (size > room or len(question) == MAX_MAPPING_ENTRIES):
            yield question
            question, room = [], QUESTION_BYTES
        question.append(entry)
        room -= size
    if question:
        yield question
