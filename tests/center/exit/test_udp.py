"""Where UDP associations leave: whom they may talk to, what ends them."""

from __future__ import annotations

import errno
import math
import socket
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing
from support.center import LOOPBACK, center, running, user
from support.ports import OF_SERVERS

from tunnel.access.join import make_token
from tunnel.addresses import LOOPBACKS, NOWHERE, Address
from tunnel.center.events import LinkDown, LinkResumed, MappingReady
from tunnel.center.exit import udp as exit_udp
from tunnel.center.exit.tcp import udp_exit_to
from tunnel.center.exit.udp import serve_association
from tunnel.errors import Code, LocalLinkError, LocalStreamError, RemoteStreamError
from tunnel.net.poller import Poller
from tunnel.net.timeouts import TIMEOUTS, Timeouts
from tunnel.proto.frames import MappingEntry, MappingType, NameTarget, UdpTarget

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator


UDP_PORT = MappingEntry(MappingType.UDP, "")


def anywhere(_ip: str, _port: int) -> bool:
    return True


class FakeStream:
    def __init__(self) -> None:
        self.bound: Address | None = None

    def accept(self, bound: Address) -> None:
        self.bound = bound


class FakeDatagrams:
    """An association of which the test is the opener."""

    def __init__(self) -> None:
        self.stream = FakeStream()
        self.poller = Poller(self._turn)
        self.ends: list[Code] = []
        self.passed = 0, 0
        self.lost = 0
        self._early: list[tuple[Address, bytes]] = []
        self._take: Callable[[Address, bytes], bool] | None = None
        self._back, self.back = trio.open_memory_channel[tuple[Address, bytes]](1_000)

    def _turn(self, ready: list[tuple[int, int]]) -> None:
        for number, _events in ready:
            self.poller.call(number)

    def come(self, address: Address, payload: bytes) -> None:
        if self._take is None:
            self._early.append((address, payload))
        else:
            self.lost += not self._take(address, payload)

    def over(self) -> None:
        self._over()

    def deliver_to(
        self, take: Callable[[Address, bytes], bool], over: Callable[[], None]
    ) -> None:
        self._take, self._over = take, over
        for address, payload in self._early:
            self.come(address, payload)

    def put(self, address: Address, payload: bytes) -> None:
        self._back.send_nowait((address, payload))

    def flush(self) -> None:
        pass

    def close(self, code: Code, reason: str = "") -> None:
        del reason
        self.ends.append(code)

    async def answer(self) -> tuple[Address, bytes]:
        with trio.fail_after(10):
            return await self.back.receive()


@asynccontextmanager
async def serving(
    allow: Callable[[str, int], bool] = anywhere,
    target: Address | None = None,
    idle_s: float = 180,
) -> AsyncIterator[FakeDatagrams]:
    made = FakeDatagrams()
    TIMEOUTS.set(Timeouts(udp_idle_s=idle_s))
    async with trio.open_nursery() as nursery:

        async def run() -> None:
            await serve_association(
                made,  # type: ignore[arg-type]
                allow,
                target=target,
            )

        nursery.start_soon(made.poller.run)
        nursery.start_soon(run)
        yield made
        nursery.cancel_scope.cancel()
    made.poller.close()


