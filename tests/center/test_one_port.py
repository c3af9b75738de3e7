"""Links, published names and passed-through names on one port."""

from __future__ import annotations

import ssl
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import trio
import trustme
from support.center import (
    GET,
    LOOPBACK,
    ask,
    center,
    echo,
    free_ports,
    page,
    running,
    target,
)

from tunnel.access.networks import Networks
from tunnel.addresses import Address
from tunnel.center.events import MappingReady
from tunnel.center.exit.tcp import exit_to
from tunnel.center.names import NameOptions
from tunnel.errors import AddressError
from tunnel.front.http import sni
from tunnel.proto.frames import MappingEntry, MappingType

if TYPE_CHECKING:
    from pathlib import Path

    from support.center import Center

SHOP = MappingEntry(MappingType.HTTP, "", "shop")
MAIL = MappingEntry(MappingType.HTTPS, "", "mail")


def one_port(folder: Path, ca: trustme.CA) -> tuple[int, NameOptions]:
    """Return a free port, and the options that share it with links."""
    leaf = ca.issue_cert("shop.t.test")
    cert, key = folder / "cert.pem", folder / "key.pem"
    leaf.cert_chain_pems[0].write_to_path(cert)
    leaf.private_key_pem.write_to_path(key)
    port = free_ports()[0]
    https = Address(LOOPBACK, port)
    return port, NameOptions(https=https, domain="t.test", certificate=(cert, key))


async def tls(
    at: Address, host: str, ca: trustme.CA, alpn: str = ""
) -> trio.SSLStream[trio.SocketStream]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    ca.configure_trust(context)
    if alpn:
        context.set_alpn_protocols([alpn])
    tcp = await trio.open_tcp_stream(at.host, at.port)
    stream = trio.SSLStream(tcp, context, server_hostname=host, https_compatible=True)
    try:
        await stream.do_handshake()
    except BaseException:
        await trio.aclose_forcefully(tcp)
        raise
    return stream


async def tls_page(at: Address, host: str, ca: trustme.CA) -> int:
    async with await tls(at, host, ca) as stream:
        await stream.send_all(GET % host.encode())
        return int(bytes(await stream.receive_some()).split()[1])


def links_of(where: Center) -> int:
    return len(where.server.clients)


async def test_links_names_and_passed_names_come_in_at_one_port(tmp_path: Path) -> None:
    ca = trustme.CA()
    port, names = one_port(tmp_path, ca)
    mail = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert("mail.t.test").configure_cert(mail)

    async def mail_page(stream: trio.SocketStream) -> None:
        inside = trio.SSLStream(stream, mail, server_side=True, https_compatible=True)
        await inside.receive_some()
        await inside.send_all(b"HTTP/1.1 201 Mail\r\nContent-Length: 0\r\n\r\n")
        await inside.aclose()

    async with (
        center(tmp_path / "state", port=port, names=names) as where,
        target(page) as shop_at,
        target(mail_page) as mail_at,
        target(echo) as echo_at,
    ):
        assert where.address.port == port
        client, _ = where.client()
        async with running(client):
            await client.publish(SHOP, exit_to(shop_at))
            await client.publish(MAIL, exit_to(mail_at))
            stream = await client.open(str(echo_at))
            assert await tls_page(where.address, "shop.t.test", ca) == 200
            assert await tls_page(where.address, "mail.t.test", ca) == 201
            # Another certificate for visitors is nothing to the link.
            await where.server.change(
                replace(where.server.options, names=one_port_again(names, ca))
            )
            await stream.send_all(b"still here")
            assert await stream.receive_some() == b"still here"
            assert links_of(where) == 1
            assert await tls_page(where.address, "shop.t.test", ca) == 200


def one_port_again(names: NameOptions, ca: trustme.CA) -> NameOptions:
    """Return options with another certificate in the same files."""
    assert names.certificate is not None
    leaf = ca.issue_cert("shop.t.test")
    leaf.cert_chain_pems[0].write_to_path(names.certificate[0])
    leaf.private_key_pem.write_to_path(names.certificate[1])
    return names


async def test_a_link_takes_no_place_of_a_visitor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sni, "HELLOS", 4)
    monkeypatch.setattr("tunnel.center.names.MAX_VISITORS", 1)
    ca = trustme.CA()
    port, names = one_port(tmp_path, ca)
    async with (
        center(tmp_path / "state", port=port, names=names) as where,
        target(page) as at,
    ):
        client, _ = where.client()
        others = [where.client()[0] for _ in range(6)]
        async with running(client):
            await client.publish(SHOP, exit_to(at))
            async with trio.open_nursery() as nursery:
                for other in others:
                    await nursery.start(other.run)
                assert links_of(where) == 7
                # The place is there, and only one.
                async with await tls(where.address, "shop.t.test", ca):
                    with pytest.raises(trio.BrokenResourceError):
                        await tls(where.address, "shop.t.test", ca)
                    # With all places taken a link comes in all the same.
                    late = where.client()[0]
                    async with running(late):
                        assert links_of(where) == 8
                await where.until(lambda: links_of(where) == 7)
                assert await tls_page(where.address, "shop.t.test", ca) == 200
                for other in others:
                    other.stop()


