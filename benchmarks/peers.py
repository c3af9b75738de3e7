"""The systems that are measured: one small class each, all on loopback.

A peer carries from ``port``, where visitors go, to a target of its own. Its two ends
are programs called "server" (it listens for the link) and "client" (it dials). Each is
run in its fastest fair mode: encrypted where it can, multiplexed where it can; ``mode``
says what that is. Options are those of its manual for speed, nothing is patched.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import getpass
import ipaddress
import itertools
import json
import os
import re
import secrets
import signal
import socket
import sys
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    pkcs12,
)

from benchmarks.machine import (
    READY_S,
    BenchError,
    NotInstalledError,
    Program,
    end,
    find,
    output,
    send_signal,
)

DIRECT: Final = "direct"
OPENSSH: Final = "openssh"
TUNNEL: Final = "tunnel"
LOCAL: Final = "127.0.0.1"
SECRET: Final = secrets.token_urlsafe(16)


@dataclasses.dataclass(frozen=True)
class Tools:
    """What was built on the spot, and where things may be put."""

    directory: Path
    load: str
    relay: str


@dataclasses.dataclass(frozen=True)
class Line:
    """A line between the two ends of a peer: its round trip, and its rate each way."""

    round_trip_ms: float
    mbit: int


def free_port() -> int:
    with socket.create_server((LOCAL, 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def answers(port: int) -> bool:
    """Tell whether an echo comes back through ``port``."""
    with suppress(OSError), socket.create_connection((LOCAL, port), 2.0) as visitor:
        visitor.settimeout(2.0)
        visitor.sendall(b"E?")
        return visitor.recv(1) == b"?"
    return False


def listens(host: str, port: int) -> bool:
    with suppress(OSError), socket.create_connection((host, port), 1.0):
        return True
    return False


class Peer:
    """One way from a visitor's port to the target.

    ``start`` raises BenchError, and NotInstalledError when a program is missing;
    ``stop`` ends every process, also after a failed ``start``; then it may be started
    again, on other ports.
    """

    name = ""
    label = ""
    mode = ""
    needs: tuple[str, ...] = ()
    """Programs that must be on PATH; ``paths`` are their places, in this order."""
    multiplexed = True
    """Whether all connections share one link; else each is two descriptors an end."""
    target_mode = "sink-source"
    """Of the load program, as the target."""
    version_command: tuple[str, ...] = ()
    version_pattern = r"\d+\.\d+\S*"

    _places = itertools.count()

    def __init__(self, tools: Tools, line: Line | None = None) -> None:
        self.tools = tools
        self.line = line
        self.port = 0
        self.target_port = 0
        self.paths: list[str] = []
        self.place = tools.directory
        self.ends: dict[str, Program] = {}
        self._helpers: list[Program] = []

    # What a subclass says

    def launch(self) -> None:
        """Start the ends, so that ``port`` leads to ``target_port``."""
        raise NotImplementedError

    @classmethod
    def version(cls) -> str:
        said = re.findall(cls.version_pattern, " ".join(lines(*cls.version_command)))
        return said[0].rstrip(",") if said else "unknown"

    # What all do

    @classmethod
    def describe(cls) -> dict[str, str]:
        """Say what it is, and why it is missing if a program is not on PATH."""
        said = {"label": cls.label, "mode": cls.mode, "version": "-"}
        try:
            find(*cls.needs)
        except NotInstalledError as error:
            return said | {"missing": str(error)}
        return said | {"version": cls.version()}

    def start(self) -> None:
        self.paths = find(*self.needs)
        self.place = self.tools.directory / f"{self.name}-{next(self._places)}"
        self.place.mkdir()
        target = (self.tools.load, self.target_mode, "0")
        self.target_port = self._helper("target", *target)
        self.port = free_port()
        self.launch()
        self.wait_ready()

    def stop(self) -> None:
        end([*self.ends.values(), *self._helpers])
        self.ends.clear()
        self._helpers.clear()

    def pids(self) -> list[int]:
        """Return the processes of both ends; target and line are not the peer's."""
        return [pid for program in self.ends.values() for pid in program.pids()]

    def pause(self) -> None:
        send_signal(self._all_pids(), signal.SIGSTOP)

    def resume(self) -> None:
        """Let it run again; return when it carries bytes again."""
        send_signal(self._all_pids(), signal.SIGCONT)
        self.wait_ready()

    def wait_ready(self) -> None:
        deadline = time.monotonic() + READY_S
        while not self.ready():
            programs = [*self.ends.values(), *self._helpers]
            for program in programs:
                if program.process.poll() is not None:
                    raise BenchError(f"ended by itself, {program}")
            if time.monotonic() > deadline:
                said = "; ".join(map(str, self.ends.values()))
                raise BenchError(f"nothing came back within {READY_S:g} s; {said}")
            time.sleep(0.05)

    def ready(self) -> bool:
        """Tell whether it carries bytes to the target and back."""
        return answers(self.port)

    def run(
        self, name: str, *command: str, talks: bool = False, **environment: str
    ) -> Program:
        """Start one end; ``talks``: its stdout is read."""
        log = self.place / f"{name}.log"
        program = Program.start(log, *command, talks=talks, **environment)
        self.ends[name] = program
        return program

    def dial(self, port: int, *, host: str = LOCAL, via: str = LOCAL) -> int:
        """Return the port where the client finds the server: behind the line, if any.

        With a line that is a port of ``via``: the same number if ``via`` is another
        address than ``host``. Waits until the server listens: not every client tries
        again.
        """
        deadline = time.monotonic() + READY_S
        while not listens(host, port):
            if time.monotonic() > deadline:
                said = "; ".join(map(str, self.ends.values()))
                raise BenchError(f"nothing listens for the link; {said}")
            time.sleep(0.02)
        if self.line is None:
            return port
        delay_us = f"{self.line.round_trip_ms * 500:.0f}"
        same = () if via == host else (str(port),)
        line = (delay_us, str(self.line.mbit), *same)
        return self._helper("relay", self.tools.relay, via, host, str(port), *line)

    def write(self, name: str, text: str) -> str:
        path = self.place / name
        path.write_text(text)
        return str(path)

    def _helper(self, name: str, *command: str) -> int:
        program = Program.start(self.place / f"{name}.log", *command, talks=True)
        self._helpers.append(program)
        return int(program.first_line())

    def _all_pids(self) -> list[int]:
        return self.pids() + [pid for each in self._helpers for pid in each.pids()]


