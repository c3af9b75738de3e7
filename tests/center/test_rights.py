"""A client that asks for what its user has no right to, past all checks of its own."""

from __future__ import annotations

import gc
import logging
import re
import socket
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from ipaddress import ip_address
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing
from support import logs
from support.center import LOOPBACK, center, running, user
from support.names import found, resolve_to

from tunnel.access.join import make_token
from tunnel.access.networks import Networks
from tunnel.access.rules import parse_rights
from tunnel.addresses import Address, UnixPath
from tunnel.center.denials import MAX_LINES
from tunnel.center.events import MappingReady
from tunnel.center.names import NameOptions
from tunnel.errors import Code, RemoteStreamError, StreamError
from tunnel.front.dialer import Dialer
from tunnel.front.proxy import handle_app
from tunnel.net.lookup import lookups
from tunnel.platform.addresses import OWN_ADDRESSES
from tunnel.proto.frames import (
    BindTarget,
    MappingAnswer,
    MappingEntry,
    MappingOp,
    MappingType,
    NameTarget,
    TcpTarget,
    UdpTarget,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from support.center import Center

    from tunnel.center.client import CenterClient
    from tunnel.net.lookup import Found
    from tunnel.proto.frames import Target

NAMES = NameOptions(Address(LOOPBACK, 0), Address(LOOPBACK, 0), "t.example")
LOOPBACKS = (
    "127.0.0.1", "127.1", "2130706433", "0x7f000001", "0177.0.0.1", "017700000001",
    "localhost", "LocalHost.", "127.255.255.254", "0.0.0.0", "::", "::1",
    "::ffff:127.0.0.1", "::ffff:0:127.0.0.1", "::127.0.0.1", "64:ff9b::127.0.0.1",
    "64:ff9b:1::127.0.0.1", "2002:7f00:1::1", "2001:0:7f00:1::1",
)  # fmt: skip
OTHERS = (
    "10.0.0.1", "192.168.0.1", "172.16.0.1", "100.64.0.1", "169.254.169.254",
    "168.63.129.16", "100.100.100.200", "fd00:ec2::254", "fe80::1", "ff02::1",
    "224.0.0.1", "255.255.255.255", "2002:a9fe:a9fe::1", "64:ff9b::169.254.169.254",
)  # fmt: skip


@asynccontextmanager
async def guest(
    *may: str, name: str = "guest", ports: range | None = None
) -> AsyncIterator[tuple[Center, CenterClient]]:
    """A server, and a client whose user has these rights only."""
    token = make_token()
    others = (user(token, name, *may, owner=False),)
    async with center(names=NAMES, others=others, ports=ports) as where:
        client, _ = where.client(name=name, token=token)
        async with running(client):
            yield where, client


async def refusal(
    client: CenterClient, target: Target, exit_name: str | None = None
) -> RemoteStreamError:
    """Open past the checks of our own, and expect the answer no."""
    assert client.session is not None
    with pytest.raises(RemoteStreamError) as caught:
        await client.session.open(target, exit_name=exit_name)
    assert caught.value.code is Code.NOT_ALLOWED, target
    return caught.value


async def ask(client: CenterClient, *entries: MappingEntry) -> list[MappingAnswer]:
    assert client.session is not None
    return await client.session.ask_mapping(MappingOp.ADD, list(entries))


@contextmanager
def trap() -> Iterator[tuple[int, list[socket.socket]]]:
    """A port on all loopbacks to which nobody may come, with its listeners."""
    with socket.create_server(
        ("::", 0), family=socket.AF_INET6, dualstack_ipv6=True
    ) as sock:
        sock.setblocking(False)
        yield sock.getsockname()[1], [sock]
        with pytest.raises(BlockingIOError):
            sock.accept()


def tcp(port: int, host: str = "", count: int = 1) -> MappingEntry:
    name = f"{host}-{port}-{count}"
    return MappingEntry(MappingType.TCP, name, host, port, count)


# A token for one port ----------------------------------------------------------------


async def test_a_token_for_one_port_publishes_nothing_else(ports: range) -> None:
    """S1, S17: each entry is decided, whatever the login was for."""
    one, *_ = ports
    async with guest(f"tcp:{one}", ports=ports) as (where, client):
        (answer,) = await ask(client, tcp(one))
        assert answer.code is Code.NORMAL
        wanted = {
            tcp(0): "ports:1",
            tcp(one + 1): f"tcp:{one + 1}",
            tcp(22): "tcp:22",
            tcp(53): "tcp:53",
            tcp(80): "tcp:80",
            tcp(one, count=2): f"tcp:{one}-{one + 1}",
            tcp(one, "127.0.0.2"): f"tcp:127.0.0.2:{one}",
            tcp(one, "0.0.0.0"): f"tcp:0.0.0.0:{one}",
            tcp(one, "::ffff:127.0.0.1"): f"tcp:127.0.0.1:{one}",
            MappingEntry(MappingType.UDP, "u", "", one): f"udp:{one}",
            MappingEntry(MappingType.HTTP, "h", "shop"): "http:shop",
            MappingEntry(MappingType.HTTP, "h", "guest"): "http:guest",
            MappingEntry(MappingType.HTTP, "h", "*.test"): "http:*.test",
            MappingEntry(MappingType.HTTP, "h", "*.t.example"): "http:*",
            MappingEntry(MappingType.HTTPS, "s", "Shop.T.example."): "https:shop",
            MappingEntry(MappingType.EXIT, "e", "home"): "be-exit:home",
        }
        answers = await ask(client, *wanted)
        for (entry, right), got in zip(wanted.items(), answers, strict=True):
            assert got.code is Code.NOT_ALLOWED, entry
            assert got.reason == f"guest has no right {right}"
        assert len(where.server.mappings) == 1


async def test_a_token_for_one_port_reaches_nothing(ports: range) -> None:
    """S1: chisel asked for rights at the login only (GHSA-24fp-5v3p-rvpw)."""
    names = resolve_to(LOOPBACK)
    async with guest(f"tcp:{ports[0]}", ports=ports) as (where, client):
        home, _ = where.client()
        async with running(home):
            await home.be_exit("home", Networks.parse(["127.0.0.0/8"]))
            with trap() as (port, _):
                for host in (*LOOPBACKS, *OTHERS, "db.lan", "198.51.100.7"):
                    at = Address(host, port)
                    error = await refusal(client, TcpTarget(at))
                    assert "has no right reach:" in error.what
                    error = await refusal(client, BindTarget(at))
                    anybody = host in ("0.0.0.0", "::")
                    right = "tcp:*" if anybody else "reach:"
                    assert f"has no right {right}" in error.what
                    error = await refusal(
                        client, TcpTarget(Address(host, port)), "home"
                    )
                    assert error.what == "guest has no right exit:home"
                error = await refusal(client, BindTarget(Address("0.0.0.0", 0)))
                assert error.what == "guest has no right tcp:*"
                assert (
                    "has no right reach:*:*"
                    in (await refusal(client, UdpTarget(""))).what
                )
                for path in ("/run/docker.sock", "/run/../run/docker.sock"):
                    error = await refusal(client, UnixPath(path))
                    assert error.what == f"guest has no right unix:{path}"
    assert not names.asked, "the resolver works for nobody who may reach nothing"


# Wide rights -------------------------------------------------------------------------


async def test_wide_rights_reach_no_loopback_in_any_disguise() -> None:
    """A1."""
    async with guest("socks", "reach:0.0.0.0/0:*", "reach:[::]/0:*") as (_, client):
        with trap() as (port, _):
            for host in (*LOOPBACKS, *OTHERS):
                error = await refusal(client, TcpTarget(Address(host, port)))
                assert error.what.startswith("guest has no right reach:"), host


async def test_wide_rights_send_no_datagram_to_loopback_in_any_disguise() -> None:
    """A1, by UDP."""
    with (
        socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as allowed,
    ):
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.bind(("::", 0))
        sock.setblocking(False)
        allowed.bind(("127.0.0.2", 0))
        port, other = sock.getsockname()[1], allowed.getsockname()[1]
        async with guest("socks", f"reach:127.0.0.2:{other}") as (_, client):
            ours = await client.associate()
            for host in (*LOOPBACKS, *OTHERS):
                ours.send(Address(host, port), b"no")
            ours.send(Address("127.0.0.2", other), b"yes")
            said, source = await trio.to_thread.run_sync(allowed.recvfrom, 100)
            assert said == b"yes"
            # Names went to the resolver's threads: this one comes behind them all.
            ours.send(Address("127.0.2", other), b"by name")
            assert await trio.to_thread.run_sync(allowed.recv, 100) == b"by name"
            allowed.sendto(b"answer", source)
            assert (await ours.receive())[1] == b"answer"
            with pytest.raises(BlockingIOError):
                sock.recv(100)


async def test_a_name_that_changes_its_answer_opens_nothing() -> None:
    """A2."""
    answers: list[list[Found]] = []
    with trap() as (port, _), socket.create_server(("127.0.0.2", 0)) as service:
        service_port = service.getsockname()[1]
        async with guest("socks", f"reach:127.0.0.2:{service_port}") as (_, client):
            resolve_to()
            asked: list[bytes] = []

            def answer(host: bytes) -> list[Found]:
                asked.append(host)
                return answers.pop(0)

            lookups().ask = answer
            name = Address("rebind.example", service_port)
            # One look-up for each connection, all of its addresses are filtered, and
            # what the next look-up would say comes too late.
            for addresses in (
                ["127.0.0.2"],
                ["127.0.0.1", "::1", "::ffff:127.0.0.1", "127.0.0.2"],
            ):
                answers[:] = [[found(ip) for ip in addresses], [found(LOOPBACK)]]
                asked.clear()
                stream = await client.open(TcpTarget(name))
                local, _ = service.accept()
                local.close()
                stream.reset(Code.RESET)
                assert len(asked) == 1
            for addresses in (["127.0.0.1"], ["::1", "127.0.0.1"], ["fe80::1"]):
                for at in (port, service_port):
                    answers[:] = [[found(ip) for ip in addresses]]
                    target = TcpTarget(Address("rebind.example", at))
                    error = await refusal(client, target)
                    assert error.what.startswith("guest has no right reach:")


async def test_a_named_host_is_reached_only_where_it_is_open() -> None:
    with trap() as (port, _):
        async with guest(f"reach:db.lan:{port}") as (_, client):
            names = resolve_to(LOOPBACK)
            error = await refusal(client, TcpTarget(Address("db.lan", port)))
            assert error.what == f"guest has no right reach:127.0.0.1:{port}"
            assert len(names.asked) == 1
            error = await refusal(client, TcpTarget(Address("else.lan", port)))
            assert error.what == f"guest has no right reach:else.lan:{port}"
            assert len(names.asked) == 1, "nobody asked what it may not have"


async def test_an_own_address_is_closed_whatever_its_range(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert ip_address("127.0.0.9") in OWN_ADDRESSES  # all of 127/8 is routed here
    with socket.create_server(("127.0.0.9", 0)) as service:
        port = service.getsockname()[1]
        monkeypatch.setattr("tunnel.access.closed._IPV4", [])  # as if it were public
        for may, reached in (
            (f"reach:*:{port}", False),
            (f"reach:127.0.0.0/8:{port}", False),
            (f"reach:127.0.0.9:{port}", True),
        ):
            async with guest(may) as (_, client):
                target = TcpTarget(Address("127.0.0.9", port))
                if reached:
                    (await client.open(target)).reset(Code.RESET)
                else:
                    await refusal(client, target)


async def test_a_right_opens_what_it_names() -> None:
    with socket.create_server((LOOPBACK, 0)) as service:
        port = service.getsockname()[1]
        rights = (f"reach:127.0.0.1:{port}", "tcp:127.0.0.1:*", "exit:home")
        async with guest(*rights) as (where, client):
            for host in ("127.0.0.1", "localhost", "::ffff:127.0.0.1"):
                stream = await client.open(TcpTarget(Address(host, port)))
                service.accept()[0].close()
                stream.reset(Code.RESET)
            await refusal(client, BindTarget(Address(LOOPBACK, 0)))
            bound = await client.bind(Address(LOOPBACK, port))
            await bound.aclose()
            home, notices = where.client()
            async with running(home):
                await home.be_exit("home", Networks())
                await notices.next(MappingReady)
                # The exit has the last word, on the address that it dials.
                for host in LOOPBACKS[:1] + LOOPBACKS[9:12]:
                    error = await refusal(
                        client, TcpTarget(Address(host, port)), "home"
                    )
                    assert "may not be reached from here" in error.what


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "2130706433"])
async def test_an_app_hears_of_the_missing_right_in_its_own_words(host: str) -> None:
    """A4: the server's own port for links is closed, to SOCKS and HTTP alike."""
    async with guest("socks") as (where, client):
        port = where.address.port
        name = host.encode()
        socks = b"\x05\x01\x00\x05\x01\x00\x03" + bytes((len(name),)) + name
        host = f"[{host}]" if ":" in host else host
        get = f"GET http://{host}:{port}/ HTTP/1.1\r\nHost: x\r\n\r\n".encode()
        connect = f"CONNECT {host}:{port} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
        for said, answer in (
            (socks + port.to_bytes(2, "big"), b"\x05\x00\x05\x02"),
            (connect, b"HTTP/1.1 403 "),
            (get, b"HTTP/1.1 403 "),
        ):
            heard = await app_hears(client, said)
            assert heard.startswith(answer), heard
            if said is get:
                assert b"guest has no right reach:" in heard


