"""Real programs whose link is cut: they must not notice, or hear an honest reset."""

from __future__ import annotations

import random
import signal
import subprocess
import threading
import time
from hashlib import sha256
from typing import TYPE_CHECKING, Final

import pytest
import trio
from support import lively
from support.cutting import Relay
from support.processes import (
    PEER_DESCRIPTORS,
    WAIT_S,
    Machine,
    Program,
    Server,
    Sshd,
    eventually,
    free_port,
    program,
)
from support.targets import (
    RESET,
    Content,
    Target,
    echo,
    is_alive,
    reaches,
    read_to_end,
    visit,
)
from support.traffic import Traffic

from tunnel.errors import Exit
from tunnel.proto.output import STREAM_QUEUE_BYTES
from tunnel.proto.resend import REPLAY_LIMIT_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

MIB: Final = 1 << 20
CONNECTIONS: Final = 100
WAITING_BYTES: Final = REPLAY_LIMIT_BYTES + CONNECTIONS * STREAM_QUEUE_BYTES
"""What a side keeps for its peer at most while it waits for a link. The kernels of both
machines keep more, and everybody sends both ways: twice that fills most of it. Of fewer
connections the test takes, and allows, as much less."""
GROWTH_BYTES: Final = 16 * MIB
"""How much higher the peak of a side's memory may be in the second of two long halves.
What waits for a link comes and goes, and the heap keeps its highest level: a leak would
add to that with every cut."""


def pause(seconds: float) -> None:
    threading.Event().wait(seconds)


def port_of(client: Program, kind: str) -> int:
    return int(client.out.wait(kind).split()[1].rpartition(":")[2])


# Cuts -------------------------------------------------------------------------------


def lively_server(machine: Machine) -> Server:
    """Start ``tunnel serve`` whose links are lost after 3 s of silence."""
    running = machine.start(
        *lively.COMMAND,
        "serve",
        "--listen",
        "127.0.0.1:0",
        "--state",
        str(machine.home / "server"),
    )
    join = running.out.wait("tunnel")
    return Server(running, join, int(join.split("#")[0].strip("/").split(":")[-1]))


async def cut_under_traffic(
    machine: Machine,
    hows: list[str],
    seed: int,
    figures: Callable[[str], None],
    growth_bytes: int,
    connections: int = CONNECTIONS,
) -> None:
    rng = random.Random(seed)
    traffic = Traffic(seed, pause_s=0.4)
    server = lively_server(machine)
    relay = Relay(machine, server)
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = listeners[0].socket.getsockname()[1]
        nursery.start_soon(trio.serve_listeners, traffic.serve, listeners)
        where = f"127.0.0.1:{port}"
        client = await trio.to_thread.run_sync(
            machine.up,
            relay.join,
            "--tcp",
            f"0={where}",
            "--reach",
            f"127.0.0.1:0={where}",
        )
        public, local = port_of(client, "tcp"), port_of(client, "reach")
        sides = (server.program, client)
        async with trio.open_nursery() as visitors:
            for index in range(connections):
                entry = (public, local)[index % 2]
                stream = await trio.open_tcp_stream("127.0.0.1", entry)
                visitors.start_soon(traffic.visit, index, stream)
            with trio.fail_after(WAIT_S):
                while len(traffic.targets) < connections:  # noqa: ASYNC110
                    await trio.sleep(0.02)
            await trio.sleep(1)  # till everybody has talked: a fair first figure
            descriptors = [side.descriptors() for side in sides]

            def as_before() -> bool:
                at_server, at_client = (side.descriptors() for side in sides)
                more = at_server - descriptors[0]
                return 0 <= more <= PEER_DESCRIPTORS and at_client == descriptors[1]

            # The wire goes silent, then there is none: all that may wait for one does.
            traffic.pause_s = 0.05
            await trio.to_thread.run_sync(relay.do, "refuse")
            await trio.to_thread.run_sync(relay.do, "hole")
            enough = (
                traffic.sent_bytes() + 2 * WAITING_BYTES * connections // CONNECTIONS
            )
            with trio.fail_after(2 * WAIT_S):
                while traffic.sent_bytes() < enough:  # noqa: ASYNC110
                    await trio.sleep(0.05)
            memory = [[side.rss_bytes()] for side in sides]
            traffic.pause_s = 0.4
            await trio.to_thread.run_sync(relay.do, "accept")
            for number, how in enumerate(hows):
                await trio.sleep(rng.uniform(0, 0.4))
                if number % 2:  # else the link start may be what is cut
                    await trio.to_thread.run_sync(
                        client.err.wait, "link.resumed", 1 + number // 2
                    )
                relay_address = f"source 127.0.0.{rng.randint(1, 3)}"
                await trio.to_thread.run_sync(relay.do, relay_address)
                await trio.to_thread.run_sync(relay.cut, how)
                for side, seen in zip(sides, memory, strict=True):
                    seen.append(side.rss_bytes())
            await trio.to_thread.run_sync(
                eventually, lambda: relay.do("count") > 0, "the last link"
            )
            half = 1 + len(hows) // 2
            grown = [max(seen[half:]) - max(seen[:half]) for seen in memory]
            with trio.fail_after(WAIT_S):
                while not as_before():  # noqa: ASYNC110
                    await trio.sleep(0.05)
            traffic.over.set()
        with trio.fail_after(WAIT_S):
            await traffic.settled()
        nursery.cancel_scope.cancel()
    carried = traffic.check(connections)
    assert client.err.count("session.lost") == 0
    assert server.program.err.count("link.up") == 1
    assert client.err.count("link.resumed") >= len(hows) // 2
    assert max(grown) < growth_bytes
    figures(
        f"{len(hows)} cuts under {connections} connections: {carried / 1e6:.0f} MB, "
        f"memory {grown[0] / 1e6:+.1f} MB server, {grown[1] / 1e6:+.1f} MB client "
        f"from peak to peak of the two halves, which is {max(memory[0]) / 1e6:.0f} and "
        f"{max(memory[1]) / 1e6:.0f} MB"
    )


