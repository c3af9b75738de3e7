"""Unix sockets, ranges, PROXY headers, proxies on the way and inward, other exits."""

from __future__ import annotations

import base64
import os
import re
import signal
import socket
import subprocess
import threading
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

import pytest
from support import lively
from support.namespaces import BOTH, Network
from support.processes import curl, free_port
from support.targets import Target, ask_socks, echo, read_exactly

if TYPE_CHECKING:
    from pathlib import Path

    from support.processes import Machine, Program, Server

HELLO = b"hello from far away"
NAME = "center.test"
"""A server's name that nobody but the proxy knows."""


@pytest.fixture
def server(machine: Machine) -> Server:
    return machine.serve()


class UnixTarget(Target):
    """A service on a unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__(echo)
        listener = self._listener
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        threading.Thread(target=self._accept, daemon=True).start()
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def where(client: Program, kind: str) -> str:
    return client.out.wait(f"{kind} ").split()[1]


def port_of(client: Program, kind: str) -> int:
    return int(re.split(r"[:-]", where(client, kind))[1])


def exchange(conn: socket.socket, question: bytes = HELLO) -> bytes:
    """Say something, end, and read to the end."""
    with conn:
        conn.settimeout(20)
        conn.sendall(question)
        conn.shutdown(socket.SHUT_WR)
        answer = b""
        while data := conn.recv(65_536):
            answer += data
        return answer


def tcp(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port))


def unix(path: Path) -> socket.socket:
    conn = socket.socket(socket.AF_UNIX)
    conn.connect(str(path))
    return conn


# Unix --------------------------------------------------------------------------------


def test_a_public_port_leads_to_a_unix_socket(
    machine: Machine, server: Server, tmp_path: Path
) -> None:
    path = tmp_path / "app.sock"
    with UnixTarget(path):
        client = machine.tunnel("tcp", f"unix:{path}", to=server.join)
        line = client.out.wait("tcp ")
        assert line.endswith(f" unix:{path}")
        assert exchange(tcp(port_of(client, "tcp"))) == HELLO


def test_a_unix_socket_here_leads_to_the_servers_side_and_goes_at_the_end(
    machine: Machine, server: Server, target: Target, tmp_path: Path
) -> None:
    path = tmp_path / "db.sock"
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(path))
    entry = f"unix:{path}", f"127.0.0.1:{target.port}"
    client = machine.tunnel("reach", *entry, to=server.join)
    assert where(client, "reach") == f"unix:{path}"
    assert os.stat(path).st_mode & 0o777 == 0o600
    assert exchange(unix(path)) == HELLO
    second = machine.tunnel("reach", *entry, to=server.join)
    assert second.wait() == 7
    assert "already in use" in second.errors()
    assert exchange(unix(path)) == HELLO
    assert client.stop(signal.SIGTERM) == 0
    assert not path.exists()


def test_a_unix_socket_of_the_server_is_reached(
    machine: Machine, server: Server, tmp_path: Path
) -> None:
    path = tmp_path / "pg.sock"
    with UnixTarget(path):
        client = machine.tunnel("reach", "0", f"unix:{path}", to=server.join)
        assert exchange(tcp(port_of(client, "reach"))) == HELLO


def test_a_proxy_on_a_unix_socket_serves_programs_of_this_user(
    machine: Machine, server: Server, tmp_path: Path, target: Target
) -> None:
    path = tmp_path / "socks.sock"
    client = machine.tunnel("socks", f"unix:{path}", to=server.join)
    client.out.wait("socks ")
    with unix(path) as conn:
        conn.sendall(b"\x05\x01\x00")
        assert conn.recv(2) == b"\x05\x00"
        ip, port = socket.inet_aton("127.0.0.1"), target.port.to_bytes(2, "big")
        conn.sendall(b"\x05\x01\x00\x01" + ip + port)
        assert conn.recv(10)[:2] == b"\x05\x00"
        assert exchange(conn) == HELLO


# Ranges and headers ------------------------------------------------------------------


def test_a_range_is_one_entry_and_each_port_has_its_own_target(
    machine: Machine, server: Server
) -> None:
    with ExitStack() as stack:
        first, listeners = _row(stack, 3)
        entry = f"0=127.0.0.1:{first}-{first + 2}"
        client = machine.tunnel("up", "--tcp", entry, to=server.join)
        line = client.out.wait("tcp ")
        public = port_of(client, "tcp")
        assert line.split()[1].endswith(f":{public}-{public + 2}")
        assert line.split()[2] == f"127.0.0.1:{first}-{first + 2}"
        for place, listener in enumerate(listeners):
            says = threading.Thread(target=_say, args=(listener, place), daemon=True)
            says.start()
        for place in range(3):
            assert exchange(tcp(public + place), b"") == b"%d" % place


def _say(listener: socket.socket, place: int) -> None:
    with suppress(OSError):
        while True:
            conn, _ = listener.accept()
            with conn, suppress(OSError):
                conn.sendall(b"%d" % place)
                conn.shutdown(socket.SHUT_WR)
                conn.recv(1)


def _row(stack: ExitStack, count: int) -> tuple[int, list[socket.socket]]:
    while True:
        first = free_port()
        with suppress(OSError), ExitStack() as mine:
            listeners = [
                mine.enter_context(socket.create_server(("127.0.0.1", first + at)))
                for at in range(count)
            ]
            stack.push(mine.pop_all())
            return first, listeners


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_a_target_hears_who_its_visitor_is(
    machine: Machine, server: Server, version: str
) -> None:
    """Point 63."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        service = str(listener.getsockname()[1])
        command = "tcp", service, "--proxy-protocol", version
        client = machine.tunnel(*command, to=server.join)
        public = port_of(client, "tcp")
        with tcp(public) as visitor:
            visitor.sendall(HELLO)
            visitor.shutdown(socket.SHUT_WR)
            port = visitor.getsockname()[1]
            conn = listener.accept()[0]
            with conn:
                heard = b""
                while not heard.endswith(HELLO):  # the probe says nothing at all
                    data = conn.recv(65_536)
                    if not data:
                        conn.close()
                        conn = listener.accept()[0]
                    heard += data
                conn.close()
    if version == "v1":
        head = f"PROXY TCP4 127.0.0.1 127.0.0.1 {port} {public}\r\n".encode()
    else:
        loopback = socket.inet_aton("127.0.0.1")
        head = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c" + loopback * 2
        head += port.to_bytes(2, "big") + public.to_bytes(2, "big")
    assert heard == head + HELLO


