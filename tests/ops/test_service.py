"""``tunnel service``: a unit that systemd likes, that starts, and is only ours."""

from __future__ import annotations

import os
import shlex
import signal
from typing import TYPE_CHECKING

import pytest
from support.ports import OF_PROGRAMS
from support.processes import Machine, program

from tunnel.errors import StateError, TunnelError, UsageError
from tunnel.ops.cli import app
from tunnel.ops.service import install as installing
from tunnel.ops.service.install import make_unit, place_of, remove, write
from tunnel.ops.service.unit import Unit, is_ours, quoted

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tunnel.ops.service.unit import Role

MOST_EXPOSED = 20
"""Tenths of systemd-analyze's figure, of which 100 is the worst."""


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Have units and configurations be looked for in a folder of the test."""
    for name in list(os.environ):
        if name.startswith("TUNNEL_") and name != "TUNNEL_NET":
            monkeypatch.delenv(name)
    monkeypatch.setattr(installing, "SYSTEM", tmp_path / "system")
    monkeypatch.setattr(installing, "CONFIG", tmp_path / "tunnel.toml")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    (tmp_path / "system").mkdir()
    return tmp_path


def unit_of(
    role: Role,
    *words: str,
    user: bool = False,
    low_ports: bool = False,
    credentials: tuple[str, ...] = (),
) -> Unit:
    return make_unit(
        app, role, words, name=f"tunnel-{role}", user=user, run_as=None,
        low_ports=low_ports, credentials=credentials,
    )  # fmt: skip


def values(unit: Unit, key: str) -> list[str]:
    lines = [line.partition("=") for line in unit.text().splitlines()]
    return [value for name, _, value in lines if name == key]


UNITS = {
    "serve": lambda: unit_of("serve"),
    "web": lambda: unit_of("serve", "--http", "80", "--https", "443"),
    "logs": lambda: unit_of("serve", "--log-file", "/var/log/tunnel-serve/log"),
    "up": lambda: unit_of("up", "--tcp", "2222=22"),
    "odd": lambda: unit_of(
        "up", "--tcp", "22", "--log-file", "/var/log/tunnel-up/x y/$1/%n;"
    ),
    "user": lambda: unit_of("up", "--tcp", "2222=22", user=True),
}


@pytest.mark.parametrize("name", UNITS)
def test_systemd_finds_no_fault_and_little_exposed(name: str, tmp_path: Path) -> None:
    analyze, unit = program("systemd-analyze"), UNITS[name]()
    path = tmp_path / f"{unit.name}.service"
    path.write_text(unit.text())
    machine = Machine(tmp_path)
    machine.env["XDG_RUNTIME_DIR"] = str(tmp_path)
    of_user = ("--user",) if unit.user else ()
    verified = machine.run(analyze, "verify", *of_user, str(path))
    assert (verified.returncode, verified.stderr.decode()) == (0, "")
    if not unit.user:
        done = machine.run(
            analyze, "security", "--offline=true", "--no-pager",
            f"--threshold={MOST_EXPOSED}", str(path),
        )  # fmt: skip
        assert done.returncode == 0, done.stdout.decode()


def test_only_a_port_below_1024_brings_the_right_to_listen_there(
    nowhere: Path,
) -> None:
    for unit in (unit_of("serve"), unit_of("up", "--socks", "1080")):
        assert values(unit, "CapabilityBoundingSet") == [""]
        assert values(unit, "AmbientCapabilities") == []
    (nowhere / "tunnel.toml").write_text("[server]\nhttp = 80\n")
    for unit in (
        unit_of("serve"),  # says its file
        unit_of("serve", "--config", str(nowhere / "tunnel.toml")),
        unit_of("up", "--socks", "127.0.0.1:80"),
        unit_of("up", "--tcp", "22", low_ports=True),
    ):
        assert values(unit, "AmbientCapabilities") == ["CAP_NET_BIND_SERVICE"]
        assert values(unit, "CapabilityBoundingSet") == ["CAP_NET_BIND_SERVICE"]


def test_a_client_gets_its_join_line_from_root_unless_it_has_one() -> None:
    unit = unit_of("up", "--tcp", "22")
    assert values(unit, "LoadCredential") == ["join:/etc/tunnel/join"]
    assert "TUNNEL_TO_FILE=%d/join" in values(unit, "Environment")
    for unit in (
        unit_of("up", "--tcp", "22", "--to", "home"),
        unit_of("up", "--tcp", "22", credentials=("token:/etc/tunnel/token",)),
        unit_of("up", "--tcp", "22", user=True),
        unit_of("serve"),
    ):
        assert "TUNNEL_TO_FILE=%d/join" not in values(unit, "Environment")


def test_a_stop_waits_for_the_drain() -> None:
    assert values(unit_of("serve"), "TimeoutStopSec") == ["15s"]
    assert values(unit_of("serve", "--drain", "2m"), "TimeoutStopSec") == ["127s"]


@pytest.mark.parametrize(
    "words",
    [
        ("--to", f"tunnel://default:{'aB3' * 14}x@h.example:7443/#{'c' * 43}"),
        ("--http", "a=8000,auth=me:geheim"),
        ("--socks", "1080,auth=me:geheim"),
    ],
)
def test_a_secret_never_stands_in_a_unit(words: tuple[str, ...]) -> None:
    with pytest.raises(UsageError, match="every user can read") as raised:
        unit_of("up", *words)
    assert "geheim" not in str(raised.value)


@pytest.mark.parametrize("file", ["/srv/log", "log", "/var/log/tunnel/log"])
def test_a_log_where_the_service_cannot_write_is_refused(file: str) -> None:
    for flag in ("--log-file", "--access-log"):
        with pytest.raises(UsageError, match="cannot write") as refusal:
            unit_of("serve", flag, file)
        assert refusal.value.fix == "/var/log/tunnel-serve/log"


def test_a_wrong_flag_is_an_error_now_and_not_at_the_start() -> None:
    for words in (("--htpp", "80"), ("--resume", "soon"), ("--config", "/nowhere")):
        with pytest.raises(TunnelError):
            unit_of("serve", *words)


@pytest.mark.parametrize(
    ("word", "there"),
    [
        ("--tcp", "--tcp"), ("a=b:1/2,c", "a=b:1/2,c"), ("50%", "50%%"),
        ("$HOME", "$$HOME"), ("a b", '"a b"'), ('"', '"\\""'), ("\\", '"\\\\"'),
        ("", '""'), (";", '";"'), ("'", '"\'"'), ("a\nb", '"a\\nb"'), ("ä", '"ä"'),
    ],
)  # fmt: skip
def test_words_stand_there_as_systemd_reads_them(word: str, there: str) -> None:
    assert quoted(word) == there


# Its file ----------------------------------------------------------------------------


def test_a_unit_is_written_once_and_replaced_while_nobody_changed_it() -> None:
    unit = unit_of("serve")
    path, changed = write(unit, force=False)
    assert changed
    assert path == place_of("tunnel-serve", user=False)
    assert path.read_text() == unit.text()
    assert path.stat().st_mode & 0o777 == 0o644
    assert write(unit, force=False) == (path, False)
    other = unit_of("serve", "--http", "80")
    assert write(other, force=False) == (path, True)
    assert path.read_text() == other.text()
    assert [one.name for one in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("foreign", [True, False])
def test_what_somebody_else_wrote_is_neither_replaced_nor_removed(
    foreign: bool,
) -> None:
    unit = unit_of("serve")
    path = place_of("tunnel-serve", user=False)
    text = "[Service]\nExecStart=/bin/true\n"
    if not foreign:
        text = unit.text() + "# a change\n"
    path.write_text(text)
    assert not is_ours(text)
    for change in (
        lambda: write(unit, force=False),
        lambda: remove("tunnel-serve", user=False, force=False),
    ):
        with pytest.raises(StateError, match="is not as"):
            change()
        assert path.read_text() == text
    assert write(unit, force=True) == (path, True)
    assert remove("tunnel-serve", user=False, force=False) == path
    assert not path.exists()


def test_a_users_unit_is_in_its_own_folder(nowhere: Path) -> None:
    path, _ = write(unit_of("up", "--tcp", "22", user=True), force=False)
    assert path == nowhere / "config/systemd/user/tunnel-up.service"
    with pytest.raises(StateError):
        remove("other", user=True, force=False)
    for name in ("../x", "", "a b", "a.b"):
        with pytest.raises(UsageError):
            place_of(name, user=True)


# What it starts ----------------------------------------------------------------------


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    made = Machine(tmp_path)
    yield made
    made.close()


def test_what_is_printed_starts_reloads_answers_and_stops(machine: Machine) -> None:
    ports = f"{OF_PROGRAMS[0]}-{OF_PROGRAMS[-1]}"
    printed = machine.run(
        *machine.command, "service", "install", "--print", "serve",
        "--listen", "127.0.0.1:0", "--ports", ports,
    )  # fmt: skip
    assert printed.returncode == 0
    lines = [line.partition("=") for line in printed.stdout.decode().splitlines()]
    folders = {"%S": "state", "%t": "run", "%E": "etc"}
    env = {}
    for key, _, value in lines:
        if key == "Environment":
            name, _, where = value.partition("=")
            for word, folder in folders.items():
                where = where.replace(word, str(machine.home / folder))
            env[name] = where
        elif key in ("StateDirectory", "RuntimeDirectory"):
            folder = {"StateDirectory": "state", "RuntimeDirectory": "run"}[key]
            (machine.home / folder / value).mkdir(mode=0o700, parents=True)
    (command,) = [value for key, _, value in lines if key == "ExecStart"]
    del machine.env["HOME"]
    machine.env |= env
    running = machine.start(*shlex.split(command))
    running.out.wait("tunnel://")
    assert (machine.home / "state/tunnel-serve/tunnel/join").exists()
    status = machine.run(*machine.command, "status", "--quiet")
    assert status.returncode == 0
    running.send(signal.SIGHUP)  # as ExecReload= does
    running.err.wait("config.reloaded")
    assert running.stop() == 0


def test_it_is_written_only_where_its_user_could_start_it(machine: Machine) -> None:
    hidden = machine.home / "hidden"
    hidden.mkdir(mode=0o700)
    (hidden / "tunnel").touch()
    unit = Unit("serve", "x", [str(hidden / "tunnel"), "serve"])
    assert installing.unreachable(unit) == str(hidden / "tunnel")
    assert installing.unreachable(Unit("serve", "x", unit.command, user=True)) == ""
    shared = Unit("up", "x", ["/bin/sh", "up", "--http", f"a={hidden},list"])
    assert installing.unreachable(shared) == str(hidden)
