"""A center-server that gets other options while it carries connections."""

from __future__ import annotations

import ssl
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import trio
import trustme
from support.center import (
    GET,
    LOOPBACK,
    Center,
    ask,
    center,
    echo,
    free_ports,
    page,
    port_of,
    running,
    status,
    target,
    user,
)

from tunnel.access.join import make_token
from tunnel.access.limits import parse_limits
from tunnel.access.networks import Networks
from tunnel.access.visitors import Visitors
from tunnel.addresses import Address
from tunnel.center import listening
from tunnel.center.events import LinkResumed, MappingReady, MappingRefused, SessionLost
from tunnel.center.exit.tcp import exit_to
from tunnel.center.listening import Listening, open_places, take_places
from tunnel.center.names import NameOptions
from tunnel.errors import AddressError, Code, LinkError, TunnelError, UsageError
from tunnel.net.given import Given
from tunnel.net.listen import open_listener, serve
from tunnel.proto.frames import MappingEntry, MappingType
from tunnel.proto.rules import Rules

if TYPE_CHECKING:
    from pathlib import Path

    from tunnel.link.virtual import VirtualStream
    from tunnel.net.listen import PortListener

SHOP = MappingEntry(MappingType.HTTP, "", "shop")
NAMES = NameOptions(http=Address(LOOPBACK, 0), domain="t.test")


async def change(where: Center, **options: object) -> Address:
    return await where.server.change(replace(where.server.options, **options))  # type: ignore[arg-type]


async def says(stream: VirtualStream, word: bytes) -> bool:
    """Say if a connection to an echo still carries bytes."""
    await stream.send_all(word)
    got = b""
    while len(got) < len(word):
        got += await stream.receive_some()
    return got == word


def free_address() -> Address:
    return port_of(free_ports())


async def test_links_are_taken_at_another_address_and_the_old_ones_live() -> None:
    async with center() as where, target(echo) as to:
        client, _ = where.client()
        async with running(client):
            stream = await client.open(str(to))
            other = await change(where, listen=free_address())
            assert other != where.address
            assert await says(stream, b"still here")
            with pytest.raises(OSError, match="attempts"):
                await trio.open_tcp_stream(LOOPBACK, where.address.port)
            late, _ = where.client(port=other.port)
            async with running(late):
                assert await says(await late.open(str(to)), b"hello")
            # And back: nothing is left of the first that would be in the way.
            assert await change(where, listen=where.address) == where.address
            async with running(where.client()[0]):
                assert await says(stream, b"as before")


async def test_further_addresses_for_links_come_and_go_while_it_runs() -> None:
    one, two, three = (free_address() for _ in range(3))
    async with center() as where, target(echo) as to:
        first, entrances = where.address, where.server.entrances

        async def listen(*addresses: Address) -> list[Address]:
            """Take links at these; return where a client gets one."""
            own, *others = addresses
            await change(where, listen=own, also_listen=tuple(others))
            assert entrances.addresses == list(addresses)
            taken = []
            for at in (first, one, two, three):
                with suppress(OSError):
                    await (await trio.open_tcp_stream(at.host, at.port)).aclose()
                    taken.append(at)
            return taken

        assert await listen(first, one, two) == [first, one, two]
        client, _ = where.client(port=two.port)
        async with running(client):
            stream = await client.open(str(to))
            assert await says(stream, b"before")
            # The one that it came by goes, another is first, and one moves.
            assert await listen(one, three, first) == [first, one, three]
            assert await says(stream, b"after")
            async with target(echo) as taken:
                with pytest.raises(AddressError, match="in use"):
                    await change(where, listen=first, also_listen=(two, taken))
            assert entrances.addresses == [one, three, first]
            everywhere = Address("0.0.0.0", one.port)
            await change(where, listen=everywhere, also_listen=())
            assert entrances.addresses == [everywhere]
            other, _ = where.client(port=one.port)
            async with running(other):
                assert await says(await other.open(str(to)), b"again")
            assert await says(stream, b"still")


