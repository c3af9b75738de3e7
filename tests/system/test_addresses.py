"""Addresses as people write them, on machines with one family and with both."""

from __future__ import annotations

import re
import socket
import sys
from typing import TYPE_CHECKING

import pytest
from support.namespaces import BOTH, IPV4_ONLY, IPV6_ONLY, Network
from support.processes import WAIT_S, curl
from support.targets import read_exactly

from tunnel.addresses import LOOPBACKS

if TYPE_CHECKING:
    from support.processes import Machine, Program

LISTENING = """
import re, sys
for file in ("/proc/net/tcp", "/proc/net/tcp6"):
    try:
        lines = open(file).read().splitlines()[1:]
    except OSError:
        continue
    for line in lines:
        host, port = line.split()[1].split(":")
        if line.split()[3] == "0A" and int(port, 16) == int(sys.argv[1]):
            print(host)
"""
"""The addresses on which a port is listened on, as the kernel writes them."""
ANY4, ANY6 = "0" * 8, "0" * 32
OWN4, OWN6 = "0100007F", "0" * 24 + "01000000"

DEV_SERVER = """
import contextlib, socket, sys, threading
family, _, _, _, where = socket.getaddrinfo(sys.argv[1], 0)[0]
listener = socket.create_server(where, family=family)
udp = socket.socket(listener.family, socket.SOCK_DGRAM)
udp.bind(listener.getsockname())
print("on", listener.getsockname()[1], flush=True)

def echo():
    while True:
        data, source = udp.recvfrom(65535)
        udp.sendto(data.upper(), source)

threading.Thread(target=echo, daemon=True).start()
while True:
    conn, _ = listener.accept()
    with conn, contextlib.suppress(OSError):
        conn.recv(4096)
        conn.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: 3\\r\\n\\r\\ndev")
"""


def dev_server(machine: Machine, host: str, network: Network | None = None) -> int:
    """Start a web and a UDP service on one address; give their port."""
    enter = network.enter if network else ()
    running = machine.start(*enter, sys.executable, "-c", DEV_SERVER, host)
    return int(running.out.wait("on ").split()[1])


def where(client: Program, kind: str) -> tuple[str, int]:
    host, _, port = client.out.wait(f"{kind} ").split()[1].rpartition(":")
    return host, int(port)


def listening(network: Network, port: int) -> set[str]:
    return set(network.python(LISTENING, str(port)).split())


def test_a_join_line_leads_to_a_machine_without_a_default_route(
    machine: Machine,
) -> None:
    Network(machine, IPV6_ONLY.partition(" && ip -6 route")[0])
    server = machine.serve(listen="7443")
    assert "@[2001:db8::7]:7443/" in server.join


def test_a_join_line_that_leads_nowhere_is_said(machine: Machine) -> None:
    Network(machine, "ip link set lo up")
    server = machine.serve(listen="7443")
    assert "--public-host" in server.program.err.wait("join.only_here")


@pytest.mark.parametrize(
    ("setup", "own", "everywhere", "loopbacks"),
    [
        (BOTH, "192.0.2.7", {ANY4, ANY6}, {OWN4, OWN6}),
        (IPV4_ONLY, "192.0.2.7", None, {OWN4}),
        (IPV6_ONLY, "[2001:db8::7]", None, {OWN6}),
    ],
)
def test_a_port_alone_works_whatever_families_a_machine_has(
    machine: Machine,
    setup: str,
    own: str,
    everywhere: set[str] | None,
    loopbacks: set[str],
) -> None:
    network = Network(machine, setup)
    loopback = "127.0.0.1" if OWN4 in loopbacks else "::1"
    dev = dev_server(machine, loopback, network)
    server = machine.serve("--http", "8080", "--domain", "t.test", listen="7443")
    assert f"@{own}:7443/" in server.join
    client = machine.up(
        server.join, "--tcp", str(dev), "--socks", "1080", "--http", f"shop={dev}"
    )
    host, public = where(client, "tcp")
    assert host == "*"
    assert client.out.wait("tcp ").endswith(f" localhost:{dev}")
    assert where(client, "socks") == ("localhost", 1080)
    assert listening(network, 1080) == loopbacks
    if everywhere:
        for port in (7443, public, 8080):
            assert listening(network, port) == everywhere
    pages = [
        (f"http://{own}:{public}/",),
        (f"http://{own}:8080/", "--header", "Host: shop.t.test"),
        ("--proxy", "socks5h://localhost:1080", f"http://localhost:{dev}/"),
        (
            "--proxy",
            "http://localhost:1080",
            "--proxytunnel",
            f"http://{own}:{public}/",
        ),
    ]
    for page in pages:
        done = network.run(*curl("--globoff", *page))
        assert done.stdout == b"dev", done.stderr.decode()


