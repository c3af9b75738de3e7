"""Small faults put into the code, to see whether a test notices.

    python -m tests.mutants --count 200 --seed 1 tunnel/proto tunnel/link tunnel/access
    python -m tests.mutants --drop-calls give_back,forget,release tunnel/proto
    python -m tests.mutants tunnel/proto/window.py:115

Each mutant is one change of one place, written into a copy of the tree in a temporary
folder; the tree itself is only read. The tests run in the copy, in stages, until one
fails: those that import the module by its name, all others of its layer, then the
house's, tests/regress, tests/center and tests/front. A mutant that no test notices
survives and is printed with its line before and after. Exit status: 0 when all were
killed, 1 when some survive, 2 when the tests fail without any mutant.

What is changed:

* call: a statement that is only a call (``await`` or not) is left out;
* assign: an assignment to an attribute is left out, ``+=`` and ``del`` too;
* negate: the condition of if, while or a comprehension is turned round;
* compare: ``<`` for ``<=``, ``>`` for ``>=``, and the other way round;
* arithmetic: ``+`` for ``-`` and the other way round, also in ``+=``;
* boolean: ``and`` for ``or`` and the other way round;
* constant: a whole number becomes one more or one less;
* return: None, or the other truth where a truth is promised, is returned instead.

What is left alone, since no test should notice it: type checking, assertions,
``__repr__``, log calls, what ``# pragma: no cover`` excludes, and the value of a
``Final`` of a module, which is a setting that tests use by its name.

Not every survivor is a gap: some mutants behave the same. But each is a question.
A run is repeated by its seed, as far as the tests are deterministic; a time-out counts
as noticed.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

ROOT: Final = Path(__file__).resolve().parent.parent
COPIED: Final = ("tunnel", "tests", "pyproject.toml", "README.md", "protocol.md")
WIDER: Final = (
    "tests/test_house.py",
    "tests/regress",
    "tests/center",
    "tests/front",
)
"""The text, and who uses the layers; asked when the layer's own tests see nothing."""
LOG_CALLS: Final = frozenset(
    {"say", "debug", "info", "warning", "error", "exception", "log"}
)
MEMORY_BYTES: Final = 2 * 1024**3
"""Address space of one test run: a loop without its end must not take the machine."""
SLACK: Final = 3.0
"""How many times longer than without a mutant a run may take, on a busy machine."""
LEAST_S: Final = 30.0
LONGEST_S: Final = 1_800.0
STAGES: Final = (1, 2, 3)
ONE_TEST_S: Final = 40
"""What a test may take: three times the longest of these layers."""

COMPARED: Final[dict[type[ast.cmpop], type[ast.cmpop]]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
}
GUARD: Final = """\
from pathlib import Path

import tunnel


def test_the_copy_is_what_runs() -> None:
    assert Path(tunnel.__file__).parent.parent == Path(__file__).parent.parent
"""


@dataclass(frozen=True)
class Mutant:
    """One change: the bytes from ``start`` to ``end`` of ``path`` become ``text``."""

    path: Path
    kind: str
    line: int
    start: int
    end: int
    text: str

    def applied(self, source: bytes) -> bytes:
        """Give the module with the change."""
        return source[: self.start] + self.text.encode() + source[self.end :]

    def place(self) -> str:
        """Say where it is, and of which kind."""
        return f"{self.path}:{self.line} ({self.kind})"

    def shown(self, source: bytes) -> str:
        """Describe it for people: where, and the lines before and after."""
        first = source.rfind(b"\n", 0, self.start) + 1
        last = source.find(b"\n", self.end)
        before = source[first:last].decode()
        after = (source[first : self.start] + self.text.encode()).decode()
        after += source[self.end : last].decode()
        return (
            f"{self.place()}\n"
            f"    - {' '.join(before.split())}\n    + {' '.join(after.split())}"
        )


