from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest
import trio
from support.names import Threads, found, silent
from trio.testing import wait_all_tasks_blocked

from tunnel.addresses import Address
from tunnel.errors import Code, LocalStreamError
from tunnel.net import lookup
from tunnel.net.dial import begin, connect
from tunnel.net.lookup import (
    CREW,
    HOSTS_BYTES,
    LOOKUP_S,
    MAX_QUEUED,
    SLOW_CREW,
    SLOW_S,
    HostsFile,
    LookupsBusyError,
    addresses_of,
    known,
    look_up,
    lookups,
)

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def hosts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hosts file of the test's own."""
    path = tmp_path / "hosts"
    path.write_text("127.0.0.5 printer Printer.LAN  # the old one\n")
    monkeypatch.setattr(lookup, "HOSTS", HostsFile(str(path)))
    return path


async def ask(host: str, told: list[str]) -> None:
    try:
        found = await look_up(host)
        told.append(f"{host} {found[0].host}")
    except OSError as error:
        told.append(f"{host} {error.strerror}")


# --- what needs nobody


@pytest.mark.parametrize(
    ("host", "hosts_told"),
    [
        ("192.0.2.7", ["192.0.2.7"]),
        ("127.1", ["127.0.0.1"]),
        ("2001:db8::7", ["2001:db8::7"]),
        ("localhost", ["127.0.0.1", "::1"]),
        ("Localhost.", ["127.0.0.1", "::1"]),
        ("app.localhost", ["127.0.0.1", "::1"]),
        ("printer", ["127.0.0.5"]),
        ("PRINTER.lan.", ["127.0.0.5"]),
    ],
)
async def test_what_this_machine_knows_waits_for_no_thread(
    host: str, hosts_told: list[str]
) -> None:
    threads = silent()
    assert [one.host for one in await look_up(host)] == hosts_told
    assert [one.host for one in await look_up(host, own=True)] == hosts_told
    assert not threads.begun


def test_nobody_decides_what_localhost_is(hosts: Path) -> None:
    hosts.write_text("127.0.0.9 localhost app.localhost\n")
    assert [one.host for one in known("localhost") or ()] == ["127.0.0.1", "::1"]
    assert known("app.localhost") == [found("127.0.0.9")]


@pytest.mark.parametrize(
    ("host", "listened_on"),
    [
        ("", [""]),
        ("0.0.0.0", ["0.0.0.0"]),
        ("::1", ["::1"]),
        ("printer", ["127.0.0.5"]),
        ("fe80::1%1", ["fe80::1%1"]),
    ],
)
async def test_a_name_to_listen_on_is_looked_up_like_any(
    host: str, listened_on: list[str]
) -> None:
    silent()
    assert await addresses_of(host) == listened_on


async def test_what_cannot_be_a_name_cannot_be_listened_on() -> None:
    with pytest.raises(socket.gaierror):
        await addresses_of("a..b")


def test_a_hosts_file_that_changes_or_goes_is_believed_as_it_is(hosts: Path) -> None:
    assert known("printer") == [found("127.0.0.5")]
    hosts.write_text("10.0.0.1 printer\n::2 printer nas\nbroken\nx y\n\n")
    assert [one.host for one in known("printer") or ()] == ["::2", "10.0.0.1"]
    assert [one.host for one in known("nas") or ()] == ["::2"]
    hosts.unlink()
    assert known("printer") is None
    hosts.write_bytes(b"\xff\xfe 10.0.0.1 a\n10.0.0.2 printer")
    assert [one.host for one in known("printer") or ()] == ["10.0.0.2"]


def test_of_a_long_hosts_file_only_whole_lines_of_its_beginning_are_read(
    hosts: Path,
) -> None:
    line = b"10.0.0.1 n%07d.example\n"
    count = HOSTS_BYTES // len(line % 0) + 1
    hosts.write_bytes(b"".join(line % n for n in range(count)))
    assert known(f"n{count - 2:07d}.example")
    assert known(f"n{count - 1:07d}.example") is None


# --- the crew


async def test_a_name_that_a_hundred_ask_for_is_looked_up_once(
    nursery: trio.Nursery,
) -> None:
    threads = silent()
    told: list[str] = []
    for _ in range(100):
        nursery.start_soon(ask, "db.example", told)
    await wait_all_tasks_blocked()
    assert threads.begun == [b"db.example"]
    threads.answer("db.example", "10.0.0.1")
    await wait_all_tasks_blocked()
    assert told == ["db.example 10.0.0.1"] * 100
    nursery.start_soon(ask, "db.example", told)
    await wait_all_tasks_blocked()
    assert len(threads.begun) == 2
    nursery.cancel_scope.cancel()