@pytest.mark.parametrize(
    ("listen", "hosts"),
    [
        ("127.0.0.1:0", {OWN4}),
        ("localhost:0", {OWN4, OWN6}),
        ("[::]:0", {ANY6}),
        ("0", {ANY4, ANY6}),
    ],
)
def test_a_public_port_without_a_host_is_where_the_server_listens(
    machine: Machine, listen: str, hosts: set[str]
) -> None:
    network = Network(machine, BOTH)
    server = machine.serve(listen=listen)
    client = machine.up(server.join, "--tcp", "2222=9", "--tcp", "9", "--udp", "9")
    assert listening(network, server.port) == hosts
    client.out.wait("tcp ", 2)
    ports = [line.split()[1].rpartition(":")[2] for line in client.out.all()]
    assert "2222" in ports
    for line in client.out.all():
        kind, address, _ = line.split()
        assert address.rpartition(":")[0] == (
            "*" if listen == "0" else listen.rpartition(":")[0]
        )
        if kind == "tcp":
            port = int(address.rpartition(":")[2])
            assert listening(network, port) == hosts


def test_a_public_port_that_names_a_family_is_open_on_that_alone(
    machine: Machine,
) -> None:
    network = Network(machine, BOTH)
    server = machine.serve(listen="0")
    machine.up(server.join, "--tcp", "0.0.0.0:2222=9", "--tcp", "[::]:2223=9")
    assert listening(network, 2222) == {ANY4}
    assert listening(network, 2223) == {ANY6}


def test_an_address_that_is_printed_can_be_asked_for(machine: Machine) -> None:
    Network(machine, BOTH)
    server = machine.serve(listen="7443")
    entries = ("--tcp", "6000-6001=9-10", "--udp", "53", "--socks", "0")
    first = machine.up(server.join, *entries)
    printed = [line.split() for line in first.out.all()]
    assert first.stop() == 0
    again: list[str] = []
    for kind, address, target in printed:
        again += (f"--{kind}", address if kind == "socks" else f"{address}={target}")
    second = machine.up(server.join, *again)
    assert sorted(line.split() for line in second.out.all()) == sorted(printed)
    for kind, address, target in printed:
        assert second.process.poll() is None
        if kind != "socks":
            assert address.startswith("*:")
            words = (kind, target, "--remote", "*:0")
            assert " *:" in machine.tunnel(*words, to=server.join).out.wait(kind)


@pytest.mark.parametrize("host", LOOPBACKS)
def test_a_target_that_is_a_port_alone_is_on_whichever_loopback_answers(
    machine: Machine, host: str
) -> None:
    dev = dev_server(machine, host)
    server = machine.serve("--http", "0", "--domain", "t.test")
    entries = ("--tcp", str(dev), "--udp", str(dev), "--http", f"shop={dev}")
    reach = ("--reach", f"0={dev}")
    client = machine.up(server.join, *entries, *reach)
    for kind, loopback in (
        ("tcp", "127.0.0.1"),
        ("reach", "127.0.0.1"),
        ("reach", "[::1]"),
    ):
        page = f"http://{loopback}:{where(client, kind)[1]}/"
        assert machine.run(*curl("--globoff", page)).stdout == b"dev"
    url = client.out.wait("http ").split()[1]
    web = f"http://127.0.0.1:{url.rpartition(':')[2]}"
    done = machine.run(*curl("--header", "Host: shop.t.test", web))
    assert done.stdout == b"dev"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as visitor:
        visitor.settimeout(WAIT_S)
        visitor.connect(("127.0.0.1", where(client, "udp")[1]))
        visitor.send(b"hello")
        assert visitor.recv(100) == b"HELLO"