def lines(*command: str) -> list[str]:
    return output(*command, whole=True).splitlines() if command else []


class Direct(Peer):
    name = DIRECT
    label = "no tunnel at all"
    mode = "the load program connects to the target: what these two can do"

    def launch(self) -> None:
        self.port = self.dial(self.target_port)

    @classmethod
    def version(cls) -> str:
        return "-"


class Tunnel(Peer):
    name = TUNNEL
    label = "tunnel"
    mode = "TLS 1.3 AES-256-GCM, one link, default options, resumption on"
    serve_options: tuple[str, ...] = ()

    def launch(self) -> None:
        entry = f"{self.port}={LOCAL}:{self.target_port}"
        self.publish(("--ports", f"{self.port}-{self.port}"), ("--tcp", entry))

    def publish(self, served: tuple[str, str], entry: tuple[str, str]) -> None:
        """Start both ends: what the server has for visitors, and the client's entry."""
        link_port = free_port()
        server = self._tunnel(
            "server",
            *("serve", "--listen", f"{LOCAL}:{link_port}"),
            *served,
            *("--state", str(self.place / "state")),
            *self.serve_options,
        )
        join = server.first_line()
        join = join.replace(f":{link_port}", f":{self.dial(link_port)}", 1)
        client = self._tunnel("client", "up", "--to", join, *entry)
        ready = client.first_line().split()
        if ready[:1] != [entry[0].removeprefix("--")]:
            raise BenchError(f"`tunnel up` said {' '.join(ready)!r}")

    def _tunnel(self, end_name: str, *arguments: str) -> Program:
        # what a first `up` saves must not become the person's default
        places = ("XDG_CONFIG_HOME", "XDG_STATE_HOME", "XDG_DATA_HOME")
        home = dict.fromkeys(places, str(self.place))
        command = (sys.executable, "-m", "tunnel", *arguments)
        return self.run(end_name, *command, talks=True, **home)

    @classmethod
    def version(cls) -> str:
        from tunnel import __version__

        return __version__


class PlainTunnel(Tunnel):
    name = "plain"
    label = "tunnel --plain"
    mode = "not encrypted; else as tunnel"
    serve_options: tuple[str, ...] = ("--plain",)


