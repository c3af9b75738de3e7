"""BoundPort over two sessions: whose it is, and that it is given up."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing
from support.wires import Offers, open_one, session_pair

from tunnel.addresses import Address
from tunnel.errors import Code, LocalStreamError, StreamError
from tunnel.link.bind import BoundPort

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tunnel.link.virtual import VirtualStream


class Exit:
    """The far end of a bound port: what it says is up to the test."""

    def __init__(self, near: VirtualStream, far: VirtualStream) -> None:
        self.near = near
        self.far = far
        self.port = BoundPort(near)

    async def ended_with(self) -> Code:
        """Give the code with which the near end gave it up."""
        with pytest.raises(trio.BrokenResourceError) as caught:
            await self.far.receive_some()
        assert isinstance(caught.value.__cause__, StreamError)
        return caught.value.__cause__.code


@pytest.fixture
async def exit_() -> AsyncIterator[Exit]:
    offers = Offers()
    async with session_pair(serve_server=offers) as pair:
        yield Exit(*await open_one(pair, offers))


@pytest.mark.parametrize(
    ("packed", "peer"),
    [
        ("01 c0000207 1267", Address("192.0.2.7", 4_711)),
        ("04 20010db8000000000000000000000001 0050", Address("2001:db8::1", 80)),
    ],
)
async def test_a_peer_is_given_with_its_address_and_not_a_byte_less(
    exit_: Exit, packed: str, peer: Address
) -> None:
    await exit_.far.send_all(bytes.fromhex(packed) + b"hello")
    stream, address = await exit_.port.accept()
    assert address == peer
    await exit_.port.aclose()  # it is not the port's any more
    assert await stream.receive_some() == b"hello"
    await stream.send_all(b"back")
    assert await exit_.far.receive_some() == b"back"


async def test_an_address_may_come_byte_by_byte(
    exit_: Exit, autojump_clock: trio.testing.MockClock
) -> None:
    async def trickle() -> None:
        for byte in bytes.fromhex("01 c0000207 1267"):
            await trio.sleep(1)
            await exit_.far.send_all(bytes((byte,)))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trickle)
        assert (await exit_.port.accept())[1] == Address("192.0.2.7", 4_711)


async def test_a_port_says_where_it_listens_if_the_exit_does() -> None:
    offers = Offers()
    async with session_pair(serve_server=offers) as pair:
        stream, _ = await open_one(pair, offers)
        assert BoundPort(stream).address == Address("0.0.0.0", 0)
        stream.bound = replace(Address("192.0.2.1", 1), port=8_080)
        assert BoundPort(stream).address == Address("192.0.2.1", 8_080)


async def test_a_port_that_is_closed_ends_at_the_exit(exit_: Exit) -> None:
    await exit_.port.aclose()
    assert await exit_.ended_with() is Code.RESET


async def test_a_port_whose_user_is_cancelled_ends_at_the_exit(
    exit_: Exit, autojump_clock: trio.testing.MockClock
) -> None:
    with trio.move_on_after(1):
        await exit_.port.accept()
    assert await exit_.ended_with() is Code.RESET


@pytest.mark.parametrize("said", [b"", b"\x01\xc0"])
async def test_an_exit_that_ends_without_a_peer_is_told_and_given_up(
    exit_: Exit, said: bytes
) -> None:
    await exit_.far.send_all(said)
    await exit_.far.send_eof()
    with pytest.raises(LocalStreamError) as caught:
        await exit_.port.accept()
    assert caught.value.code is Code.GENERAL
    assert await exit_.ended_with() is Code.RESET


@pytest.mark.parametrize("form", [0, 2, 3, 5])
async def test_a_peer_of_an_unknown_kind_is_given_up(exit_: Exit, form: int) -> None:
    await exit_.far.send_all(bytes((form,)) + bytes(20))
    with pytest.raises(LocalStreamError, match=f"address form {form}"):
        await exit_.port.accept()
    assert await exit_.ended_with() is Code.RESET


async def test_the_reason_why_nobody_came_is_the_exits(exit_: Exit) -> None:
    exit_.far.reset(Code.TIMEOUT)
    with pytest.raises(StreamError) as caught:
        await exit_.port.accept()
    assert caught.value.code is Code.TIMEOUT
