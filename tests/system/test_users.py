"""More than one person: invited, looked at, thrown out in the middle of a transfer."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shlex
import signal
import socket
import stat
import time
from pathlib import Path
from typing import Final

import pytest
from support.processes import Machine, Program, eventually
from support.targets import Target, flood, visit

from tunnel.access.months import Months

RATE: Final = 5_000_000
"""Bytes a second that a user is limited to."""
AT_ONCE_S: Final = 1.0
"""Within this who was thrown out has nothing left."""


def state_of(machine: Machine) -> Path:
    return machine.home / "server"


def ask(machine: Machine, *words: str, status: int = 0) -> list[dict[str, object]]:
    """Run a command about users; give what it printed."""
    where = ("--state", str(state_of(machine)), "--json")
    running = machine.tunnel(*words, *where)
    assert running.wait() == status, running.errors()
    return [json.loads(line) for line in running.out.all()]


def invite(machine: Machine, name: str, *words: str) -> str:
    (answer,) = ask(machine, "invite", name, *words)
    return str(answer["join"])


def client_of(machine: Machine, join: str, target: Target) -> tuple[Program, int]:
    """Run a client with an own home that publishes the target; give its port."""
    other = Machine(machine.home / f"home-{join.split('/')[2].split(':')[0]}")
    other.home.mkdir(exist_ok=True)
    machine._programs.append(
        running := other.up(join, "--tcp", f"127.0.0.1:{target.port}")
    )
    return running, int(running.out.wait("tcp ").split()[1].rpartition(":")[2])


def moving(port: int) -> socket.socket:
    """Visit an echo that works, and is in the middle of a transfer."""
    visitor = visit(port)
    visitor.sendall(b"x" * 1_000_000)
    assert visitor.recv(1)
    return visitor


def is_cut_within(visitor: socket.socket, seconds: float) -> None:
    """Read to the end, which must come in time; closes the socket."""
    visitor.settimeout(seconds)
    until = time.monotonic() + seconds
    with visitor, contextlib.suppress(ConnectionError):
        while visitor.recv(1 << 20):
            assert time.monotonic() < until, "bytes still come"


def nobody_listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def works(port: int) -> None:
    with visit(port) as visitor:
        visitor.sendall(b"hello")
        assert visitor.recv(5)


def test_an_invited_user_is_there_until_it_is_revoked(
    machine: Machine, target: Target
) -> None:
    server = machine.serve()
    alice, bob = invite(machine, "alice"), invite(machine, "bob")
    client, port = client_of(machine, alice, target)
    _, others_port = client_of(machine, bob, target)
    visitor, other = moving(port), moving(others_port)
    (shown,) = ask(machine, "users", "show", "alice")
    assert shown["links"] == shown["sessions"] == 1
    assert [one["user"] for one in ask(machine, "users", "ls")] == ["alice", "bob"]

    ask(machine, "users", "revoke", "alice")
    is_cut_within(visitor, AT_ONCE_S)
    assert nobody_listens(port)
    with other:
        other.sendall(b"more")
        assert other.recv(1)
    works(others_port)
    assert client.wait() == 6
    assert "the user alice was revoked" in client.errors()
    again = machine.tunnel("up", "--tcp", f"{target.port}", to=alice)
    assert again.wait() == 6
    assert "event=link.resumed" not in server.program.errors()
    assert [one["user"] for one in ask(machine, "users", "ls")] == ["bob"]
    assert "event=user.revoked user=alice by=" in server.program.errors()


def test_a_user_that_is_frozen_is_gone_as_fast(
    machine: Machine, target: Target
) -> None:
    """What does not read its goodbye has its wire cut."""
    server = machine.serve()
    alice = invite(machine, "alice")
    before = server.program.descriptors()
    client, port = client_of(machine, alice, target)
    visitor = moving(port)
    client.send(signal.SIGSTOP)
    try:
        ask(machine, "users", "revoke", "alice")
        is_cut_within(visitor, AT_ONCE_S)
        assert nobody_listens(port)
        eventually(
            lambda: server.program.descriptors() <= before, "its link is closed", 1.0
        )
    finally:
        client.send(signal.SIGCONT)


def test_commands_change_the_file_where_no_server_runs(
    machine: Machine, target: Target
) -> None:
    server = machine.serve()
    assert server.program.stop() == 0
    listen = f"127.0.0.1:{server.port}"
    join = invite(machine, "alice", "--rate", "50MB/s", "--expires", "30d")
    assert server.join.partition("@")[2] == join.partition("@")[2]
    file = state_of(machine) / "users.toml"
    assert file.stat().st_mode & 0o777 == 0o600
    assert join.split(":")[2].split("@")[0] not in file.read_text()

    machine.serve(listen=listen)
    _, port = client_of(machine, join, target)
    works(port)
    (shown,) = ask(machine, "users", "show", "alice")
    assert shown["limits"] == ["rate=50MB/s"]


def test_a_file_that_a_person_writes_holds_within_a_second(
    machine: Machine, target: Target
) -> None:
    server = machine.serve()
    _, port = client_of(machine, invite(machine, "alice"), target)
    file = state_of(machine) / "users.toml"
    right = file.read_text()
    visitor = moving(port)

    file.write_text(right + "[users.bob]\nverifier = 3\n")
    said = server.program.err.wait("event=users.unreadable")
    assert f"{file}:{right.count(chr(10)) + 2}: " in said
    works(port)
    visitor.sendall(b"more")
    assert visitor.recv(1)

    file.write_text("")
    is_cut_within(visitor, AT_ONCE_S)
    assert nobody_listens(port)


def test_a_wrong_file_of_users_keeps_a_server_from_starting(machine: Machine) -> None:
    assert machine.serve().program.stop() == 0
    file = state_of(machine) / "users.toml"
    file.write_text("[users.alice]\nmay = []\n")
    file.chmod(0o600)
    running = machine.tunnel("serve", "--state", str(file.parent))
    assert running.wait() == 3
    assert f"{file}:1: there is no verifier" in running.errors()
    assert not running.out.all()


def test_what_a_dead_server_left_is_swept(machine: Machine) -> None:
    first = machine.serve()
    first.program.send(signal.SIGKILL)
    first.program.wait()
    control = state_of(machine) / "control"
    assert stat.S_ISSOCK(control.stat().st_mode)
    invite(machine, "alice")  # nobody answers there: in the file
    server = machine.serve()
    assert control.stat().st_mode & 0o777 == 0o600
    ask(machine, "users", "revoke", "alice")
    server.program.err.wait("event=user.revoked user=alice")
    assert server.program.stop() == 0
    assert not control.exists()


def test_another_users_socket_is_not_asked(machine: Machine) -> None:
    if os.geteuid():
        pytest.skip("NOT TESTED: only root can make a socket of another user")
    state = state_of(machine)
    state.mkdir()
    with socket.socket(socket.AF_UNIX) as foreign:
        foreign.bind(str(state / "control"))
        foreign.listen()
        os.chown(state / "control", 12_345, 12_345)
        running = machine.tunnel("users", "ls", "--state", str(state))
        assert running.wait() == 3
        assert "12345" in running.errors()
        foreign.setblocking(False)
        with pytest.raises(BlockingIOError):
            foreign.accept()


def test_strange_questions_are_answered_and_harm_nobody(machine: Machine) -> None:
    machine.serve()
    control = str(state_of(machine) / "control")
    silent: list[socket.socket] = []

    def one_more_is_told() -> bool:
        silent.append(socket.socket(socket.AF_UNIX))
        silent[-1].connect(control)
        return bool(select.select(silent, [], [], 0)[0])

    try:
        eventually(one_more_is_told, "there are as many as are heard at once")
        assert b"too many" in question(control, b'{"do": "users.ls"}\n')
    finally:
        for one in silent:
            one.close()
    for asked in (
        b"\n",
        b"[]\n",
        b"[" * 100_000 + b"\n",
        b'{"do": "users.ls", "with": 3}\n',
        b'{"do": "users.fly", "with": {}}\n',
        b'{"do": "users.show", "with": {"name": 3}}\n',
        b'{"do": "users.invite", "with": {"name": "a", "may": [3]}}\n',
        b'{"do": "users.invite", "with": {"name": "a", "expires_s": true}}\n',
        b"x" * 1_100_000 + b"\n",
        b"no end",
    ):
        eventually(lambda: b"too many" not in question(control, b"\n"), "room")
        failed = json.loads(question(control, asked))["failed"]
        assert failed["what"], asked
    assert ask(machine, "users", "ls") == []


def question(control: str, text: bytes) -> bytes:
    with socket.socket(socket.AF_UNIX) as asking:
        asking.connect(control)
        asking.settimeout(20)
        with contextlib.suppress(BrokenPipeError):
            asking.sendall(text)
            asking.shutdown(socket.SHUT_WR)
        return asking.makefile("rb").readline()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("invite", "Alice"), "for example alice"),
        (("invite", "www"), "nobody is invited"),
        (("invite", "alice", "--may", "tpc:22"), "tcp:22"),
        (("invite", "alice", "--rate", "5Mbit/s"), "8 bits"),
        (("invite", "alice", "--rate", "5MBps"), "--rate: '5MBps' is no value of rate"),
        (("invite", "alice", "--rate", "5M"), "did you mean --rate 5MB/s"),
        (
            ("invite", "alice", "--limit", "rate=5M"),
            "--limit: '5M' is no value of rate",
        ),
        (("invite", "alice", "--limit", "sesions=3"), "sessions"),
        (("invite", "alice", "--expires", "soon"), "for example --expires 30s"),
        (("users", "revoke", "bob"), "there is no user"),
        (("users", "limit", "bob"), "no limit is given"),
        (("users", "revoke", "default"), "default"),
    ],
)
def test_wrong_words_are_named_and_change_nothing(
    machine: Machine, words: tuple[str, ...], said: str
) -> None:
    state_of(machine).mkdir(mode=0o700)
    (state_of(machine) / "join").write_text(
        f"tunnel+plain://default:{'A' * 43}@127.0.0.1:7443/\n"
    )
    (state_of(machine) / "join").chmod(0o600)
    running = machine.tunnel(*words, "--state", str(state_of(machine)))
    assert running.wait() == 2
    assert said in running.errors()
    assert not (state_of(machine) / "users.toml").exists()


def test_a_user_is_rotated_limited_renamed_and_its_time_ends(
    machine: Machine, target: Target
) -> None:
    server = machine.serve()
    soon = invite(machine, "bob", "--expires", "6s")
    _, port = client_of(machine, soon, target)
    other = moving(port)
    first = invite(machine, "alice", "--may", "tcp:*", "--limit", "sessions=3")
    old, port = client_of(machine, first, target)
    visitor = moving(port)

    (limited,) = ask(machine, "users", "limit", "alice", "--rate", "90MB/s")
    assert limited["limits"] == ["sessions=3", "rate=90MB/s"]
    visitor.sendall(b"more")
    assert visitor.recv(1)

    (rotated,) = ask(machine, "users", "rotate", "alice")
    is_cut_within(visitor, AT_ONCE_S)
    assert rotated["join"] != first
    old.stop()
    _, port = client_of(machine, str(rotated["join"]), target)
    visitor = moving(port)

    (renamed,) = ask(
        machine, "users", "rename", "alice", "alicia", "--address", "vps.example:1"
    )
    is_cut_within(visitor, AT_ONCE_S)
    assert (renamed["user"], renamed["may"]) == ("alicia", ["tcp:*"])
    assert renamed["limits"] == ["sessions=3", "rate=90MB/s"]
    join = str(renamed["join"])
    assert join.startswith("tunnel://alicia:")
    assert "@vps.example:1/#" in join
    months = state_of(machine) / "months.json"
    eventually(lambda: months.exists() and "alicia" in months.read_text(), "months")
    assert json.loads(months.read_text())["bytes"]["alicia"] > 1_000_000
    reason = 'reason="the user alice is called alicia now"'
    assert reason in server.program.errors()
    join = join.replace("vps.example:1", f"127.0.0.1:{server.port}")
    _, port = client_of(machine, join, target)
    works(port)

    server.program.err.wait("event=user.expired user=bob")
    is_cut_within(other, AT_ONCE_S)
    log = server.program.errors()
    for event in ("limited", "rotated", "renamed", "expired"):
        assert log.count(f"event=user.{event} user=") == 1


def test_a_month_goes_on_under_another_name_where_no_server_runs(
    machine: Machine,
) -> None:
    machine.serve().program.stop()
    invite(machine, "alice")
    months = Months(state_of(machine))
    months.note("alice", 5)
    months.write(str(months.due()))
    ask(machine, "users", "rename", "alice", "bob")
    kept = Months(state_of(machine))
    assert (kept.bytes_of("alice"), kept.bytes_of("bob")) == (0, 5)


def test_a_rate_holds_within_a_second_for_transfers_that_run(machine: Machine) -> None:
    server = machine.serve()
    alice = invite(machine, "alice", "--may", "tcp:*")
    with Target(flood) as target, contextlib.ExitStack() as stack:
        _, port = client_of(machine, alice, target)
        _, free = client_of(machine, server.join, target)
        conns = [stack.enter_context(visit(port)) for _ in range(8)]
        assert sum(read_for(conns, 0.5)) > RATE
        ask(machine, "users", "limit", "alice", "--rate", "5MB/s")
        read_for(conns, 1.0)
        began = time.monotonic()
        read = read_for(conns, 2.5)
        rate = sum(read) / (time.monotonic() - began)
        assert rate == pytest.approx(RATE, rel=0.05)
        assert min(read) > 0.8 * max(read)
        assert sum(read_for([stack.enter_context(visit(free))], 0.5)) > RATE


def read_for(conns: list[socket.socket], seconds: float) -> list[int]:
    """Read what comes on each for a while; give how much."""
    counts = dict.fromkeys(conns, 0)
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        for conn in select.select(conns, [], [], left)[0]:
            counts[conn] += len(conn.recv(65_536))
    return list(counts.values())


def test_a_line_for_one_machine_works_for_one_machine(
    machine: Machine, target: Target
) -> None:
    server = machine.serve()
    line = invite(machine, "alice", "--once")
    here = f"127.0.0.1:{target.port}"

    (machine.home / "config").write_text("no folder can be here")
    cannot = machine.tunnel("up", "--tcp", here, to=line)
    assert cannot.wait() == 3
    assert "Not a directory" in cannot.errors()
    assert "event=user.own_token" not in server.program.errors()
    (machine.home / "config").unlink()

    client = machine.up(line, "--tcp", here)
    saved = (machine.home / "config" / "tunnel" / "default.join").read_text().strip()
    assert saved != line
    assert saved.partition("@")[2] == line.partition("@")[2]
    assert client.stop() == 0
    assert ask(machine, "users", "show", "alice")[0]["once"] is None

    again = machine.tunnel("up", "--tcp", here)
    again.out.wait("tcp ")
    assert again.stop() == 0
    late = machine.tunnel("up", "--tcp", here, to=line)
    assert late.wait() == 6
    assert server.program.err.count("event=user.own_token") == 1

    (rotated,) = ask(machine, "users", "rotate", "alice")
    assert rotated["once"] is None
    (rotated,) = ask(machine, "users", "rotate", "alice", "--once")
    assert rotated["once"] == "unused"


def test_a_line_for_one_machine_needs_tls(machine: Machine) -> None:
    machine.serve("--plain")
    words = ("invite", "alice", "--once", "--state", str(state_of(machine)))
    running = machine.tunnel(*words)
    assert running.wait() == 2
    assert "needs TLS" in running.errors()


def test_the_chapter_of_the_readme_is_true_word_for_word(machine: Machine) -> None:
    pytest.importorskip("segno", reason="NOT TESTED: the extra qr is not installed")
    server = machine.serve()
    text = (Path(__file__).parents[2] / "README.md").read_text("utf-8")
    chapter = text.partition("## More than one person")[2].partition("\n## ")[0]
    block = chapter.partition("```bash\n")[2].partition("```")[0]
    commands = [shlex.split(line, comments=True) for line in block.splitlines()]
    assert len(commands) == 10
    for tunnel, *words in commands:
        assert tunnel == "tunnel"
        running = machine.tunnel(*words, env={"TUNNEL_STATE": str(state_of(machine))})
        assert running.wait() == 0, (words, running.errors())
        (answer, *more) = running.out.all()
        if words[0] == "invite" or words[1] in ("rotate", "rename"):
            assert answer.startswith("tunnel://")
            assert not more
    names = [one["user"] for one in ask(machine, "users", "ls")]
    assert names == ["archive", "laptop", "phone"]
    assert server.program.err.count("event=user.") == 9


@pytest.mark.parametrize("running", [True, False])
def test_a_line_that_could_not_be_written_is_no_success(
    machine: Machine, running: bool
) -> None:
    server = machine.serve()
    if not running:
        server.program.stop()
    command = shlex.join((*machine.command, "invite", "alice", "--state",
                          str(state_of(machine))))  # fmt: skip
    done = machine.run("sh", "-c", f"{command} >/dev/full")
    assert done.returncode == 3
    assert b"No space left" in done.stderr
    assert b"tunnel users rotate alice" in done.stderr


def test_the_control_socket_is_not_reached_through_the_tunnel(machine: Machine) -> None:
    """The owner reaches each socket of the server, but not this one in its name."""
    server = machine.serve()
    control = f"unix:{state_of(machine)}/control"
    asked = b'{"do": "users.invite", "with": {"name": "mallory", "may": ["all"]}}\n'
    done = machine.run(
        *machine.command, "pipe", control, "--to", server.join, stdin=asked
    )
    assert b"not reached through the tunnel" in done.stdout
    assert ask(machine, "users", "ls") == []
    assert "event=control.refused" in server.program.errors()
