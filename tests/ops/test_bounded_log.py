"""Bursts of one event are counted; lines and counts add up to what happened."""

from __future__ import annotations

import io
import logging
import re
import weakref

import pytest

from tunnel.log import LogfmtFormatter, log_event
from tunnel.ops import show
from tunnel.ops.show import LINES_IN_A_WINDOW, WINDOW_S, BoundedHandler


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def monotonic(self) -> float:
        return self.now


class Log:
    def __init__(self) -> None:
        self.out = io.StringIO()
        self.handler = BoundedHandler(self.out)
        self.handler.setFormatter(LogfmtFormatter())
        self.logger = logging.Logger("tunnel.test", logging.INFO)
        self.logger.addHandler(self.handler)

    def lines(self) -> list[str]:
        return self.out.getvalue().splitlines()

    def counted(self) -> int:
        """Lines of events, and the numbers of those that were left out."""
        found = [re.search(r" more=(\d+)", line) for line in self.lines()]
        return sum(int(one[1]) if one else 1 for one in found)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(show, "time", clock)
    return clock


def test_a_flood_is_some_lines_and_a_count(clock: Clock) -> None:
    log = Log()
    for number in range(26_000):
        log_event(log.logger, logging.INFO, "link.refused", peer=f"192.0.2.1:{number}")
    clock.now += WINDOW_S
    log.handler.say_counts()
    assert len(log.lines()) == LINES_IN_A_WINDOW + 1
    assert log.lines()[-1].endswith(
        "level=info event=link.refused more=25900 in_s=10.0"
    )
    assert log.counted() == 26_000


def test_what_happens_to_many_users_is_a_line_for_each(clock: Clock) -> None:
    log = Log()
    for number in range(500):
        log_event(log.logger, logging.INFO, "link.down", user=f"u{number}")
    for number in range(500):
        log_event(
            log.logger, logging.INFO, "link.down", user="one", client=f"c{number}"
        )
    log.handler.say_counts(everything=True)
    assert len(log.lines()) == 1_000


def test_a_count_names_whose_it_is(clock: Clock) -> None:
    log = Log()
    for _ in range(LINES_IN_A_WINDOW + 3):
        log_event(log.logger, logging.WARNING, "stream.lost", user="a", client="c1")
    log.handler.say_counts(everything=True)
    assert "level=warning event=stream.lost user=a client=c1 more=3" in log.lines()[-1]


def test_a_window_that_is_over_is_said_before_the_next_begins(clock: Clock) -> None:
    log = Log()
    for _ in range(3):
        for _ in range(150):
            log_event(log.logger, logging.INFO, "link.refused")
        clock.now += WINDOW_S
    assert log.counted() == 400  # the last fifty are still to be said
    log.handler.say_counts()
    assert log.counted() == 450
    log.handler.say_counts(everything=True)
    assert log.counted() == 450


def test_nothing_is_said_of_a_window_that_still_goes_on(clock: Clock) -> None:
    log = Log()
    for _ in range(150):
        log_event(log.logger, logging.INFO, "link.refused")
    clock.now += WINDOW_S / 2
    log.handler.say_counts()
    assert len(log.lines()) == LINES_IN_A_WINDOW


def test_the_table_of_kinds_is_bounded_and_forgets(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(show, "MAX_KINDS", 10)
    log = Log()
    for number in range(1_000):
        log_event(log.logger, logging.INFO, "link.down", user=f"u{number}")
    assert len(log.handler._windows) == 11
    log.handler.say_counts(everything=True)
    assert len(log.lines()) == 10 + LINES_IN_A_WINDOW + 1
    assert log.counted() == 1_000
    assert not log.handler._windows


def test_records_of_other_libraries_are_counted_too(clock: Clock) -> None:
    log = Log()
    for number in range(300):
        log.logger.warning("lost %d", number)
    log.handler.say_counts(everything=True)
    assert len(log.lines()) == LINES_IN_A_WINDOW + 1
    assert log.counted() == 300


def test_nothing_that_a_line_spoke_of_is_kept(clock: Clock) -> None:
    class Held(Exception):
        pass

    log = Log()
    error = Held()
    gone = weakref.ref(error)
    log_event(log.logger, logging.INFO, "visitor.failed", exc_info=error)
    del error
    assert gone() is None
