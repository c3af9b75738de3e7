"""What was found, as a file and as a table."""

from __future__ import annotations

import dataclasses
import json
import statistics
from typing import TYPE_CHECKING, Final

from benchmarks.apps import BY_SOCKS, SSH_D
from benchmarks.datagrams import BY_UDP, CHISEL_UDP, FRP_UDP, UDP_DIRECT
from benchmarks.names import BY_NAME, FRP_BY_NAME
from benchmarks.peers import DIRECT, OPENSSH, TUNNEL

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@dataclasses.dataclass(frozen=True)
class Asked:
    """What is asked of a figure: at least (or at most) so many times ``base``'s.

    Without a base it is the figure itself. ``goal`` is the better of the two, and of
    ``goal_base`` if that is another. ``of`` is the peer of whom it is asked.
    """

    floor: float
    goal: float
    base: str | None = OPENSSH
    at_most: bool = False
    of: str = TUNNEL
    goal_base: str | None = None

    def __str__(self) -> str:
        times = f" × {self.base}" if self.base else ""
        return f"{'≤' if self.at_most else '≥'} {self.floor:g}{times}"

    def verdict(self, value: float, for_goal: float) -> str:
        """Judge a ratio to ``base``, and to ``goal_base`` or the same again."""

        def met(value: float, bound: float) -> bool:
            return value <= bound if self.at_most else value >= bound

        if not met(value, self.floor):
            return "NO"
        return "goal" if met(for_goal, self.goal) else "floor"


ASKED: Final = {
    "get ×1, MB/s": Asked(0.6, 1.0),
    "get ×8, MB/s": Asked(0.5, 1.0),
    "put ×1, MB/s": Asked(0.6, 1.0),
    "rr 64, /s": Asked(0.4, 1.0),
    "cps 32, /s": Asked(0.3, 0.5, DIRECT),
    "echo p50, µs": Asked(2.2, 1.2, at_most=True),
    "echo p99 under four bulk streams, µs": Asked(1.5, 1.0, at_most=True),
    "100 ms round trip: the last of them, MB/s": Asked(62.5, 112.5, None),
    "server, KB per idle connection": Asked(15, 10, None, at_most=True),
    "client, KB per idle connection": Asked(15, 10, None, at_most=True),
    "CPU of both, %": Asked(4, 4, None, at_most=True),  # 2 each
    "decoding 65,528 B, GB/s": Asked(3, 10, None),
    "decoding 64 B, /s": Asked(0.5e6, 1e6, None),
    "tunnel --help, ms": Asked(250, 150, None, at_most=True),
    "1 KiB on 64 visitors, /s": Asked(0.3, 0.6, TUNNEL, of=BY_NAME),
    "1 KiB on 1 visitor, /s": Asked(0.6, 0.85, TUNNEL, of=BY_NAME),
    "1 MiB on 8 visitors, MB/s": Asked(0.85, 1.0, TUNNEL, of=BY_NAME),
    "SOCKS5 cps 32, /s": Asked(0.8, 1.0, SSH_D, of=BY_SOCKS),
    "UDP echo p50, µs": Asked(
        1.2, 1.2, FRP_UDP, at_most=True, of=BY_UDP, goal_base=CHISEL_UDP
    ),
    "UDP on 32 flows, /s": Asked(0.8, 0.8, FRP_UDP, of=BY_UDP, goal_base=CHISEL_UDP),
    "UDP back of 20,000/s of 1,200 B, %": Asked(90, 99.5, None, of=BY_UDP),
    "server, KB per idle kept visitor": Asked(12, 8, None, at_most=True, of=BY_NAME),
    "server, KB per idle WebSocket": Asked(12, 8, None, at_most=True, of=BY_NAME),
    "client, KB per idle WebSocket": Asked(12, 8, None, at_most=True, of=BY_NAME),
}

ASKED_BESIDE: Final = {
    "1 KiB on 64 visitors, /s": Asked(1.5, 1.5, FRP_BY_NAME, of=BY_NAME),
}
"""A second peer that a figure is compared with."""

BASES: Final = {
    "names": (DIRECT, TUNNEL),
    "socks": (DIRECT, SSH_D),
    "udp": (UDP_DIRECT, FRP_UDP),
}
"""With which two peers the others of a family are compared; else no tunnel and ssh."""


