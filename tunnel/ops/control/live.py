"""What changes while one looks: ``status --watch`` and ``top``. Loads nothing heavy."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING, Final

from tunnel.errors import Exit
from tunnel.ops.control.status_text import Fields, listed, number, text
from tunnel.ops.standard import lost_output
from tunnel.ops.texts import connections, shown, size_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

EVERY_S: Final = 1.0
"""How often to look: rates are measured over as long."""
PLAIN_SIZE: Final = (120, 1_000)
"""Columns and lines where stdout is no terminal."""
_HOME, _CLEAR_LINE, _CLEAR_REST = "\x1b[H", "\x1b[K", "\x1b[J"


def is_screen() -> bool:
    """Say whether stdout is a terminal whose cursor can be moved."""
    return sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"


def size() -> tuple[int, int]:
    """Return the columns and lines of the terminal; many, where there is none."""
    try:
        columns, lines = os.get_terminal_size(sys.stdout.fileno())
    except (OSError, ValueError):
        return PLAIN_SIZE
    return (columns, lines) if columns and lines else PLAIN_SIZE


def look_again(frame: Callable[[], Iterable[str]], *, first_s: float = 0.0) -> Exit:
    """Show a frame each second, until Ctrl+C or until nobody reads; the first after
    ``first_s``.

    A terminal shows each in the place of the last, cut to its size; else they follow
    one another.
    """
    try:
        time.sleep(first_s)
        if is_screen():
            sys.stdout.write(_HOME + _CLEAR_REST)
        while lost_output() is None:
            shown_lines = list(frame())
            if sys.stdout.isatty():
                columns, lines = size()
                shown_lines = [line[: columns - 1] for line in shown_lines[: lines - 1]]
            if is_screen():
                drawn = "".join(f"{line}{_CLEAR_LINE}\n" for line in shown_lines)
                sys.stdout.write(f"{_HOME}{drawn}{_CLEAR_REST}")
            else:
                sys.stdout.write("".join(f"{line}\n" for line in shown_lines))
            sys.stdout.flush()
            time.sleep(EVERY_S)
    except KeyboardInterrupt:
        pass
    return Exit.OK


class Top:
    """The connections of a process, those first that carry most at the moment."""

    def __init__(self, ask: Callable[[], Fields]) -> None:
        self._ask = ask
        self._before: dict[str, tuple[float, float]] = {}
        self._at = time.monotonic()

    def look(self) -> list[str]:
        """Return the lines of a look, with rates since the last."""
        answer, now = self._ask(), time.monotonic()
        took_s, self._at = max(now - self._at, 0.001), now
        rows = []
        after = {}
        for one in listed(answer, "connections"):
            passed = one.get("passed")
            counts = passed if isinstance(passed, dict) else {}
            both = number(counts, "received_bytes"), number(counts, "sent_bytes")
            name = text(one, "id")
            after[name] = both
            before = self._before.get(name, both)
            rates = [(a - b) / took_s for a, b in zip(both, before, strict=True)]
            rows.append((sum(rates), sum(both), rates, one))
        self._before = after
        rows.sort(key=lambda row: row[:2], reverse=True)
        columns, lines = size()
        told = [_row(rates, total, one, columns) for _, total, rates, one in rows]
        head = connections(int(number(answer, "count")))
        most = f", the first {len(rows)}" if number(answer, "count") > len(rows) else ""
        title = _columns(columns, "ID", "IN/s", "OUT/s", "TOTAL", "WHY", "WHAT")
        return [f"{head}{most}", title, *told[: max(lines - 3, 1)]]


def _row(rates: list[float], total: float, one: Fields, columns: int) -> str:
    back, out = size_text(rates[0]), size_text(rates[1])
    what = text(one, "entry") or text(one, "target") or text(one, "user")
    visitor = text(one, "visitor")
    why = text(one, "why") or text(one, "state")
    about = f"{what} for {visitor}" if visitor else what
    return _columns(columns, text(one, "id"), back, out, size_text(total), why, about)


def _columns(
    columns: int, name: str, back: str, out: str, total: str, why: str, what: str
) -> str:
    """Return a line; what a narrow terminal has no room for is left out."""
    line = f"{name:<13}{back:>9}{out:>9}"
    if columns < 60:
        return shown(f"{line} {why}")
    return shown(f"{line}{total:>9}  {why:<8}  {what}".rstrip())
