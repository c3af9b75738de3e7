"""Which value holds: the flag's, else the variable's, the file's, or the usual one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tunnel.access.join import make_token
from tunnel.errors import ConfigError, UsageError
from tunnel.ops import cli
from tunnel.ops import entry_syntax as syntax
from tunnel.ops.config.again import Source
from tunnel.ops.config.source import usual_path
from tunnel.redaction import redact

TO = f"tunnel+plain://al:{make_token().reveal()}@h:1/"
SERVER = '[server]\nports = "5-6"\nhttp = 80\ndrain = "3s"\nplain = true\n'
CLIENT = (
    f'[client]\nto = "{TO}"\ndrain = "3s"\n'
    "[[client.tcp]]\nremote = 22\ntarget = 22\n"
    '[[client.reach]]\nlisten = 5432\ntarget = "db:5432"\n'
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "tunnel.toml"
    path.write_text(SERVER + CLIENT)
    path.chmod(0o600)
    return path


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("TUNNEL_CONFIG", "TUNNEL_PORTS", "TUNNEL_DRAIN", "TUNNEL_UP_TCP"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "of user"))


def source(*argv: str) -> Source:
    return Source(cli.app, argv, None)


def test_the_file_gives_what_nothing_else_gives(path: Path) -> None:
    flags, run, users = source("serve", "--config", str(path)).parse_serve()
    assert (flags.ports, flags.http, flags.plain, run.drain) == (
        "5-6",
        "80",
        True,
        "3s",
    )
    assert (flags.listen, run.idle, dict(users)) == (("7443",), "0", {})


def test_a_server_may_listen_at_several_addresses(tmp_path: Path) -> None:
    path = tmp_path / "tunnel.toml"
    path.write_text('[server]\nlisten = [7443, "127.0.0.1:7444"]\n')
    path.chmod(0o600)
    flags, _, _ = source("serve", "--config", str(path)).parse_serve()
    assert [str(one) for one in flags.options().listens] == ["*:7443", "127.0.0.1:7444"]
    words = "--listen", "127.0.0.1:1", "--listen", "2", "--config", str(path)
    flags, _, _ = source("serve", *words).parse_serve()
    assert [str(one) for one in flags.options().listens] == ["127.0.0.1:1", "*:2"]
    for wrong in ('["1", "1"]', "[]"):
        path.write_text(f"[server]\nlisten = {wrong}\n")
        with pytest.raises(ConfigError, match="listen"):
            source("serve", "--config", str(path)).parse_serve()


def test_a_variable_is_before_the_file_and_a_flag_before_both(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNNEL_CONFIG", str(path))
    monkeypatch.setenv("TUNNEL_PORTS", "7-8")
    monkeypatch.setenv("TUNNEL_DRAIN", "4s")
    flags, run, _ = source("serve", "--drain", "5s").parse_serve()
    assert (flags.ports, flags.http, run.drain) == ("7-8", "80", "5s")


def test_entries_of_a_flag_stand_in_place_of_those_of_the_file(path: Path) -> None:
    named = "--config", str(path)
    server, entries, _ = source("up", *named).parse_up()
    assert server.to == TO
    reach = syntax.parse_reach("5432=db:5432")
    assert entries == [syntax.parse_tcp("22=22"), reach]
    server, entries, _ = source("up", *named, "--tcp", "23=23", "--to", "x").parse_up()
    assert server.to == "x"
    assert entries == [syntax.parse_tcp("23=23"), reach]


def test_the_file_in_the_configuration_folder_needs_no_name(path: Path) -> None:
    usual = usual_path()
    assert usual is not None
    usual.parent.mkdir(parents=True)
    assert source("serve").parse_serve()[0].ports == "20000-20999"
    path.rename(usual)
    assert source("serve").parse_serve()[0].ports == "5-6"


def test_the_file_is_read_as_it_is_by_now(path: Path) -> None:
    again = source("serve", "--config", str(path))
    assert again.parse_serve()[0].ports == "5-6"
    path.write_text('[server]\nports = "7-8"\n')
    flags, run, _ = again.parse_serve()
    assert (flags.ports, flags.http, run.drain) == ("7-8", None, "8s")
    path.write_text('[server]\nports = "8-7"\n')
    with pytest.raises(ConfigError) as raised:
        again.parse_serve()
    assert raised.value.faults[0].startswith(f"{path}:2: ports ")
    path.unlink()
    with pytest.raises(ConfigError, match="No such file"):
        again.parse_serve()


def test_what_flag_and_file_make_together_is_looked_at(path: Path) -> None:
    named = "--config", str(path)
    with pytest.raises(UsageError, match="published twice"):
        source("up", *named, "--udp", "1=1", "--udp", "1=1").parse_up()
    (path.parent / "c").touch()
    pair = str(path.parent / "c")
    with pytest.raises(UsageError, match="no port to use it on") as raised:
        source("serve", *named, "--certificate", pair, pair).parse_serve()
    assert f"{path} says drain, ports, plain, http" in raised.value.cause
    assert raised.value.exit_status == 2


def test_what_the_file_alone_makes_together_is_a_fault_of_it(path: Path) -> None:
    (path.parent / "c").touch()
    path.write_text('# one\n[server]\ncertificate = ["c", "c"]\n')
    with pytest.raises(ConfigError) as raised:
        source("serve", "--config", str(path)).parse_serve()
    (fault,) = raised.value.faults
    assert fault.startswith(f"{path}:2: a certificate is given, but no port")


def test_of_two_entries_of_the_file_and_a_flag_one_is_refused(path: Path) -> None:
    text = path.read_text() + '[[client.http]]\nname = "a"\ntarget = 1\n'
    path.write_text(text)
    _, entries, _ = source("up", "--config", str(path), "--http", "a=2").parse_up()
    assert entries[0] == syntax.parse_http("a=2")
    assert len(entries) == 3


@pytest.mark.parametrize(("command", "line"), [("serve", 2), ("up", 5)])
def test_a_broken_file_is_exit_three_and_a_line_for_each_fault(
    path: Path, command: str, line: int
) -> None:
    path.write_text("[server]\nportz = 1\nplain = 2\n[client]\ntoo = 1\nvia = 2\n")
    argv = [sys.executable, "-m", "tunnel", command, "--config", str(path)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 3
    first, second = done.stderr.splitlines()
    assert first.startswith(f"{path}:{line}: ")
    assert second.startswith(f"{path}:{line + 1}: ")


@pytest.mark.parametrize("home", [RuntimeError("no home"), "~/.config/tunnel"])
def test_without_a_home_there_is_no_file(
    home: RuntimeError | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def find(_: str) -> Path:
        if isinstance(home, str):
            return Path(home)
        raise home

    monkeypatch.setattr("platformdirs.user_config_path", find)
    again = source("serve")
    assert again.parse_serve()[0].ports == "20000-20999"


def test_a_usual_file_that_cannot_be_looked_at_is_a_fault(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Going on without it would run what its owner did not write."""
    loop = path.parent / "of user" / "tunnel" / "tunnel.toml"
    loop.parent.mkdir(parents=True)
    loop.symlink_to(loop.name)
    with pytest.raises(ConfigError, match="symbolic links"):
        source("serve").parse_serve()


