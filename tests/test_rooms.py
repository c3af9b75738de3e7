"""No room of the house is too large to be read at once, and none leads in a circle."""

from __future__ import annotations

import ast
import re
from typing import TYPE_CHECKING, Final

import pytest
from support.tables import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MAX_FILE_LINES: Final = 500
MAX_FUNCTION_LINES: Final = 60
MAX_METHODS: Final = 25
REASON: Final = re.compile(r"\b\d+ methods\b")
"""Stands in the docstring of a class that has more, with the reason."""

SOURCES: Final = sorted((ROOT / "tunnel").rglob("*.py"))


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_can_be_read_at_once(path: Path) -> None:
    text = path.read_text("utf-8")
    assert text.count("\n") <= MAX_FILE_LINES
    tree = ast.parse(text)
    for function in functions(tree):
        lines = (function.end_lineno or 0) - function.lineno + 1
        assert lines <= MAX_FUNCTION_LINES, function.name
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            kinds = ast.FunctionDef | ast.AsyncFunctionDef
            methods = [one for one in node.body if isinstance(one, kinds)]
            if len(methods) > MAX_METHODS:
                assert REASON.search(ast.get_docstring(node) or ""), node.name
