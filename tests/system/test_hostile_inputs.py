"""Hostile inputs without number, and a good client that is served meanwhile."""

from __future__ import annotations

import os
import random
import socket
import sys
import threading
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Final

import pytest
from support.fuzzer import changed
from support.hostile_inputs import PARSERS
from support.processes import PACKAGE
from support.targets import Target, ask_socks, echo, read_exactly, visit

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.processes import Machine, Program

COUNT: Final = int(os.environ.get("TUNNEL_FUZZ_COUNT", 1_000_000))
"""Inputs of each parser and each way in which they are found."""
GROWN: Final = 8_000
"""Objects more at the end than after a tenth; one for each input would be 900,000. The
fields of heads that are kept have a bound of their own, of some thousand."""
UNREFUSED: Final = {name for name, parser in PARSERS.items() if not parser.may_raise}
"""What returns, whatever it is given."""
LIVE: Final = {
    "link": ("frames", "payloads", "server handshake", "fields of HELLO"),
    "proxy": ("SOCKS5", "SOCKS4", "request heads", "targets"),
    "http": ("request heads", "bodies", "fields of requests"),
    "https": ("ClientHello",),
}
"""What each port of a tunnel parses."""
AT_ONCE: Final = {"link": 16}
"""Who speak to a port beside one another: a wrong proof is answered after a second."""


@pytest.mark.deep
@pytest.mark.timeout(3_600)
@pytest.mark.parametrize("by", ["atheris", "random"])
@pytest.mark.parametrize("name", PARSERS)
def test_a_million_inputs_are_borne_and_leave_nothing(
    machine: Machine, name: str, by: str, figures: Callable[[str], None]
) -> None:
    if by == "atheris":
        pytest.importorskip("atheris", reason="NOT TESTED: atheris is not installed")
    env = {"PYTHONPATH": f"{PACKAGE}:{PACKAGE / 'tests'}", "FUZZER": by}
    running = machine.start(
        sys.executable, "-m", "support.fuzzer", name, str(COUNT), env=env
    )
    status = running.wait(3_500)
    found = [line for line in running.out.all() if line.startswith(f"{COUNT} ")]
    assert (status, len(found)) == (0, 1), running.errors()[-4_000:]
    figures(f"{name}: {found[0]}")
    said = dict(word.split("=") for word in found[0].split()[1:])
    assert said["by"] == {"atheris": "atheris", "random": "chance"}[by]
    assert int(said["grown"]) < GROWN
    assert int(said["refused"]) or name in UNREFUSED


# Ports ------------------------------------------------------------------------------


class GoodClient:
    """Asks through every way in, again and again, while others say nonsense."""

    def __init__(self, tcp: int, socks: int, http: int, target: int) -> None:
        self.served = 0
        self._ports = tcp, socks, http
        self._target = target
        self._stop = threading.Event()
        self._failed: list[BaseException] = []
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def end(self) -> int:
        """Give how often it was served; raise what it met otherwise."""
        self._stop.set()
        self._thread.join()
        if self._failed:
            raise self._failed[0]
        return self.served

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                self._ask()
                self.served += 1
        except BaseException as error:  # raised by ``end``, in the test's thread
            self._failed.append(error)

    def _ask(self) -> None:
        tcp, socks, http = self._ports
        with visit(tcp) as conn:
            conn.sendall(b"hello")
            assert read_exactly(conn, 5) == b"hello"
        reply, app = ask_socks(socks, "127.0.0.1", self._target)
        with app:
            assert reply == 0
            app.sendall(b"hello")
            assert read_exactly(app, 5) == b"hello"
        with visit(http) as conn:
            conn.sendall(b"GET / HTTP/1.1\r\nHost: nobody.localhost\r\n\r\n")
            assert read_exactly(conn, 12) == b"HTTP/1.1 404"


def say_nonsense(port: int, parsers: tuple[str, ...], count: int, seed: int) -> None:
    """Send so many hostile inputs, each on a connection of its own."""
    rng = random.Random(seed)
    for number in range(count):
        said = changed(rng, PARSERS[parsers[number % len(parsers)]].seeds)
        with suppress(OSError), visit(port) as conn:
            conn.sendall(said)
            conn.shutdown(socket.SHUT_WR)
            while conn.recv(65_536):
                pass


@pytest.mark.deep
@pytest.mark.parametrize(
    "count",
    [
        400,
        pytest.param(100_000, marks=pytest.mark.timeout(7_200)),
    ],
)
def test_a_good_client_is_served_while_every_port_hears_nonsense(
    machine: Machine, count: int, figures: Callable[[str], None]
) -> None:
    machine.command = (sys.executable, "-c", UNCOLLECTED)
    with Target(echo) as target, ExitStack() as stack:
        # As 127.0.0.1:0 it would be the port of the links, which are plain here.
        server = machine.serve("--plain", "--http", "127.0.0.1:0", "--https",
                               "localhost:0")  # fmt: skip
        client = machine.up(
            server.join, "--tcp", f"0=127.0.0.1:{target.port}",
            "--socks", "127.0.0.1:0", "--http", f"web={target.port}",
            "--https", f"pass={target.port}",
        )  # fmt: skip
        ports = {
            line.split()[0]: int(line.split()[1].strip("/").rpartition(":")[2])
            for line in client.out.all()
        }
        ports |= {"link": server.port, "proxy": ports["socks"]}
        sides: dict[str, Program] = {"server": server.program, "client": client}
        good = GoodClient(ports["tcp"], ports["socks"], ports["http"], target.port)
        stack.callback(good.end)

        def hear(times: int, seed: int) -> None:
            threads = [
                threading.Thread(
                    target=say_nonsense,
                    args=(ports[kind], parsers, times // beside, seed + number),
                )
                for kind, parsers in LIVE.items()
                for beside in (AT_ONCE.get(kind, 1),)
                for number in range(beside)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()

        hear(count // 4, 1)  # whatever is made once
        before = {name: side.rss_bytes() for name, side in sides.items()}
        hear(count, 100)
        grown = {name: side.rss_bytes() - before[name] for name, side in sides.items()}
        served = good.end()
    figures(
        f"{count} hostile inputs at each of {len(LIVE)} ports, {served} good: {grown}"
    )
    assert served > 10
    for side in sides.values():
        assert side.process.poll() is None
        assert "Traceback" not in side.errors()
    assert all(size < 4_000_000 for size in grown.values()), grown


UNCOLLECTED: Final = (
    "import gc, sys; gc.disable(); from tunnel.ops.cli import main; main()"
)
"""A ``tunnel`` without a collector of cycles: what only it would free, grows."""
