"""Which processes run: many at once, dead ones, and folders that are not trusted."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

import pytest

from tunnel.errors import Exit, UsageError
from tunnel.ops.control import ask, processes
from tunnel.ops.control.commands import quick
from tunnel.ops.control.processes import (
    NotRunningError,
    find,
    find_all,
    greet_all,
    is_listed,
    is_ours,
    link_to,
    own_places,
)

if TYPE_CHECKING:
    from pathlib import Path

MANY = 64


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give the folder of this user's sockets, which is nobody's yet."""
    for name in ("XDG_STATE_HOME", "HOME", "TMPDIR"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path / "tunnel"


def listen(
    stack: ExitStack,
    run: Path,
    name: str,
    says: str | None = None,
    *,
    ends_at: str = "",
) -> None:
    """Answer questions at a socket, as a process of the name ``says`` does.

    It ends when it is asked for ``ends_at``, without an answer.
    """
    run.mkdir(mode=0o700, exist_ok=True)
    listener = stack.enter_context(socket.socket(socket.AF_UNIX))
    listener.bind(str(run / name))
    listener.listen()

    def answer() -> None:
        with suppress(OSError):
            while True:
                with listener.accept()[0] as conn:
                    asked = json.loads(conn.recv(1_000) or b'{"do": ""}')
                    if ends_at and asked["do"] == ends_at:
                        listener.close()
                        return
                    greeting = {"done": {"name": says or name}}
                    conn.sendall(json.dumps(greeting).encode() + b"\n")

    threading.Thread(target=answer, daemon=True).start()

    def shut() -> None:
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)

    stack.callback(shut)


def test_many_processes_are_all_found_in_order(run: Path) -> None:
    with ExitStack() as stack:
        for number in range(MANY):
            listen(stack, run, f"up-{number + 5}")
        listen(stack, run, "serve-7")
        began = time.monotonic()
        names = [process.name for process, _answer in greet_all()]
        assert time.monotonic() - began < processes.GREETING_S
        assert names == ["serve-7", *(f"up-{number + 5}" for number in range(MANY))]
        assert find("up-17").name == "up-17"
        assert find("up-5").name == "up-5"  # although up-50 begins so
        assert find("serve").name == "serve-7"
        assert find(None, "serve").name == "serve-7"
        for word, role in (("up-1", ""), (None, ""), (None, "up")):
            with pytest.raises(UsageError, match="several processes"):
                find(word, role)


def test_nothing_runs(run: Path) -> None:
    with pytest.raises(NotRunningError) as caught:
        find_all(None)
    assert caught.value.exit_status is Exit.NOT_RUNNING
    assert not run.exists()  # who only asks leaves nothing


def test_what_the_dead_left_is_swept_once_it_is_old(run: Path) -> None:
    run.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(run / "up-1"))
    (run / "notes").write_text("of somebody else")
    assert greet_all() == []
    assert (run / "up-1").exists()  # it may be about to listen
    os.utime(run / "up-1", (0, 0))
    assert greet_all() == []
    assert [one.name for one in run.iterdir()] == ["notes"]


def test_a_number_that_another_process_has_now_is_swept(run: Path) -> None:
    with ExitStack() as stack:
        listen(stack, run, "up-9")
        listen(stack, run, "serve-8", says="serve-88")
        os.utime(run / "serve-8", (0, 0))
        assert [process.name for process, _answer in greet_all()] == ["up-9"]
        assert not (run / "serve-8").exists()


def test_one_that_is_mute_costs_a_little_time_and_hides_nobody(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "GREETING_S", 0.2)
    with ExitStack() as stack:
        listen(stack, run, "up-1")
        mute = stack.enter_context(socket.socket(socket.AF_UNIX))
        mute.bind(str(run / "up-2"))
        mute.listen()
        found = dict(greet_all())
        answers = {process.name: answer for process, answer in found.items()}
        assert answers["up-1"] == {"name": "up-1"}
        assert "does not answer" in str(answers["up-2"])


