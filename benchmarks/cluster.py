"""What a cluster of 100 nodes would cost, by calculation from what is measured here.

    python -m benchmarks.cluster [--names 1000000] [--clients 100000] [--nodes 100]

Starts a Redis and a node in this process, measures what a name, a claim and a change
that is heard cost, and multiplies. What it prints are one machine's numbers; the shape
of the result, where it grows with what, is the same on others.
"""

from __future__ import annotations

import argparse
import gc
import resource
import shutil
import socket
import subprocess
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

from tunnel.center.cluster.redis import RedisDirectory
from tunnel.center.cluster.redis_link import Times
from tunnel.center.cluster.uses import EVERY_S

if TYPE_CHECKING:
    from collections.abc import Iterator

ROUNDS = 2_000
"""Names that are claimed to measure one."""
SECRET = bytes(32)
ENTRY = b'{"user": "ann", "session": "%s", "client": "0123abcd", "entry": "%s"}' % (
    b"0" * 32,
    b"A" * 60,
)
"""What a node says of a name: of the usual size."""
VISITOR_LINK_BYTES = 30_000
"""Of a peer link at each end: what a link costs at rest."""
LINE_BYTES_S = 125_000_000
"""What Redis can send over a line of 1 Gbit/s."""


@dataclass
class Measured:
    """What was measured."""

    claims_s: float = 0.0
    """Claims that one node makes in a second, one after another."""
    redis_claim_s: float = 0.0
    """Processor time of Redis for one."""
    redis_look_up_s: float = 0.0
    """The same of a name that is looked up."""
    heard_s: float = 0.0
    """Processor time of a node for one change that it hears."""
    claim_bytes: float = 0.0
    """Memory of Redis for a name."""
    message_bytes: float = 0.0
    """What a change of a name is on the wire, to each node."""


@contextmanager
def redis() -> Iterator[tuple[str, int]]:
    """Run a Redis; give its URL and its process."""
    program = shutil.which("redis-server")
    if program is None:
        raise SystemExit("redis-server is not installed")
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        running = subprocess.Popen(
            [program, "--port", str(port), "--dir", folder, "--save", ""],
            stdout=subprocess.DEVNULL,
        )
        try:
            while True:
                try:
                    socket.create_connection(("127.0.0.1", port)).close()
                    break
                except OSError:
                    time.sleep(0.05)
            yield f"redis://127.0.0.1:{port}/0", port
        finally:
            running.kill()
            running.wait()


def info(port: int, section: str, *keys: str) -> list[float]:
    """Return numbers that Redis gives about itself."""
    with socket.create_connection(("127.0.0.1", port)) as sock:
        sock.sendall(f"INFO {section}\r\n".encode())
        with sock.makefile("rb") as file:
            size = int(file.readline().removeprefix(b"$"))
            said = file.read(size).decode()
    found = dict(line.split(":", 1) for line in said.splitlines() if ":" in line)
    return [float(found[key]) for key in keys]


def redis_cpu(port: int) -> float:
    """Return the processor seconds of Redis so far."""
    return sum(info(port, "cpu", "used_cpu_user", "used_cpu_sys"))


