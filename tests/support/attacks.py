"""The rows of docs/attacks.md: what is tried, and which tests show what holds."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from support.tables import ROOT

PAGE: Final = ROOT / "docs" / "attacks.md"
ROWS: Final = tuple(
    f"{kind}{number}"
    for kind, last in (("S", 19), ("D", 10), ("A", 20), ("F", 48))
    for number in range(1, last + 1)
)
"""All that there have to be, in their order."""

_ROW: Final = re.compile(r"^\| ([SDAF]\d+) \| (.+) \| (.+) \|$", re.MULTILINE)
_TEST: Final = re.compile(r"`([\w/]+\.py::test_\w+)`")
_REASON: Final = re.compile(r"(?:not|later): \w.{10,}")


class Row(NamedTuple):
    """One row of the page."""

    name: str
    tried: str
    tests: tuple[str, ...]
    """``FILE::TEST``, below ``tests/``."""
    reason: bool
    """It says why it has no test, or not all that it might."""


def rows() -> list[Row]:
    """Read the page."""
    found = []
    for name, tried, shown in _ROW.findall(PAGE.read_text("utf-8")):
        parts = shown.split("<br>")
        tests = tuple(test for part in parts for test in _TEST.findall(part))
        reason = any(_REASON.fullmatch(part) for part in parts)
        assert len(tests) + reason == len(parts), f"{name}: {shown}"
        found.append(Row(name, tried, tests, reason))
    return found


def rows_of_tests() -> dict[str, list[str]]:
    """Give for each test the rows that it stands for."""
    found: dict[str, list[str]] = {}
    for row in rows():
        for test in row.tests:
            found.setdefault(test, []).append(row.name)
    return found
