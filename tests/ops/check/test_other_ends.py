"""``check`` and ``doctor`` with servers of another age, and with hostile ones."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import trio
from support.center import center

from tunnel.center import server as server_module
from tunnel.errors import Exit
from tunnel.ops.check import check, doctor, measure
from tunnel.ops.check.check import Wanted
from tunnel.ops.check.measure import LATE_S, MARK_EVERY_S, Marks
from tunnel.ops.entry_syntax import parse_tcp
from tunnel.ops.flags import ServerFlags
from tunnel.ops.show import Show
from tunnel.proto.frames import CAN_TRY, SERVER_CAN
from tunnel.proto.throughput import REPORT

if TYPE_CHECKING:
    from pathlib import Path

    from support.center import Center

    from tunnel.center.exit.throughput import Throughput
    from tunnel.link.virtual import VirtualStream

Said = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def found(said: Said) -> dict[str, dict[str, Any]]:
    lines = map(json.loads, said.readouterr().out.splitlines())
    return {line["what"]: line for line in lines if line["event"] == "finding"}


async def look(where: Center) -> Exit:
    line = where.join.render()
    return await doctor.run_doctor(line, "none", None, None, {}, Show(as_json=True))


async def try_out(where: Center) -> Exit:
    wanted = Wanted(
        None, None, ServerFlags(to=where.join.render(), via="none"),
        (parse_tcp(f"0={where.address}"),),
    )  # fmt: skip
    return await check.run_check(wanted, Show(as_json=True), offline=False)


async def test_an_older_server_is_checked_without_what_it_cannot_say(
    monkeypatch: pytest.MonkeyPatch, capsys: Said
) -> None:
    monkeypatch.setattr(server_module, "SERVER_CAN", SERVER_CAN & ~CAN_TRY)
    async with center() as where:
        assert await try_out(where) is Exit.OK
        said = found(capsys)
        assert said["public"]["grade"] == "skip"
        assert "too old" in said["public"]["found"]
        assert said["server"]["grade"] == "ok"
        assert await look(where) is Exit.OK
        said = found(capsys)
        assert said["throughput"]["grade"] == "skip"
        assert "too old" in said["throughput"]["found"]
        assert said["round-trip"]["grade"] == "ok"


async def test_a_server_that_answers_too_little_is_a_finding_and_no_fault(
    monkeypatch: pytest.MonkeyPatch, capsys: Said
) -> None:
    async def nothing(*_args: object) -> list[object]:
        await trio.lowlevel.checkpoint()
        return []

    monkeypatch.setattr(server_module, "answer_mapping", nothing)
    async with center() as where:
        assert await try_out(where) is Exit.CHECK_FAILED
        assert found(capsys)["server"]["grade"] == "fail"


async def test_a_server_that_never_answers_is_a_finding(
    monkeypatch: pytest.MonkeyPatch, capsys: Said
) -> None:
    async def silent(*_args: object) -> None:
        await trio.sleep_forever()

    monkeypatch.setattr(server_module, "answer_mapping", silent)
    monkeypatch.setattr("tunnel.link.mapping_rpc.ANSWER_DEADLINE_S", 0.2)
    async with center() as where:
        assert await try_out(where) is Exit.CHECK_FAILED
        said = found(capsys)["server"]
        assert said["grade"] == "fail"
        assert "no answer" in said["found"]


@pytest.mark.parametrize("what", ["silence", "a flood of reports", "half a report"])
async def test_a_server_that_measures_wrongly_costs_seconds_and_no_memory(
    what: str, monkeypatch: pytest.MonkeyPatch, capsys: Said
) -> None:
    async def wrongly(self: Throughput, stream: VirtualStream, _target: object) -> None:
        del self
        stream.accept()
        try:
            if what == "silence":
                await trio.sleep_forever()
            if what == "half a report":
                await stream.send_all(REPORT.pack(1_000, 1 << 60)[:-1])
                return await stream.aclose()
            at = 0
            while True:
                at += 1
                await stream.send_all(REPORT.pack(at % (1 << 32), at) * 1_000)
        except trio.BrokenResourceError:
            pass

    monkeypatch.setattr(measure, "LATE_S", 0.5)
    monkeypatch.setattr("tunnel.ops.check.line.LATE_S", 0.5)
    monkeypatch.setattr("tunnel.center.exit.throughput.Throughput.serve", wrongly)
    async with center() as where:
        with trio.fail_after(15):
            status = await look(where)
        said = found(capsys)
        assert "up" in said or "throughput" in said
        assert "path-mtu" in said
        if what == "silence":
            assert status is Exit.CHECK_FAILED


def test_marks_are_few_whatever_a_peer_reports() -> None:
    marks = Marks()
    for at in range(1_000_000):
        marks.note(at / 100_000, at)
    assert len(marks.all) <= LATE_S / MARK_EVERY_S + 1
    rate = marks.rate()
    assert rate.per_s == pytest.approx(100_000, rel=0.01)
    backwards = Marks()
    for at_s in (5.0, 1.0, 5.0, 4_000_000.0):
        backwards.note(at_s, 1 << 62)
    assert backwards.rate().seconds == 0


def test_the_rate_is_that_of_the_second_half() -> None:
    marks = Marks()
    for tenth in range(11):  # it begins slowly
        marks.note(tenth / 10, 0)
    for tenth in range(11, 21):
        marks.note(tenth / 10, (tenth - 10) * 1_000)
    assert marks.rate().per_s == pytest.approx(10_000)
    assert marks.rate().bytes == 10_000
    assert Marks().rate() == (0, 0.0, 0.0)
