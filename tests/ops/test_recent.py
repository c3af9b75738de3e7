"""The last lines of the log have a bound in bytes, whatever is in them."""

from __future__ import annotations

import logging
import sys

import pytest

from tunnel.log import FIELDS
from tunnel.ops import recent
from tunnel.ops.recent import Recent


def record(text: str) -> logging.LogRecord:
    made = logging.LogRecord("tunnel", logging.INFO, "", 0, "link.up", (), None)
    vars(made)[FIELDS] = {"reason": text}
    return made


@pytest.mark.parametrize("letter", ["a", "\u00e4", "\u4e2d", "\U0001f642"])
def test_the_bytes_of_all_lines_are_bounded(
    letter: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recent, "MAX_BYTES", 16_384)
    lines = Recent()
    for _ in range(100):
        lines.add(record(letter * 1_000))
    kept = list(lines.after(0))
    held = sum(sys.getsizeof(line.text) for line in kept)
    assert 16_384 - 5_000 < held <= 16_384
    assert kept[-1].number == 100
