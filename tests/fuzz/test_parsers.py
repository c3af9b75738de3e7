"""Hostile inputs for each parser: only what its callers are promised comes out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.fuzzer import WORDS
from support.hostile_inputs import PARSERS, take


@pytest.mark.parametrize("name", PARSERS)
@given(st.data())
def test_no_input_makes_a_parser_raise_what_it_does_not_promise(
    name: str, data: st.DataObject
) -> None:
    seeds = PARSERS[name].seeds
    part = st.sampled_from(seeds).flatmap(
        lambda seed: st.builds(
            lambda a, b: seed[min(a, b) : max(a, b)],
            st.integers(0, len(seed)),
            st.integers(0, len(seed)),
        )
    )
    pieces = st.one_of(part, st.sampled_from(WORDS), st.binary(max_size=16))
    take(name, b"".join(data.draw(st.lists(pieces, max_size=6))))


@pytest.mark.parametrize("name", PARSERS)
def test_good_inputs_are_taken(name: str) -> None:
    """Else those who look for bad ones begin nowhere."""
    taken = [take(name, seed) for seed in PARSERS[name].seeds]
    if not name.endswith("handshake"):  # they end with a proof, which is none
        assert any(taken)
