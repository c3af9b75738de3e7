"""Secrets of others are compared in constant time, wherever they come in."""

from __future__ import annotations

import ast
import hmac
import re
from base64 import b64encode
from typing import TYPE_CHECKING, Final

import pytest
from support import frames
from support.tables import ROOT

from tunnel.access.join import Secret, make_token
from tunnel.access.proxy_users import ProxyUsers
from tunnel.errors import RemoteLinkError
from tunnel.front.http.login_cookie import is_login
from tunnel.proto.frames import Terms
from tunnel.proto.handshake import ServerHandshake
from tunnel.proto.proofs import PLAIN_BINDING, verifier_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SOURCES: Final = sorted((ROOT / "tunnel").rglob("*.py"))
SECRET: Final = re.compile(
    r"(^|_)(token|passwords?|secrets?|proofs?|mac|signature|stored_key|client_key)$"
)
"""How what must not be guessed is called."""


def compared(tree: ast.AST) -> list[ast.Compare]:
    """Return each ``==``, ``!=`` and ``in`` with a name of a secret on a side."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare) and any(
            isinstance(op, ast.Eq | ast.NotEq | ast.In | ast.NotIn) for op in node.ops
        ):
            sides = [node.left, *node.comparators]
            if any(SECRET.search(name_of(side)) for side in sides):
                found.append(node)
    return found


def name_of(node: ast.AST) -> str:
    """Return the last word of a name, an attribute or a call; else nothing."""
    match node:
        case ast.Name(name) | ast.Attribute(attr=name):
            return name
        case ast.Call(func=ast.Attribute(attr="reveal")):
            return "secret"
        case ast.Call(func=func):
            return name_of(func)
        case _:
            return ""


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_secret_is_compared_byte_by_byte(path: Path) -> None:
    tree = ast.parse(path.read_text("utf-8"))
    bad = [f"{node.lineno}: {ast.unparse(node)}" for node in compared(tree)]
    assert [one for one in bad if one.partition(": ")[2] not in ALLOWED] == []


ALLOWED: Final = frozenset(
    (
        "old.token == self.join.token",  # of ``Secret``, whose == is constant-time
    )
)


def test_the_look_finds_what_it_is_meant_to() -> None:
    for words in (
        "given == password",
        "self.proof != frame.proof",
        "line.token.reveal() == text",
        "token in known",
    ):
        assert len(compared(ast.parse(words))) == 1, words
    for words in ("kind == TOKEN_KIND", "hmac.compare_digest(a, b)", "name == other"):
        assert compared(ast.parse(words)) == [], words


# Each door ----------------------------------------------------------------------------


def basic(pair: str) -> bytes:
    return b"Basic " + b64encode(pair.encode())


def log_in(name: str) -> None:
    verifier = verifier_of("anna", make_token().reveal())
    nobody = verifier_of("nobody", make_token().reveal())
    users = {"anna": verifier}
    side = ServerHandshake(Terms(), bytes(32), PLAIN_BINDING, users.get, nobody)
    side.receive(frames.hello())
    with pytest.raises(RemoteLinkError, match="was refused"):
        side.receive(frames.auth(name))


USERS: Final = ProxyUsers({"anna": "secret"})
DOORS: Final[dict[str, Callable[[], object]]] = {
    "a proxy, a wrong password": lambda: USERS.check(b"anna", b"wrong"),
    "a proxy, nobody": lambda: USERS.check(b"nobody", b"wrong"),
    "a proxy over HTTP": lambda: USERS.check_basic(basic("anna:wrong")),
    "a proxy over HTTP, nobody": lambda: USERS.check_basic(basic("nobody:wrong")),
    "a cookie": lambda: is_login(b"99999999999.x", b"k" * 32, "a.test", 0.0),
    "a token": lambda: Secret("a") == Secret("b"),
    "a link, a wrong token": lambda: log_in("anna"),
    "a link, nobody": lambda: log_in("nobody"),
}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """What was compared: the length of each side."""
    found: list[tuple[int, int]] = []
    compare = hmac.compare_digest

    def counted(one: bytes, other: bytes) -> bool:
        found.append((len(one), len(other)))
        return compare(one, other)

    monkeypatch.setattr(hmac, "compare_digest", counted)
    return found


@pytest.mark.parametrize("door", DOORS)
def test_what_is_wrong_is_compared_in_constant_time(
    door: str, calls: list[tuple[int, int]]
) -> None:
    assert not DOORS[door]()
    assert calls
    if door not in ("a token", "a cookie"):  # whose length is no secret
        assert all(one == other for one, other in calls)


@pytest.mark.parametrize(
    ("known", "unknown"),
    [
        ("a proxy, a wrong password", "a proxy, nobody"),
        ("a proxy over HTTP", "a proxy over HTTP, nobody"),
        ("a link, a wrong token", "a link, nobody"),
    ],
)
def test_who_does_not_exist_costs_the_same_comparisons(
    known: str, unknown: str, calls: list[tuple[int, int]]
) -> None:
    """Else the time tells who does."""
    DOORS[known]()
    first = calls.copy()
    calls.clear()
    DOORS[unknown]()
    assert calls == first