class OpenSSH(Peer):
    name = OPENSSH
    label = "OpenSSH -R"
    mode = "aes256-gcm, one connection, no compression"
    needs: tuple[str, ...] = ("ssh", "sshd", "ssh-keygen")
    version_command: tuple[str, ...] = ("ssh", "-V")
    version_pattern = r"OpenSSH_(\S+)"
    # sshd refuses to start as root without it, and its place is compiled in
    privilege_directory = Path("/run/sshd")

    def launch(self) -> None:
        ssh, sshd, keygen = self.paths
        self._key(keygen, "host")
        user = self._key(keygen, "user")
        server_port = free_port()
        self.run("server", sshd, "-D", "-e", "-f", self._server_config(server_port))
        port = self.dial(server_port)
        public = (self.place / "host_key.pub").read_text()
        options = {
            "Compression": "no",
            "BatchMode": "yes",
            "IdentitiesOnly": "yes",
            "IdentityAgent": "none",
            "ControlPath": "none",
            "ExitOnForwardFailure": "yes",
            "ConnectionAttempts": "20",
            "StrictHostKeyChecking": "yes",
            "UserKnownHostsFile": self.write("known", f"[{LOCAL}]:{port} {public}"),
        }
        flags = [flag for key in options for flag in ("-o", f"{key}={options[key]}")]
        flags += ["-F", "none", "-i", user, "-p", str(port)]
        cipher = ("-c", "aes256-gcm@openssh.com")
        login = f"{getpass.getuser()}@{LOCAL}"
        self.run("client", ssh, "-N", *self.forward(), *cipher, *flags, login)

    def forward(self) -> tuple[str, str]:
        return "-R", f"{LOCAL}:{self.port}:{LOCAL}:{self.target_port}"

    def stop(self) -> None:
        super().stop()
        if (self.place / "made_privilege_directory").exists():
            with suppress(OSError):
                self.privilege_directory.rmdir()

    def _key(self, keygen: str, name: str) -> str:
        path = self.place / f"{name}_key"
        if said := lines(keygen, "-q", "-t", "ed25519", "-N", "", "-f", str(path)):
            raise BenchError(f"ssh-keygen: {said[0]}")
        return str(path)

    def _server_config(self, port: int) -> str:
        if os.geteuid() == 0 and not self.privilege_directory.exists():
            self.privilege_directory.mkdir(mode=0o755)
            (self.place / "made_privilege_directory").touch()
        return self.write(
            "sshd_config",
            f"ListenAddress {LOCAL}\nPort {port}\nPidFile none\n"
            f"HostKey {self.place}/host_key\n"
            f"AuthorizedKeysFile {self.place}/user_key.pub\n"
            "UsePAM no\nStrictModes no\nPasswordAuthentication no\n"
            "PermitRootLogin prohibit-password\nCompression no\n"
            "AllowTcpForwarding yes\nGatewayPorts no\n",
        )


class Chisel(Peer):
    name = "chisel"
    label = "chisel"
    mode = "SSH over a WebSocket, one connection, reverse port"
    needs: tuple[str, ...] = ("chisel",)
    version_command: tuple[str, ...] = ("chisel", "--version")
    server_options: tuple[str, ...] = ("--reverse",)

    def launch(self) -> None:
        (chisel,) = self.paths
        server_port = free_port()
        auth = ("--auth", f"bench:{SECRET}")
        where = ("--host", LOCAL, "--port", str(server_port))
        self.run("server", chisel, "server", *self.server_options, *where, *auth)
        url = f"http://{LOCAL}:{self.dial(server_port)}"
        retry = ("--max-retry-interval", "1s")
        self.run("client", chisel, "client", *retry, *auth, url, self.forward())

    def forward(self) -> str:
        return f"R:{LOCAL}:{self.port}:{LOCAL}:{self.target_port}"


class Frp(Peer):
    name = "frp"
    label = "frp"
    mode = "TLS, one connection (yamux), no compression"
    needs: tuple[str, ...] = ("frps", "frpc")
    version_command: tuple[str, ...] = ("frps", "--version")

    def server_options(self) -> str:
        return ""

    def proxy(self) -> str:
        return f'type = "tcp"\nremotePort = {self.port}\n'

    def proxies(self) -> str:
        return (
            f'[[proxies]]\nname = "bench"\nlocalIP = "{LOCAL}"\n'
            f"localPort = {self.target_port}\n{self.proxy()}"
        )

    def launch(self) -> None:
        frps, frpc = self.paths
        server_port = free_port()
        common = f'auth.token = "{SECRET}"\nlog.level = "error"\n'
        server = (
            f'bindAddr = "{LOCAL}"\nproxyBindAddr = "{LOCAL}"\n'
            f"bindPort = {server_port}\ntransport.tls.force = true\n{common}"
            f"{self.server_options()}"
        )
        self.run("server", frps, "-c", self.write("frps.toml", server))
        client = (
            f'serverAddr = "{LOCAL}"\nserverPort = {self.dial(server_port)}\n'
            "loginFailExit = false\n"
            f"transport.tls.enable = true\ntransport.tcpMux = true\n{common}"
            f"{self.proxies()}"
        )
        self.run("client", frpc, "-c", self.write("frpc.toml", client))


