"""How fast is the whole chain, beside every other tunnel on this machine?

Question: what do a visitor's bytes, requests and connections cost on their way load
program -> one end -> link -> other end -> target, as ratios that hold on any machine?

Method: a load program in C is compiled on the spot, and so is a relay that delays; they
cost less than what they measure. Every peer on PATH is started on loopback with keys,
ports and a target of its own, in its fastest fair mode. Each load runs through every
peer in turn, then comes the next load; rounds and loads begin with another peer each
time, and the processes of all other peers are stopped (SIGSTOP) meanwhile. A ratio is
the median of the rounds' ratios, so a machine that gets slower in the middle does not
bend it. Bulk transfers are as large as the peer needs to be busy for a while. A load
that fails is a row that says why, its peer is started again, and the load is not tried
again; a peer that is missing is a row that says why. The distances are those of a
relay: it delays bytes and has a rate, but neither loses nor reorders. Resident memory
is what idle connections add to each end, after the first fifty. "CPU, s/GB" is
user and system time of both ends. No tunnel at all is bounded, in connections a second,
by the kernel's ports: the longer it runs, the slower; compare full runs with full runs.

Families: main, size, rtt, fair, memory, names, socks, udp, codec;
--help says what each asks.

Command:  python -m benchmarks            everything, about a quarter of an hour
          python -m benchmarks --quick    the main table only, less than two minutes
          --family main,size  --peers tunnel,openssh  --rounds N  --out DIR
Writes result.json, result.md and chart.svg into DIR (--out), and prints the table.
`--draw FILE` makes table and chart again from a result.json.
Exit status: 0; 1 when nothing could be measured, or when this project's own tunnel is
missing in it.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

from benchmarks import chart, machine, report
from benchmarks.families import FAMILIES, KINDS, MORE_PEERS, Run, say
from benchmarks.loads import FULL, QUICK, Loads
from benchmarks.peers import DEFAULT, EXTRA, TUNNEL, Tools
from benchmarks.report import Result

QUICK_S: Final = 95.0
"""After that a quick run measures nothing more; the rest is for ending what runs."""
FULL_S: Final = 3600.0


def arguments() -> argparse.Namespace:
    """Read the command line."""
    question, _, method = (__doc__ or "").partition("\n")
    families = "\n".join(f"  {name:8}{asks}" for name, asks in FAMILIES.items())
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=question,
        epilog=f"families:\n{families}\n{method}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="less than two minutes")
    parser.add_argument("--rounds", type=int, help="default 3, with --quick 1")
    parser.add_argument(
        "--family", metavar="A,B", help="default all, with --quick main"
    )
    parser.add_argument(
        "--peers",
        metavar="A,B",
        default=",".join((*DEFAULT, *MORE_PEERS)),
        help=f"of {', '.join(KINDS)}; default all but {', '.join(EXTRA)}",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", default=Path("bench-out"))
    parser.add_argument("--draw", type=Path, metavar="FILE", help="measure nothing")
    given = parser.parse_args()
    default = "main" if given.quick else ",".join(FAMILIES)
    given.family = listed(parser, given.family or default, list(FAMILIES))
    given.peers = listed(parser, given.peers, list(KINDS))
    given.rounds = given.rounds or (1 if given.quick else 3)
    if given.rounds < 1:
        parser.error("--rounds must be 1 or more")
    return given


def listed(parser: argparse.ArgumentParser, names: str, known: list[str]) -> list[str]:
    """Split ``names``; return them in the order of ``known``."""
    wanted = set(names.split(","))
    if unknown := wanted - set(known):
        parser.error(f"{', '.join(unknown)}: not one of {', '.join(known)}")
    return [name for name in known if name in wanted]


def main() -> int:
    """Measure, write and print."""
    given = arguments()
    if given.draw:
        result = Result.read(given.draw)
    else:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, stop)
        machine.raise_limits()
        result = Result(about=machine.about(), quick=given.quick)
        result.about["rounds"] = str(given.rounds)
        try:
            measure(given, result)
        except machine.BenchError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        say("")
    given.out.mkdir(parents=True, exist_ok=True)
    if not given.draw:
        result.write(given.out / "result.json")
    table = report.text(result)
    (given.out / "result.md").write_text(table)
    (given.out / "chart.svg").write_text(chart.svg(result))
    print(table)
    print(f"written: {given.out}/result.json, result.md, chart.svg")
    return 1 if TUNNEL in result.peers and result.missing(TUNNEL) else 0


def measure(given: argparse.Namespace, result: Result) -> None:
    """Build the tools and ask every family."""
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        place = stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-"))
        directory = Path(place)
        load, relay = (machine.compile_c(name, directory) for name in ("load", "relay"))
        for name in given.peers:
            result.peers[name] = KINDS[name].describe()
        loads = Loads(load, QUICK if given.quick else FULL)
        ends_at = began + (QUICK_S if given.quick else FULL_S)
        tools = Tools(directory, load, relay)
        run = Run(tools, loads, result, given.peers, given.rounds, ends_at)
        run.families(given.family)
    result.about["took"] = f"{time.monotonic() - began:.0f} s"


def stop(number: int, frame: object) -> None:
    """Turn the first signal into an exception, so that all is ended on the way out."""
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, signal.SIG_IGN)
    print("\nending what runs", file=sys.stderr)
    raise SystemExit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