async def app_hears(client: CenterClient, said: bytes) -> bytes:
    """Say something to a proxy that leaves at the server; return all of the answer."""
    app, ours = trio.testing.memory_stream_pair()
    heard = b""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(
            handle_app, ours, Dialer(client.open), Address("127.0.0.1", 1)
        )
        await app.send_all(said)
        while piece := await app.receive_some():
            heard += piece
            if b"</html>" in heard:
                break
        await app.aclose()
    return heard


# Limits of new users -----------------------------------------------------------------


async def test_a_new_user_has_so_many_ports_of_the_range(ports: range) -> None:
    one, _, three = ports
    async with guest("ports:2", "names:guest", ports=ports) as (_, client):
        first, second, third = await ask(client, tcp(one), tcp(0), tcp(three))
        assert first.code is second.code is Code.NORMAL
        assert third == MappingAnswer(
            Code.RESOURCE, reason="guest has no right ports:3"
        )
        (again,) = await ask(client, tcp(one))
        assert again.code is Code.NORMAL, "what it has it keeps"
        (too_wide,) = await ask(client, tcp(0, count=3))
        assert too_wide == MappingAnswer(
            Code.NOT_ALLOWED, reason="guest has no right ports:3"
        )
        assert client.session is not None
        await client.session.ask_mapping(MappingOp.REMOVE, [tcp(one)])
        (freed,) = await ask(client, tcp(three))
        assert freed.code is Code.NORMAL
        web = [MappingEntry(MappingType.HTTP, host, host) for host in
               ("guest", "guest-x", "guests", "x")]  # fmt: skip
        codes = [answer.code for answer in await ask(client, *web)]
        assert codes == [Code.NORMAL] * 2 + [Code.NOT_ALLOWED] * 2


