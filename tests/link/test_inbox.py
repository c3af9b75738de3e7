from __future__ import annotations

import pytest
import trio
import trio.testing

from tunnel.link.inbox import JOINED_BYTES, LARGE_PIECE_BYTES, Inbox


def put(inbox: Inbox, *pieces: bytes) -> None:
    for piece in pieces:
        inbox.put(piece, len(piece))


def test_small_pieces_are_joined_and_large_ones_passed_as_they_are() -> None:
    inbox, large = Inbox(), bytes(LARGE_PIECE_BYTES)
    put(inbox, b"one", b"two", large, b"three")
    assert inbox.take() == b"onetwo"
    assert inbox.take() is large
    assert inbox.take() == b"three"


def test_no_joined_piece_is_larger_than_its_limit() -> None:
    inbox, small = Inbox(), bytes(LARGE_PIECE_BYTES - 1)
    put(inbox, *[small] * 8)
    sizes = [len(inbox.take()) for _ in range(2)]
    assert sizes == [4 * len(small)] * 2
    assert sizes[0] <= JOINED_BYTES


def test_what_is_taken_in_parts_keeps_its_order_and_nothing_is_joined_to_it() -> None:
    inbox = Inbox()
    put(inbox, b"abcdef")
    assert inbox.take(2) == b"ab"
    put(inbox, b"ghi")
    assert inbox.take(3) == b"cde"
    assert inbox.take(10) == b"f"
    assert inbox.take() == b"ghi"


@pytest.mark.parametrize("how", ["bytes", "clear"])
async def test_the_receiver_is_woken_by_bytes_and_by_an_end(how: str) -> None:
    inbox = Inbox()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(inbox.arrived.wait)
        await trio.testing.wait_all_tasks_blocked()
        if how == "bytes":
            put(inbox, b"x")
        else:
            inbox.clear()
