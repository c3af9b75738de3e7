"""What was found, said as it is found: ok, warn, fail or skip, with what helps."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from tunnel.errors import Exit

if TYPE_CHECKING:
    from tunnel.errors import TunnelError
    from tunnel.ops.show import Show

Grade = Literal["ok", "warn", "fail", "skip"]
Number = str | float

GRADE_WIDTH: Final = 5
WHAT_WIDTH: Final = 12


class Finding(NamedTuple):
    """One thing that was looked at."""

    grade: Grade
    what: str
    """A word that stays the same, for scripts."""
    found: str
    fix: str
    """Something to paste, or to do; empty where all is well."""
    numbers: dict[str, Number]


class Findings:
    """All that one command has found; each is a line of stdout at once."""

    def __init__(self, show: Show) -> None:
        self._show = show
        self.all: list[Finding] = []

    def ok(self, what: str, text: str, **numbers: Number) -> None:
        """Say what is well."""
        self._add("ok", what, text, "", numbers)

    def weak(self, what: str, text: str, fix: str, **numbers: Number) -> None:
        """Say what works, and could be better or may not last."""
        self._add("warn", what, text, fix, numbers)

    def fail(self, what: str, text: str, fix: str, **numbers: Number) -> None:
        """Say what does not work."""
        self._add("fail", what, text, fix, numbers)

    def skip(self, what: str, text: str, fix: str = "") -> None:
        """Say what could not be looked at, and why."""
        self._add("skip", what, text, fix, {})

    def error(self, what: str, error: TunnelError, fix: str = "") -> None:
        """Say what does not work, in the words of an error; ``fix`` if it has none."""
        text = f"{error.what}: {error.cause}" if error.cause else error.what
        self.fail(what, text, error.fix or fix, code=error.code.name)

    def _add(
        self, grade: Grade, what: str, text: str, fix: str, numbers: dict[str, Number]
    ) -> None:
        self.all.append(Finding(grade, what, text, fix, numbers))
        said = f"{grade:<{GRADE_WIDTH}} {what:<{WHAT_WIDTH}} {text}"
        fields = {"grade": grade, "what": what, "found": text, "fix": fix} | numbers
        self._show.line("finding", said, **fields)
        if fix and not self._show.as_json:
            self._show.line("fix", f"{'':<{GRADE_WIDTH}} {'fix':<{WHAT_WIDTH}} {fix}")

    @property
    def failed(self) -> bool:
        """Whether anything does not work."""
        return any(one.grade == "fail" for one in self.all)

    @property
    def status(self) -> Exit:
        """With what the command ends."""
        return Exit.CHECK_FAILED if self.failed else Exit.OK

    def sum_up(self, command: str) -> None:
        """Write the last line: how many of each."""
        grades = [one.grade for one in self.all]
        counts = {grade: grades.count(grade) for grade in ("ok", "warn", "fail")}
        text = ", ".join(f"{count} {grade}" for grade, count in counts.items())
        self._show.line("summary", f"{command}: {text}", **counts)


class Watch:
    """How long something took, in ms, by the clock that never goes back."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    @property
    def ms(self) -> float:
        """Milliseconds since it was made, or was last asked."""
        began, self._began = self._began, time.monotonic()
        return round((self._began - began) * 1000, 1)
