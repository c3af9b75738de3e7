"""What a server asks of the visitors of a name, and who may publish beside whom."""

from __future__ import annotations

from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from ipaddress import ip_network
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing
from support import logs
from support.center import LOOPBACK, center, target, user

from tunnel.access.join import make_token
from tunnel.addresses import Address
from tunnel.center.endpoints import PublicName
from tunnel.center.events import MappingReady, MappingRefused
from tunnel.center.names import NameOptions
from tunnel.center.sites import MAX_SITE_ENTRIES, Lives
from tunnel.errors import Code
from tunnel.ops.entries import Published, Service
from tunnel.proto.frames import CAN_MAP, CAN_UDP, MappingEntry, MappingType, Terms
from tunnel.proto.rules import Rules

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from support.center import Center

    from tunnel.access.join import Secret
    from tunnel.center.client import CenterClient

NAMES = NameOptions(
    http=Address(LOOPBACK, 0), https=Address(LOOPBACK, 0), domain="t.test"
)
HERE = (ip_network("127.0.0.0/8"),)
ELSEWHERE = (ip_network("198.51.100.0/24"),)


class Pages:
    """A web service that says its name and what it was asked for."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.connections = 0
        self.requests = 0
        self.held: trio.Event | None = None
        """Answers wait for it."""
        self.busy = trio.Event()
        """It waits."""

    async def serve(self, stream: trio.SocketStream) -> None:
        self.connections += 1
        with suppress(trio.BrokenResourceError):  # a client that ends resets
            await self._answer(stream)

    async def _answer(self, stream: trio.SocketStream) -> None:
        waiting = b""
        while data := await stream.receive_some():
            waiting += data
            while b"\r\n\r\n" in waiting:
                head, _, waiting = waiting.partition(b"\r\n\r\n")
                self.requests += 1
                if self.held is not None:
                    self.busy.set()
                    await self.held.wait()
                body = f"{self.name} {head.split()[1].decode()}".encode()
                size = b"Content-Length: %d\r\n\r\n" % len(body)
                await stream.send_all(b"HTTP/1.1 200 OK\r\n" + size + body)


class Visitor:
    """One connection to the HTTP port, kept from one request to the next."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream

    async def ask(
        self,
        path: str = "/",
        host: str = "shop.t.test",
        method: str = "GET",
        more: str = "",
        body: bytes = b"",
    ) -> tuple[int, str]:
        """Give status and body."""
        status, _, text = await self.whole(path, host, method, more, body)
        return status, text

    async def whole(
        self,
        path: str = "/",
        host: str = "shop.t.test",
        method: str = "GET",
        more: str = "",
        body: bytes = b"",
    ) -> tuple[int, str, str]:
        """Give status, head and body."""
        head = f"{method} {path} HTTP/1.1\r\nHost: {host}\r\n{more}\r\n"
        await self._stream.send_all(head.encode() + body)
        return await self.hear()

    async def hear(self) -> tuple[int, str, str]:
        data = b""
        while b"\r\n\r\n" not in data:
            data += await self._more()
        head, _, rest = data.partition(b"\r\n\r\n")
        (size,) = (
            int(line.split(b":")[1])
            for line in head.split(b"\r\n")
            if line.lower().startswith(b"content-length:")
        )
        while len(rest) < size:
            rest += await self._more()
        return int(head.split()[1]), head.decode(), rest.decode()

    async def _more(self) -> bytes:
        data = await self._stream.receive_some()
        assert data
        return bytes(data)


@asynccontextmanager
async def visitor(where: Center) -> AsyncIterator[Visitor]:
    http = where.server.names.http
    assert http is not None
    async with await trio.open_tcp_stream(http.host, http.port) as stream:
        yield Visitor(stream)


class Publication:
    """A client with one entry."""

    def __init__(self, client: CenterClient, name: str, code: Code, why: str) -> None:
        self.client = client
        self.name = name
        self.code = code
        self.why = why


@asynccontextmanager
async def published(
    where: Center,
    rules: Rules | None,
    pages: Pages | None = None,
    host: str = "shop",
    *,
    of_type: MappingType = MappingType.HTTP,
    user: tuple[str, Secret] | None = None,
    client_id: bytes | None = None,
) -> AsyncIterator[Publication]:
    """Publish for the block by a client of its own."""
    pages = pages or Pages(host)
    name, token = user or ("default", where.join.token)
    client, notices = where.client(client_id, name=name, token=token)
    async with target(pages.serve) as at, trio.open_nursery() as nursery:
        wanted = MappingEntry(of_type, "", host, rules=rules)
        scheme = of_type.name.lower()
        entry = Published(scheme, wanted, Service(at), scheme=scheme)
        mapping = await entry.start(client)
        await nursery.start(client.run)
        refused, ready = notices.of(MappingRefused), notices.of(MappingReady)
        assert refused or ready
        answer = refused[0].answer if refused else None
        code, why = (answer.code, answer.reason) if answer else (Code.NORMAL, "")
        yield Publication(client, mapping, code, why)
        client.stop()


