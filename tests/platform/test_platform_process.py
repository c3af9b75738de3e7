"""The process: signals, descriptors, its name, and the clock."""

from __future__ import annotations

import os
import resource
import signal
from typing import TYPE_CHECKING

import pytest

from tunnel.platform import process

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def limits() -> Iterator[tuple[int, int]]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield before
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_the_limit_of_descriptors_is_raised_as_far_as_may_be(
    limits: tuple[int, int],
) -> None:
    _soft, hard = limits
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard - 1, hard))
    assert process.descriptor_limits()[0] == hard - 1
    process.raise_descriptor_limit()
    assert process.descriptor_limits() == (hard, hard)


def test_no_limit_is_many_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    endless = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    monkeypatch.setattr(resource, "getrlimit", lambda _which: endless)
    assert process.descriptor_limits()[0] == process.MANY


def test_a_signal_that_is_held_back_comes_later() -> None:
    heard: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, _frame: heard.append(number))
    try:
        process.hold_back(signal.SIGUSR1)
        signal.raise_signal(signal.SIGUSR1)  # of this thread: others hold nothing back
        assert heard == []
        process.let_through(signal.SIGUSR1)
        assert heard == [signal.SIGUSR1]
    finally:
        signal.signal(signal.SIGUSR1, before)


@pytest.mark.parametrize("memory", [True, False], ids=["in memory", "in a pipe"])
def test_what_is_inherited_is_read_once_and_passed_on(
    monkeypatch: pytest.MonkeyPatch, memory: bool
) -> None:
    if not memory:
        monkeypatch.delattr(os, "memfd_create")
    number = process.inherited(b"words")
    assert os.get_inheritable(number)
    with open(number, "rb") as file:
        assert file.read() == b"words"


def test_what_no_pipe_can_hold_is_not_inherited(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr(os, "memfd_create")
    before = sorted(os.listdir("/proc/self/fd"))
    with pytest.raises(BlockingIOError):
        process.inherited(bytes(1 << 21))
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_the_short_name_is_read_and_set() -> None:
    before = process.short_name()
    process.set_short_name("tunnel-test")
    assert process.short_name() == "tunnel-test"
    process.set_short_name(before)


def test_a_pipe_has_room_until_it_is_full() -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    assert process.has_room(writer, 0)
    while process.has_room(writer, 0):
        os.write(writer, bytes(process.PIPE_BYTES))
    with pytest.raises(BlockingIOError):
        os.write(writer, bytes(process.PIPE_BYTES))
    os.close(reader)
    os.close(writer)


def test_the_time_of_sleep_does_not_go_back() -> None:
    before = process.asleep_s()
    assert process.asleep_s() >= before - 0.01
    assert process.user_id() == os.geteuid()
