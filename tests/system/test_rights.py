"""Rights where the addresses are real: networks of the test's own."""

from __future__ import annotations

import socket
import struct
import sys
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import pytest
from support import granted
from support.namespaces import Namespace, only_as_root

if TYPE_CHECKING:
    from pathlib import Path

    from support.processes import Machine

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="NOT TESTED: needs namespaces"
)

CHANGES = """
import subprocess
from ipaddress import ip_address
from tunnel.platform import addresses

own = addresses.OwnAddresses()

def local_routes():
    command = "ip", "-6", "route", "show", "table", "local"
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout

def said(words, *texts):
    if words:
        subprocess.run(["ip", *words.split()], check=True)
    while "nodad" in words and texts[-1] not in local_routes():
        pass  # IPv6: a worker of the kernel tells of the address, and then routes it
    print(*(int(ip_address(text) in own) for text in texts))

said("", "198.51.100.7", "2001:db8::7", "127.0.0.1")
said("address add 198.51.100.7/24 dev out0", "198.51.100.7", "198.51.100.8")
said("address add 2001:db8::7/64 dev out0 nodad", "198.51.100.7", "2001:db8::7")
said("address add 203.0.113.1 peer 203.0.113.2 dev out0", "203.0.113.1", "203.0.113.2")
said("address del 198.51.100.7/24 dev out0", "198.51.100.7", "2001:db8::7")
said("route add local 192.0.2.0/25 dev lo", "198.51.100.7")
addresses.time.monotonic = lambda: float("inf")
said("", "192.0.2.9", "192.0.2.200")
"""


GRANTED: Final = ("198.51.100.9", "198.51.100.200", "::ffff:198.51.100.9")
OPEN: Final = ("203.0.113.9", "2001:db8:1::9")
"""Granted by wide rights only."""
ELSEWHERE: Final = (
    "10.1.2.3",
    "169.254.169.254",
    "100.100.100.200",
    "168.63.129.16",
    "192.0.0.192",
    "fd00:ec2::254",
    "64:ff9b::7f00:1",
    "64:ff9b::a9fe:a9fe",
    "64:ff9b::a01:203",
    "64:ff9b:1::7f00:1",
    "2002:7f00:1::1",
    "2002:a9fe:a9fe::1",
    "2001:0:7f00:1::1",
    "::ffff:0:127.0.0.1",
)
"""Addresses of another machine: whoever is let through gets there."""
OWN: Final = (
    "127.0.0.1",
    "127.9.9.9",
    "::1",
    "::ffff:127.0.0.1",
    "0.0.0.0",
    "::",
    "198.51.100.1",
    "::ffff:198.51.100.1",
    "198.51.100.77",
    "2001:db8:1::1",
)
"""Addresses of the server's machine: some lie in a network that is granted."""


class Net:
    """The server's machine, and another that has all the addresses of the world."""

    def __init__(self, machine: Machine, files: dict[str, Path] | None = None) -> None:
        only_as_root()
        self._machine = machine
        self.here, self.there = Namespace(machine, files), Namespace(machine)
        self._ip(
            self.here, f"link add v0 type veth peer name v1 netns {self.there.pid}"
        )
        for where, words in (
            (self.here, "link set v0 up"),
            (self.there, "link set v1 up"),
            (self.here, "address add 198.51.100.1/24 dev v0"),
            (self.here, "address add 198.51.100.77/24 dev v0"),
            (self.here, "address add 2001:db8:1::1/64 dev v0 nodad"),
            (self.there, "address add 198.51.100.9/24 dev v1"),
            (self.there, "address add 198.51.100.200/24 dev v1"),
            (self.there, "address add 2001:db8:1::9/64 dev v1 nodad"),
            (self.here, "route add default via 198.51.100.9"),
            (self.here, "-6 route add default via 2001:db8:1::9"),
        ):
            self._ip(where, words)
        for host in (*ELSEWHERE, OPEN[0]):
            bits = 128 if ":" in host else 32
            self._ip(self.there, f"address replace {host}/{bits} dev lo")

    def _ip(self, where: Namespace, words: str) -> None:
        done = self._machine.run(*where.enter, "ip", *words.split())
        assert done.returncode == 0, done.stderr.decode()


def listen(kind: socket.SocketKind, port: int = 0) -> socket.socket:
    """Make a socket for all addresses of the machine; kernels accept by themselves."""
    sock = socket.socket(socket.AF_INET6, kind)
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    sock.bind(("::", port))
    if kind is socket.SOCK_STREAM:
        sock.listen(128)
    sock.settimeout(20)
    return sock


