"""What an address to listen on means, on machines with and without a family."""

from __future__ import annotations

import errno
import socket
from typing import TYPE_CHECKING

import pytest
from support.processes import free_port

from tunnel.errors import AddressError
from tunnel.front.udp import open_udp_port
from tunnel.net import bind as bound
from tunnel.net.bind import bind_all, is_in_use
from tunnel.net.listen import open_listener

if TYPE_CHECKING:
    from collections.abc import Callable

REAL = socket.socket.bind


def names(sockets: list[socket.socket]) -> list[tuple[str, int]]:
    found = [sock.getsockname()[:2] for sock in sockets]
    for sock in sockets:
        sock.close()
    return found


async def bind(host: str, port: int = 0) -> list[tuple[str, int]]:
    return names(await bind_all(host, port, socket.SOCK_STREAM, lambda _: None, 1))


@pytest.fixture
def binding(monkeypatch: pytest.MonkeyPatch) -> list[Callable[[str], int]]:
    """What binding an address meets: the first is asked, 0 lets it be bound."""
    meets: list[Callable[[str], int]] = []

    class Socket(socket.socket):
        def bind(self, where: tuple[str, int]) -> None:  # type: ignore[override]
            if meets and (number := meets[0](where[0])):
                raise OSError(number, "no")
            super().bind(where)

    monkeypatch.setattr(socket, "socket", Socket)
    return meets


@pytest.mark.parametrize(
    ("host", "hosts"),
    [
        ("*", ["0.0.0.0", "::"]),
        ("localhost", ["127.0.0.1", "::1"]),
        ("LocalHost.", ["127.0.0.1", "::1"]),
        ("0.0.0.0", ["0.0.0.0"]),
        ("::", ["::"]),
        ("127.0.0.1", ["127.0.0.1"]),
        ("::1", ["::1"]),
    ],
)
async def test_an_address_is_all_that_it_says_on_one_port(
    host: str, hosts: list[str]
) -> None:
    found = await bind(host)
    assert [name for name, _ in found] == hosts
    assert len({port for _, port in found}) == 1
    assert found[0][1] > 0


async def test_each_wildcard_leaves_the_other_family_alone() -> None:
    port = free_port()
    (one,) = await open_listener("::", port)
    (two,) = await open_listener("0.0.0.0", port)
    for listener in (one, two):
        listener.socket.close()


@pytest.mark.parametrize("lacking", ["::1", "127.0.0.1"])
@pytest.mark.parametrize("number", [errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL])
async def test_a_machine_without_a_family_gives_the_other(
    binding: list[Callable[[str], int]], lacking: str, number: int
) -> None:
    binding.append(lambda host: number if host == lacking else 0)
    found = await bind("localhost")
    assert [host for host, _ in found] == [
        host for host in ("127.0.0.1", "::1") if host != lacking
    ]
    with pytest.raises(AddressError):
        await bind(lacking)  # who names it wants it


async def test_a_machine_without_any_says_so(
    binding: list[Callable[[str], int]],
) -> None:
    binding.append(lambda _host: errno.EADDRNOTAVAIL)
    with pytest.raises(AddressError, match="not an address of this machine"):
        await bind("localhost")


async def test_a_free_number_is_looked_for_until_both_families_have_it(
    binding: list[Callable[[str], int]],
) -> None:
    busy = iter([errno.EADDRINUSE, errno.EADDRINUSE, 0])
    binding.append(lambda host: next(busy) if host == "::1" else 0)
    found = await bind("localhost")
    assert len(found) == 2
    assert found[0][1] == found[1][1]


async def test_the_search_for_a_free_number_ends(
    binding: list[Callable[[str], int]],
) -> None:
    asked: list[str] = []

    def meet(host: str) -> int:
        asked.append(host)
        return errno.EADDRINUSE if host == "::1" else 0

    binding.append(meet)
    with pytest.raises(AddressError) as caught:
        await bind("localhost")
    assert is_in_use(caught.value)
    assert asked.count("::1") == bound.TRIES


async def test_a_port_that_one_family_has_lost_is_not_opened_on_the_other() -> None:
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as holder:
        port = holder.getsockname()[1]
        with pytest.raises(AddressError, match=f"port {port} is already in use on ::1"):
            await open_listener("localhost", port)
        names_left = await open_listener("127.0.0.1", port)
        for listener in names_left:
            listener.socket.close()


async def test_a_udp_port_is_open_on_both_families_too() -> None:
    sockets = await open_udp_port("*", 0)
    found = [sock.getsockname()[:2] for sock in sockets]
    for sock in sockets:
        sock.close()
    assert [host for host, _ in found] == ["0.0.0.0", "::"]
    assert found[0][1] == found[1][1]
