"""Web services by name: the peers that serve them, and the loads of browsers.

All ask for the same answers of the same target. Our own TCP port beside our own name
says what looking into each request costs; a reverse proxy without a tunnel says what
that costs a program in C.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from benchmarks import machine
from benchmarks.loads import WARM_CONNS, Loads
from benchmarks.machine import BenchError
from benchmarks.peers import DIRECT, LOCAL, TUNNEL, Frp, Peer, Tunnel, free_port

if TYPE_CHECKING:
    from benchmarks.loads import Found

HOST: Final = "bench.test"
"""The published name; ``load.c`` asks for it."""
KB: Final = 1 << 10
MB: Final = 1 << 20
WINDOWS: Final = ("-w", "22", "-W", "24")
"""Of h2load: 4 MiB a stream and 16 MiB in all, about what browsers have."""
BY_NAME: Final = "name"
FRP_BY_NAME: Final = "frp-http"
IDLE_S: Final = 6.0
"""Until an idle visitor costs what it will: what is kept for its next request, of ours
or of a target's, is given up after 4 or 5 s."""


class ByName(Peer):
    """A way by which the Host of each request decides."""

    http_2 = False
    """It speaks HTTP/2, by prior knowledge."""

    @property
    def http_2_port(self) -> int:
        """Where."""
        return self.port

    def ready(self) -> bool:
        """Tell whether the target's answer comes through ``port``."""
        request = f"GET /1 HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n"
        with (
            suppress(OSError),
            socket.create_connection((LOCAL, self.port), 2.0) as visitor,
        ):
            visitor.settimeout(2.0)
            visitor.sendall(request.encode())
            return visitor.recv(64).startswith(b"HTTP/1.1 200 ")
        return False


class TunnelByName(ByName, Tunnel):
    name = BY_NAME
    label = "tunnel --http"
    mode = "as tunnel, the target published by name"
    http_2 = True

    def launch(self) -> None:
        self.publish(
            ("--http", f"{LOCAL}:{self.port}"),
            ("--http", f"{HOST}={LOCAL}:{self.target_port}"),
        )


class FrpByName(ByName, Frp):
    name = FRP_BY_NAME
    label = "frp, type http"
    mode = "as frp, the target published by name"

    def server_options(self) -> str:
        return f"vhostHTTPPort = {self.port}\n"

    def proxy(self) -> str:
        return f'type = "http"\ncustomDomains = ["{HOST}"]\n'


class Nginx(ByName):
    name = "nginx"
    label = "nginx, no tunnel"
    mode = "reverse proxy on this machine, one worker, kept connections to the target"
    needs: tuple[str, ...] = ("nginx",)
    version_command: tuple[str, ...] = ("nginx", "-v")
    http_2 = True
    _http_2_port = 0

    @property
    def http_2_port(self) -> int:
        """Another one: where nginx expects HTTP/2 it speaks nothing else."""
        return self._http_2_port

    def launch(self) -> None:
        (nginx,) = self.paths
        self._http_2_port = free_port()
        kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        places = "".join(f"{kind}_temp_path {self.place}/{kind};\n" for kind in kinds)
        user = "user root;\n" if os.geteuid() == 0 else ""
        config = (
            f"{user}daemon off;\nworker_processes 1;\npid {self.place}/pid;\n"
            "error_log stderr error;\nworker_rlimit_nofile 20000;\n"
            "events { worker_connections 8192; }\n"
            f"http {{\n{places}access_log off;\ntcp_nodelay on;\n"
            "keepalive_requests 1000000000;\nkeepalive_timeout 600;\n"
            "map $http_upgrade $connection_word { default upgrade; '' ''; }\n"
            f"upstream target {{\nserver {LOCAL}:{self.target_port};\n"
            "keepalive 64;\nkeepalive_requests 1000000000;\n}\n"
            f"server {{\nlisten {LOCAL}:{self.port} backlog=4096;\n"
            f"listen {LOCAL}:{self._http_2_port} http2 backlog=4096;\n"
            f"server_name {HOST};\n"
            "location / {\nproxy_pass http://target;\nproxy_http_version 1.1;\n"
            "proxy_set_header Host $host;\nproxy_set_header Upgrade $http_upgrade;\n"
            "proxy_set_header Connection $connection_word;\n"
            "proxy_set_header X-Forwarded-For $remote_addr;\n"
            "proxy_max_temp_file_size 0;\nproxy_read_timeout 600;\n}\n}\n}\n"
        )
        path = self.write("nginx.conf", config)
        self.run("server", nginx, "-e", "stderr", "-c", path, "-p", str(self.place))


