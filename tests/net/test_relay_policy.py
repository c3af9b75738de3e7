"""Every case of protocol.md#close, row by row. No stream, no clock, no trio."""

from __future__ import annotations

import pytest

from tunnel.errors import Code
from tunnel.net import relay_policy
from tunnel.net.relay_policy import (
    TABLE,
    Act,
    Down,
    Event,
    Farewell,
    Row,
    Up,
    Verdict,
    closed,
)

# event          up       down  -> up       down  act         verdict  grace
ROWS = """
  LOCAL_FINISHED OPEN     OPEN  -> OVER     OPEN  TELL_PEER   -        -
  LOCAL_FINISHED DROPPED  OPEN  -> OVER     OPEN  GO_ON       -        -
  LOCAL_FINISHED OPEN     DEAD  -> OVER     OVER  STOP        RESET    -
  LOCAL_FINISHED DROPPED  DEAD  -> OVER     OVER  STOP        RESET    -
  LOCAL_FINISHED OPEN     OVER  -> OVER     OVER  STOP        -        -
  LOCAL_FINISHED DROPPED  OVER  -> OVER     OVER  STOP        -        -

  LOCAL_BROKE    OPEN     OPEN  -> OVER     OVER  STOP        RESET    -
  LOCAL_BROKE    OPEN     DEAD  -> OVER     OVER  STOP        RESET    -
  LOCAL_BROKE    OPEN     OVER  -> OVER     OVER  STOP        RESET    -
  LOCAL_BROKE    DROPPED  OPEN  -> OVER     OVER  STOP        RESET    -
  LOCAL_BROKE    DROPPED  DEAD  -> OVER     OVER  STOP        RESET    -
  LOCAL_BROKE    DROPPED  OVER  -> OVER     OVER  STOP        RESET    -
  LOCAL_BROKE    OVER     OPEN  -> OVER     OVER  STOP        UNHEARD  -
  LOCAL_BROKE    OVER     DEAD  -> OVER     OVER  STOP        UNHEARD  -

  LOCAL_DEAF     OPEN     OPEN  -> OPEN     DEAD  READ_REST   -        -
  LOCAL_DEAF     OPEN     DEAD  -> OPEN     DEAD  READ_REST   -        -
  LOCAL_DEAF     OPEN     OVER  -> OPEN     DEAD  READ_REST   -        -
  LOCAL_DEAF     DROPPED  OPEN  -> DROPPED  DEAD  READ_REST   -        -
  LOCAL_DEAF     DROPPED  DEAD  -> DROPPED  DEAD  READ_REST   -        -
  LOCAL_DEAF     DROPPED  OVER  -> DROPPED  DEAD  READ_REST   -        -
  LOCAL_DEAF     OVER     OPEN  -> OVER     OVER  STOP        UNHEARD  -
  LOCAL_DEAF     OVER     DEAD  -> OVER     OVER  STOP        UNHEARD  -

  LOCAL_VANISHED OPEN     OPEN  -> OVER     OVER  STOP        RESET    -
  LOCAL_VANISHED OPEN     DEAD  -> OVER     OVER  STOP        RESET    -
  LOCAL_VANISHED OPEN     OVER  -> OVER     OVER  STOP        RESET    -
  LOCAL_VANISHED DROPPED  OPEN  -> OVER     OVER  STOP        RESET    -
  LOCAL_VANISHED DROPPED  DEAD  -> OVER     OVER  STOP        RESET    -
  LOCAL_VANISHED DROPPED  OVER  -> OVER     OVER  STOP        RESET    -
  LOCAL_VANISHED OVER     OPEN  -> OVER     OVER  STOP        RESET    -
  LOCAL_VANISHED OVER     DEAD  -> OVER     OVER  STOP        RESET    -

  PEER_FINISHED  OPEN     OPEN  -> OPEN     OVER  TELL_LOCAL  -        -
  PEER_FINISHED  DROPPED  OPEN  -> DROPPED  OVER  TELL_LOCAL  -        grace
  PEER_FINISHED  OVER     OPEN  -> OVER     OVER  STOP        -        -

  PEER_DEAF      OPEN     OPEN  -> DROPPED  OPEN  DROP        -        -
  PEER_DEAF      OPEN     DEAD  -> DROPPED  DEAD  DROP        -        -
  PEER_DEAF      OPEN     OVER  -> DROPPED  OVER  DROP        -        grace

  PEER_BROKE     OPEN     OPEN  -> OPEN     OPEN  GO_ON       BROKEN   grace
  PEER_BROKE     OPEN     DEAD  -> OPEN     DEAD  GO_ON       BROKEN   grace
  PEER_BROKE     OPEN     OVER  -> OVER     OVER  STOP        BROKEN   -
  PEER_BROKE     DROPPED  OPEN  -> DROPPED  OPEN  GO_ON       BROKEN   grace
  PEER_BROKE     DROPPED  DEAD  -> DROPPED  DEAD  GO_ON       BROKEN   grace
  PEER_BROKE     DROPPED  OVER  -> OVER     OVER  STOP        BROKEN   -
  PEER_BROKE     OVER     OPEN  -> OVER     OPEN  GO_ON       BROKEN   grace
  PEER_BROKE     OVER     DEAD  -> OVER     DEAD  GO_ON       BROKEN   grace

  PEER_DRAINED   OPEN     OPEN  -> OVER     OVER  STOP        BROKEN   -
  PEER_DRAINED   OPEN     DEAD  -> OVER     OVER  STOP        BROKEN   -
  PEER_DRAINED   OPEN     OVER  -> OVER     OVER  STOP        BROKEN   -
  PEER_DRAINED   DROPPED  OPEN  -> OVER     OVER  STOP        BROKEN   -
  PEER_DRAINED   DROPPED  DEAD  -> OVER     OVER  STOP        BROKEN   -
  PEER_DRAINED   DROPPED  OVER  -> OVER     OVER  STOP        BROKEN   -
  PEER_DRAINED   OVER     OPEN  -> OVER     OVER  STOP        BROKEN   -
  PEER_DRAINED   OVER     DEAD  -> OVER     OVER  STOP        BROKEN   -

  IDLE           OPEN     OPEN  -> OVER     OVER  STOP        IDLE     -
  IDLE           OPEN     DEAD  -> OVER     OVER  STOP        IDLE     -
  IDLE           OPEN     OVER  -> OVER     OVER  STOP        IDLE     -
  IDLE           DROPPED  OPEN  -> OVER     OVER  STOP        IDLE     -
  IDLE           DROPPED  DEAD  -> OVER     OVER  STOP        IDLE     -
  IDLE           DROPPED  OVER  -> OVER     OVER  STOP        IDLE     -
  IDLE           OVER     OPEN  -> OVER     OVER  STOP        IDLE     -
  IDLE           OVER     DEAD  -> OVER     OVER  STOP        IDLE     -

  GRACE_OVER     OPEN     OPEN  -> OVER     OVER  STOP        -        -
  GRACE_OVER     OPEN     DEAD  -> OVER     OVER  STOP        -        -
  GRACE_OVER     OPEN     OVER  -> OVER     OVER  STOP        -        -
  GRACE_OVER     DROPPED  OPEN  -> OVER     OVER  STOP        -        -
  GRACE_OVER     DROPPED  DEAD  -> OVER     OVER  STOP        -        -
  GRACE_OVER     DROPPED  OVER  -> OVER     OVER  STOP        -        -
  GRACE_OVER     OVER     OPEN  -> OVER     OVER  STOP        -        -
  GRACE_OVER     OVER     DEAD  -> OVER     OVER  STOP        -        -
"""
"""What is not here changes nothing."""

