"""What the inspector answers: found, exported and asked again, without being felt."""

from __future__ import annotations

import gzip
import json
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing
from support import npm
from support.far import Far, read_head
from support.seen import ANSWER, HEAD, VISITOR, seen

from tunnel.errors import UsageError
from tunnel.front.http.server import Visit
from tunnel.front.http.service import handle_service
from tunnel.front.http.service_rules import ServiceRules
from tunnel.ops.inspector import replay
from tunnel.ops.inspector.inspector import MOST_IN_HAR, Inspector
from tunnel.ops.inspector.watcher import Looker

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable
    from pathlib import Path

    from tunnel.addresses import Address
    from tunnel.front.http.observer import Watch
    from tunnel.ops.inspector.record import Record
    from tunnel.ops.inspector.watcher import EntryWatch

LONGEST_TURN_S = 0.25
"""Twice what one record with 1 MiB of JSON takes on a busy machine."""


@asynccontextmanager
async def inspector(limit_bytes: int = 64 << 20) -> AsyncIterator[Inspector]:
    async with trio.open_nursery() as nursery:
        yield Inspector(nursery, limit_bytes, ["x-mine"])
        nursery.cancel_scope.cancel()


class Turns(trio.abc.Instrument):
    """Measures how long tasks have the loop at most."""

    def __init__(self) -> None:
        self.longest_s = 0.0
        self._began = 0.0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self._began = time.thread_time()  # others have the processor too

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        if self._began:
            self.longest_s = max(self.longest_s, time.thread_time() - self._began)


def messages(it: Inspector, *texts: bytes) -> Record:
    record = it.store.add("http shop", VISITOR, HEAD)
    looker = Looker(it.store, record)
    looker.answers(101, b"HTTP/1.1 101 S\r\nUpgrade: websocket\r\n\r\n")
    for text in texts:
        looker.passed(b"\x81" + bytes([len(text)]) + text, to_visitor=True)
    return record


async def test_a_text_is_found_wherever_it_stands_but_not_where_it_is_hidden() -> None:
    async with inspector() as it:
        packed = ANSWER.replace(
            b"Content-Type", b"Content-Encoding: gzip\r\nContent-Type"
        )
        one = seen(it.store, answer=packed, text=gzip.compress(b"Deep inside"))
        two = messages(it, b'{"token": "S3cret", "a": "Said"}')
        for text, numbers in {
            "deep INSIDE": [one.number], "said": [two.number], "shop.test": [2, 1],
            '"user"': [one.number], "xyz": [], "s3cret": [], "abc": [], "seven": [],
            '"p"': [],
        }.items():  # fmt: skip
            assert await it.find({"text": text}) == {"numbers": numbers}, text
        for wrong in ({}, {"text": ""}, {"text": 7}):
            with pytest.raises(UsageError):
                await it.find(wrong)


async def test_neither_a_search_nor_an_archive_is_felt() -> None:
    async with inspector() as it:
        bomb = gzip.compress(bytes(1 << 20))
        packed = ANSWER.replace(
            b"Content-Type", b"Content-Encoding: gzip\r\nContent-Type"
        )
        big = json.dumps([{"password": "x", "n": n} for n in range(30_000)]).encode()
        for _ in range(100):
            seen(it.store, answer=packed, text=bomb)
        for _ in range(4):
            seen(it.store, text=big, answer=ANSWER.replace(b"text/plain", b"a/json"))
        for _ in range(1_500):
            seen(it.store)
        trio.lowlevel.add_instrument(turns := Turns())
        with trio.fail_after(20):
            await it.find({"text": "not there"})
            await it.find({"text": '"n": 77'})
            archive: Any = await it.har({})
        trio.lowlevel.remove_instrument(turns)
        assert turns.longest_s < LONGEST_TURN_S
        log = archive["har"]["log"]
        assert len(log["entries"]) == MOST_IN_HAR
        assert log["comment"] == f"{1_604 - MOST_IN_HAR} older requests are left out"
        assert len(json.dumps(it.list({"most": 10_000}))) < 1_000_000


