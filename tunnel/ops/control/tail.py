"""``tunnel tail``: the requests that a client's inspector sees, as lines of a terminal.

Loads nothing heavy. What requests say is shown without control characters.
"""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING, Final

from tunnel.errors import Exit, UsageError
from tunnel.ops.control.ask import AnswerError
from tunnel.ops.control.live import size
from tunnel.ops.control.processes import NOT_HERE, NotRunningError, find, find_all
from tunnel.ops.control.status_text import Fields, listed, number, text
from tunnel.ops.standard import lost_output
from tunnel.ops.texts import shown, size_text
from tunnel.words import escaped

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tunnel.ops.control.processes import Process

EVERY_S: Final = 0.25
"""How often to ask for more."""
OLD: Final = 20
"""Requests that are shown of those that are over when it begins."""
MOST: Final = 500
"""Requests in one answer."""
MOST_OPEN: Final = 10_000
"""Requests under way that are remembered, to be shown again at their end."""
_OVER: Final = ("done", "failed")
_COLOURS: Final = {2: "32", 3: "36", 4: "33", 5: "31"}
"""Of a status, by its first digit."""


def tail(
    name: str | None = None,
    *,
    as_json: bool = False,
    once: bool = False,
    request: int | None = None,
    reveal: bool = False,
    entry: str | None = None,
) -> Exit:
    """Show each request once it is over, until Ctrl+C or until nobody reads.

    Args:
        name: of a client, if there are several with an inspector.
        as_json: each line is a JSON object.
        once: those that are over, and no more.
        request: this one whole instead.
        reveal: with the values that are hidden.
        entry: only the requests of this one, by its name in ``tunnel status``, or as
            a line shows it.
    """
    process = _inspecting(name)
    if request is not None:
        _show(process, request, as_json=as_json, reveal=reveal)
        return Exit.OK
    answer = process.ask("inspect.list", most=MOST)
    lines = _Lines(_called(entry, answer), as_json=as_json)
    lines.take(answer, only_last=None if once else OLD)
    while not once and lost_output() is None:
        sys.stdout.flush()
        after = int(number(answer, "version"))
        if len(listed(answer, "seen")) < MOST:
            time.sleep(EVERY_S)
        answer = process.ask("inspect.list", after=after, most=MOST)
        lines.take(answer)
    sys.stdout.flush()
    return Exit.OK


def _inspecting(name: str | None) -> Process:
    """Return the one process that inspects.

    Raises:
        NotRunningError: none of this name runs.
        UsageError: none inspects, or several do.
    """
    if name is not None:
        process = find(name, "up")
        if not _inspects(process):
            raise _no_inspector()
        return process
    clients = [one for one in find_all(None) if one.name.startswith("up")]
    if not clients:
        raise NotRunningError(NOT_HERE)
    found = [one for one in clients if _inspects(one)]
    if not found:
        raise _no_inspector()
    if len(found) > 1:
        names = ", ".join(one.name for one in found)
        raise UsageError("several clients inspect requests", fix=f"one of {names}")
    return found[0]


def _called(entry: str | None, answer: Fields) -> str | None:
    """Return what an entry is called in the list.

    Raises:
        UsageError: none that is inspected has this name.
    """
    known = answer.get("entries")
    if entry is None or not isinstance(known, dict):
        return entry
    if entry in known:
        return str(known[entry])
    seen = {text(one, "entry") for one in listed(answer, "seen")}
    if entry in seen.union(known.values()):
        return entry
    what = f"no entry {entry!r} is inspected at the moment"
    raise UsageError(what, fix=f"one of {', '.join(sorted(known))}")


def _inspects(process: Process) -> bool:
    try:
        process.ask("inspect.list", most=1)
    except AnswerError:
        return False
    return True


def _no_inspector() -> UsageError:
    return UsageError(
        "no entry of a client here is inspected",
        "requests are kept only of entries that ask for it",
        "tunnel share 8000 --inspect, or up --http NAME=TARGET,inspect",
    )