class _Finder(ast.NodeVisitor):
    """Collects every mutant of one module."""

    def __init__(self, path: Path, source: bytes) -> None:
        self.found: list[Mutant] = []
        self._path = path
        self._lines = source.splitlines(keepends=True)
        self._starts = [0]
        for line in self._lines:
            self._starts.append(self._starts[-1] + len(line))
        self._truth = False

    def _add(self, kind: str, node: ast.expr | ast.stmt, text: str) -> None:
        end_line, end_col = node.end_lineno, node.end_col_offset
        if end_line is None or end_col is None:
            return
        self.found.append(
            Mutant(
                self._path,
                kind,
                node.lineno,
                self._starts[node.lineno - 1] + node.col_offset,
                self._starts[end_line - 1] + end_col,
                text,
            )
        )

    def visit(self, node: ast.AST) -> None:
        """Go on below ``node`` unless it is one that is left alone."""
        if isinstance(node, ast.stmt) and self._is_left_alone(node):
            return
        super().visit(node)

    def _is_left_alone(self, node: ast.stmt) -> bool:
        if b"pragma: no cover" in self._lines[node.lineno - 1]:
            return True
        match node:
            case ast.Assert():
                return True
            case ast.If(test=ast.Name("TYPE_CHECKING")):
                return True
            case ast.AnnAssign(annotation=annotation):
                return ast.unparse(annotation).startswith("Final")
            case ast.Expr(value=ast.Constant()):
                return True
            case ast.Expr(value=ast.Call(func=func)):
                return _last_name(func) in LOG_CALLS
            case _:
                return False

    # Statements ----------------------------------------------------------------

    def _visit_function(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        if node.name == "__repr__":
            return
        outer, self._truth = self._truth, _is_bool(node.returns)
        for default in (*node.args.defaults, *node.args.kw_defaults):
            if default is not None:
                self.visit(default)
        for statement in node.body:
            self.visit(statement)
        self._truth = outer

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self._visit_function(node)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> None:
        self._visit_function(node)

    def visit_Expr(self, node: ast.Expr) -> None:
        value = node.value.value if isinstance(node.value, ast.Await) else node.value
        if isinstance(value, ast.Call):
            self._add("call", node, "pass")
        self.generic_visit(node)

    def visit_Delete(self, node: ast.Delete) -> None:
        self._add("assign", node, "pass")

    def visit_Assign(self, node: ast.Assign) -> None:
        if any(isinstance(target, ast.Attribute) for target in node.targets):
            self._add("assign", node, "pass")
        self.visit(node.value)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            if isinstance(node.target, ast.Attribute):
                self._add("assign", node, "pass")
            self.visit(node.value)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        if isinstance(node.target, ast.Attribute):
            self._add("assign", node, "pass")
        if (other := _other_sign(node.op)) is not None:
            changed = deepcopy(node)
            changed.op = other
            self._add("arithmetic", node, ast.unparse(changed))
        self.visit(node.value)

    def visit_Return(self, node: ast.Return) -> None:
        value = node.value
        if value is None:
            return
        if self._truth:
            lie = isinstance(value, ast.Constant) and value.value is False
            self._add("return", node, f"return {lie}")
        elif not (isinstance(value, ast.Constant) and value.value is None):
            self._add("return", node, "return None")
        self.visit(value)

    # Expressions ---------------------------------------------------------------

    def _add_negated(self, test: ast.expr) -> None:
        self._add("negate", test, f"(not ({ast.unparse(test)}))")

    def visit_If(self, node: ast.If) -> None:
        self._add_negated(node.test)
        self.generic_visit(node)

    def visit_While(self, node: ast.While) -> None:
        if not isinstance(node.test, ast.Constant):
            self._add_negated(node.test)
        self.generic_visit(node)

    def visit_IfExp(self, node: ast.IfExp) -> None:
        self._add_negated(node.test)
        self.generic_visit(node)

    def visit_comprehension(self, node: ast.comprehension) -> None:
        for test in node.ifs:
            self._add_negated(test)
        self.generic_visit(node)

    def visit_Compare(self, node: ast.Compare) -> None:
        for at, op in enumerate(node.ops):
            if (other := COMPARED.get(type(op))) is not None:
                changed = deepcopy(node)
                changed.ops[at] = other()
                self._add("compare", node, f"({ast.unparse(changed)})")
        self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        if (other := _other_sign(node.op)) is not None:
            changed = deepcopy(node)
            changed.op = other
            self._add("arithmetic", node, f"({ast.unparse(changed)})")
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        changed = deepcopy(node)
        changed.op = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        self._add("boolean", node, f"({ast.unparse(changed)})")
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        if type(node.value) is int:
            self._add("constant", node, f"{node.value + 1}")
            self._add("constant", node, f"({node.value - 1})")

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        """Leave texts alone: they are for people."""


def _is_bool(node: ast.expr | None) -> bool:
    return isinstance(node, ast.Name) and node.id == "bool"


def _last_name(func: ast.expr) -> str:
    match func:
        case ast.Attribute(attr=name) | ast.Name(id=name):
            return name
        case _:
            return ""


def _other_sign(op: ast.operator) -> ast.operator | None:
    match op:
        case ast.Add():
            return ast.Sub()
        case ast.Sub():
            return ast.Add()
        case _:
            return None


def mutants_of(path: Path) -> list[Mutant]:
    """Give every mutant of a module, ``path`` being relative to the tree."""
    source = (ROOT / path).read_bytes()
    finder = _Finder(path, source)
    finder.visit(ast.parse(source))
    return finder.found


def mutants_at(place: str) -> list[Mutant]:
    """Give every mutant of a folder, a module, or one line of a module."""
    name, _, line = place.partition(":")
    path = Path(name).resolve()
    files = sorted(path.rglob("*.py")) if path.is_dir() else [path]
    mutants = [m for file in files for m in mutants_of(file.relative_to(ROOT))]
    return [mutant for mutant in mutants if line in ("", str(mutant.line))]


def dropped_calls(mutants: Iterable[Mutant], names: set[str]) -> Iterator[Mutant]:
    """Give those that leave out a call of one of ``names``."""
    for mutant in mutants:
        if mutant.kind == "call":
            source = (ROOT / mutant.path).read_bytes()
            [node] = ast.parse(source[mutant.start : mutant.end].strip()).body
            value = node.value if isinstance(node, ast.Expr) else None
            if isinstance(value, ast.Await):
                value = value.value
            if isinstance(value, ast.Call) and _last_name(value.func) in names:
                yield mutant


class RedError(Exception):
    """The tests fail without any mutant."""


class Copy:
    """A copy of the tree, in which one module at a time is wrong."""

    def __init__(self, folder: Path, stages: int) -> None:
        self.folder = folder
        self._stages = stages
        self._took_s: dict[str, float] = {}
        for name in COPIED:
            source = ROOT / name
            if source.is_dir():
                ignored = shutil.ignore_patterns("__pycache__", ".*")
                shutil.copytree(source, folder / name, ignore=ignored)
            else:
                shutil.copy(source, folder / name)
        (folder / "tests" / "test_copy.py").write_text(GUARD)
        if not self._passes(("tests/test_copy.py",), 60.0):
            raise RedError("the tests do not run the copy")

    def survives(self, mutant: Mutant) -> bool:
        """Say whether no test notices ``mutant``."""
        stages = self._stages_of(mutant.path)
        limit_s = LEAST_S + SLACK * self._green_s(mutant.path)
        source = (ROOT / mutant.path).read_bytes()
        self._write(mutant.path, mutant.applied(source))
        try:
            for tests in stages:
                if not self._passes(tests, limit_s):
                    return False
        finally:
            self._write(mutant.path, source)
        return True

    def _stages_of(self, path: Path) -> list[tuple[str, ...]]:
        layer = f"tests/{path.parent.name}"
        module = ".".join(path.with_suffix("").parts)
        files = sorted((self.folder / layer).glob("test_*.py"))
        own = [
            file
            for file in files
            if file.stem.startswith(f"test_{path.stem}")
            or f"from {module} import" in file.read_text()
        ]
        # Its own file first, and what takes long last: a state machine finds most.
        own.sort(key=lambda file: (file.stem != f"test_{path.stem}", file.stem))
        others = [file for file in files if file not in own]
        stages = [
            tuple(str(file.relative_to(self.folder)) for file in stage)
            for stage in (own, others)
        ]
        return [stage for stage in (*stages, WIDER)[: self._stages] if stage]

    def _green_s(self, path: Path) -> float:
        """Run once without a mutant whatever may judge one of ``path``, and time it."""
        layer = path.parent.name
        if layer not in self._took_s:
            begun = time.monotonic()
            tests = (f"tests/{layer}", *(WIDER if self._stages == len(STAGES) else ()))
            if not self._passes(tests, LONGEST_S):
                raise RedError(f"red without any mutant: {' '.join(tests)}")
            self._took_s[layer] = time.monotonic() - begun
        return self._took_s[layer]

    def _write(self, path: Path, source: bytes) -> None:
        # Two versions within a second would share their compiled form.
        for compiled in (self.folder / path.parent).glob(f"__pycache__/{path.stem}.*"):
            compiled.unlink()
        (self.folder / path).write_bytes(source)

    def _passes(self, tests: Sequence[str], limit_s: float) -> bool:
        shutil.rmtree(self.folder / ".hypothesis", ignore_errors=True)
        arguments = ["-x", "-q", "--hypothesis-seed=1", "-p", "no:cacheprovider"]
        arguments.append(f"--timeout={ONE_TEST_S}")
        process = subprocess.Popen(
            [sys.executable, "-m", "pytest", *arguments, *tests],
            cwd=self.folder,
            env=os.environ
            | {"PYTHONPATH": str(self.folder), "HYPOTHESIS_PROFILE": "hasty"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=_bound_memory,
        )
        try:
            return process.wait(limit_s) == 0
        except subprocess.TimeoutExpired:
            return False
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _bound_memory() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))


