"""A center-server that is given sockets to listen on."""

from __future__ import annotations

import socket
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from support.center import LOOPBACK, center, echo, free_ports, running, status, target

from tunnel.addresses import Address
from tunnel.center.names import NameOptions
from tunnel.center.options import ServerOptions
from tunnel.errors import AddressError
from tunnel.net.given import Given, GivenSocket

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def opened() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def given(opened: ExitStack, name: str) -> GivenSocket:
    sock = opened.enter_context(socket.create_server((LOOPBACK, 0)))
    sock.setblocking(False)
    return GivenSocket(sock.fileno(), name, sock, Address(*sock.getsockname()))


async def test_links_and_names_come_in_at_given_sockets(opened: ExitStack) -> None:
    link, http = given(opened, "link"), given(opened, "http")
    async with center(given=Given([link, http])) as where, target(echo) as to:
        assert where.address == link.address
        assert where.server.names.http == http.address
        assert await status(http.address, "no.test") == 404
        client, _ = where.client()
        async with running(client):
            stream = await client.open(str(to))
            await stream.send_all(b"hello")
            assert await stream.receive_some() == b"hello"


async def test_a_reload_keeps_the_sockets(opened: ExitStack) -> None:
    http, https = given(opened, "http"), given(opened, "tunnel.socket")
    names = NameOptions(https=https.address)
    async with center(given=Given([http, https]), names=names) as where:
        server = where.server
        before = list(server.names.web._listeners)
        # What was given by name stays, whatever is asked for.
        other = Address(LOOPBACK, free_ports()[0])
        await server.change(replace(server.options, names=replace(names, http=other)))
        assert server.names.http == http.address
        assert server.names.web._listeners == before
        # Visitors of the other one would wait in it for nobody.
        with pytest.raises(AddressError, match="is for nothing here"):
            await server.change(replace(server.options, names=NameOptions()))
        assert server.names.https == https.address
        assert await status(http.address, "no.test") == 404


async def test_a_socket_that_is_for_nothing_is_named(opened: ExitStack) -> None:
    other = given(opened, "other.socket")
    with pytest.RaisesGroup(
        pytest.RaisesExc(AddressError, match="named 'other.socket'. is for nothing"),
        flatten_subgroups=True,
    ):
        async with center(given=Given([other])):
            pytest.fail("it runs")


async def test_a_reload_may_want_a_socket_for_something_else(
    opened: ExitStack,
) -> None:
    link = given(opened, "tunnel.socket")
    names = NameOptions(http=link.address)
    async with center(given=Given([link]), names=names) as where:
        server = where.server
        other = NameOptions(https=link.address)
        await server.change(replace(server.options, names=other))
        await server.change(replace(server.options, names=names))
        assert await status(link.address, "no.test") == 404


def placed(options: ServerOptions, **at: Address) -> ServerOptions:
    """Give options whose sockets were given there."""
    own = Given()
    own.at.update(at)
    return replace(options, given=own).placed()


@pytest.mark.parametrize("name", ["listen", "https"])
def test_one_port_for_links_and_names_stays_one(name: str) -> None:
    asked, has = Address("*", 443), Address("10.0.0.1", 8443)
    options = ServerOptions(asked, names=NameOptions(https=asked))
    assert placed(options, **{name: has}).shares_https
    assert placed(options, **{name: has}).listen == has
    assert not placed(options, listen=has, https=asked).shares_https
    assert placed(options).listen == asked


def test_links_come_in_at_one_of_several_given_places() -> None:
    first, second, has = (Address("10.0.0.1", port) for port in (1, 2, 3))
    options = ServerOptions(first, also_listen=(second,))
    assert placed(options, listen=has).listens == (has, second)
    assert placed(options, listen=second).listens == (first, second)
    shared = replace(options, names=NameOptions(https=second))
    assert placed(shared, https=has).listens == (first, has)
    assert placed(shared, https=has).shares_https