async def test_dead_names_get_a_bounded_crew_and_are_given_up_in_words(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    threads = silent()
    told: list[str] = []
    for number in range(150):
        nursery.start_soon(ask, f"dead{number}.example", told)
    await trio.sleep(LOOKUP_S - 0.1)
    assert len(threads.begun) == CREW
    assert len(lookups().queued) == 150 - CREW
    assert not told
    await trio.sleep(0.2)
    assert len(told) == 150
    asked = [words for words in told if "no answer in 8 s" in words]
    assert len(asked) == CREW
    assert sum("looked up first" in words for words in told) == 150 - CREW
    # Nobody waits for those that had no thread, so they never get one.
    assert not lookups().queued
    for name in list(threads.open):
        threads.answer(name.decode(), "10.0.0.1")
    await wait_all_tasks_blocked()
    assert len(threads.begun) == CREW
    nursery.start_soon(ask, "live.example", told)
    await wait_all_tasks_blocked()
    assert threads.begun[-1] == b"live.example"
    threads.answer("live.example", "10.0.0.2")
    await wait_all_tasks_blocked()
    assert told[-1] == "live.example 10.0.0.2"


async def test_names_that_were_slow_before_leave_threads_for_the_others(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    threads = silent()
    slow = [f"slow{number}.example" for number in range(CREW)]
    for name in slow:
        nursery.start_soon(ask, name, [])
    await trio.sleep(SLOW_S + 0.1)
    for name in slow:
        threads.answer(name, error=socket.gaierror(socket.EAI_AGAIN, "again"))
    await wait_all_tasks_blocked()
    del threads.begun[:]
    told: list[str] = []
    for name in slow:
        nursery.start_soon(ask, name, told)
    await wait_all_tasks_blocked()
    assert len(threads.begun) == SLOW_CREW
    nursery.start_soon(ask, "live.example", told)
    await wait_all_tasks_blocked()
    assert threads.begun[-1] == b"live.example"
    # One that is quick again is as good as any.
    first = threads.begun[0].decode()
    threads.answer(first, "10.0.0.1")
    await wait_all_tasks_blocked()
    assert told == [f"{first} 10.0.0.1"]
    assert len(threads.begun) == SLOW_CREW + 2
    nursery.cancel_scope.cancel()


async def test_too_many_names_are_refused_at_once(nursery: trio.Nursery) -> None:
    silent()
    for number in range(CREW + MAX_QUEUED):
        nursery.start_soon(ask, f"dead{number}.example", [])
    await wait_all_tasks_blocked()
    with pytest.raises(LocalStreamError) as caught:
        await connect(Address("one-more.example", 1))
    assert caught.value.code is Code.RESOURCE
    assert "1,024 names wait" in caught.value.what
    nursery.cancel_scope.cancel()
    with trio.CancelScope(shield=True):
        await wait_all_tasks_blocked()
    assert not lookups().queued


async def test_who_waits_for_a_dead_name_is_told_that_it_is_dead(
    autojump_clock: trio.testing.MockClock,
) -> None:
    silent()
    with pytest.raises(LocalStreamError) as caught:
        await connect(Address("dead.example", 1))
    assert trio.current_time() < 10
    assert caught.value.code is Code.HOST_UNREACHABLE
    assert "the resolver failed (no answer in 8 s)" in caught.value.what


async def test_without_threads_a_name_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def none_left(*_args: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(lookups(), "start_thread", none_left)
    for _ in range(CREW + 1):
        with pytest.raises(LookupsBusyError, match="can't start new thread"):
            await look_up("db.example")


async def test_our_own_names_wait_for_nobody_elses(nursery: trio.Nursery) -> None:
    threads = silent()
    for number in range(CREW + 1):
        nursery.start_soon(ask, f"dead{number}.example", [])
    await wait_all_tasks_blocked()
    assert len(threads.begun) == CREW
    lookups().ask = lambda _host: [found("10.0.0.1")]
    assert await look_up("server.example", own=True) == [found("10.0.0.1")]
    nursery.cancel_scope.cancel()


async def test_an_answer_that_nobody_waits_for_any_more_harms_nobody() -> None:
    threads = silent()
    with trio.move_on_after(0):
        await look_up("late.example")
    threads.answer("late.example", "10.0.0.1")
    await wait_all_tasks_blocked()


async def test_a_real_resolver_is_asked_in_a_thread() -> None:
    with pytest.raises(socket.gaierror):
        await look_up("no-such-name.invalid")


# --- order


@pytest.mark.parametrize("host", ["127.0.0.1", "printer", "db.example"])
async def test_dials_of_one_target_arrive_in_the_order_in_which_they_began(
    host: str, hosts: Path
) -> None:
    """Whatever the order of the tasks is that wait for them."""
    hosts.write_text("127.0.0.1 printer\n")
    threads = silent()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        where = Address(host, listener.getsockname()[1])
        dials = [begin(where) for _ in range(20)]
        if host == "db.example":
            assert threads.begun == [b"db.example"]
            threads.answer("db.example", "127.0.0.1")
            await wait_all_tasks_blocked()
        # Nobody has waited yet, and all have arrived.
        came = [listener.accept()[0] for _ in dials]
        left = [await dial.finish() for dial in reversed(dials)]
        ours = [sock.getsockname() for sock in reversed(left)]
        assert [sock.getpeername() for sock in came] == ours
        for sock in came + left:
            sock.close()


async def test_a_dial_that_is_dropped_leaves_nothing_open() -> None:
    silent()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        dial = begin(Address("127.0.0.1", listener.getsockname()[1]))
        dial.close()
        came, _address = listener.accept()
        with came:
            assert not came.recv(1)
    asked = begin(Address("db.example", 1))
    asked.close()
    asked.close()


async def test_who_gives_a_name_up_is_not_dialled_when_it_is_found() -> None:
    threads: Threads = silent()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        dial = begin(Address("db.example", listener.getsockname()[1]))
        dial.close()
        threads.answer("db.example", "127.0.0.1")
        await wait_all_tasks_blocked()
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()