async def test_nobody_is_a_link_where_links_have_a_port_of_their_own(
    tmp_path: Path,
) -> None:
    ca = trustme.CA()
    port, names = one_port(tmp_path, ca)
    async with center(tmp_path / "state", names=names) as where:
        at = Address(LOOPBACK, port)
        async with await tls(at, "shop.t.test", ca, alpn="prot/1") as visitor:
            assert visitor.selected_alpn_protocol() is None
        assert not links_of(where)


async def test_links_may_move_to_the_port_of_names_and_away(tmp_path: Path) -> None:
    ca = trustme.CA()
    port, names = one_port(tmp_path, ca)
    async with center(tmp_path / "state") as where:
        server = where.server
        first, _ = where.client()
        async with running(first):
            here = Address(LOOPBACK, port)
            shared = replace(server.options, listen=here, names=names)
            assert await server.change(shared) == here
            with pytest.raises(OSError, match="attempts"):
                await trio.open_tcp_stream(LOOPBACK, where.address.port)
            async with running(where.client(port=port)[0]):
                assert links_of(where) == 2
            apart = replace(server.options, listen=where.address)
            assert await server.change(apart) == where.address
            async with running(where.client()[0]):
                await where.until(lambda: links_of(where) == 2)


async def test_visitors_of_http_are_sent_to_https(tmp_path: Path) -> None:
    ca = trustme.CA()
    _, names = one_port(tmp_path, ca)
    names = replace(names, http=Address(LOOPBACK, 0), redirect=True)
    async with center(names=names) as where, target(page) as at:
        client, notices = where.client()
        http, https = where.server.names.http, where.server.names.https
        assert http is not None
        assert https is not None
        url = f"https://shop.t.test:{https.port}"

        async def location(target: str, *fields: str) -> str:
            head = "\r\n".join((f"GET {target} HTTP/1.1", *fields, "", ""))
            answer = (await ask(http, head.encode())).decode()
            return answer.partition("Location: ")[2].partition("\r\n")[0]

        host, close = "Host: shop.t.test", "Connection: close"
        async with running(client):
            assert not await location("/", host, close)  # nobody has the name
            await client.publish(SHOP, exit_to(at))
            ready = await notices.next(MappingReady)
            assert ready == MappingReady(ready.name, replace_host(https), True)
            assert await location("/a?b=%2F", host, close) == f"{url}/a?b=%2F"
            assert await location(f"http://shop.t.test:{http.port}/x", host, close)
            assert await tls_page(https, "shop.t.test", ca) == 200
            await where.server.change(
                replace(where.server.options, names=replace(names, redirect=False))
            )
            assert not await location("/", host, close)


def replace_host(at: Address) -> Address:
    return Address("shop.t.test", at.port)


async def test_a_visitor_whose_tls_ended_at_a_proxy_is_not_sent_in_circles(
    tmp_path: Path,
) -> None:
    ca = trustme.CA()
    _, names = one_port(tmp_path, ca)
    names = replace(names, http=Address(LOOPBACK, 0), redirect=True)
    proxy = Networks.parse(["127.0.0.1"]).allowed
    async with center(names=names, trusted=proxy) as where, target(page) as at:
        client, _ = where.client()
        async with running(client):
            await client.publish(SHOP, exit_to(at))
            http = where.server.names.http
            assert http is not None
            said = b"GET / HTTP/1.1\r\nHost: shop.t.test\r\nConnection: close\r\n"
            there = b"X-Forwarded-For: 192.0.2.1\r\nX-Forwarded-Proto: %s\r\n\r\n"
            answers = [
                await ask(http, said + there % proto) for proto in (b"https", b"http")
            ]
            assert [int(one.split()[1]) for one in answers] == [200, 308]


async def test_one_of_several_addresses_for_links_may_be_that_of_names(
    tmp_path: Path,
) -> None:
    ca = trustme.CA()
    port, names = one_port(tmp_path, ca)
    shared = Address(LOOPBACK, port)
    async with center(tmp_path / "state", names=names) as where, target(echo) as to:
        own = where.address
        options = where.server.options
        for listens in ((own, shared), (shared, own), (own,), (shared,)):
            await where.server.change(
                replace(options, listen=listens[0], also_listen=listens[1:])
            )
            assert [one.port for one in where.server.addresses] == [
                one.port or own.port for one in listens
            ]
            for at in listens:
                client, _ = where.client(port=at.port or own.port)
                async with running(client):
                    stream = await client.open(str(to))
                    await stream.send_all(b"hello")
                    assert await stream.receive_some() == b"hello"


async def test_a_plain_server_never_shares_a_port_whatever_a_reload_says() -> None:
    """Its links could not be told from visitors, and nobody would have come in."""
    async with center() as where:
        names = NameOptions(https=where.address, domain="t.test")
        shared = replace(
            where.server.options, listen=where.address, names=names, plain=False
        )
        with pytest.raises(AddressError, match="already in use"):
            await where.server.change(shared)
        async with running(where.client()[0]):
            assert links_of(where) == 1
