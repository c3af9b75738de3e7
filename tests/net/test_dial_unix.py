from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from tunnel.addresses import Address, UnixPath, parse_end
from tunnel.errors import Code, LocalStreamError, UsageError
from tunnel.net.dial import connect, probe

if TYPE_CHECKING:
    from pathlib import Path


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


async def failure(target: UnixPath, deadline_s: float = 10) -> LocalStreamError:
    before = open_descriptors()
    with pytest.raises(LocalStreamError) as caught:
        await connect(target, deadline_s=deadline_s)
    assert open_descriptors() == before
    return caught.value


async def test_a_unix_socket_is_connected(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        with await connect(UnixPath(path)) as sock:
            there, _ = listener.accept()
            with there:
                sock.send(b"hello")
                assert there.recv(5) == b"hello"
        assert await probe(UnixPath(path))


async def test_a_path_without_a_file_is_refused_with_its_cause(tmp_path: Path) -> None:
    error = await failure(UnixPath(str(tmp_path / "absent")))
    assert error.code is Code.REFUSED
    assert error.what.endswith("absent: no such file")
    assert "does not run" in error.cause
    assert not await probe(UnixPath(str(tmp_path / "absent")))


async def test_a_socket_that_was_left_behind_is_refused(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
    error = await failure(UnixPath(path))
    assert error.code is Code.REFUSED
    assert "nobody listens" in error.cause


async def test_a_full_backlog_is_waited_for_and_not_taken_for_a_connection(
    tmp_path: Path,
) -> None:
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(0)
        with await connect(UnixPath(path)):
            error = await failure(UnixPath(path), deadline_s=0.1)
            assert error.code is Code.TIMEOUT
            with trio.fail_after(10):
                async with trio.open_nursery() as nursery:

                    async def second() -> None:
                        with await connect(UnixPath(path)) as sock:
                            sock.send(b"second")

                    nursery.start_soon(second)
                    await trio.testing.wait_all_tasks_blocked()
                    listener.accept()[0].close()
            while True:  # the attempt that gave up is in the backlog too, if at all
                there, _ = listener.accept()
                with there:
                    if there.recv(6) == b"second":
                        break


@pytest.mark.parametrize("path", ["relative", "", "/" + "x" * 107, "/a\0b"])
async def test_a_path_that_no_socket_can_have_is_never_tried(path: str) -> None:
    assert (await failure(UnixPath(path))).code is Code.ADDRESS_UNSUPPORTED


def test_an_end_is_an_address_or_a_unix_path() -> None:
    assert parse_end("unix:/run/x.sock") == UnixPath("/run/x.sock")
    assert str(UnixPath("/run/x.sock")) == "unix:/run/x.sock"
    assert parse_end("5432", "127.0.0.1") == Address("127.0.0.1", 5432)
    for wrong in ("unix:", "unix:x", "unix:/" + "x" * 107, "nothing"):
        with pytest.raises(UsageError):
            parse_end(wrong)


async def test_a_connect_that_is_cancelled_has_closed_its_socket(
    tmp_path: Path,
) -> None:
    before = open_descriptors()
    with trio.CancelScope() as scope:
        scope.cancel()
        try:
            await connect(UnixPath(str(tmp_path / "s")))
        except trio.Cancelled:
            # Not when the collector comes: what is being raised still holds it.
            assert open_descriptors() == before
            raise
    assert scope.cancelled_caught


@pytest.mark.parametrize("text", ["/run/app.sock", "unix:run/app.sock", "unix:"])
def test_a_unix_socket_has_both_its_word_and_an_absolute_path(text: str) -> None:
    with pytest.raises(UsageError):
        UnixPath.parse(text)
