"""Who asks for certificates while a server runs: for what, how often, and for whom."""

from __future__ import annotations

import logging
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing
import trustme
from support.center import LOOPBACK, center, page, target

from tunnel.access.host_certificates import new_key
from tunnel.addresses import Address
from tunnel.center.acme import keeper as keepers
from tunnel.center.acme import store as stores
from tunnel.center.acme.failures import FailedError
from tunnel.center.acme.keeper import Keeper
from tunnel.center.acme.plan import NEW_OF_USER
from tunnel.center.acme_options import AcmeOptions
from tunnel.center.events import MappingReady, MappingRefused
from tunnel.center.names import NameOptions
from tunnel.center.own_names import own_name
from tunnel.errors import StateError
from tunnel.ops.entries import Published, Service
from tunnel.proto.frames import MappingEntry, MappingType

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from support.center import Center

    from tunnel.center.acme.order import Places
    from tunnel.center.acme.store import Store

ACME = AcmeOptions("me@example.net", "https://acme.example.net/dir")
NAMES = NameOptions(https=Address(LOOPBACK, 0), domain="t.test", acme=ACME)


class Orders:
    """In the place of an authority: signs, or fails as it is told."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.kinds: list[Sequence[str]] = []
        self.failure: FailedError | None = None
        self._news = trio.Event()
        self._ca = trustme.CA()

    async def order(
        self,
        name: str,
        kinds: Sequence[str],
        options: AcmeOptions,
        store: Store,
        places: Places,
    ) -> None:
        del options, places
        await trio.lowlevel.checkpoint()
        self.names.append(name)
        self.kinds.append(kinds)
        self._news.set()
        self._news = trio.Event()
        if self.failure is not None:
            raise self.failure
        leaf = self._ca.issue_cert(name)
        key, chain = leaf.private_key_pem.bytes(), leaf.cert_chain_pems[0].bytes()
        store.keep(name, key.decode(), chain.decode())

    async def wait(self, count: int) -> None:
        with trio.fail_after(10):
            while len(self.names) < count:
                await self._news.wait()


@pytest.fixture
def orders(monkeypatch: pytest.MonkeyPatch) -> Orders:
    made = Orders()
    monkeypatch.setattr(keepers, "order", made.order)
    monkeypatch.setattr(keepers, "SETTLE_S", 0.0)
    return made


async def settled() -> None:
    """Wait until nothing is left to do, in threads neither."""
    threads = trio.to_thread.current_default_thread_limiter()
    await trio.testing.wait_all_tasks_blocked(0.02)
    while threads.borrowed_tokens:
        await trio.testing.wait_all_tasks_blocked(0.02)


@asynccontextmanager
async def keeping(where: Center, state: Path) -> AsyncIterator[Keeper]:
    server = where.server
    assert server.names.options.acme is not None
    keeper = Keeper(server.names.options.acme, state, server.names,
                    server.mappings.sites)  # fmt: skip
    async with trio.open_nursery() as nursery:
        nursery.start_soon(keeper.run)
        yield keeper
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def published(
    where: Center, at: Address, *hosts: str, of_type: MappingType = MappingType.HTTP
) -> AsyncIterator[None]:
    client, _ = where.client()
    async with trio.open_nursery() as nursery:
        for number, host in enumerate(hosts):
            entry = MappingEntry(of_type, str(number), host)
            await Published("http", entry, Service(at), scheme="http").start(client)
        await nursery.start(client.run)
        yield
        client.stop()


async def test_only_what_is_published_as_http_is_asked_for(
    tmp_path: Path, orders: Orders, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "tunnel.acme")
    names = replace(NAMES, http=Address(LOOPBACK, 0))
    async with (
        center(tmp_path / "state", names=names) as where,
        target(page) as at,
        keeping(where, tmp_path / "state") as keeper,
    ):
        await settled()
        assert orders.names == []
        async with (
            published(where, at, "pass.t.test", of_type=MappingType.HTTPS),
            published(where, at, "shop", "*.wild.t.test", "10.0.0.1"),
        ):
            await orders.wait(1)
            await settled()
        assert orders.names == ["shop.t.test"]
        assert orders.kinds == [("tls-alpn-01", "http-01")]
        said = {one.name: one for one in keeper.status()}
        assert said["shop.t.test"].until is not None
        assert "wildcard" in said["*.wild.t.test"].reason
        assert "address" in said["10.0.0.1"].reason
        endings = where.server.names.doors.endings
        assert endings.of("shop.t.test")
        assert not endings.of("other.t.test")
        # Neither does it ask again when the name is published once more.
        async with published(where, at, "shop"):
            await settled()
        assert orders.names == ["shop.t.test"]
    not_asked = [one for one in caplog.records if one.message == "acme.not_asked"]
    assert len(not_asked) == 2


async def test_limits_hold_over_restarts(tmp_path: Path, orders: Orders) -> None:
    hosts = [f"n{number}" for number in range(NEW_OF_USER + 2)]
    for _restart in range(2):
        async with (
            center(tmp_path / "state", names=NAMES) as where,
            target(page) as at,
            keeping(where, tmp_path / "state") as keeper,
            published(where, at, *hosts),
        ):
            await orders.wait(NEW_OF_USER)
            await settled()
            assert len(orders.names) == NEW_OF_USER
            waiting = [one for one in keeper.status() if one.until is None]
            assert len(waiting) == 2
            assert all("in a week" in one.reason for one in waiting)
            assert where.server.names.doors.endings.of("n0.t.test")


async def test_a_failure_waits_over_restarts_and_says_what_to_do(
    tmp_path: Path, orders: Orders, caplog: pytest.LogCaptureFixture
) -> None:
    orders.failure = FailedError("dns: no such name", "a record of NAME")
    for restart in range(2):
        async with (
            center(tmp_path / "state", names=NAMES) as where,
            target(page) as at,
            keeping(where, tmp_path / "state") as keeper,
            published(where, at, "shop"),
        ):
            await orders.wait(1)
            await settled()
            assert orders.names == ["shop.t.test"], restart
            assert keeper.status()[0].reason == "dns: no such name"
    failed = [one for one in caplog.records if one.message == "acme.failed"]
    assert len(failed) == 1
    assert failed[0].tunnel_fields["fix"] == "a record of shop.t.test"  # type: ignore[attr-defined]


async def test_a_folder_that_cannot_be_written_asks_nothing(
    tmp_path: Path,
    orders: Orders,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(path: Path, text: str) -> None:
        del text
        raise StateError(f"cannot write {path}", "No space left on device")

    monkeypatch.setattr(stores, "write_private", full)
    async with (
        center(tmp_path / "state", names=NAMES) as where,
        target(page) as at,
        keeping(where, tmp_path / "state"),
        published(where, at, "shop"),
    ):
        await settled()
    assert orders.names == []
    (failed,) = [one for one in caplog.records if "acme" in one.message]
    assert failed.message == "acme.failed"
    fields = failed.tunnel_fields  # type: ignore[attr-defined]
    assert "No space left" in fields["reason"]
    assert "STATE/acme" in fields["fix"]


async def test_a_folder_that_is_none_asks_nothing(
    tmp_path: Path, orders: Orders, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "acme").write_text("a file")
    async with (
        center(tmp_path / "state", names=NAMES) as where,
        target(page) as at,
        keeping(where, tmp_path),
        published(where, at, "shop"),
    ):
        await settled()
    assert orders.names == []
    said = {one.message for one in caplog.records if "acme" in one.message}
    assert said == {"acme.state", "acme.limited"}


async def test_a_hook_gets_one_wildcard_for_all_names_below_the_domain(
    tmp_path: Path, orders: Orders
) -> None:
    acme = AcmeOptions(ACME.mail, ACME.directory, hook=tmp_path / "hook")
    names = NameOptions(https=Address(LOOPBACK, 0), domain="t.test", acme=acme)
    async with (
        center(tmp_path / "state", names=names) as where,
        target(page) as at,
        keeping(where, tmp_path / "state"),
        published(where, at, "shop", "wiki", "a.b.t.test"),
    ):
        await orders.wait(2)
        await settled()
        assert sorted(orders.names) == ["*.t.test", "a.b.t.test"]
        assert sorted(map(tuple, orders.kinds)) == [("dns-01",), ("tls-alpn-01",)]
        assert where.server.names.doors.endings.of("wiki.t.test")


async def test_a_certificate_that_was_given_serves_its_names(
    tmp_path: Path, orders: Orders
) -> None:
    leaf = trustme.CA().issue_cert("*.t.test")
    pair = tmp_path / "chain.pem", tmp_path / "key.pem"
    leaf.cert_chain_pems[0].write_to_path(pair[0])
    leaf.private_key_pem.write_to_path(pair[1])
    names = NameOptions(
        https=Address(LOOPBACK, 0), domain="t.test", certificate=pair, acme=ACME
    )
    async with (
        center(tmp_path / "state", names=names) as where,
        target(page) as at,
        keeping(where, tmp_path / "state"),
        published(where, at, "shop", "own.test"),
    ):
        await orders.wait(1)
        await settled()
    assert orders.names == ["own.test"]


async def test_a_pair_that_does_not_fit_is_asked_for_again(
    tmp_path: Path, orders: Orders
) -> None:
    state = tmp_path / "state"
    async with (
        center(state, names=NAMES) as where,
        target(page) as at,
        keeping(where, state) as keeper,
        published(where, at, "shop"),
    ):
        await orders.wait(1)
        await settled()
        assert keeper.status()[0].until
    (path,) = (state / "acme").glob("*/shop.t.test.pem")
    chain = path.read_text().partition("-----BEGIN CERT")
    path.write_text(new_key() + chain[1] + chain[2])
    async with (
        center(state, names=NAMES) as where,
        target(page) as at,
        keeping(where, state),
        published(where, at, "shop"),
    ):
        await orders.wait(2)
    assert orders.names == ["shop.t.test"] * 2


@pytest.mark.parametrize("with_http", [False, True])
async def test_a_made_up_name_stays_a_secret(
    tmp_path: Path, orders: Orders, with_http: bool
) -> None:
    http = Address(LOOPBACK, 0) if with_http else None
    names, made_up = replace(NAMES, http=http), own_name(b"a" * 16, "8000")
    async with (
        center(tmp_path / "state", names=names) as where,
        target(page) as at,
        keeping(where, tmp_path / "state"),
    ):
        client, notices = where.client()
        async with trio.open_nursery() as nursery:
            for name in (made_up, "shop", "10.0.0.1"):
                entry = MappingEntry(MappingType.HTTP, name, name)
                await Published("http", entry, Service(at), scheme="http").start(client)
            await nursery.start(client.run)
            await orders.wait(1)
            await settled()
            ready = {one.public.host: one for one in notices.of(MappingReady)}
            refused = {one.wanted.host: one for one in notices.of(MappingRefused)}
            client.stop()
    assert orders.names == ["shop.t.test"]
    assert ready["shop.t.test"].over_tls
    if with_http:  # where nothing else will do, it is at the HTTP port as before
        assert not ready[f"{made_up}.t.test"].over_tls
        assert not refused
    else:
        assert set(refused) == {made_up, "10.0.0.1"}
        assert "secret" in refused[made_up].answer.reason
