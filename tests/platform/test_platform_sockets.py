"""Sockets on each operating system: what others do instead is run here too."""

from __future__ import annotations

import os
import socket
import stat
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from tunnel.platform import sockets

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@contextmanager
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    one, other = socket.socketpair()
    with one, other:
        one.setblocking(False)
        other.setblocking(False)
        yield one, other


@contextmanager
def tcp_pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        one = socket.create_connection(listener.getsockname())
        other, _ = listener.accept()
    with one, other:
        yield one, other


def fill(write: Callable[[int, bytes], int], number: int) -> None:
    while True:
        write(number, bytes(65_536))


@pytest.mark.parametrize(
    ("read", "write"), [(sockets.read, sockets.write), (sockets._read, sockets._write)]
)
def test_bytes_go_in_and_out_by_the_descriptor(read: object, write: object) -> None:
    assert callable(read)
    assert callable(write)
    with pair() as (one, other):
        with pytest.raises(BlockingIOError):
            read(one.fileno(), 10)
        assert write(other.fileno(), memoryview(b"hello")) == 5
        assert read(one.fileno(), 3) == b"hel"
        assert read(one.fileno(), 10) == b"lo"
        other.shutdown(socket.SHUT_WR)
        assert read(one.fileno(), 10) == b""
        with pytest.raises(BlockingIOError):
            fill(write, one.fileno())


@pytest.mark.parametrize(
    ("readv", "writev"),
    [(sockets.readv, sockets.writev), (sockets._readv, sockets._writev)],
)
def test_pieces_go_in_and_out_by_the_descriptor(readv: object, writev: object) -> None:
    assert callable(readv)
    assert callable(writev)
    buffer = memoryview(bytearray(10))
    with pair() as (one, other):
        with pytest.raises(BlockingIOError):
            readv(one.fileno(), (buffer,))
        assert writev(other.fileno(), (b"he", memoryview(b"llo"))) == 5
        assert readv(one.fileno(), (buffer[:4],)) == 4
        assert readv(one.fileno(), (buffer[4:],)) == 1
        assert bytes(buffer[:5]) == b"hello"
        other.close()
        with pytest.raises(BrokenPipeError):
            writev(one.fileno(), (b"x",))


@pytest.mark.parametrize("bind", [sockets.bind_private, sockets._bind_under_umask])
def test_a_unix_socket_is_private_from_the_first_moment(
    bind: object, tmp_path: Path
) -> None:
    assert callable(bind)
    path = str(tmp_path / "app.sock")
    before = os.umask(0o002)
    try:
        with sockets.open_unix_socket() as sock:
            bind(sock, path, 0o600)
            assert sock.gettimeout() == 0
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
        with sockets.open_unix_socket() as sock, pytest.raises(OSError, match="in use"):
            bind(sock, path, 0o600)
    finally:
        assert os.umask(before) == 0o002


def test_new_sockets_do_not_block() -> None:
    with (
        sockets.open_socket(socket.AF_INET, socket.SOCK_STREAM) as tcp,
        sockets.open_socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
    ):
        assert tcp.type == socket.SOCK_STREAM
        assert udp.type == socket.SOCK_DGRAM
        assert not tcp.getblocking()
        assert not udp.getblocking()


def test_the_kernel_knows_what_passed_on_a_tcp_connection() -> None:
    with tcp_pair() as (one, other):
        one.sendall(b"12345")
        assert other.recv(3, socket.MSG_WAITALL) == b"123"
        assert sockets.unread_bytes(other.fileno()) == 2
        assert sockets.passed(other) == sockets.Passed(acked=0, received=5)
        assert sockets.passed(one) == sockets.Passed(acked=6, received=0)
        assert sockets.unsent_bytes(one.fileno()) == 0
        assert not sockets.is_closed(one)
        other.close()  # with bytes unread: a RST
        with pytest.raises(ConnectionResetError):
            one.recv(1)
        assert sockets.is_closed(one)


def test_nothing_is_known_of_what_is_not_tcp() -> None:
    with pair() as (one, _other):
        assert sockets.passed(one) is None
        assert not sockets.is_closed(one)
        with pytest.raises(OSError, match="not supported"):
            sockets.tcp_info(one, 1)
