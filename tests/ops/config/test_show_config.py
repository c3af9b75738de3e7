"""``tunnel config show``: where each value is from, and no secret."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tunnel.errors import ConfigError
from tunnel.ops import cli
from tunnel.ops.config.again import Source
from tunnel.ops.config.show import show_config
from tunnel.ops.show import Show

if TYPE_CHECKING:
    from pathlib import Path

TOKEN = "abcdefghij_ABCDEFGHIJ-0123456789klmnopqrstU"
SECRETS = TOKEN, "of-pair", "of-file", "of-via", "of-flag", "of-header"
TEXT = f"""\
[server]
ports = "5-6"
limit = ["links=3"]
plain = true
[server.users.alice]
token_file = "token"
may = ["tcp:22"]
rate = "5MB/s"
[client]
to = "tunnel+plain://al:{TOKEN}@h:1/"
via = "http://me:of-via@proxy:1"
[[client.tcp]]
remote = 22
target = 22
[[client.http]]
name = "shop"
target = 8000
auth = "me:of-pair"
header = ["+X-Key:of-header"]
[[client.socks]]
auth_file = "pair"
[server.users.bob]
token_file = "token"
expires = 2030-01-01T02:00:00+02:00
"""


@pytest.fixture(autouse=True)
def _log_of_others(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "of user"))
    monkeypatch.delenv("TUNNEL_CONFIG", raising=False)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    for name, text in (
        ("tunnel.toml", TEXT),
        ("token", TOKEN),
        ("pair", "me:of-file"),
    ):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o600)
    return tmp_path / "tunnel.toml"


def shown(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, list[str]]:
    """Return value and source of each key, by table and key."""
    show_config(cli.app, words, Show(as_json=True))
    lines = [json.loads(one) for one in capsys.readouterr().out.splitlines()]
    assert not any(secret in str(lines) for secret in SECRETS)
    return {
        f"{one['table']} {one['key']}".strip(): [one["value"], one["where"]]
        for one in lines
    }


def test_each_value_says_where_it_is_from(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TUNNEL_IDLE", "2h")
    got = shown(capsys, "serve", "--config", str(path), "--resume", "9s", "--plain")
    assert got["[server]"] == ["", str(path)]
    assert got["[server] ports"] == ['"5-6"', f"{path}:2"]
    assert got["[server] limit"] == ['["links=3"]', f"{path}:3"]
    assert got["[server] plain"] == ["true", "--plain"]
    assert got["[server] resume"] == ['"9s"', "--resume"]
    assert got["[server] idle"] == ['"2h"', "TUNNEL_IDLE"]
    assert got["[server] max_head"] == ["131072", "default"]
    assert got["[server] domain"] == ["", "not set"]
    assert got["[server.users.alice] may"] == ['["tcp:22"]', f"{path}:5"]
    assert got["[server.users.alice] limits"] == ['["rate=5MB/s"]', f"{path}:5"]
    assert got["[server.users.bob] expires"] == ["2030-01-01T00:00:00Z", f"{path}:22"]
    assert "[server.users.alice] expires" not in got
    assert "[client] to" not in got


def test_entries_are_shown_as_they_hold(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = "--config", str(path), "--tcp", "23=23,proxy=v1"
    got = shown(capsys, "up", *words, "--socks", "1080,auth=me:of-flag")
    assert got["[client] tcp"] == ['["23=23,proxy=v1"]', "--tcp"]
    assert "[[client.tcp]]" not in got
    assert "[[client.socks]]" not in got
    assert got["[[client.http]] name"] == ['"shop"', f"{path}:15"]
    assert got["[[client.http]] auth"] == ['"***"', f"{path}:15"]
    assert got["[client] to"] == ['"tunnel+plain://al:***@h:1/"', f"{path}:10"]


def test_both_sections_are_shown_for_flags_of_both(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    got = shown(capsys, "--config", str(path))
    assert {"[server] ports", "[client] to", "[[client.socks]] auth_file"} <= set(got)


def test_a_file_that_is_not_there_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    got = shown(capsys, "serve")
    assert got["[server]"][1] == f"{tmp_path}/of user/tunnel/tunnel.toml is not there"
    with pytest.raises(ConfigError):
        shown(capsys, "serve", "--config", "none.toml")


def test_the_file_that_a_variable_names_is_before_this_one(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TUNNEL_TO_FILE", "of-another")
    got = shown(capsys, "up", "--config", str(path))
    assert got["[client] to"] == ['"***"', "TUNNEL_TO_FILE"]
    assert got["[client] via"] == ['"http://me:***@proxy:1"', f"{path}:11"]
    server, _, _ = Source(cli.app, ["up", "--config", str(path)], None).parse_up()
    assert server.to is None
