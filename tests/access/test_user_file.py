"""The file of users: what is written is read back, and a fault is named by its line."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnel.access import files
from tunnel.access.files import locked
from tunnel.access.limits import parse_limits
from tunnel.access.rules import default_rights, parse_rights
from tunnel.access.user_file import (
    changed_users,
    load_users,
    read_users,
    users_path,
    write_users,
)
from tunnel.access.users import RESERVED, Once, User, check_name, find_user
from tunnel.errors import StateError, TunnelError, UsageError
from tunnel.proto.proofs import verifier_of

if TYPE_CHECKING:
    from pathlib import Path

VERIFIER: Final = verifier_of("alice", bytes(32))
OTHER: Final = verifier_of("alice", bytes(31) + b"1")
ALICE: Final = User(
    "alice",
    VERIFIER,
    default_rights("alice"),
    parse_limits(["rate=5MB/s", "sessions=3"]),
    1_800_000_000.0,
    Once(bytes(range(16)), OTHER),
)
BOB: Final = User(
    "bob",
    OTHER,
    parse_rights(["tcp:1", "tcp:2", "udp:3", 'unix:/run/ä "\\ a.sock', "exit:home"]),
    once=Once(),
    was="robert",
)
TEXT: Final = write_users({"bob": BOB, "alice": ALICE})


def test_what_is_written_is_read_back() -> None:
    assert read_users(TEXT, "users.toml") == {"alice": ALICE, "bob": BOB}


def test_a_time_without_a_zone_is_utc(monkeypatch: pytest.MonkeyPatch) -> None:
    """A person writes it so, on a machine that is anywhere."""
    text = TEXT.replace("T08:00:00Z", "T08:00:00", 1)
    assert text != TEXT
    try:
        with monkeypatch.context() as patch:
            patch.setenv("TZ", "XXX-5")
            time.tzset()
            found = read_users(text, "users.toml")
    finally:
        time.tzset()
    assert found["alice"].expires_at == ALICE.expires_at


def test_no_token_is_in_the_file() -> None:
    assert TEXT.count("prot1:") == 3
    assert VERIFIER.render() in TEXT


@pytest.mark.parametrize(
    ("right", "wrong", "line", "said"),
    [
        ("ports:16", "prts:16", 5, "ports:16"),
        ("5MB/s", "5Mb/s", 6, "5MB/s"),
        ("limits =", "limit =", 6, "limits"),
        ("sessions=3", "sesions=3", 6, "sessions"),
        ("expires = 2027", "expires = 'x' # 2027", 7, "2026-12-31"),
        ("prot1:", "prot2:", 4, "prot1"),
        ("[users.bob]", "[users.Bob]", 11, "bob"),
        ("[users.bob]", "[users.www]", 11, "www"),
        ("[users.bob]", "[user.bob]", 11, "users"),
        ("once = true", "once = 7", 20, "once is true"),
        ('once = "0001', 'once = "zz01', 8, "once is true"),
        ("own = ", "# own = ", 8, "once is true"),
        ("once = true", "once = ", 20, "value"),
        ("tcp:1", "tcp:1\n", 14, ""),
        ("once = true", "once = " + "[" * 10_000, 22, ""),
        ("once = true", "once = " + "1" * 5_000, 22, ""),
        ("2027-01-15", "2027-13-15", 7, ""),
    ],
)
def test_a_fault_is_named_with_its_line(
    right: str, wrong: str, line: int, said: str
) -> None:
    with pytest.raises(StateError) as caught:
        read_users(TEXT.replace(right, wrong, 1), "/s/users.toml")
    error = caught.value
    assert error.what.startswith(f"/s/users.toml:{line}: ")
    assert said in f"{error.what} {error.cause} {error.fix}"
    assert VERIFIER.render() not in f"{error.what} {error.cause} {error.fix}"


@given(st.text(alphabet="[]users.alice\"'=\n #{}0123,tfroe", max_size=80))
def test_any_text_is_users_or_a_state_error(text: str) -> None:
    for whole in (text, TEXT + text):
        try:
            read_users(whole, "f")
        except StateError as error:
            said = error.what
        else:
            continue
        assert said.startswith("f:")


def test_two_changes_at_once_both_hold(tmp_path: Path) -> None:
    """Each waits for the other: none is lost."""
    started = threading.Barrier(4)

    def invite(first: int) -> None:
        started.wait()
        for number in range(first, 40, 4):
            with changed_users(tmp_path) as users:
                users[f"u{number}"] = User(f"u{number}", VERIFIER)

    threads = [threading.Thread(target=invite, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert load_users(tmp_path).keys() == {f"u{n}" for n in range(40)}
    assert users_path(tmp_path).stat().st_mode & 0o777 == 0o600


def test_a_change_that_fails_changes_nothing(tmp_path: Path) -> None:
    with changed_users(tmp_path) as users:
        users["alice"] = ALICE
    before = users_path(tmp_path).read_bytes()

    def fail() -> None:
        with changed_users(tmp_path) as users:
            del users["alice"]
            find_user(users, "alice")

    with pytest.raises(UsageError):
        fail()
    assert users_path(tmp_path).read_bytes() == before


def test_a_wrong_file_is_not_overwritten(tmp_path: Path) -> None:
    users_path(tmp_path).write_text("[users.alice]\nmay = 3\n")
    users_path(tmp_path).chmod(0o600)
    with (
        pytest.raises(StateError, match=r"users\.toml:1"),
        changed_users(tmp_path),
    ):
        pytest.fail("the block begins")
    assert users_path(tmp_path).read_text().startswith("[users.alice]")


def test_a_lock_that_is_kept_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "LOCK_PAUSE_S", 0.001)
    path = tmp_path / "lock"
    with locked(path), pytest.raises(StateError), locked(path, within_s=0.01):
        pass
    with locked(path, within_s=0.01):
        pass


@pytest.mark.parametrize("name", sorted(RESERVED))
def test_kept_names_are_not_given(name: str) -> None:
    with pytest.raises(UsageError):
        check_name(name)


@given(st.text(max_size=40))
def test_a_name_is_of_its_grammar_or_refused(name: str) -> None:
    fits = 0 < len(name) <= 32 and set(name) <= set(
        "abcdefghijklmnopqrstuvwxyz0123456789-"
    )
    try:
        check_name(name)
    except TunnelError:
        assert not fits or name in RESERVED
    else:
        assert fits


def test_an_unknown_user_is_told_with_the_nearest() -> None:
    with pytest.raises(UsageError) as caught:
        find_user({"alice": ALICE}, "alcie")
    assert caught.value.fix == "did you mean alice?"
