"""Headless Chromium, one new profile for each page."""

from __future__ import annotations

import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

if TYPE_CHECKING:
    from support.processes import Machine

NAMES: Final = ("chromium", "chromium-browser", "google-chrome")
QUIET: Final = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
)
NO_NAMES_HERE: Final = "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1"
"""The browser knows no name itself: one that it reaches was resolved elsewhere."""


@dataclass(frozen=True)
class Browser:
    """A browser that goes where its options say."""

    machine: Machine
    path: str

    def text(self, url: str, *options: str) -> str:
        """Load a page and what belongs to it; give its body when all has come."""
        with tempfile.TemporaryDirectory(
            dir=self.machine.home, ignore_cleanup_errors=True
        ) as profile:
            kept = ("--user-data-dir=" + profile, *QUIET, *options)
            done = self.machine.run(self.path, *kept, "--dump-dom", url)
        assert done.returncode == 0, done.stderr
        found = re.search("<body[^>]*>(.*)</body>", done.stdout.decode(), re.DOTALL)
        return found[1].strip() if found else ""

    def through(self, proxy: str, url: str, *options: str) -> str:
        """As ``text``, through a proxy, which loopback addresses go to as well."""
        where = (f"--proxy-server={proxy}", "--proxy-bypass-list=<-loopback>")
        return self.text(url, *where, *options)


def find_browser(machine: Machine) -> Browser:
    """Find one, or skip the test and say so."""
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip("NOT TESTED: no Chromium is installed on this machine")
    return Browser(machine, str(Path(path)))
