"""UDP services: the peers that carry datagrams, and the loads of their flows."""

from __future__ import annotations

import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from benchmarks.peers import LOCAL, Chisel, Direct, Frp, Peer, Tunnel

if TYPE_CHECKING:
    from benchmarks.loads import Found, Loads

BY_UDP: Final = "udp"
UDP_DIRECT: Final = "udp-direct"
FRP_UDP: Final = "frp-udp"
CHISEL_UDP: Final = "chisel-udp"
FLOWS: Final = 32
RATE: Final = 20_000
LARGE_BYTES: Final = 1_200
FLOOD_MS: Final = 3_000


class DatagramPeer(Peer):
    """A peer whose target echoes datagrams."""

    target_mode = "udp-target"

    def ready(self) -> bool:
        """Tell whether a datagram comes back."""
        with (
            suppress(OSError),
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as visitor,
        ):
            visitor.settimeout(0.5)
            visitor.connect((LOCAL, self.port))
            visitor.send(b"?")
            return visitor.recv(2) == b"?"
        return False


class UdpDirect(DatagramPeer, Direct):
    name = UDP_DIRECT

    def launch(self) -> None:
        self.port = self.target_port


class TunnelUdp(DatagramPeer, Tunnel):
    name = BY_UDP
    label = "tunnel udp"
    mode = "as tunnel, a UDP service"

    def launch(self) -> None:
        entry = f"{self.port}={LOCAL}:{self.target_port}"
        self.publish(("--ports", f"{self.port}-{self.port}"), ("--udp", entry))


class FrpUdp(DatagramPeer, Frp):
    name = FRP_UDP
    label = "frp, type udp"
    mode = "as frp, a UDP service"

    def proxy(self) -> str:
        return f'type = "udp"\nremotePort = {self.port}\n'


class ChiselUdp(DatagramPeer, Chisel):
    name = CHISEL_UDP
    label = "chisel, udp"
    mode = "as chisel, a UDP service"

    def forward(self) -> str:
        return f"{super().forward()}/udp"


UDP_PEERS: Final[dict[str, type[Peer]]] = {
    kind.name: kind for kind in (UdpDirect, TunnelUdp, FrpUdp, ChiselUdp)
}


class Datagrams:
    """The loads of UDP, run by the program of ``loads``."""

    def __init__(self, loads: Loads) -> None:
        self._loads = loads

    def echo(self, peer: Peer) -> Found:
        found = self._loads.load("udp-echo", peer, self._loads.size.ms)
        return {
            "UDP echo p50, µs": found["p50_us"],
            "UDP echo p99, µs": found["p99_us"],
        }

    def flows(self, peer: Peer) -> Found:
        found = self._loads.load("udp-flows", peer, self._loads.size.ms, FLOWS)
        return {f"UDP on {FLOWS} flows, /s": found["per_s"]}

    def flood(self, peer: Peer) -> Found:
        """Send more than a slow peer carries, and see what of it comes back."""
        numbers = (FLOOD_MS, RATE, LARGE_BYTES)
        found = self._loads.load("udp-flood", peer, *numbers)
        return {f"UDP back of {RATE:,}/s of {LARGE_BYTES:,} B, %": 100 * found["share"]}
