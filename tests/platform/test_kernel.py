"""What the kernel tells of this machine."""

from __future__ import annotations

import os
import socket
import sys

import pytest

from tunnel.platform import kernel

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux tells")


def test_who_listens_is_found_while_it_does() -> None:
    for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        with socket.create_server((host, 0), family=family) as listener:
            port = listener.getsockname()[1]
            assert kernel.listeners(port) == [os.getpid()]
            with socket.create_connection((host, port)):
                assert kernel.listeners(port) == [os.getpid()]
        assert kernel.listeners(port) == []


@pytest.mark.parametrize(
    ("words", "ours"),
    [
        (("tunnel", "up"), True),
        (("/usr/bin/python3", "/opt/bin/tunnel", "up"), True),
        (("python3", "-m", "tunnel", "up"), True),
        (("python3", "-X", "dev", "-uE", "-m", "tunnel", "up"), True),
        (("pypy3", "-Xdev", "/src/tunnel/__main__.py", "up"), True),
        (("tunnels", "up"), False),
        (("vim", "tunnel"), False),
        (("ssh", "tunnel", "up"), False),
        (("python3", "serve.py", "tunnel"), False),
        (("python3", "-c", "tunnel"), False),
        (("python3", "-X", "tunnel", "-m", "http.server"), False),
        (("python3",), False),
        (("less", "-R", "-S", "tunnel"), False),
    ],
)
def test_a_command_line_of_this_program_is_known(
    words: tuple[str, ...], ours: bool
) -> None:
    line = "".join(f"{word}\0" for word in words).encode()
    assert kernel.is_ours(line) is ours


def test_a_process_that_is_gone_is_none_of_this_program() -> None:
    assert not kernel.is_tunnel(os.getpid())
    assert not kernel.is_tunnel(1 << 30)


def test_settings_and_the_clock_are_read_or_unknown() -> None:
    assert kernel.network_setting("ipv4/ip_local_port_range") is not None
    assert kernel.network_setting("ipv4/no_such_setting") is None
    assert kernel.clock_is_kept() in (True, False, None)


def test_a_connection_tells_its_congestion_control() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()) as conn,
    ):
        said = kernel.network_setting("ipv4/tcp_congestion_control")
        assert kernel.congestion_control(conn) == said
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        assert kernel.congestion_control(other) == ""