@dataclasses.dataclass
class Result:
    """One run.

    ``peers`` tells of each peer its label, mode, version and why it is missing, if it
    is. ``values`` has for each figure and peer what each round found, or None.
    ``failures`` says, for each figure and peer, why there is none. ``families`` lists
    the figures of each family, in order.
    """

    about: dict[str, str] = dataclasses.field(default_factory=dict)
    peers: dict[str, dict[str, str]] = dataclasses.field(default_factory=dict)
    families: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    values: dict[str, dict[str, list[float | None]]] = dataclasses.field(
        default_factory=dict
    )
    failures: dict[str, dict[str, str]] = dataclasses.field(default_factory=dict)
    quick: bool = False

    def add(
        self, family: str, figure: str, peer: str, value: float, *, round_: int = 0
    ) -> None:
        self._list(family, figure)
        rounds = self.values.setdefault(figure, {}).setdefault(peer, [])
        rounds += [None] * (round_ + 1 - len(rounds))
        rounds[round_] = float(f"{value:.6g}")

    def fail(self, family: str, load: str, peer: str, why: str) -> None:
        self._list(family, load)
        self.failures.setdefault(load, {})[peer] = why

    def missing(self, peer: str) -> str:
        return self.peers[peer].get("missing", "")

    def found(self, figure: str, peer: str) -> list[float]:
        rounds = self.values.get(figure, {}).get(peer, [])
        return [value for value in rounds if value is not None]

    def median(self, figure: str, peer: str) -> float | None:
        found = self.found(figure, peer)
        return statistics.median(found) if found else None

    def ratio(self, figure: str, peer: str, base: str) -> float | None:
        """Return the median of the rounds' ratios, where both were measured."""
        rounds = self.values.get(figure, {})
        pairs = zip(rounds.get(peer, []), rounds.get(base, []), strict=False)
        ratios = [mine / its for mine, its in pairs if mine is not None and its]
        return statistics.median(ratios) if ratios else None

    def write(self, path: Path) -> None:
        text = json.dumps(dataclasses.asdict(self), indent=1, ensure_ascii=False)
        path.write_text(f"{text}\n")

    @classmethod
    def read(cls, path: Path) -> Result:
        return cls(**json.loads(path.read_text()))

    def _list(self, family: str, figure: str) -> None:
        figures = self.families.setdefault(family, [])
        if figure not in figures:
            figures.append(figure)


def text(result: Result) -> str:
    """Return everything as Markdown: what, with whom, and a table for each family."""
    parts = ["\n".join(f"* {key}: {said}" for key, said in result.about.items())]
    parts.append("\n".join(peers_table(result)))
    for family, figures in result.families.items():
        bases = BASES.get(family, (DIRECT, OPENSSH))
        parts.append(f"## {family}\n\n" + "\n".join(table(result, figures, bases)))
    return "\n\n".join(parts) + "\n"


def peers_table(result: Result) -> Iterator[str]:
    yield from aligned(
        [
            ("peer", "version", "mode, or why it is missing"),
            *(
                (
                    peer["label"],
                    peer["version"],
                    f"MISSING: {peer['missing']}"
                    if peer.get("missing")
                    else peer["mode"],
                )
                for peer in result.peers.values()
            ),
        ]
    )


def table(result: Result, figures: list[str], bases: tuple[str, str]) -> Iterator[str]:
    """Yield a row for each figure of each peer; a missing one says why."""
    base = result.peers.get(bases[1], {}).get("label", bases[1])
    head = (
        *("figure", "peer", "median", "min..max", "× direct"),
        *(f"× {base.removesuffix(' -R')}", "asked"),
    )
    rows: list[tuple[str, ...]] = [head]
    for figure in figures:
        rows += [
            cells
            for peer in result.peers
            if (cells := row(result, figure, peer, bases)) is not None
        ]
    yield from aligned(rows)


def row(
    result: Result, figure: str, peer: str, bases: tuple[str, str]
) -> tuple[str, ...] | None:
    label = result.peers[peer]["label"]
    found, median = result.found(figure, peer), result.median(figure, peer)
    why = result.failures.get(figure, {}).get(peer)
    if median is None:
        return (figure, label, f"FAILED: {why}", "", "", "", "") if why else None
    return (
        figure,
        label,
        number(median),
        f"{number(min(found))}..{number(max(found))}",
        *(factor(result.ratio(figure, peer, base)) for base in bases),
        asked(result, figure, peer),
    )


def asked(result: Result, figure: str, peer: str) -> str:
    """Judge our own figures; a quick run is too short for that."""
    bounds = (ASKED.get(figure), ASKED_BESIDE.get(figure))
    return "; ".join(
        judged(result, figure, bound)
        for bound in bounds
        if bound and peer == bound.of and not result.quick
    )


def judged(result: Result, figure: str, bound: Asked) -> str:
    value = (
        result.ratio(figure, bound.of, bound.base)
        if bound.base
        else result.median(figure, bound.of)
    )
    for_goal = value
    if bound.goal_base:
        for_goal = result.ratio(figure, bound.of, bound.goal_base)
    if value is None or for_goal is None:
        return f"{bound}: -"
    return f"{bound}: {bound.verdict(value, for_goal)}"


def aligned(rows: list[tuple[str, ...]]) -> Iterator[str]:
    """Yield the lines of a Markdown table that can also be read as it is."""
    # a reason may be as long as it likes, without making its column as wide
    widths = [
        max(len(cells[i]) for cells in rows if not cells[i].startswith("FAILED"))
        for i in range(len(rows[0]))
    ]
    for index, cells in enumerate(rows):
        padded = [cell.ljust(width) for cell, width in zip(cells, widths, strict=True)]
        yield f"| {' | '.join(padded)} |"
        if not index:
            yield f"|{'|'.join('-' * (width + 2) for width in widths)}|"


def number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def factor(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.2f}"
