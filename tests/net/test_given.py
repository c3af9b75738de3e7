"""Sockets that a process is given to listen on."""

from __future__ import annotations

import os
import socket
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from tunnel.addresses import Address
from tunnel.errors import AddressError
from tunnel.net.given import Given, GivenSocket, take_given

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

OURS = "ours"


@pytest.fixture
def opened() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def environment(names: str = "http") -> dict[str, str]:
    return {
        "LISTEN_PID": str(os.getpid()),
        "LISTEN_FDS": "1",
        "LISTEN_FDNAMES": names,
        "LISTEN_PIDFDID": "7",
        "OTHER": "stays",
    }


def handed_over(sock: socket.socket) -> int:
    """Give the number of a socket that is another's from now on."""
    os.set_inheritable(sock.fileno(), True)
    sock.setblocking(True)
    return sock.detach()


async def test_a_socket_is_taken_with_its_variables(opened: ExitStack) -> None:
    sock = socket.create_server(("127.0.0.1", 0))
    where = Address(*sock.getsockname())
    number = handed_over(sock)
    environ = environment()
    given = take_given(environ, number)
    opened.enter_context(given._named["http"][0].sock)
    assert environ == {"OTHER": "stays"}
    assert given.at == {"http": where}
    assert not os.get_inheritable(number)
    assert not os.get_blocking(number)
    (listener,) = given.now(where)
    listener.close()
    with socket.create_connection((where.host, where.port)):
        (again,) = given.now(where)  # who came meanwhile is there
        (await again.accept()).reset()
        again.close()


@pytest.mark.parametrize(("pid", "count"), [("1", "1"), ("", "1"), (OURS, "some")])
def test_what_another_process_was_given_is_not_taken(pid: str, count: str) -> None:
    environ = environment() | {"LISTEN_FDS": count}
    if pid != OURS:
        environ["LISTEN_PID"] = pid
    assert take_given(environ).at == {}
    assert environ == {"OTHER": "stays"}


def tcp_that_is_bound() -> socket.socket:
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    return sock


def udp() -> socket.socket:
    return socket.socket(socket.AF_INET, socket.SOCK_DGRAM)


def of_a_path() -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.bind("")  # an abstract address that is free
    sock.listen()
    return sock


@pytest.mark.parametrize("make", [tcp_that_is_bound, udp, of_a_path])
def test_what_does_not_listen_for_tcp_is_refused(
    opened: ExitStack, make: Callable[[], socket.socket]
) -> None:
    number = opened.enter_context(make()).fileno()
    told = f"descriptor {number}, named 'http', is no TCP socket that listens"
    with pytest.raises(AddressError, match=told):
        take_given(environment(), number)
    os.fstat(number)  # still open: it may be anything of ours


def test_what_is_no_socket_is_refused() -> None:
    reader, writer = os.pipe()
    os.close(writer)
    with pytest.raises(AddressError, match=f"descriptor {reader}.* is no socket"):
        take_given(environment(), reader)
    os.close(reader)
    with pytest.raises(AddressError, match=f"descriptor {reader} is no socket"):
        take_given(environment(""), reader)


def test_one_for_both_families_is_everywhere(opened: ExitStack) -> None:
    for dual, host in ((True, "*"), (False, "::")):
        sock = socket.create_server(
            ("::", 0), family=socket.AF_INET6, dualstack_ipv6=dual
        )
        port = sock.getsockname()[1]
        number = handed_over(sock)
        given = take_given(environment("link"), number)
        opened.enter_context(given._named["listen"][0].sock)
        assert given.at == {"listen": Address(host, port)}


def one(host: str, name: str = "", port: int = 80) -> GivenSocket:
    return GivenSocket(3, name, socket.socket(), Address(host, port))


@pytest.mark.parametrize(
    ("hosts", "together"),
    [
        (("0.0.0.0", "::"), "*"),
        (("::1", "127.0.0.1"), "localhost"),
        (("10.0.0.1", "10.0.0.2"), "10.0.0.1"),
        (("10.0.0.1", "*"), "*"),
    ],
)
async def test_several_of_one_name_are_one_place(
    opened: ExitStack, hosts: tuple[str, ...], together: str
) -> None:
    sockets = [one(host, "https") for host in hosts]
    for each in sockets:
        opened.enter_context(each.sock)
    given = Given(sockets)
    assert given.at == {"https": Address(together, 80)}
    listeners = given.now(Address(together, 80))
    assert len(listeners) == len(hosts)
    for listener in listeners:
        listener.close()


@pytest.mark.parametrize(
    ("host", "wanted", "fits"),
    [
        ("10.0.0.1", "10.0.0.1", True),
        ("10.0.0.1", "10.0.0.2", False),
        ("10.0.0.1", "*", False),
        ("*", "0.0.0.0", True),
        ("0.0.0.0", "*", True),
        ("0.0.0.0", "10.0.0.1", False),
        ("::1", "localhost", True),
        ("10.0.0.1", "localhost", False),
    ],
)
def test_one_without_a_name_of_ours_is_known_by_its_address(
    opened: ExitStack, host: str, wanted: str, fits: bool
) -> None:
    sock = one(host, "tunnel.socket")
    opened.enter_context(sock.sock)
    given = Given([sock])
    assert sock.fits(Address(wanted, 80)) is fits
    assert not sock.fits(Address(wanted, 81))
    if fits:
        given.check([None, Address(wanted, 80)])
    else:
        told = f"given socket 3 .{sock.address}, named 'tunnel.socket'. is for nothing"
        with pytest.raises(AddressError, match=told.replace("*", r"\*")):
            given.check([None, Address(wanted, 80)])


def test_who_listens_nowhere_takes_none(opened: ExitStack) -> None:
    sock = one("127.0.0.1", "http")
    opened.enter_context(sock.sock)
    with pytest.raises(AddressError, match="is for nothing here"):
        Given([sock]).check(())
    Given().check(())
