"""What systemd hears of a life; real processes are in ``system/test_systemd.py``."""

from __future__ import annotations

import logging
import os
import time
from typing import TYPE_CHECKING

import pytest
import trio
from support.supervisor import Supervisor

from tunnel.ops import systemd
from tunnel.ops.life import Life
from tunnel.ops.systemd import BEATS, MOST_WAITING, tell_systemd

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from trio.testing import MockClock

NAMES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")


@pytest.fixture
def heard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Supervisor]:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    with Supervisor(tmp_path / "notify") as supervisor:
        monkeypatch.setenv("NOTIFY_SOCKET", supervisor.env["NOTIFY_SOCKET"])
        yield supervisor


async def test_each_change_is_told_and_nothing_twice(
    heard: Supervisor, nursery: trio.Nursery
) -> None:
    life = Life()
    await nursery.start(tell_systemd, life)
    assert heard.all() == [["STATUS=it is starting"]]
    with life.reloading():
        pass
    life.ready("linked")
    assert heard.all() == [
        ["STATUS=reloading"],
        ["STATUS=it is starting"],
        ["READY=1", "STATUS=linked"],
    ]
    life.not_ready("no link")
    life.ready("linked")
    assert heard.all() == [["STATUS=no link"], ["STATUS=linked"]]
    before = time.monotonic_ns() // 1000
    with life.reloading():
        life.ready("linked")
    ((word, at, status), after) = heard.all()
    assert (word, status) == ("RELOADING=1", "STATUS=reloading")
    assert before <= int(at.removeprefix("MONOTONIC_USEC=")) <= before + 10_000_000
    assert after == ["READY=1", "STATUS=linked"]
    life.stopping("it stops", 9.5)
    life.stopping("it stops now", 9.5)
    assert heard.all() == [
        ["STOPPING=1", "EXTEND_TIMEOUT_USEC=9500000", "STATUS=it stops"]
    ]


async def test_who_was_taken_over_tells_by_whom_and_nothing_more(
    heard: Supervisor, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    life = Life()
    os.environ["WATCHDOG_USEC"] = "3000000"
    await nursery.start(tell_systemd, life)
    life.ready("listening")
    await trio.sleep(1.5)
    assert ["WATCHDOG=1"] in heard.all()
    life.hand_over(4711)
    life.stopping("it stops", 9.5)
    await trio.sleep(5)
    assert heard.all() == [["MAINPID=4711"]]
    inherited = Life()
    await nursery.start(tell_systemd, inherited, life.watched_by)
    inherited.ready("listening")
    await trio.sleep(1.5)
    assert heard.all() == [
        ["STATUS=it is starting"],
        ["READY=1", "STATUS=listening"],
        ["WATCHDOG=1"],
    ]


async def test_who_waits_for_its_server_has_started(
    heard: Supervisor, nursery: trio.Nursery
) -> None:
    life = Life()
    await nursery.start(tell_systemd, life)
    life.not_ready("no link: nobody answers")
    assert heard.all()[-1] == ["READY=1", "STATUS=no link: nobody answers"]


async def test_what_others_said_is_one_line(
    heard: Supervisor, nursery: trio.Nursery
) -> None:
    life = Life()
    await nursery.start(tell_systemd, life)
    life.not_ready("no link: a\nMAINPID=1\r" + "b" * 1_000)
    word, status = heard.all()[-1]
    assert word == "READY=1"
    assert status.startswith("STATUS=no link: a MAINPID=1 bbb")
    assert len(status) < 300


async def test_a_queue_that_is_full_is_waited_for(
    heard: Supervisor, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    life = Life()
    await nursery.start(tell_systemd, life)
    seen: list[list[str]] = []
    for number in range(1_000):
        life.ready(str(number))
    while ["STATUS=999"] not in seen:
        seen += heard.all()
        await trio.sleep(1)
    assert len(seen) < 1_000
    assert seen[-MOST_WAITING:] == [
        [f"STATUS={number}"] for number in range(1_000 - MOST_WAITING, 1_000)
    ]


@pytest.mark.parametrize("pid", ["", "own"])
async def test_signs_of_life(
    heard: Supervisor,
    nursery: trio.Nursery,
    autojump_clock: MockClock,
    monkeypatch: pytest.MonkeyPatch,
    pid: str,
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "30000000")
    if pid:
        monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    await nursery.start(tell_systemd, Life())
    heard.all()
    await trio.sleep(30 / BEATS + 0.1)
    assert heard.all() == [["WATCHDOG=1"]]
    await trio.sleep(90)
    assert len(heard.all()) == 3 * BEATS


@pytest.mark.parametrize(
    ("usec", "pid"), [("30000000", "1"), ("0", ""), ("-1", ""), ("soon", "")]
)
async def test_no_sign_is_given_that_nobody_waits_for(
    heard: Supervisor,
    nursery: trio.Nursery,
    autojump_clock: MockClock,
    monkeypatch: pytest.MonkeyPatch,
    usec: str,
    pid: str,
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", usec)
    monkeypatch.setenv("WATCHDOG_PID", pid)
    await nursery.start(tell_systemd, Life())
    await trio.sleep(100)
    assert heard.all() == [["STATUS=it is starting"]]
    assert not [name for name in NAMES if name in os.environ]


@pytest.mark.parametrize("where", ["", "vsock:2:1234", "relative"])
async def test_there_may_be_nobody_to_tell(
    monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", where)
    await tell_systemd(Life())
    assert "NOTIFY_SOCKET" not in os.environ


async def test_an_abstract_address(
    nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Supervisor(f"@tunnel-test-{os.getpid()}") as heard:
        monkeypatch.setenv("NOTIFY_SOCKET", heard.env["NOTIFY_SOCKET"])
        await nursery.start(tell_systemd, Life())
        assert heard.all() == [["STATUS=it is starting"]]


@pytest.mark.parametrize("name", ["gone", "long" * 100])
async def test_who_cannot_be_told_stops_nothing(
    nursery: trio.Nursery,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    name: str,
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / name))
    life = Life()
    with caplog.at_level(logging.WARNING):
        await nursery.start(tell_systemd, life)
        life.ready("linked")
        life.stopping("it stops", 9.5)
    assert [one.message for one in caplog.records] == ["systemd.not_told"]
    assert systemd.logger.name == caplog.records[0].name
