"""What pyproject.toml allows at the least is enough."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from typing import TYPE_CHECKING, Final

import pytest
from support.tables import ROOT

if TYPE_CHECKING:
    from pathlib import Path

SUITES: Final = ("proto", "socks", "access", "net", "link", "front", "center", "ops")


@pytest.mark.deep
@pytest.mark.timeout(1_800)
def test_the_oldest_allowed_versions_pass_the_tests(tmp_path: Path) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    oldest = [line.replace(">=", "==") for line in project["dependencies"]]
    assert all("==" in line for line in oldest)
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    tools = project["optional-dependencies"]["test"]
    install = (python, "-m", "pip", "install", "--quiet", "--only-binary", ":all:")
    subprocess.run([*install, *oldest, *tools], check=True)
    suites = [f"tests/{name}" for name in SUITES]
    tests: list[str | Path]
    tests = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", "2", *suites]
    done = subprocess.run(tests, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4_000:]
