"""What comes and goes leaves no memory behind, and needs no collector for that.

The programs run with Python's collector of cycles switched off: what only it would free
grows under load by as much as comes between two of its rounds.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from typing import TYPE_CHECKING, Final

import pytest
import trustme
from support import lossy
from support.cutting import Relay
from support.processes import PEER_DESCRIPTORS, Machine, eventually, free_port
from support.strangers import Links, Ports
from support.targets import Target, echo, shared_out, web

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from support.processes import Program
    from support.targets import Content

UNCOLLECTED: Final = (
    "import gc, sys; gc.disable(); from tunnel.ops.cli import main; main()"
)
AT_ONCE: Final = 16
SLOW_AT_ONCE: Final = 64


class Place:
    """A server and a client without a collector, and all that may come to them."""

    def __init__(self, machine: Machine, content: Content) -> None:
        machine.command = (sys.executable, "-c", UNCOLLECTED)
        folder = machine.home
        leaf = trustme.CA().issue_cert("web.localhost")
        leaf.private_key_pem.write_to_path(folder / "key.pem")
        leaf.cert_chain_pems[0].write_to_path(folder / "chain.pem")
        self.targets = [Target(echo), Target(web(content))]
        told, pages = (one.port for one in self.targets)
        # Bound and not listened on: refused, and nobody else's meanwhile.
        self.refusing = socket.socket()
        self.refusing.bind(("127.0.0.1", 0))
        nobody = self.refusing.getsockname()[1]
        http = free_port()
        server = machine.serve(
            "--http", f"127.0.0.1:{http}", "--https", "127.0.0.1:0",
            "--certificate", str(folder / "chain.pem"), str(folder / "key.pem"),
        )  # fmt: skip
        self.line = Relay(machine, server)
        client = machine.up(
            self.line.join, "--tcp", f"0={told}", "--tcp", f"0={nobody}",
            "--http", f"web={pages}", "--https", f"pass={told}",
            "--socks", "127.0.0.1:0",
        )  # fmt: skip
        share = machine.tunnel(
            "share", str(pages), "--to", server.join,
            "--name", "guarded", "--auth", "me:secret",
        )  # fmt: skip
        share.out.wait(" ")
        where = {
            (line.split()[0], line.split()[2]): line.split()[1].strip("/")
            for line in (*client.out.all(), *share.out.all())
        }
        ports = {key: int(at.rpartition(":")[2]) for key, at in where.items()}
        self.programs: dict[str, Program] = {
            "server": server.program, "client": client, "share": share,
        }  # fmt: skip
        self.links = Links(server.join)
        self.ports = Ports(
            tcp=ports["tcp", f"localhost:{told}"],
            refused=ports["tcp", f"localhost:{nobody}"],
            http=http,
            https=ports["https", f"localhost:{told}"],
            socks=ports["socks", "-"],
            echo=told,
            closed=nobody,
            guarded="guarded.localhost",
        )

    def close(self) -> None:
        self.refusing.close()
        for target in self.targets:
            target.close()

    def rss_bytes(self) -> dict[str, int]:
        return {name: one.rss_bytes() for name, one in self.programs.items()}

    def descriptors(self) -> dict[str, int]:
        """Give those of each program, but the one of each session that waits."""
        found = {name: one.descriptors() for name, one in self.programs.items()}
        found["server"] -= len(self.links)
        return found

    def settled(self) -> dict[str, int]:
        """Wait until those who are still there have ended; give the memory then."""
        most = {"server": 64, "client": 64, "share": 32}

        def gone() -> bool:
            return all(most[name] >= now for name, now in self.descriptors().items())

        eventually(gone, "few descriptors", 90)
        return self.rss_bytes()

    def after(self, kinds: list[Callable[[], None]], count: int, at_once: int) -> None:
        """Have so many of each kind come and go, mixed, and wait till all has gone."""
        before = self.descriptors()
        todo = [kinds[number % len(kinds)] for number in range(count * len(kinds))]
        shared_out(todo, lambda kind: kind(), at_once)

        def gone() -> bool:
            now = self.descriptors()
            return all(now[name] <= before[name] + 2 + PEER_DESCRIPTORS for name in now)

        eventually(gone, f"descriptors as before: {before}", 90)


KINDS: Final = [
    *(getattr(Links, name) for name in vars(Links) if not name.startswith("_")),
    *(
        getattr(Ports, name)
        for name, value in vars(Ports).items()
        if not name.startswith("_") and callable(value)
    ),
]


SLOW: Final = (Links.wrong_token,)
"""Who proves nothing waits a second for the answer."""


@pytest.fixture(scope="module")
def place(
    tmp_path_factory: pytest.TempPathFactory, content: Content
) -> Iterator[Place]:
    machine = Machine(tmp_path_factory.mktemp("memory"))
    made = Place(machine, content)
    yield made
    made.close()
    machine.close()


def bound(place: Place, kind: Callable[..., None]) -> Callable[[], None]:
    owner = place.links if kind.__qualname__.startswith("Links") else place.ports
    return lambda: kind(owner)


def grown(
    place: Place, kinds: list[Callable[..., None]], first: int, then: int
) -> dict[str, int]:
    """Give by how many bytes each program grew after the first ones of these kinds."""
    some = [bound(place, kind) for kind in kinds]
    at_once = SLOW_AT_ONCE if set(kinds) <= set(SLOW) else AT_ONCE
    place.after(some, first, at_once)
    before = place.rss_bytes()
    place.after(some, then, at_once)
    after = place.rss_bytes()
    for name, running in place.programs.items():
        assert "Traceback" not in running.errors(), name
    return {name: after[name] - before[name] for name in after}


def test_a_little_of_everything_leaves_no_memory_behind(place: Place) -> None:
    """67 KB for each of one kind would show."""
    growth = grown(place, [kind for kind in KINDS if kind not in SLOW], 16, 48)
    assert all(size < 3_200_000 for size in growth.values()), growth


@pytest.mark.deep
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_ten_thousand_of_a_kind_leave_no_memory_behind(
    place: Place, kind: Callable[..., None], figures: Callable[[str], None]
) -> None:
    growth = grown(place, [kind], 500, 9_500)
    figures(f"{kind.__name__}: {growth}")
    assert all(size < 8_000_000 for size in growth.values()), growth


SOAK_S: Final = float(os.environ.get("TUNNEL_SOAK_S", 1800))
CUT_EVERY_S: Final = 20.0


@pytest.mark.deep
@pytest.mark.timeout(SOAK_S + 300)
def test_half_an_hour_of_everything_ends_as_the_second_minute_did(
    place: Place, figures: Callable[[str], None]
) -> None:
    kinds = [kind for kind in KINDS if kind not in SLOW]
    began = time.monotonic()
    before: dict[str, int] = {}
    cuts = rounds = 0
    failed: list[str] = []

    def borne(kind: Callable[[], None]) -> None:
        try:
            kind()
        except (OSError, AssertionError) as error:  # its link was being cut
            failed.append(f"{type(error).__name__} {error}")

    while (now_s := time.monotonic() - began) < SOAK_S:
        some = [bound(place, kind) for kind in kinds]
        shared_out(some * 4, borne, AT_ONCE)
        rounds += 1
        if now_s >= CUT_EVERY_S * (cuts + 1):
            place.line.do(lossy.CUTS[cuts % 3])
            cuts += 1
        if not before and now_s > min(120, SOAK_S / 4):
            before = place.settled()
    after = place.settled()
    growth = {name: after[name] - before[name] for name in after}
    figures(f"{rounds * 4} of each kind, {cuts} cuts, {len(failed)} failed: {growth}")
    assert all(size < 3_000_000 for size in growth.values()), growth