# Who may visit -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rules", "status"),
    [
        (Rules(allow=HERE), 200),
        (Rules(allow=ELSEWHERE), 403),
        (Rules(deny=HERE), 403),
        (Rules(deny=ELSEWHERE), 200),
        (Rules(allow=HERE, deny=(ip_network("127.0.0.1"),)), 403),
        (Rules(allow=(ip_network("::/0"),)), 403),
    ],
)
async def test_an_address_is_looked_at_before_anything_is_opened(
    rules: Rules, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    pages = Pages("shop")
    async with (
        center(names=NAMES) as where,
        published(where, rules, pages),
        visitor(where) as one,
    ):
        assert (await one.ask())[0] == status
    assert pages.connections == (status == 200)
    told = [line for line in logs.lines(caplog) if "visitor.denied" in line]
    assert told == (
        []
        if status == 200
        else ["visitor.denied address=127.0.0.1 host=shop.t.test path=/"]
    )


async def test_behind_a_trusted_proxy_each_visitor_is_judged_for_itself() -> None:
    rules = Rules(allow=(*HERE, *ELSEWHERE), requests=1, per_s=3600)

    def by(host: str) -> str:
        return f"X-Forwarded-For: {host}\r\n"

    async with (
        center(names=NAMES, trusted=HERE) as where,
        published(where, rules),
        visitor(where) as proxy,
    ):
        assert (await proxy.ask(more=by("198.51.100.1")))[0] == 200
        assert (await proxy.ask(more=by("198.51.100.1")))[0] == 429
        assert (await proxy.ask(more=by("198.51.100.2")))[0] == 200
        assert (await proxy.ask(more=by("203.0.113.1")))[0] == 403


async def test_a_server_without_the_capability_gets_no_entry_with_rules() -> None:
    async with center(names=NAMES) as where:
        where.server.terms = Terms(capabilities=CAN_MAP | CAN_UDP)
        async with published(where, Rules(allow=HERE, group="blue")) as it:
            assert it.code is Code.UNSUPPORTED
            assert it.why == "this server is too old for allow, group"
            async with published(where, None, host="open") as other:
                assert other.code is Code.NORMAL
            async with visitor(where) as one:
                assert (await one.ask())[0] == 404
            await it.client.withdraw(it.name)  # nothing that it does not know is sent
            assert it.client.session is not None
            assert it.client.session.ended is None


async def test_rules_stand_only_where_the_server_sees_what_they_are_about() -> None:
    async with center(names=NAMES) as where:
        for rules in (Rules(requests=1, per_s=1), Rules(max_body=1), Rules(path="/a")):
            async with published(where, rules, of_type=MappingType.HTTPS) as it:
                assert it.code is Code.UNSUPPORTED
                assert "sees no request" in it.why
        async with published(where, Rules(allow=HERE), of_type=MappingType.HTTPS) as it:
            assert it.code is Code.NORMAL


async def test_requests_are_counted_for_each_address() -> None:
    pages = Pages("shop")
    rules = Rules(requests=2, per_s=3600)
    async with center(names=NAMES) as where, published(where, rules, pages):
        async with visitor(where) as one:
            assert [(await one.ask())[0] for _ in range(2)] == [200, 200]
            status, head, _ = await one.whole()
            assert status == 429
            (wait,) = (line for line in head.split("\r\n") if "Retry-After" in line)
            assert 1790 <= int(wait.split(":")[1]) <= 1800
        async with visitor(where) as one:
            assert (await one.ask())[0] == 429
    assert pages.requests == 2


@pytest.mark.parametrize(
    ("more", "body", "status"),
    [
        ("Content-Length: 4\r\n", b"four", 200),
        ("Content-Length: 5\r\n", b"", 413),
        ("Content-Length: 5\r\nExpect: 100-continue\r\n", b"", 413),
        ("Transfer-Encoding: chunked\r\n", b"3\r\nabc\r\n2\r\nde\r\n", 413),
    ],
)
async def test_a_body_has_its_limit_also_while_it_comes(
    more: str, body: bytes, status: int
) -> None:
    async with (
        center(names=NAMES) as where,
        published(where, Rules(max_body=4)),
        visitor(where) as one,
    ):
        assert (await one.ask(method="POST", more=more, body=body))[0] == status


# For how long ------------------------------------------------------------------------


async def test_what_has_expired_is_gone_and_stays_so_when_it_is_published_again() -> (
    None
):
    pages = Pages("shop")
    async with center(names=NAMES) as where:
        over = Rules(expires_s=60, passed_s=60)
        async with published(where, over, pages), visitor(where) as one:
            status, text = await one.ask()
            assert status == 410
            assert "for a while" in text
        await where.until(lambda: not len(where.server.mappings))
        async with published(where, Rules(expires_s=60), pages), visitor(where) as one:
            assert (await one.ask())[0] == 410
        await where.until(lambda: not len(where.server.mappings))
        async with published(where, Rules(expires_s=61), pages), visitor(where) as one:
            assert (await one.ask())[0] == 200


async def test_a_client_tells_a_server_that_was_restarted_what_has_passed() -> None:
    async with (
        center(names=NAMES) as where,
        published(where, Rules(expires_s=3600)) as it,
    ):
        mapping = it.client.publisher._mappings[it.name]
        mapping.began_at -= 100
        rules = mapping.wanted.rules
        assert rules is not None
        assert 100 <= rules.passed_s <= 160


def test_a_life_begins_with_the_first_publication() -> None:
    name = PublicName(MappingType.HTTP, "a.test")

    async def live() -> None:
        lives = Lives(most=2)
        assert lives.expires_at("me", name, Rules(expires_s=100)) == (
            trio.current_time() + 100
        )
        await trio.sleep(30)
        again = lives.expires_at("me", name, Rules(expires_s=100))
        assert again == trio.current_time() + 70
        told = lives.expires_at("me", name, Rules(expires_s=100, passed_s=50))
        assert told == trio.current_time() + 50
        other = lives.expires_at("you", name, Rules(expires_s=100))
        assert other == trio.current_time() + 100
        for at in range(2):
            another = PublicName(MappingType.HTTP, f"{at}.test")
            lives.expires_at("me", another, Rules(expires_s=1))
        assert len(lives._began) == 2

    trio.run(live, clock=trio.testing.MockClock(autojump_threshold=0))


# By path -----------------------------------------------------------------------------


async def test_the_longest_path_wins_and_is_taken_off_where_that_is_said() -> None:
    async with (
        center(names=NAMES) as where,
        published(where, None, Pages("all")),
        published(where, Rules(path="/api", strip=True), Pages("api")),
        published(where, Rules(path="/api/v2"), Pages("v2")),
        visitor(where) as one,
    ):
        for path, answer in [
            ("/", "all /"),
            ("/apis", "all /apis"),
            ("/api", "api /"),
            ("/api?q=1", "api /?q=1"),
            ("/api/x?q=/api", "api /x?q=/api"),
            ("/api/v2", "v2 /api/v2"),
            ("/api/v20", "api /v20"),
        ]:
            assert await one.ask(path) == (200, answer)


@pytest.mark.parametrize(
    "path",
    ["/x/../api", "//api", "/%61pi", "/./api/", "/api/../", "/x/..;/api", "/\\api",
     "/api;x=1", "/%2fapi"],
)  # fmt: skip
async def test_a_path_that_others_could_read_as_another_place_is_refused(
    path: str,
) -> None:
    pages = Pages("all")
    async with (
        center(names=NAMES) as where,
        published(where, None, pages),
        published(where, Rules(path="/api", deny=HERE)),
        visitor(where) as one,
    ):
        assert (await one.ask(path))[0] == 400
    assert not pages.requests


async def test_a_name_that_has_paths_only_has_nothing_elsewhere() -> None:
    async with (
        center(names=NAMES) as where,
        published(where, Rules(path="/api")),
        visitor(where) as one,
    ):
        assert (await one.ask("/other"))[0] == 404
        assert (await one.ask("/api"))[0] == 200


async def test_a_name_has_so_many_entries_and_no_more() -> None:
    async with center(names=NAMES) as where:
        client, notices = where.client()
        async with trio.open_nursery() as nursery:
            for at in range(MAX_SITE_ENTRIES + 1):
                wanted = MappingEntry(
                    MappingType.HTTP, "", "shop", rules=Rules(path=f"/{at}")
                )
                service = Service(Address(LOOPBACK, 1))
                await Published("http", wanted, service, scheme="http").start(client)
            await nursery.start(client.run)
            (refused,) = notices.of(MappingRefused)
            assert refused.answer.code is Code.RESOURCE
            assert len(notices.of(MappingReady)) == MAX_SITE_ENTRIES
            client.stop()


# Groups ------------------------------------------------------------------------------

BLUE = Rules(group="blue")


async def test_who_has_the_fewest_requests_in_flight_is_asked_first() -> None:
    first, second = Pages("first"), Pages("second")
    first.held = trio.Event()
    async with (
        center(names=NAMES) as where,
        published(where, BLUE, first),
        published(where, BLUE, second),
        visitor(where) as slow,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(slow.ask)
        await first.busy.wait()
        for _ in range(3):
            async with visitor(where) as one:
                assert await one.ask() == (200, "second /")
        first.held.set()
    assert (first.requests, second.requests) == (1, 3)


async def test_a_visitor_stays_with_a_member_while_it_is_there() -> None:
    pages = [Pages("first"), Pages("second")]
    async with (
        center(names=NAMES) as where,
        published(where, BLUE, pages[0]) as first,
        published(where, BLUE, pages[1]),
        visitor(where) as one,
    ):
        assert [await one.ask() for _ in range(3)] == [(200, "first /")] * 3
        assert pages[0].connections == 1
        await first.client.withdraw(first.name)
        assert await one.ask() == (200, "second /")


async def test_a_member_that_is_out_is_not_asked_until_it_is_back() -> None:
    async with (
        center(names=NAMES) as where,
        published(where, BLUE, Pages("first")) as first,
        published(where, BLUE, Pages("second")) as second,
        visitor(where) as one,
    ):
        assert await one.ask() == (200, "first /")
        await first.client.lead_nobody(first.name, out=True)
        assert await one.ask() == (200, "second /")
        await second.client.lead_nobody(second.name, out=True)
        status, text = await one.ask()
        assert status == 503
        assert "does not answer at the moment" in text
        await first.client.lead_nobody(first.name, out=False)
        assert await one.ask() == (200, "first /")


async def test_members_of_a_group_have_one_set_of_rules() -> None:
    async with center(names=NAMES) as where, published(where, BLUE):
        for rules, why in [
            (replace(BLUE, allow=HERE), "the group blue has other rules"),
            (Rules(group="green"), "belongs to another client"),
            (None, "belongs to another client"),
        ]:
            async with published(where, rules) as it:
                assert it.code is Code.TAKEN
                assert why in it.why
        async with published(where, BLUE) as it:
            assert it.code is Code.NORMAL


# One user ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mine", "host", "rules", "of_type"),
    [
        ("shop", "shop", BLUE, MappingType.HTTP),
        ("shop", "shop", Rules(path="/api"), MappingType.HTTP),
        ("shop", "shop", None, MappingType.HTTPS),
        ("shop", "*.t.test", None, MappingType.HTTP),
        ("shop", "*.t.test", None, MappingType.HTTPS),
        ("*.t.test", "shop", None, MappingType.HTTP),
        ("*.t.test", "*.t.test", BLUE, MappingType.HTTP),
    ],
)
async def test_another_user_gets_nothing_that_visitors_of_a_name_could_reach(
    mine: str, host: str, rules: Rules | None, of_type: MappingType
) -> None:
    token = make_token()
    other = user(token, "other")
    as_other = "other", token
    async with center(names=NAMES, others=(other,)) as where:
        async with published(where, BLUE, host=mine):
            async with published(
                where, rules, host=host, of_type=of_type, user=as_other
            ) as it:
                assert it.code is Code.TAKEN
                assert "another user" in it.why
            async with published(where, None, host="a.b.test", user=as_other) as it:
                assert it.code is Code.NORMAL
            async with published(where, rules, host=host, of_type=of_type) as it:
                assert it.code is Code.NORMAL
        await where.until(lambda: not len(where.server.mappings))
        async with published(
            where, rules, host=host, of_type=of_type, user=as_other
        ) as it:
            assert it.code is Code.NORMAL


# At each request ---------------------------------------------------------------------


async def test_a_name_that_is_withdrawn_or_rerouted_is_gone_at_the_next_request() -> (
    None
):
    async with (
        center(names=NAMES) as where,
        visitor(where) as one,
        published(where, Rules(deny=ELSEWHERE), Pages("old")) as old,
    ):
        assert await one.ask() == (200, "old /")
        await old.client.withdraw(old.name)
        assert (await one.ask())[0] == 404
        async with published(where, None, Pages("new")):
            assert await one.ask() == (200, "new /")
            async with published(where, Rules(path="/api"), Pages("api")):
                assert await one.ask("/api") == (200, "api /api")
                assert await one.ask() == (200, "new /")
            assert await one.ask("/api") == (200, "new /api")
