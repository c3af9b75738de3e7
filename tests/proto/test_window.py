from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from tunnel.proto.pools import HELD_LIMIT_BYTES, HeldPool
from tunnel.proto.window import (
    GRANT_BYTES,
    MAX_WINDOW_BYTES,
    RecvWindow,
    SendWindow,
)

SIZES = st.integers(1, 5_000)


def test_room_is_what_was_granted_less_what_was_taken() -> None:
    window = SendWindow(100)
    window.taken += 30
    assert window.room() == 70
    assert window.raise_to(150)
    assert window.room() == 120


@given(st.integers(0, 1_000), st.lists(st.integers(0, 2_000)))
def test_a_grant_counts_only_when_it_is_higher(start: int, grants: list[int]) -> None:
    window = SendWindow(start)
    for grant in grants:
        before = window.limit
        assert window.raise_to(grant) == (grant > before)
        assert window.limit == max(before, grant)


def test_a_byte_above_the_grant_does_not_fit() -> None:
    window = RecvWindow(10, 10)
    window.received += 7
    assert window.fits(3)
    assert not window.fits(4)


def test_an_empty_frame_always_fits() -> None:
    window = RecvWindow(10, 10)
    window.received += 10
    assert window.fits(0)


def test_arrival_makes_no_grant_due_and_moves_no_limit() -> None:
    window = RecvWindow(10, 10)
    window.received += 10
    assert window.grant() == 10


def test_a_grant_is_due_when_half_a_window_was_taken() -> None:
    window = RecvWindow(10, 10)
    window.received += 10
    assert not window.consume(4)
    assert window.consume(1)
    assert window.grant() == 15
    assert not window.consume(4)
    assert window.consume(1)


def test_a_grant_waits_for_no_more_than_its_most_however_large_the_window() -> None:
    window = RecvWindow(MAX_WINDOW_BYTES, MAX_WINDOW_BYTES)
    window.received += MAX_WINDOW_BYTES
    assert not window.consume(GRANT_BYTES - 1)
    assert window.consume(1)
    assert window.grant() == MAX_WINDOW_BYTES + GRANT_BYTES
    assert not window.consume(1)


def test_a_window_of_one_byte_still_moves() -> None:
    window = RecvWindow(1, 1)
    window.received += 1
    assert window.consume(1)
    assert window.grant() == 2


def test_a_smaller_window_never_takes_a_promise_back() -> None:
    window = RecvWindow(100, 100)
    window.size = 10
    assert window.grant() == 100


@given(st.integers(1, 5_000), st.lists(SIZES, max_size=60))
def test_a_reader_that_reads_all_never_leaves_a_writer_without_credit(
    size: int, wishes: list[int]
) -> None:
    sender, receiver = SendWindow(size), RecvWindow(size, size)
    for wish in wishes:
        step = min(wish, sender.room())
        assert step > 0
        sender.taken += step
        assert receiver.fits(step)
        receiver.received += step
        assert receiver.received - receiver.consumed <= size
        if receiver.consume(receiver.received - receiver.consumed):
            assert sender.raise_to(receiver.grant())
        # What is outstanding and unread together never pass a window.
        assert receiver.limit - receiver.consumed <= size


@dataclass(eq=False)
class Holder:
    held_bytes: int = 0
    evicted: int = 0
    order: list[Holder] = field(default_factory=list)

    def evict(self) -> None:
        self.evicted += 1
        self.order.append(self)


def test_the_default_bound_is_that_of_the_text() -> None:
    assert HeldPool().limit_bytes == HELD_LIMIT_BYTES == 256 << 20


def test_exactly_the_bound_evicts_nobody() -> None:
    pool: HeldPool = HeldPool(100)
    holder = Holder()
    pool.hold(holder, 100)
    assert not holder.evicted
    assert pool.held_bytes == 100


def test_the_reader_that_took_nothing_for_longest_is_given_up() -> None:
    pool: HeldPool = HeldPool(100)
    first, second, third = Holder(), Holder(), Holder()
    pool.hold(first, 40)
    pool.hold(second, 40)
    pool.release(first, 1)
    pool.hold(third, 40)
    assert (first.evicted, second.evicted, third.evicted) == (0, 1, 0)
    assert pool.held_bytes == 79


def test_arrival_is_no_progress() -> None:
    pool: HeldPool = HeldPool(100)
    first, second = Holder(), Holder()
    pool.hold(first, 10)
    pool.hold(second, 10)
    pool.hold(first, 81)
    assert (first.evicted, second.evicted) == (1, 0)


def test_one_reader_above_the_bound_gives_itself_up() -> None:
    pool: HeldPool = HeldPool(100)
    holder = Holder()
    pool.hold(holder, 101)
    assert holder.evicted == 1
    assert pool.held_bytes == holder.held_bytes == 0


def test_several_are_given_up_until_it_fits() -> None:
    pool: HeldPool = HeldPool(100)
    order: list[Holder] = []
    small = [Holder(order=order) for _ in range(5)]
    for holder in small:
        pool.hold(holder, 20)
    pool.hold(Holder(order=order), 60)
    assert order == small[:3]
    assert pool.held_bytes == 100


def test_what_was_forgotten_can_be_released_and_forgotten_again() -> None:
    pool: HeldPool = HeldPool(100)
    holder = Holder()
    pool.hold(holder, 50)
    pool.forget(holder)
    pool.release(holder, 50)
    pool.forget(holder)
    assert pool.held_bytes == holder.held_bytes == 0


def test_more_released_than_held_counts_as_all() -> None:
    pool: HeldPool = HeldPool(100)
    holder = Holder()
    pool.hold(holder, 50)
    pool.release(holder, 60)
    assert pool.held_bytes == holder.held_bytes == 0


@given(
    st.lists(
        st.tuples(
            st.sampled_from(("hold", "release", "forget")), st.integers(0, 4), SIZES
        ),
        max_size=80,
    )
)
def test_the_pool_is_the_sum_of_its_holders_and_within_its_bound(
    steps: list[tuple[str, int, int]],
) -> None:
    pool: HeldPool = HeldPool(8_000)
    holders = [Holder() for _ in range(5)]
    for what, who, size in steps:
        if what == "hold":
            pool.hold(holders[who], size)
        elif what == "release":
            pool.release(holders[who], size)
        else:
            pool.forget(holders[who])
        assert pool.held_bytes == sum(holder.held_bytes for holder in holders)
        assert 0 <= pool.held_bytes <= 8_000
        assert all(holder.held_bytes >= 0 for holder in holders)
    for holder in holders:
        pool.forget(holder)
    assert pool.held_bytes == 0
    assert not pool._holders
