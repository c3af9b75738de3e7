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

HTTP = "http"


@pytest.fixture
def opened() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def given(opened: ExitStack, name: str) -> GivenSocket:
    sock = opened.enter_context(socket.create_server((LOOPBACK, 0)))
    sock.setblocking(False)
    return GivenSocket(sock.fileno(), name, sock, Address(*sock.getsockname()))


async def test_links_and_names_come_in_at_given_sockets(opened: ExitStack) -> None:
    link, http = given(opened, "link"), given(opened, HTTP)
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
    http, https = given(opened, HTTP), given(opened, "tunnel.socket")
    names = NameOptions(https=https.address)
    async with center(given=Given([http, https]), names=names) as where:
        server = where.server
        before = list(server.names.web._listeners)
        # What was given by name stays, whatever is asked for.
        other = Address(LOOPBACK, free_ports()[0])
        await server.change(replace(server.options, names=replace(names, http=other)))
        assert server.names.http == http.address
        assert server.names.web._listeners == before
        # The other one is left, and taken again when it is wanted.
        await server.change(replace(server.options, names=NameOptions()))
        assert server.names.places(server.options.names)[server.names.tls] is None
        with socket.create_connection((LOOPBACK, https.address.port)) as waits:
            await server.change(replace(server.options, names=names))
            assert server.names.https == https.address
            waits.sendall(b"no TLS")
        assert await status(http.address, "no.test") == 404


async def test_a_socket_that_is_for_nothing_is_named(opened: ExitStack) -> None:
    other = given(opened, "other.socket")
    with pytest.RaisesGroup(
        pytest.RaisesExc(AddressError, match="named 'other.socket'. is for nothing"),
        flatten_subgroups=True,
    ):
        async with center(given=Given([other])):
            pytest.fail("it runs")


@pytest.mark.parametrize("name", ["listen", "https"])
def test_one_port_for_links_and_names_stays_one(name: str) -> None:
    asked, has = Address("*", 443), Address("10.0.0.1", 8443)
    options = ServerOptions(asked, names=NameOptions(https=asked))
    assert options.at({name: has}).shares_https
    assert options.at({name: has}).listen == has
    two = {"listen": has, "https": asked}
    assert not options.at(two).shares_https
    assert options.at({}) == options
