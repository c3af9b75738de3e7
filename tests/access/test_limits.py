"""Limits of a user: their words, and what is no such word."""

from contextlib import suppress
from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnel.access.limits import LIMIT_WORDS, Limits, parse_limits
from tunnel.errors import UsageError


@pytest.mark.parametrize(
    ("word", "field", "value"),
    [
        ("links=3", "links", 3),
        ("waiting=0", "waiting", 0),
        ("ports=16", "ports", 16),
        ("names=0", "names", 0),
        ("connections=100", "connections", 100),
        ("connections=none", "connections", None),
        ("opens=50/s", "opens", 50),
        ("up=5MB/s", "up", 5_000_000),
        ("down=1.5MiB/s", "down", 1_572_864),
        ("down=1500B/s", "down", 1_500),
        ("month=100GB", "month", 100_000_000_000),
        ("month = 2 TB", "month", 2_000_000_000_000),
        ("datagrams=1000/s", "datagrams", 1_000),
        ("visitors=64", "visitors", 64),
    ],
)
def test_a_word_sets_its_field_and_nothing_else(
    word: str, field: str, value: int | None
) -> None:
    limits = parse_limits([word])
    assert getattr(limits, field) == value
    others = [one.name for one in fields(Limits) if one.name != field]
    assert all(getattr(limits, one) == getattr(Limits(), one) for one in others)


def test_rate_is_both_ways() -> None:
    limits = parse_limits(["rate=5MB/s"])
    assert limits.up == limits.down == 5_000_000
    assert limits.words == ("rate=5MB/s",)
    assert parse_limits(["rate=none"], base=limits) == Limits()


def test_what_is_not_said_stays_as_it_was() -> None:
    before = parse_limits(["rate=5MB/s", "links=2"])
    assert parse_limits(["down=1MB/s"], base=before).words == (
        "links=2",
        "up=5MB/s",
        "down=1MB/s",
    )


def test_the_servers_default_holds_where_a_user_has_no_limit_of_its_own() -> None:
    default = parse_limits(["rate=5MB/s", "links=9", "connections=100"])
    assert Limits().over(default) == default
    own = parse_limits(["down=1MB/s", "connections=none", "links=2"])
    assert own.over(default).words == (
        "links=2",
        "connections=100",
        "up=5MB/s",
        "down=1MB/s",
    )


def test_a_number_that_is_said_holds_also_where_it_is_the_usual_one() -> None:
    default = parse_limits(["sessions=10", "rate=5MB/s"])
    own = parse_limits(["sessions=1024"])
    assert own.words == ("sessions=1024",)
    assert own.over(default).sessions == 1024
    assert own.over(default).words == ("sessions=1024", "rate=5MB/s")
    assert parse_limits(["sessions=3"], base=own).words == ("sessions=3",)


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("rat=5MB/s", "did you mean rate=5MB/s?"),
        ("connection=5", "did you mean connections=100?"),
        ("Opens=5/s", "did you mean opens=100/s?"),
        ("speed=9", "known: links, sessions"),
        ("rate", "for example rate=5MB/s"),
        ("rate=", "for example rate=5MB/s"),
        ("rate=5MB", "did you mean rate=5MB/s?"),
        ("rate=5mb/s", "8 bits"),
        ("rate=40Mbit/s", "40 Mbit/s are rate=5MB/s"),
        ("rate=5000000", "did you mean rate=5000000MB/s?"),
        ("rate=5M/s", "did you mean rate=5MB/s?"),
        ("rate=5mib/s", "did you mean rate=5MiB/s?"),
        ("rate=999B/s", "from 1KB/s to 1TB/s"),
        ("rate=-5MB/s", "for example"),
        ("rate=1e9B/s", "for example"),
        ("month=100", "did you mean month=100MB?"),
        ("opens=5", "for example opens=100/s"),
        ("opens=5/m", "for example opens=100/s"),
        ("opens=0/s", "from 1/s to 1000000/s, or none"),
        ("links=0", "from 1 to 16384"),
        ("links=none", "from 1 to 16384"),
        ("links=٣", "from 1 to 16384"),
        ("links=99999999999999999999", "from 1 to 16384"),
        ("connections=0", "from 1 to 10000000, or none"),
    ],
)
def test_no_limit_is_an_error_with_the_place_and_what_was_meant(
    word: str, told: str
) -> None:
    with pytest.raises(UsageError) as caught:
        parse_limits([word], "users.toml:7")
    error = caught.value
    assert error.what.startswith("users.toml:7: ")
    assert told in f"{error.cause} {error.fix}"


def test_what_is_said_twice_is_an_error() -> None:
    for words in (["links=1", "links=1"], ["rate=5MB/s", "up=1MB/s"]):
        with pytest.raises(UsageError, match="a second time"):
            parse_limits(words)


def _optional(least: int, most: int) -> st.SearchStrategy[int | None]:
    return st.none() | st.integers(least, most)


@given(
    st.builds(
        Limits,
        links=st.integers(1, 16_384),
        waiting=st.integers(0, 16_384),
        ports=st.integers(0, 16_384),
        connections=_optional(1, 10**7),
        opens=_optional(1, 10**6),
        up=_optional(1_000, 10**12),
        down=_optional(1_000, 10**12),
        month=_optional(1_000, 10**17),
        datagrams=_optional(1, 10**8),
        visitors=_optional(1, 65_536),
    )
)
def test_words_are_read_back(limits: Limits) -> None:
    assert parse_limits(limits.words) == limits


@given(st.sampled_from([*LIMIT_WORDS, "x"]), st.text(max_size=30))
def test_no_text_raises_anything_else(name: str, text: str) -> None:
    for word in (f"{name}={text}", text):
        with suppress(UsageError):
            limits = parse_limits([word], "here")
            assert parse_limits(limits.words) == limits


def test_every_field_has_a_word_with_an_example_that_is_read() -> None:
    assert {one.name for one in fields(Limits)} - {"said"} == LIMIT_WORDS.keys() - {
        "rate"
    }
    for name, example in LIMIT_WORDS.items():
        parse_limits([f"{name}={example}"])