# A proxy on the way ------------------------------------------------------------------


class ConnectProxy(Target):
    """An HTTP proxy that lets one user through; ``seen`` has what was asked for."""

    def __init__(self) -> None:
        super().__init__(self._connect)
        self.asked: list[str] = []

    def _connect(self, conn: socket.socket) -> object:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += conn.recv(1)
        self.asked.append(head.split(b" ")[1].decode())
        if base64.b64encode(b"user:secret") not in head:
            conn.sendall(b"HTTP/1.1 407 No\r\nContent-Length: 0\r\n\r\n")
            return None
        host, _, port = self.asked[-1].rpartition(":")
        host = host.replace(NAME, "127.0.0.1")
        with socket.create_connection((host, int(port))) as far:
            conn.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            back = threading.Thread(target=self._copy, args=(far, conn), daemon=True)
            back.start()
            self._copy(conn, far)
            back.join()
        return None

    @staticmethod
    def _copy(source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65_536):
                sink.sendall(data)
        with suppress(OSError):
            sink.shutdown(socket.SHUT_WR)


def test_the_server_is_reached_through_an_http_proxy(
    machine: Machine, server: Server, target: Target
) -> None:
    with ConnectProxy() as proxy:
        via = f"http://user:secret@127.0.0.1:{proxy.port}"
        entry = "tcp", str(target.port), "--to", server.join
        client = machine.tunnel(*entry, "--via", via)
        assert exchange(tcp(port_of(client, "tcp"))) == HELLO
        assert proxy.asked == [f"127.0.0.1:{server.port}"]
        assert "secret" not in client.errors()
        assert client.stop() == 0


def test_the_proxy_of_the_machine_is_used_for_the_link_and_said(
    machine: Machine, server: Server, target: Target
) -> None:
    with ConnectProxy() as proxy:
        env = {"HTTPS_PROXY": f"http://user:secret@127.0.0.1:{proxy.port}"}
        join = server.join.replace("127.0.0.1", NAME)
        client = machine.tunnel("tcp", str(target.port), to=join, env=env)
        assert exchange(tcp(port_of(client, "tcp"))) == HELLO
        assert proxy.asked == [f"{NAME}:{server.port}"]
        said = client.err.wait("proxy.used")
        assert "HTTPS_PROXY" in said
        assert f"http://127.0.0.1:{proxy.port}" in said
        assert "secret" not in client.errors()