def own_cpu() -> float:
    """Return those of this process."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


async def measure(url: str, port: int) -> Measured:
    """Measure on a Redis that is ours alone."""
    found = Measured()
    times = Times()
    async with trio.open_nursery() as nursery:
        one = RedisDirectory(url, "one.1", "127.0.0.1:1", SECRET, times=times)
        await nursery.start(one.run)
        (memory,) = info(port, "memory", "used_memory")
        cpu, began = redis_cpu(port), time.perf_counter()
        for number in range(ROUNDS):
            key = f"3:name-{number:06}.example.org"
            await one.claim(f"one.1/{number}", {key: ENTRY}, {key: 0})
        found.claims_s = ROUNDS / (time.perf_counter() - began)
        found.redis_claim_s = (redis_cpu(port) - cpu) / ROUNDS
        (later,) = info(port, "memory", "used_memory")
        found.claim_bytes = (later - memory) / ROUNDS
        cpu = redis_cpu(port)
        for number in range(ROUNDS):
            await one.look_up([f"3:name-{number:06}.example.org"])
        found.redis_look_up_s = (redis_cpu(port) - cpu) / ROUNDS
        # What is heard, without what is said: as one message of another node.
        claim = {f"one.1/{0}": ENTRY}
        messages = [one._claims.message(f"3:n{n}.test", claim) for n in range(ROUNDS)]
        found.message_bytes = sum(map(len, messages)) / ROUNDS + 60
        gc.collect()
        begun = own_cpu()
        for message in messages:
            one.hear(message)
        found.heard_s = (own_cpu() - begun) / ROUNDS
        nursery.cancel_scope.cancel()
    return found


def report(found: Measured, names: int, clients: int, nodes: int) -> str:
    """Return the calculation as text."""
    times, each = Times(), names / clients
    dead = max(nodes // 10, 1)
    moved = clients * dead / nodes
    claims = moved * (1 + each)
    redis_s = claims * (found.redis_claim_s + found.redis_look_up_s)
    line_s = claims * found.message_bytes * nodes / LINE_BYTES_S
    heard_s = claims * found.heard_s
    made_s = claims / (nodes - dead) / found.claims_s
    most = LINE_BYTES_S / (found.message_bytes * nodes)
    rows = [
        ("measured: a claim at Redis", f"{found.redis_claim_s * 1e6:.0f} µs"),
        ("measured: a look-up at Redis", f"{found.redis_look_up_s * 1e6:.0f} µs"),
        ("measured: claims a second of one node", f"{found.claims_s:,.0f}"),
        ("measured: a change heard by a node", f"{found.heard_s * 1e6:.0f} µs"),
        ("measured: a name at Redis", f"{found.claim_bytes:.0f} B"),
        ("measured: a change on the wire", f"{found.message_bytes:.0f} B"),
        ("", ""),
        ("names, clients, nodes", f"{names:,}, {clients:,}, {nodes}"),
        ("operations a second at rest", f"{nodes / times.renew:.0f} (leases)"),
        ("uses told, at most", f"{nodes / EVERY_S:.0f} messages/s, each to all nodes"),
        ("memory of Redis", f"{names * found.claim_bytes / 1e6:,.0f} MB"),
        ("peer links of a node, at most", f"{2 * (nodes - 1)}, "
         f"{2 * (nodes - 1) * VISITOR_LINK_BYTES / 1e6:.0f} MB"),
        (f"{dead} nodes die: clients that move", f"{moved:,.0f}"),
        ("  claims", f"{claims:,.0f}"),
        ("  they are noticed after", f"{times.lease:.0f} s at most (the lease)"),
        ("  processor of Redis", f"{redis_s:.1f} s"),
        ("  its line, 1 Gbit/s", f"{line_s:.1f} s"),
        ("  each node makes its claims in", f"{made_s:.1f} s"),
        ("  and hears those of all in", f"{heard_s:.1f} s of its core"),
        ("  settled after", f"{max(redis_s, line_s, made_s + heard_s):.0f} s"),
        ("it breaks at", f"{most:,.0f} claims a second of all: the line of Redis"),
        ("what would follow", "a channel for each part of the names (hash tags), to "
         "which only nodes listen that know names of it"),
    ]  # fmt: skip
    return "\n".join(f"{what:<42}{value}" for what, value in rows)


def main() -> None:
    """Measure, and print the calculation."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--names", type=int, default=1_000_000)
    parser.add_argument("--clients", type=int, default=100_000)
    parser.add_argument("--nodes", type=int, default=100)
    asked = parser.parse_args()
    with redis() as (url, port):
        found = trio.run(measure, url, port)
    print(report(found, asked.names, asked.clients, asked.nodes))


if __name__ == "__main__":
    main()
