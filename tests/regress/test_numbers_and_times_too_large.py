"""Numbers, times and names that Python itself refuses came out as its own errors.

It reads no number of more than 4,300 digits and writes none, knows no year but 1 to
9999, takes digits of other scripts for some, and a file's name has a longest length.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tunnel.access.join import parse_join
from tunnel.access.right_words import parse_right
from tunnel.access.user_file import read_users, write_users
from tunnel.addresses import Address
from tunnel.errors import ConfigError, StateError, UsageError
from tunnel.front.http.proxy import _one_less
from tunnel.ops.config.migrate import carried_over
from tunnel.ops.config.place import Place
from tunnel.ops.config.read import parse_config
from tunnel.ops.control import ask
from tunnel.ops.control.status_text import ps_lines, status_lines
from tunnel.ops.control.why_text import why_line, why_lines
from tunnel.ops.entry_syntax import parse_http, parse_tcp
from tunnel.ops.flags import _port_range, seconds
from tunnel.ops.proxy_variables import is_exempt
from tunnel.proto.proofs import verifier_of

if TYPE_CHECKING:
    from collections.abc import Callable

MANY = "1" * 5_000
HEX = "0x" + "f" * 4_000
TOKEN = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8"
FILE = Path("/nowhere/tunnel.toml")


@pytest.mark.parametrize(
    ("read", "text"),
    [
        (Address.parse, f"a.test:{MANY}"),
        (lambda text: Address.parse(text, "a.test"), MANY),
        (parse_join, f"tunnel://anna:{TOKEN}@a.test:{MANY}"),
        (parse_right, f"ports:{MANY}"),
        (parse_right, f"tcp:{MANY}"),
        (parse_tcp, f"{MANY}=22"),
        (parse_tcp, f"1-{MANY}=22"),
        (parse_tcp, "²-3=22"),
        (parse_http, f"web=https://a.test:{MANY}"),
        (parse_http, f"web={MANY}"),
        (parse_http, f"web={'x' * 300}"),
        (lambda text: seconds("--drain", text), f"{MANY}s"),
        (lambda text: seconds("--drain", text), f"{MANY[:4_000]}d"),
        (_port_range, MANY),
        (_port_range, f"1-{MANY}"),
        (_port_range, "²"),
    ],
)
def test_words_of_a_command_line_are_refused(
    read: Callable[[str], object], text: str
) -> None:
    with pytest.raises(UsageError):
        read(text)


def test_numbers_with_zeros_in_front_are_read() -> None:
    assert Address.parse(f"a.test:{'0' * 5_000}80").port == 80
    assert seconds("--drain", "030s") == 30


def test_an_exemption_with_such_a_port_is_of_no_server() -> None:
    assert not is_exempt(f"a.test:{MANY}", "a.test", 443)
    assert is_exempt(f"a.test:{MANY},a.test:443", "a.test", 443)


def test_a_request_with_such_a_count_of_proxies_goes_on() -> None:
    assert _one_less(MANY.encode()) == MANY.encode()
    assert _one_less(b"10") == b"9"


@pytest.mark.parametrize(
    "text",
    [
        f"[server]\nmax_head = {HEX}",
        f"[server]\nlisten = {HEX}",
        f"[server.users.anna]\nexpires = {HEX}",
        f"[[client.tcp]]\ntarget = {HEX}",
        f"[[client.tcp]]\ntarget = [[{HEX}]]",
        f"[[client.http]]\ntarget = '{'x' * 300}'",
        f"[[client.http]]\ntarget = '{MANY}'",
        f"[client]\ntcp = {HEX}",
    ],
)
def test_a_configuration_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r":[12]: "):
        parse_config(text, Place(FILE, None))


@pytest.mark.parametrize("text", [f"bindPort = {HEX}", f"server.bind_addr = {HEX}"])
def test_a_file_of_another_program_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=":1: "):
        carried_over(FILE, text)


@pytest.mark.parametrize(
    "when",
    [
        "0001-01-01T00:00:00+14:00",
        "9999-12-31T23:59:59-14:00",
    ],
)
def test_a_time_that_no_calendar_has_is_refused(when: str) -> None:
    verifier = verifier_of("anna", TOKEN).render()
    user = f'verifier = "{verifier}"\nexpires = {when}\n'
    with pytest.raises(StateError, match="f:3: "):
        read_users(f"[users.anna]\n{user}", "f")
    with pytest.raises(ConfigError, match=":3: "):
        parse_config(f"[server.users.anna]\n{user}", Place(FILE, None))


@pytest.mark.parametrize("when", ["0500-01-01T00:00:00Z", "1950-06-01T12:00:00Z"])
def test_a_time_long_ago_is_written_as_it_can_be_read(when: str) -> None:
    verifier = verifier_of("anna", TOKEN).render()
    users = read_users(f'[users.anna]\nverifier = "{verifier}"\nexpires = {when}', "f")
    assert read_users(write_users(users), "f") == users


def test_an_answer_of_a_process_without_end_is_no_answer() -> None:
    with pytest.raises(StateError):
        ask._read(b"[" * 100_000, "serve-1")


@pytest.mark.parametrize("deep", [100, 900, 990, 5_000])
def test_tables_within_tables_are_refused_however_they_are_written(deep: int) -> None:
    for text in (
        f"client.{'a.' * deep}b = 1",
        f"client.tcp = {'[' * deep}{']' * deep}",
    ):
        with pytest.raises(ConfigError, match=":1: tables within tables"):
            parse_config(text, Place(FILE, None))
        with pytest.raises(StateError, match="f:1: tables within tables"):
            read_users(text, "f")
        with pytest.raises(ConfigError, match=":1: tables within tables"):
            carried_over(FILE, text)


@pytest.mark.parametrize("said", ["NaN", "Infinity", "1e999", "9" * 400, '"x"', "{}"])
def test_an_answer_with_such_numbers_is_shown(said: str) -> None:
    """Of another version; JSON as Python reads it has numbers that are none."""
    keys = "connections", "began_at", "sent_bytes", "now", "minute", "help"
    fields = ", ".join(f'"{key}": {said}' for key in keys)
    answer = ask._read(f'{{"done": {{{fields}}}}}'.encode(), "serve-1")
    lines = [*ps_lines([answer]), *status_lines(answer), *why_lines(answer, "serve-1")]
    assert why_line(answer, "serve-1")
    assert "for" in lines[0]
