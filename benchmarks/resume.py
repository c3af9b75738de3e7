"""What does it cost that sessions outlive their links?

Question: how much of the bulk throughput is left when every byte is kept until the
other end has it? The goal is 0.97 of what `--resume 0` gives.

Method: two `tunnel serve` on loopback, one with `--resume 0`, each with its client; a
target that sends as fast as it can, and one that swallows. Rounds alternate between the
two, the other pair is stopped (SIGSTOP) meanwhile, every second round begins with the
other. The ratio is the median of the rounds' ratios, so a machine that gets slower in
the middle does not bend it. With `--delay-ms` and `--mbit` the links go through the
lossy relay of the tests: then the relay's own speed is the ceiling.

Command: python benchmarks/resume.py [--rounds N] [--mib N] [--plain] [--streams N]
                                     [--delay-ms N] [--mbit N]
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT: Final = Path(__file__).resolve().parents[1]
RELAY: Final = ROOT / "tests" / "support" / "lossy.py"
MIB: Final = 1 << 20
PIECE: Final = bytes(MIB)
UP_S: Final = 30.0


class Pair:
    """A server and its client, with a port for each direction."""

    def __init__(
        self, name: str, home: Path, given: argparse.Namespace, resume: str, target: int
    ) -> None:
        self.name = name
        self._home = home / name
        self._home.mkdir()
        self._running: list[subprocess.Popen[str]] = []
        plain = ("--plain",) if given.plain else ()
        join = self._start(
            *("-m", "tunnel", "serve", "--listen", "127.0.0.1:0"),
            *("--state", str(self._home / "server"), "--resume", resume, *plain),
        )
        if given.delay_ms or given.mbit:
            port = join.partition("#")[0].rstrip("/").rpartition(":")[2]
            line = self._start(
                *(str(RELAY), port, "--delay-ms", str(given.delay_ms)),
                *("--mbit", str(given.mbit)),
            )
            join = join.replace(f":{port}", f":{line.split()[1]}", 1)
        reach = f"127.0.0.1:0=127.0.0.1:{target}"
        entry = self._start("-m", "tunnel", "up", "--to", join, "--reach", reach)
        self.port = int(entry.split()[1].rpartition(":")[2])

    def _start(self, *args: str) -> str:
        """Start a program; give the first line that it says."""
        env = os.environ | {
            "XDG_CONFIG_HOME": str(self._home / "config"),
            "XDG_STATE_HOME": str(self._home / "state"),
            "PYTHONPATH": str(ROOT),
        }
        running = subprocess.Popen(
            [sys.executable, *args],
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self._running.append(running)
        assert running.stdout is not None
        clock = threading.Timer(UP_S, running.kill)
        clock.start()
        line = running.stdout.readline().strip()
        clock.cancel()
        if not line:
            raise SystemExit(f"{' '.join(args)} did not start")
        return line

    def send(self, number: signal.Signals) -> None:
        for running in self._running:
            running.send_signal(number)

    def close(self) -> None:
        self.send(signal.SIGKILL)
        for running in self._running:
            running.communicate()


@contextlib.contextmanager
def target() -> Iterator[int]:
    """Serve bytes: 'g' and a size gets them, 'p' and a size puts them."""

    def serve(conn: socket.socket) -> None:
        with conn:
            verb, size = conn.recv(16).split()
            left = int(size)
            if verb == b"g":
                while left:
                    left -= conn.send(memoryview(PIECE)[: min(left, MIB)])
            else:
                conn.sendall(b"!")
                while left:
                    left -= len(conn.recv(MIB))
            conn.sendall(b".")

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                conn, _ = listener.accept()
                threading.Thread(target=serve, args=(conn,), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept, daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


def transfer(port: int, verb: bytes, size: int) -> None:
    with socket.create_connection(("127.0.0.1", port)) as conn:
        conn.sendall(b"%s %14d" % (verb, size))
        if verb == b"p":
            conn.recv(1)
            for _ in range(size // MIB):
                conn.sendall(PIECE)
            conn.recv(1)
        else:
            left = size + 1
            while left:
                left -= len(conn.recv(min(left, MIB)))


def speed(pair: Pair, verb: bytes, size: int, streams: int) -> float:
    """Give MB/s of ``size`` bytes over each of so many connections."""
    pair.send(signal.SIGCONT)
    began = time.perf_counter()
    with ThreadPoolExecutor(streams) as pool:
        for done in [
            pool.submit(transfer, pair.port, verb, size) for _ in range(streams)
        ]:
            done.result()
    took_s = time.perf_counter() - began
    pair.send(signal.SIGSTOP)
    return size * streams / took_s / 1e6


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--mib", type=int, default=256)
    parser.add_argument("--streams", type=int, default=1)
    parser.add_argument("--plain", action="store_true")
    parser.add_argument("--delay-ms", type=float, default=0.0)
    parser.add_argument("--mbit", type=float, default=0.0)
    given = parser.parse_args()
    size = given.mib * MIB
    with contextlib.ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        port = stack.enter_context(target())
        pairs = []
        for name, resume in (("resume", "120s"), ("off", "0")):
            pair = Pair(name, home, given, resume, port)
            stack.callback(pair.close)
            pair.send(signal.SIGSTOP)
            pairs.append(pair)
        print("direction  resume MB/s  off MB/s  ratio, median (min..max)")
        for verb, word in ((b"g", "get"), (b"p", "put")):
            found: dict[str, list[float]] = {pair.name: [] for pair in pairs}
            for number in range(given.rounds + 1):
                for pair in pairs if number % 2 else pairs[::-1]:
                    value = speed(pair, verb, size, given.streams)
                    if number:  # the first round warms up
                        found[pair.name].append(value)
            ratios = [
                on / off for on, off in zip(found["resume"], found["off"], strict=True)
            ]
            spread = f"{min(ratios):.2f}..{max(ratios):.2f}"
            print(
                f"{word:9}  {statistics.median(found['resume']):11.0f}"
                f"  {statistics.median(found['off']):8.0f}"
                f"  {statistics.median(ratios):.3f} ({spread})"
            )


if __name__ == "__main__":
    main()