@contextmanager
def service(host: str = LOOPBACK) -> Iterator[tuple[socket.socket, Address]]:
    """A UDP socket of the test's own."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.bind((host, 0))
        sock.settimeout(10)
        yield sock, Address(host, sock.getsockname()[1])


async def heard(sock: socket.socket) -> tuple[bytes, tuple[str, int]]:
    found, source = await trio.to_thread.run_sync(sock.recvfrom, 70_000)
    return found, source[:2]


# An association that leads anywhere -----------------------------------------------


async def test_every_peer_sees_one_port_and_answers_have_their_source() -> None:
    """Points 29, 35."""
    with service() as (one, first), service() as (two, second):
        async with serving() as ours:
            ours.come(first, b"to one")
            ours.come(second, b"to two")
            (said, source), (other, same) = await heard(one), await heard(two)
            assert (said, other, source) == (b"to one", b"to two", same)
            two.sendto(b"from two", source)
            assert await ours.answer() == (second, b"from two")
            one.sendto(b"", source)
            assert await ours.answer() == (first, b"")
            assert ours.stream.bound == Address("0.0.0.0", source[1])


async def test_the_largest_datagram_passes_and_a_larger_one_is_lost() -> None:
    with service() as (sock, where):
        async with serving() as ours:
            ours.come(where, bytes(65_508))
            ours.come(where, bytes(65_507))
            said, source = await heard(sock)
            assert len(said) == 65_507
            sock.sendto(bytes(65_507), source)
            assert (await ours.answer())[1] == bytes(65_507)


async def test_ipv6_has_a_socket_of_its_own() -> None:
    """Point 36."""
    with service("::1") as (sock, where):
        async with serving() as ours:
            ours.come(where, b"six")
            said, source = await heard(sock)
            assert said == b"six"
            sock.sendto(b"answer", source)
            assert await ours.answer() == (where, b"answer")


async def test_a_name_is_resolved_here_once_and_then_remembered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[str] = []

    async def resolve(address: Address, *, allow: object) -> Address:
        assert allow is anywhere
        asked.append(address.host)
        await trio.lowlevel.checkpoint()
        return Address(LOOPBACK, address.port)

    monkeypatch.setattr(exit_udp, "resolve", resolve)
    with service() as (sock, where):
        async with serving() as ours:
            ours.come(Address("dns.test", where.port), b"one")
            ours.come(Address("dns.test", where.port), b"and a half")
            assert (await heard(sock))[0] == b"one"
            assert (await heard(sock))[0] == b"and a half"
            ours.come(Address("dns.test", where.port), b"two")
            said, source = await heard(sock)
            assert said == b"two"
            sock.sendto(b"answer", source)
            assert await ours.answer() == (where, b"answer")
    assert asked == ["dns.test"]


async def test_a_name_that_is_slow_or_unknown_delays_nobody_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def resolve(address: Address, *, allow: object) -> Address:
        assert allow is anywhere
        if address.host == "slow.test":
            await trio.sleep_forever()
        raise LocalStreamError(Code.HOST_UNREACHABLE, "no such name")

    monkeypatch.setattr(exit_udp, "resolve", resolve)
    with service() as (sock, where):
        async with serving() as ours:
            for _ in range(3):
                ours.come(Address("slow.test", 53), b"waits")
                ours.come(Address("unknown.test", 53), b"lost")
            ours.come(where, b"passes")
            assert (await heard(sock))[0] == b"passes"


@pytest.mark.parametrize("host", LOOPBACKS)
async def test_localhost_is_whichever_loopback_takes_the_datagram(host: str) -> None:
    with service() as (other, elsewhere), service(host) as (sock, peer):
        async with serving() as ours:
            for _ in range(2):
                ours.come(Address("LocalHost.", peer.port), b"ping")
                said, source = await heard(sock)
                assert said == b"ping"
                sock.sendto(b"pong", source)
                assert await ours.answer() == (peer, b"pong")
            # All others see the same port still, and are heard.
            ours.come(elsewhere, b"hello")
            said, source = await heard(other)
            other.sendto(b"there", source)
            assert await ours.answer() == (elsewhere, b"there")


async def test_what_nobody_takes_on_localhost_disturbs_nobody() -> None:
    with service() as (gone, empty), service("::1") as (sock, peer):
        gone.close()
        async with serving() as ours:
            for number in range(20):
                ours.come(empty, b"nobody")
                ours.come(Address("localhost", empty.port), b"nobody")
                ours.come(Address("localhost", peer.port), bytes([number]))
            for number in range(20):
                assert (await heard(sock))[0] == bytes([number])


async def test_a_service_on_both_loopbacks_hears_a_datagram_once() -> None:
    with (
        service() as (sock, peer),
        socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as six,
    ):
        six.bind(("::1", peer.port))
        six.setblocking(False)
        async with serving() as ours:
            ours.come(Address("localhost", peer.port), b"once")
            assert (await heard(sock))[0] == b"once"
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(BlockingIOError):
                six.recv(10)


async def test_rights_are_asked_for_each_datagram_on_the_address_that_is_sent_to() -> (
    None
):
    asked: list[tuple[str, int]] = []
    with service() as (sock, where), service() as (_, other):

        def allow(ip: str, port: int) -> bool:
            asked.append((ip, port))
            return port == where.port

        async with serving(allow) as ours:
            ours.come(other, b"forbidden")
            ours.come(Address(f"::ffff:{LOOPBACK}", other.port), b"in other clothes")
            ours.come(where, b"allowed")
            assert (await heard(sock))[0] == b"allowed"
    assert asked == [(LOOPBACK, other.port)] * 2 + [(LOOPBACK, where.port)]


async def test_who_was_not_spoken_to_is_not_heard() -> None:
    with service() as (sock, where), service("127.0.0.2") as (stranger, _):
        async with serving() as ours:
            ours.come(where, b"hello")
            _, source = await heard(sock)
            stranger.sendto(b"unasked", source)
            sock.sendto(b"answer", source)
            assert await ours.answer() == (where, b"answer")


async def test_a_port_where_nobody_listens_ends_nothing() -> None:
    """Point 37."""
    with service() as (sock, where):
        with service() as (_, gone):
            pass
        async with serving() as ours:
            for _ in range(3):
                ours.come(gone, b"to nobody")
            ours.come(Address(LOOPBACK, 0), b"to no port")
            ours.come(where, b"after")
            assert (await heard(sock))[0] == b"after"


# Ends -----------------------------------------------------------------------------


async def test_silence_ends_it_with_idle(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with serving(lambda _ip, _port: False, idle_s=2) as ours:
        for _ in range(3):
            await trio.sleep(1.5)
            ours.come(Address(LOOPBACK, 9), b"life")
        await trio.sleep(1.9)
        assert ours.ends == []
        await trio.sleep(0.2)
        assert ours.ends[0] is Code.IDLE


async def test_what_no_target_ever_answered_is_silent_for_a_minute_at_most(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with serving(lambda _ip, _port: False, idle_s=600) as ours:
        ours.come(Address(LOOPBACK, 9), b"life")
        await trio.sleep(59)
        assert ours.ends == []
        await trio.sleep(2)
        assert ours.ends[0] is Code.IDLE


async def test_what_was_answered_is_silent_for_as_long_as_it_is_told(
    autojump_clock: trio.testing.MockClock,
) -> None:
    with service() as (sock, where):
        async with serving(target=where, idle_s=600) as ours:
            autojump_clock.autojump_threshold = math.inf  # a socket knows no such clock
            ours.come(where, b"life")
            _, source = await heard(sock)
            sock.sendto(b"yes", source)
            await ours.answer()
            autojump_clock.jump(599)
            await trio.testing.wait_all_tasks_blocked()
            assert ours.ends == []
            autojump_clock.jump(2)
            await trio.testing.wait_all_tasks_blocked()
            assert ours.ends[0] is Code.IDLE


async def test_the_openers_end_closes_the_sockets() -> None:
    async with serving() as ours:
        await trio.testing.wait_all_tasks_blocked()
        ours.over()
        await trio.testing.wait_all_tasks_blocked()
        assert ours.ends


async def test_no_descriptor_is_said_with_its_code(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def none_left(*_: object) -> socket.socket:
        raise OSError(errno.EMFILE, "Too many open files")

    async with serving() as warm_up:
        await trio.testing.wait_all_tasks_blocked()
        del warm_up
    monkeypatch.setattr(socket, "socket", none_left)
    ours = FakeDatagrams()
    await serve_association(ours, anywhere)  # type: ignore[arg-type]
    assert ours.ends == [Code.RESOURCE]
    assert ours.stream.bound is None


async def test_a_target_that_may_not_be_reached_is_refused() -> None:
    ours = FakeDatagrams()
    await serve_association(
        ours,  # type: ignore[arg-type]
        lambda _ip, _port: False,
        target=Address(LOOPBACK, 53),
    )
    assert ours.ends == [Code.NOT_ALLOWED]


# An association that leads to a target --------------------------------------------


async def test_one_with_a_target_ignores_addresses_and_hears_only_the_target() -> None:
    with service() as (sock, where), service() as (stranger, _):
        async with serving(target=where) as ours:
            ours.come(Address("elsewhere.test", 1), b"query")
            said, source = await heard(sock)
            assert said == b"query"
            stranger.sendto(b"unasked", source)
            sock.sendto(b"answer", source)
            assert await ours.answer() == (Address("0.0.0.0", 0), b"answer")


# Both roles -----------------------------------------------------------------------


@pytest.mark.parametrize("host", LOOPBACKS)
async def test_a_target_on_either_loopback_is_found_and_followed(host: str) -> None:
    other = LOOPBACKS[1 - LOOPBACKS.index(host)]
    with service(host) as (sock, peer):
        async with serving(target=Address("localhost", peer.port)) as datagrams:
            datagrams.come(NOWHERE, b"one")
            payload, source = await heard(sock)
            assert payload == b"one"
            sock.sendto(b"two", source)
            assert await datagrams.answer() == (NOWHERE, b"two")
            sock.close()
            family = socket.AF_INET6 if ":" in other else socket.AF_INET
            with socket.socket(family, socket.SOCK_DGRAM) as moved:
                moved.bind((other, peer.port))
                datagrams.come(NOWHERE, b"three")
                assert (await heard(moved))[0] == b"three"


async def test_the_first_datagram_is_not_spent_on_finding_the_loopback() -> None:
    with service("::1") as (sock, peer):
        for number in range(30):  # who hears the refusal first was once left to chance
            async with serving(target=Address("localhost", peer.port)) as datagrams:
                datagrams.come(NOWHERE, bytes([number]))
                assert (await heard(sock))[0] == bytes([number])


async def test_a_target_on_no_loopback_is_asked_again() -> None:
    with service() as (sock, peer):
        sock.close()
        async with serving(target=Address("localhost", peer.port)) as datagrams:
            for _ in range(3):
                datagrams.come(NOWHERE, b"lost")
            await trio.testing.wait_all_tasks_blocked()
            with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as late:
                late.bind(("::1", peer.port))
                datagrams.come(NOWHERE, b"found")
                assert (await heard(late))[0] == b"found"


async def test_an_association_leaves_at_the_server() -> None:
    async with center(ports=OF_SERVERS) as where:
        client, _ = where.client()
        with service() as (sock, target):
            async with running(client):
                ours = await client.associate()
                ours.send(target, b"query")
                said, source = await heard(sock)
                sock.sendto(said.upper(), source)
                with trio.fail_after(10):
                    assert await ours.receive() == (target, b"QUERY")
                await ours.aclose()
                await where.until(lambda: where.server.connections == 0)


async def test_an_association_outlives_its_link_and_loses_what_was_sent_meanwhile() -> (
    None
):
    async with center(ports=OF_SERVERS) as where:
        client, notices = where.client()
        with service() as (sock, target):
            async with running(client):
                ours = await client.associate()
                ours.send(target, b"before")
                _, source = await heard(sock)
                (member,) = where.server.clients
                assert member.link is not None
                member.link.abandon(LocalLinkError(Code.LINK_LOST, "cut by the test"))
                await notices.next(LinkDown)
                ours.send(target, b"lost")
                assert ours.dropped == 1
                await notices.next(LinkResumed)
                ours.send(target, b"after")
                assert await heard(sock) == (b"after", source)


async def test_a_user_without_rights_reaches_nobody_by_udp() -> None:
    token = make_token()
    async with center(others=(user(token, "guest", owner=False),)) as where:
        client, _ = where.client(name="guest", token=token)
        async with running(client):
            with pytest.raises(RemoteStreamError) as caught:
                await client.associate()
    assert caught.value.code is Code.NOT_ALLOWED
    assert "reach:" in caught.value.what


async def test_each_datagram_takes_a_right_of_its_own() -> None:
    token = make_token()
    with service() as (sock, target), service() as (forbidden, other):
        may = f"reach:{LOOPBACK}:{target.port}"
        async with center(others=(user(token, "guest", may),)) as where:
            client, _ = where.client(name="guest", token=token)
            async with running(client):
                ours = await client.associate()
                for host in (LOOPBACK, f"::ffff:{LOOPBACK}", "localhost", "dns.test"):
                    ours.send(Address(host, other.port), b"forbidden")
                ours.send(target, b"allowed")
                _, source = await heard(sock)
                forbidden.setblocking(False)
                with pytest.raises(BlockingIOError):
                    forbidden.recv(100)
                sock.sendto(b"answer", source)
                assert await ours.receive() == (target, b"answer")


async def test_a_udp_mapping_carries_visitors_to_its_target() -> None:
    async with center(ports=OF_SERVERS) as where:
        client, notices = where.client()
        with service() as (sock, target), service() as (visitor, _):
            async with running(client):
                name = await client.publish(UDP_PORT, udp_exit_to(target))
                public = (await notices.next(MappingReady)).public
                for number in range(3):
                    visitor.sendto(b"%d" % number, (public.host, public.port))
                    said, source = await heard(sock)
                    sock.sendto(b"answer " + said, source)
                    answer = await heard(visitor)
                    assert answer[0] == b"answer %d" % number
                    assert answer[1] == (public.host, public.port)
                assert where.server.connections == 1
                await client.withdraw(name)
                await where.until(lambda: where.server.connections == 0)


async def test_tcp_and_udp_may_have_the_same_port() -> None:
    async with center(ports=OF_SERVERS) as where:
        client, notices = where.client()
        async with running(client):
            await client.publish_target(Address("", 0), Address(LOOPBACK, 9))
            first = (await notices.next(MappingReady)).public
            same = MappingEntry(MappingType.UDP, "", first.host, first.port)
            await client.publish(same, udp_exit_to(Address(LOOPBACK, 9)))
            assert (await notices.next(MappingReady, 2)).public == first


@pytest.mark.parametrize("target", [UdpTarget("{}"), NameTarget("{}")])
async def test_a_mapping_is_opened_as_what_it_is(
    target: UdpTarget | NameTarget,
) -> None:
    async with center(ports=OF_SERVERS) as where:
        client, notices = where.client()
        async with running(client):
            if isinstance(target, UdpTarget):
                await client.publish_target(Address("", 0), Address(LOOPBACK, 9))
            else:
                await client.publish(UDP_PORT, udp_exit_to(Address(LOOPBACK, 9)))
            name = (await notices.next(MappingReady)).name
            (member,) = where.server.clients
            with pytest.raises(RemoteStreamError) as caught:
                await member.session.open(type(target)(name))
            assert caught.value.code is Code.NO_MAPPING
