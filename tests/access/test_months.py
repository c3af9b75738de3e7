"""Bytes of a month: kept, bounded, and no reason for a server not to start."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tunnel.access import months
from tunnel.access.months import FILE, KEEP_EVERY_S, Months

if TYPE_CHECKING:
    from pathlib import Path


class Calendar:
    month = "2031-05"

    def __call__(self) -> str:
        return self.month


def kept(folder: Path, calendar: Calendar) -> Months:
    return Months(folder, calendar)


def write(one: Months, now: float = float("inf")) -> bool:
    text = one.due(now)
    if text is not None:
        one.write(text)
    return text is not None


def test_a_restart_goes_on_where_the_last_one_stopped(tmp_path: Path) -> None:
    calendar = Calendar()
    one = kept(tmp_path, calendar)
    one.note("ann", 5_000)
    one.note("bob", 7)
    one.note("idle", 0)
    assert write(one)
    again = kept(tmp_path, calendar)
    assert [again.bytes_of(name) for name in ("ann", "bob", "idle")] == [5_000, 7, 0]
    assert (tmp_path / FILE).stat().st_mode & 0o777 == 0o600
    assert "idle" not in (tmp_path / FILE).read_text()


def test_another_name_has_what_the_first_had_and_is_written_at_once(
    tmp_path: Path,
) -> None:
    one = kept(tmp_path, Calendar())
    one.note("ann", 5)
    one.note("eve", 9)
    assert write(one, 100)
    one.rename("ann", "anna")
    assert write(one, 100)
    one.rename("nobody", "eve")
    assert write(one, 100)
    one.rename("nobody", "else")
    assert not write(one, 100 + KEEP_EVERY_S)
    assert json.loads((tmp_path / FILE).read_text())["bytes"] == {"anna": 5}


def test_another_month_begins_at_nothing(tmp_path: Path) -> None:
    calendar = Calendar()
    one = kept(tmp_path, calendar)
    one.note("ann", 5_000)
    write(one)
    calendar.month = "2031-06"
    assert kept(tmp_path, calendar).bytes_of("ann") == 0
    assert one.has_turned()
    assert not one.has_turned()
    assert one.bytes_of("ann") == 0
    assert write(one)
    assert json.loads((tmp_path / FILE).read_text()) == {
        "month": "2031-06",
        "bytes": {},
    }


def test_it_is_written_only_when_it_changed_and_not_too_often(tmp_path: Path) -> None:
    one = kept(tmp_path, Calendar())
    assert not write(one, 0)
    one.note("ann", 1)
    assert write(one, 100)
    one.note("ann", 1)
    assert not write(one, 100 + KEEP_EVERY_S)
    one.note("ann", 2)
    assert not write(one, 99 + KEEP_EVERY_S)
    assert write(one, 100 + KEEP_EVERY_S)
    one.note("ann", 3)
    assert write(one)  # at the end, at any time
    assert not write(Months(None))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        '{"month": "2031-05", "bytes": {"ann": 5',
        "[1]",
        '"2031-05"',
        '{"month": "2031-05"}',
        '{"month": "2031-05", "bytes": 7}',
        '{"month": "2031-05", "bytes": {"ann": "much", "bob": true, "eve": -1}}',
        '{"month": "2031-05", "bytes": {"ann": 1e400, "bob": 99999999999999999999}}',
        "[" * 100_000,
        "\0\0\0\0",
    ],
)
def test_a_torn_or_forged_file_does_not_stop_the_server(
    tmp_path: Path, text: str
) -> None:
    (tmp_path / FILE).write_text(text)
    (tmp_path / FILE).chmod(0o600)
    one = kept(tmp_path, Calendar())
    assert one.bytes_of("ann") == one.bytes_of("bob") == one.bytes_of("eve") == 0
    one.note("ann", 9)
    assert write(one)
    assert kept(tmp_path, Calendar()).bytes_of("ann") == 9


def test_what_is_no_text_or_too_large_or_open_to_others_is_not_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / FILE
    good = '{"month": "2031-05", "bytes": {"ann": 5}}'
    for content, mode in (
        (b"\xff\xfe", 0o600),
        (good.encode() + b" " * months.MAX_BYTES, 0o600),
        (good.encode(), 0o666),
    ):
        path.write_bytes(content)
        path.chmod(mode)
        assert kept(tmp_path, Calendar()).bytes_of("ann") == 0
    assert len(caplog.records) == 3
    path.chmod(0o600)
    assert kept(tmp_path, Calendar()).bytes_of("ann") == 5


def test_users_are_kept_up_to_a_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(months, "MAX_USERS", 3)
    one = kept(tmp_path, Calendar())
    for at in range(5):
        one.note(f"u{at}", 1)
    one.note("u0", 2)
    write(one)
    again = kept(tmp_path, Calendar())
    assert [again.bytes_of(f"u{at}") for at in range(5)] == [2, 1, 1, 0, 0]


def test_a_folder_that_cannot_be_written_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "file"
    file.write_text("")
    one = kept(file / "below", Calendar())
    said = len(caplog.records)
    for size in (1, 2, 3):
        one.note("ann", size)
        assert write(one)
    assert len(caplog.records) == said + 1


def test_what_is_written_at_once_keeps_nobody_from_writing_later(
    tmp_path: Path,
) -> None:
    months = Months(tmp_path)
    months.note("ann", 1)
    assert months.due() is not None
    months.note("ann", 2)
    assert months.due(1_000.0) is not None
