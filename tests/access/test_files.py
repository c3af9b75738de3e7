from __future__ import annotations

import fcntl
import io
import os
import stat
from pathlib import Path

import pytest
from support.private import another, mode_of, own

from tunnel.access.files import read_private, sole_server, write_private
from tunnel.access.identity import load_or_make_identity
from tunnel.access.join import owner_token
from tunnel.errors import Exit, StateError
from tunnel.platform import files as platform_files

USER = 1234


def test_a_private_file_has_mode_600_in_a_folder_of_mode_700(tmp_path: Path) -> None:
    path = tmp_path / "new" / "state" / "secret"
    write_private(path, "ä\n")
    assert read_private(path) == "ä\n"
    assert mode_of(path) == 0o600
    assert mode_of(path.parent) == 0o700
    assert os.listdir(path.parent) == ["secret"]


def test_writing_a_private_file_again_replaces_it_and_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_text("old")
    path.chmod(0o644)
    write_private(path, "new")
    assert read_private(path) == "new"
    assert mode_of(path) == 0o600


def test_a_private_file_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, seen = tmp_path / "secret", []

    def fsync(descriptor: int) -> None:
        is_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        size = None if is_folder else os.fstat(descriptor).st_size
        seen.append((size, path.exists()))

    monkeypatch.setattr(os, "fsync", fsync)
    write_private(path, "12345")
    assert seen == [(5, False), (None, True)]


def test_a_private_file_leaves_no_descriptor_open(tmp_path: Path) -> None:
    before = os.listdir("/proc/self/fd")
    write_private(tmp_path / "secret", "12345")
    assert os.listdir("/proc/self/fd") == before


def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    path = tmp_path / "secret"
    write_private(path, "old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StateError) as caught:
        write_private(path, "new")
    assert caught.value.cause == "No space left on device"
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["secret"]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o610])
def test_a_secret_file_open_to_others_is_refused_with_its_chmod(
    tmp_path: Path, mode: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a secret"
    write_private(path, "x")
    path.chmod(mode)
    own(USER, monkeypatch)
    with pytest.raises(StateError) as caught:
        read_private(path)
    assert caught.value.fix.startswith(f"chmod 600 '{path}', or set TUNNEL_TRUST_FILES")
    assert f"{mode:03o}" in caught.value.cause
    assert caught.value.exit_status is Exit.CONFIGURATION
    monkeypatch.setenv("TUNNEL_TRUST_FILES", "yes")
    assert read_private(path) == "x"


@pytest.mark.parametrize("mode", [0o400, 0o440, 0o444, 0o600, 0o644])
@pytest.mark.parametrize("folder", [0o755, 0o777, 0o1777])
def test_a_secret_file_that_only_root_could_have_written_is_read_by_anybody(
    tmp_path: Path, mode: int, folder: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "..data"
    data.mkdir()
    (data / "join").write_text("x")
    (data / "join").chmod(mode)
    data.chmod(folder)
    (tmp_path / "join").symlink_to("..data/join")
    own(0, monkeypatch)
    monkeypatch.setattr(os, "geteuid", lambda: USER)
    assert read_private(tmp_path / "join") == "x"


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_a_secret_file_of_root_that_others_can_write_is_refused(
    tmp_path: Path, mode: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "secret"
    write_private(path, "x")
    path.chmod(mode)
    own(0, monkeypatch)
    with pytest.raises(StateError) as caught:
        read_private(path)
    assert "TUNNEL_TRUST_FILES" in caught.value.fix


def test_a_secret_file_of_another_user_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "secret"
    write_private(path, "x")
    own(USER + 1, monkeypatch)
    monkeypatch.setattr(os, "geteuid", lambda: USER)
    with pytest.raises(StateError) as caught:
        read_private(path)
    assert "another user" in caught.value.cause
    assert f"chown {USER}" in caught.value.fix
    # A file that a service reads stays the service's.
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with pytest.raises(StateError) as caught:
        read_private(path)
    assert caught.value.fix.startswith(f"run this as user {USER + 1}, or set")


@pytest.mark.parametrize("place", ["/proc/nowhere/tunnel", "/dev/null/tunnel"])
def test_a_folder_that_cannot_be_made_is_a_state_error(place: str) -> None:
    with pytest.raises(StateError):
        write_private(Path(place) / "secret", "x")


def test_an_absent_or_damaged_secret_file_is_a_state_error(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="cannot read"):
        read_private(tmp_path / "absent")
    path = tmp_path / "secret"
    write_private(path, "")
    path.write_bytes(b"\xff")
    with pytest.raises(StateError) as caught:
        read_private(path)
    assert caught.value.cause == "the file is damaged"


def test_a_state_folder_that_is_a_file_is_a_state_error(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("")
    with pytest.raises(StateError):
        owner_token(path)
    with pytest.raises(StateError):
        load_or_make_identity(path)
    with pytest.raises(StateError):
        load_or_make_identity(path / "below")
    nowhere = tmp_path / "nowhere"
    nowhere.symlink_to(tmp_path / "absent")
    with pytest.raises(StateError, match="cannot write"):
        load_or_make_identity(nowhere)
    with pytest.raises(StateError, match="cannot use"), sole_server(nowhere):
        pass


SERVE = """
import pathlib, sys
from tunnel.access.files import sole_server
from tunnel.access.identity import load_or_make_identity
with sole_server(pathlib.Path(sys.argv[1])):
    load_or_make_identity(pathlib.Path(sys.argv[1]))
    print("holds", flush=True)
    sys.stdin.read()
"""


def test_a_folder_has_one_server_until_that_is_killed(tmp_path: Path) -> None:
    state = tmp_path / "state"
    with another(SERVE, state) as (process, said):
        assert said == "holds"
        with pytest.raises(StateError) as caught, sole_server(state):
            pass
        assert str(state) in caught.value.what
        assert f"process {process.pid} " in caught.value.cause
        assert "--state" in caught.value.fix
        process.kill()
    with sole_server(state):
        pass
    with sole_server(state):
        pass


def test_without_locks_nobody_is_kept_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(_descriptor: int, _how: int) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with sole_server(tmp_path), sole_server(tmp_path):
        pass


def test_an_error_of_the_body_passes_and_frees_the_folder(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="body"), sole_server(tmp_path):
        raise OSError("body")
    with sole_server(tmp_path):
        pass


def test_who_holds_the_lock_of_a_folder_is_told_from_who_holds_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inode = tmp_path.stat().st_ino
    table = (
        "1: FLOCK  ADVISORY  WRITE 11 00:1f:999999999 0 EOF\n"
        f"2: POSIX  ADVISORY  WRITE 12 00:1f:{inode} 0 EOF\n"
        f"3: FLOCK  ADVISORY  WRITE 13 00:1f:{inode} 0 EOF\n"
    )
    monkeypatch.setattr(
        platform_files, "open", lambda *_args, **_kw: io.StringIO(table), raising=False
    )
    with (
        sole_server(tmp_path),
        pytest.raises(StateError) as caught,
        sole_server(tmp_path),
    ):
        pass
    assert "process 13 has its lock" in caught.value.cause
