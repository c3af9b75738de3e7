from __future__ import annotations

from tunnel.link.output import MAX_TURN_BYTES, MIN_TURN_BYTES, WriteSizer


def test_on_a_fast_line_turns_double_to_their_limit() -> None:
    sizer = WriteSizer()
    sizes = []
    for _ in range(4):
        sizes.append(sizer.turn_bytes)
        sizer.took(sizer.turn_bytes, 0.0002)
    assert sizes == [65_536, 131_072, 262_144, MAX_TURN_BYTES]


def test_small_turns_say_nothing_about_a_line_that_took_them_at_once() -> None:
    sizer = WriteSizer()
    for _ in range(10):
        sizer.took(100, 0.00002)
    assert sizer.turn_bytes == 65_536


def test_a_turn_is_five_milliseconds_of_a_slower_line() -> None:
    sizer = WriteSizer()
    for _ in range(4):
        sizer.took(sizer.turn_bytes, 0.0)
    for _ in range(8):
        sizer.took(sizer.turn_bytes, sizer.turn_bytes / 10_000_000)
    assert sizer.turn_bytes == 50_000


def test_a_turn_is_never_less_than_a_record() -> None:
    sizer = WriteSizer()
    sizer.took(65_536, 1.0)
    assert sizer.turn_bytes == MIN_TURN_BYTES


def test_a_few_bytes_that_waited_say_nothing_about_the_line() -> None:
    sizer = WriteSizer()
    sizer.took(100, 0.5)
    assert sizer.turn_bytes == 65_536
