"""Processes of this user are found, asked, drained and stopped; the dead are swept."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import termios
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from support import often
from support.processes import Machine, eventually, free_port
from support.targets import Target, flood, read_exactly, visit

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.processes import Program, Server


@pytest.fixture
def machine() -> Iterator[Machine]:
    """Give a machine whose folders have short names, and no runtime folder."""
    folder = Path(tempfile.mkdtemp(prefix="t"))
    machine = Machine(folder)
    machine.env |= {"TMPDIR": str(folder), "XDG_RUNTIME_DIR": str(folder / "none")}
    yield machine
    machine.close()
    shutil.rmtree(folder, ignore_errors=True)


def run_folder(machine: Machine) -> Path:
    return machine.home / "state" / "tunnel" / "run"


def both(machine: Machine, target: Target) -> tuple[Server, Program, int]:
    """Start a server and a client; give the public port too."""
    server = machine.serve()
    client = machine.up(server.join, "--tcp", f"127.0.0.1:{target.port}")
    return server, client, int(client.out.wait("tcp ").split()[1].rpartition(":")[2])


def say(machine: Machine, *words: str, status: int = 0) -> list[str]:
    """Run a command; give the lines that it printed."""
    running = machine.tunnel(*words)
    assert running.wait() == status, running.errors()
    return running.out.all()


def status_of(machine: Machine, name: str) -> dict[str, Any]:
    (line,) = say(machine, "status", name, "--json")
    found: dict[str, Any] = json.loads(line)
    return found


def test_both_roles_say_what_they_do(machine: Machine, target: Target) -> None:
    server, client, port = both(machine, target)
    names = [line.split()[0] for line in say(machine, "ps")]
    assert [name.split("-")[0] for name in names] == ["serve", "up"]
    with visit(port) as visitor:
        visitor.sendall(b"x" * 1_000)
        assert visitor.recv(1_000)
        up, serve = (status_of(machine, name) for name in ("up", "serve"))
    assert up["pid"] == client.process.pid
    assert (up["state"], serve["state"]) == ("linked", "listening")
    for status in (up, serve):
        assert status["connections"] == 1
        (link,) = status["links"]
        assert link["state"] == "linked"
        assert link["linked_at"] > 1e9
        assert link["passed"]["sent_bytes"] >= 1_000
        (entry,) = status["entries"]
        assert entry["public"].endswith(f":{port}")
    assert serve["entries"][0]["client"] == serve["links"][0]["id"]
    (entry,) = up["entries"]
    assert entry["target"] == f"127.0.0.1:{target.port}"
    assert entry["connections"] == 1
    text = "\n".join(say(machine, "status"))
    assert f":{port} → " in text
    assert server.join.split("//")[1].split("@")[0].split(":")[1] not in text
    assert say(machine, "status", "--quiet") == []


def test_stop_and_drain_return_when_it_is_gone(
    machine: Machine, target: Target
) -> None:
    server, client, port = both(machine, target)
    with visit(port) as visitor:
        visitor.sendall(b"x")
        assert visitor.recv(1)
        say(machine, "stop", "up")  # the visitor would keep a drain waiting
        assert client.process.wait(5) == 0
    assert say(machine, "status", "up", status=10) == []
    say(machine, "drain")
    assert server.program.process.wait(5) == 0
    assert say(machine, "ps", status=10) == []
    assert list(run_folder(machine).iterdir()) == []


def test_several_processes_need_a_name(machine: Machine, target: Target) -> None:
    both(machine, target)
    say(machine, "stop", status=2)
    say(machine, "stop", "nobody", status=10)
    say(machine, "retry")  # only one of them is a client
    assert len(say(machine, "ps", "--json")) == 2


def test_what_a_killed_process_leaves_is_swept(
    machine: Machine, target: Target
) -> None:
    server, client, _port = both(machine, target)
    for program in (client, server.program):
        program.process.kill()
        program.process.wait()
    left = sorted(run_folder(machine).iterdir())
    assert len(left) == 2
    eventually(
        lambda: (
            say(machine, "ps", status=10) == [] and not any(map(os.path.lexists, left))
        ),
        "the dead are swept",
    )


def test_the_link_of_a_dead_server_does_not_lead_to_the_next(
    machine: Machine, target: Target
) -> None:
    both(machine, target)
    stale = run_folder(machine) / "serve-1"
    stale.symlink_to(machine.home / "server" / "control")
    os.utime(stale, (0, 0), follow_symlinks=False)
    assert len(say(machine, "ps")) == 2
    assert not stale.is_symlink()


def test_a_process_that_stands_still_does_not_hide_the_others(
    machine: Machine, target: Target
) -> None:
    _server, client, _port = both(machine, target)
    client.process.send_signal(signal.SIGSTOP)
    try:
        listing = machine.tunnel("ps")
        assert listing.wait() == 0
        assert [line.split("-")[0] for line in listing.out.all()] == ["serve"]
        assert "does not answer" in listing.errors()
    finally:
        client.process.send_signal(signal.SIGCONT)


@pytest.mark.skipif(os.geteuid() != 0, reason="NOT TESTED: only root gives files away")
def test_another_users_socket_is_not_opened(machine: Machine) -> None:
    folder = run_folder(machine)
    folder.mkdir(parents=True, mode=0o700)
    with socket.socket(socket.AF_UNIX) as foreign:
        foreign.bind(str(folder / "up-1"))
        foreign.listen()
        foreign.setblocking(False)
        os.chown(folder / "up-1", 65_534, 65_534)
        listing = machine.tunnel("ps")
        assert listing.wait() == 0
        assert listing.out.all() == []
        assert "user 65534" in listing.errors()
        os.chown(folder, 65_534, 65_534)
        assert say(machine, "ps", status=10) == []
        with pytest.raises(BlockingIOError):
            foreign.accept()


def test_a_home_that_cannot_be_written_leaves_the_folder_for_all(
    machine: Machine, target: Target
) -> None:
    (machine.home / "file").write_text("")
    machine.env["XDG_STATE_HOME"] = str(machine.home / "file")
    server = machine.serve()
    (line,) = say(machine, "ps")
    place = machine.home / f"tunnel-{os.geteuid()}"
    assert [one.name for one in place.iterdir()] == [line.split()[0]]
    assert place.stat().st_mode & 0o777 == 0o700
    say(machine, "stop")
    assert server.program.process.wait(5) == 0


def test_an_answer_that_cannot_be_written_is_no_success(
    machine: Machine, target: Target
) -> None:
    both(machine, target)
    full = machine.run("sh", "-c", f"{' '.join(machine.command)} status >/dev/full")
    assert full.returncode == 3
    assert b"was not written" in full.stderr
    closed = machine.run("sh", "-c", f"{' '.join(machine.command)} status >&-")
    assert closed.returncode == 0


def test_a_socket_that_somebody_removes_is_made_again(
    machine: Machine, target: Target
) -> None:
    usual, machine.command = machine.command, often.COMMAND
    both(machine, target)
    machine.command = usual
    shutil.rmtree(run_folder(machine))
    eventually(lambda: machine.tunnel("ps").wait() == 0, "they can be asked again")
    eventually(lambda: len(say(machine, "ps")) == 2, "both can")


def test_a_client_without_a_link_is_not_well_and_tries_at_once(
    machine: Machine, target: Target
) -> None:
    server, client, _port = both(machine, target)
    server.program.end()
    say(machine, "status", "up", "--quiet", status=4)
    status = status_of(machine, "up")
    assert status["state"] == "waiting"
    (link,) = status["links"]
    assert link["reason"]
    tries = sum("link.not_made" in line for line in say(machine, "logs"))
    say(machine, "retry")
    eventually(
        lambda: sum("link.not_made" in one for one in say(machine, "logs")) > tries,
        "it has tried again",
    )
    assert client.process.poll() is None


def test_a_connection_is_kicked_and_no_other(machine: Machine, target: Target) -> None:
    _server, _client, port = both(machine, target)
    with visit(port) as first, visit(port) as second:
        for one in (first, second):
            one.sendall(b"x" * 1_000)
            assert read_exactly(one, 1_000)
        second.sendall(b"x" * 50_000)
        assert read_exactly(second, 50_000)
        head, _title, *rows = say(machine, "top", "serve")
        assert head == "2 connections"
        assert all(re.search(r" (nothing|target|program)  ", row) for row in rows)
        ids = [row.split()[0] for row in rows]
        (said,) = say(machine, "kick", ids[0], "up")
        assert said.endswith(f"{ids[0]} ended, 1 connection reset")
        with contextlib.suppress(ConnectionResetError):
            assert not second.recv(1)
        first.sendall(b"y")
        assert first.recv(1_000) == b"y"
        assert "no link or connection" in refusal(machine, "kick", ids[0])


def test_a_kicked_client_comes_back_without_its_connections(
    machine: Machine, target: Target
) -> None:
    _server, client, port = both(machine, target)
    link = status_of(machine, "serve")["links"][0]
    with visit(port) as visitor:
        visitor.sendall(b"x")
        assert visitor.recv(1)
        (said,) = say(machine, "kick", link["id"], "serve")
        assert said.endswith("1 connection reset")
        with contextlib.suppress(ConnectionResetError):
            assert not visitor.recv(1)
    eventually(
        lambda: any(
            one["id"] == link["id"] and one["linked_at"] > link["linked_at"]
            for one in status_of(machine, "serve")["links"]
        ),
        "it is here again",
    )
    assert client.process.poll() is None


def test_a_link_that_is_cut_at_the_client_loses_no_connection(
    machine: Machine, target: Target
) -> None:
    _server, _client, port = both(machine, target)
    with visit(port) as visitor:
        visitor.sendall(b"x")
        assert visitor.recv(1)
        say(machine, "kick", status_of(machine, "up")["links"][0]["id"], "up")
        visitor.sendall(b"y")
        assert visitor.recv(1)
    (link,) = status_of(machine, "up")["links"]
    assert (link["state"], link["resumes"]) == ("linked", 1)


def test_a_status_is_watched_and_a_log_is_followed(
    machine: Machine, target: Target
) -> None:
    server, _client, _port = both(machine, target)
    watching = machine.tunnel("status", "up", "--watch", "--json")
    watching.out.wait('"state": "linked"', 2)
    following = machine.tunnel("logs", "up", "--follow")
    following.out.wait("link.up")
    server.program.end()
    following.out.wait("link.lost")
    watching.out.wait('"state": "waiting"')
    assert watching.stop(signal.SIGINT) == 0
    assert following.stop(signal.SIGINT) == 130


def shown_on(machine: Machine, term: str) -> bytes:
    """Give what a terminal of 40 columns is sent, until it has been told twice."""
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 12, 40, 0, 0))
    looking = subprocess.Popen(
        (*machine.command, "top", "up"),
        env=machine.env | {"TERM": term},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    shown = b""
    while shown.count(b"1 connection") < 2:
        shown += os.read(ours, 10_000)
    looking.send_signal(signal.SIGINT)
    assert looking.wait(10) == 0
    os.close(theirs)
    os.close(ours)
    return shown


def test_a_narrow_terminal_shows_whole_lines(machine: Machine, target: Target) -> None:
    _server, _client, port = both(machine, target)
    terms = "xterm", "dumb"
    with visit(port) as visitor, ThreadPoolExecutor() as pool:
        visitor.sendall(b"x")
        assert visitor.recv(1)
        told = list(pool.map(partial(shown_on, machine), terms))
    for term, shown in zip(terms, told, strict=True):
        assert (b"\x1b" in shown) == (term == "xterm")
        lines = re.sub(rb"\x1b\[\w", b"", shown).splitlines()
        assert max(map(len, lines)) < 40
        assert any(re.match(rb"[0-9a-f]{8}-\d+ ", line) for line in lines)


def refusal(machine: Machine, *words: str) -> str:
    running = machine.tunnel(*words)
    assert running.wait() != 0
    return running.errors()


def passes(visitor: socket.socket, for_s: float) -> float:
    """Give the bytes per second that come from a target that floods."""
    until, began, count = time.monotonic() + for_s, time.monotonic(), 0
    while time.monotonic() < until:
        count += len(visitor.recv(1_000_000))
    return count / (time.monotonic() - began)


def test_the_rate_of_an_entry_holds_for_its_running_connections_alone(
    machine: Machine,
) -> None:
    with Target(flood) as target:
        server = machine.serve()
        entry = "--tcp", f"127.0.0.1:{target.port}"
        client = machine.up(server.join, *entry, *entry)
        ports = sorted(
            int(client.out.wait("tcp ", n).split()[1].rpartition(":")[2])
            for n in (1, 2)
        )
        with visit(ports[0]) as slow, visit(ports[1]) as fast, visit(ports[0]) as more:
            for one in (slow, fast, more):
                one.recv(1_000)
            (said,) = say(machine, "limit", str(ports[0]), "1MB/s")
            assert said.endswith(": 1.0 MB/s")
            passes(slow, 1.0)  # what was granted before
            with ThreadPoolExecutor(3) as pool:
                waits = [pool.submit(passes, one, 2.0) for one in (slow, fast, more)]
                rates = [one.result() for one in waits]
            assert 500_000 < rates[0] + rates[2] < 1_300_000
            assert min(rates[0], rates[2]) > 150_000
            assert rates[1] > 3_000_000
            say(machine, "limit", said.split(":")[0], "none")
            assert passes(slow, 0.5) > 3_000_000


def test_the_rate_of_an_entry_holds_for_what_its_visitors_send(
    machine: Machine, target: Target
) -> None:
    _server, _client, port = both(machine, target)
    with visit(port) as visitor:
        say(machine, "limit", "tcp-1", "1MB/s")
        data, began = bytes(2_000_000), time.monotonic()
        sending = threading.Thread(target=visitor.sendall, args=(data,))
        sending.start()
        assert read_exactly(visitor, len(data)) == data
        sending.join()
        assert 1 < time.monotonic() - began < 8
        (entry,) = status_of(machine, "up")["entries"]
        assert entry["limit_per_s"] == 1_000_000
    assert "no entry" in refusal(machine, "limit", "nothing", "1MB/s")
    assert "rate=1MB/s" in refusal(machine, "limit", "tcp-1", "1")


def test_entries_come_and_go_while_the_others_run(
    machine: Machine, target: Target
) -> None:
    _server, client, port = both(machine, target)
    with visit(port) as visitor:
        visitor.sendall(b"x")
        assert visitor.recv(1)
        (said,) = say(machine, "add", "tcp", f"127.0.0.1:{target.port},proxy=v1")
        assert said.startswith("+ tcp ")
        line = client.out.wait("tcp ", 2)
        with visit(int(line.split()[1].rpartition(":")[2])) as other:
            other.sendall(b"y")
            head = read_exactly(other, 1)
            while not head.endswith(b"\r\ny"):
                head += read_exactly(other, 1)
            assert head.startswith(b"PROXY TCP4")
            (said,) = say(machine, "remove", "tcp-2")
            assert said.startswith("- tcp ")
            other.sendall(b"z")  # who is in stays
            assert other.recv(1) == b"z"
        visitor.sendall(b"x")
        assert visitor.recv(1)
    names = [one["name"] for one in status_of(machine, "up")["entries"]]
    assert names == ["tcp-1"]
    assert "last entry" in refusal(machine, "remove", "tcp-1")
    assert "no entry is a tpc" in refusal(machine, "add", "tpc", "8000")
    assert "no entry is called" in refusal(machine, "remove", "tcp-9")


def test_an_entry_is_paused_and_led_elsewhere_and_who_is_in_stays(
    machine: Machine, target: Target
) -> None:
    _server, _client, port = both(machine, target)
    with visit(port) as visitor, Target(flood) as other:
        visitor.sendall(b"x")
        assert visitor.recv(1)
        assert say(machine, "pause", str(port)) == ["tcp-1: paused"]
        with contextlib.suppress(ConnectionError), visit(port) as refused:
            assert refused.recv(1) == b""
        assert status_of(machine, "up")["entries"][0]["state"] == "paused"
        (said,) = say(machine, "lead", "tcp-1", str(other.port))
        assert said.startswith("~ tcp ")
        with contextlib.suppress(ConnectionError), visit(port) as refused:
            assert refused.recv(1) == b""  # it is paused still
        assert say(machine, "resume", "tcp-1") == ["tcp-1: open"]
        with visit(port) as flooded:
            assert flooded.recv(1)
        visitor.sendall(b"x")
        assert visitor.recv(1) == b"x"
    (entry,) = status_of(machine, "up")["entries"]
    assert (entry["name"], entry["state"]) == ("tcp-1", "open")
    assert entry["target"].endswith(f":{other.port}")
    assert entry["public"].endswith(f":{port}")
    assert "no entry is called" in refusal(machine, "pause", "tcp-9")
    assert "not as long" in refusal(machine, "lead", "tcp-1", "8000-8001")


def test_a_password_of_an_added_entry_is_told_nowhere(
    machine: Machine, target: Target
) -> None:
    _server, client, _port = both(machine, target)
    proxy = free_port()
    say(machine, "add", "socks", f"{proxy},auth=anna:hunter22")
    entries = status_of(machine, "up")["entries"]
    assert [one["kind"] for one in entries] == ["tcp", "socks"]
    told = [*say(machine, "status"), *say(machine, "logs", "up")]
    told += [*client.out.all(), *client.err.all()]
    assert any("entry.changed" in line for line in told)
    assert not any("hunter22" in line for line in told)
    say(machine, "remove", f"socks-localhost:{proxy}")


def test_what_is_saved_is_in_the_file_and_comes_again(
    machine: Machine, target: Target
) -> None:
    server, file = machine.serve(), machine.home / "up.toml"
    public, more, other = free_port(), free_port(), free_port()
    file.write_text(
        f'[client]\nto = "{server.join}"\n\n# The first.\n[[client.tcp]]\n'
        f"remote = {public}\ntarget = {target.port}  # its port"
    )
    file.chmod(0o600)
    before = file.read_bytes() + b"\n"
    up = "up", "--config", str(file)
    client = machine.tunnel(*up)
    client.out.wait("tcp ")
    entry = f"{more}={target.port}"
    say(machine, "add", "tcp", f"{other}={target.port}")
    said = say(machine, "add", "tcp", entry, "--save")
    assert said == [f"+ tcp {more}", f"saved in {file}"]
    assert file.read_bytes().startswith(before)
    assert file.stat().st_mode & 0o777 == 0o600
    client.out.wait("tcp ", 3)
    taken = file.read_bytes()
    refusal(machine, "add", "reach", f"{server.port}=h:1", "--save")
    assert file.read_bytes() == taken
    # A reload takes what was not saved, and nothing else.
    assert say(machine, "reload", "up") == [f"- tcp {other}"]
    assert client.stop() == 0

    client = machine.tunnel(*up)
    client.out.wait("tcp ", 2)
    with visit(more) as visitor:
        visitor.sendall(b"x")
        assert visitor.recv(1)
    said = say(machine, "remove", str(more), "--save")
    assert said == [f"- tcp {more}", f"saved in {file}"]
    assert file.read_bytes() == before
    assert say(machine, "reload", "up") == []
    assert not client.err.count("event=config.change")
