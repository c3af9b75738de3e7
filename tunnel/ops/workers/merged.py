"""The answers of all workers to one command, as one answer."""

from __future__ import annotations

from operator import itemgetter
from typing import TYPE_CHECKING, Final

from tunnel.center.why import AT_REST, MOST_LISTED

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from tunnel.ops.control import Answer

_LISTS: Final = ("links", "entries", "certificates", "faults")
_SUMS: Final = ("connections", "waiting", "kept_bytes")
_AT_REST: Final = tuple(wait.word for wait in AT_REST)
_MICRO: Final = 1_000_000


def status_of(
    each: Sequence[Mapping[str, object]], own: Mapping[str, object]
) -> Answer:
    """Return the status of a server, from that of each worker.

    Args:
        each: what the workers say, the first one first.
        own: what the parent says of itself instead.
    """
    answer: Answer = dict(each[0])
    for key in _LISTS:
        answer[key] = [row for one in each for row in _rows(one.get(key))]
    for key in _SUMS:
        answer[key] = sum(_number(one.get(key)) for one in each)
    passed = [_words(one.get("passed")) for one in each]
    answer["passed"] = {
        key: sum(_number(one.get(key)) for one in passed) for key in passed[0]
    }
    return {**answer, **own}


def greeting_of(status: Mapping[str, object]) -> Answer:
    """Return what ``tunnel ps`` shows of a status."""
    names = "name", "role", "pid", "version", "began_at", "state", "address"
    answer: Answer = {name: status[name] for name in names}
    answer["links"] = len(_rows(status["links"]))
    answer["entries"] = len(_rows(status["entries"]))
    answer["connections"] = status["connections"]
    return answer


def top_of(each: Iterable[Mapping[str, object]], most: int) -> Answer:
    """Return the connections of all that have carried most."""
    each = list(each)
    rows = [row for one in each for row in _rows(one.get("connections"))]

    def carried(row: Mapping[str, object]) -> float:
        passed = _words(row.get("passed"))
        return _number(passed.get("sent_bytes")) + _number(passed.get("received_bytes"))

    rows.sort(key=carried, reverse=True)
    count = sum(_number(one.get("count")) for one in each)
    return {"count": count, "connections": rows[:most]}


def logs_of(each: Iterable[Mapping[str, object]], after: int, most: int) -> Answer:
    """Return the last lines of all logs, in the order of their times.

    A line's number is its time, for the numbers of several processes are not in order.
    """
    numbered = [
        (int(_number(line.get("at")) * _MICRO), line)
        for one in each
        for line in _rows(one.get("lines"))
    ]
    numbered = sorted((one for one in numbered if one[0] > after), key=itemgetter(0))
    lines = [{**line, "number": number} for number, line in numbered]
    return {"lines": lines[:most] if after else lines[-most:]}


def why_of(each: Iterable[Mapping[str, object]]) -> Answer:
    """Return the connections of all that wait most; or all that is known of one."""
    each = list(each)
    if all("found" in one for one in each):
        return {"found": [row for one in each for row in _rows(one.get("found"))]}
    rows = [row for one in each for row in _rows(one.get("listed"))]

    def rank(row: Mapping[str, object]) -> tuple[float, float]:
        minute = _words(row.get("minute"))
        waited = sum(_number(minute[word]) for word in minute if word not in _AT_REST)
        passed = _number(row.get("sent_bytes")) + _number(row.get("received_bytes"))
        return -waited * _number(row.get("looks")), -passed

    return {"listed": sorted(rows, key=rank)[:MOST_LISTED]}


def user_of(answer: Answer, each: Iterable[Mapping[str, object]]) -> Answer:
    """Return an answer about one user, with what it has at all workers."""
    each = list(each)
    counts = {
        key: sum(_number(one.get(key)) for one in each) for key in ("sessions", "links")
    }
    return {**answer, **counts}


def users_of(each: Sequence[Mapping[str, object]]) -> Answer:
    """Return a list of users, with the sessions and links that each has anywhere."""
    answer: Answer = dict(each[0])
    rows = [dict(row) for row in _rows(answer.get("users"))]
    for row in rows:
        for key in ("sessions", "links"):
            row[key] = sum(
                _number(other.get(key))
                for one in each
                for other in _rows(one.get("users"))
                if other.get("user") == row.get("user")
            )
    answer["users"] = rows
    return answer


def _rows(said: object) -> list[Mapping[str, object]]:
    return said if isinstance(said, list) else []


def _words(said: object) -> Mapping[str, object]:
    return said if isinstance(said, dict) else {}


def _number(said: object) -> float:
    return said if isinstance(said, int | float) else 0
