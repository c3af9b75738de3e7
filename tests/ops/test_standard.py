"""A file to write to that nothing can make fail."""

from __future__ import annotations

import errno
import io
import os

import pytest

from tunnel.ops import standard
from tunnel.ops.standard import EnduringFile


@pytest.fixture(autouse=True)
def short_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(standard, "STUCK_S", 0.01)


def test_what_a_full_disk_refuses_is_dropped_and_remembered() -> None:
    fd = os.open("/dev/full", os.O_WRONLY)
    file = EnduringFile(fd)
    assert file.write(b"hello") == 5
    assert file.lost is not None
    assert file.lost.errno == errno.ENOSPC
    os.close(fd)


def test_what_a_pipe_without_reader_or_a_closed_file_refuses_is_dropped() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    file = EnduringFile(writing)
    assert file.write(b"hello") == 5
    assert isinstance(file.lost, BrokenPipeError)
    os.close(writing)
    assert file.write(b"hello") == 5


def test_a_reader_that_stands_still_stops_nobody_and_is_served_when_it_goes_on() -> (
    None
):
    reading, writing = os.pipe()
    text = io.BufferedWriter(EnduringFile(writing))
    text.write(bytes(1 << 20))
    text.flush()
    held = len(os.read(reading, 1 << 20))
    assert 0 < held < 1 << 20
    text.write(b"again")
    text.flush()
    assert os.read(reading, 100) == b"again"
    os.close(reading)
    os.close(writing)


def test_a_nonblocking_pipe_is_no_fault_either() -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    file = io.BufferedWriter(EnduringFile(writing))
    file.write(bytes(1 << 20))
    file.flush()
    os.close(reading)
    os.close(writing)
