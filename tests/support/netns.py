"""Networks of a test's own, for what needs addresses, routes or a resolver of its own.

A namespace lives as long as its first process, which the ``Machine`` ends. Programs are
started in it with ``command``; the test's own sockets are made there by ``inside``.
"""

from __future__ import annotations

import ctypes
import os
import threading
from typing import TYPE_CHECKING, Final, TypeVar

import pytest
from support.processes import eventually, program

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from support.processes import Machine

T = TypeVar("T")

_NEWNET: Final = 0x4000_0000


class Namespace:
    """A network, and what of the file system is told to look otherwise there.

    Args:
        machine: what is started there belongs to it.
        files: put in the place of those of the system, inside only.
        setup: a line of shell for the first process; the loopback is up by then.
    """

    def __init__(
        self,
        machine: Machine,
        files: dict[str, Path] | None = None,
        setup: str = ":",
    ) -> None:
        mounts = [f"mount --bind {path} {at}" for at, path in (files or {}).items()]
        ip = program("ip")
        steps = " && ".join([f"{ip} link set lo up", *mounts, setup])
        script = f"({steps}) && echo ready && exec sleep 600"
        first = machine.start(
            program("unshare"), "--net", "--mount", "sh", "-c", script
        )
        eventually(
            lambda: first.out.count("ready") > 0 or first.process.poll() is not None,
            "a namespace is there",
        )
        if first.process.poll() is not None:
            pytest.skip(f"NOT TESTED: no namespaces here: {first.errors()}")
        self.pid = first.pid
        self.command = (
            program("nsenter"), "--target", str(self.pid), "--net", "--mount"
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
