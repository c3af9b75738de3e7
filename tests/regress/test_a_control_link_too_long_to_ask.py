"""A runtime folder with a path so long that a link fits in and no socket's address.

The server's socket was in its state folder, the link to it in the runtime folder: each
command that followed the link failed, and said that nothing runs.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from tunnel.addresses import MAX_PATH_BYTES
from tunnel.ops.control.processes import find
from tunnel.ops.control.service import OwnSocket

if TYPE_CHECKING:
    import pytest


async def test_it_is_found_in_another_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as short:
        runtime = Path(short) / ("x" * (MAX_PATH_BYTES - len(f"{short}/tunnel/serve-")))
        runtime.mkdir(mode=0o700)
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
        for name in ("XDG_STATE_HOME", "HOME", "TMPDIR"):
            monkeypatch.setenv(name, short)
        own = OwnSocket("serve", Path(short))
        async with trio.open_nursery() as nursery:
            await nursery.start(own.serve, {})
            found = await trio.to_thread.run_sync(find, own.name)
            assert found.is_there
            assert not found.path.is_relative_to(runtime)
            nursery.cancel_scope.cancel()
