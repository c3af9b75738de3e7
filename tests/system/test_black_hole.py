"""A path on which every packet above 1,300 bytes vanishes, without a word about it."""

from __future__ import annotations

import json
import shutil
import socket
import sys
import threading
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Final

import pytest
from support import often
from support.namespaces import Namespace, only_as_root
from support.processes import program

if TYPE_CHECKING:
    from support.processes import Machine

HOLE_BYTES: Final = 1_300
SERVER: Final = "10.77.2.2"
REACH: Final = 9_000
CONTENT: Final = bytes(range(256)) * 1_024
PATIENCE_S: Final = 180.0
"""Two links stand still for 30 s each before a third one is tried otherwise."""


class Hole:
    """A client and a server with a router between that loses large packets."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self.client, self.router, self.server = (Namespace(machine) for _ in range(3))
        self._join(self.client, "10.77.1.2", "10.77.1.1")
        self._join(self.server, SERVER, "10.77.2.1")
        self._shell(self.router, "echo 1 > /proc/sys/net/ipv4/ip_forward")
        # Nor does the router say what it has dropped.
        self._shell(self.router, "ip rule add pref 100 iif lo blackhole")

    def _join(self, end: Namespace, address: str, gateway: str) -> None:
        name = f"to{gateway.replace('.', '')}"
        self._shell(
            end, f"ip link add up0 type veth peer name {name} netns {self.router.pid}"
        )
        self._shell(end, f"ip addr add {address}/24 dev up0 && ip link set up0 up")
        self._shell(self.router, f"ip addr add {gateway}/24 dev {name}")
        self._shell(self.router, f"ip link set {name} mtu {HOLE_BYTES} up")
        self._shell(end, f"ip route add default via {gateway}")

    def _shell(self, where: Namespace, script: str) -> None:
        done = self._machine.run(*where.enter, "sh", "-c", script)
        if done.returncode:
            pytest.skip(f"NOT TESTED: no such network here: {done.stderr.decode()}")

    def is_there(self) -> bool:
        """Say whether small pings come back and large ones do not, in silence."""
        ping = program("ping")
        small, large = (
            self._machine.run(
                *self.client.enter, ping, "-c1", "-W2", "-Mdo", f"-s{size}", SERVER
            )
            for size in (1_200, 1_400)
        )
        return small.returncode == 0 and large.returncode == 1


@pytest.fixture
def hole(machine: Machine) -> Hole:
    only_as_root()
    made = Hole(machine)
    if shutil.which("ping"):
        assert made.is_there()
    return made


def serve(listener: socket.socket, *, up: bool) -> None:
    """Greet a visitor, then take all that it sends and say how much, or send it all."""
    with suppress(OSError):
        while True:
            visitor, _address = listener.accept()
            with visitor:
                visitor.sendall(b".")
                if up:
                    size = 0
                    while data := visitor.recv(65_536):
                        size += len(data)
                    visitor.sendall(b"%d" % size)
                else:
                    assert not visitor.recv(1)
                    visitor.sendall(CONTENT)


@pytest.mark.deep
@pytest.mark.timeout(300)
@pytest.mark.parametrize("up", [False, True], ids=["down", "up"])
def test_a_transfer_gets_through_a_hole_for_large_packets(
    machine: Machine, hole: Hole, up: bool
) -> None:
    machine.command = (*hole.server.enter, sys.executable, "-m", "tunnel")
    server = machine.serve(listen=f"{SERVER}:0")
    listener = hole.server.inside(partial(socket.create_server, ("127.0.0.1", 0)))
    machine.command = (*hole.client.enter, sys.executable, "-m", "tunnel")
    target = f"127.0.0.1:{listener.getsockname()[1]}"
    client = machine.up(server.join, "--reach", f"{REACH}={target}")
    where = ("127.0.0.1", REACH)
    threading.Thread(target=partial(serve, listener, up=up), daemon=True).start()
    with (
        listener,
        hole.client.inside(partial(socket.create_connection, where, PATIENCE_S)) as app,
    ):
        assert app.recv(1) == b"."
        if up:
            app.sendall(CONTENT)
        app.shutdown(socket.SHUT_WR)
        came = b""
        while data := app.recv(65_536):
            came += data
        assert came == (b"%d" % len(CONTENT) if up else CONTENT)
        listener.shutdown(socket.SHUT_RDWR)
    errors = client.errors()
    assert errors.count("path.suspected") == 1
    assert errors.count("link.lost") == 2


def test_a_doctor_finds_the_hole(machine: Machine, hole: Hole) -> None:
    machine.command = (*hole.server.enter, sys.executable, "-m", "tunnel")
    server = machine.serve(listen=f"{SERVER}:0")
    machine.command = (*hole.client.enter, *often.COMMAND)
    looking = machine.tunnel("doctor", "--json", to=server.join)
    assert looking.wait(90) == 9, looking.errors()
    found = {line["what"]: line for line in map(json.loads, looking.out.all()) if
             "what" in line}  # fmt: skip
    assert found["round-trip"]["grade"] == "ok"
    assert found["path-mtu"]["grade"] == "fail", found["down"]
    assert found["path-mtu"]["mtu"] == 1_500
    assert "1280" in found["path-mtu"]["fix"]
