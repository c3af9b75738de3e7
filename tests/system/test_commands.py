"""What scripts rely on: stdout lines, exit statuses, signals, and saved servers."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import ssl
import subprocess
import threading
from hashlib import sha256
from typing import TYPE_CHECKING, Final

import pytest
import trustme
from support.processes import Machine, free_port
from support.targets import (
    END,
    RESET,
    Target,
    drain,
    read_exactly,
    visit,
    visit_to_end,
)
from support.world import MODES

if TYPE_CHECKING:
    from support.processes import Program, Server
    from support.world import MakeWorld, World

OTHER_TOKEN: Final = "A" * 42 + "E"
OTHER_PIN: Final = "B" * 42 + "I"
PROVED: Final = "link.up"


def public_port(client: Program) -> int:
    return int(client.out.wait("tcp ").split()[1].rpartition(":")[2])


def fails(machine: Machine, status: int, *words: str, to: str = "") -> str:
    """Run a command that must end with ``status``; give what it said."""
    running = machine.tunnel(*words, to=to)
    assert running.wait() == status, running.errors()
    said = running.errors()
    assert "Traceback" not in said
    assert running.out.all() == []
    return said


# stdout ------------------------------------------------------------------------------


def test_serve_prints_its_join_line_first_and_the_same_at_every_start(
    machine: Machine,
) -> None:
    listen = f"127.0.0.1:{free_port()}"
    first = machine.serve(listen=listen)
    assert re.fullmatch(
        rf"tunnel://default:[\w-]{{43}}@{re.escape(listen)}/#[\w-]{{43}}", first.join
    )
    assert first.program.stop() == 0
    assert first.program.out.all() == [first.join]
    assert machine.serve(listen=listen).join == first.join


def test_serve_plain_prints_a_join_line_without_a_pin(machine: Machine) -> None:
    server = machine.serve("--plain")
    assert re.fullmatch(
        rf"tunnel\+plain://default:[\w-]{{43}}@127\.0\.0\.1:{server.port}/", server.join
    )


def test_serve_names_the_public_host_that_it_was_given(machine: Machine) -> None:
    server = machine.serve("--public-host", "vps.example.net")
    assert f"@vps.example.net:{server.port}/" in server.join


def test_serve_keeps_its_secrets_to_its_owner(machine: Machine) -> None:
    server = machine.serve()
    folder = machine.home / "server"
    files = [path for path in folder.iterdir() if path.is_file()]
    assert {"identity.pem", "join"} <= {path.name for path in files}
    assert all(path.stat().st_mode & 0o077 == 0 for path in files)
    assert (folder / "join").read_text().strip() == server.join


def test_serve_refuses_an_identity_that_others_can_write(machine: Machine) -> None:
    first = machine.serve()
    assert first.program.stop() == 0
    identity = machine.home / "server" / "identity.pem"
    identity.chmod(0o666)
    said = fails(machine, 3, "serve", "--state", str(identity.parent))
    assert str(identity) in said


def test_up_prints_one_line_for_each_entry_and_nothing_else(
    machine: Machine, server: Server, target: Target
) -> None:
    here = f"127.0.0.1:{target.port}"
    port, local, socks = free_port(), free_port(), free_port()
    client = machine.up(
        server.join,
        "--tcp", f"{port}={here}",
        "--reach", f"{local}={here}",
        "--socks", f"{socks}",
    )  # fmt: skip
    assert client.stop() == 0
    assert sorted(client.out.all()) == [
        f"reach localhost:{local} {here}",
        f"socks localhost:{socks} -",
        f"tcp 127.0.0.1:{port} {here}",
    ]


def test_up_prints_no_line_again_when_its_link_comes_back(
    machine: Machine, target: Target
) -> None:
    listen = f"127.0.0.1:{free_port()}"
    first = machine.serve(listen=listen)
    client = machine.up(first.join, "--tcp", f"0=127.0.0.1:{target.port}")
    first.program.stop(signal.SIGKILL)
    machine.serve(listen=listen)
    client.err.wait("mapping.ready", 2)
    visit(public_port(client)).close()
    assert client.stop() == 0
    assert len(client.out.all()) == 1


def test_an_entry_whose_target_is_down_is_ready_and_the_visitor_refused(
    machine: Machine, server: Server
) -> None:
    client = machine.up(server.join, "--tcp", f"0=127.0.0.1:{free_port()}")
    port = public_port(client)
    assert visit_to_end(lambda: visit(port)) == (b"", RESET)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("tcp", "{target}"), "tcp 127.0.0.1:{port} localhost:{target}"),
        (
            ("tcp", "127.0.0.1:{target}", "--remote", "{port}"),
            "tcp 127.0.0.1:{port} 127.0.0.1:{target}",
        ),
        (
            ("reach", "{port}", "127.0.0.1:{target}"),
            "reach localhost:{port} 127.0.0.1:{target}",
        ),
        (("socks", "{port}"), "socks localhost:{port} -"),
    ],
    ids=["tcp", "tcp remote", "reach", "socks"],
)
def test_short_forms_print_the_line_of_their_entry(
    machine: Machine, target: Target, words: tuple[str, ...], line: str
) -> None:
    port = free_port()
    server = machine.serve("--ports", str(port))
    values = {"port": port, "target": target.port}
    command = [word.format(**values) for word in words]
    client = machine.tunnel(*command, to=server.join)
    assert client.out.wait(" ") == line.format(**values)
    visit(port).close()


def test_json_is_one_object_per_event(
    machine: Machine, server: Server, target: Target
) -> None:
    client = machine.tunnel("tcp", str(target.port), "--json", to=server.join)
    event = json.loads(client.out.wait("{"))
    assert event["target"] == f"localhost:{target.port}"
    assert event["kind"] == "tcp"


def test_version_is_one_line(machine: Machine) -> None:
    running = machine.tunnel("--version")
    assert running.wait() == 0
    assert re.fullmatch(r"tunnel \d+\.\d+\.\d+", "\n".join(running.out.all()))


# Saved servers -----------------------------------------------------------------------


def test_the_first_line_that_worked_need_not_be_given_again(
    machine: Machine, server: Server, target: Target
) -> None:
    first = machine.up(server.join, "--tcp", f"0=127.0.0.1:{target.port}")
    assert first.stop() == 0
    second = machine.tunnel("tcp", str(target.port))
    visit(public_port(second)).close()
    kept = machine.home / "config" / "tunnel" / "default.join"
    assert kept.stat().st_mode & 0o777 == 0o600


def test_a_server_that_moved_is_said_and_saved_by_its_key(
    machine: Machine, target: Target
) -> None:
    entry = "--tcp", f"0=127.0.0.1:{target.port}"
    kept = machine.home / "config" / "tunnel" / "default.join"
    old = machine.serve(listen=f"127.0.0.1:{free_port()}")
    assert machine.up(old.join, *entry).stop() == 0
    old.program.stop()
    new = machine.serve(listen=f"127.0.0.1:{free_port()}")
    client = machine.up(new.join, *entry)
    said = client.err.wait("server.moved")
    assert f"was=127.0.0.1:{old.port} now=127.0.0.1:{new.port}" in said
    assert kept.read_text().strip() == new.join
    assert client.stop() == 0
    again = machine.tunnel("tcp", str(target.port))
    visit(public_port(again)).close()


@pytest.mark.parametrize(
    "how", ["another key", "a name of its own", "--save-as", "the other still leads"]
)
def test_another_server_or_another_way_to_it_does_not_replace_the_saved_one(
    machine: Machine, server: Server, target: Target, how: str
) -> None:
    entry = "--tcp", f"0=127.0.0.1:{target.port}"
    kept = machine.home / "config" / "tunnel" / "default.join"
    kept.parent.mkdir(parents=True)
    pin = OTHER_PIN if how == "another key" else server.join.partition("#")[2]
    line = f"tunnel://default:{OTHER_TOKEN}@127.0.0.1:1/#{pin}"
    if how == "the other still leads":
        line = server.join.replace("127.0.0.1", "localhost")
    kept.write_text(f"{line}\n")
    kept.chmod(0o600)
    before = kept.read_text()
    if how == "a name of its own":
        assert machine.tunnel("join", server.join, "--save-as", "lan").wait() == 0
    more = ("--save-as", "other") if how == "--save-as" else ()
    client = machine.up(server.join, *entry, *more, ready=1)
    if how == "the other still leads":  # it is looked for, and hears no word
        server.program.err.wait("link.refused")
    assert client.stop() == 0
    assert kept.read_text() == before
    assert client.err.count("server.moved") == 0


@pytest.mark.parametrize("way", [(), ("--save-as", "vps")], ids=["default", "by name"])
@pytest.mark.parametrize("moved", [False, True])
def test_a_command_that_fails_saves_no_server(
    machine: Machine, server: Server, target: Target, way: tuple[str, ...], moved: bool
) -> None:
    folder = machine.home / "config" / "tunnel"
    folder.mkdir(parents=True)
    if moved:
        old = re.sub(r":\d+/", f":{free_port()}/", server.join)
        (folder / "default.join").write_text(old)
        (folder / "default.join").chmod(0o600)
    before = {path.name: path.read_text() for path in folder.iterdir()}
    with socket.create_server(("127.0.0.1", free_port())) as taken:
        entry = f"{taken.getsockname()[1]}=127.0.0.1:{target.port}"
        said = fails(machine, 7, "up", "--tcp", entry, "--to", server.join, *way)
    assert PROVED in said
    assert "server.moved" not in said
    assert {path.name: path.read_text() for path in folder.iterdir()} == before


def test_join_reads_a_line_from_stdin_and_saves_it_by_name(
    machine: Machine, server: Server, target: Target
) -> None:
    running = machine.tunnel("join", "-", "--save-as", "vps", stdin=subprocess.PIPE)
    assert running.process.stdin is not None
    running.process.stdin.write(server.join.encode() + b"\n")
    running.process.stdin.close()
    assert running.wait() == 0
    client = machine.tunnel("tcp", str(target.port), "--to", "vps")
    visit(public_port(client)).close()


def test_the_environment_can_name_the_server(
    machine: Machine, server: Server, target: Target
) -> None:
    env = {"TUNNEL_TO": server.join}
    client = machine.tunnel("tcp", str(target.port), env=env)
    visit(public_port(client)).close()


# Exit statuses -----------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_a_wrong_token_ends_with_6(machine: Machine, mode: str) -> None:
    server = machine.serve(*MODES[mode])
    join = re.sub(r":[\w-]{43}@", f":{OTHER_TOKEN}@", server.join)
    commands = [("up", "--tcp", "1"), ("pipe", "127.0.0.1:1")]
    running = [machine.tunnel(*words, to=join) for words in commands]
    for one in running:
        assert one.wait() == 6
        assert one.out.all() == []
        assert one.err.count("error: ") == 1
        assert OTHER_TOKEN not in one.errors()
        assert "Traceback" not in one.errors()
    assert server.program.err.count("link.refused") == 2
    assert server.program.err.count(PROVED) == 0
    assert "Traceback" not in server.program.errors()


def test_an_unknown_user_ends_with_6(machine: Machine, server: Server) -> None:
    join = server.join.replace("default:", "nobody:")
    fails(machine, 6, "up", "--tcp", "1", to=join)


@pytest.mark.parametrize("words", [("up", "--tcp", "1"), ("pipe", "127.0.0.1:1")])
def test_a_wrong_pin_ends_with_5(
    machine: Machine, server: Server, words: tuple[str, ...]
) -> None:
    join = server.join.partition("#")[0] + "#" + OTHER_PIN
    said = fails(machine, 5, *words, to=join)
    assert OTHER_PIN in said
    assert server.join.partition("#")[2] in said


def test_a_server_with_another_key_hears_nothing(machine: Machine) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    context.set_alpn_protocols(["prot/1"])

    def listen(raw: socket.socket) -> object:
        heard = b""
        with context.wrap_socket(raw, server_side=True) as conn:
            try:
                while data := conn.recv(65_536):
                    heard += data
            except OSError:
                pass
        return heard

    with Target(listen) as impostor:
        join = f"tunnel://default:{OTHER_TOKEN}@127.0.0.1:{impostor.port}/#{OTHER_PIN}"
        fails(machine, 5, "up", "--tcp", "1", to=join)
        assert impostor.next_seen() == b""
        assert impostor.seen.empty()


def test_a_server_that_speaks_no_tls_ends_with_5(machine: Machine) -> None:
    with Target(lambda conn: conn.sendall(b"SSH-2.0-x\r\n")) as other:
        join = f"tunnel://default:{OTHER_TOKEN}@127.0.0.1:{other.port}/#{OTHER_PIN}"
        fails(machine, 5, "up", "--tcp", "1", to=join)


def test_a_public_port_that_is_taken_is_named_and_the_other_entries_go_on(
    machine: Machine, server: Server, target: Target
) -> None:
    here = f"127.0.0.1:{target.port}"
    with socket.create_server(("127.0.0.1", free_port())) as taken:
        port = taken.getsockname()[1]
        client = machine.up(
            server.join, "--tcp", f"{port}={here}", "--tcp", f"0={here}", ready=1
        )
        said = client.err.wait(f"the server does not give {port} for {here}")
        assert said.endswith("; it is asked for again until it is free")
        with visit(public_port(client)) as conn:
            conn.sendall(b"hello")
            assert read_exactly(conn, 5) == b"hello"
        assert client.process.poll() is None
        assert client.stop() == 0
    assert len(client.out.all()) == 1
    assert "error:" not in client.errors()
    assert "Traceback" not in client.errors() + server.program.errors()


def test_without_another_entry_a_public_port_that_is_taken_ends_with_7(
    machine: Machine, server: Server, target: Target
) -> None:
    with socket.create_server(("127.0.0.1", free_port())) as taken:
        port = taken.getsockname()[1]
        entry = f"{port}=127.0.0.1:{target.port}"
        said = fails(machine, 7, "up", "--tcp", entry, to=server.join)
    assert str(port) in said


@pytest.mark.parametrize("kind", ["reach", "socks"])
def test_a_local_listener_that_is_taken_ends_with_7(
    machine: Machine, server: Server, target: Target, kind: str
) -> None:
    with socket.create_server(("127.0.0.1", free_port())) as taken:
        port = taken.getsockname()[1]
        entry = {"reach": f"{port}=127.0.0.1:1", "socks": f"{port}"}[kind]
        said = fails(
            machine, 7, "up", f"--{kind}", entry, "--tcp", f"{target.port}",
            to=server.join,
        )  # fmt: skip
    assert f"port {port} is already in use" in said


def test_a_link_port_that_is_taken_ends_with_7(
    machine: Machine, server: Server
) -> None:
    state = str(machine.home / "second")
    listen = f"127.0.0.1:{server.port}"
    said = fails(machine, 7, "serve", "--listen", listen, "--state", state)
    assert f"port {server.port} is already in use" in said


@pytest.mark.parametrize(
    "words",
    [("serve",), ("serve", "--listen", "127.0.0.1:0", "--http"), ("socks", "--auth")],
    ids=["link", "names", "proxy"],
)
def test_an_address_of_another_machine_is_not_taken_and_ends_with_3(
    machine: Machine, server: Server, words: tuple[str, ...]
) -> None:
    more: tuple[str, ...] = ("--listen", "192.0.2.77:7443")
    if words[-1] == "--http":
        more = ("192.0.2.77:8080", "--domain", "t.test")
    elif words[0] == "socks":
        more = ("me:secret", "192.0.2.77:1080", "--to", server.join)
    said = fails(machine, 3, *words, *more)
    assert "192.0.2.77 is not an address of this machine" in said


@pytest.mark.parametrize(
    "words",
    [
        ("up",),
        ("up", "--tcp", "1"),
        ("up", "--tcp", "no port", "--to", "{join}"),
        ("up", "--tcp", "0", "--to", "{join}"),
        ("up", "--reach", "5432", "--to", "{join}"),
        ("up", "--socks", "0.0.0.0:1080", "--to", "{join}"),
        ("up", "--tcp", "1", "--to", "tunnel://nonsense"),
        ("up", "--tcp", "1", "--to", "unknown-name"),
        ("up", "--no-such-flag"),
        ("tcp", "1", "2", "--to", "{join}"),
        ("pipe", "127.0.0.1:1"),
        ("join", "nonsense"),
        ("serve", "--ports", "9-1"),
        ("no-such-command",),
    ],
    ids=" ".join,
)
def test_a_usage_error_ends_with_2_and_says_why(
    machine: Machine, words: tuple[str, ...]
) -> None:
    join = f"tunnel://default:{OTHER_TOKEN}@127.0.0.1:1/#{OTHER_PIN}"
    assert fails(machine, 2, *(word.format(join=join) for word in words)).strip()


def test_a_pipe_to_a_target_that_refuses_says_so_and_fails(
    machine: Machine, server: Server
) -> None:
    target = f"127.0.0.1:{free_port()}"
    said = fails(machine, 4, "pipe", target, to=server.join)
    assert said == f"error: cannot reach {target} from the server: connection refused"


# Signals -----------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_idle_programs_end_at_once(
    machine: Machine, target: Target, number: signal.Signals
) -> None:
    server = machine.serve()
    client = machine.up(server.join, "--tcp", f"0=127.0.0.1:{target.port}")
    status = 0 if number is signal.SIGTERM else 130
    assert client.stop(number) == status
    assert server.program.stop(number) == status
    assert "Traceback" not in client.errors() + server.program.errors()


@pytest.mark.parametrize("way", ["A", "B", "C"])
@pytest.mark.parametrize("who", ["client", "server"])
def test_sigterm_lets_a_transfer_end_takes_nothing_new_and_exits_with_0(
    make_world: MakeWorld, way: str, who: str
) -> None:
    world = make_world()
    running = world.client if who == "client" else world.server.program
    with world.visit(way, "echo") as conn:
        conn.sendall(b"first")
        assert read_exactly(conn, 5) == b"first"
        running.send(signal.SIGTERM)
        refused_now(world, way)
        payload = os.urandom(500_000)
        sending = threading.Thread(target=conn.sendall, args=(payload,))
        sending.start()
        assert sha256(read_exactly(conn, len(payload))).digest() == (
            sha256(payload).digest()
        )
        sending.join()
        conn.shutdown(socket.SHUT_WR)
        assert drain(conn) == (0, END)
    assert running.wait() == 0
    assert "Traceback" not in running.errors()


def refused_now(world: World, way: str) -> None:
    """Go to the door until it is shut: the signal is on its way."""
    while True:
        try:
            with world.visit(way, "echo") as conn:
                conn.sendall(b"x")
                if conn.recv(1) != b"x":
                    return
        except (OSError, AssertionError, pytest.fail.Exception):
            return


def test_a_second_ctrl_c_does_not_wait_for_the_transfer(
    make_world: MakeWorld,
) -> None:
    world = make_world()
    with world.visit("A", "echo") as conn:
        conn.sendall(b"first")
        assert read_exactly(conn, 5) == b"first"
        world.client.send(signal.SIGINT)
        refused_now(world, "A")
        assert world.client.process.poll() is None
        assert world.client.stop(signal.SIGINT) == 130
        assert drain(conn) == (0, RESET)
    assert "Traceback" not in world.client.errors()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_client_that_waits_for_its_server_ends_at_once(
    machine: Machine, number: signal.Signals
) -> None:
    where = f"127.0.0.1:{free_port()}"
    join = f"tunnel://default:{OTHER_TOKEN}@{where}/#{OTHER_PIN}"
    client = machine.up(join, "--tcp", "1", ready=0)
    client.err.wait(f"cannot reach {where}")
    assert client.stop(number) == (0 if number is signal.SIGTERM else 130)
    assert "Traceback" not in client.errors()
