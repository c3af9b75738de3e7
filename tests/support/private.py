"""Private files: their modes and owners, and other processes that hold them."""

from __future__ import annotations

import contextlib
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pytest


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def own(user: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have all files belong to a user, who is the one that runs us."""
    fstat = os.fstat

    def status_of(descriptor: int) -> os.stat_result:
        fields = list(fstat(descriptor))
        fields[stat.ST_UID] = user
        return os.stat_result(fields)

    monkeypatch.setattr(os, "fstat", status_of)
    monkeypatch.setattr(os, "geteuid", lambda: user)


@contextlib.contextmanager
def another(program: str, folder: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run ``program`` in the folder, in a process of its own; give what it says."""
    with subprocess.Popen(
        [sys.executable, "-c", program, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
        text=True,
    ) as process:
        assert process.stdout is not None
        yield process, process.stdout.readline().strip()