@pytest.mark.parametrize(
    "connections", [40, pytest.param(CONNECTIONS, marks=pytest.mark.deep)]
)
async def test_connections_survive_cuts_of_every_kind(
    machine: Machine, figures: Callable[[str], None], connections: int
) -> None:
    hows = ["rst", "fin", "change", "rst", "hole", "fin", "change", "rst"]
    waiting = WAITING_BYTES * connections // CONNECTIONS
    await cut_under_traffic(machine, hows, 1, figures, waiting, connections)


@pytest.mark.deep
@pytest.mark.timeout(900)
async def test_100_connections_survive_200_cuts(
    machine: Machine, figures: Callable[[str], None]
) -> None:
    rng = random.Random(2)
    hows = [rng.choice(("rst", "fin", "change", "hole")) for _ in range(200)]
    await cut_under_traffic(machine, hows, 2, figures, GROWTH_BYTES)


# Programs that people use -----------------------------------------------------------


def copy_while_cutting(
    machine: Machine, content: Content, cuts: int, mbit: int, timeout_s: float
) -> None:
    sshd = Sshd(machine)
    relay = Relay(machine, machine.serve(), "--mbit", str(mbit))
    client = machine.tunnel("tcp", str(sshd.port), to=relay.join)
    public = port_of(client, "tcp")
    there = machine.home / "there"
    scp = machine.start(
        program("scp"),
        "-q",
        *sshd.options("none"),
        "-P",
        str(public),
        str(content.path),
        f"127.0.0.1:{there}",
    )
    eventually(there.exists, "the copy has begun")
    rng = random.Random(3)
    for cut in range(cuts):
        # Bytes that were on their way come out without a link.
        eventually(lambda cut=cut: client.err.count("link.resumed") == cut, "a link")  # type: ignore[misc]
        size = there.stat().st_size
        eventually(lambda size=size: there.stat().st_size > size, "bytes")  # type: ignore[misc]
        pause(rng.uniform(0, content.size / cuts / mbit / 250_000))
        relay.cut(rng.choice(("rst", "fin", "change")))
    assert scp.process.poll() is None, "the copy was over before the last cut"
    assert scp.wait(timeout_s) == 0
    copied = sha256()
    with there.open("rb") as file:
        while data := file.read(MIB):
            copied.update(data)
    there.unlink()
    assert copied.hexdigest() == content.digest()
    assert client.err.count("link.resumed") == cuts


def test_scp_does_not_notice_that_its_link_is_cut(
    machine: Machine, tmp_path: Path
) -> None:
    copy_while_cutting(machine, Content(tmp_path / "file", 3), 4, 200, 60)


@pytest.mark.deep
@pytest.mark.timeout(400)
def test_scp_of_1_gib_does_not_notice_20_cuts(machine: Machine, tmp_path: Path) -> None:
    copy_while_cutting(machine, Content(tmp_path / "file", 64), 20, 400, 300)


