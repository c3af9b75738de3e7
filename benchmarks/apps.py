"""Proxies for the apps of one machine: the peers that are one, and the loads of apps.

All reach the same target. An app speaks SOCKS5 as curl does, one message after the
other, or HTTP CONNECT where the peer can. What some peers promise before the target is
reached counts for nothing: a connect is over when its first echo is there.
"""

from __future__ import annotations

import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from benchmarks.peers import (
    DIRECT,
    LOCAL,
    SECRET,
    Chisel,
    Frp,
    OpenSSH,
    Peer,
    Shadowsocks,
    Tunnel,
    free_port,
)

if TYPE_CHECKING:
    from benchmarks.loads import Found, Loads

BY_SOCKS: Final = "socks"
SSH_D: Final = "openssh-d"
SOCKS5: Final = "socks5"
CONNECT: Final = "connect"
_GREETING: Final = b"\5\1\0"


class Proxy(Peer):
    """A peer whose ``port`` is a SOCKS5 proxy, and maybe more."""

    speaks: tuple[str, ...] = (SOCKS5,)

    def proxy_port(self, _speech: str) -> int:
        """Return the port that takes this speech."""
        return self.port

    def ready(self) -> bool:
        """Tell whether an echo comes back through the proxy."""
        request = b"\5\1\0\1" + socket.inet_aton(LOCAL)
        request += self.target_port.to_bytes(2, "big")
        with (
            suppress(OSError),
            socket.create_connection((LOCAL, self.port), 2.0) as app,
        ):
            app.settimeout(2.0)
            app.sendall(_GREETING)
            if app.recv(2) != b"\5\0":
                return False
            app.sendall(request)
            if app.recv(64)[:2] != b"\5\0":
                return False
            app.sendall(b"E?")
            return app.recv(1) == b"?"
        return False


class TunnelSocks(Proxy, Tunnel):
    name = BY_SOCKS
    label = "tunnel socks"
    mode = "as tunnel, a proxy at the client that leaves at the server"
    speaks: tuple[str, ...] = (SOCKS5, CONNECT)

    def launch(self) -> None:
        ports = f"{self.port}-{self.port}"
        self.publish(("--ports", ports), ("--socks", f"{LOCAL}:{self.port}"))


class SshD(Proxy, OpenSSH):
    name = SSH_D
    label = "OpenSSH -D"
    mode = "as OpenSSH -R, a proxy at the client"

    def forward(self) -> tuple[str, str]:
        return "-D", f"{LOCAL}:{self.port}"


class ChiselSocks(Proxy, Chisel):
    name = "chisel-socks"
    label = "chisel, socks"
    mode = "as chisel, its socks at the client"
    server_options: tuple[str, ...] = ("--socks5",)

    def forward(self) -> str:
        return f"{LOCAL}:{self.port}:socks"


class FrpSocks(Proxy, Frp):
    name = "frp-socks"
    label = "frp, its plugins"
    mode = "as frp, plugins socks5 and http_proxy"
    speaks: tuple[str, ...] = (SOCKS5, CONNECT)
    _http_port = 0

    def proxy_port(self, speech: str) -> int:
        return self.port if speech == SOCKS5 else self._http_port

    def proxies(self) -> str:
        self._http_port = free_port()
        ways = ((self.port, "socks5"), (self._http_port, "http_proxy"))
        return "".join(
            f'[[proxies]]\nname = "{plugin}"\ntype = "tcp"\nremotePort = {port}\n'
            f'[proxies.plugin]\ntype = "{plugin}"\n'
            for port, plugin in ways
        )


class ShadowsocksLocal(Proxy, Shadowsocks):
    name = "ss-local"
    label = "ss-local"
    needs: tuple[str, ...] = ("ss-server", "ss-local")

    def launch(self) -> None:
        server, local = self.paths
        port = free_port()
        common = ("-k", SECRET, "-m", "aes-256-gcm", "-t", "600", "--no-delay")
        self.run("server", server, "-s", LOCAL, "-p", str(port), *common)
        far = ("-s", LOCAL, "-p", str(self.dial(port)))
        near = ("-b", LOCAL, "-l", str(self.port))
        self.run("client", local, *far, *near, *common)


class Microsocks(Proxy):
    name = "microsocks"
    label = "microsocks alone"
    mode = "a proxy on this machine, not encrypted"
    needs: tuple[str, ...] = ("microsocks",)

    def launch(self) -> None:
        (microsocks,) = self.paths
        self.run("server", microsocks, "-i", LOCAL, "-p", str(self.port))

    @classmethod
    def version(cls) -> str:
        return "unknown"  # it cannot say


APP_PEERS: Final[dict[str, type[Peer]]] = {
    kind.name: kind
    for kind in (
        *(TunnelSocks, SshD, ChiselSocks, FrpSocks),
        *(ShadowsocksLocal, Microsocks),
    )
}
ASKED_BY_APPS: Final = (DIRECT, *APP_PEERS)


class Apps:
    """The loads of apps, run by the program of ``loads``."""

    def __init__(self, loads: Loads) -> None:
        self._loads = loads

    def by_socks(self, peer: Peer) -> Found:
        return self._connections(peer, SOCKS5, "SOCKS5 cps 32, /s")

    def by_connect(self, peer: Peer) -> Found:
        return self._connections(peer, CONNECT, "HTTP CONNECT cps 32, /s")

    def first_echo(self, peer: Peer) -> Found:
        found = self._load(peer, SOCKS5, "first", self._loads.size.ms)
        return {
            "SOCKS5 connect and echo p50, µs": found["p50_us"],
            "SOCKS5 connect and echo p99, µs": found["p99_us"],
        }

    def bulk(self, peer: Peer) -> Found:
        """Take one stream for so long, after its first second."""
        found = self._load(peer, SOCKS5, "start", 1000 + self._loads.size.ms)
        return {"SOCKS5 get ×1, MB/s": found["last_mb_per_s"]}

    def _connections(self, peer: Peer, speech: str, figure: str) -> Found:
        if isinstance(peer, Proxy) and speech not in peer.speaks:
            return {}
        found = self._load(peer, speech, "cps", self._loads.size.cps_ms, 32)
        return {figure: found["per_s"]}

    def _load(self, peer: Peer, speech: str, mode: str, *numbers: int) -> Found:
        if not isinstance(peer, Proxy):
            return self._loads.load(mode, peer, *numbers)
        via = ("via", speech, str(peer.target_port))
        port = peer.proxy_port(speech)
        return self._loads.load(mode, peer, *numbers, via=via, port=port)