async def test_the_longest_user_name_owns_a_host() -> None:
    token = make_token()
    others = [user(token, name, f"names:{name}") for name in ("al", "al-ice")]
    async with center(names=NAMES, others=tuple(others)) as where:
        for name, may in (("al", ["al", "al-x"]), ("al-ice", ["al-ice", "al-ice-x"])):
            client, _ = where.client(name=name, token=token)
            async with running(client):
                for host in ("al", "al-x", "al-ice", "al-ice-x", "alice"):
                    entry = MappingEntry(MappingType.HTTP, "h", host)
                    (answer,) = await ask(client, entry)
                    want = Code.NORMAL if host in may else Code.NOT_ALLOWED
                    assert answer.code is want, (name, host)


async def test_rights_that_change_hold_at_once(ports: range) -> None:
    one, two, _ = ports
    with (
        socket.create_server((LOOPBACK, 0)) as service,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock,
    ):
        sock.bind(service.getsockname())
        target = Address(*service.getsockname())
        rights = (f"reach:{target}", f"tcp:{one}-{two}")
        async with guest(*rights, ports=ports) as (where, client):
            await ask(client, tcp(one), tcp(two))
            (await client.open(TcpTarget(target))).reset(Code.RESET)
            datagrams = await client.associate()
            datagrams.send(target, b"before")
            assert await trio.to_thread.run_sync(sock.recv, 100) == b"before"

            (member,) = where.server.clients
            rights = (f"tcp:{two}", f"reach:{LOOPBACK}:1")
            member.user = replace(member.user, rights=parse_rights(rights))
            where.server.mappings.review(member)
            assert len(where.server.mappings) == 1
            datagrams.send(target, b"after")
            await refusal(client, TcpTarget(target))
            sock.setblocking(False)
            with pytest.raises(BlockingIOError):
                sock.recv(100)
            gone, kept = await ask(client, tcp(one), tcp(two))
            assert (gone.code, kept.code) == (Code.NOT_ALLOWED, Code.NORMAL)


