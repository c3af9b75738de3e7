"""``tunnel invite`` where there is no server."""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING

import pytest

from tunnel.access.join import parse_join
from tunnel.access.user_file import load_users
from tunnel.errors import StateError, UsageError
from tunnel.ops import cli, saved
from tunnel.ops.user_cli import StateFlags, expires, invite, may

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(autouse=True)
def log_of_others() -> Iterator[None]:
    """Give the log back, which a command takes over."""
    log = logging.getLogger("tunnel")
    before = log.handlers[:], log.level, log.propagate
    yield
    log.handlers[:], log.level, log.propagate = before


LINE = f"tunnel://default:{'A' * 43}@127.0.0.1:7443/#{'A' * 43}\n"


def state_with(tmp_path: Path, line: str = LINE) -> StateFlags:
    (tmp_path / "join").write_text(line)
    (tmp_path / "join").chmod(0o600)
    return StateFlags(tmp_path)


def test_a_qr_code_without_its_package_invites_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "segno", None)
    with pytest.raises(UsageError, match="segno"):
        invite("alice", qr=True, state=state_with(tmp_path))
    assert not (tmp_path / "users.toml").exists()


def test_the_qr_code_is_no_part_of_stdout(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("segno", reason="NOT TESTED: the extra qr is not installed")
    assert invite("alice", qr=True, state=state_with(tmp_path)) == 0
    said = capsys.readouterr()
    assert said.out.startswith("tunnel://alice:")
    assert said.out.count("\n") == 1
    assert "▄" in said.err


def test_the_address_may_be_another(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = state_with(tmp_path)
    for name, address, named in (
        ("a", "vps.example", "@vps.example:7443/#"),
        ("b", "vps.example:1", "@vps.example:1/#"),
        ("c", "[fd00::1]:2", "@[fd00::1]:2/#"),
        ("d", "fd00::1", "@[fd00::1]:7443/#"),
    ):
        assert invite(name, address=address, state=state) == 0
        assert named in capsys.readouterr().out


def test_without_a_line_of_a_server_there_is_none_for_others(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="no join line"):
        invite("alice", state=StateFlags(tmp_path))
    with pytest.raises(StateError, match="no folder"):
        invite("alice", state=StateFlags(tmp_path / "none"))


def test_the_commands_are_those_of_the_help() -> None:
    users = cli.app["users"]
    known = {name for name in users if not name.startswith("-")}
    assert known == {
        "expires", "limit", "ls", "may", "rename", "revoke", "rotate", "show",
    }  # fmt: skip


def test_rights_and_time_of_a_user_can_be_changed(tmp_path: Path) -> None:
    state = state_with(tmp_path)
    assert invite("alice", expires="30d", state=state) == 0
    before = load_users(tmp_path)["alice"]
    assert may("alice", "tcp:2200-2299", "socks", state=state) == 0
    assert load_users(tmp_path)["alice"].rights.words == ("tcp:2200-2299", "socks")
    assert may("alice", "none", state=state) == 0
    assert load_users(tmp_path)["alice"].rights.words == ()
    for wrong in ((), ("socks", "tpc:22")):
        with pytest.raises(UsageError):
            may("alice", *wrong, state=state)
    assert expires("alice", "60d", state=state) == 0
    after = load_users(tmp_path)["alice"]
    assert before.expires_at is not None
    assert after.expires_at is not None
    assert after.expires_at - before.expires_at > 29 * 86_400
    assert after.verifier == before.verifier  # its line is as good as it was
    assert expires("alice", "never", state=state) == 0
    assert load_users(tmp_path)["alice"].expires_at is None
    for unknown in (may, expires):
        with pytest.raises(UsageError, match="no user"):
            unknown("bob", "1d" if unknown is expires else "socks", state=state)


def test_a_life_without_a_unit_is_refused_with_what_was_meant(tmp_path: Path) -> None:
    state = state_with(tmp_path)
    with pytest.raises(UsageError, match="no unit") as caught:
        invite("alice", expires="30", state=state)
    assert caught.value.fix == "--expires 30d, or 30s"
    assert invite("alice", expires="30s", state=state) == 0
    with pytest.raises(UsageError, match="no unit"):
        expires("alice", "30", state=state)


def test_a_line_with_an_own_token_belongs_where_the_other_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.delenv("TUNNEL_TO_FILE", raising=False)
    folder = tmp_path / "tunnel"
    line = LINE.strip()
    assert saved.place_of(None, None) == folder / "default.join"
    assert saved.place_of("work", None) == folder / "work.join"
    assert saved.place_of(line, None) == folder / "default.join"
    assert saved.place_of(line, "new") == folder / "new.join"
    saved.save(parse_join(line), "default")
    assert saved.place_of(line, "new") == folder / "new.join"
    with pytest.raises(StateError) as caught:
        saved.place_of(line, None)
    assert caught.value.fix == "--save-as NAME"
    monkeypatch.setenv("TUNNEL_TO_FILE", "/run/secrets/line")
    with pytest.raises(StateError, match="one machine"):
        saved.place_of(None, None)
