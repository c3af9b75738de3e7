"""The loads: each drives the C program ``load.c`` through one peer.

A load is a function of a peer that returns what it found, by figure. The unit is what
follows the last comma of a figure's name; with MB/s, GB/s and /s more is better, with
all others less.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import time
from typing import Final

from benchmarks import machine
from benchmarks.machine import BenchError, Program
from benchmarks.peers import Peer, Tunnel

Found = dict[str, float]

ENDLESS_BYTES: Final = 10**12
SETTLE_S: Final = 0.5
FIRST_BYTES: Final = 16_000_000
"""The first bulk transfer of a peer: what it takes says how long the next may be."""
LEAST_BYTES: Final = 1_000_000
MOST_BYTES: Final = 8_000_000_000
WARM_CONNS: Final = 50
MANY_CONNS: Final = 10_000
RTT_MS: Final = 5_000


@dataclasses.dataclass(frozen=True)
class Size:
    """How much of each load one turn is."""

    ms: int
    cps_ms: int
    idle_s: float
    timeout_s: float
    conns: tuple[int, ...]
    transfers: tuple[int, ...]
    held: int
    web_held: int
    round_trips_ms: tuple[int, ...]


FULL: Final = Size(
    ms=1_200,
    cps_ms=3_000,
    idle_s=2.0,
    timeout_s=30.0,
    conns=(1, 10, 100, 1_000, 10_000),
    transfers=(10**3, 10**4, 10**5, 10**6, 10**7, 10**8, 10**9),
    held=10_000,
    web_held=2_000,
    round_trips_ms=(0, 20, 100),
)
QUICK: Final = Size(
    ms=400,
    cps_ms=400,
    idle_s=1.0,
    timeout_s=8.0,
    conns=(1, 10, 100, 1_000),
    transfers=(10**3, 10**5, 10**7),
    held=1_000,
    web_held=1_000,
    round_trips_ms=(100,),
)


class Loads:
    """Runs ``binary``, which is ``load.c``, as long and as much as ``size`` says."""

    def __init__(self, binary: str, size: Size) -> None:
        self._binary = binary
        self.size = size
        self._rates: dict[tuple[str, str, int], float] = {}

    # Bulk

    def get_one(self, peer: Peer) -> Found:
        return self._bulk_and_cpu("get", peer)

    def put_one(self, peer: Peer) -> Found:
        return self._bulk_and_cpu("put", peer)

    def get_eight(self, peer: Peer) -> Found:
        rate, _ = self._bulk("get", peer, 8)
        return {"get ×8, MB/s": rate}

    def _bulk_and_cpu(self, mode: str, peer: Peer) -> Found:
        rate, s_per_gb = self._bulk(mode, peer, 1)
        figures = {f"{mode} ×1, MB/s": rate}
        return figures | ({f"CPU {mode}, s/GB": s_per_gb} if peer.ends else {})

    def _bulk(self, mode: str, peer: Peer, streams: int) -> tuple[float, float]:
        """Return MB/s of transfers that take about as long for every peer, and CPU."""
        key = (peer.name, mode, streams)
        if key not in self._rates:
            first = self.load(mode, peer, FIRST_BYTES // streams, streams)
            self._rates[key] = first["mb_per_s"]
        most = min(self._rates[key] * self.size.ms * 1000, MOST_BYTES)
        count = max(int(most) // streams, LEAST_BYTES)
        pids = peer.pids()
        before = machine.cpu_seconds(pids)
        found = self.load(mode, peer, count, streams)
        used_s = machine.cpu_seconds(pids) - before
        self._rates[key] = found["mb_per_s"]
        return found["mb_per_s"], used_s / (count * streams / 1e9)

    # Small things

    def echo(self, peer: Peer) -> Found:
        found = self.load("echo", peer, self.size.ms)
        return {"echo p50, µs": found["p50_us"], "echo p99, µs": found["p99_us"]}

    def requests(self, peer: Peer) -> Found:
        found = self.load("rr", peer, self.size.ms, 64)
        return {"rr 64, /s": found["per_s"]}

    def connections(self, peer: Peer) -> Found:
        found = self.load("cps", peer, self.size.cps_ms, 32)
        return {"cps 32, /s": found["per_s"]}

    def echo_under_four(self, peer: Peer) -> Found:
        return self._echo_under(peer, 4, "under four bulk streams")

    def echo_beside(self, streams: int, peer: Peer) -> Found:
        return self._echo_under(peer, streams, f"beside {streams} bulk")

    def _echo_under(self, peer: Peer, streams: int, name: str) -> Found:
        if not streams:
            found = self.load("echo", peer, self.size.ms)
            return self._echo_figures(found, name)
        command = [self._binary, "get", str(peer.port), str(ENDLESS_BYTES)]
        with subprocess.Popen(
            [*command, str(streams)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as bulk:
            try:
                time.sleep(SETTLE_S)
                found = self.load("echo", peer, self.size.ms)
                if bulk.poll() is not None:
                    raise BenchError("the bulk streams ended before the echo did")
            finally:
                bulk.kill()
        return self._echo_figures(found, name)

    @staticmethod
    def _echo_figures(found: Found, name: str) -> Found:
        return {
            f"echo p50 {name}, µs": found["p50_us"],
            f"echo p99 {name}, µs": found["p99_us"],
        }

    # What it costs to be there

    def idle(self, peer: Peer) -> Found:
        time.sleep(SETTLE_S)
        percent = self._idle_percent(peer)
        return {"idle CPU, %": percent} if peer.ends else {}

    def start_up(self, peer: Peer) -> Found:
        """Time ``tunnel --help``: the median of a few, each a new process."""
        if peer.name != Tunnel.name:
            return {}
        took_ms = []
        for _ in range(5):
            began = time.perf_counter()
            command = (sys.executable, "-m", "tunnel", "--help")
            if not machine.output(*command).lower().startswith("usage"):
                raise BenchError("`tunnel --help` does not say how to use it")
            took_ms.append(1000 * (time.perf_counter() - began))
        return {"tunnel --help, ms": sorted(took_ms)[2]}

    def _idle_percent(self, peer: Peer) -> float:
        pids = peer.pids()
        before = machine.cpu_seconds(pids)
        time.sleep(self.size.idle_s)
        return 100 * (machine.cpu_seconds(pids) - before) / self.size.idle_s

    # Cost against size

    def requests_on(self, conns: int, peer: Peer) -> Found:
        machine.check_descriptors(conns if peer.multiplexed else 2 * conns)
        # every connection must get more than one turn, or the start is what is measured
        turns = 3 if conns >= MANY_CONNS else 1
        found = self.load("rr", peer, turns * self.size.ms, conns)
        return {requests_figure(conns): found["per_s"]}

    def transfer_of(self, size: int, peer: Peer) -> Found:
        found = self.load("fetch", peer, size, self.size.ms // 2)
        return {transfer_figure(size): 1000 / found["per_s"]}

    # Distance

    def first_seconds(self, round_trip_ms: int, peer: Peer) -> Found:
        found = self.load("start", peer, RTT_MS)
        mean, last = round_trip_figures(round_trip_ms)
        return {mean: found["mb_per_s"], last: found["last_mb_per_s"]}

    # Memory

    def memory(self, peer: Peer) -> Found:
        """Hold idle connections; tell what each costs both ends.

        A peer that cannot hold so many is started again, and holds half of them: one
        without multiplexing needs two descriptors for each, at both ends.
        """
        if not peer.ends:
            return {}
        held = self.size.held
        try:
            machine.check_descriptors(held if peer.multiplexed else 2 * held)
            return self._memory(peer, held)
        except BenchError:
            peer.stop()
            peer.start()
            return self._memory(peer, held // 2)

    def _memory(self, peer: Peer, held: int) -> Found:
        with self.held(peer, WARM_CONNS):
            pass
        time.sleep(SETTLE_S)
        before = self.resident(peer)
        with self.held(peer, held):
            time.sleep(SETTLE_S)
            after = self.resident(peer)
            figures = {
                f"{name}, KB per idle connection": (after[name] - size) / held / 1e3
                for name, size in before.items()
            }
            cpu = self._idle_percent(peer)
            return figures | {"held idle, connections": held, "CPU of both, %": cpu}

    def held(self, peer: Peer, count: int, mode: str = "hold") -> Held:
        log = peer.place / "hold.log"
        command = (self._binary, mode, str(peer.port), str(count))
        return Held(Program.start(log, *command, talks=True), self.size.timeout_s)

    def resident(self, peer: Peer) -> dict[str, int]:
        return {
            name: machine.resident_bytes(program.pids())
            for name, program in sorted(peer.ends.items())
        }

    def load(
        self,
        mode: str,
        peer: Peer,
        *numbers: int,
        via: tuple[str, ...] = (),
        port: int = 0,
    ) -> Found:
        """Run the program; ``via`` and ``port`` are of a proxy that is the peer."""
        where = str(port or peer.port)
        command = [self._binary, *via, mode, where, *map(str, numbers)]
        limit_s = self.size.timeout_s
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=limit_s, check=False
            )
        except subprocess.TimeoutExpired:
            raise BenchError(f"{mode}: not done in {limit_s:g} s") from None
        if done.returncode:
            raise BenchError(done.stderr.strip().removeprefix("load: "))
        found: Found = json.loads(done.stdout)
        return found


class Held:
    """Connections that ``program`` holds open while this context lasts."""

    def __init__(self, program: Program, timeout_s: float) -> None:
        self._program = program
        self._timeout_s = timeout_s

    def __enter__(self) -> None:
        try:
            self._program.first_line(self._timeout_s)
        except BaseException:
            machine.end([self._program])
            raise

    def __exit__(self, *_: object) -> None:
        machine.end([self._program])


def requests_figure(conns: int) -> str:
    return f"rr on {conns:,}, /s"


def transfer_figure(size: int) -> str:
    for unit, of in ((10**9, "GB"), (10**6, "MB"), (10**3, "KB")):
        if size >= unit:
            return f"connect and get {size // unit} {of}, ms"
    return f"connect and get {size} B, ms"


def round_trip_figures(round_trip_ms: int) -> tuple[str, str]:
    name = f"{round_trip_ms} ms round trip"
    return f"{name}: first {RTT_MS // 1000} s, MB/s", f"{name}: the last of them, MB/s"


def more_is_better(figure: str) -> bool:
    return figure.rpartition(", ")[2] in {"MB/s", "GB/s", "/s"}
