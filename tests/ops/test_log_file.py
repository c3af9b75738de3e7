"""A log file: made private, opened anew, and never in anybody's way."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support.processes import eventually

from tunnel.errors import StateError
from tunnel.ops import log_file
from tunnel.ops.log_file import MODE, LogFile
from tunnel.platform.files import open_to_append

if TYPE_CHECKING:
    from collections.abc import Iterator


class Troubles:
    def __init__(self) -> None:
        self.told: list[tuple[str, int]] = []

    def __call__(self, why: str, lost: int) -> None:
        self.told.append((why, lost))


@pytest.fixture
def troubles() -> Troubles:
    return Troubles()


def test_a_file_is_made_for_its_owner_alone_whatever_the_umask(
    tmp_path: Path, troubles: Troubles
) -> None:
    for mask in (0, 0o777):
        path = tmp_path / f"log{mask}"
        before = os.umask(mask)
        try:
            LogFile(path, troubles)
        finally:
            os.umask(before)
        assert path.stat().st_mode & 0o777 == MODE == 0o600


def test_a_file_that_is_there_keeps_its_mode_and_its_lines(
    tmp_path: Path, troubles: Troubles
) -> None:
    path = tmp_path / "log"
    path.write_text("before\n")
    path.chmod(0o640)
    file = LogFile(path, troubles)
    file.write("ä line\n")
    file.close()
    assert path.read_text("utf-8") == "before\nä line\n"
    assert path.stat().st_mode & 0o777 == 0o640


def test_a_folder_that_is_not_there_is_an_error_at_the_start(
    tmp_path: Path, troubles: Troubles
) -> None:
    with pytest.raises(StateError, match="cannot write the log") as raised:
        LogFile(tmp_path / "nowhere" / "log", troubles)
    assert raised.value.cause == "No such file or directory"


def test_a_pipe_without_a_reader_is_an_error_and_no_wait(
    tmp_path: Path, troubles: Troubles
) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(StateError):
        LogFile(tmp_path / "pipe", troubles)


def test_a_renamed_file_is_left_at_reopen(tmp_path: Path, troubles: Troubles) -> None:
    path = tmp_path / "log"
    file = LogFile(path, troubles)
    file.write("one\n")
    eventually(lambda: path.read_text() == "one\n", "the first line")
    path.rename(tmp_path / "log.1")
    file.reopen()
    file.write("two\n")
    file.close()
    assert (tmp_path / "log.1").read_text() == "one\n"
    assert path.read_text() == "two\n"
    assert path.stat().st_mode & 0o777 == 0o600
    assert troubles.told == []


def test_a_folder_that_vanished_leaves_the_old_file_in_use(
    tmp_path: Path, troubles: Troubles
) -> None:
    (tmp_path / "folder").mkdir()
    path = tmp_path / "folder" / "log"
    file = LogFile(path, troubles)
    (tmp_path / "folder").rename(tmp_path / "gone")
    file.reopen()
    file.write("still\n")
    file.close()
    assert (tmp_path / "gone" / "log").read_text() == "still\n"
    ((why, lost),) = troubles.told
    assert "No such file or directory" in why
    assert lost == 0


class Writes:
    """What ``os.write`` does for the log: some bytes, an error, or a stall."""

    def __init__(self) -> None:
        self.room: int | None = None
        self.goes = threading.Event()
        self.goes.set()
        self.written = bytearray()

    def __call__(self, _number: int, data: memoryview) -> int:
        self.goes.wait(20)
        if self.room == 0:
            raise OSError(28, "No space left on device")
        taken = bytes(data[: self.room])
        if self.room is not None:
            self.room -= len(taken)
        self.written += taken
        return len(taken)


@pytest.fixture
def writes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Writes]:
    made = Writes()
    monkeypatch.setattr(os, "write", made)
    yield made
    made.goes.set()


def test_a_full_disk_is_told_once_and_costs_only_lines(
    tmp_path: Path, troubles: Troubles, writes: Writes
) -> None:
    file = LogFile(tmp_path / "log", troubles)
    writes.room = 8
    file.write("whole\nhalf of it\n")
    eventually(lambda: len(troubles.told) == 1, "the trouble is told")
    file.write("lost\n")
    eventually(lambda: file._lost == 2, "the line is given up")
    writes.room = None
    file.write("again\n")
    file.close()
    assert bytes(writes.written) == b"whole\nha\nagain\n"
    assert troubles.told == [("No space left on device", 0), ("", 2)]


def test_a_disk_that_stalls_holds_nobody_up_and_no_more_than_a_bound(
    tmp_path: Path,
    troubles: Troubles,
    writes: Writes,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(log_file, "MAX_WAITING_BYTES", 1_000)
    file = LogFile(tmp_path / "log", troubles)
    writes.goes.clear()
    for _ in range(100):
        file.write("x" * 99 + "\n")
    assert file._size == 1_000
    assert troubles.told == [("the disk does not take it", 0)]
    writes.goes.set()
    eventually(lambda: len(troubles.told) == 2, "it goes on")
    file.close()
    assert troubles.told[1] == ("", 90)
    assert bytes(writes.written).count(b"\n") == 10


# Folders that everybody may write ----------------------------------------------------

NOBODY = 65_534
as_root = pytest.mark.skipif(
    os.geteuid() != 0, reason="NOT TESTED: only root can make another user's files"
)


@pytest.fixture
def public(tmp_path: Path) -> Path:
    folder = tmp_path / "public"
    folder.mkdir()
    folder.chmod(0o1777)
    return folder


@as_root
@pytest.mark.parametrize("what", ["link", "file", "folder"])
def test_what_another_user_put_into_a_public_folder_is_not_written(
    public: Path, tmp_path: Path, what: str
) -> None:
    (tmp_path / "target").mkdir()
    victim = tmp_path / "target" / "log"
    path = public / "log"
    if what == "link":
        path.symlink_to(victim)
        os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
    elif what == "file":
        path.touch(0o666)
        os.chown(path, NOBODY, NOBODY)
    else:
        (public / "sub").symlink_to(tmp_path / "target")
        os.chown(public / "sub", NOBODY, NOBODY, follow_symlinks=False)
        path = public / "sub" / "log"
    with pytest.raises(PermissionError, match="belongs to user 65534"):
        open_to_append(path, 0o600)
    assert not victim.exists()


@as_root
def test_a_link_of_ones_own_that_leads_to_anothers_is_no_way_round(
    public: Path, tmp_path: Path
) -> None:
    planted = public / "log"
    planted.touch()
    os.chown(planted, NOBODY, NOBODY)
    (tmp_path / "mine").symlink_to(planted)
    with pytest.raises(PermissionError):
        open_to_append(tmp_path / "mine", 0o600)


def test_links_of_ones_own_are_followed(public: Path, tmp_path: Path) -> None:
    (public / "log").symlink_to(tmp_path / "log")
    os.close(open_to_append(public / "log", 0o600))
    assert (tmp_path / "log").stat().st_mode & 0o777 == 0o600
    os.close(open_to_append(Path("/dev/null"), 0o600))
