"""The numbers of a process as Prometheus reads them: names, units, bounded labels.

Names and meanings stay; docs/metrics.md lists them.
"""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Final

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from prometheus_client.core import Metric

    from tunnel.ops.control.status import EntryStatus, Status
    from tunnel.ops.metrics.facts import Facts, UserFacts

MOST_ENTRIES: Final = 1_000
"""Entries with numbers of their own: Prometheus keeps each number of each for weeks.
The others are one together, called ``OTHERS``."""
MOST_USERS: Final = 1_000
"""The same of users."""
OTHERS: Final = "(others)"
TEXT: Final = "text/plain; version=0.0.4; charset=utf-8"
"""What Prometheus, and all that reads for it, understands."""

_LEAST: Final = ("process_start_time_seconds", "process_max_fds")
_LINK_STATES: Final = ("linked", "waiting", "connecting")


def text_of(facts: Facts) -> bytes:
    """Write what a process tells Prometheus; may be called in a thread."""
    registry = CollectorRegistry()
    registry.register(_Moment(facts))
    # CPU, memory and descriptors under the names that everybody's boards know.
    if facts.pids:
        registry.register(_Processes(facts.pids))
    else:
        ProcessCollector(registry=registry)
    return generate_latest(registry)


class _Processes(Collector):
    """What ``ProcessCollector`` says, of several processes together."""

    def __init__(self, pids: Sequence[int]) -> None:
        apart = CollectorRegistry
        self._each = [
            ProcessCollector(pid=partial(int, pid), registry=apart()) for pid in pids
        ]

    def collect(self) -> Iterator[Metric]:
        """Yield sums; they began when the first one did, and the least is the limit."""
        together: dict[str, Metric] = {}
        for metric in (one for each in self._each for one in each.collect()):
            had = together.setdefault(metric.name, metric)
            if had is metric:
                continue
            least = metric.name in _LEAST
            had.samples = [
                mine._replace(value=min(mine.value, its.value) if least
                              else mine.value + its.value)
                for mine, its in zip(had.samples, metric.samples, strict=True)
            ]  # fmt: skip
        yield from together.values()


class _Moment(Collector):
    """The families of one moment."""

    def __init__(self, facts: Facts) -> None:
        self._facts = facts

    def collect(self) -> Iterator[Metric]:
        """Yield them; the registry asks twice, for it looks at the names first."""
        facts = self._facts
        yield from _process(facts)
        yield from _links(facts.status)
        yield from _users(facts.users)
        yield from _entries(facts.status.entries)


def _family(
    kind: type[GaugeMetricFamily | CounterMetricFamily],
    name: str,
    text: str,
    labels: Sequence[str],
    rows: Iterable[tuple[object, ...]],
) -> Metric:
    """Return a family; each row is its labels and the value."""
    family = kind(f"tunnel_{name}", text, labels=labels)
    for *values, value in rows:
        family.add_metric([str(one) for one in values], float(str(value)))
    return family


_gauge = partial(_family, GaugeMetricFamily)
_counter = partial(_family, CounterMetricFamily)


def _process(facts: Facts) -> Iterator[Metric]:
    status = facts.status
    about = status.version, status.role, 1
    yield _gauge("build_info", "1, for what runs", ("version", "role"), [about])
    yield _gauge("ready", "1 if /readyz says so", (), [(int(facts.ready),)])
    yield _gauge("waits", "Connections, by what holds them up at this end", ("cause",),
        facts.waits.items())  # fmt: skip
    held = [(name, held) for name, (held, _) in facts.pools.items()]
    yield _gauge("pool_bytes", "Held by all sessions", ("pool",), held)
    most = [(name, most) for name, (_, most) in facts.pools.items()]
    yield _gauge("pool_limit_bytes", "May be held by all sessions", ("pool",), most)
    yield _counter(
        "events",
        "Lines of the log, by the name of their event",
        ("event", "level"),
        [(*key, count) for key, count in facts.events.items()],
    )


