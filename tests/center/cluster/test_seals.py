"""What is sealed comes back whole, or not at all."""

from __future__ import annotations

from contextlib import suppress
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnel.center.cluster.directory import Claim
from tunnel.center.cluster.seals import (
    MAX_FENCE,
    SEAL_BYTES,
    Purpose,
    Seals,
    decoded,
    encoded,
    join_words,
    pack_claim,
    read_claim,
    split_words,
)

SEALS: Final = Seals(b"a secret of the cluster's own...")
KEYS: Final = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
MEMBERS: Final = st.dictionaries(KEYS, st.binary(max_size=40), max_size=4)
FENCES: Final = st.integers(0, MAX_FENCE)


@given(KEYS, st.sampled_from(Purpose), FENCES, MEMBERS)
def test_a_claim_comes_back(
    key: str, purpose: Purpose, fence: int, members: dict[str, bytes]
) -> None:
    sealed = SEALS.seal(purpose, key, pack_claim(fence, members))
    content = SEALS.open(purpose, key, sealed)
    assert content is not None
    assert read_claim(content) == Claim(fence, members)


@given(st.binary(max_size=60), st.integers(0), st.integers(1, 255))
def test_one_bit_is_enough_to_break_a_seal(content: bytes, at: int, bits: int) -> None:
    sealed = bytearray(SEALS.seal(Purpose.CLAIM, "a", content))
    sealed[at % len(sealed)] ^= bits
    assert SEALS.open(Purpose.CLAIM, "a", bytes(sealed)) is None


@pytest.mark.parametrize("size", range(SEAL_BYTES + 1))
def test_what_is_too_short_has_no_seal(size: int) -> None:
    assert SEALS.open(Purpose.CLAIM, "a", bytes(size)) is None


def test_a_seal_is_for_one_key_one_purpose_and_one_secret() -> None:
    sealed = SEALS.seal(Purpose.CLAIM, "ab", b"cd")
    assert SEALS.open(Purpose.CLAIM, "ab", sealed) == b"cd"
    assert SEALS.open(Purpose.CLAIM, "abc", sealed) is None
    assert SEALS.open(Purpose.REMEMBERED, "ab", sealed) is None
    assert Seals(b"another").open(Purpose.CLAIM, "ab", sealed) is None
    # What moves from the key into the content is another thing.
    moved = sealed[:SEAL_BYTES] + b"b" + sealed[SEAL_BYTES:]
    assert SEALS.open(Purpose.CLAIM, "a", moved) is None


@given(st.binary(max_size=80))
def test_any_bytes_are_words_or_none(content: bytes) -> None:
    with suppress(ValueError):
        assert join_words(*split_words(content)) == content
    assert encoded(decoded(content)) == content