def test_a_zone_works_here_and_is_refused_for_elsewhere(machine: Machine) -> None:
    network = Network(machine, f"{BOTH} && ip addr add fe80::7/64 dev out0 nodad")
    dev = dev_server(machine, "fe80::7%out0", network)
    server = machine.serve(listen="[fe80::7%out0]:0")
    target = f"[fe80::7%out0]:{dev}"
    client = machine.up(server.join, "--tcp", target, "--udp", target)
    host, public = where(client, "tcp")
    assert host == "[fe80::7%out0]"
    page = f"http://[fe80::7%25out0]:{public}/"
    assert network.run(*curl("--globoff", page)).stdout == b"dev"
    ask = (
        "import socket, sys; s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM);"
        "to = socket.getaddrinfo('fe80::7%out0', int(sys.argv[1]))[0][4];"
        "s.settimeout(20); s.connect(to);"
        "s.send(b'hello'); print(s.recv(100).decode())"
    )
    assert network.python(ask, str(where(client, "udp")[1])) == "HELLO"
    for words in (("reach", "0", target), ("pipe", target)):
        refused = machine.tunnel(*words, to=server.join)
        assert refused.wait() == 2
        assert re.search("has a zone.*network card", refused.errors())


def test_a_proxy_takes_an_address_as_a_name(machine: Machine) -> None:
    client = machine.up(machine.serve().join, "--socks", "0")
    proxy = where(client, "socks")[1]
    dev = dev_server(machine, "::1")
    for name in (b"[::1]", b"::1", b"LocalHost."):
        size, port = bytes((len(name),)), dev.to_bytes(2, "big")
        asked = b"\5\1\0" + b"\5\1\0\3" + size + name + port
        authority = b"%b:%d" % (name, dev)
        connect = b"CONNECT %b HTTP/1.1\r\nHost: %b\r\n\r\n" % (authority, authority)
        for request, answer in ((asked, b"\5\0\5\0"), (connect, b"HTTP/1.1 200")):
            with socket.create_connection(("127.0.0.1", proxy), WAIT_S) as app:
                app.sendall(request)
                assert read_exactly(app, len(answer)) == answer


SOCKS_UDP = """
import socket, sys
app = socket.create_connection((sys.argv[1], int(sys.argv[2])), 20)
for words, answer in (
    (bytes((5, 1, 2)), bytes((5, 2))),
    (bytes((1, 2)) + b"me" + bytes((1,)) + b"p", bytes((1, 0))),
):
    app.sendall(words)
    assert app.recv(2) == answer
app.sendall(bytes((5, 3, 0, 1)) + bytes(6))
print(socket.inet_ntoa(app.recv(10)[4:8]))
"""


def test_apps_behind_nat_are_told_the_public_address_for_their_datagrams(
    machine: Machine,
) -> None:
    network = Network(machine, BOTH)
    server = machine.serve()
    listen = "0.0.0.0:1080,auth=me:p"
    public = ("--udp-public-address", "203.0.113.7")
    machine.up(server.join, "--socks", listen, *public, ready=1)
    assert network.python(SOCKS_UDP, "192.0.2.7", "1080") == "203.0.113.7"
    assert network.python(SOCKS_UDP, "127.0.0.1", "1080") == "127.0.0.1"
    refused = machine.tunnel("socks", "--udp-public-address", "nat.lan")
    assert refused.wait() == 2
    assert "'nat.lan' is not an IP address" in refused.errors()


def test_a_taken_loopback_is_said_with_its_address(machine: Machine) -> None:
    server = machine.serve()
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as holder:
        port = holder.getsockname()[1]
        refused = machine.tunnel("socks", str(port), to=server.join)
        assert refused.wait() == 7
        assert f"port {port} is already in use on ::1" in refused.errors()
