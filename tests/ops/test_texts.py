"""Numbers as people read them."""

from __future__ import annotations

import pytest

from tunnel.ops.texts import size_text, span_text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999.4, "999 B"),
        (999.6, "1.0 kB"),
        (1_000, "1.0 kB"),
        (999_949, "999.9 kB"),
        (999_950, "1.0 MB"),
        (999_999_999, "1.0 GB"),
        (999_960_000_000, "1.0 TB"),
        (12_345_000_000_000_000, "12345.0 TB"),
    ],
)
def test_a_size_has_the_unit_that_it_is_shown_in(count: float, text: str) -> None:
    assert size_text(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-1, "0 s"),
        (59.4, "59 s"),
        (59.9, "1 min"),
        (3_569, "59 min"),
        (3_571, "1 h"),
        (86_399, "1 d"),
        (36 * 3_600, "2 d"),
        (864_000, "10 d"),
    ],
)
def test_a_span_has_the_unit_that_it_is_shown_in(seconds: float, text: str) -> None:
    assert span_text(seconds) == text
