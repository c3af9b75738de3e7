"""``tunnel doctor``: what stands between a machine and its server, told as it is."""

from __future__ import annotations

import json
import stat
from typing import TYPE_CHECKING, Any

from support.busy import Busy
from support.long_line import FAR, LongLine
from support.processes import Machine, free_port
from support.targets import Target

from tunnel.ops.check.line import LOSS

if TYPE_CHECKING:
    from pathlib import Path

    from support.processes import Program, Server

Found = dict[str, Any]

STEPS = {
    "program", "proxy", "names", "tcp4", "tls", "time", "token", "link", "round-trip",
    "down", "up", "path-mtu", "descriptors", "kernel",
}  # fmt: skip


def doctor(
    machine: Machine, join: str, status: int = 0, env: dict[str, str] | None = None
) -> dict[str, Found]:
    """Look, and give the findings by what they are about."""
    return found_by(begin(machine, join, env), status)


def begin(machine: Machine, join: str, env: dict[str, str] | None = None) -> Program:
    """Begin to look."""
    return machine.tunnel("doctor", "--json", to=join, env=env)


def found_by(running: Program, status: int = 0) -> dict[str, Found]:
    """Wait for the findings."""
    assert running.wait(60) == status, (running.out.all(), running.errors())
    assert "Traceback" not in running.errors()
    found = [json.loads(line) for line in running.out.all()]
    for one in found:
        if one["event"] == "finding" and one["grade"] in ("warn", "fail"):
            assert one["fix"], one
    return {one["what"]: one for one in found if one["event"] == "finding"}


def invited(server: Machine, name: str, *words: str) -> str:
    """Give the join line of somebody new."""
    state = ("--state", str(server.home / "server"))
    asked = server.tunnel("invite", name, *state, *words)
    assert asked.wait() == 0
    (line,) = [one for one in asked.out.all() if one.startswith("tunnel://")]
    return line


def test_all_is_well_on_one_machine(machine: Machine, server: Server) -> None:
    found = doctor(machine, server.join)
    assert set(found) >= STEPS
    assert {found[one]["grade"] for one in STEPS - {"time", "descriptors"}} == {"ok"}
    assert found["down"]["bytes_per_s"] > 1_000_000
    assert found["up"]["bytes_per_s"] > 1_000_000
    assert [path for path in machine.home.rglob("*") if path.is_file()] == []


def test_a_person_reads_a_line_and_a_fix(machine: Machine) -> None:
    line = f"tunnel+plain://x:{'A' * 43}@127.0.0.1:{free_port()}/"
    running = machine.tunnel("doctor", line)
    assert running.wait() == 9
    said = running.out.all()
    at = next(n for n, one in enumerate(said) if one.startswith("fail  tcp4"))
    assert said[at + 1].startswith("      fix ")
    assert said[-1].startswith("doctor: ")


def test_a_long_and_lossy_line_is_told_as_it_is(machine: Machine, far: Machine) -> None:
    line = LongLine(machine, far, delay_ms=50)
    server = far.serve(listen=f"{FAR}:0")
    line.set("loss", 1)
    before = line.count()
    found = doctor(machine, server.join)
    after = line.count()
    trip = found["round-trip"]
    assert 100 <= trip["ms"] < 130, trip
    # Of all packets: those of one direction fare alike.
    lost = (after.lost - before.lost) / (after.passed - before.passed)
    if found["loss"]["grade"] != "skip":  # few segments pass such a line in 2 s
        assert lost / 3 < found["loss"]["share"] < lost * 3, (lost, found["loss"])
        warned = found["loss"]["share"] >= LOSS  # chance decides, so near to it
        assert found["loss"]["grade"] == ("warn" if warned else "ok")
        assert found["under-load"]["ms"] < 115, "the line is never full"
    for way in ("down", "up"):
        assert 0 < found[way]["bytes_per_s"] < 20_000_000
    assert found["path-mtu"]["grade"] == "ok"


def test_a_slow_line_is_told_as_it_is(machine: Machine, far: Machine) -> None:
    LongLine(machine, far, delay_ms=10, mbit=8)
    server = far.serve(listen=f"{FAR}:0")
    found = doctor(machine, server.join)
    assert 20 <= found["round-trip"]["ms"] < 60
    for way in ("down", "up"):
        assert 600_000 < found[way]["bytes_per_s"] < 1_050_000, found[way]
    assert found["under-load"]["ms"] > found["round-trip"]["ms"] * 1.2
    assert found["loss"]["grade"] == "ok", "what a full line drops is not its fault"


def test_each_step_that_fails_is_named(machine: Machine, server: Server) -> None:
    line = server.join
    token = line.partition("@")[0].rpartition(":")[2]
    wrong_name, wrong_pin, wrong_token = (
        begin(machine, one)
        for one in (
            "tunnel://x:" + "A" * 43 + "@no.such.invalid/",
            line.partition("#")[0] + "#" + "A" * 42 + "E",
            line.replace(token, "A" * 42 + "E"),
        )
    )
    found = found_by(wrong_name, 9)
    assert found["names"]["grade"] == "fail"
    found = found_by(wrong_pin, 9)
    assert found["tls"]["grade"] == "fail"
    assert "not the pinned one" in found["tls"]["found"]
    found = found_by(wrong_token, 9)
    assert found["tls"]["grade"] == "ok"
    assert found["token"]["grade"] == "fail"