def chosen(options: argparse.Namespace) -> list[Mutant]:
    """Give the mutants that the command line asks for."""
    mutants = [mutant for place in options.places for mutant in mutants_at(place)]
    if options.drop_calls:
        return list(dropped_calls(mutants, set(options.drop_calls.split(","))))
    if options.kinds:
        kinds = options.kinds.split(",")
        mutants = [mutant for mutant in mutants if mutant.kind in kinds]
    if options.count:
        random.seed(options.seed)
        mutants = random.sample(mutants, min(options.count, len(mutants)))
    # By module: what runs without a mutant first is then run once.
    return sorted(mutants, key=lambda mutant: (mutant.path, mutant.start))


def main() -> int:
    """Run from the command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description="Put small faults into the code.")
    parser.add_argument("places", nargs="+", help="a folder, a module or module:line")
    parser.add_argument("--count", type=int, default=0, help="so many; 0: all")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kinds", default="", help="of these kinds only: call,negate")
    parser.add_argument("--drop-calls", default="", help="all calls of these names")
    parser.add_argument("--stages", type=int, default=len(STAGES), choices=STAGES)
    parser.add_argument("--verbose", action="store_true", help="say what was killed")
    parser.add_argument("--list", action="store_true", help="print them, run nothing")
    options = parser.parse_args()
    mutants = chosen(options)
    if options.list:
        for mutant in mutants:
            print(mutant.shown((ROOT / mutant.path).read_bytes()))
        return 0
    os.nice(15)
    alive = 0
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        try:
            copy = Copy(Path(folder), options.stages)
            for number, mutant in enumerate(mutants, 1):
                if copy.survives(mutant):
                    alive += 1
                    shown = mutant.shown((ROOT / mutant.path).read_bytes())
                    print(f"[{number}/{len(mutants)}] alive: {shown}", flush=True)
                elif options.verbose:
                    print(f"[{number}/{len(mutants)}] {mutant.place()}", flush=True)
        except RedError as error:
            print(error, file=sys.stderr)
            return 2
    share = alive / len(mutants) if mutants else 0.0
    print(f"{alive} of {len(mutants)} survive: {share:.1%}")
    return 1 if alive else 0


if __name__ == "__main__":
    sys.exit(main())