def type_while_away(machine: Machine, away_s: float) -> None:
    sshd = Sshd(machine)
    relay = Relay(machine, machine.serve())
    client = machine.tunnel("tcp", str(sshd.port), to=relay.join)
    public = str(port_of(client, "tcp"))
    shell = machine.start(
        program("ssh"),
        "-tt",
        *sshd.options("none"),
        "-p",
        public,
        "127.0.0.1",
        "sh",
        stdin=subprocess.PIPE,
    )
    keys = shell.process.stdin
    assert keys is not None

    def enter(line: str) -> None:
        keys.write(f"{line}\n".encode())
        keys.flush()

    enter("stty -echo; echo begin $((40 + 2))")
    shell.out.wait("begin 42")
    relay.lose()
    client.err.wait("link.lost")
    enter("echo typed $((6 * 7))")
    pause(away_s)
    assert shell.out.count("typed 42") == 0
    relay.do("accept")
    shell.out.wait("typed 42", timeout_s=away_s + 30)
    enter("exit 3")
    assert shell.wait() == 3


def test_an_interactive_ssh_session_survives_seconds_without_a_link(
    machine: Machine,
) -> None:
    type_while_away(machine, 2)


@pytest.mark.deep
@pytest.mark.timeout(200)
def test_an_interactive_ssh_session_survives_a_minute_without_a_link(
    machine: Machine,
) -> None:
    type_while_away(machine, 60)


# Sessions that cannot go on ---------------------------------------------------------


def both_ways(machine: Machine, join: str, target: Target) -> tuple[Program, int, int]:
    """Start a client with an entry of each direction; give it and its two ports."""
    where = f"127.0.0.1:{target.port}"
    client = machine.up(join, "--tcp", f"0={where}", "--reach", f"127.0.0.1:0={where}")
    assert target.next_seen() == "end"  # the client has tried whether it answers
    return client, port_of(client, "tcp"), port_of(client, "reach")


def test_after_resume_s_every_connection_is_reset_at_both_ends(
    machine: Machine,
) -> None:
    with Target(echo) as target:
        relay = Relay(machine, machine.serve("--resume", "2s"))
        client, *ports = both_ways(machine, relay.join, target)
        conns = [visit(port) for port in ports * 3]
        assert all(is_alive(conn) for conn in conns)
        relay.lose()
        began = time.monotonic()
        assert [read_to_end(conn) for conn in conns] == [(b"", RESET)] * 6
        assert time.monotonic() - began > 1.5
        assert [target.next_seen() for _ in conns] == [RESET] * 6
        relay.do("accept")
        client.err.wait("session.lost")
        client.err.wait("link.up", 2)
        for conn in conns:
            conn.close()
        eventually(lambda: reaches(ports[0]), "the public port is open again")
        assert reaches(ports[1])


def test_a_server_that_was_killed_begins_anew_and_no_connection_ends_cleanly(
    machine: Machine,
) -> None:
    with Target(echo) as target:
        server = machine.serve(listen=f"127.0.0.1:{free_port()}")
        client, public, local = both_ways(machine, server.join, target)
        visitor, inside = visit(public), visit(local)
        assert is_alive(visitor)
        assert is_alive(inside)
        server.program.stop(signal.SIGKILL)
        visitor.close()  # whose socket died with the server
        machine.serve(listen=f"127.0.0.1:{server.port}")
        assert read_to_end(inside) == (b"", RESET)
        inside.close()
        lost = client.err.wait("session.lost")
        assert "connections=2" in lost
        # The exit's socket to the target died with the server too, by a FIN.
        assert RESET in [target.next_seen(), target.next_seen()]
        client.err.wait("link.up", 2)
        eventually(lambda: reaches(public), "the public port is open again")
        assert reaches(local)


def test_ctrl_c_without_a_link_ends_the_client_at_once(machine: Machine) -> None:
    with Target(echo) as target:
        relay = Relay(machine, machine.serve())
        client, *_ = both_ways(machine, relay.join, target)
        relay.lose()
        client.err.wait("link.lost")
        began = time.monotonic()
        assert client.stop(signal.SIGINT) == Exit.INTERRUPTED
        assert time.monotonic() - began < 2


def test_a_second_ctrl_c_without_a_link_resets_what_waits_at_once(
    machine: Machine,
) -> None:
    with Target(echo) as target:
        relay = Relay(machine, machine.serve())
        client, _, local = both_ways(machine, relay.join, target)
        with visit(local) as conn:
            assert is_alive(conn)
            relay.lose()
            assert "waiting=1" in client.err.wait("link.lost")
            client.send(signal.SIGINT)
            pause(0.5)  # it is not said that a drain has begun
            assert client.process.poll() is None
            assert client.stop(signal.SIGINT) == Exit.INTERRUPTED
            assert read_to_end(conn) == (b"", RESET)