# Traces ------------------------------------------------------------------------------


async def test_each_refusal_is_one_line_with_who_what_and_the_right(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "tunnel")
    async with guest(name="anna") as (_, client):  # whose lines nobody has used up
        await refusal(client, TcpTarget(Address("127.0.0.1", 5432)))
        await ask(client, tcp(22))
        await refusal(client, UnixPath("/run/a\x1bb"))
        said = [line for line in logs.lines(caplog) if "right.missing" in line]
        lines = [line.replace(client.client_id.hex()[:8], "ID") for line in said]
        who = r"right\.missing peer=\S+ user=anna client=ID what="
        assert len(lines) == 3
        assert all(re.match(who, line) for line in lines), lines
        assert "what=127.0.0.1:5432 right=reach:127.0.0.1:5432" in lines[0]
        assert "right=tcp:22 code=NOT_ALLOWED" in lines[1]
        assert "\x1b" not in lines[2]
        assert "exit.refused" not in logs.text(caplog), "a refusal is said once"


async def test_lines_about_one_user_are_bounded(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "tunnel.rights")
    token = make_token()
    async with center(others=(user(token, "flood", owner=False),)) as where:
        client, _ = where.client(name="flood", token=token)
        async with running(client):
            for _ in range(MAX_LINES + 50):
                await refusal(client, TcpTarget(Address("127.0.0.1", 1)))
    assert MAX_LINES <= len(caplog.records) < MAX_LINES + 40