async def test_an_address_that_is_taken_changes_nothing() -> None:
    async with center(names=NAMES) as where, target(echo) as taken:
        before = where.server.options
        names = NameOptions(http=free_address(), https=taken, domain="else.test")
        with pytest.raises(AddressError, match="already in use"):
            await change(where, names=names, limits=parse_limits(["connections=1"]))
        assert where.server.options is before
        assert await status(where.server.names.http, "no.test") == 404
        assert names.http is not None
        with pytest.raises(OSError, match="attempts"):
            await trio.open_tcp_stream(LOOPBACK, names.http.port)


async def test_two_purposes_may_change_their_ports_with_one_another() -> None:
    one, two = free_address(), free_address()
    options = NameOptions(http=one, https=two, domain="t.test")
    async with center(names=options) as where, target(page) as at:
        client, _ = where.client()
        async with running(client):
            await client.publish(SHOP, exit_to(at))
            assert await status(one, "shop.t.test") == 200
            await change(where, names=replace(options, http=two, https=one))
            assert await status(two, "shop.t.test") == 200


async def test_all_addresses_may_become_one_of_them_on_the_same_port() -> None:
    port = free_ports()[0]
    async with center(names=replace(NAMES, http=Address("*", port))) as where:
        assert await status(Address(LOOPBACK, port), "no.test") == 404
        here = Address(LOOPBACK, port)
        await change(where, names=replace(NAMES, http=here))
        assert await status(here, "no.test") == 404
        await change(where, names=replace(NAMES, http=Address("*", port)))
        assert await status(here, "no.test") == 404


def never_asked() -> Listening:
    async def never(stream: object, peer: object) -> None:
        raise AssertionError(stream, peer)

    return Listening(lambda ports: serve(ports, never))


async def test_what_was_closed_to_make_room_is_opened_again_after_a_failure() -> None:
    one, two = free_address(), free_address()
    first, second = never_asked(), never_asked()
    take_places(await open_places({first: one, second: two}, Given()))
    async with target(echo) as taken:
        with pytest.raises(AddressError, match="in use"):
            # The second's new place needs the first's; the third fails.
            await open_places(
                {first: Address("0.0.0.0", one.port), second: taken}, Given()
            )
        assert (first.address, second.address) == (one, two)
        stream = await trio.open_tcp_stream(LOOPBACK, one.port)
        await stream.aclose()
    first.close()
    second.close()


async def test_what_was_closed_to_make_room_is_opened_again_if_nobody_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one, scope = free_address(), trio.CancelScope()
    everywhere = Address("0.0.0.0", one.port)
    tries: list[str] = []

    async def listen(host: str, port: int) -> list[PortListener]:
        tries.append(host)
        if tries == [everywhere.host, everywhere.host]:  # ours has just been closed
            scope.cancel()
        return await open_listener(host, port)

    first = never_asked()
    take_places(await open_places({first: one}, Given()))
    monkeypatch.setattr(listening, "open_listener", listen)
    with scope:
        await open_places({first: everywhere}, Given())
    assert scope.cancelled_caught
    assert first.address == one
    await (await trio.open_tcp_stream(LOOPBACK, one.port)).aclose()
    first.close()