@pytest.mark.parametrize("do", ["status", "kick", "why"])
def test_one_that_ends_while_it_is_asked_hides_no_other(
    do: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["kick", "abcd-1"] if do == "kick" else [do]
    with ExitStack() as stack:
        listen(stack, run, "up-1", ends_at=do)
        listen(stack, run, "up-2")
        assert quick(words) == Exit.OK
        if do != "why":  # which has nothing to list
            assert "up-2" in capsys.readouterr().out
    with ExitStack() as stack:
        listen(stack, run, "up-3", ends_at=do)
        assert quick(words) == Exit.NOT_RUNNING


def test_one_that_refuses_hides_no_other_and_is_said(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "GREETING_S", 0.1)
    monkeypatch.setattr(ask.ask_at, "__defaults__", (0.1,))
    with ExitStack() as stack:
        mute = stack.enter_context(socket.socket(socket.AF_UNIX))
        run.mkdir(mode=0o700)
        mute.bind(str(run / "up-1"))
        mute.listen()
        listen(stack, run, "up-2")
        assert quick(["kick", "abcd-1"]) == Exit.OK
        assert quick(["status"]) == Exit.CONFIGURATION
        out, err = capsys.readouterr()
        assert out.count("up-2") == 2
        assert "up-1 does not answer" in err


def test_a_folder_that_others_can_open_is_not_looked_at(run: Path) -> None:
    with ExitStack() as stack:
        listen(stack, run, "up-1")
        assert is_ours(run)
        run.chmod(0o750)
        assert not is_ours(run)
        assert greet_all() == []
        run.chmod(0o700)
        (run.parent / "link").symlink_to(run)
        assert not is_ours(run.parent / "link")


def test_two_processes_of_one_number_have_two_places(run: Path) -> None:
    own = str(os.getpid())
    first, second, *_ = own_places("up")
    assert (first, second) == (run / f"up-{own}", run / f"up-{own}-2")
    assert run.stat().st_mode & 0o777 == 0o700
    with ExitStack() as stack:
        listen(stack, run, first.name)
        assert is_listed(os.getpid())
        assert not is_listed(1)
        state = run.parent / "control"
        assert not link_to(state, first)
        assert link_to(state, second)
        assert link_to(state, second)  # as after a kill -9
        assert os.readlink(second) == str(state)


def test_the_umask_opens_no_folder_and_closes_none(run: Path) -> None:
    for mask in (0, 0o777):
        before = os.umask(mask)
        try:
            assert next(own_places("up")).parent == run
        finally:
            os.umask(before)
        assert run.stat().st_mode & 0o777 == 0o700
        run.rmdir()


HEAVY = ("asyncio", "cryptography", "cyclopts", "h11", "logging", "rich", "ssl", "trio")


def test_a_command_loads_nothing_that_takes_long_to_load() -> None:
    code = "import sys, tunnel.__main__; print(*sys.modules)"
    loaded = subprocess.run(
        (sys.executable, "-c", code), capture_output=True, check=True, text=True
    ).stdout.split()
    assert "tunnel.ops.control.commands" in loaded
    assert not set(loaded) & set(HEAVY)


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["status", "--help"],
        ["status", "--jsn"],
        ["status", "a", "b"],
        ["kick"],
        ["limit", "tcp-1"],
        ["add", "tcp"],
        ["add", "tcp", "8000", "up", "more"],
        ["add", "socks", "1080,auth=anna:hunter22"],
        ["ps", "up"],
        ["status", ""],
        ["up", "--tcp", "8000"],
        ["users", "ls"],
    ],
    ids=" ".join,
)
def test_words_that_are_not_plain_are_for_the_whole_parser(words: list[str]) -> None:
    assert quick(words) is None


def test_commands_that_change_something_need_no_parser(run: Path) -> None:
    for words in (
        ["add", "tcp", "8000"],
        ["add", "http", "shop=127.0.0.1:8000", "up-1"],
        ["add", "tcp", "8000", "--save"],
        ["remove", "tcp-1", "--now"],
        ["remove", "tcp-1", "--save"],
        ["limit", "tcp-1", "5MB/s"],
        ["kick", "abcd-1"],
        ["reload", "--now"],
        ["why", "abcd-1"],
    ):
        assert quick(words) == Exit.NOT_RUNNING


def test_words_that_were_hidden_are_not_taken_as_they_are_shown(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("_TUNNEL_ARGUMENTS", "9")
    assert quick(["add", "socks", "1080,auth=***"]) is None


def test_a_variable_is_for_the_whole_parser(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert quick(["ps"]) == Exit.NOT_RUNNING
    monkeypatch.setenv("TUNNEL_JSON", "1")
    assert quick(["ps"]) is None
