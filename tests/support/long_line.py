"""Two machines with a long line between: late, lossy, slow, as a test sets it.

    line = LongLine(near, far, delay_ms=50, loss_percent=1, mbit=8)
    server = far.serve(listen=f"{FAR}:0")
    near.up(server.join, "--tcp", "8000")
    line.set("rate", 2)

Programs that the two machines start are in networks of their own from then on; so are
sockets that a test makes by ``line.near.inside`` and ``line.far.inside``.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import pytest
from support import packets
from support.namespaces import Network, only_as_root
from support.packets import FAR, NEAR
from support.processes import WAIT_S

if TYPE_CHECKING:
    from support.processes import Machine

__all__ = ["FAR", "NEAR", "LongLine", "Passed"]


class Passed(NamedTuple):
    """What became of the packets so far, both ways."""

    passed: int
    lost: int
    dropped: int
    """The router had no room for them."""


class LongLine:
    """The line and its two ends; a test is skipped, and says so, where none can be.

    Args:
        near: the machine with the address ``NEAR``, of the client as a rule.
        far: that with ``FAR``.
        delay_ms: one way; the round trip is twice as long.
        loss_percent: of the packets, each way.
        mbit: what it carries each way; 0 means any amount.
    """

    def __init__(
        self,
        near: Machine,
        far: Machine,
        *,
        delay_ms: float = 0.0,
        loss_percent: float = 0.0,
        mbit: float = 0.0,
    ) -> None:
        only_as_root()
        self.near, self.far = Network(near, ":"), Network(far, ":")
        self._line = near.start(
            sys.executable, str(Path(packets.__file__)),
            str(self.near.pid), str(self.far.pid),
            "--delay-ms", str(delay_ms), "--loss-percent", str(loss_percent),
            "--mbit", str(mbit), stdin=subprocess.PIPE,
        )  # fmt: skip
        if self._line.out.first(WAIT_S) != "ready":
            pytest.skip(f"NOT TESTED: {self._line.errors().strip()}")
        self._asked = 0

    def set(self, what: Literal["delay", "loss", "rate"], value: float) -> None:
        """Change the line: ms one way, percent, or Mbit/s; for packets to come."""
        self._ask(f"{what} {value}")

    def count(self) -> Passed:
        """Count packets."""
        return Passed(*map(int, self._ask("count").split()[1:]))

    def _ask(self, words: str) -> str:
        stdin = self._line.process.stdin
        assert stdin is not None
        stdin.write(words.encode() + b"\n")
        stdin.flush()
        self._asked += 1
        return self._line.out.wait("answer", self._asked)