async def test_what_another_program_took_meanwhile_is_opened_by_the_next_change(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    one, two = free_address(), free_address()
    first, second = never_asked(), never_asked()
    take_places(await open_places({first: one, second: two}, Given()))
    was_closed = False

    async def listen(host: str, port: int) -> list[PortListener]:
        nonlocal was_closed
        if was_closed and (host, port) == (one.host, one.port):
            raise AddressError("it is somebody else's now")
        was_closed = was_closed or port == one.port
        return await open_listener(host, port)

    monkeypatch.setattr(listening, "open_listener", listen)
    async with target(echo) as taken:
        everywhere = Address("0.0.0.0", one.port)
        with pytest.raises(AddressError):
            await open_places({first: everywhere, second: taken}, Given())
    assert (first.where, second.where) == (None, two)
    assert [line.message for line in caplog.records] == ["listening.lost"]
    monkeypatch.undo()
    take_places(await open_places({first: one, second: two}, Given()))
    assert (first.address, second.address) == (one, two)
    first.close()
    second.close()


async def test_a_port_for_names_comes_and_goes_while_it_runs() -> None:
    async with center() as where, target(page) as at:
        client, notices = where.client()
        async with running(client):
            await client.publish(SHOP, exit_to(at))
            (refused,) = notices.of(MappingRefused)
            assert refused.answer.code is Code.UNSUPPORTED
            await change(where, names=NAMES)
            name = await client.publish(SHOP, exit_to(at))
            assert await status(where.server.names.http, "shop.t.test") == 200
            await change(where, names=NameOptions())
            # The client hears of it over the next link, which comes at once.
            await notices.next(LinkResumed)
            await where.until(lambda: client.public(name) is None)
            assert where.server.names.http is None
            assert not notices.of(SessionLost)


async def test_another_domain_is_told_and_no_connection_is_lost() -> None:
    async with center(names=NAMES) as where, target(page) as at, target(echo) as to:
        client, notices = where.client()
        async with running(client):
            stream = await client.open(str(to))
            await client.publish(SHOP, exit_to(at))
            await change(where, names=replace(NAMES, domain="new.test"))
            ready = await notices.next(MappingReady, 2)
            assert ready.public.host == "shop.new.test"
            http = where.server.names.http
            assert await status(http, "shop.new.test") == 200
            assert await status(http, "shop.t.test") == 404
            assert await says(stream, b"not lost")
            assert notices.of(LinkResumed)


async def test_ports_are_chosen_of_another_range_and_open_ones_stay() -> None:
    before, after = free_ports(), free_ports()
    async with center(ports=before) as where, target(echo) as at:
        client, notices = where.client()
        async with running(client):
            await client.publish(MappingEntry(MappingType.TCP, ""), exit_to(at))
            await change(where, ports=after)
            await client.publish(MappingEntry(MappingType.TCP, ""), exit_to(at))
            ports = [ready.public.port for ready in notices.of(MappingReady)]
            assert ports == [before[0], after[0]]
            for port in ports:
                assert await ask(Address(LOOPBACK, port)) == b"hello"
            assert not notices.of(LinkResumed)


async def test_other_default_limits_hold_at_once_for_who_is_here() -> None:
    token = make_token()
    own = replace(user(token, "own"), limits=parse_limits(["connections=3"]))
    async with center(others=(own,)) as where, target(echo) as to:
        client, _ = where.client()
        other, _ = where.client(name="own", token=token)
        async with running(client), running(other):
            first = await client.open(str(to))
            await change(where, limits=parse_limits(["connections=1"]))
            with pytest.raises(TunnelError, match="limit of user default"):
                await client.open(str(to))
            assert await says(first, b"it was there before")
            for _ in range(3):
                await other.open(str(to))  # its own limit is as it was
            await change(where, limits=parse_limits([]))
            assert await says(await client.open(str(to)), b"again")


async def test_other_limits_of_an_address_and_other_proxies_hold_at_once() -> None:
    async with center() as where:
        visitors = where.server._visitors
        await change(where, max_per_address=7)
        assert visitors.max_per_address == 7
        assert not visitors.trusts("192.0.2.1")
        networks = Networks.parse(["192.0.2.0/24"]).allowed
        await change(where, trusted_proxies=networks)
        assert visitors.trusts("192.0.2.1")


async def test_visitors_of_a_user_count_anew_when_other_proxies_speak_for_them() -> (
    None
):
    async with center() as where:
        await change(where, limits=parse_limits(["visitors=1"]))
        account = where.server.accounts.named("default")
        assert account.admit_visitor("198.51.100.7")
        with pytest.raises(TunnelError, match="1 visitors of one address"):
            account.admit_visitor("198.51.100.7")
        networks = Networks.parse(["192.0.2.0/24"]).allowed
        await change(where, trusted_proxies=networks)
        assert account.admit_visitor("198.51.100.7")


def test_visitors_that_came_by_the_word_of_other_proxies_count_no_more() -> None:
    visitors = Visitors()
    assert visitors.enter("192.0.2.1", 1)
    assert not visitors.enter("192.0.2.1", 1)
    assert visitors.change(Networks.parse(["198.51.100.1"]).allowed, None)
    assert visitors.enter("192.0.2.1", 1)
    visitors.leave("192.0.2.1")
    visitors.leave("192.0.2.1")  # the first, which is not counted
    assert visitors.enter("192.0.2.1", 1)
    assert not visitors.enter("192.0.2.1", 1)
    assert not visitors.change(Networks.parse(["198.51.100.1"]).allowed, 3)


def certificate(folder: Path, name: str, host: str) -> tuple[trustme.CA, Path, Path]:
    ca = trustme.CA()
    leaf = ca.issue_cert(host)
    cert, key = folder / f"{name}.pem", folder / f"{name}.key"
    leaf.cert_chain_pems[0].write_to_path(cert)
    leaf.private_key_pem.write_to_path(key)
    return ca, cert, key


async def tls_status(at: Address | None, host: str, ca: trustme.CA) -> int:
    assert at is not None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    ca.configure_trust(context)
    tcp = await trio.open_tcp_stream(at.host, at.port)
    stream = trio.SSLStream(tcp, context, server_hostname=host, https_compatible=True)
    async with stream:
        await stream.send_all(GET % host.encode())
        return int(bytes(await stream.receive_some()).split()[1])


async def test_certificates_come_change_and_go_without_a_closed_port(
    tmp_path: Path,
) -> None:
    host = "shop.t.test"
    old, *files = certificate(tmp_path, "a", host)
    names = NameOptions(https=Address(LOOPBACK, 0), domain="t.test")
    async with center(names=names) as where, target(page) as at:
        client, _ = where.client()
        async with running(client):
            https = where.server.names.https
            with pytest.raises(trio.BrokenResourceError):
                await tls_status(https, host, old)
            ends = replace(names, certificate=(files[0], files[1]))
            await change(where, names=ends)
            await client.publish(SHOP, exit_to(at))
            assert await tls_status(https, host, old) == 200
            # The same files with other content are looked at, too.
            new = certificate(tmp_path, "a", host)[0]
            await change(where, names=ends)
            assert await tls_status(https, host, new) == 200
            files[0].write_text("no certificate")
            with pytest.raises(UsageError, match="cannot be used"):
                await change(where, names=ends, resume_s=1)
            assert where.server.options.resume_s == 120
            assert await tls_status(https, host, new) == 200
            await change(where, names=names)
            with pytest.raises(trio.BrokenResourceError):
                await tls_status(https, host, new)
            assert where.server.names.https == https


async def test_a_certificate_that_is_wanted_no_more_does_not_come_back_renewed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tunnel.center.certificates.EVERY_S", 0.01)
    host = "shop.t.test"
    _, cert, key = certificate(tmp_path, "a", host)
    names = NameOptions(https=Address(LOOPBACK, 0), domain="t.test")
    ends = replace(names, certificate=(cert, key))
    async with center(names=ends) as where:
        await trio.sleep(0.1)  # it is watched by now
        await change(where, names=names)
        certificate(tmp_path, "a", host)
        await trio.sleep(0.2)
        assert not where.server.names.doors.endings.usual


async def test_client_certificates_are_asked_for_from_the_next_link_on(
    tmp_path: Path,
) -> None:
    ca = trustme.CA()
    ca.cert_pem.write_to_path(tmp_path / "ca.pem")
    async with center(tmp_path / "state") as where, target(echo) as to:
        client, _ = where.client()
        async with running(client):
            stream = await client.open(str(to))
            await change(where, client_ca=tmp_path / "ca.pem")
            assert await says(stream, b"its link was there before")
            late, _ = where.client()
            with pytest.raises((LinkError, BaseExceptionGroup)):
                await late.run()
            (tmp_path / "ca.pem").write_text("nobody")
            with pytest.raises(UsageError, match="client-ca"):
                await change(where, client_ca=tmp_path / "ca.pem")
            await change(where, client_ca=None)
            async with running(where.client()[0]):
                assert await says(stream, b"still")


# Entries of a client ------------------------------------------------------------------


async def shout(stream: trio.SocketStream) -> None:
    with suppress(trio.BrokenResourceError):
        async for data in stream:
            await stream.send_all(data.upper())


async def test_a_mapping_leads_elsewhere_for_the_next_visitor_only() -> None:
    entry = MappingEntry(MappingType.TCP, "")
    async with center() as where, target(echo) as one, target(shout) as two:
        client, notices = where.client()
        async with running(client):
            name = await client.publish(entry, exit_to(one))
            public = notices.of(MappingReady)[0].public
            old = await trio.open_tcp_stream(LOOPBACK, public.port)
            await old.send_all(b"a")
            assert await old.receive_some() == b"a"
            assert not client.publisher.change(name, entry, exit_to(two))
            new = await trio.open_tcp_stream(LOOPBACK, public.port)
            for stream, heard in ((old, b"b"), (new, b"B")):
                await stream.send_all(b"b")
                assert await stream.receive_some() == heard
            client.publisher.cut(name)
            for stream in (old, new):
                with pytest.raises(trio.BrokenResourceError):
                    await stream.receive_some()
                await stream.aclose()
            assert len(notices.of(MappingReady)) == 1


async def test_other_rules_of_a_name_leave_no_moment_without_it() -> None:
    async with center(names=NAMES) as where, target(page) as at:
        client, notices = where.client()
        async with running(client):
            name = await client.publish(SHOP, exit_to(at))
            http, over = where.server.names.http, False
            seen: set[int] = set()

            async def ask_on() -> None:
                while not over:
                    seen.add(await status(http, "shop.t.test"))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(ask_on)
                for number in range(20):
                    rules = Rules(max_body=1_000 + number)
                    wanted = replace(SHOP, rules=rules)
                    assert client.publisher.change(name, wanted, exit_to(at))
                    await client.publisher.ask([name])
                over = True
            assert seen == {200}
            assert len(notices.of(MappingReady)) == 21
            nobody = replace(
                SHOP, rules=Rules(allow=(Networks.parse(["192.0.2.1"]).allowed[0],))
            )
            client.publisher.change(name, nobody, exit_to(at))
            await client.publisher.ask([name])
            assert await status(http, "shop.t.test") == 403


async def test_a_change_without_a_link_is_asked_for_over_the_next() -> None:
    async with center() as where, target(echo) as at:
        client, notices = where.client()
        wanted = MappingEntry(MappingType.TCP, "", port=free_ports()[0])
        name = await client.publish(MappingEntry(MappingType.TCP, ""), exit_to(at))
        assert client.publisher.change(name, wanted, exit_to(at))
        async with running(client):
            assert (await notices.next(MappingReady)).public.port == wanted.port


async def test_many_mappings_are_given_up_in_few_questions() -> None:
    async with center(names=NAMES) as where, target(page) as at:
        client, _ = where.client()
        async with running(client):
            entries = [replace(SHOP, host=f"n{number}") for number in range(500)]
            names = [client.publisher.add(one, exit_to(at)) for one in entries]
            await client.publisher.ask(names)
            assert len(where.server.mappings) == 500
            await client.publisher.withdraw_all(names[1:])
            assert len(where.server.mappings) == 1
            assert await status(where.server.names.http, "n0.t.test") == 200