@pytest.mark.parametrize(
    ("words", "allowed"),
    [
        ("reach:198.51.100.0/24:*,tcp:2200", GRANTED),
        ("socks", (*OPEN, *GRANTED)),
        ("reach:0.0.0.0/0:*,reach:[::]/0:*", (*OPEN, *GRANTED)),
    ],
)
def test_what_is_granted_is_reached_and_nothing_in_disguise(
    machine: Machine, words: str, allowed: tuple[str, ...]
) -> None:
    """A1, with addresses that lead somewhere: whoever is let through arrives."""
    net = Net(machine)
    with net.there.inside(lambda: listen(socket.SOCK_STREAM)) as stream:
        port = stream.getsockname()[1]
        with (
            net.there.inside(lambda: listen(socket.SOCK_DGRAM, port)) as datagrams,
            net.here.inside(lambda: listen(socket.SOCK_STREAM, port)),
            net.here.inside(lambda: listen(socket.SOCK_DGRAM, port)) as here,
        ):
            hosts = (*ELSEWHERE, *OWN, *OPEN, *GRANTED)
            targets = [
                f"[{one}]:{port}" if ":" in one else f"{one}:{port}" for one in hosts
            ]
            ran = machine.start(*net.here.enter, *granted.COMMAND, words, *targets)
            for host, target in zip(hosts, targets, strict=True):
                said = ran.out.wait(f"{target} | ")
                _, owner, guest = said.split(" | ")
                assert owner == "connected", said
                if host in allowed:
                    assert guest == "connected", said
                else:
                    assert guest.startswith("NOT_ALLOWED guest has no right reach:"), (
                        said
                    )
            heard = [datagrams.recv(100).decode() for _ in allowed]
            assert heard == targets[-len(allowed) :]
            here.setblocking(False)
            with pytest.raises(BlockingIOError):
                here.recv(100)


class Resolver(threading.Thread):
    """Answers for each name first with one address, and for ever after with another."""

    def __init__(self, sock: socket.socket, *answers: str) -> None:
        super().__init__(daemon=True)
        self._sock = sock
        self._answers = [socket.inet_aton(ip) for ip in answers]
        self.asked: list[bytes] = []
        """The questions for IPv4, a name and its type and class."""

    def run(self) -> None:
        with suppress(OSError):  # closed
            while True:
                self._answer(*self._sock.recvfrom(512))

    def _answer(self, packet: bytes, whence: tuple[str, int]) -> None:
        question = packet[12 : packet.index(0, 12) + 5]
        answer, count = b"", 0
        if question[-4:] == b"\0\1\0\1":
            # Whatever is looked up a second time has moved meanwhile.
            ip = self._answers[min(self.asked.count(question), len(self._answers) - 1)]
            answer, count = b"\xc0\x0c\0\1\0\1\0\0\0\0\0\4" + ip, 1
            self.asked.append(question)
        head = packet[:2] + struct.pack("!HHHHH", 0x8180, 1, count, 0, 0)
        self._sock.sendto(head + question + answer, whence)


def test_a_name_that_moves_to_loopback_is_not_followed(
    machine: Machine, tmp_path: Path
) -> None:
    """A2, with a resolver whose answers live for 0 s."""
    files = {
        "/etc/resolv.conf": tmp_path / "resolv",
        "/etc/nsswitch.conf": tmp_path / "nss",
    }
    files["/etc/resolv.conf"].write_text("nameserver 198.51.100.9\n")
    files["/etc/nsswitch.conf"].write_text("hosts: files dns\n")
    net = Net(machine, files)
    with (
        net.there.inside(lambda: listen(socket.SOCK_DGRAM, 53)) as dns,
        net.there.inside(lambda: listen(socket.SOCK_STREAM)) as stream,
    ):
        dns.settimeout(None)
        port = stream.getsockname()[1]
        with net.here.inside(lambda: listen(socket.SOCK_STREAM, port)) as trap:
            # Each target is asked for by the owner and then by the guest.
            resolver = Resolver(dns, "198.51.100.9", "198.51.100.9", "127.0.0.1")
            resolver.start()
            target = f"rebind.test:{port}"
            words = "reach:198.51.100.0/24:*"
            # A datagram's look-up would be one more, at any time.
            asked_for = words, granted.NO_DATAGRAMS, target, target
            ran = machine.start(*net.here.enter, *granted.COMMAND, *asked_for)
            first = ran.out.wait(f"{target} | ")
            assert first == f"{target} | connected | connected"
            second = ran.out.wait(f"{target} | ", 2)
            right = f"reach:127.0.0.1:{port}"
            assert second == (
                f"{target} | connected | NOT_ALLOWED guest has no right {right}"
            )
            assert len(resolver.asked) == 4, "one look-up for each connection"
            trap.accept()[0].close()  # the owner's, who may
            trap.setblocking(False)
            with pytest.raises(BlockingIOError):
                trap.accept()


def test_an_address_is_own_from_the_moment_that_it_is_there(machine: Machine) -> None:
    only_as_root()
    pair = "ip link add out0 type veth peer name in0"
    up = "ip link set in0 up && ip link set out0 up"
    there = Namespace(machine, setup=f"{pair} && {up}")
    done = machine.run(*there.enter, sys.executable, "-c", CHANGES)
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.decode().split("\n") == [
        "0 0 1", "1 0", "1 1", "1 0", "0 1", "0", "1 0", ""
    ]  # fmt: skip
