"""What an error proposes can be typed: its flags are those of the command."""

from __future__ import annotations

import re
import shlex
from typing import TYPE_CHECKING

import pytest

from tunnel.addresses import Address
from tunnel.center.events import MappingRefused
from tunnel.errors import Code, UsageError
from tunnel.ops.cli import app
from tunnel.ops.entry_syntax import parse_tcp, parse_udp, tcp_entry, udp_entry
from tunnel.proto.frames import MappingAnswer

if TYPE_CHECKING:
    from pathlib import Path

    from tunnel.ops.entries import Published


def flags(command: str) -> set[str]:
    arguments = app[command].assemble_argument_collection()
    return {name for one in arguments for name in one.names}


def refusal(words: str) -> UsageError:
    with pytest.raises(UsageError) as raised:
        app(shlex.split(words), result_action="return_value")
    return raised.value


@pytest.mark.parametrize(
    "words",
    [
        "up --tcp 6000-6010=22",
        "up --tcp 1080=socks",
        "up --udp unix:/x",
        "up --udp 6000=53-54",
        "up --reach 5432",
        "up --socks 0.0.0.0:1080",
        "up --socks 1080 --udp-public-address nat.lan",
        "up --http 8000",
        "up --https 8000",
        "tcp",
        "tcp 22 --socks",
        "tcp 22 --auth me:p",
        "tcp 22 --remote 6000-6010",
        "tcp --socks --remote 1080",
        "udp unix:/x",
        "udp 53 --remote 6000-6010",
        "share 8000 --auth me",
        "share 8000 --name 'a b'",
        "socks 0.0.0.0:1080",
        "socks '*:1080'",
        "socks --udp-public-address nat.lan",
        "serve --public-host 'a b'",
        "serve --ports 9-1",
        "serve --domain 'a b'",
        "serve --certificate a b",
    ],
)
def test_a_hint_names_flags_of_the_command_that_was_used(words: str) -> None:
    fix = refusal(words).fix
    assert fix
    command = words.split()[0]
    for part in re.split(r"(?=tunnel [a-z]+)", fix):
        named = re.match(r"tunnel ([a-z]+)", part)
        used = set(re.findall(r"--[a-z][a-z-]*", part))
        assert used <= flags(named[1] if named else command), fix


@pytest.mark.parametrize("port", [6_000, 65_530])
@pytest.mark.parametrize("kind", ["tcp", "udp"])
def test_a_row_of_another_length_is_proposed_as_it_can_be_asked_for(
    port: int, kind: str
) -> None:
    fix = refusal(f"{kind} 6000-6010 --remote {port}").fix
    remote = "0" if port > 65_525 else "6000-6010"
    assert fix == f"for example --remote {remote}"
    fix = refusal(f"up --{kind} {port}=6000-6010").fix
    assert fix == f"for example --{kind} {remote}=6000-6010"


@pytest.mark.parametrize(
    ("flag", "entries"),
    [
        (
            "--tcp",
            (
                parse_tcp("8"),
                tcp_entry("8", "80", None, socks=False, auth=[], networks=[]),
            ),
        ),
        ("--udp", (parse_udp("8"), udp_entry("8", "80"))),
    ],
)
def test_who_lost_a_port_is_told_how_to_ask_for_another(
    flag: str, entries: tuple[Published, Published]
) -> None:
    taken = MappingRefused("-", Address("", 80), MappingAnswer(Code.TAKEN))
    fixes = [entry.refused(taken).fix for entry in entries]
    hint = "choose another: "
    assert fixes == [f"{hint}{flag} 0=localhost:8", f"{hint}--remote 0"]


VALUES = {
    argument.names[0]: name
    for name in ("serve", "up", "tcp", "udp", "share", "reach", "socks", "pipe", "join")
    for argument in app[name].assemble_argument_collection()
    if argument.hint is not bool and argument.names[0] != "*"
}
"""Each flag and positional word, and a command that has it."""


@pytest.mark.parametrize(("flag", "command"), VALUES.items())
def test_an_empty_value_is_refused_with_its_flag_and_what_belongs_there(
    flag: str, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # an empty folder was this one
    pairs = ("--certificate", "--client-cert")
    words = [" ", " "] if flag in pairs else [" " if command == "up" else ""]
    if flag.startswith("--"):
        words = [flag, *words]
        before = {"udp": ["1"], "share": ["1"], "reach": ["1", "1"], "join": ["x"]}
        words = before.get(command, []) + words
    with pytest.raises(UsageError, match=f"{flag} is empty") as raised:
        app([command, *words], result_action="return_value")
    assert len(raised.value.fix) > len("what belongs there: ")
    assert list(tmp_path.iterdir()) == []
