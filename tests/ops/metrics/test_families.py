"""What Prometheus is told: names, kinds, bounded labels."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tunnel.ops.control.status import EntryStatus, LinkStatus, Passed, Status
from tunnel.ops.metrics.facts import Facts, UserFacts
from tunnel.ops.metrics.families import MOST_ENTRIES, MOST_USERS, OTHERS, text_of

if TYPE_CHECKING:
    from prometheus_client.core import Metric

DOCS = Path(__file__).parents[3] / "docs/metrics.md"


def status(entries: int = 1, links: int = 1) -> Status:
    return Status(
        name="serve-1", role="serve", pid=1, version="1.2", began_at=0.0,
        state="listening", address="*:7443", connections=3, waiting=1, kept_bytes=7,
        passed=Passed(),
        links=[
            LinkStatus(
                id=f"c{number}", peer="192.0.2.1:1", user=f"user{number}",
                state="linked", encrypted=True, linked_at=0.0, began_at=0.0,
                lost_at=None, rtt_ms=number + 1.5, resumes=0, connections=1, waiting=0,
                kept_bytes=0, passed=Passed(),
            )
            for number in range(links)
        ],
        entries=[
            EntryStatus(
                name=f"tcp-{number}", kind="tcp", public=f"*:{number}", target=None,
                state="open", client="c", passed=Passed(10, 20),
            )
            for number in range(entries)
        ],
    )  # fmt: skip


def families(facts: Facts) -> dict[str, Metric]:
    found = text_string_to_metric_families(text_of(facts).decode())
    return {one.name: one for one in found if one.name.startswith("tunnel_")}


def full() -> Facts:
    return Facts(
        status(), True, (UserFacts("anna", 1, 2, 3, 4),), {"credit": 1},
        {"kept": (5, 6)}, {("link.up", "info"): 1},
    )  # fmt: skip


def test_the_page_lists_what_there_is_and_nothing_else() -> None:
    rows = re.findall(
        r"^\| `(tunnel_\w+)` \| (\w+) \| ([^|]*)\|", DOCS.read_text(), re.MULTILINE
    )
    said = {
        (
            name.removesuffix("_total"),
            kind,
            tuple(sorted(filter(None, labels.split(", ")))),
        )
        for name, kind, labels in ((a, b, c.strip()) for a, b, c in rows)
    }
    assert said == {
        (name, one.type, tuple(sorted(one.samples[0].labels)))
        for name, one in families(full()).items()
    }


def test_values_are_what_they_are() -> None:
    found = families(full())
    sent = found["tunnel_entry_sent_bytes"].samples[0]
    assert sent.name == "tunnel_entry_sent_bytes_total"
    assert (sent.labels["entry"], sent.value) == ("*:0", 10)
    assert found["tunnel_user_received_bytes"].samples[0].value == 4
    assert found["tunnel_round_trip_seconds"].samples[0].value == 0.0015
    links = {one.labels["state"]: one.value for one in found["tunnel_links"].samples}
    assert links == {"linked": 1, "waiting": 0, "connecting": 0}


def test_thousands_of_users_and_entries_are_bounded_and_none_is_lost() -> None:
    count = MOST_ENTRIES + 500
    users = tuple(UserFacts(f"user{one}", 1, 1, 1, 1) for one in range(count))
    found = families(Facts(status(count, MOST_USERS + 9), True, users))
    entries = found["tunnel_entry_sent_bytes"].samples
    assert len(entries) == MOST_ENTRIES + 1
    assert sum(one.value for one in entries) == 10 * count
    assert entries[-1].labels["entry"] == OTHERS
    sent = found["tunnel_user_sent_bytes"].samples
    assert len(sent) == MOST_USERS + 1
    assert sum(one.value for one in sent) == count
    assert len(found["tunnel_round_trip_seconds"].samples) == MOST_USERS


@pytest.mark.parametrize(
    ("shown", "label"),
    [
        ("*:2222", "*:2222"),
        ("http://shop.t.test:8080/", "shop.t.test:8080"),
        ("https://shop.t.test/", "shop.t.test:443"),
        ("http://shop.t.test/", "shop.t.test:80"),
        (None, "tcp-0"),
    ],
)
def test_both_ends_call_an_entry_the_same(shown: str | None, label: str) -> None:
    one = status(1)
    one.entries[0].public = shown
    sample = families(Facts(one, True))["tunnel_entry_open"].samples[0]
    assert sample.labels["entry"] == label


def test_two_clients_may_call_theirs_the_same() -> None:
    both = status(2)
    for entry in both.entries:
        entry.public = "*:1"
    samples = families(Facts(both, True))["tunnel_entry_received_bytes"].samples
    assert [one.value for one in samples] == [40]
