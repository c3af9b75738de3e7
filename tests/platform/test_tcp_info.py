"""What a kernel says of a TCP connection, and what an older one leaves out."""

from __future__ import annotations

import socket
import sys
from contextlib import suppress

import pytest

from tunnel.platform import tcp_info
from tunnel.platform.sockets import tcp_info as raw_info

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux alone has it")

SIZE = 100_000


@pytest.fixture
def ends() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        dialled = socket.create_connection(listener.getsockname())
        return dialled, listener.accept()[0]


def test_a_connection_is_told_as_it_is(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = ends
    with ours, theirs:
        ours.sendall(bytes(SIZE))
        left = SIZE
        while left:
            left -= len(theirs.recv(left))
        theirs.sendall(b"x")  # with the last acknowledgement
        assert ours.recv(1) == b"x"
        info = tcp_info.read(ours)
        assert info is not None
        assert 0 < info.rtt_s < 1
        assert info.mss >= 536
        assert info.cwnd >= 1
        assert 500 < info.mss < info.path_mtu
        assert info.announced_mss > 500
        assert info.sent_segments is None or info.sent_segments > info.retransmits
        assert info.unacked * info.mss < SIZE + info.mss
        if info.sent_bytes is not None:
            assert info.sent_bytes >= SIZE
            assert info.repeated_bytes is not None


def test_what_nobody_takes_is_in_the_pipe(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = ends
    with ours, theirs:
        ours.setblocking(False)
        passed = 0
        with suppress(BlockingIOError):
            while True:
                passed += ours.send(bytes(SIZE))
        info = tcp_info.read(ours)
        assert info is not None
        assert info.full
        assert 0 < info.in_pipe_bytes <= passed + info.mss


def test_an_older_kernel_gives_less(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = ends
    with ours, theirs:
        raw = raw_info(ours, 216)
    whole = tcp_info.parse(raw)
    assert whole is not None
    ends_of = {
        "sent_segments": 140,
        "notsent_bytes": 148,
        "min_rtt_s": 152,
        "delivery_bytes_per_s": 168,
        "busy_s": 176,
        "rwnd_limited_s": 184,
        "sndbuf_limited_s": 192,
        "sent_bytes": 208,
        "repeated_bytes": 216,
    }
    for size in (104, 140, 148, 152, 168, 176, 184, 192, 208, 215):
        cut = tcp_info.parse(raw[:size])
        assert cut is not None
        for name, value in whole._asdict().items():
            known = size >= ends_of.get(name, 0)
            assert getattr(cut, name) == (value if known else None), name
        assert cut.in_pipe_bytes >= 0
    assert tcp_info.parse(raw[:103]) is None


def test_the_places_of_its_fields_are_those_of_the_kernel() -> None:
    raw = bytearray(216)
    for at, size, value in (
        (16, 4, 1_448), (24, 4, 7), (68, 4, 100_500), (72, 4, 2_000), (80, 4, 10),
        (60, 4, 1_500), (84, 4, 1_460), (100, 4, 3), (136, 4, 900),
        (144, 4, 5_000), (148, 4, 100_000), (160, 8, 250_000),
        (168, 8, 9_000_000), (176, 8, 1_000_000), (184, 8, 500_000),
        (200, 8, 1_000), (208, 8, 20),
    ):  # fmt: skip
        raw[at : at + size] = value.to_bytes(size, sys.byteorder)
    assert tcp_info.parse(bytes(raw)) == tcp_info.TcpInfo(
        rtt_s=0.1005,
        rttvar_s=0.002,
        cwnd=10,
        mss=1_448,
        unacked=7,
        retransmits=3,
        path_mtu=1_500,
        announced_mss=1_460,
        sent_segments=900,
        notsent_bytes=5_000,
        min_rtt_s=0.1,
        delivery_bytes_per_s=250_000,
        app_limited=False,
        busy_s=9.0,
        rwnd_limited_s=1.0,
        sndbuf_limited_s=0.5,
        sent_bytes=1_000,
        repeated_bytes=20,
    )


def test_of_other_sockets_nothing_is_known() -> None:
    left, right = socket.socketpair()
    with left, right:
        assert tcp_info.read(left) is None
    assert tcp_info.read(left) is None