async def test_a_refusal_leaves_nothing_to_the_collector() -> None:
    """D8: refused opens pile up nowhere, while the collector is off."""
    resolve_to("127.0.0.1", "::1")
    async with guest("reach:*:80", name="many") as (_, client):
        targets = (
            TcpTarget(Address("127.0.0.1", 5432)),
            TcpTarget(Address("db.lan", 80)),
            TcpTarget(Address("db.lan", 5432)),
            BindTarget(Address("127.0.0.1", 80)),
            UnixPath("/run/app.sock"),
        )

        async def kept_after(rounds: int) -> int:
            for target in targets * rounds:
                try:  # without pytest.raises, which makes cycles itself
                    await client.open(target)
                except StreamError as error:
                    codes.add(error.code)
                await ask(client, tcp(22))
            await trio.testing.wait_all_tasks_blocked()
            # Trio keeps deadlines that have passed for a while, the test's own too.
            ours = (type(one).__module__ for one in gc.get_objects())
            return sum(str(module).startswith("tunnel.") for module in ours)

        codes: set[Code] = set()
        await kept_after(1)
        gc.collect()
        gc.disable()
        try:
            counts = [await kept_after(10), await kept_after(10)]
        finally:
            gc.enable()
        assert counts[1] - counts[0] < 5, counts
        assert codes == {Code.NOT_ALLOWED}


# The client's side -------------------------------------------------------------------


async def test_a_client_serves_nothing_that_it_never_published() -> None:
    async with center() as where:
        client, notices = where.client()
        async with running(client):
            with trap() as (port, _):
                target = Address(LOOPBACK, port)
                await client.publish_target(Address("", 0), target)
                await notices.next(MappingReady)
                (member,) = where.server.clients
                name = "tcp-1"
                for asked, code in (
                    (TcpTarget(target), Code.NOT_ALLOWED),
                    (NameTarget(name, 1), Code.NO_MAPPING),
                    (NameTarget("tcp-2"), Code.NO_MAPPING),
                    (UdpTarget(name), Code.NO_MAPPING),
                    (UdpTarget(""), Code.NO_MAPPING),
                    (UnixPath("/run/app.sock"), Code.UNSUPPORTED),
                    (BindTarget(target), Code.UNSUPPORTED),
                ):
                    with pytest.raises(RemoteStreamError) as caught:
                        await member.session.open(asked)
                    assert caught.value.code is code, asked


async def test_a_client_is_no_exit_before_it_is_one_and_after() -> None:
    with socket.create_server((LOOPBACK, 0)) as service:
        target = TcpTarget(Address(*service.getsockname()[:2]))
        async with guest() as (where, client):
            (member,) = where.server.clients
            await client.be_exit("home", Networks.parse(["127.0.0.1"]))
            with pytest.raises(RemoteStreamError) as caught:
                await member.session.open(target)  # the server has refused the name
            assert caught.value.code is Code.NOT_ALLOWED
        async with guest("be-exit:home") as (where, client):
            (member,) = where.server.clients
            name = await client.be_exit("home", Networks.parse(["127.0.0.1"]))
            (await member.session.open(target)).reset(Code.RESET)
            await client.withdraw(name)
            with pytest.raises(RemoteStreamError) as caught:
                await member.session.open(target)
            assert caught.value.code is Code.NOT_ALLOWED
