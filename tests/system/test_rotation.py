"""A server changes its key: clients that were told go on, others hear why not."""

from __future__ import annotations

import re
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
from support.processes import Machine, eventually, free_port
from support.targets import Target, echo, visit

from tunnel.access.join import parse_join

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.processes import Program


def works(client: Program) -> None:
    """Wait until its port leads to its target: after a restart it is opened again."""
    client.out.wait("tcp ")

    def answers() -> bool:
        public = client.out.all()[-1].split()[1]
        with suppress(OSError), visit(int(public.rpartition(":")[2])) as conn:
            conn.sendall(b"hello")
            return conn.recv(5) == b"hello"
        return False

    eventually(answers, "an answer through the tunnel")


def pin_of(line: str) -> str:
    pin = parse_join(line).pin
    assert pin is not None
    return pin


@pytest.fixture
def away(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """The machine of a client that sees nothing of the announcement."""
    made = Machine(tmp_path_factory.mktemp("away"))
    yield made
    made.close()


def test_a_key_changes_under_clients_that_were_told_and_under_no_other(
    machine: Machine, away: Machine
) -> None:
    listen = f"127.0.0.1:{free_port()}"
    with Target(echo) as target:
        entry = f"0=127.0.0.1:{target.port}"
        server = machine.serve(listen=listen)
        line = server.join
        client = machine.up(line, "--tcp", entry)
        works(client)
        first = away.up(line, "--tcp", entry)
        works(first)
        assert first.stop() == 0
        server.program.stop()

        server = machine.serve("--rotate-identity", listen=listen)
        assert server.join == line  # of the key that it still has
        told = client.err.wait("event=pin.announced")
        coming = re.findall(r"next=(\S+)", told)[0]
        assert f"now={pin_of(line)}" in told
        assert "heard=true" in server.program.err.wait("event=pin.told")
        works(client)
        assert client.stop() == 0  # one that is restarted later knows it too
        server.program.stop()

        server = machine.serve(listen=listen)  # without the flag it goes on
        assert server.join == line
        server.program.err.wait(f"identity.announced next={coming}")
        client = machine.up(line, "--tcp", entry)
        works(client)
        server.program.stop()

        server = machine.serve("--change-identity", listen=listen)
        assert pin_of(server.join) == coming
        changed = client.err.wait("event=pin.changed")
        assert f"was={pin_of(line)} now={coming} saved=true" in changed
        assert client.stop() == 0
        again = machine.up(line, "--tcp", entry)  # by the old line
        works(again)
        assert again.stop() == 0

        late = away.tunnel("up", "--tcp", entry, to=line)
        assert late.wait() == 5
        said = late.errors()
        assert "is not the pinned one; nothing was sent" in said
        assert "changed its key while this client was away" in said
        assert "tunnel serve --print-join" in said
        assert away.tunnel("join", server.join).wait() == 0
        late = away.tunnel("tcp", str(target.port))
        works(late)
        late.stop()
        server.program.stop()
    names = {path.name for path in (machine.home / "server").iterdir()}
    assert {name for name in names if "identity" in name} == {"identity.pem"}


def test_an_old_key_that_comes_back_is_refused_until_its_line_is_given_anew(
    machine: Machine,
) -> None:
    listen = f"127.0.0.1:{free_port()}"
    kept: Path = machine.home / "server" / "identity.pem"
    with Target(echo) as target:
        entry = f"0=127.0.0.1:{target.port}"
        server = machine.serve("--rotate-identity", listen=listen)
        line, old = server.join, kept.read_bytes()
        client = machine.up(line, "--tcp", entry)
        client.err.wait("event=pin.announced")
        server.program.stop()
        server = machine.serve("--change-identity", listen=listen)
        client.err.wait("event=pin.changed")
        client.stop()
        server.program.stop()
        kept.write_bytes(old)
        server = machine.serve(listen=listen)
        refused = machine.tunnel("up", "--tcp", entry, to=line)
        assert refused.wait() == 5
        assert "if it has its old key again: rm " in refused.errors()
        assert machine.tunnel("join", line).wait() == 0
        works(machine.up(line, "--tcp", entry))


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        (("--rotate-identity", "--change-identity"), "announces another key"),
        (("--rotate-identity", "--plain"), "a server without TLS has no key"),
    ],
)
def test_flags_that_cannot_be_are_refused(
    machine: Machine, flags: tuple[str, ...], why: str
) -> None:
    running = machine.tunnel("serve", "--listen", "127.0.0.1:0", *flags)
    assert running.wait() == 2
    assert why in running.errors()


def test_a_change_that_was_not_announced_changes_nothing(machine: Machine) -> None:
    server = machine.serve()
    line = server.join
    server.program.stop()
    server = machine.serve("--change-identity", listen=f"127.0.0.1:{server.port}")
    assert server.join == line
