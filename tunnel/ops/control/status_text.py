"""A status for a person to read: the answers of ``status`` and ``ps`` as lines.

They are read as another version may have written them: what is not there is left out.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from tunnel.ops.texts import connections, shown, size_text, span_text

if TYPE_CHECKING:
    from collections.abc import Iterator

Fields = Mapping[str, object]
MAX_LISTED: Final = 50
"""Links, and entries, that a status for people lists; ``--json`` has all."""
MAX_FAULTS: Final = 5
MOST: Final = 1e18
"""Bytes, seconds or things: an answer with more was not written by one of ours."""


def ps_lines(answers: list[Fields]) -> Iterator[str]:
    """Yield a line for each process."""
    for one in answers:
        age = span_text(time.time() - number(one, "began_at"))
        live = connections(int(number(one, "connections")))
        what = f"{text(one, 'state'):<10} {text(one, 'address')}"
        yield shown(f"{text(one, 'name'):<14} {what}  {live}, for {age}")


def status_lines(status: Fields) -> Iterator[str]:
    """Yield the lines of one process."""
    now = time.time()
    name, state = text(status, "name"), text(status, "state")
    age = span_text(now - number(status, "began_at"))
    version = f"tunnel {text(status, 'version')}"
    yield shown(f"{name}  {state}  for {age}  {version}, pid {text(status, 'pid')}")
    is_client = text(status, "role") == "up"
    yield _line("server" if is_client else "address", text(status, "address"))
    links = listed(status, "links")
    for link in links[:MAX_LISTED]:
        yield _line("link" if is_client else "client", _link(link, now))
    yield from _more(links, "links")
    yield _line("traffic", _traffic(status))
    entries = listed(status, "entries")
    for entry in entries[:MAX_LISTED]:
        yield _line("entry", _entry(entry))
    yield from _more(entries, "entries")
    for fault in listed(status, "faults")[-MAX_FAULTS:]:
        ago = span_text(now - number(fault, "at"))
        yield _line("fault", f"{ago} ago: {fault_text(text(fault, 'text'))}")


def _line(label: str, said: str) -> str:
    return shown(f"  {label:<8} {said}")


def _more(found: list[Fields], what: str) -> Iterator[str]:
    if len(found) > MAX_LISTED:
        yield _line("", f"and {len(found) - MAX_LISTED} {what} more: --json")


def fault_text(line: str) -> str:
    """Return a line of the log without its time and level, which stand before it."""
    words = line.split(" ", 2)
    return words[2].removeprefix("event=") if len(words) == 3 else line


def _link(link: Fields, now: float) -> str:
    who = " ".join(filter(None, (text(link, "id"), text(link, "user"))))
    said = [f"{who} at {text(link, 'peer')}" if text(link, "peer") else who]
    said.append("TLS" if link.get("encrypted") else "plain, NOT encrypted")
    if link.get("linked_at") is not None:
        said.append(f"linked for {span_text(now - number(link, 'linked_at'))}")
    elif link.get("lost_at") is not None:
        lost = span_text(now - number(link, "lost_at"))
        said.append(f"no link for {lost}, {int(number(link, 'waiting'))} waiting")
    else:
        said.append("no link")
    if link.get("rtt_ms") is not None:
        said.append(f"{number(link, 'rtt_ms'):.0f} ms")
    if resumes := int(number(link, "resumes")):
        said.append(f"resumed {resumes} {'time' if resumes == 1 else 'times'}")
    said.append(connections(int(number(link, "connections"))))
    if reason := text(link, "reason"):
        said.append(reason)
    if link.get("retry_s") is not None:
        said.append(f"trying again in {number(link, 'retry_s'):.1f} s")
    return ", ".join(said)


def _traffic(status: Fields) -> str:
    said = [connections(int(number(status, "connections")))]
    if waiting := int(number(status, "waiting")):
        said.append(f"{waiting} waiting for a link")
    passed = status.get("passed")
    if isinstance(passed, dict):
        said.append(flow(passed))
    if kept := number(status, "kept_bytes"):
        said.append(f"{size_text(kept)} kept for another link")
    return ", ".join(said)


def flow(passed: Fields) -> str:
    """Return what has passed both ways, and how fast it does."""
    ways = []
    for word, key in (("in", "received"), ("out", "sent")):
        rate = number(passed, f"{key}_per_s")
        fast = f" ({size_text(rate)}/s)" if rate else ""
        ways.append(f"{size_text(number(passed, f'{key}_bytes'))} {word}{fast}")
    return ", ".join(ways)


def _entry(entry: Fields) -> str:
    target = text(entry, "target")
    where = text(entry, "public") or "(not public)"
    said = [f"{text(entry, 'kind')} {where}" + (f" → {target}" if target else "")]
    if text(entry, "state") != "open":
        said.append(text(entry, "state"))
    if reason := text(entry, "reason"):
        said.append(reason)
    if entry.get("connections") is not None:
        said.append(connections(int(number(entry, "connections"))))
    passed = entry.get("passed")
    if isinstance(passed, dict) and any(passed.values()):
        said.append(flow(passed))
    if entry.get("limit_per_s") is not None:
        said.append(f"at most {size_text(number(entry, 'limit_per_s'))}/s")
    if client := text(entry, "client"):
        said.append(f"of {client}")
    return f"{', '.join(said)}  [{text(entry, 'name')}]"


# Fields ------------------------------------------------------------------------------


def text(fields: Fields, key: str) -> str:
    """Return a field as text; "" if it is not there."""
    value = fields.get(key)
    return "" if value is None else str(value)


def number(fields: Fields, key: str) -> float:
    """Return a number; 0 if it is not there, or no number of anything."""
    value = fields.get(key)
    if isinstance(value, int | float) and abs(value) < MOST:
        return value
    return 0  # JSON has NaN here, and numbers without end


def listed(fields: Fields, key: str) -> list[Fields]:
    """Return a list of objects; empty if it is not there."""
    value = fields.get(key)
    return (
        [one for one in value if isinstance(one, dict)]
        if isinstance(value, list)
        else []
    )
