"""The cases of gRPC that its Go module has, between its client and server, by name."""

from __future__ import annotations

import socket
from contextlib import ExitStack, suppress
from threading import Thread
from typing import TYPE_CHECKING, Final

import pytest
import trustme
from support.installed import from_go
from support.processes import Machine, free_port
from support.targets import Target

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HOST: Final = "rpc.t.test"
MODULE: Final = "google.golang.org/grpc/interop"
VERSION: Final = "v1.85.0"
CASES: Final = (
    "empty_unary", "large_unary", "client_streaming", "server_streaming", "ping_pong",
    "empty_stream", "timeout_on_sleeping_server", "cancel_after_begin",
    "cancel_after_first_response", "status_code_and_message", "special_status_message",
    "custom_metadata", "unimplemented_method", "unimplemented_service",
    "rpc_soak", "channel_soak",
)  # fmt: skip

pytestmark = pytest.mark.deep


class Way:
    """A proxy that leads every CONNECT to one port, so that no name is looked up."""

    def __init__(self, port: int) -> None:
        self._port = port

    def __call__(self, conn: socket.socket) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            if not (came := conn.recv(1)):
                return
            head += came
        assert head.startswith(b"CONNECT rpc.t.test:")
        conn.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        with socket.create_connection(("127.0.0.1", self._port)) as there:
            back = Thread(target=copy, args=(there, conn))
            back.start()
            copy(conn, there)
            back.join()


def copy(one: socket.socket, other: socket.socket) -> None:
    with suppress(OSError):
        while data := one.recv(65_536):
            other.sendall(data)
    for end in (one, other):
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


class World:
    """The server of gRPC behind a name, with TLS and without."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.commands = from_go(folder / "go", *(
            f"{MODULE}/{end}@{VERSION}" for end in ("server", "client")
        ))  # fmt: skip
        self.machine = machine = Machine(folder)
        stack.callback(machine.close)
        authority = trustme.CA()
        self.ca = folder / "ca.pem"
        authority.cert_pem.write_to_path(self.ca)
        leaf = authority.issue_cert(HOST)
        chain, key = folder / "chain.pem", folder / "key.pem"
        leaf.cert_chain_pems[0].write_to_path(chain)
        leaf.private_key_pem.write_to_path(key)
        target = free_port()
        machine.start(str(self.commands / "server"), f"--port={target}")
        plain, tls = free_port(), free_port()
        server = machine.serve(
            "--http", f"127.0.0.1:{plain}", "--https", f"127.0.0.1:{tls}",
            "--domain", "t.test", "--certificate", str(chain), str(key),
        )  # fmt: skip
        machine.up(server.join, "--http", f"rpc={target},protocol=h2c")
        self.ways = {
            False: stack.enter_context(Target(Way(plain))).port,
            True: stack.enter_context(Target(Way(tls))).port,
        }
        self.machine.env["GRPC_GO_LOG_SEVERITY_LEVEL"] = "info"

    def run(self, case: str, *, tls: bool) -> str:
        words = ("--use_tls", "--use_test_ca", f"--ca_file={self.ca}") if tls else ()
        running = self.machine.start(
            str(self.commands / "client"), f"--test_case={case}",
            f"--server_host={HOST}", "--server_port=443", *words,
            env={"HTTPS_PROXY": f"http://127.0.0.1:{self.ways[tls]}"},
        )  # fmt: skip
        status = running.wait(60)
        assert status == 0, running.errors()
        return running.errors()


@pytest.fixture(scope="module")
def rpc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with ExitStack() as stack:
        yield World(tmp_path_factory.mktemp("interop"), stack)


@pytest.mark.parametrize("secure", [False, True], ids=["prior knowledge", "tls"])
@pytest.mark.parametrize("case", CASES)
def test_a_case_of_go_passes(rpc: World, case: str, *, secure: bool) -> None:
    assert "done" in rpc.run(case, tls=secure).lower()
