"""The answers of several workers to one command are one answer."""

from __future__ import annotations

from tunnel.ops.workers import merged


def status(name: str, links: int, sent: int) -> dict[str, object]:
    return {
        "name": name, "role": "serve", "pid": 1, "version": "1", "began_at": 1.0,
        "state": "listening", "address": "127.0.0.1:1", "connections": links,
        "waiting": 0, "kept_bytes": 5,
        "links": [{"id": f"{name}{number}"} for number in range(links)],
        "entries": [{"name": name}], "certificates": [], "faults": [],
        "passed": {"sent_bytes": sent, "received_bytes": 1},
    }  # fmt: skip


def test_a_status_has_the_links_of_all_and_their_sums() -> None:
    own = {"name": "serve-9", "pid": 9}
    found = merged.status_of([status("a", 2, 10), status("b", 1, 5)], own)
    assert [link["id"] for link in found["links"]] == ["a0", "a1", "b0"]  # type: ignore[attr-defined]
    assert found["connections"] == 3
    assert found["kept_bytes"] == 10
    assert found["passed"] == {"sent_bytes": 15, "received_bytes": 2}
    assert (found["name"], found["pid"]) == ("serve-9", 9)
    greeting = merged.greeting_of(found)
    assert (greeting["links"], greeting["entries"]) == (3, 2)


def test_top_has_those_that_carried_most_of_all() -> None:
    def one(*carried: int) -> dict[str, object]:
        rows = [{"id": n, "passed": {"sent_bytes": n}} for n in carried]
        return {"count": len(rows), "connections": rows}

    found = merged.top_of([one(5, 1), one(9, 3)], 3)
    assert found["count"] == 4
    assert [row["id"] for row in found["connections"]] == [9, 5, 3]  # type: ignore[attr-defined]


def test_logs_are_in_the_order_of_their_times_and_can_be_followed() -> None:
    def log(*at: float) -> dict[str, object]:
        return {"lines": [{"number": 1, "at": one, "text": str(one)} for one in at]}

    each = [log(1.0, 3.0), log(2.0, 4.0)]
    found = merged.logs_of(each, 0, 3)["lines"]
    assert [line["text"] for line in found] == ["2.0", "3.0", "4.0"]  # type: ignore[attr-defined]
    after = found[0]["number"]  # type: ignore[index]
    later = merged.logs_of(each, after, 10)["lines"]
    assert [line["text"] for line in later] == ["3.0", "4.0"]  # type: ignore[attr-defined]


def test_users_have_the_sessions_of_all() -> None:
    def users(sessions: int) -> dict[str, object]:
        return {"users": [{"user": "alice", "sessions": sessions, "links": 1}]}

    found = merged.users_of([users(1), users(2)])["users"]
    assert found == [{"user": "alice", "sessions": 3, "links": 2}]
