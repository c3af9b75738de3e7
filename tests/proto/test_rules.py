"""The rules of an entry: their table in protocol.md, and how bytes are read."""

from __future__ import annotations

import re
from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.tables import protocol_text, rows, section

from tunnel.errors import Code, RemoteSessionError
from tunnel.proto.fields import encode_tlvs
from tunnel.proto.frames import MappingEntry, MappingType
from tunnel.proto.payloads import entry_bytes
from tunnel.proto.rules import (
    MAX_NETWORKS,
    Rules,
    is_path,
    read_rules,
    rules_tlvs,
    said_words,
)

NETWORKS = st.one_of(
    st.ip_addresses(v=4).map(lambda ip: ip_network(ip)),
    st.ip_addresses(v=6).map(lambda ip: ip_network(f"{ip}/64", strict=False)),
)
SEGMENTS = st.from_regex(r"[A-Za-z0-9_~-]{1,9}", fullmatch=True)
GROUPS = st.from_regex(r"[A-Za-z0-9._-]{1,63}", fullmatch=True)
RULES = st.builds(
    Rules,
    st.lists(NETWORKS, max_size=4).map(tuple),
    st.lists(NETWORKS, max_size=3).map(tuple),
    st.integers(1, 2**32 - 1),
    st.integers(0, 2**32 - 1),
    st.integers(1, 2**32 - 1),
    st.integers(1, 2**32 - 1),
    st.none() | st.integers(0, 2**62),
    st.lists(SEGMENTS, max_size=5).map(lambda found: "".join(f"/{s}" for s in found)),
    st.booleans(),
    GROUPS | st.just(""),
    st.booleans(),
)
ONE_OF_EACH = Rules(
    (ip_network("10.0.0.0/8"),), (ip_network("::1"),), 1, 0, 1, 1, 0, "/a", True, "g",
    True,
)  # fmt: skip


@given(RULES)
def test_rules_are_read_as_they_were_written(rules: Rules) -> None:
    assert read_rules(rules_tlvs(rules)) == rules


def test_no_fields_are_no_rules() -> None:
    assert rules_tlvs(Rules()) == {}
    assert read_rules({}) is None
    assert read_rules({128: b"of a later version"}) is None


def test_the_table_says_which_field_is_which_word() -> None:
    table = rows(section(protocol_text(), "rules"))
    assert [(int(row[0]), row[1]) for row in table] == list(
        zip(rules_tlvs(ONE_OF_EACH), said_words(ONE_OF_EACH), strict=True)
    )


@given(st.dictionaries(st.integers(1, 9), st.binary(max_size=40), min_size=1))
def test_any_bytes_are_rules_or_a_protocol_error(tlvs: dict[int, bytes]) -> None:
    try:
        rules = read_rules(tlvs)
    except RemoteSessionError as error:
        code = error.code
    else:
        code = Code.PROTOCOL
        assert rules is not None
        assert rules_tlvs(rules) == dict(sorted(tlvs.items()))
    assert code is Code.PROTOCOL


@pytest.mark.parametrize(
    ("path", "is_one"),
    [("/a", True), ("/a/b.c", True), ("/...", True), ("/", False), ("", False),
     ("a", False), ("/a/", False), ("/a//b", False), ("/./a", False), ("/a/..", False),
     ("/%61", False), ("/a?b", False), ("/" + "a" * 255, False)],
)  # fmt: skip
def test_a_path_is_whole_segments_that_have_one_reading(
    path: str, is_one: bool
) -> None:
    assert is_path(path) is is_one


def test_too_many_networks_are_a_protocol_error() -> None:
    one = bytes((4, 32, 10, 0, 0, 1))
    assert read_rules({1: one * MAX_NETWORKS}) is not None
    with pytest.raises(RemoteSessionError) as caught:
        read_rules({1: one * (MAX_NETWORKS + 1)})
    assert caught.value.code is Code.PROTOCOL


def test_the_size_of_an_entry_is_what_it_takes() -> None:
    plain = MappingEntry(MappingType.HTTP, "web-1", "shop")
    ruled = MappingEntry(MappingType.HTTP, "web-1", "shop", rules=ONE_OF_EACH)
    fields = len(encode_tlvs(rules_tlvs(ONE_OF_EACH)))
    assert entry_bytes(ruled) == entry_bytes(plain) + fields


def test_the_text_says_how_many_networks_a_field_may_have() -> None:
    assert re.search(rf"more\s+than {MAX_NETWORKS} networks", protocol_text())
