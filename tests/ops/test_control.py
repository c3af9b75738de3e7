"""The control socket: what it takes for a question, and who is heard."""

from __future__ import annotations

import json
import os
import socket
from typing import TYPE_CHECKING

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from tunnel.errors import AddressError, StateError, UsageError
from tunnel.ops.control import Answer, Args, service
from tunnel.ops.control import ask as asking
from tunnel.ops.control.ask import FILE, AnswerError, ask
from tunnel.ops.control.service import open_socket, serve_control
from tunnel.platform.sockets import Peer

if TYPE_CHECKING:
    from pathlib import Path

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(st.binary() | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_line_is_a_question_or_refused(line: bytes) -> None:
    try:
        do, args = service._read(line)
    except UsageError:
        return
    assert isinstance(do, str)
    assert isinstance(args, dict)


async def echo(args: Args, by: str) -> Answer:
    return {"args": dict(args), "by": by}


async def fail(args: Args, by: str) -> Answer:
    raise UsageError("no", "because", "do this")


async def asked(state: Path, do: str) -> dict[str, object] | None:
    """Ask from another thread, as a command is another process."""
    with trio.fail_after(20):
        return await trio.to_thread.run_sync(ask, state, do, {"a": [1, "b"]})


async def test_an_answer_and_a_refusal_come_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "peer_process", lambda _sock: Peer(1, os.geteuid()))
    assert await asked(tmp_path, "echo") is None  # nobody there
    async with trio.open_nursery() as nursery:
        listener = open_socket(tmp_path / FILE)
        nursery.start_soon(serve_control, listener, {"echo": echo, "fail": fail})
        answer = await asked(tmp_path, "echo")
        by = f"uid {os.geteuid()} pid 1"
        assert answer == {"args": {"a": [1, "b"]}, "by": by}
        for do, status in (("fail", 2), ("other", 2)):
            with pytest.raises(AnswerError) as caught:
                await asked(tmp_path, do)
            assert caught.value.exit_status == status
        nursery.cancel_scope.cancel()
    assert not (tmp_path / "control").exists()
    assert await asked(tmp_path, "echo") is None


async def test_another_user_is_not_heard_and_not_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with trio.open_nursery() as nursery:
        listener = open_socket(tmp_path / FILE)
        nursery.start_soon(serve_control, listener, {"echo": echo})
        other = Peer(1, os.geteuid() + 1)
        with monkeypatch.context() as patch:
            patch.setattr(service, "peer_process", lambda _sock: other)
            with pytest.raises(AnswerError, match="another user"):
                await asked(tmp_path, "echo")
        with pytest.raises(AnswerError, match="not reached through"):
            await asked(tmp_path, "echo")
        with monkeypatch.context() as patch:
            patch.setattr(asking, "peer_process", lambda _sock: other)
            with pytest.raises(StateError, match="is not asked"):
                await asked(tmp_path, "echo")
        nursery.cancel_scope.cancel()


async def test_a_silent_question_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "QUESTION_S", 0.05)
    monkeypatch.setattr(service, "peer_process", lambda _sock: Peer(1, os.geteuid()))
    async with trio.open_nursery() as nursery:
        listener = open_socket(tmp_path / FILE)
        nursery.start_soon(serve_control, listener, {"echo": echo})
        with trio.fail_after(20):
            stream = await trio.open_unix_socket(str(tmp_path / "control"))
            assert b"too slowly" in await stream.receive_some()
            assert not await stream.receive_some()
        await stream.aclose()
        nursery.cancel_scope.cancel()


def test_a_path_that_is_too_long_leaves_the_files(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    with pytest.raises(AddressError, match="too long"):
        open_socket(deep / FILE)
    assert ask(deep, "echo", {}) is None


def test_what_is_no_socket_is_said(tmp_path: Path) -> None:
    (tmp_path / "control").write_text("")
    with pytest.raises(StateError, match="no socket"):
        ask(tmp_path, "echo", {})


def test_a_dead_socket_is_nobody(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "control"))
    assert ask(tmp_path, "echo", {}) is None
