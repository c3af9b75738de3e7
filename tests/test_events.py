"""The events of docs/events.md are those that the code logs, with these fields."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass, field
from typing import Final

import pytest
from support.tables import ROOT, rows, section

from tunnel.center.who import Who

PAGE: Final = (ROOT / "docs/events.md").read_text(encoding="utf-8")
WHO: Final = tuple(Who.__annotations__)
LEVELS: Final = {"debug", "info", "warning", "error"}
COUNTED: Final = {"reason", "most", "count", "peer"}
NAMERS: Final = {
    "Told": (COUNTED, "warning", True),
    "Flows": (COUNTED - {"peer"}, "warning", True),
    "say_once": ({"host", "reason"}, "warning", False),
    ".warn": ({"reason"}, "warning", False),
    "_audit": (
        {"user", "by", "was", "may", "limits", "expires", "once"}, "info", False,
    ),
}  # fmt: skip
"""What logs events under a name that it is given: fields, level, if it is counted."""
NAMED_BY_CALLERS: Final = {
    ("net/descriptors.py", "self._event"),
    ("net/descriptors.py", "event"),
    ("front/http/hints.py", "event"),
    ("access/user_commands.py", "event"),
    ("ops/show.py", "event"),
}


@dataclass
class Event:
    fields: set[str] = field(default_factory=set)
    levels: set[str] = field(default_factory=set)
    counted: bool = False


def said() -> dict[str, Event]:
    found: dict[str, Event] = {}
    for part in ("audit", "others"):
        for name, level, fields, when in rows(section(PAGE, part)):
            event = name.strip("`")
            assert event not in found, f"{event} stands there twice"
            assert when
            words = re.findall(r"\w+", level)
            found[event] = Event(
                set(re.findall(r"\w+", fields)), LEVELS & set(words), "counted" in words
            )
    return found


def texts(node: ast.expr, tree: ast.Module) -> set[str]:
    """Give the texts that an expression may be; those of a name where it is set."""
    if isinstance(node, ast.Constant):
        return {str(node.value)}
    if isinstance(node, ast.IfExp):
        return texts(node.body, tree) | texts(node.orelse, tree)
    if isinstance(node, ast.Attribute):
        return {node.attr.lower()}
    name = ast.unparse(node)
    values: list[ast.expr] = []
    assigned = [at for at in ast.walk(tree) if isinstance(at, ast.Assign)]
    for to, value in ((to, at.value) for at in assigned for to in at.targets):
        pairs = [(to, value)]
        if isinstance(to, ast.Tuple) and isinstance(value, ast.Tuple):
            pairs = list(zip(to.elts, value.elts, strict=True))
        values += [value for one, value in pairs if ast.unparse(one) == name]
    return {text for value in values for text in texts(value, tree)}


def keys(call: ast.Call) -> set[str]:
    """Give the fields of a call; what is unpacked into it can only be who it was."""
    given: set[str] = set()
    for keyword in call.keywords:
        if keyword.arg is None:
            assert re.search(r"who|WHO", ast.unparse(keyword.value)), ast.unparse(call)
            given.update(WHO)
        else:
            given.add("error" if keyword.arg == "exc_info" else keyword.arg)
    return given


def logged() -> dict[str, Event]:
    found: dict[str, Event] = {}
    for path in sorted((ROOT / "tunnel").rglob("*.py")):
        file = path.relative_to(ROOT / "tunnel").as_posix()
        tree = ast.parse(path.read_text(encoding="utf-8"))
        calls = [
            (at, at.func.id)
            for at in ast.walk(tree)
            if isinstance(at, ast.Call) and isinstance(at.func, ast.Name)
        ]
        calls += [
            (at, f".{at.func.attr}")
            for at in ast.walk(tree)
            if isinstance(at, ast.Call)
            and isinstance(at.func, ast.Attribute)
            and at.args
            and isinstance(at.args[0], ast.Constant)
        ]
        for call, function in calls:
            if function not in (*NAMERS, "log_event"):
                continue
            named = call.args[2 if function == "log_event" else 0]
            if (file, ast.unparse(named)) in NAMED_BY_CALLERS:
                continue
            names = texts(named, tree)
            assert names, f"{file}: no name in {ast.unparse(call)}"
            for name in names:
                event = found.setdefault(name, Event())
                if function in NAMERS:
                    of_all, level, counted = NAMERS[function]
                    event.fields |= of_all
                    event.levels.add(level)
                    event.counted |= counted
                else:
                    event.fields |= keys(call)
                    event.levels |= LEVELS & texts(call.args[1], tree)
    return found


SAID: Final = said()
LOGGED: Final = logged()


def test_the_page_has_every_event_that_the_code_logs_and_no_other() -> None:
    assert len(LOGGED) > 50
    assert sorted(SAID) == sorted(LOGGED)


@pytest.mark.parametrize("name", sorted(LOGGED))
def test_an_event_has_the_fields_and_levels_that_the_page_says(name: str) -> None:
    event, of_page = LOGGED[name], SAID[name]
    assert of_page.fields == event.fields
    assert of_page.counted == event.counted
    # One choice of two names goes with one of two levels: see session.ended.
    assert of_page.levels <= event.levels
    assert of_page.levels


def test_names_are_dotted_words() -> None:
    for name in LOGGED:
        assert re.fullmatch(r"[a-z_]+(\.[a-z_]+)?", name)


def test_nothing_logs_past_the_events() -> None:
    for path in (ROOT / "tunnel").rglob("*.py"):
        if path.name != "log.py":
            text = path.read_text(encoding="utf-8")
            assert not re.search(r"\b(?:log|logger|LOG)\.[a-z]+\(", text), path
