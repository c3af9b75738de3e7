"""A machine that vanishes without a packet: two network namespaces and a wire.

``HERE`` stays; ``FAR`` can be made to send nothing any more. Sockets of either are made
by a thread that has gone there, and are then anybody's.
"""

from __future__ import annotations

import ctypes
import os
import socket
import subprocess
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
from support.processes import program

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

HERE: Final = "10.77.0.1"
FAR: Final = "10.77.0.2"
_FAR_MAC: Final = "02:00:00:00:00:02"
_CLONE_NEWNET: Final = 0x40000000


class Wire:
    """Two namespaces, each with loopback and one address for the other."""

    def __init__(self) -> None:
        self._ip = program("ip")
        self._names = {
            HERE: f"tunnel-{os.getpid()}-here",
            FAR: f"tunnel-{os.getpid()}-far",
        }

    def inside(self, *argv: str) -> tuple[str, ...]:
        """Give a command that runs ``argv`` where nobody vanishes."""
        return (self._ip, "netns", "exec", self._names[HERE], *argv)

    def open(self) -> None:
        here, far = self._names.values()
        try:
            self._run("netns", "add", here)
            self._run("netns", "add", far)
            pair = f"v0 type veth peer name v1 address {_FAR_MAC} netns {far}"
            self._run("-n", here, "link", "add", *pair.split())
        except subprocess.CalledProcessError as error:
            self.close()
            why = error.stderr.decode().strip()
            pytest.skip(f"NOT TESTED: no network namespaces on this machine: {why}")
        for name, device, address in ((here, "v0", HERE), (far, "v1", FAR)):
            self._run("-n", name, "link", "set", "lo", "up")
            self._run("-n", name, "address", "add", f"{address}/24", "dev", device)
            self._run("-n", name, "link", "set", device, "up")
        # A router on the way would not say either that nobody is behind it.
        self._run("-n", here, "neighbour", "replace", FAR, "lladdr", _FAR_MAC,
                  "dev", "v0", "nud", "permanent")  # fmt: skip

    def close(self) -> None:
        for name in self._names.values():
            subprocess.run((self._ip, "netns", "del", name), check=False,
                           capture_output=True)  # fmt: skip

    def vanish(self) -> None:
        """Have the far machine hear, and say nothing any more: not even no."""
        self._run("-n", self._names[FAR], "route", "add", "blackhole", f"{HERE}/32")

    def connect(self, at: str, port: int, to: str = HERE) -> socket.socket:
        """Connect from ``at``; who calls this closes it."""
        return self._there(at, lambda: socket.create_connection((to, port), 10))

    def listen(self, at: str, host: str = "") -> socket.socket:
        """Listen at ``at`` on a free port; who calls this closes it."""
        return self._there(at, lambda: socket.create_server((host or at, 0)))

    def _there(self, at: str, make: Callable[[], socket.socket]) -> socket.socket:
        made: list[socket.socket] = []
        faults: list[OSError] = []

        def go() -> None:
            try:
                with Path("/run/netns", self._names[at]).open() as namespace:
                    libc = ctypes.CDLL(None, use_errno=True)
                    if libc.setns(namespace.fileno(), _CLONE_NEWNET):
                        raise OSError(ctypes.get_errno(), "setns")
                made.append(make())
            except OSError as error:
                faults.append(error)

        thread = threading.Thread(target=go)
        thread.start()
        thread.join()
        if faults:
            raise faults[0]
        made[0].settimeout(20)
        return made[0]

    def _run(self, *arguments: str) -> None:
        subprocess.run((self._ip, *arguments), check=True, capture_output=True)


@contextmanager
def wire() -> Iterator[Wire]:
    """Lay a wire for one test."""
    made = Wire()
    made.open()
    try:
        yield made
    finally:
        made.close()
