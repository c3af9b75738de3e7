"""``tunnel tail`` and ``tunnel dashboard``, against processes that answer as told."""

from __future__ import annotations

import json
import socket
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest

from tunnel.errors import UsageError
from tunnel.ops.control import commands
from tunnel.ops.control.processes import NotRunningError
from tunnel.ops.control.tail import tail

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

SEEN: dict[str, Any] = {
    "number": 7, "version": 9, "at": 1_790_000_000.0, "entry": "http-1",
    "visitor": "192.0.2.9:5", "method": "GET", "host": "shop.test", "path": "/a?b=1",
    "status": 200, "state": "done", "failure": "", "kind": "text/html",
    "sent_bytes": 0, "received_bytes": 1_500, "connected_ms": 1.0,
    "first_byte_ms": 2.0, "ended_ms": 12.4, "replay_of": None, "websocket": False,
    "messages": 0,
}  # fmt: skip
Answers = dict[str, "Callable[[dict[str, Any]], object]"]


class Town:
    """The processes of this user."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._listeners: list[socket.socket] = []

    def add(self, name: str, answers: Answers) -> None:
        self.folder.mkdir(mode=0o700, exist_ok=True)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(self.folder / name))
        listener.listen()
        self._listeners.append(listener)
        known = {"ps": lambda _args: {"name": name}, **answers}

        def answer() -> None:
            with suppress(OSError):
                while True:
                    with listener.accept()[0] as conn:
                        asked = json.loads(conn.recv(1_000) or b'{"do": ""}')
                        said = known.get(asked["do"])
                        told: object = {"failed": {"what": "no command", "status": 2}}
                        if said is not None:
                            told = {"done": said(asked.get("with", {}))}
                        conn.sendall(json.dumps(told).encode() + b"\n")

        threading.Thread(target=answer, daemon=True).start()

    def close(self) -> None:
        for listener in self._listeners:
            with suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()


@pytest.fixture
def town(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Town]:
    for name in ("XDG_STATE_HOME", "HOME", "TMPDIR", "XDG_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(tmp_path))
    town = Town(tmp_path / "tunnel")
    yield town
    town.close()


def listing(*seen: dict[str, Any]) -> Answers:
    def answer(args: dict[str, Any]) -> object:
        after = args.get("after", 0)
        return {"version": 9, "seen": [one for one in seen if one["version"] > after]}

    return {"inspect.list": answer}


def test_a_request_is_a_line(town: Town, capsys: pytest.CaptureFixture[str]) -> None:
    asked = {**SEEN, "number": 8, "state": "asked", "status": None}
    town.add("up-5", listing(SEEN, asked))
    town.add("serve-6", {})
    tail(once=True)
    (line,) = capsys.readouterr().out.splitlines()  # the other is not over yet
    assert "200    1.5 kB     12 ms  GET shop.test/a?b=1  http-1, 192.0.2.9:5" in line
    assert line.split()[1] == "#7"
    tail(once=True, as_json=True)
    assert json.loads(capsys.readouterr().out) == SEEN
    tail(once=True, entry="http-2")
    assert capsys.readouterr().out == ""


def test_an_entry_is_known_by_both_its_names_and_no_other_is(
    town: Town, capsys: pytest.CaptureFixture[str]
) -> None:
    known = {"http-1": "http shop", "http-2": "http other"}
    seen = {**SEEN, "entry": "http shop"}
    town.add("up-5", {"inspect.list": lambda _args: {
        "version": 9, "seen": [seen], "entries": known,
    }})  # fmt: skip
    for entry, lines in (("http-1", 1), ("http shop", 1), ("http-2", 0)):
        tail(once=True, entry=entry)
        assert capsys.readouterr().out.count("\n") == lines
    with pytest.raises(UsageError, match="no entry 'shop' is inspected") as caught:
        tail(once=True, entry="shop")
    assert "http-1, http-2" in str(caught.value.fix)


def test_nothing_of_a_request_moves_the_cursor(
    town: Town, capsys: pytest.CaptureFixture[str]
) -> None:
    hostile = {**SEEN, "path": "/\x1b[2J\r\n\u202e", "visitor": "\x1b]0;x\x07"}
    town.add("up-5", listing(hostile))
    tail(once=True)
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    assert out.removesuffix("\n").isprintable()


def test_a_request_is_shown_whole(
    town: Town, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = {
        **SEEN,
        "request": {
            "line": "POST /a HTTP/1.1",
            "fields": [["Cookie", "***"], ["X", "\x1b[2J"]],
            "body": {"size": 3, "text": "a=1", "base64": None, "kind": "", "cut": True},
        },
        "answer": {
            "line": "HTTP/1.1 200 OK",
            "fields": [],
            "body": {"size": 9, "text": None, "base64": "AAAA", "kind": "image/png"},
        },
        "messages": [{"from": "target", "kind": "text", "size": 2, "text": "hi"}],
        "messages_dropped": 3,
        "failure": "broke off",
    }
    asked: list[dict[str, Any]] = []

    def show(args: dict[str, Any]) -> object:
        asked.append(args)
        return whole

    town.add("up-5", {**listing(SEEN), "inspect.show": show})
    tail(request=7, reveal=True)
    out = capsys.readouterr().out
    assert out.splitlines() == [
        "POST /a HTTP/1.1", "Cookie: ***", "X: \\u001b[2J", "", "a=1",
        "(cut: 3 B in all)", "", "HTTP/1.1 200 OK", "", "(image/png, 9 B)", "",
        "(broke off)", "(3 messages before these are not kept)", "< hi",
    ]  # fmt: skip
    assert asked == [{"number": 7, "reveal": True}]


def test_who_inspects_nothing_says_so(town: Town) -> None:
    with pytest.raises(NotRunningError):
        tail(once=True)
    town.add("serve-6", {})
    with pytest.raises(NotRunningError):
        tail(once=True)
    town.add("up-5", {})
    for name in (None, "up"):
        with pytest.raises(UsageError, match="inspected") as caught:
            tail(name, once=True)
        assert "--inspect" in caught.value.fix
    town.add("up-7", listing())
    tail(once=True)  # the one that does is meant
    town.add("up-8", listing())
    with pytest.raises(UsageError, match="several clients"):
        tail(once=True)
    tail("up-8", once=True)


def test_the_url_of_a_page_is_printed_by_request_alone(
    town: Town, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(NotRunningError):
        commands.dashboard()
    town.add("up-5", {})
    with pytest.raises(UsageError, match="has a page"):
        commands.dashboard()
    url = "http://localhost:4040/#token=correct-horse-battery"
    town.add("serve-6", {"dashboard": lambda _args: {"url": url}})
    commands.dashboard()
    assert capsys.readouterr().out == url + "\n"