def test_secrets_of_the_file_are_known_from_then_on(path: Path) -> None:
    pair = path.parent / "pair"
    pair.write_text("me:of-a-file")
    pair.chmod(0o600)
    tables = (
        '[[client.http]]\ntarget = 1\nauth = "me:of-the-entry"\n'
        '[[client.socks]]\nauth_file = "pair"\n'
        '[[client.http]]\ntarget = 2\nheader = ["+X-Key:of-a-header"]\n'
    )
    path.write_text(path.read_text() + tables)
    source("up", "--config", str(path)).parse_up()
    for said in (TO, "me:of-the-entry", "me:of-a-file", "+X-Key:of-a-header"):
        shown = redact(f"a log line about {said} and more")
        assert said not in shown
        assert "***" in shown


def test_flags_that_were_given_are_known_without_a_section_or_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A table that a command saves in it would not count at the next start."""
    path = tmp_path / "tunnel.toml"
    path.write_text("[server]\n")
    _, file = source("up", "--tcp", "9", "--config", str(path)).arguments()
    assert "tcp" in file.kept
    monkeypatch.setenv("TUNNEL_UP_TCP", "9")
    _, file = source("up", "--udp", "9").arguments()
    assert {"tcp", "udp"} <= file.kept
    assert "http" not in file.kept
