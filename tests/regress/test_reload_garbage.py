"""Each reload left what only the collector frees: 100 kB of cycles a time.

A configuration was read by a converter of its own, and the error of a faulty one stood
in the variables of its own frames.
"""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING
from weakref import ref

import pytest
import trio
import trio.testing

from tunnel.errors import UsageError
from tunnel.ops.config.read import read_config
from tunnel.ops.reload.reloader import Reloader
from tunnel.ops.show import Show

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def collector_off() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("collector_off")
def test_a_configuration_that_was_read_leaves_no_cycle(tmp_path: Path) -> None:
    path = tmp_path / "tunnel.toml"
    path.write_text('[client]\ndrain = "3s"\n[[client.tcp]]\ntarget = "22"\n')
    path.chmod(0o600)
    read_config(path)  # what is kept for the process is made now
    gc.collect()
    read_config(path)
    assert gc.collect() < 50  # a converter is some thousand objects


class Held:
    """Lives as long as the frame that has it."""


@pytest.mark.usefixtures("collector_off")
async def test_a_refused_reload_leaves_no_frame_behind() -> None:
    held: list[ref[Held]] = []

    def read() -> None:
        mine = Held()
        held.append(ref(mine))
        raise UsageError("the file is wrong")

    async def apply(_now: bool) -> list[object]:
        await trio.to_thread.run_sync(read)
        return []

    reloader = Reloader(apply, Show(), None)  # type: ignore[arg-type]  # no change
    with pytest.raises(UsageError):
        await reloader.reload("a test")
    await trio.testing.wait_all_tasks_blocked()
    assert [one() for one in held] == [None]
