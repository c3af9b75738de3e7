"""The port of the page: who is heard, what is answered, and what is told."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Final

import pytest
import trio

from tunnel.access.guesses import Guesses
from tunnel.addresses import Address
from tunnel.errors import UsageError
from tunnel.front import login
from tunnel.ops.control.status import PAUSED, EntryStatus, Passed, Status
from tunnel.ops.dashboard import live as live_module
from tunnel.ops.dashboard.gate import Gate
from tunnel.ops.dashboard.live import Live
from tunnel.ops.dashboard.port import MAX_QUESTION_BYTES, MAX_STREAMS, DashboardPort

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

    from tunnel.ops.control import Answer, Args

TOKEN: Final = "correct-horse-battery"
GOOD: Final = {
    "Host": "localhost:4040",
    "Authorization": f"Bearer {TOKEN}",
    "Content-Type": "application/json",
}
WITHIN_S: Final = 20.0


Connect = Callable[[], Awaitable[trio.SocketStream]]


@pytest.fixture(autouse=True)
def nobody_has_guessed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(login, "GUESSES", Guesses())


class Asked:
    """The handlers of a process, which note what they were asked."""

    def __init__(self) -> None:
        self.args: list[Args] = []

    async def top(self, args: Args, by: str) -> Answer:
        self.args.append(args)
        return {"by": by}

    async def kick(self, _args: Args, _by: str) -> Answer:
        raise UsageError("there is no link", "it may have ended", "tunnel top")

    async def count(self, args: Args) -> AsyncGenerator[Answer, None]:
        for number in range(int(str(args["to"]))):
            yield {"n": number}
        if args.get("stay"):
            await trio.sleep_forever()


@asynccontextmanager
async def opened(asked: Asked, *, chosen: bool = False) -> AsyncIterator[Connect]:
    """Open the port; give what connects to it."""
    gate = Gate(TOKEN, chosen=chosen)
    commands = {"top": asked.top, "kick": asked.kick}
    port = DashboardPort(gate, commands, {"count": asked.count})
    async with trio.open_nursery() as nursery:
        where = await nursery.start(port.serve, Address("127.0.0.1", 0))
        with trio.fail_after(WITHIN_S):
            yield partial(trio.open_tcp_stream, where.host, where.port)
        nursery.cancel_scope.cancel()


def request(
    method: str, path: str, headers: dict[str, str], body: bytes = b""
) -> bytes:
    lines = [f"{method} {path} HTTP/1.1"]
    lines += [f"{name}: {value}" for name, value in headers.items() if value]
    if body:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "Connection: close", "", ""]).encode() + body


async def told(connect: Connect, data: bytes) -> tuple[int, bytes]:
    """Send a request; return the status, and all else."""
    async with await connect() as stream:
        await stream.send_all(data)
        answer = bytearray()
        async for piece in stream:
            answer += piece
    return int(answer.split()[1]), bytes(answer)


@pytest.mark.parametrize(
    ("changed", "status"),
    [
        ({}, 200),
        ({"Authorization": ""}, 401),
        ({"Authorization": "Bearer wrong"}, 401),
        ({"Authorization": f"Basic {TOKEN}"}, 401),
        ({"Authorization": TOKEN}, 401),
        ({"Authorization": f"bearer  {TOKEN} "}, 200),
        ({"Host": "tunnel.evil.example"}, 403),  # a name that leads to 127.0.0.1
        ({"Host": "localhost.evil.example:4040"}, 403),
        ({"Host": "127.0.0.1:4040"}, 200),
        ({"Host": "[::1]:4040"}, 200),
        ({"Host": "192.0.2.7:4040"}, 200),
        ({"Origin": "http://localhost:4040"}, 200),
        ({"Origin": "http://localhost:4041"}, 403),  # another program's page here
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "same-origin"}, 200),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Content-Type": "text/plain"}, 415),  # what a form can send
        ({"Content-Type": "application/x-www-form-urlencoded"}, 415),
        ({"Content-Type": ""}, 415),
        ({"Content-Type": "application/json; charset=utf-8"}, 200),
    ],
)
async def test_a_question_is_heard_from_the_page_alone(
    changed: dict[str, str], status: int
) -> None:
    asked = Asked()
    async with opened(asked) as connect:
        got, answer = await told(
            connect, request("POST", "/api/top", {**GOOD, **changed}, b"{}")
        )
    assert got == status, answer
    assert len(asked.args) == (status == 200)


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "OPTIONS"])
@pytest.mark.parametrize("path", ["/api/top", "/api/count", "/api/kick?a=b"])
async def test_nothing_is_asked_or_done_by_another_method(
    method: str, path: str
) -> None:
    asked = Asked()
    async with opened(asked) as connect:
        got, _ = await told(connect, request(method, path, GOOD))
    assert (got, asked.args) == (405, [])


async def test_two_tokens_are_none() -> None:
    asked = Asked()
    data = request("POST", "/api/top", GOOD, b"{}")
    twice = data.replace(
        b"Authorization:", b"Authorization: Bearer x\r\nAuthorization:"
    )
    async with opened(asked) as connect:
        assert (await told(connect, twice))[0] == 401
    assert not asked.args


async def test_an_owner_with_a_token_may_call_the_page_as_it_likes() -> None:
    headers = {**GOOD, "Host": "box.example", "Origin": "https://box.example"}
    async with opened(Asked(), chosen=True) as connect:
        assert (await told(connect, request("POST", "/api/top", headers, b"{}")))[
            0
        ] == 200
        headers["Origin"] = "https://evil.example"
        assert (await told(connect, request("POST", "/api/top", headers, b"{}")))[
            0
        ] == 403


async def test_wrong_tokens_are_slowed_down() -> None:
    wrong = request("POST", "/api/top", {**GOOD, "Authorization": "Bearer no"}, b"{}")
    async with opened(Asked(), chosen=True) as connect:
        found = [(await told(connect, wrong))[0] for _ in range(130)]
    assert set(found) == {401, 429}
    assert found[-1] == 429


async def test_nobody_locks_the_owner_of_a_token_of_ours_out() -> None:
    wrong = request("POST", "/api/top", {**GOOD, "Authorization": "Bearer no"}, b"{}")
    async with opened(Asked()) as connect:
        assert {(await told(connect, wrong))[0] for _ in range(130)} == {401}
        assert (await told(connect, request("POST", "/api/top", GOOD, b"{}")))[0] == 200


async def test_answers_are_those_of_the_control_socket() -> None:
    async with opened(Asked()) as connect:
        _, good = await told(connect, request("POST", "/api/top", GOOD, b'{"most": 1}'))
        status, bad = await told(connect, request("POST", "/api/kick", GOOD, b"{}"))
        none, unknown = await told(connect, request("POST", "/api/stop", GOOD, b"{}"))
    head, _, text = good.partition(b"\r\n\r\n")
    assert json.loads(text)["done"]["by"].startswith("the page for 127.0.0.1")
    assert b"Content-Security-Policy: default-src 'none'" in head
    assert status == 400
    assert json.loads(bad.partition(b"\r\n\r\n")[2])["failed"]["fix"] == "tunnel top"
    assert none == 400
    assert b"no command stop" in unknown


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"[]", 400), (b"{", 400), (b"\xff", 400), (b"[" * 100_000, 400),
        (b" " * (MAX_QUESTION_BYTES + 1), 413), (b"{}", 200), (b"", 200),
    ],
)  # fmt: skip
async def test_a_question_is_an_object_and_not_too_long(
    body: bytes, status: int
) -> None:
    async with opened(Asked()) as connect:
        got, _ = await told(connect, request("POST", "/api/top", GOOD, body))
    assert got == status


async def test_files_of_the_page_need_no_token_and_hold_none() -> None:
    async with opened(Asked()) as connect:
        for path, status in (
            ("/", 200), ("/index.html", 200), ("/../gate.py", 404), ("/nothing", 404),
            ("/%2e%2e/gate.py", 404), ("//etc/passwd", 404),
        ):  # fmt: skip
            got, answer = await told(
                connect, request("GET", path, {"Host": "localhost"})
            )
            assert got == status, path
            assert TOKEN.encode() not in answer
        post = request("POST", "/", {"Host": "localhost"}, b"{}")
        assert (await told(connect, post))[0] == 405
        elsewhere = request("GET", "/", {"Host": "evil.example"})
        assert (await told(connect, elsewhere))[0] == 403


async def test_a_stream_tells_line_by_line_and_has_a_bound() -> None:
    async with opened(Asked()) as connect, AsyncExitStack() as streams:
        ended = request("POST", "/api/count", GOOD, b'{"to": 3}')
        status, answer = await told(connect, ended)
        assert (status, answer.count(b'{"n": ')) == (200, 3)
        assert answer.endswith(b"0\r\n\r\n")
        for _ in range(MAX_STREAMS):
            stream = await streams.enter_async_context(await connect())
            await stream.send_all(
                request("POST", "/api/count", GOOD, b'{"to": 1, "stay": true}')
            )
            seen = b""
            while b'{"n": 0}' not in seen:
                seen += await stream.receive_some()
        assert (await told(connect, ended))[0] == 503


# What is told each second ------------------------------------------------------------


def status_with(*entries: EntryStatus) -> Status:
    return Status(
        name="up-1", role="up", pid=1, version="1", began_at=0.0, state="linked",
        address="t:1", connections=0, waiting=0, kept_bytes=0, passed=Passed(),
        entries=list(entries),
    )  # fmt: skip


async def test_a_page_hears_everything_once_and_then_what_has_changed(
    autojump_clock: trio.testing.MockClock,
) -> None:
    one = EntryStatus("tcp-1", "tcp", "t:20", "localhost:1", "open")
    two = replace(one, name="tcp-2", state=PAUSED)
    now = status_with(one, two)
    looks = 0

    def look() -> Status:
        nonlocal looks
        looks += 1
        return now

    live = Live(_later(look), {})
    async with trio.open_nursery() as nursery:
        nursery.start_soon(live.run)
        await trio.sleep(10.5)
        assert looks == 10  # for the history
        async with trio.open_nursery() as pages:
            lines = live.told({"commands": ["top"]})
            first = await anext(lines)
            assert first["commands"] == ["top"]
            history, entries = first["history"], first["entries"]
            assert isinstance(history, list)
            assert isinstance(entries, list)
            assert len(history) in (10, 11)
            assert [(e["key"], e["paused"]) for e in entries] == [
                ("tcp-1", False), ("tcp-2", True)
            ]  # fmt: skip
            assert "entries" not in await anext(lines)  # nothing has changed
            now = status_with(replace(one, connections=3))
            changed = await anext(lines)
            assert [e["connections"] for e in changed["entries"]] == [3]  # type: ignore[attr-defined]
            assert changed["entries_gone"] == ["tcp-2"]
            await lines.aclose()
            pages.cancel_scope.cancel()
        await trio.sleep(2)
        assert live._look is None  # nobody looks
        nursery.cancel_scope.cancel()


def _later(look: Callable[[], Status]) -> Callable[[], Awaitable[Status]]:
    async def looked() -> Status:
        await trio.lowlevel.checkpoint()
        return look()

    return looked


async def test_the_history_has_a_bound(
    autojump_clock: trio.testing.MockClock,
) -> None:
    live = Live(_later(status_with), {})
    async with trio.open_nursery() as nursery:
        nursery.start_soon(live.run)
        await trio.sleep(3_600)
        nursery.cancel_scope.cancel()
    assert len(live._history) == live_module.HISTORY
