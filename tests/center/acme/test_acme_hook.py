"""The program of --acme-hook: how it ends, and when it is waited for."""

from __future__ import annotations

import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
import trio

from tunnel.center.acme import order
from tunnel.center.acme.failures import DNS, FailedError, Proof

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def hook(folder: Path, script: str) -> Path:
    program = folder / "hook"
    program.write_text(f"#!/bin/sh\n{script}\n", "utf-8")
    program.chmod(0o700)
    return program


@contextmanager
def as_the_first_process() -> Iterator[None]:
    """Have strangers buried, as a server in a container does."""
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        yield
        assert signal.getsignal(signal.SIGCHLD) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGCHLD, before)


async def test_a_hook_that_fails_has_failed_in_a_container_too(tmp_path: Path) -> None:
    """The kernel forgot its status, and it counted as a success."""
    program = hook(tmp_path, "exit 3")
    with (
        as_the_first_process(),
        pytest.raises(FailedError, match="ended with status 3"),
    ):
        await order._run(program, "present", "a.test", "value")


async def test_what_a_hook_starts_can_be_waited_for(tmp_path: Path) -> None:
    program = hook(tmp_path, "(exit 4) & wait $!; test $? = 4")
    with as_the_first_process():
        await order._run(program, "present", "a.test", "value")


async def test_the_end_of_a_server_does_not_wait_for_a_cleanup_that_runs(
    tmp_path: Path,
) -> None:
    begun = tmp_path / "begun"
    program = hook(
        tmp_path, f'test "$1" = present || {{ touch {begun}; exec sleep 60; }}'
    )
    proof = Proof(DNS, "a.test", "token", "authorization", "digest")
    made = trio.Event()

    async def show() -> None:
        async with order._dns_shown(program, proof):
            made.set()

    with trio.move_on_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(show)
            while not begun.exists():  # noqa: ASYNC110  # no event tells
                await trio.sleep(0.01)
            told_at = trio.current_time()
            nursery.cancel_scope.cancel()
    assert trio.current_time() - told_at < 20  # the hook sleeps for a minute
    assert made.is_set()
