"""Both sides from files: users, entries, and secrets that others mount."""

from __future__ import annotations

import json
import os
import re
from typing import TYPE_CHECKING

import pytest
from support.ports import OF_PROGRAMS
from support.processes import eventually
from support.targets import Target, visit

from tunnel.access.join import make_token
from tunnel.access.user_file import write_users
from tunnel.access.users import User
from tunnel.proto.proofs import verifier_of

if TYPE_CHECKING:
    from pathlib import Path

    from support.processes import Machine, Program, Server

TOKEN = make_token().reveal()


def written(path: Path, text: str, mode: int = 0o600) -> Path:
    path.write_text(text)
    path.chmod(mode)
    return path


def served(machine: Machine, *args: str) -> Server:
    """Run a server whose file has the user alice."""
    written(machine.home / "alice.token", TOKEN)
    low, high = OF_PROGRAMS[0], OF_PROGRAMS[-1]
    text = (
        f'[server]\nlisten = ["127.0.0.1:1"]\nports = "{low}-{high}"\n'
        '[server.users.alice]\ntoken_file = "alice.token"\nmay = ["ports:9"]\n'
    )
    path = written(machine.home / "server.toml", text, 0o644)
    return machine.serve("--config", str(path), *args)


def client_text(machine: Machine, server: Server, *tables: str) -> str:
    pin = server.join.partition("#")[2]
    to = f"tunnel://alice@127.0.0.1:{server.port}/#{pin}"
    return "\n".join([f'[client]\nto = "{to}"\ntoken_file = "alice.token"', *tables])


def entry(target: Target) -> str:
    return f'[[client.tcp]]\ntarget = "127.0.0.1:{target.port}"'


def works(running: Program) -> None:
    port = int(running.out.wait("tcp ").split()[1].rpartition(":")[2])
    with visit(port) as visitor:
        visitor.sendall(b"ping")
        assert visitor.recv(4) == b"ping"


def asked(machine: Machine, *words: str, status: int = 0) -> Program:
    state = str(machine.home / "server")
    running = machine.tunnel(*words, "--state", state, "--json")
    assert running.wait() == status, running.errors()
    return running


def test_both_sides_run_from_files(machine: Machine, target: Target) -> None:
    server = served(machine)
    text = client_text(machine, server, entry(target))
    path = written(machine.home / "client.toml", text, 0o644)
    works(machine.tunnel("up", "--config", str(path)))
    # Its line is in a file already, and nowhere else now.
    assert not list(machine.home.rglob("default.join"))
    (alice,) = [json.loads(one) for one in asked(machine, "users", "ls").out.all()]
    assert (alice["user"], alice["links"]) == ("alice", 1)
    assert alice["file"] == f"{machine.home}/server.toml:4"


def test_the_file_of_the_configuration_folder_is_read(
    machine: Machine, target: Target
) -> None:
    server = served(machine)
    folder = machine.home / "config" / "tunnel"
    folder.mkdir(parents=True)
    os.rename(machine.home / "alice.token", folder / "alice.token")
    text = client_text(machine, server, entry(target))
    written(folder / "tunnel.toml", text)
    works(machine.tunnel("up"))


def test_no_command_changes_a_user_of_the_file(machine: Machine) -> None:
    served(machine)
    where = f"{machine.home}/server.toml:4"
    for words in (
        ("invite", "alice"),
        ("users", "revoke", "alice"),
        ("users", "rotate", "alice"),
        ("users", "limit", "alice", "--rate", "1MB/s"),
        ("users", "rename", "alice", "bob"),
    ):
        refused = asked(machine, *words, status=2)
        assert f"alice stands in {where}" in refused.errors()
    asked(machine, "invite", "bob")
    refused = asked(machine, "users", "rename", "bob", "alice", status=2)
    assert f"alice stands in {where}" in refused.errors()
    listed = [json.loads(one) for one in asked(machine, "users", "ls").out.all()]
    assert [one["user"] for one in listed] == ["alice", "bob"]


def test_a_name_in_both_places_is_refused_at_the_start(machine: Machine) -> None:
    state = machine.home / "server"
    state.mkdir(mode=0o700)
    user = User("alice", verifier_of("alice", TOKEN))
    written(state / "users.toml", write_users({"alice": user}))
    written(machine.home / "alice.token", TOKEN)
    text = '[server.users.alice]\ntoken_file = "alice.token"\n'
    path = written(machine.home / "server.toml", text)
    words = "--listen", "127.0.0.1:0", "--state", str(state), "--config", str(path)
    running = machine.tunnel("serve", *words)
    assert running.wait() == 3
    assert f"alice is in {state}/users.toml too" in running.errors()
    assert f"it stands in {path}:1" in running.errors()


def test_a_name_that_comes_into_both_places_changes_nothing(machine: Machine) -> None:
    server = served(machine)
    user = User("alice", verifier_of("alice", make_token().reveal()))
    path = machine.home / "server" / "users.toml"
    written(path, write_users({"alice": user}))
    errors = server.program.errors
    told = f"alice is in {path} too"
    eventually(lambda: told in errors(), "the clash is told")
    asked(machine, "users", "ls")


@pytest.mark.parametrize("kind", ["kubernetes", "docker", "systemd"])
def test_secrets_are_read_as_they_are_mounted(
    machine: Machine, target: Target, kind: str
) -> None:
    """Kubernetes: a link to a link, 0644 of root; Docker: 0444; systemd: 0400."""
    server = served(machine)
    secrets = machine.home / "run" / "secrets"
    data = secrets / "..2026_11_28" if kind == "kubernetes" else secrets
    data.mkdir(parents=True)
    mode = {"kubernetes": 0o644, "docker": 0o444, "systemd": 0o400}[kind]
    if os.getuid():
        mode = 0o400  # what is not root's own must be ours alone
    written(data / "token", f"{TOKEN}\n", mode)
    named = "$CREDENTIALS_DIRECTORY/token" if kind == "systemd" else f"{secrets}/token"
    if kind == "kubernetes":
        (secrets / "..data").symlink_to(data.name)
        (secrets / "token").symlink_to("..data/token")
    text = client_text(machine, server, entry(target))
    text = text.replace('"alice.token"', f'"{named}"')
    path = written(machine.home / "client.toml", text, 0o644)
    env = {"CREDENTIALS_DIRECTORY": str(secrets)}
    works(machine.tunnel("up", "--config", str(path), env=env))


def test_no_secret_of_the_file_is_in_the_log_or_in_a_refusal(machine: Machine) -> None:
    token = make_token().reveal()
    text = (
        f'[client]\nto = "tunnel+plain://alice:{token}@127.0.0.1:1/"\n'
        '[[client.http]]\nname = "a"\ntarget = 1\nauth = "me:very-secret"\n'
        '[[client.http]]\nname = "a"\ntarget = 2\nauth = "me:other-secret"\n'
    )
    path = written(machine.home / "client.toml", text)
    running = machine.tunnel("up", "--config", str(path))
    assert running.wait() == 3
    told = running.errors()
    assert re.match(rf"{path}:7: http a is published twice", told)
    path.write_text(text.partition('[[client.http]]\nname = "a"\ntarget = 2')[0])
    running = machine.tunnel("up", "--config", str(path))
    running.err.wait("refused")
    for secret in (token, "very-secret", "other-secret"):
        assert secret not in told + running.errors()
