"""A line between two network namespaces: packets late, too many, or lost, as told.

A program of its own, as root: it makes a TUN device in each namespace and carries the
packets between them, so no kernel module for delays or losses is needed. It is told
what to do on stdin, a line at a time, each answered on stdout:

    delay MS       how long each packet takes, one way
    loss PERCENT   of the packets of each direction, by a seeded choice
    rate MBIT      what the line carries each way; 0 means any amount
    count          packets that passed, were lost, and found the router full

What no longer fits into the router in front of a line with a rate is dropped.
"""

from __future__ import annotations

import argparse
import ctypes
import fcntl
import os
import random
import select
import struct
import subprocess
import sys
import time
from collections import deque
from contextlib import suppress
from typing import Final

NEAR: Final = "10.78.0.1"
FAR: Final = "10.78.0.2"
DEVICE: Final = "line0"
MTU: Final = 1_500
ROUTER_S: Final = 0.1
"""How much a router queues, in seconds of the line's rate."""
ROUTER_BYTES: Final = 65_536
"""The same on a slow line: a first flight of packets fits."""
ANY_RATE_BYTES: Final = 16_777_216
"""What may be on its way on a line without a rate."""

_TUNSETIFF: Final = 0x4004_54CA
_TUN_WITHOUT_HEADER: Final = 0x0001 | 0x1000
_NEWNET: Final = 0x4000_0000


class Line:
    """What happens to packets; the two directions share nothing but these numbers."""

    def __init__(self, delay_s: float, loss: float, bytes_per_s: float) -> None:
        self.delay_s = delay_s
        self.loss = loss
        self.bytes_per_s = bytes_per_s
        self.passed = self.lost = self.dropped = 0


class Way:
    """One direction of the line, to the device with the descriptor ``to``."""

    def __init__(self, line: Line, to: int, seed: int) -> None:
        self._line = line
        self._to = to
        self._chance = random.Random(seed)
        self._queue: deque[tuple[float, bytes]] = deque()
        self._queued_bytes = 0
        self._free_at = 0.0

    def put(self, packet: bytes, now: float) -> None:
        """Take a packet onto its way, or lose it."""
        line, size = self._line, len(packet)
        if line.loss and self._chance.random() < line.loss:
            line.lost += 1
            return
        free_at = max(now, self._free_at)
        if line.bytes_per_s:
            waiting = (free_at - now) * line.bytes_per_s
            room = max(ROUTER_BYTES, line.bytes_per_s * ROUTER_S)
        else:
            waiting, room = self._queued_bytes, ANY_RATE_BYTES
        if waiting + size > room:
            line.dropped += 1
            return
        if line.bytes_per_s:
            free_at += size / line.bytes_per_s
        self._free_at = free_at
        self._queue.append((free_at + line.delay_s, packet))
        self._queued_bytes += size

    def deliver(self, now: float) -> None:
        """Hand over what has arrived by ``now``."""
        while self._queue and self._queue[0][0] <= now:
            _due, packet = self._queue.popleft()
            self._queued_bytes -= len(packet)
            with suppress(OSError):  # the device may be down
                os.write(self._to, packet)
            self._line.passed += 1

    def next_at(self) -> float | None:
        """Return when the next packet arrives."""
        return self._queue[0][0] if self._queue else None


def open_device(namespace: int, address: str, peer: str) -> int:
    """Make the device in the network of a process; this process is there then."""
    with open(f"/proc/{namespace}/ns/net", "rb") as net:
        libc = ctypes.CDLL(None, use_errno=True)  # os.setns is younger than 3.11
        if libc.setns(net.fileno(), _NEWNET):
            raise OSError(ctypes.get_errno(), "setns")
    number = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    request = struct.pack("16sH22x", DEVICE.encode(), _TUN_WITHOUT_HEADER)
    fcntl.ioctl(number, _TUNSETIFF, request)
    for words in (
        f"addr add {address} peer {peer} dev {DEVICE}",
        f"link set {DEVICE} mtu {MTU} up",
    ):
        subprocess.run(["ip", *words.split()], check=True)
    return number


def obey(line: Line, words: str) -> str:
    """Do what a line says; return the answer."""
    word, *rest = words.split()
    match word:
        case "delay":
            line.delay_s = float(rest[0]) / 1_000
        case "loss":
            line.loss = float(rest[0]) / 100
        case "rate":
            line.bytes_per_s = float(rest[0]) * 125_000
        case "count":
            return f"{line.passed} {line.lost} {line.dropped}"
        case _:
            raise ValueError(words)
    return "done"


def carry(line: Line, near: int, far: int) -> None:
    """Carry packets until stdin ends."""
    ways = {near: Way(line, far, 1), far: Way(line, near, 2)}
    poll = select.poll()
    told = sys.stdin.fileno()
    for number in (near, far, told):
        poll.register(number, select.POLLIN)
    unread = b""
    while True:
        due = [at for way in ways.values() if (at := way.next_at()) is not None]
        wait_ms = max(0.0, min(due) - time.monotonic()) * 1_000 if due else None
        for number, _events in poll.poll(wait_ms):
            if number == told:
                came = os.read(told, 4_096)
                if not came:
                    return
                *lines, unread = (unread + came).split(b"\n")
                for words in lines:
                    print("answer", obey(line, words.decode()), flush=True)
                continue
            with suppress(BlockingIOError):
                while True:
                    packet = os.read(number, MTU)
                    ways[number].put(packet, time.monotonic())
        now = time.monotonic()
        for way in ways.values():
            way.deliver(now)


def main() -> None:
    """Read the arguments, make the devices, and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("near", type=int, help="a process in the one namespace")
    parser.add_argument("far", type=int, help="a process in the other")
    parser.add_argument("--delay-ms", type=float, default=0.0)
    parser.add_argument("--loss-percent", type=float, default=0.0)
    parser.add_argument("--mbit", type=float, default=0.0)
    given = parser.parse_args()
    line = Line(given.delay_ms / 1_000, given.loss_percent / 100, given.mbit * 125_000)
    try:
        near = open_device(given.near, NEAR, FAR)
        far = open_device(given.far, FAR, NEAR)
    except (OSError, subprocess.SubprocessError) as error:
        sys.exit(f"no TUN device can be made here: {error}")
    print("ready", flush=True)
    carry(line, near, far)


if __name__ == "__main__":
    main()