def _links(status: Status) -> Iterator[Metric]:
    states = Counter(link.state for link in status.links)
    yield _gauge("links", "Clients, by the state of their link", ("state",),
        [(state, states[state]) for state in _LINK_STATES])  # fmt: skip
    yield _gauge("connections", "Virtual TCP connections and UDP associations", (),
        [(status.connections,)])  # fmt: skip
    yield _gauge("waiting_connections", "Those that wait for another link", (),
        [(status.waiting,)])  # fmt: skip
    yield _gauge("kept_bytes", "Sent and not confirmed, kept for another link", (),
        [(status.kept_bytes,)])  # fmt: skip
    slowest: dict[str, float] = {}
    for link in status.links:
        user = link.user or ""
        if link.rtt_ms is not None and (user in slowest or len(slowest) < MOST_USERS):
            slowest[user] = max(slowest.get(user, 0.0), link.rtt_ms / 1000)
    yield _gauge("round_trip_seconds", "Of the slowest link of a user", ("user",),
        slowest.items())  # fmt: skip


def _users(users: Sequence[UserFacts]) -> Iterator[Metric]:
    """Yield what passes for users; those above the bound are one."""

    def rows(value: Callable[[UserFacts], int]) -> list[tuple[object, ...]]:
        found: list[tuple[object, ...]]
        found = [(one.name, value(one)) for one in users[:MOST_USERS]]
        if len(users) > MOST_USERS:
            found.append((OTHERS, sum(map(value, users[MOST_USERS:]))))
        return found

    label = ("user",)
    yield _gauge("user_connections", "Connections of a user", label,
        rows(lambda one: one.connections))  # fmt: skip
    yield _counter("user_connections_opened", "Connections that were opened", label,
        rows(lambda one: one.opened))  # fmt: skip
    yield _counter("user_sent_bytes", "Sent over links to the other end", label,
        rows(lambda one: one.sent_bytes))  # fmt: skip
    yield _counter("user_received_bytes", "Received over links", label,
        rows(lambda one: one.received_bytes))  # fmt: skip


def _where(entry: EntryStatus) -> str:
    """Return where an entry is open, as both ends call it; its name, while it is not.

    A client shows people a URL, a server HOST:PORT.
    """
    scheme, url, place = (entry.public or entry.name).rpartition("://")
    if not url:
        return place
    host = place.partition("/")[0]
    usual = {"http": 80, "https": 443}.get(scheme, 0)
    return host if ":" in host.rpartition("]")[2] else f"{host}:{usual}"


def _entries(entries: Sequence[EntryStatus]) -> Iterator[Metric]:
    """Yield what passes at entries; those above the bound are one."""
    named = entries[:MOST_ENTRIES]
    # Two clients of a server may call theirs the same; one place is one entry.
    keys = [(one.kind, _where(one), one.client or "") for one in named]
    label = ("kind", "entry", "client")

    def rows(value: Callable[[EntryStatus], int]) -> list[tuple[object, ...]]:
        found = Counter[tuple[str, str, str]]()
        for key, one in zip(keys, named, strict=True):
            found[key] += value(one)
        rest = sum(map(value, entries[MOST_ENTRIES:]))
        more = [("", OTHERS, "", rest)] if len(entries) > MOST_ENTRIES else []
        return [*((*key, count) for key, count in found.items()), *more]

    yield _gauge("entry_open", "1 for an entry that is open", label,
        rows(lambda one: int(one.state == "open")))  # fmt: skip
    yield _counter("entry_sent_bytes", "Sent over the link for an entry", label,
        rows(lambda one: one.passed.sent_bytes if one.passed else 0))  # fmt: skip
    yield _counter("entry_received_bytes", "Received over the link for an entry", label,
        rows(lambda one: one.passed.received_bytes if one.passed else 0))  # fmt: skip
