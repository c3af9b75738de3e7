"""The questions: which loads answer each, and how the peers take turns."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import time
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar

from benchmarks import codec
from benchmarks.apps import APP_PEERS, ASKED_BY_APPS, Apps
from benchmarks.datagrams import UDP_PEERS, Datagrams
from benchmarks.machine import BenchError, NotInstalledError
from benchmarks.names import ASKED_BY_NAME, WEB_PEERS, Browsers
from benchmarks.peers import PEERS, TUNNEL, Line, Peer, Tools

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from benchmarks.loads import Found, Loads
    from benchmarks.report import Result

T = TypeVar("T")

MORE_PEERS: Final = WEB_PEERS | APP_PEERS | UDP_PEERS
"""Those of one family each."""
KINDS: Final = PEERS | MORE_PEERS
ASKED: Final = {"names": ASKED_BY_NAME, "socks": ASKED_BY_APPS, "udp": tuple(UDP_PEERS)}
"""The peers of the families that are not for all."""
LINE_MBIT: Final = 1_000
FAMILIES: Final = {
    "main": "bulk, echo, requests and connections a second, idle",
    "size": "cost against the number of connections and the size of a transfer",
    "rtt": "one stream at a distance, its first seconds, on a line of 1 Gbit/s",
    "fair": "echo beside no, one and four bulk streams",
    "memory": "idle connections: memory and CPU of each end",
    "names": "web services by name: requests, WebSockets, idle visitors",
    "socks": "proxies for apps: SOCKS5 and HTTP CONNECT",
    "udp": "UDP services: one flow, many, and more than a slow peer carries",
    "codec": "our frames alone, without any link",
}


@dataclasses.dataclass(frozen=True)
class Load:
    """One load: its name, what it runs, and whether one round says all."""

    name: str
    run: Callable[[Peer], Found]
    once: bool = False
    line: Line | None = None


@dataclasses.dataclass
class Run:
    """One run: what it has, what it found so far, and when it must be over."""

    tools: Tools
    loads: Loads
    result: Result
    names: list[str]
    rounds: int
    ends_at: float

    def families(self, wanted: list[str]) -> None:
        """Ask these questions, one after the other."""
        loads, size = self.loads, self.loads.size
        if "main" in wanted:
            self._standing(
                "main",
                Load("idle CPU", loads.idle, once=True),
                Load("get ×1", loads.get_one),
                Load("get ×8", loads.get_eight),
                Load("put ×1", loads.put_one),
                Load("echo", loads.echo),
                Load("rr 64", loads.requests),
                Load("cps 32", loads.connections),
                Load("echo under four bulk streams", loads.echo_under_four),
                Load("tunnel --help", loads.start_up, once=True),
            )
        if "size" in wanted:
            self._standing(
                "size",
                # Transfers first: behind 10,000 connections that close at once it is
                # their end that a transfer waits for.
                *(
                    Load(f"get {n:,} B", partial(loads.transfer_of, n), once=True)
                    for n in size.transfers
                ),
                *(
                    Load(f"rr on {n:,}", partial(loads.requests_on, n), once=True)
                    for n in size.conns
                ),
            )
        if "fair" in wanted:
            self._standing(
                "fair",
                *(
                    Load(f"echo beside {n} bulk", partial(loads.echo_beside, n), True)
                    for n in (0, 1, 4)
                ),
            )
        if "rtt" in wanted:
            self._fresh(
                "rtt",
                *(
                    Load(
                        f"{ms} ms round trip",
                        partial(loads.first_seconds, ms),
                        line=Line(ms, LINE_MBIT),
                    )
                    for ms in size.round_trips_ms
                ),
            )
        if "memory" in wanted:
            self._fresh("memory", Load(f"{size.held:,} idle", loads.memory))
        self._ways(wanted)
        if "codec" in wanted:
            for figure, value in codec.figures():
                self.result.add("codec", figure, TUNNEL, value)

    def _ways(self, wanted: list[str]) -> None:
        """Ask about the ways that are no TCP port, of peers of their own."""
        loads = self.loads
        if "names" in wanted:
            browsers = Browsers(loads)
            self._standing(
                "names",
                Load("1 KiB on 64 visitors", browsers.small_on_64),
                Load("1 KiB on 1 visitor", browsers.small_on_one),
                Load("1 MiB on 8 visitors", browsers.large_on_8),
                Load("1 KiB by HTTP/2 on 8 visitors", browsers.http_2_on_8),
                Load("1 KiB by HTTP/2 on 64 visitors", browsers.http_2_on_64),
                Load("1 MiB by HTTP/2", browsers.http_2_large),
                Load("WebSocket echo", browsers.websocket),
            )
            self._fresh(
                "names",
                Load("idle visitors", browsers.idle_visitors),
                Load("idle WebSockets", browsers.idle_websockets),
            )
        if "socks" in wanted:
            apps = Apps(loads)
            self._standing(
                "socks",
                Load("SOCKS5 cps 32", apps.by_socks),
                Load("HTTP CONNECT cps 32", apps.by_connect),
                Load("SOCKS5 connect and echo", apps.first_echo),
                Load("SOCKS5 get ×1", apps.bulk),
            )
        if "udp" in wanted:
            datagrams = Datagrams(loads)
            self._standing(
                "udp",
                Load("UDP echo", datagrams.echo),
                Load("UDP on flows", datagrams.flows),
                Load("UDP flood", datagrams.flood),
            )

    def _standing(self, family: str, *loads: Load) -> None:
        """Run every load through peers that all stand, one at a time, in turns."""
        with self._started(family) as peers:
            standing = Standing(self, family)
            for round_ in range(self.rounds):
                for index, load in enumerate(loads):
                    if round_ and load.once:
                        continue
                    for peer in turned(peers, round_ + index):
                        standing.measure(load, peer, round_)

    @contextlib.contextmanager
    def _started(self, family: str) -> Iterator[list[Peer]]:
        with contextlib.ExitStack() as stack:
            peers = []
            for name in self.present(family):
                peer = KINDS[name](self.tools)
                stack.callback(peer.stop)
                say(f"{family}: starting {peer.label}")
                try:
                    peer.start()
                    peer.pause()
                except BenchError as error:
                    peer.stop()
                    self._missing(name, error)
                else:
                    peers.append(peer)
            yield peers

    def _fresh(self, family: str, *loads: Load) -> None:
        """Run every load through a peer that was started for it, and stands alone."""
        for index, load in enumerate(loads):
            for name in turned(self.present(family), index):
                peer = KINDS[name](self.tools, load.line)
                say(f"{family}: {load.name}, {peer.label}")
                try:
                    self.check_time()
                    peer.start()
                    for figure, value in load.run(peer).items():
                        self.result.add(family, figure, name, value)
                except NotInstalledError as error:
                    self._missing(name, error)
                except BenchError as error:
                    self.result.fail(family, load.name, name, str(error))
                finally:
                    peer.stop()

    def present(self, family: str) -> list[str]:
        """Return the peers that are there and can carry the loads of a family."""
        wanted = ASKED.get(family, PEERS)
        return [
            name
            for name in self.names
            if name in wanted and not self.result.missing(name)
        ]

    def _missing(self, name: str, error: BenchError) -> None:
        self.result.peers[name]["missing"] = str(error)

    def check_time(self) -> None:
        if time.monotonic() > self.ends_at:
            raise BenchError("not measured: the time of the whole run was over")


class Standing:
    """Peers that stand, all stopped but the one that is measured."""

    def __init__(self, run: Run, family: str) -> None:
        self._run = run
        self._family = family
        self._broken: set[tuple[str, str]] = set()
        self._gone: dict[str, str] = {}

    def measure(self, load: Load, peer: Peer, round_: int) -> None:
        """Run a load; one that failed is not tried again with the same peer."""
        key = (load.name, peer.name)
        if key in self._broken:
            return
        say(f"{self._family}: round {round_ + 1}, {load.name}, {peer.label}")
        result = self._run.result
        try:
            self._run.check_time()
            if why := self._gone.get(peer.name):
                raise BenchError(why)
            peer.resume()
            for figure, value in load.run(peer).items():
                result.add(self._family, figure, peer.name, value, round_=round_)
        except BenchError as error:
            self._broken.add(key)
            result.fail(self._family, load.name, peer.name, str(error))
            self._start_again(peer)
        finally:
            peer.pause()

    def _start_again(self, peer: Peer) -> None:
        """Give a peer that failed a new start, so that it fails one load only."""
        if peer.name in self._gone or time.monotonic() > self._run.ends_at:
            return
        peer.stop()
        try:
            peer.start()
        except BenchError as error:
            peer.stop()
            self._gone[peer.name] = f"did not start again: {error}"


def turned(items: list[T], by: int) -> list[T]:
    """Return the items in the same circle, beginning with another."""
    first = by % len(items) if items else 0
    return items[first:] + items[:first]


def say(text: str) -> None:
    """Show what goes on, on one line of a terminal; say nothing to a file."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)