async def test_an_archive_is_taken_by_a_checker(tmp_path: Path) -> None:
    modules = npm.install(tmp_path, npm.HAR)
    async with inspector() as it:
        form = HEAD.replace(b"application/json", b"application/x-www-form-urlencoded")
        seen(it.store)
        seen(it.store, form, b"a=1&token=2&x")
        seen(it.store, text=bytes(range(256)), answer=ANSWER.replace(b"text", b"image"))
        seen(it.store, b"PUT /\x1b[2J\xff HTTP/1.1\r\nHost: \xff\r\n\r\n", b"\0\xff")
        messages(it, b"hello", b"{}")
        it.store.add("http shop", VISITOR, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        it.store.add("http shop", VISITOR, b"\x16\x03\x01")
        for reveal in (False, True):
            archive = (await it.har({"reveal": reveal}))["har"]
            assert not npm.har_faults(json.dumps(archive).encode(), modules)


# Asked again -------------------------------------------------------------------------


class Service:
    """What serves an entry, and the targets that it opens."""

    def __init__(self, watch: EntryWatch) -> None:
        self.opened: list[Far] = []
        watch.served_by(self)

    async def _open(self, _visitor: Address) -> Far:
        await trio.lowlevel.checkpoint()
        self.opened.append(Far())
        return self.opened[-1]

    async def next(self) -> Far:
        """Wait for the target that is opened for a request."""
        await trio.testing.wait_all_tasks_blocked()
        return self.opened[-1]

    def __call__(
        self, stream: trio.abc.HalfCloseableStream, peer: Address, watch: Watch | None
    ) -> Awaitable[None]:
        visit = Visit(stream, peer, watch=watch)
        return handle_service(visit, ServiceRules(), self._open, believe_headers=True)


async def settled(it: Inspector, record: Record) -> None:
    with trio.fail_after(5):
        while record.state not in ("done", "failed"):
            await it.store.changed(it.store.version)


async def test_a_request_is_asked_again_of_its_entry() -> None:
    async with inspector() as it:
        watch = it.watch("http shop")
        service = Service(watch)
        was = seen(it.store)
        answer = await it.replay({"number": was.number})
        target = await service.next()
        head = await read_head(target.far)
        assert head.line == "POST /a?token=abc&b=1 HTTP/1.1"
        assert head.all("authorization") == ["Bearer xyz"]
        assert await target.far.receive_some(31) == bytes(was.request.data)
        await target.far.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        record = it.store.get(answer["number"])  # type: ignore[arg-type]
        assert record is not None
        await settled(it, record)
        assert (record.replay_of, record.status) == (was.number, 200)
        assert (record.answer.data, record.state) == (b"ok", "done")
        # An edited one that is no HTTP is refused by the engine, as any would be.
        edit = {"method": "GET", "fields": [["Host", "a"], ["Host", "b"]]}
        answer = await it.replay({"number": was.number, "edit": edit})
        record = it.store.get(answer["number"])  # type: ignore[arg-type]
        assert record is not None
        await settled(it, record)
        assert (record.status, len(service.opened)) == (400, 1)
        # The entry goes, and with it who could serve.
        del watch
        with pytest.raises(UsageError, match="no more"):
            await it.replay({"number": was.number})


async def test_an_answer_without_end_is_given_up(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    monkeypatch.setattr(replay, "REPLAY_S", 5.0)
    async with inspector() as it:
        watch = it.watch("http shop")
        service = Service(watch)
        answer = await it.replay({"number": seen(it.store).number})
        target = await service.next()
        await target.far.send_all(b"HTTP/1.1 200 OK\r\n\r\nfor ever")
        await trio.sleep(6)
        record = it.store.get(answer["number"])  # type: ignore[arg-type]
        assert record is not None
        assert (record.state, record.failure) == ("failed", "given up after 5 s")
        assert target.resets


async def test_a_fault_of_what_serves_ends_nothing_else() -> None:
    async with inspector() as it:
        watch = it.watch("http shop")

        async def broken(
            stream: trio.abc.HalfCloseableStream, peer: Address, watch: Watch | None
        ) -> None:
            await trio.lowlevel.checkpoint()
            raise RuntimeError("broken")

        watch.served_by(broken)
        was = seen(it.store)
        for _ in range(2 * replay.MOST_AT_ONCE):
            with pytest.raises(UsageError, match="not asked"):
                await it.replay({"number": was.number})
