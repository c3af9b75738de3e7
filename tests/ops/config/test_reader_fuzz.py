"""Whatever a file says, its reader gives a configuration or tells faults of it."""

from __future__ import annotations

import json
import tomllib
from contextlib import suppress
from datetime import UTC, date, datetime
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from tunnel.errors import ConfigError
from tunnel.ops.config.example import example
from tunnel.ops.config.lines import lines_of
from tunnel.ops.config.place import Place
from tunnel.ops.config.read import keys_of, parse_config
from tunnel.ops.config.schema import ENTRIES, ClientTable, ServerTable, UserTable

PLACE = Place(Path("/nowhere/tunnel.toml"), None)
EXAMPLE = example().replace("\n#", "\n")

TEXTS = st.sampled_from(
    [
        "127.0.0.1:80", "[::1]:0", "*:1", "unix:/a", "socks", "80", "5-6", "9-5",
        "tunnel://a:b@c/", "tunnel://a@c", "http://a:b@c:1", "shop", "*.shop", "ä.test",
        "me:pw", "10.0.0.0/8", "fe80::1%eth0", "2h", "5MB/s", "10/s", "rate=1MB/s",
        "tcp:22", "all", "+A: b", "-Host", "/api", "tcp", "..", "~", "~nobody/x", "",
        "https://a", "a\x00b", "a\nb", "\ud7ff", "%2C", "9" * 400, "v1", "json", "none",
        "$CREDENTIALS_DIRECTORY/a",
    ]
) | st.text(max_size=12)  # fmt: skip
SCALARS = (
    TEXTS
    | st.integers(-(2**63), 2**63 - 1)
    | st.booleans()
    | st.floats()
    | st.just(datetime(2030, 1, 1, tzinfo=UTC))
    | st.just(datetime(1, 1, 1))
    | st.just(date(2030, 1, 1))
)
VALUES = SCALARS | st.lists(SCALARS, max_size=4)


def tables(kind: type) -> st.SearchStrategy[dict[str, object]]:
    keys = st.sampled_from([*keys_of(kind), "odd"])
    return st.dictionaries(keys, VALUES, max_size=6)


ENTRY_LISTS = {
    flag: st.lists(tables(kind) | SCALARS, max_size=3) | VALUES
    for flag, kind in ENTRIES.items()
}
DOCUMENTS = st.fixed_dictionaries(
    {},
    optional={
        "server": st.builds(
            lambda table, users: {**table, "users": users},
            tables(ServerTable),
            st.dictionaries(TEXTS, tables(UserTable) | SCALARS, max_size=3) | SCALARS,
        )
        | SCALARS,
        "client": st.builds(
            lambda table, entries: {**table, **entries},
            tables(ClientTable),
            st.fixed_dictionaries({}, optional=ENTRY_LISTS),
        )
        | SCALARS,
        "odd": SCALARS,
    },
)


def toml(value: object) -> str:
    match value:
        case bool():
            return str(value).lower()
        case str():
            return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
        case datetime() | date():
            return value.isoformat()
        case dict():
            pairs = (f"{toml(str(key))} = {toml(one)}" for key, one in value.items())
            return f"{{{', '.join(pairs)}}}"
        case list():
            return f"[{', '.join(map(toml, value))}]"
        case _:
            return str(value)


def faults_of(text: str) -> list[str]:
    try:
        parse_config(text, PLACE)
    except ConfigError as error:
        return error.faults or ["none is told"]
    return []


def read(text: str) -> None:
    """Read a text, of whose faults each says where it is."""
    lines = text.count("\n") + 1
    for fault in faults_of(text):
        place, _, _ = fault.removeprefix(f"{PLACE.path}:").partition(": ")
        assert place.isdigit(), fault
        assert 1 <= int(place) <= lines, fault


@given(DOCUMENTS)
@settings(deadline=None, max_examples=300)
def test_any_document_is_a_configuration_or_faults(document: dict[str, object]) -> None:
    text = "\n".join(f"{key} = {toml(one)}" for key, one in document.items())
    with suppress(tomllib.TOMLDecodeError):  # floats and texts that TOML does not have
        tomllib.loads(text)
        read(text)


@given(st.text())
@settings(deadline=None)
def test_any_text_is_a_configuration_or_faults(text: str) -> None:
    read(text)
    lines_of(text)


@given(
    st.integers(0, len(EXAMPLE)),
    st.integers(0, 12),
    st.text("[]{}\"'=.,#\n\\ 1ae", max_size=6),
)
@settings(deadline=None)
def test_any_damage_is_a_configuration_or_faults(at: int, cut: int, put: str) -> None:
    text = EXAMPLE[:at] + put + EXAMPLE[at + cut :]
    read(text)
    lines_of(text)


@given(DOCUMENTS)
@settings(deadline=None)
def test_each_key_has_its_line(document: dict[str, object]) -> None:
    text, places = "", {}
    for number, (key, value) in enumerate(document.items(), 1):
        text += f"{key} = {toml(value)}\n"
        places[key] = number
    with suppress(tomllib.TOMLDecodeError):
        tomllib.loads(text)
        lines = lines_of(text)
        for key, value in document.items():
            assert lines[(key,)] == places[key]
            for inner in value if isinstance(value, dict) else ():
                assert lines[key, inner] == places[key]