class Rathole(Peer):
    name = "rathole"
    label = "rathole"
    mode = "TLS; no multiplexing: a link for each connection"
    needs: tuple[str, ...] = ("rathole",)
    multiplexed = False
    version_command: tuple[str, ...] = ("rathole", "--version")
    version_pattern = r"Build Version:\s*(\S+)"

    def launch(self) -> None:
        (rathole,) = self.paths
        keys = Keys(self.place)
        server_port = free_port()
        token = f'default_token = "{SECRET}"\n'
        server = (
            f'[server]\nbind_addr = "{LOCAL}:{server_port}"\n{token}'
            '[server.transport]\ntype = "tls"\n[server.transport.tls]\n'
            f'pkcs12 = "{keys.bundle}"\npkcs12_password = "{SECRET}"\n'
            f'[server.services.bench]\nbind_addr = "{LOCAL}:{self.port}"\n'
        )
        path = self.write("server.toml", server)
        self.run("server", rathole, "--server", path, RUST_LOG="error")
        client = (
            f'[client]\nremote_addr = "{LOCAL}:{self.dial(server_port)}"\n{token}'
            '[client.transport]\ntype = "tls"\n[client.transport.tls]\n'
            f'trusted_root = "{keys.certificate}"\nhostname = "localhost"\n'
            f'[client.services.bench]\nlocal_addr = "{LOCAL}:{self.target_port}"\n'
        )
        path = self.write("client.toml", client)
        self.run("client", rathole, "--client", path, RUST_LOG="error")


class Bore(Peer):
    name = "bore"
    label = "bore, not encrypted"
    mode = "NOT encrypted, for it cannot; no multiplexing: a link for each connection"
    needs: tuple[str, ...] = ("bore",)
    multiplexed = False
    version_command: tuple[str, ...] = ("bore", "--version")
    control_port = 7835
    """It has no option for it; a loopback address of its own keeps it apart."""

    def launch(self) -> None:
        (bore,) = self.paths
        net = f"127.{secrets.randbelow(200) + 20}.{secrets.randbelow(250)}"
        host, via = f"{net}.1", f"{net}.2"
        where = ("--bind-addr", host, "--bind-tunnels", LOCAL)
        self.run("server", bore, "server", *where, RUST_LOG="error", BORE_SECRET=SECRET)
        self.dial(self.control_port, host=host, via=via)
        to = via if self.line else host
        forward = ("--port", str(self.port), "--local-host", LOCAL)
        local = ("local", str(self.target_port), "--to", to, *forward)
        self.run("client", bore, *local, RUST_LOG="error", BORE_SECRET=SECRET)


class Shadowsocks(Peer):
    name = "shadowsocks"
    label = "shadowsocks-libev"
    mode = "aes-256-gcm; no multiplexing: a link for each connection"
    needs: tuple[str, ...] = ("ss-server", "ss-tunnel")
    multiplexed = False
    version_command: tuple[str, ...] = ("ss-server", "-h")

    def launch(self) -> None:
        server, tunnel = self.paths
        server_port = free_port()
        common = ("-k", SECRET, "-m", "aes-256-gcm", "-t", "600", "--no-delay")
        self.run("server", server, "-s", LOCAL, "-p", str(server_port), *common)
        far = ("-s", LOCAL, "-p", str(self.dial(server_port)))
        near = ("-b", LOCAL, "-l", str(self.port))
        to = ("-L", f"{LOCAL}:{self.target_port}")
        self.run("client", tunnel, *far, *near, *to, *common)


