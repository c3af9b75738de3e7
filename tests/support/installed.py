"""Programs of other people, as their registries have them, in a folder of the test."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING, Final

import pytest
from support.processes import program

if TYPE_CHECKING:
    from pathlib import Path

INSTALL_S: Final = 300.0
"""Jupyter is the largest: 40 packages, a minute where nothing is cached."""
SAID_BYTES: Final = 300
"""Of what an installer said in the end."""


def from_pypi(folder: Path, *packages: str) -> Path:
    """Install packages into an environment of their own, or skip and say why.

    Returns:
        Where its programs are.
    """
    _install(sys.executable, "-m", "venv", str(folder))
    quiet = ("--quiet", "--disable-pip-version-check", "--no-input")
    _install(str(folder / "bin/python"), "-m", "pip", "install", *quiet, *packages)
    return folder / "bin"


def from_npm(folder: Path, *packages: str) -> Path:
    """Install packages with npm, or skip and say why.

    Returns:
        Where they are.
    """
    program("node")
    quiet = ("--loglevel=error", "--no-audit", "--no-fund", "--no-progress")
    _install(program("npm"), "install", *quiet, "--prefix", str(folder), *packages)
    return folder / "node_modules"


def from_go(folder: Path, *packages: str) -> Path:
    """Build commands of Go modules, or skip and say why.

    Returns:
        Where they are.
    """
    go = program("go")
    for package in packages:
        _install(go, "install", package, GOBIN=str(folder), GOFLAGS="-modcacherw")
    return folder


def _install(*argv: str, **more: str) -> None:
    """Run an installer, which knows its registry and proxy from the environment."""
    env = {name: value for name, value in os.environ.items() if "PYTHON" not in name}
    env |= more
    try:
        done = subprocess.run(
            argv, env=env, capture_output=True, timeout=INSTALL_S, check=False
        )
    except subprocess.TimeoutExpired:
        pytest.skip(f"NOT TESTED: {' '.join(argv)} took more than {INSTALL_S:.0f} s")
    if done.returncode:
        said = (done.stderr or done.stdout).decode(errors="replace").strip()
        pytest.skip(f"NOT TESTED: {' '.join(argv)}: {said[-SAID_BYTES:]}")