def test_another_program_at_the_port_is_told(machine: Machine) -> None:
    with Target(lambda conn: conn.sendall(b"SSH-2.0-another\r\n")) as another:
        line = f"tunnel://x:{'A' * 43}@127.0.0.1:{another.port}/"
        found = doctor(machine, line, status=9)
    assert found["tcp4"]["grade"] == "ok"
    assert found["tls"]["grade"] == "fail"


def test_without_the_right_nothing_is_measured_and_it_is_said(
    machine: Machine, far: Machine
) -> None:
    far.serve()
    found = doctor(machine, invited(far, "anna", "--may", "ports:1"))
    assert found["throughput"]["grade"] == "skip"
    assert "anna has no right test" in found["throughput"]["found"]
    assert found["round-trip"]["grade"] == "ok"


def test_a_proxy_on_the_way_is_told(machine: Machine, server: Server) -> None:
    dead = free_port()
    found = doctor(
        machine, server.join, status=9,
        env={"TUNNEL_VIA": f"http://anna:the-proxys-word@127.0.0.1:{dead}"},
    )  # fmt: skip
    assert str(dead) in found["proxy"]["found"]
    assert "the-proxys-word" not in json.dumps(found)


def test_a_report_has_no_secret_that_is_in_use(
    machine: Machine, server: Server, tmp_path: Path
) -> None:
    token = server.join.partition("@")[0].rpartition(":")[2]
    secrets = {
        "TUNNEL_TO": server.join,
        "TUNNEL_VIA": "none",
        "TUNNEL_AUTH": "visitor:what-a-visitor-says",
        "HTTPS_PROXY": "http://anna:what-a-proxy-wants@127.0.0.1:9",
        "TUNNEL_PASSWORD": "what-nobody-asks-for",
    }
    saved = machine.tunnel("join", server.join, "--save-as", "here")
    assert saved.wait() == 0
    looking = {
        report: machine.tunnel("doctor", *words, "--bundle", str(report), env=secrets)
        for report, words in (
            (tmp_path / "by-variable.json", ()),
            (tmp_path / "by-name.json", ("here",)),
            (tmp_path / "by-line.json", (server.join,)),
        )
    }
    for report, running in looking.items():
        assert running.wait(60) == 0, running.errors()
        text = report.read_text()
        assert json.loads(text)["findings"]
        assert stat.S_IMODE(report.stat().st_mode) == 0o600
        said = text + "".join(running.out.all()) + running.errors()
        for secret in (
            token, server.join, "what-a-visitor-says", "what-a-proxy-wants",
            "what-nobody-asks-for",
        ):  # fmt: skip
            assert secret not in said
    ids = (machine.home / "state").rglob("*.id")
    assert list(ids) == []


def test_the_running_client_of_the_same_machine_notices_nothing(
    machine: Machine, far: Machine, target: Target
) -> None:
    """Session, port and bytes of the client while the doctor fills the line."""
    server = far.serve()
    client = machine.up(server.join, "--tcp", f"0={target.port}")
    port = int(client.out.all()[0].split()[1].rpartition(":")[2])
    busy = Busy(port)
    lines = len(client.err.all())
    doctor(machine, server.join)
    rounds = busy.rounds
    assert busy.stop() >= rounds > 0
    assert client.err.all()[lines:] == []
    assert server.program.err.count("event=mapping.") == 1
    assert not server.program.err.count("TAKEN_OVER")


def test_a_line_for_one_machine_is_not_used_up(
    machine: Machine, far: Machine, target: Target
) -> None:
    far.serve()
    line = invited(far, "laptop", "--once")
    for looking in [begin(machine, line) for _ in range(2)]:
        found = found_by(looking)
        assert found["token"]["grade"] == "ok"
        assert "no machine has it yet" in found["token"]["found"]
    client = machine.up(line, "--tcp", f"0={target.port}")
    assert client.err.count("event=link.up") == 1
    used = Machine(machine.home / "other")
    used.home.mkdir()
    try:
        assert doctor(used, line, status=9)["token"]["grade"] == "fail"
    finally:
        used.close()


def test_one_address_of_several_that_is_dead_is_a_warning(
    machine: Machine, far: Machine
) -> None:
    far.serve(listen="127.0.0.1:0")
    line = invited(far, "anna", "--may", "ports:1")  # no test: it takes seconds
    found = doctor(machine, line.replace("@127.0.0.1:", "@localhost:"))
    assert found["tcp4"]["grade"] == "ok"
    assert found["tcp6"]["grade"] == "warn"
    assert found["token"]["grade"] == "ok"