class V2Ray(Peer):
    name = "v2ray"
    label = "v2ray (mux)"
    mode = "VLESS over TLS, mux"
    needs: tuple[str, ...] = ("v2ray",)
    version_command: tuple[str, ...] = ("v2ray", "-version")
    mux = True

    def launch(self) -> None:
        (v2ray,) = self.paths
        keys, user, server_port = Keys(self.place), str(uuid.uuid4()), free_port()
        common = {
            "log": {"loglevel": "error"},
            "policy": {"levels": {"0": {"connIdle": 600}}},
        }
        pair = {"certificateFile": keys.certificate, "keyFile": keys.key}
        server = common | {
            "inbounds": [
                {
                    "listen": LOCAL,
                    "port": server_port,
                    "protocol": "vless",
                    "settings": {"clients": [{"id": user}], "decryption": "none"},
                    "streamSettings": tls({"certificates": [pair]}),
                }
            ],
            "outbounds": [{"protocol": "freedom"}],
        }
        path = self.write("server.json", json.dumps(server))
        self.run("server", v2ray, "-config", path)
        far = {
            "address": LOCAL,
            "port": self.dial(server_port),
            "users": [{"id": user, "encryption": "none"}],
        }
        to = {"address": LOCAL, "port": self.target_port, "network": "tcp"}
        trusted = {"usage": "verify", "certificateFile": keys.certificate}
        client = common | {
            "inbounds": [
                {
                    "listen": LOCAL,
                    "port": self.port,
                    "protocol": "dokodemo-door",
                    "settings": to,
                }
            ],
            "outbounds": [
                {
                    "protocol": "vless",
                    "settings": {"vnext": [far]},
                    "streamSettings": tls(
                        {"serverName": "localhost", "certificates": [trusted]}
                    ),
                    "mux": {"enabled": self.mux, "concurrency": 1024},
                }
            ],
        }
        path = self.write("client.json", json.dumps(client))
        self.run("client", v2ray, "-config", path)


def tls(settings: dict[str, object]) -> dict[str, object]:
    return {"network": "tcp", "security": "tls", "tlsSettings": settings}


class V2RayPlain(V2Ray):
    """The same without mux, which is its faster mode for some loads."""

    name = "v2ray-nomux"
    label = "v2ray (no mux)"
    mode = "VLESS over TLS; no multiplexing: a link for each connection"
    mux = False
    multiplexed = False


class PProxy(Peer):
    name = "pproxy"
    label = "pproxy"
    mode = "HTTP CONNECT over TLS; no multiplexing: a link for each connection"
    needs: tuple[str, ...] = ("pproxy",)
    multiplexed = False
    version_command: tuple[str, ...] = ("pproxy", "--version")

    def launch(self) -> None:
        (pproxy,) = self.paths
        keys, server_port = Keys(self.place), free_port()
        listen = f"http+ssl://{LOCAL}:{server_port}"
        pair = f"{keys.certificate},{keys.key}"
        self.run("server", pproxy, "-l", listen, "--ssl", pair)
        near = f"tunnel{{{LOCAL}:{self.target_port}}}://{LOCAL}:{self.port}"
        far = f"http+ssl://{LOCAL}:{self.dial(server_port)}"
        self.run("client", pproxy, "-l", near, "-r", far)


class Keys:
    """A certificate for localhost that signs itself, made for one start of one peer."""

    def __init__(self, place: Path) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name.from_rfc4514_string("CN=localhost")
        now = dt.datetime.now(dt.UTC)
        names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address(LOCAL))]
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(hours=1))
            .not_valid_after(now + dt.timedelta(days=2))
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.BasicConstraints(True, None), critical=True)
            .sign(key, hashes.SHA256())
        )
        private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        bundle = pkcs12.serialize_key_and_certificates(
            b"bench", key, certificate, None, BestAvailableEncryption(SECRET.encode())
        )
        self.certificate = str(place / "certificate.pem")
        self.key = str(place / "key.pem")
        self.bundle = str(place / "bundle.p12")
        Path(self.certificate).write_bytes(certificate.public_bytes(Encoding.PEM))
        Path(self.key).write_bytes(private)
        Path(self.bundle).write_bytes(bundle)


PEERS: Final[dict[str, type[Peer]]] = {
    kind.name: kind
    for kind in (
        *(Direct, OpenSSH, Tunnel, Chisel, Frp, Rathole, Bore),
        *(Shadowsocks, V2Ray, V2RayPlain, PProxy, PlainTunnel),
    )
}
EXTRA: Final = (V2RayPlain.name, PlainTunnel.name)
DEFAULT: Final = tuple(name for name in PEERS if name not in EXTRA)
