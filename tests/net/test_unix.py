from __future__ import annotations

import os
import socket
import stat
from typing import TYPE_CHECKING

import pytest
import trio

from tunnel.addresses import Address, UnixPath
from tunnel.errors import AddressError, Exit
from tunnel.net.dial import connect
from tunnel.net.listen import listen_at, open_unix_listener, serve
from tunnel.net.sockets import FastSocket

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def where(tmp_path: Path) -> UnixPath:
    return UnixPath(str(tmp_path / "front.sock"))


async def test_only_this_user_may_connect(where: UnixPath) -> None:
    before = os.umask(0)
    try:
        async with open_unix_listener(where):
            assert stat.S_IMODE(os.stat(where.path).st_mode) == 0o600
    finally:
        os.umask(before)


async def test_the_file_goes_with_the_listener(where: UnixPath) -> None:
    async with open_unix_listener(where):
        assert os.path.exists(where.path)
    assert not os.path.exists(where.path)


async def test_a_file_that_another_put_there_meanwhile_stays(where: UnixPath) -> None:
    async with open_unix_listener(where):
        os.rename(where.path, where.path + ".old")
        with socket.socket(socket.AF_UNIX) as other:
            other.bind(where.path)
    assert os.path.exists(where.path)


async def test_a_socket_that_was_left_behind_is_replaced(where: UnixPath) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(where.path)
    async with open_unix_listener(where):
        (await connect(where)).close()


async def test_a_socket_that_somebody_listens_on_is_not_taken(where: UnixPath) -> None:
    async with open_unix_listener(where):
        with pytest.raises(AddressError) as caught:
            open_unix_listener(where)
        assert caught.value.exit_status is Exit.ADDRESS_TAKEN
        assert os.path.exists(where.path)
        (await connect(where)).close()


async def test_a_file_that_is_no_socket_is_never_removed(where: UnixPath) -> None:
    with open(where.path, "w") as file:
        file.write("precious")
    with pytest.raises(AddressError):
        open_unix_listener(where)
    with open(where.path) as file:
        assert file.read() == "precious"


async def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(AddressError) as caught:
        open_unix_listener(UnixPath(str(tmp_path / "none" / "s")))
    assert caught.value.fix == f"mkdir -p {tmp_path}/none"
    assert caught.value.exit_status is Exit.CONFIGURATION


async def test_a_front_end_serves_programs_of_this_machine(where: UnixPath) -> None:
    async def handle(stream: trio.abc.HalfCloseableStream, peer: Address) -> None:
        assert peer == Address("local", 0)
        async with stream:
            await stream.send_all(b"hello")

    listeners, bound = await listen_at(where)
    assert bound == where
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve, listeners, handle)
        async with FastSocket(await connect(where)) as stream:
            assert await stream.receive_some() == b"hello"
        nursery.cancel_scope.cancel()
    assert not os.path.exists(where.path)


async def test_a_port_of_the_kernels_choice_is_told() -> None:
    listeners, bound = await listen_at(Address("127.0.0.1", 0))
    assert isinstance(bound, Address)
    assert bound.port
    for listener in listeners:
        await listener.aclose()
