"""A socket that is heard: each byte once, in its order, whichever way it takes."""

from __future__ import annotations

import socket

import pytest
import trio
import trio.testing

from tunnel.net.heard import HeardSocket
from tunnel.net.sockets import FastSocket


class Notes:
    """An ear that notes all."""

    def __init__(self) -> None:
        self.up = self.down = b""
        self.said: list[str] = []

    def wrote(self, data: bytes | bytearray | memoryview) -> None:
        self.up += data

    def read(self, data: bytes) -> None:
        self.down += data
        if not data:
            self.said.append("end")

    def broke(self) -> None:
        self.said.append("broke")

    def closed(self) -> None:
        self.said.append("closed")


def pair() -> tuple[HeardSocket, FastSocket, Notes]:
    one, other = socket.socketpair()
    for sock in (one, other):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4_096)
    heard, notes = HeardSocket(one), Notes()
    heard.ear = notes
    return heard, FastSocket(other), notes


async def make() -> tuple[HeardSocket, FastSocket]:
    await trio.lowlevel.checkpoint()
    return pair()[:2]


async def test_it_is_a_stream_as_trio_wants_it() -> None:
    await trio.testing.check_half_closeable_stream(make, None)


async def test_each_byte_is_heard_once() -> None:
    heard, far, notes = pair()
    await heard.send_all(b"a")
    assert heard.write_now(b"b", memoryview(b"cd"), bytearray(b"e")) == 4
    assert await far.receive_some() == b"abcde"
    await far.send_all(b"xy")
    assert heard.read_now(1) == b"x"
    assert await heard.receive_some() == b"y"
    assert heard.read_now(9) is None
    far.close()
    assert heard.read_now(9) == b""
    assert (notes.up, notes.down, notes.said) == (b"abcde", b"xy", ["end"])
    await heard.aclose()
    await heard.aclose()
    assert notes.said == ["end", "closed"]


async def test_what_the_kernel_does_not_take_is_heard_when_it_does() -> None:
    heard, far, notes = pair()
    sent = bytes(range(256)) * 4_000
    size = heard.write_now(sent[:1_000], sent[1_000:])
    assert 0 < size < len(sent)
    assert notes.up == sent[:size]
    # A wait that is ended has told all, and what is put again is not told again.
    with trio.move_on_after(0.01):
        await heard.put(sent[size:])
    rest = bytes(heard.unsent)
    assert rest
    assert notes.up == sent
    async with trio.open_nursery() as nursery:
        nursery.start_soon(heard.put, rest)
        came = b""
        while len(came) < len(sent):
            came += await far.receive_some()
    assert came == sent == notes.up
    heard.reset()
    far.close()
    assert notes.said == ["closed"]


async def test_a_break_is_heard() -> None:
    heard, far, notes = pair()
    await heard.send_all(b"unread")
    far.close()
    with pytest.raises(trio.BrokenResourceError):
        await heard.receive_some()
    heard.close()
    assert notes.said == ["broke", "closed"]
