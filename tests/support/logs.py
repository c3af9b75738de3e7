"""What was logged, as the lines that a person would read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunnel.log import LogfmtFormatter

if TYPE_CHECKING:
    import pytest


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Give each record as ``EVENT key=value …``, without time and level."""
    formatter = LogfmtFormatter()
    return [
        formatter.format(record).partition("event=")[2] for record in caplog.records
    ]


def text(caplog: pytest.LogCaptureFixture) -> str:
    return "\n".join(lines(caplog))