Case = tuple[Event, Up, Down]


def _read(line: str) -> tuple[Case, Row]:
    left, right = (half.split() for half in line.split("->"))
    verdict = None if right[3] == "-" else getattr(relay_policy, right[3])
    row = Row(Up[right[0]], Down[right[1]], Act[right[2]], verdict, right[4] != "-")
    return (Event[left[0]], Up[left[1]], Down[left[2]]), row


EXPECTED = dict(_read(line) for line in ROWS.splitlines() if line.strip())


@pytest.mark.parametrize(
    "case", EXPECTED, ids=lambda case: "-".join(e.name for e in case)
)
def test_an_end_in_a_state_has_one_answer(case: Case) -> None:
    assert TABLE[case] == EXPECTED[case]


def test_everything_else_changes_nothing() -> None:
    others = TABLE.keys() - EXPECTED.keys()
    assert len(others) + len(EXPECTED) == len(Event) * len(Up) * len(Down)
    for event, up, down in others:
        row = TABLE[event, up, down]
        assert row == Row(up, down, Act.GO_ON, None, grace=False), event


def test_a_relay_whose_directions_are_over_is_over_for_good() -> None:
    for event in Event:
        assert TABLE[event, Up.OVER, Down.OVER].act is Act.GO_ON


def test_both_directions_are_over_exactly_when_the_engine_stops() -> None:
    for (_event, up, down), row in TABLE.items():
        was_over = (up, down) == (Up.OVER, Down.OVER)
        is_over = (row.up, row.down) == (Up.OVER, Down.OVER)
        assert (row.act is Act.STOP) == (is_over and not was_over)


def test_no_direction_opens_again() -> None:
    for (_event, up, down), row in TABLE.items():
        assert row.up >= up
        assert row.down >= down or (down, row.down) == (Down.OVER, Down.DEAD)


@pytest.mark.parametrize(
    ("verdict", "expected"),
    [
        (relay_policy.CLEAN, Verdict(Code.NORMAL, Code.NORMAL, Farewell.FIN)),
        (relay_policy.RESET, Verdict(Code.RESET, Code.RESET, Farewell.RST)),
        (relay_policy.IDLE, Verdict(Code.IDLE, Code.IDLE, Farewell.RST)),
        (relay_policy.UNHEARD, Verdict(Code.RESET, Code.NORMAL, Farewell.RST)),
        (relay_policy.BROKEN, Verdict(Code.RESET, Code.NORMAL, Farewell.LATE_RST)),
    ],
)
def test_a_verdict_says_what_each_end_hears(
    verdict: Verdict, expected: Verdict
) -> None:
    assert verdict == expected


def test_only_a_clean_result_is_a_fin() -> None:
    verdicts = {row.verdict for row in TABLE.values() if row.verdict is not None}
    for verdict in verdicts | {relay_policy.CLEAN}:
        assert (verdict.to_local is Farewell.FIN) == (verdict.code is Code.NORMAL)


@pytest.mark.parametrize("code", Code)
def test_a_close_without_a_code_says_only_that_the_peer_reads_no_more(
    code: Code,
) -> None:
    is_normal = code is Code.NORMAL
    assert closed(code) is (Event.PEER_DEAF if is_normal else Event.PEER_BROKE)
