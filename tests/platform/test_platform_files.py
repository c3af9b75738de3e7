"""Files on each operating system: what others do instead is run here too."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

import pytest

from tunnel.platform import files

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Open = Callable[
        [bytes, Callable[[bytes, os.stat_result], bool]],
        tuple[int, os.stat_result] | None,
    ]

WAYS = [files.open_real, files._open_twice_looked_at]


def plain(_path: bytes, status: os.stat_result) -> bool:
    return stat.S_ISREG(status.st_mode)


@pytest.mark.parametrize("way", WAYS)
def test_a_link_is_opened_as_what_it_leads_to(way: Open, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"text")
    (tmp_path / "link").symlink_to("file")
    seen: list[bytes] = []

    def note(path: bytes, status: os.stat_result) -> bool:
        seen.append(path)
        return plain(path, status)

    found = way(os.fsencode(tmp_path / "link"), note)
    assert found is not None
    number, status = found
    assert files.read_at(number, 10, 1) == b"ext"
    assert status.st_size == 4
    assert seen == [os.fsencode(tmp_path / "file")]
    os.close(number)


@pytest.mark.parametrize("way", WAYS)
def test_what_may_not_be_opened_is_not_touched(way: Open, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")  # to open it would wait for a writer
    before = len(os.listdir("/proc/self/fd"))
    assert way(os.fsencode(tmp_path / "pipe"), plain) is None
    assert way(os.fsencode(tmp_path), plain) is None
    assert way(os.fsencode(tmp_path / "nothing"), plain) is None
    assert way(b"\0", plain) is None
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_file_that_is_replaced_after_the_look_is_not_opened(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"public")
    (tmp_path / "secret").write_bytes(b"secret")

    def swap(_path: bytes, _status: os.stat_result) -> bool:
        (tmp_path / "secret").rename(tmp_path / "file")
        return True

    before = len(os.listdir("/proc/self/fd"))
    assert files._open_twice_looked_at(os.fsencode(tmp_path / "file"), swap) is None
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_lock_keeps_others_off_and_names_its_holder(tmp_path: Path) -> None:
    one, other = files.open_lockable(tmp_path), files.open_lockable(tmp_path)
    assert files.lock_holder(other) is None
    files.lock_file(one)
    with pytest.raises(BlockingIOError):
        files.lock_file(other)
    os.close(one)
    files.lock_file(other)
    os.close(other)


def test_a_file_is_given_its_mode_whatever_the_umask_is(tmp_path: Path) -> None:
    number = files.open_file(tmp_path / "file", os.O_CREAT | os.O_WRONLY, 0o644)
    files.set_mode(number, 0o600)
    assert stat.S_IMODE(os.fstat(number).st_mode) == 0o600
    os.close(number)
    files.sync_folder(tmp_path)
