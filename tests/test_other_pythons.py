"""Every test, on each other CPython from 3.11 to 3.14 that this machine has."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.tables import ROOT


@pytest.mark.deep
@pytest.mark.timeout(14_400)
def test_every_suite_passes_on_the_other_pythons() -> None:
    done = subprocess.run(
        ["bash", ".ci/run", "--other-pythons", "tests"],
        cwd=ROOT,
        env={
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    said = done.stdout.decode(errors="replace")
    assert done.returncode == 0, said[-20_000:]
    assert "NOTHING IS TESTED" not in said, said
