"""Five hundred users with four machines each, on a server that carries bulk."""

from __future__ import annotations

import subprocess
import sys
import threading
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import pytest
from support import crowd
from support.processes import eventually
from support.targets import Target, flood, visit

from tunnel.access.join import make_token, parse_join
from tunnel.access.rules import default_rights
from tunnel.access.user_file import changed_users
from tunnel.access.users import User
from tunnel.proto.proofs import verifier_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from support.processes import Machine, Program

USERS: Final = 500
MACHINES: Final = 4
PROGRAMS: Final = 4
"""That the machines are spread over: what one of them costs here is not asked."""
BULK: Final = 4
LOG_INS: Final = 200
EVERY_S: Final = 0.05


def start_crowd(machine: Machine, path: Path, joins: list[str], each: int) -> Program:
    path.write_text("\n".join(joins))
    return machine.start(
        sys.executable, str(crowd.__file__), str(path), str(each), stdin=subprocess.PIPE
    )


def read_on(port: int, taken: list[int], over: threading.Event) -> None:
    with visit(port) as conn:
        conn.settimeout(30)
        while not over.is_set() and (data := conn.recv(1 << 20)):
            taken.append(len(data))


@pytest.mark.deep
@pytest.mark.timeout(600)
def test_users_log_in_beside_many_others_and_bulk(
    machine: Machine, tmp_path: Path, figures: Callable[[str], None]
) -> None:
    state = machine.home / "server"
    machine.serve().program.stop()
    joins = []
    with changed_users(state) as users:
        for number in range(USERS):
            name, token = f"user-{number}", make_token()
            verifier = verifier_of(name, token.reveal())
            users[name] = User(name, verifier, default_rights(name))
            joins.append((name, token))
    server = machine.serve()
    owner = parse_join(server.join)
    lines = [replace(owner, name=name, token=token).render() for name, token in joins]
    size = USERS // PROGRAMS
    with ExitStack() as stack:
        source = stack.enter_context(Target(flood))
        crowds = [
            start_crowd(machine, tmp_path / f"{at}", lines[at : at + size], MACHINES)
            for at in range(0, USERS, size)
        ]
        for one in crowds:
            assert one.out.wait("up", timeout_s=300) == f"up {size * MACHINES}"
        up = machine.up(server.join, "--tcp", f"0=127.0.0.1:{source.port}")
        port = int(up.out.all()[0].split()[1].rpartition(":")[2])
        more = start_crowd(machine, tmp_path / "more", lines, 0)
        more.out.wait("up")
        taken: list[int] = []
        over = threading.Event()
        readers = [
            threading.Thread(target=read_on, args=(port, taken, over))
            for _ in range(BULK)
        ]
        for reader in readers:
            reader.start()
        eventually(lambda: sum(taken) > 10_000_000, "bulk flows")
        took: dict[str, list[float]] = {}
        for what in ("beside bulk", "without bulk"):
            assert more.process.stdin is not None
            more.process.stdin.write(f"{LOG_INS} {EVERY_S}\n".encode())
            more.process.stdin.flush()
            nth = len(took) + 1
            words = more.out.wait("took", nth, timeout_s=120).split()[1:]
            took[what] = sorted(map(float, words))
            over.set()
            for reader in readers:
                reader.join()
        for what, found in took.items():
            p50, p99 = found[len(found) // 2], found[len(found) * 99 // 100]
            figures(f"log-in {what}: p50 {p50:.0f} ms, p99 {p99:.0f} ms")
            assert len(found) == LOG_INS
    assert server.program.err.count("link.refused") == 0
