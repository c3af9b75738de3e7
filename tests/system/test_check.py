"""``tunnel check``: what would go wrong, tried beside the client that runs."""

from __future__ import annotations

import json
import re
import socket
from typing import TYPE_CHECKING, Any

import pytest
from support.busy import Busy
from support.processes import Machine, free_port
from support.targets import Target, echo, visit

if TYPE_CHECKING:
    from pathlib import Path

    from support.processes import Program, Server

Found = dict[str, Any]


def check(machine: Machine, *words: str, to: str = "", status: int = 0) -> list[Found]:
    """Run a check that ends so; give its findings."""
    running = machine.tunnel("check", "--json", *words, to=to)
    assert running.wait() == status, (running.out.all(), running.errors())
    assert "Traceback" not in running.errors()
    return [json.loads(line) for line in running.out.all()]


def graded(found: list[Found], grade: str) -> list[str]:
    """Give which of the findings have that grade."""
    return [one["what"] for one in found if one.get("grade") == grade]


def events(program: Program, *names: str) -> int:
    return sum(program.err.count(f"event={name}") for name in names)


def test_the_running_client_of_the_same_machine_notices_nothing(
    machine: Machine, far: Machine, target: Target
) -> None:
    """Session, ports and bytes of the client, under load, before and after."""
    server = far.serve()
    port, listen = free_port(), free_port()
    entries = (
        "--tcp", f"{port}={target.port}", "--tcp", f"0={target.port}",
        "--reach", f"{listen}=127.0.0.1:{target.port}",
    )  # fmt: skip
    client = machine.up(server.join, *entries)
    visitors = [Busy(port), Busy(listen)]
    lines = events(client, "link", "mapping", "session")
    for _ in range(3):
        before = [one.rounds for one in visitors]
        found = check(machine, *entries, to=server.join)
        assert graded(found, "fail") == graded(found, "warn") == []
        assert graded(found, "ok").count("tcp") == 2
        after = [one.rounds for one in visitors]
        assert all(now > was for now, was in zip(after, before, strict=True))
    assert all(one.stop() for one in visitors)
    assert events(client, "link", "mapping", "session") == lines, client.errors()
    said = server.program.errors()
    assert "mapping.refused" not in said
    assert "TAKEN_OVER" not in said
    assert len(re.findall(r"event=mapping\.open", said)) == 2
    assert "event=mapping.closed" not in said


def test_what_would_fail_is_found_with_what_helps(
    machine: Machine, far: Machine, target: Target
) -> None:
    server = far.serve()
    other = Machine(machine.home / "other")
    taken, dead = free_port(), free_port()
    try:
        other.up(server.join, "--tcp", f"{taken}={target.port}")
        with socket.create_server(("127.0.0.1", 0)) as listener:
            busy = listener.getsockname()[1]
            found = check(
                machine,
                "--tcp", f"{taken}={target.port}",
                "--tcp", f"0={dead}",
                "--http", f"shop={target.port}",
                "--reach", f"127.0.0.1:{busy}=127.0.0.1:{dead}",
                "--udp", f"0={target.port}",
                to=server.join, status=9,
            )  # fmt: skip
    finally:
        other.close()
    failed = graded(found, "fail")
    assert sorted(failed) == ["http", "listen", "reach", "target", "tcp"]
    fixed = {one["what"] for one in found if one.get("grade") == "fail" and one["fix"]}
    assert {"http", "listen", "target", "tcp"} <= fixed
    assert graded(found, "ok").count("target") == 2
    assert "udp" in graded(found, "ok")


def test_rights_are_those_of_the_user(
    machine: Machine, far: Machine, target: Target
) -> None:
    server = far.serve()
    state = ("--state", str(far.home / "server"))
    asked = far.tunnel("invite", "anna", *state, "--may", "ports:1")
    assert asked.wait() == 0, asked.errors()
    (line,) = [one for one in asked.out.all() if one.startswith("tunnel://")]
    found = check(machine, "--tcp", f"0={target.port}", to=line)
    assert "tcp" in graded(found, "ok")
    found = check(
        machine,
        "--tcp", f"0={target.port}", "--tcp", f"0={target.port}",
        "--tcp", f"22={target.port}",
        "--reach", f"{free_port()}=127.0.0.1:{target.port}",
        to=line, status=9,
    )  # fmt: skip
    failed = [one for one in found if one.get("grade") == "fail"]
    said = " ".join(one["found"] for one in failed)
    assert "anna has no right tcp:22" in said
    assert "anna has no right ports:2" in said
    assert f"anna has no right reach:127.0.0.1:{target.port}" in said
    assert server.program.process.poll() is None


def test_offline_asks_no_server(machine: Machine, target: Target) -> None:
    line = "tunnel+plain://x:" + "A" * 43 + "@192.0.2.1:1/"
    found = check(machine, "--offline", "--tcp", f"0={target.port}", to=line)
    assert graded(found, "ok") == ["target"]
    assert graded(found, "skip") == ["server"]


def test_a_server_that_is_not_there_is_said(machine: Machine, target: Target) -> None:
    line = f"tunnel+plain://x:{'A' * 43}@127.0.0.1:{free_port()}/"
    found = check(machine, "--tcp", f"0={target.port}", to=line, status=9)
    assert graded(found, "fail") == ["server"]


def test_a_file_of_both_sides_is_checked(
    machine: Machine, far: Machine, target: Target, tmp_path: Path
) -> None:
    server = far.serve()
    join = tmp_path / "join"
    join.write_text(server.join + "\n")
    join.chmod(0o600)
    file = tmp_path / "tunnel.toml"
    text = f"""
[server]
listen = "127.0.0.1:{free_port()}"

[client]
to_file = "{join}"

[[client.tcp]]
target = "127.0.0.1:{target.port}"
"""
    file.write_text(text)
    file.chmod(0o600)
    found = check(machine, str(file))
    assert {"file", "listen", "target", "server", "tcp"} <= {*graded(found, "ok")}
    # The same while the server of that file runs: its port is its own.
    file.write_text(text.replace("listen =", f'listen = "127.0.0.1:{server.port}" #'))
    found = check(machine, str(file))
    (listen,) = (one for one in found if one.get("what") == "listen")
    assert listen["pid"] == server.program.pid


def test_each_fault_of_a_file_is_a_line_and_the_status_is_3(
    machine: Machine, tmp_path: Path
) -> None:
    file = tmp_path / "tunnel.toml"
    file.write_text('[server]\nlissten = "1"\nports = "x"\n[client]\ntoo = "x"\n')
    running = machine.tunnel("check", str(file))
    assert running.wait() == 3
    said = running.errors().splitlines()
    assert len(said) == 3, said
    assert all(one.startswith(f"{file}:") for one in said)
    assert running.out.all() == []


def test_nothing_is_kept_of_a_check(
    machine: Machine, server: Server, target: Target
) -> None:
    """No join line, no client id, no pin: a check that was made has not been."""
    check(machine, "--tcp", f"0={target.port}", to=server.join)
    kept = [path for path in machine.home.rglob("*") if path.is_file()]
    assert kept == []


def test_a_check_publishes_nothing(machine: Machine, far: Machine) -> None:
    server = far.serve()
    port = free_port()
    with Target(echo) as target:
        check(machine, "--tcp", f"{port}={target.port}", to=server.join)
        with pytest.raises(ConnectionRefusedError):
            visit(port)
    assert "mapping.open" not in server.program.errors()
