"""Packages of npm that a test runs in a browser, or with node."""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING, Any, Final

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from support.devtools import Page

AXE: Final = "axe-core@4.14.1"
HAR: Final = "har-validator@5.1.5"
INSTALL_S: Final = 90
SERIOUS: Final = ("serious", "critical")
_CHECK_HAR: Final = """
const validate = require('har-validator');
let text = '';
process.stdin.on('data', piece => text += piece).on('end', () =>
  validate.har(JSON.parse(text)).then(
    () => console.log('valid'),
    error => { console.log(JSON.stringify(error.errors, null, 1)); process.exit(1); }));
"""


def install(folder: Path, *packages: str) -> Path:
    """Install packages without their scripts, or skip the test and say so."""
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        pytest.skip(f"NOT TESTED: no npm is installed here for {', '.join(packages)}")
    done = subprocess.run(
        [npm, "install", "--prefix", str(folder), "--ignore-scripts", "--no-audit",
         "--no-fund", "--loglevel=error", *packages],
        capture_output=True, text=True, timeout=INSTALL_S, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        pytest.skip(
            f"NOT TESTED: npm has no {', '.join(packages)}: {done.stderr[-500:]}"
        )
    return folder / "node_modules"


def serious_faults(page: Page, modules: Path) -> list[dict[str, Any]]:
    """Return what axe-core finds serious or critical in a page as it is now."""
    page.ask("Page.setBypassCSP", enabled=True)
    page.run((modules / "axe-core/axe.min.js").read_text() + "; true")
    found = page.run(
        "axe.run(document, {resultTypes: ['violations']}).then(r => r.violations.map(v"
        " => ({id: v.id, impact: v.impact, help: v.help, nodes: v.nodes.map(n =>"
        " n.html.slice(0, 200) + ' ' + (n.any[0]?.message || ''))})))"
    )
    return [one for one in found if one["impact"] in SERIOUS]


def har_faults(har: bytes, modules: Path) -> str:
    """Return what har-validator says of a file; "" if it takes it."""
    done = subprocess.run(
        ["node", "-e", _CHECK_HAR], input=har, capture_output=True, cwd=modules.parent,
        timeout=60, check=False,
    )  # fmt: skip
    said = done.stdout.decode()
    return "" if said.strip() == "valid" else said + done.stderr.decode()
