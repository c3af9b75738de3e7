"""The flags of how long silence is borne, how much HTTP, and what a user may have."""

from __future__ import annotations

import math

import pytest

from tunnel.errors import UsageError
from tunnel.front.http.limits import Limits
from tunnel.net.timeouts import Timeouts
from tunnel.ops.flags import RunFlags
from tunnel.ops.serve_flags import ServeFlags


def test_without_a_word_nothing_ends_for_its_silence_but_udp() -> None:
    assert RunFlags().timeouts() == Timeouts()
    assert Timeouts() == Timeouts(math.inf, 180, 150)
    assert RunFlags().limits() == Limits() == Limits(131_072, 300, math.inf)


def test_each_flag_has_its_place() -> None:
    given = RunFlags(idle="2h", udp_idle="5m", dead_after="40")
    assert given.timeouts() == Timeouts(7_200, 300, 40)
    given = RunFlags(max_head=2_048, max_fields=20, body_timeout="1m")
    assert given.limits() == Limits(2_048, 20, 60)


@pytest.mark.parametrize(
    "given",
    [
        RunFlags(idle="never"),
        RunFlags(udp_idle="0"),
        RunFlags(udp_idle="-1"),
        RunFlags(dead_after="0"),
        RunFlags(dead_after="4s"),
        RunFlags(dead_after="13h"),
        RunFlags(max_head=1_023),
        RunFlags(max_head=1_048_577),
        RunFlags(max_fields=9),
        RunFlags(max_fields=10_001),
        RunFlags(body_timeout="soon"),
    ],
)
def test_what_would_end_everything_is_refused(given: RunFlags) -> None:
    with pytest.raises(UsageError):
        (given.timeouts(), given.limits())


@pytest.mark.parametrize(
    ("udp_idle_s", "answered", "silent_s"),
    [(180, True, 180), (180, False, 60), (10, True, 10), (10, False, 10)],
)
def test_a_flow_without_an_answer_is_borne_for_a_minute_at_most(
    udp_idle_s: float, answered: bool, silent_s: float
) -> None:
    assert Timeouts(udp_idle_s=udp_idle_s).udp_s(answered=answered) == silent_s


def test_the_default_limits_of_users_come_from_three_flags() -> None:
    assert ServeFlags().options().limits.words == ()
    given = ServeFlags(limit=["rate=5MB/s"], max_sessions=3, max_waiting_sessions=2)
    wanted = ("sessions=3", "waiting=2", "rate=5MB/s")
    assert given.options().limits.words == wanted
    with pytest.raises(UsageError, match="a second time"):
        ServeFlags(limit=["sessions=4"], max_sessions=3).limits()
    for flag, wrong in (
        ("--max-sessions: '0'", ServeFlags(max_sessions=0)),
        ("--max-waiting-sessions: '-1'", ServeFlags(max_waiting_sessions=-1)),
        ("--limit: '5M'", ServeFlags(limit=["rate=5M"])),
    ):
        with pytest.raises(UsageError, match=flag):
            wrong.limits()


def test_acme_is_refused_where_there_are_several_workers() -> None:
    flags = ServeFlags(https="443", acme="me@example.net", workers=2)
    with pytest.raises(UsageError, match="do not go together"):
        flags.options()