WEB_PEERS: Final[dict[str, type[Peer]]] = {
    kind.name: kind for kind in (TunnelByName, FrpByName, Nginx)
}
ASKED_BY_NAME: Final = (DIRECT, TUNNEL, *WEB_PEERS)


class Browsers:
    """The loads of browsers, run by the program of ``loads``."""

    def __init__(self, loads: Loads) -> None:
        self._loads = loads

    def small_on_64(self, peer: Peer) -> Found:
        return {"1 KiB on 64 visitors, /s": self._web(peer, 64, KB)["per_s"]}

    def small_on_one(self, peer: Peer) -> Found:
        return {"1 KiB on 1 visitor, /s": self._web(peer, 1, KB)["per_s"]}

    def large_on_8(self, peer: Peer) -> Found:
        return {"1 MiB on 8 visitors, MB/s": self._web(peer, 8, MB)["mb_per_s"]}

    def http_2_on_8(self, peer: Peer) -> Found:
        found = self._http_2(peer, 8, 8, KB)
        return {"1 KiB by HTTP/2, 8 visitors × 8, /s": found[0]} if found else {}

    def http_2_on_64(self, peer: Peer) -> Found:
        found = self._http_2(peer, 64, 1, KB)
        return {"1 KiB by HTTP/2, 64 visitors, /s": found[0]} if found else {}

    def http_2_large(self, peer: Peer) -> Found:
        found = self._http_2(peer, 8, 1, MB)
        return {"1 MiB by HTTP/2, 8 visitors, MB/s": found[1] / 1e6} if found else {}

    def _http_2(
        self, peer: Peer, visitors: int, streams: int, size: int
    ) -> tuple[float, float] | None:
        """Return requests and bytes of bodies a second; None from who has no HTTP/2."""
        if not isinstance(peer, ByName) or not peer.http_2:
            return None
        seconds = max(self._loads.size.ms // 1000, 1)
        port = peer.http_2_port
        (h2load,) = machine.find("h2load")
        done = subprocess.run(
            [h2load, "-D", str(seconds), "-c", str(visitors), "-m", str(streams),
             *WINDOWS, f"--connect-to={LOCAL}:{port}", f"http://{HOST}/{size}"],
            capture_output=True, text=True, timeout=self._loads.size.timeout_s,
            check=False,
        )  # fmt: skip
        served = re.search(r"status codes: (\d+) 2xx, 0 3xx, 0 4xx, 0 5xx", done.stdout)
        brought = re.search(r"\((\d+)\) data", done.stdout)
        if served is None or brought is None:
            raise BenchError(f"h2load: {(done.stderr or done.stdout).strip()[-200:]}")
        return int(served[1]) / seconds, int(brought[1]) / seconds

    def websocket(self, peer: Peer) -> Found:
        found = self._loads.load("ws", peer, self._loads.size.ms)
        return {"WebSocket echo p50, µs": found["p50_us"]}

    def idle_visitors(self, peer: Peer) -> Found:
        return self._idle(peer, "web-hold", "kept visitor")

    def idle_websockets(self, peer: Peer) -> Found:
        return self._idle(peer, "ws-hold", "WebSocket")

    def _web(self, peer: Peer, visitors: int, size: int) -> Found:
        return self._loads.load("web", peer, self._loads.size.ms, visitors, size)

    def _idle(self, peer: Peer, mode: str, what: str) -> Found:
        """Tell what each idle connection costs both ends, once it has cost it all."""
        if not peer.ends:
            return {}
        held = self._loads.size.web_held
        machine.check_descriptors(2 * held)
        with self._loads.held(peer, WARM_CONNS, mode):
            pass
        time.sleep(IDLE_S)
        before = self._loads.resident(peer)
        with self._loads.held(peer, held, mode):
            time.sleep(IDLE_S)
            after = self._loads.resident(peer)
        return {
            f"{end}, KB per idle {what}": (after[end] - size) / held / 1e3
            for end, size in before.items()
        }