class _Lines:
    """Writes a line for each request that is over, and for each tunnel that begins."""

    def __init__(self, entry: str | None, *, as_json: bool) -> None:
        self._entry = entry
        self._as_json = as_json
        self._colours = sys.stdout.isatty() and not as_json
        self._told: dict[tuple[float, str], None] = {}
        """Number and state of what was written and may come again."""

    def take(self, answer: Fields, only_last: int | None = None) -> None:
        news = [one for one in listed(answer, "seen") if self._is_new(one)]
        for one in news[-only_last:] if only_last else news:
            line = json.dumps(one) if self._as_json else self._line(one)
            sys.stdout.write(line + "\n")

    def _is_new(self, one: Fields) -> bool:
        state = text(one, "state")
        if state not in (*_OVER, "tunnel"):
            return False
        if self._entry is not None and text(one, "entry") != self._entry:
            return False
        key = number(one, "number"), state
        if key in self._told:
            return False
        self._told[key] = None
        if len(self._told) > MOST_OPEN:
            del self._told[next(iter(self._told))]
        return True

    def _line(self, one: Fields) -> str:
        clock = time.strftime("%H:%M:%S", time.localtime(number(one, "at")))
        status = int(number(one, "status"))
        code = str(status) if status else "-"
        took = f"{number(one, 'ended_ms'):.0f} ms"
        if text(one, "state") == "tunnel":
            took = "…"
        what = f"{text(one, 'method')} {text(one, 'host')}{text(one, 'path')}"
        end = f"{size_text(number(one, 'received_bytes')):>9} {took:>9}"
        about = [text(one, "entry"), text(one, "visitor")]
        if text(one, "failure"):
            about.insert(0, text(one, "failure"))
        if one.get("replay_of") is not None:
            about.append(f"again #{int(number(one, 'replay_of'))}")
        number_of = f"#{int(number(one, 'number'))}"
        said = f"{clock} {number_of:<6} {code:>3} {end}  {what}  {', '.join(about)}"
        line = shown(said)
        columns, _lines = size()
        if sys.stdout.isatty():
            line = line[: columns - 1]
        colour = _COLOURS.get(status // 100)
        if self._colours and colour:
            at = line.find(f" {code} ")
            line = f"{line[:at]} \x1b[{colour}m{code}\x1b[0m {line[at + 5 :]}"
        return line


def _show(process: Process, request: int, *, as_json: bool, reveal: bool) -> None:
    answer = process.ask("inspect.show", number=request, reveal=reveal)
    if as_json:
        sys.stdout.write(json.dumps(answer) + "\n")
    else:
        for line in _whole(answer):
            sys.stdout.write(escaped(line) + "\n")
    sys.stdout.flush()


def _whole(answer: Fields) -> Iterator[str]:
    """Yield the lines of a request and its answer, as they went by."""
    failure = text(answer, "failure")
    for part in ("request", "answer"):
        message = answer.get(part)
        if not isinstance(message, dict):
            if not failure:
                yield "(no answer)"
            continue
        yield text(message, "line")
        yield from _fields(message.get("fields"))
        yield ""
        yield from _body(message.get("body"))
    yield from _fields(answer.get("trailers"))
    if failure:
        yield f"({failure})"
    if dropped := int(number(answer, "messages_dropped")):
        yield f"({dropped} messages before these are not kept)"
    for one in listed(answer, "messages"):
        arrow = "<" if text(one, "from") == "target" else ">"
        said = one.get("text")
        kind = f"({text(one, 'kind')}, {size_text(number(one, 'size'))})"
        yield f"{arrow} {said if isinstance(said, str) else kind}"


def _fields(fields: object) -> Iterator[str]:
    for field in fields if isinstance(fields, list) else []:
        if isinstance(field, list) and len(field) == 2:
            yield f"{field[0]}: {field[1]}"


def _body(body: object) -> Iterator[str]:
    if not isinstance(body, dict) or not number(body, "size"):
        return
    said = body.get("text")
    if isinstance(said, str):
        yield from said.splitlines()
        if body.get("cut"):
            yield f"(cut: {size_text(number(body, 'size'))} in all)"
    else:
        kind = text(body, "kind") or "no kind"
        yield f"({kind}, {size_text(number(body, 'size'))})"
    yield ""
