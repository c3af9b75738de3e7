"""A machine that vanishes without a packet: two namespaces and a wire.

``HERE`` stays; ``FAR`` can be made to send nothing any more. Sockets of either are made
there, and are then anybody's.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Final

from support.namespaces import Namespace, only_as_root

if TYPE_CHECKING:
    from support.processes import Machine

HERE: Final = "10.77.0.1"
FAR: Final = "10.77.0.2"
_FAR_MAC: Final = "02:00:00:00:00:02"


class Wire:
    """Two namespaces, each with loopback and one address for the other.

    Args:
        machine: they end with it at the latest.
    """

    def __init__(self, machine: Machine) -> None:
        only_as_root()
        self._machine = machine
        self._at = {HERE: Namespace(machine), FAR: Namespace(machine)}
        pair = f"v0 type veth peer name v1 address {_FAR_MAC} netns {self._at[FAR].pid}"
        self._ip(HERE, f"link add {pair}")
        for address, device in ((HERE, "v0"), (FAR, "v1")):
            self._ip(address, f"address add {address}/24 dev {device}")
            self._ip(address, f"link set {device} up")
        # A router on the way would not say either that nobody is behind it.
        never = f"lladdr {_FAR_MAC} dev v0 nud permanent"
        self._ip(HERE, f"neighbour replace {FAR} {never}")

    def inside(self, *argv: str) -> tuple[str, ...]:
        """Give a command that runs ``argv`` where nobody vanishes."""
        return (*self._at[HERE].enter, *argv)

    def vanish(self) -> None:
        """Have the far machine hear, and say nothing any more: not even no."""
        self._ip(FAR, f"route add blackhole {HERE}/32")

    def connect(self, at: str, port: int, to: str = HERE) -> socket.socket:
        """Connect from ``at``; who calls this closes it."""
        made = self._at[at].inside(lambda: socket.create_connection((to, port), 10))
        made.settimeout(20)
        return made

    def listen(self, at: str, host: str = "") -> socket.socket:
        """Listen at ``at`` on a free port; who calls this closes it."""
        made = self._at[at].inside(lambda: socket.create_server((host or at, 0)))
        made.settimeout(20)
        return made

    def _ip(self, at: str, words: str) -> None:
        done = self._machine.run(*self._at[at].enter, "ip", *words.split())
        assert done.returncode == 0, done.stderr.decode()
