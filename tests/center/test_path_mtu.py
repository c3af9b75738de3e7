from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

from tunnel.center.path_mtu import SMALL_MSS_BYTES, STILL_S, Path
from tunnel.proto.resend import ResendBuffer

if TYPE_CHECKING:
    import pytest

    from tunnel.proto.mux import MuxCore


@dataclass
class Core:
    """As much of a core as tells where it stands."""

    received: int = 0
    replay: ResendBuffer | None = field(default_factory=ResendBuffer)


class Line:
    """Links over one path, on a clock of the test's."""

    def __init__(self) -> None:
        self.path = Path()
        self.core = Core()

    def link(
        self, lasts_s: float = 30, *, greeted: bool, session: bytes = b"one"
    ) -> int | None:
        self.path.greeted = greeted
        self.path.link_lost(session, cast("MuxCore", self.core), lasts_s)
        return self.path.mss


def frames(core: Core, count: int) -> None:
    assert core.replay is not None
    core.replay.record(b"\0" * 8 * count)


def test_two_links_that_receive_nothing_more_make_the_next_one_small(
    caplog: pytest.LogCaptureFixture,
) -> None:
    line = Line()
    line.core.received = 5_000
    assert line.link(greeted=True) is None
    assert line.link(greeted=False) == SMALL_MSS_BYTES
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "large packets" in record.getMessage() or "large packets" in str(
        vars(record)
    )
    # It helped: the next links are small too, and nothing more is said.
    line.core.received = 90_000
    assert line.link(greeted=True) == SMALL_MSS_BYTES
    assert len(caplog.records) == 1


def test_bytes_that_are_never_confirmed_make_the_next_link_small() -> None:
    """Its question was answered, for it went before the bytes that are sent again."""
    line = Line()
    frames(line.core, 9)
    line.core.received = 5_000
    assert line.link(greeted=True) is None
    line.core.received = 6_000
    assert line.link(greeted=True) == SMALL_MSS_BYTES


def test_small_packets_that_do_not_help_are_given_up_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING)
    line = Line()
    made = [line.link(greeted=False) for _ in range(8)]
    small = SMALL_MSS_BYTES
    assert made == [None, small, small, None, None, small, small, None]
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_progress_is_no_reason_for_suspicion() -> None:
    line = Line()
    for _ in range(5):
        line.core.received += 1
        frames(line.core, 1)
        assert line.core.replay is not None
        line.core.replay.confirm(line.core.replay.position - 8)
        assert line.link(greeted=True) is None


def test_an_idle_session_that_is_cut_again_and_again_is_none_either() -> None:
    line = Line()
    for _ in range(5):
        assert line.link(3_600, greeted=True) is None


def test_links_that_are_cut_at_once_are_none_either() -> None:
    line = Line()
    for _ in range(5):
        assert line.link(STILL_S - 1, greeted=False) is None


def test_the_same_byte_of_another_session_is_another_byte() -> None:
    line = Line()
    for number in range(5):
        session = bytes([number])
        assert line.link(greeted=False, session=session) is None


def test_a_session_that_keeps_nothing_is_judged_by_what_it_receives() -> None:
    line = Line()
    line.core.replay = None
    assert line.link(greeted=False) is None
    assert line.link(greeted=False) == SMALL_MSS_BYTES


def test_two_handshakes_that_are_never_ended_make_the_next_one_small() -> None:
    path = Path()
    sizes = []
    for _ in range(4):
        path.handshake_silent()
        sizes.append(path.mss)
    assert sizes[:2] == [None, SMALL_MSS_BYTES]
    assert sizes[3] is None
