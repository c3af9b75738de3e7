"""h2spec, which asks an HTTP/2 server for each rule of RFC 9113 and RFC 7541."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

import pytest
from support.installed import from_go
from support.namespaces import Namespace
from support.web_server import Hello, web_server

if TYPE_CHECKING:
    from support.processes import Machine

H2SPEC: Final = "github.com/summerwind/h2spec/cmd/h2spec@v2.2.1+incompatible"
HTTP_1_TOO: Final = "Sends invalid connection preface"
"""It may be HTTP/1.1 at this port, and is answered in that: 400."""


class Site(Hello):
    """Takes what it is sent."""

    def do_POST(self) -> None:
        if "Content-Length" in self.headers:
            self.rfile.read(int(self.headers["Content-Length"]))
        else:
            while size := int(self.rfile.readline(), 16):
                self.rfile.read(size + 2)
            while self.rfile.readline().strip():
                pass
        self.do_GET()


@pytest.mark.deep
def test_all_rules_hold_but_one(machine: Machine) -> None:
    commands = from_go(machine.home / "go", H2SPEC)
    hosts = machine.home / "hosts"
    hosts.write_text("127.0.0.1 localhost app.t.test\n")
    place = Namespace(machine, {"/etc/hosts": hosts})
    machine.command = (*place.enter, *machine.command)
    with ExitStack() as stack:
        target = place.inside(lambda: stack.enter_context(web_server(Site)))
        server = machine.serve("--http", "127.0.0.1:8080", "--domain", "t.test")
        machine.up(server.join, "--http", f"app={target}")
        done = machine.run(
            *place.enter, str(commands / "h2spec"), "-h", "app.t.test", "-p", "8080",
            "-P", "/", timeout_s=120,
        )  # fmt: skip
    said = done.stdout.decode()
    failed = [line.partition(": ")[2] for line in said.splitlines() if "×" in line]
    assert set(failed) == {HTTP_1_TOO}, said
    assert "145 tests" in said