def test_the_proxy_of_the_machine_is_not_asked_for_the_machine_itself(
    machine: Machine, server: Server, target: Target
) -> None:
    with ConnectProxy() as proxy:
        env = {"ALL_PROXY": f"http://user:secret@127.0.0.1:{proxy.port}"}
        client = machine.tunnel("tcp", str(target.port), to=server.join, env=env)
        assert exchange(tcp(port_of(client, "tcp"))) == HELLO
        assert proxy.asked == []
        said = client.err.wait("proxy.not_used")
        assert 'variable=ALL_PROXY reason="the server is this machine"' in said


@pytest.mark.parametrize(
    ("url", "status", "fix"),
    [
        ("http://user:sesame@127.0.0.1:{}", 4, "ALL_PROXY=http://USER:PASSWORD@"),
        ("https://user:sesame@127.0.0.1:{}", 2, "the proxy of ALL_PROXY"),
        ("user:sesame@127.0.0.1", 2, "the proxy of ALL_PROXY"),
    ],
)
def test_a_wrong_proxy_of_the_machine_is_named_by_its_variable(
    machine: Machine, server: Server, url: str, status: int, fix: str
) -> None:
    with ConnectProxy() as proxy:
        env = {"ALL_PROXY": url.format(proxy.port)}
        join = server.join.replace("127.0.0.1", NAME)
        client = machine.tunnel("tcp", "8000", to=join, env=env)
        assert client.wait() == status
        assert fix in client.errors()
        assert "sesame" not in client.errors()


def test_a_proxy_that_does_not_know_us_ends_the_command_with_the_fix(
    machine: Machine, server: Server
) -> None:
    with ConnectProxy() as proxy:
        via = f"http://user:wrong@127.0.0.1:{proxy.port}"
        client = machine.tunnel("tcp", "8000", "--via", via, to=server.join)
        assert client.wait() == 4
        said = client.errors()
        assert f"fix    --via http://USER:PASSWORD@127.0.0.1:{proxy.port}" in said
        assert "407" in said
        assert "wrong" not in said


def test_the_server_is_reached_through_another_tunnels_socks_proxy(
    machine: Machine, server: Server, target: Target
) -> None:
    first = machine.tunnel("socks", "127.0.0.1:0", to=server.join)
    port = port_of(first, "socks")
    inner = f"tunnel://{server.join.split('://')[1]}"
    env = {"TUNNEL_VIA": f"socks5://127.0.0.1:{port}"}
    entry = "tcp", str(target.port), "--to", inner
    second = machine.tunnel(*entry, env=env)
    assert exchange(tcp(port_of(second, "tcp"))) == HELLO


def test_all_proxy_may_be_a_socks_proxy_and_via_none_goes_past_it(
    machine: Machine,
) -> None:
    Network(machine, BOTH)  # an address that is not loopback's, which is exempt
    server = machine.serve(listen="7443")
    assert "@192.0.2.7:" in server.join
    proxy = machine.tunnel("socks", "127.0.0.1:0", to=server.join)
    env = {"ALL_PROXY": f"socks5://127.0.0.1:{port_of(proxy, 'socks')}"}
    through = machine.tunnel("tcp", "8000", to=server.join, env=env)
    assert "ALL_PROXY" in through.err.wait("proxy.used")
    through.out.wait("tcp ")
    proxy.send(signal.SIGKILL)
    through.err.wait("link.lost")  # it went through that proxy
    env = {"ALL_PROXY": "socks5://127.0.0.1:1"}
    past = machine.tunnel("tcp", "8000", "--via", "none", to=server.join, env=env)
    past.out.wait("tcp ")
    assert "proxy.used" not in past.errors()


def test_a_pipe_gives_up_when_the_proxy_is_down(
    machine: Machine, server: Server
) -> None:
    via = f"socks5://127.0.0.1:{free_port()}"
    machine.command = lively.COMMAND
    pipe = machine.tunnel("pipe", "127.0.0.1:1", "--via", via, to=server.join)
    assert pipe.wait(40) == 4
    assert f"cannot reach the proxy {via}" in pipe.errors()


# Into a client's network -------------------------------------------------------------


def test_a_proxy_at_the_server_leads_into_the_clients_network(
    machine: Machine, server: Server, target: Target
) -> None:
    command = "tcp", "--socks", "--remote", "127.0.0.1:0", "--network", "127.0.0.0/8"
    client = machine.tunnel(*command, to=server.join)
    code, conn = ask_socks(port_of(client, "tcp"), "127.0.0.1", target.port)
    assert code == 0
    assert exchange(conn) == HELLO


def test_this_machine_itself_is_not_reached_through_it_unless_told(
    machine: Machine, server: Server, target: Target
) -> None:
    command = "tcp", "--socks", "--remote", "127.0.0.1:0"
    client = machine.tunnel(*command, to=server.join)
    code, conn = ask_socks(port_of(client, "tcp"), "localhost", target.port)
    conn.close()
    assert code == 2  # not allowed by the ruleset


