"""What a reload changes, told from two versions of what is wanted."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from tunnel.access.limits import parse_limits
from tunnel.access.rules import parse_rights
from tunnel.access.users import User
from tunnel.ops.entry_syntax import (
    parse_exit,
    parse_http,
    parse_reach,
    parse_socks,
    parse_tcp,
    parse_udp,
)
from tunnel.ops.flags import RunFlags, ServerFlags
from tunnel.ops.reload.entry_plan import keyed, plan_entries
from tunnel.ops.reload.plan import held, plan_flags, plan_users
from tunnel.ops.serve_flags import ServeFlags
from tunnel.proto.proofs import verifier_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from tunnel.ops.entries import Entry
    from tunnel.ops.reload.plan import Change

READERS: dict[str, Callable[[str], Entry]] = {
    "http": parse_http, "tcp": parse_tcp, "udp": parse_udp, "socks": parse_socks,
    "reach": parse_reach, "exit": parse_exit,
}  # fmt: skip


def entries(*texts: str) -> list[Entry]:
    pairs = [text.split(" ", 1) for text in texts]
    return [READERS[kind](text) for kind, text in pairs]


def said(changes: Iterable[Change]) -> list[str]:
    return [str(change) for change in changes]


def planned(old: list[Entry], new: list[Entry]) -> list[str]:
    return said(plan_entries(keyed(old), keyed(new)).lines)


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("", "http shop=80", "+ http shop"),
        ("udp 5353=53", "", "- udp 5353"),
        ("tcp 2222=22", "tcp 2222=23", "~ tcp 2222 target"),
        ("tcp 2222=22", "tcp 2222=22,proxy=v1", "~ tcp 2222 proxy"),
        ("http a=80", "http a=80,auth=a:b,host=rewrite", "~ http a auth, host"),
        ("http a=80,auth=a:b", "http a=80,auth=a:c", "~ http a auth"),
        ("http a=80", "http a=80,allow=10.0.0.0/8", "~ http a allow"),
        ("http a=80,requests=1/s", "http a=80,requests=2/s", "~ http a requests"),
        ("http a=80", "http a=80,check=/", "~ http a check"),
        ("http a=80", "http a=80,inspect", "~ http a inspect"),
        ("http a=/,inspect", "http a=/", "~ http a inspect"),
        ("http a=80,path=/x", "http a=81,path=/x", "~ http a/x target"),
        ("socks 1080", "socks 1080,auth=a:b", "~ socks localhost:1080 auth"),
        ("reach 1=db:1", "reach 1=db:2", "~ reach localhost:1 target"),
        ("exit home,network=10.0.0.0/8", "exit home,network=10.0.0.0/9",
         "~ exit home network"),
    ],
)  # fmt: skip
def test_a_line_says_what_and_in_which_words(old: str, new: str, line: str) -> None:
    versions = [entries(text) if text else [] for text in (old, new)]
    assert planned(*versions) == [line]


def test_what_is_the_same_is_not_mentioned(tmp_path: Path) -> None:
    texts = (
        "http shop=8000,auth=a:b,allow=10.0.0.0/8",
        f"http site={tmp_path}",
        "tcp 2222=22",
        "tcp 80",
        "tcp 80",
        "socks 1080,auth=a:b",
        "exit home",
    )
    assert not planned(entries(*texts), entries(*reversed(texts)))


def test_another_port_or_name_is_another_entry() -> None:
    assert planned(
        entries("tcp 1=22", "http a=1"), entries("tcp 2=22", "http b=1")
    ) == [
        "- tcp 1",
        "- http a",
        "+ tcp 2",
        "+ http b",
    ]


def test_of_several_that_name_nothing_each_is_known_by_its_target() -> None:
    assert planned(entries("tcp 80", "tcp 80", "tcp 81"), entries("tcp 80")) == [
        "- tcp localhost:80 #2",
        "- tcp localhost:81",
    ]


def test_flags_that_need_a_restart_keep_what_they_were(tmp_path: Path) -> None:
    old = ServeFlags(state=tmp_path, ports="1-2", plain=True)
    new = ServeFlags(state=tmp_path / "x", ports="3-4")
    assert said(plan_flags(old, new)) == [
        "~ ports",
        "! state: needs a restart",
        "! plain: needs a restart",
    ]
    assert held(old, new) == replace(old, ports="3-4")
    assert not plan_flags(old, replace(old))
    assert said(plan_flags(RunFlags(), RunFlags(drain="1s", idle="1h"))) == [
        "~ drain",
        "! idle: needs a restart",
    ]
    assert said(plan_flags(ServerFlags(), ServerFlags(to="home"))) == [
        "! to: needs a restart"
    ]


def test_users_come_change_and_go() -> None:
    alice = User("alice", verifier_of("alice", b"a" * 32), parse_rights(["tcp:22"]))
    bob = User("bob", verifier_of("bob", b"b" * 32))
    other = replace(alice, rights=parse_rights([]), limits=parse_limits(["links=3"]))
    old = {"alice": alice, "bob": bob}
    assert not plan_users(old, dict(old))
    assert said(plan_users(old, {"alice": other, "carol": bob})) == [
        "- user bob",
        "~ user alice rights, limits",
        "+ user carol",
    ]
    token = replace(alice, verifier=verifier_of("alice", b"c" * 32), expires_at=1.0)
    assert said(plan_users({"alice": alice}, {"alice": token})) == [
        "~ user alice token, expires"
    ]
