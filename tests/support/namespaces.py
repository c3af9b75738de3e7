"""Machines with other addresses than this one: a network namespace for a test."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Final

import pytest
from support.processes import WAIT_S, program

if TYPE_CHECKING:
    import subprocess

    from support.processes import Machine

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


class Network:
    """The addresses of another machine; ends with ``machine`` at the latest.

    Args:
        machine: whose ``tunnel`` commands run there from now on.
        setup: shell words that give it its addresses.
    """

    def __init__(self, machine: Machine, setup: str) -> None:
        user = () if os.geteuid() == 0 else ("--user", "--map-root-user")
        script = f"({setup}) && echo ready || exit 77; exec sleep 600"
        holder = machine.start(
            program("unshare"), *user, "--net", "sh", "-c", script,
            env={"PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"},
        )  # fmt: skip
        lines = holder.out.first(WAIT_S)
        if lines != "ready":
            why = holder.errors().strip()
            pytest.skip(f"NOT TESTED: no network namespace on this machine: {why}")
        into = ("--preserve-credentials", "--user") if user else ()
        self.enter: tuple[str, ...] = (
            program("nsenter"), *into, "--target", str(holder.pid), "--net",
        )  # fmt: skip
        """What starts a program there."""
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
