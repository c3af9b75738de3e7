"""How much HTTP is borne: heads, fields, and bodies that pause."""

from __future__ import annotations

import pytest
import trio
import trio.testing
from support.town import OK, get, status, town, until

from tunnel.errors import Code
from tunnel.front.http.limits import HEAD_BYTES, LIMITS, MAX_FIELDS, Limits


def padded(size: int) -> bytes:
    """Give a request whose head has so many bytes."""
    return get("a.test", "X: " + "y" * (size - len(get("a.test", "X: "))))


@pytest.mark.parametrize("size", [HEAD_BYTES, 1_024])
async def test_a_head_may_have_so_many_bytes_and_no_more(size: int) -> None:
    LIMITS.set(Limits(head_bytes=size))
    async with town() as it:
        await it.say(padded(size))
        far, _ = await it.target()
        await far.far.send_all(OK)
        assert status(await it.hear()) == 200
    async with town() as it:
        await it.say(padded(size + 1))
        assert status(await it.hear()) == 431
        assert it.asked == []


@pytest.mark.parametrize("most", [MAX_FIELDS, 20])
async def test_a_head_may_have_so_many_fields_and_no_more(most: int) -> None:
    LIMITS.set(Limits(fields=most))
    async with town() as it:
        await it.say(get("a.test", *(f"X-{n}: y" for n in range(most - 1))))
        far, _ = await it.target()
        await far.far.send_all(OK)
        assert status(await it.hear()) == 200
    async with town() as it:
        await it.say(get("a.test", *(f"X-{n}: y" for n in range(most))))
        assert status(await it.hear()) == 431


def answer(size: int, fields: int) -> bytes:
    lines = [b"HTTP/1.1 204 No Content", *(b"X: y" for _ in range(fields - 1)), b"Y: "]
    head = b"\r\n".join(lines)
    return head + b"z" * (size - len(head) - 4) + b"\r\n\r\n"


@pytest.mark.parametrize("size", [HEAD_BYTES, 2_048])
@pytest.mark.parametrize("most", [MAX_FIELDS, 20])
async def test_an_answer_is_held_to_the_same_limits(size: int, most: int) -> None:
    LIMITS.set(Limits(size, most))
    for said, expected in (
        (answer(size, most), 204),
        (answer(size + 1, most), 502),
        (answer(size, most + 1), 502),
    ):
        async with town() as it:
            await it.say(get("a.test"))
            far, _ = await it.target()
            await far.far.send_all(said)
            assert status(await it.hear()) == expected


async def test_a_body_that_pauses_for_longer_than_the_flag_says_is_a_408(
    autojump_clock: trio.testing.MockClock,
) -> None:
    LIMITS.set(Limits(body_s=60))
    async with town() as it:
        await it.say(get("a.test", "Content-Length: 3", method="POST"))
        far = await it.opened()
        for byte in (b"a", b"b"):
            await trio.sleep(59)
            await it.say(byte)
            await until(far.far, byte)
        heard = await it.hear()
        assert status(heard) == 408
        assert b"Connection: close" in heard
        assert far.resets == [Code.RESET]


async def test_the_flag_is_about_bodies_and_not_about_slow_answers(
    autojump_clock: trio.testing.MockClock,
) -> None:
    LIMITS.set(Limits(body_s=60))
    async with town() as it:
        await it.say(get("a.test", "Content-Length: 1", method="POST") + b"x")
        far = await it.opened()
        await trio.sleep(400)
        await far.far.send_all(OK)
        assert status(await it.hear()) == 200
