"""A machine that vanishes without a packet: two namespaces, a wire, and a tunnel.

``HERE`` stays; ``FAR`` can be made to send nothing any more. Sockets of either are made
there, and are then anybody's.
"""

from __future__ import annotations

import socket
import sys
from typing import TYPE_CHECKING, Final

from support.namespaces import Namespace, only_as_root
from support.processes import free_port

if TYPE_CHECKING:
    from contextlib import ExitStack

    from support.processes import Machine, Program

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


PASSWORD: Final = "me:secret"
_BASIC: Final = "Proxy-Authorization: Basic bWU6c2VjcmV0\r\n\r\n"


class Tunnel:
    """Both ends of a tunnel ``HERE``, with an entry of each kind.

    Kinds with a target ``HERE``: ``tcp``, ``reach``, ``http``; with one at ``FAR``:
    ``far``; with one wherever the app is not: ``socks``, ``connect`` and ``absolute``
    by a proxy that leaves at the server, ``exit`` by one that leaves at the client.
    """

    def __init__(
        self, machine: Machine, on: Wire, stack: ExitStack, *flags: str
    ) -> None:
        self._on, self._stack = on, stack
        self._targets = {
            at: self._keep(on.listen(at, host))
            for at, host in ((HERE, "0.0.0.0"), (FAR, ""))
        }
        here, there = (sock.getsockname()[1] for sock in self._targets.values())
        kinds = ("tcp", "far", "reach", "http", "socks", "exit")
        self.ports = {kind: free_port() for kind in kinds}
        for kind in ("connect", "absolute"):
            self.ports[kind] = self.ports["socks"]
        machine.command = on.inside(sys.executable, "-m", "tunnel")
        self.server: Program
        serve = machine.serve("--http", f"{HERE}:{self.ports['http']}", *flags)
        self.server = serve.program
        self.client = machine.up(
            serve.join,
            "--tcp", f"{HERE}:{self.ports['tcp']}=127.0.0.1:{here}",
            "--tcp", f"{HERE}:{self.ports['far']}={FAR}:{there}",
            "--tcp", f"{HERE}:{self.ports['exit']}=socks,auth={PASSWORD}",
            "--reach", f"{HERE}:{self.ports['reach']}=127.0.0.1:{here}",
            "--http", f"a.test=127.0.0.1:{here}",
            "--socks", f"{HERE}:{self.ports['socks']},auth={PASSWORD}",
            *flags,
            ready=6,
        )  # fmt: skip

    def pair(self, kind: str, at: str) -> tuple[socket.socket, socket.socket]:
        """Give a visitor and its target: connected, and each has heard the other."""
        visitor = self._keep(self._on.connect(at, self.ports[kind]))
        proxied = self.ports[kind] in (self.ports["socks"], self.ports["exit"])
        to = FAR if kind == "far" or (proxied and at == HERE) else HERE
        target = f"{to}:{self._targets[to].getsockname()[1]}"
        if kind in ("socks", "exit"):
            _ask_socks(visitor, target)
        elif kind == "connect":
            head = f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n{_BASIC}"
            visitor.sendall(head.encode())
            assert b" 200 " in _hear(visitor, b"\r\n\r\n")
        first, answer = "hello", "hello"
        if kind in ("http", "absolute"):
            answer = "HTTP/1.1 200 OK\r\n\r\nwait"
            first = "GET / HTTP/1.1\r\nHost: a.test\r\n\r\n"
        if kind == "absolute":
            first = f"GET http://{target}/ HTTP/1.1\r\nHost: {target}\r\n{_BASIC}"
        visitor.sendall(first.encode())
        accepted = self._keep(self._targets[to].accept()[0])
        while not accepted.recv(1_000):  # the client looks whether a web service is up
            accepted = self._keep(self._targets[to].accept()[0])
        accepted.settimeout(20)
        accepted.sendall(answer.encode())
        _hear(visitor, answer[-4:].encode())
        return visitor, accepted

    def _keep(self, sock: socket.socket) -> socket.socket:
        return self._stack.enter_context(sock)


def _hear(sock: socket.socket, last: bytes) -> bytes:
    heard = b""
    while last not in heard:
        piece = sock.recv(1_000)
        assert piece, heard
        heard += piece
    return heard


def _ask_socks(sock: socket.socket, target: str) -> None:
    user, password = PASSWORD.encode().split(b":")
    host, port = target.split(":")
    for question, answer_bytes in (
        (b"\x05\x01\x02", 2),
        (bytes([1, len(user)]) + user + bytes([len(password)]) + password, 2),
        (b"\x05\x01\x00\x01" + socket.inet_aton(host) + int(port).to_bytes(2), 10),
    ):
        sock.sendall(question)
        answer = sock.recv(answer_bytes, socket.MSG_WAITALL)
        assert answer[1:2] in (b"\x00", b"\x02"), answer
