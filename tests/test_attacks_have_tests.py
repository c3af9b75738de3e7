"""docs/attacks.md is true: every attack and fault has a test there is, or a reason."""

from __future__ import annotations

import ast
from functools import cache
from typing import TYPE_CHECKING, Final

import pytest
from support.attacks import ROWS, rows, rows_of_tests
from support.tables import ROOT

if TYPE_CHECKING:
    from support.attacks import Row

TESTS: Final = ROOT / "tests"


@cache
def named_in(file: str) -> frozenset[str]:
    """Return the tests of a file that are not skipped for good."""
    tree = ast.parse((TESTS / file).read_text("utf-8"))
    return frozenset(
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and not any(
            word in ast.unparse(mark)
            for mark in node.decorator_list
            for word in ("mark.skip(", "mark.xfail")
        )
    )


def test_every_attack_and_fault_has_its_row() -> None:
    assert tuple(row.name for row in rows()) == ROWS


@pytest.mark.parametrize("row", rows(), ids=lambda row: row.name)
def test_a_row_has_a_test_or_a_reason(row: Row) -> None:
    assert row.tests or row.reason
    assert len(set(row.tests)) == len(row.tests)
    for test in row.tests:
        file, _, name = test.partition("::")
        assert name in named_in(file), test


def test_the_tests_of_a_row_are_known_by_it(request: pytest.FixtureRequest) -> None:
    """``pytest -m 'attack(row="S9")'`` finds them."""
    by_file = rows_of_tests()
    for item in request.session.items:
        file = item.path.relative_to(TESTS).as_posix()
        name = getattr(item, "originalname", item.name)
        said = [mark.kwargs["row"] for mark in item.iter_markers("attack")]
        assert said == by_file.get(f"{file}::{name}", [])
