"""Machines with other addresses than this one: namespaces of a test's own.

One lives as long as its first process, which the ``Machine`` ends. Programs are started
in it with ``enter``; the test's own sockets are made there by ``inside``.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from typing import TYPE_CHECKING, Final, TypeVar

import pytest
from support.processes import WAIT_S, program

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable
    from pathlib import Path

    from support.processes import Machine

T = TypeVar("T")

_NEWNET: Final = 0x4000_0000

_OUT: Final = (
    "ip link add out0 type veth peer name in0"
    " && ip link set in0 up && ip link set out0 up"
)
IPV6_ONLY: Final = (
    f"{_OUT} && ip link set lo up && ip addr del 127.0.0.1/8 dev lo"
    " && ip addr add 2001:db8::7/64 dev out0 nodad"
    " && ip -6 route add default via 2001:db8::1 dev out0"
)
"""Not even 127.0.0.1, so that whoever falls back to it is found."""
IPV4_ONLY: Final = (
    "echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6"
    f" && {_OUT} && ip link set lo up"
    " && ip addr add 192.0.2.7/24 dev out0 && ip route add default via 192.0.2.1"
)
BOTH: Final = (
    f"{_OUT} && ip link set lo up"
    " && ip addr add 192.0.2.7/24 dev out0 && ip route add default via 192.0.2.1"
    " && ip addr add 2001:db8::7/64 dev out0 nodad"
)


class Namespace:
    """A network, and what of the file system is told to look otherwise there.

    Args:
        machine: what is started there belongs to it.
        files: put in the place of those of the system, inside only.
        setup: shell words for its first process; the loopback is up by then.
    """

    def __init__(
        self,
        machine: Machine,
        files: dict[str, Path] | None = None,
        setup: str = ":",
    ) -> None:
        user = () if os.geteuid() == 0 else ("--user", "--map-root-user")
        mounts = [f"mount --bind {path} {at}" for at, path in (files or {}).items()]
        steps = " && ".join(["ip link set lo up", *mounts, setup])
        first = machine.start(
            program("unshare"), *user, "--net", "--mount", "sh", "-c",
            f"({steps}) && echo ready || exit 77; exec sleep 600",
            env={"PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"},
        )  # fmt: skip
        if first.out.first(WAIT_S) != "ready":
            pytest.skip(f"NOT TESTED: no namespaces here: {first.errors().strip()}")
        self.pid = first.pid
        into = ("--preserve-credentials", "--user") if user else ()
        self.enter: tuple[str, ...] = (
            program("nsenter"), *into, "--target", str(self.pid), "--net", "--mount",
        )  # fmt: skip
        """What a command line begins with that shall run there."""

    def inside(self, make: Callable[[], T]) -> T:
        """Call ``make`` there: the sockets that it makes stay there."""
        made: list[T] = []
        failed: list[BaseException] = []

        def run() -> None:
            try:
                with open(f"/proc/{self.pid}/ns/net", "rb") as net:
                    libc = ctypes.CDLL(None, use_errno=True)
                    if libc.setns(net.fileno(), _NEWNET):
                        raise OSError(ctypes.get_errno(), "setns")
                made.append(make())
            except BaseException as error:  # raised below, in the test's thread
                failed.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
        if failed:
            raise failed.pop()
        return made.pop()


def only_as_root() -> None:
    """Skip a test, and say so, where nobody may make namespaces."""
    if os.geteuid() != 0:
        pytest.skip("NOT TESTED: only root may make namespaces")


class Network(Namespace):
    """The addresses of another machine: ``tunnel`` commands run there from now on.

    Args:
        machine: the one.
        setup: shell words that give it its addresses.
    """

    def __init__(self, machine: Machine, setup: str) -> None:
        super().__init__(machine, setup=setup)
        self._machine = machine
        machine.command = (*self.enter, sys.executable, "-m", "tunnel")

    def run(self, *argv: str) -> subprocess.CompletedProcess[bytes]:
        """Run a program there to its end."""
        return self._machine.run(*self.enter, *argv, timeout_s=WAIT_S)

    def python(self, code: str, *args: str) -> str:
        """Run a few lines of Python there; give what they print."""
        done = self.run(sys.executable, "-c", code, *args)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode().strip()