def test_where_up_listens_is_no_business_of_one_tcp_entry(
    machine: Machine, server: Server, target: Target
) -> None:
    env = {"TUNNEL_UP_SOCKS": "127.0.0.1:0"}
    client = machine.tunnel("tcp", str(target.port), to=server.join, env=env)
    assert exchange(tcp(port_of(client, "tcp"))) == HELLO
    client = machine.tunnel("up", to=server.join, env=env)
    client.out.wait("socks 127.0.0.1:")


def test_an_old_and_a_wrong_variable_are_named_without_their_values(
    machine: Machine, server: Server
) -> None:
    env = {"TUNNEL_SOCKS": "127.0.0.1:0", "TUNNEL_AUHT": "me:sesame"}
    client = machine.tunnel("up", to=server.join, env=env)
    client.out.wait("socks 127.0.0.1:")
    assert "TUNNEL_UP_SOCKS" in client.err.wait("variable.old")
    assert "TUNNEL_AUTH" in client.err.wait("variable.unknown")
    assert "sesame" not in client.errors()


def test_a_public_proxy_asks_for_the_password(
    machine: Machine, server: Server, target: Target
) -> None:
    command = "tcp", "--socks", "--network", "127.0.0.0/8"
    env = {"TUNNEL_AUTH": "me:secret"}
    client = machine.tunnel(*command, to=server.join, env=env)
    port = port_of(client, "tcp")
    with tcp(port) as visitor:  # without a user
        visitor.sendall(b"\x05\x01\x00")
        assert visitor.recv(10) == b"\x05\xff"
    with tcp(port) as visitor:
        visitor.sendall(b"\x05\x01\x02\x01\x02me\x06secret")
        assert read_exactly(visitor, 4) == b"\x05\x02\x01\x00"
        ip, number = socket.inet_aton("127.0.0.1"), target.port.to_bytes(2, "big")
        visitor.sendall(b"\x05\x01\x00\x01" + ip + number)
        assert read_exactly(visitor, 10)[:2] == b"\x05\x00"
        assert exchange(visitor) == HELLO
    assert "secret" not in client.errors()


def test_a_public_proxy_without_users_is_refused(
    machine: Machine, server: Server
) -> None:
    client = machine.tunnel("tcp", "--socks", to=server.join)
    assert client.wait() == 2
    assert "without users" in client.errors()


# Another exit ------------------------------------------------------------------------


def test_connections_leave_at_another_client(
    machine: Machine, server: Server, target: Target
) -> None:
    here = f"127.0.0.1:{target.port}"
    home = machine.tunnel("up", "--be-exit", "home,network=127.0.0.0/8", to=server.join)
    assert home.out.wait("exit ") == "exit home 127.0.0.0/8"
    away = machine.tunnel("reach", "0", here, "--exit", "home", to=server.join)
    assert exchange(tcp(port_of(away, "reach"))) == HELLO
    pipe = machine.tunnel(
        "pipe", here, "--exit", "home", to=server.join, stdin=subprocess.PIPE
    )
    assert pipe.process.stdin is not None
    pipe.process.stdin.write(HELLO + b"\n")
    pipe.process.stdin.close()
    assert pipe.out.wait("hello") == HELLO.decode()
    assert pipe.wait() == 0
    assert home.stop() == 0
    gone = machine.tunnel("pipe", here, "--exit", "home", to=server.join)
    assert gone.wait() == 4
    assert "no client is the exit home" in gone.errors()


def test_a_proxy_here_with_users_lets_only_them_through(
    machine: Machine, server: Server
) -> None:
    def welcome(conn: socket.socket) -> None:
        conn.recv(65_536)
        conn.sendall(b"HTTP/1.0 200 OK\r\n\r\nwelcome")

    client = machine.tunnel(
        "socks", "0.0.0.0:0", "--auth", "me:secret", "--to", server.join
    )
    proxy = f"127.0.0.1:{port_of(client, 'socks')}"
    with Target(welcome) as target:
        url = f"http://127.0.0.1:{target.port}/"
        for how, refused in (("--socks5", 97), ("--proxy", 22)):
            done = machine.run(*curl(how, proxy, "--proxy-user", "me:secret", url))
            assert done.stdout == b"welcome", done.stderr
            done = machine.run(*curl(how, proxy, "--proxy-user", "me:wrong", url))
            assert (done.returncode, done.stdout) == (refused, b"")
