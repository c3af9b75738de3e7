"""``tunnel config example``: every key of the schema, as a comment, and its default."""

from __future__ import annotations

import re
import tomllib
from dataclasses import fields
from pathlib import Path

from support.tables import ROOT

from tunnel.ops import cli
from tunnel.ops.config.example import example
from tunnel.ops.config.place import Place
from tunnel.ops.config.read import keys_of, parse_config
from tunnel.ops.config.schema import ENTRIES, ClientTable, ServerTable, UserTable
from tunnel.ops.flags import RunFlags
from tunnel.ops.serve_flags import ServeFlags

MOST_KEYS = 75
TEXT = example()
WITHOUT_DEFAULT = "http", "https", "limit", "max_per_address", "log", "state"
"""Keys of flags whose default is nothing, or not one value."""


def uncommented() -> str:
    """Return the text with its keys in force, and its words as comments still."""
    return re.sub(r"(?m)^#(?=[\w\[])", "", TEXT)


def test_it_says_nothing() -> None:
    assert tomllib.loads(TEXT) == {}
    config = parse_config(TEXT, Place(Path("example.toml"), None))
    assert (config.server, config.client) == (None, None)


def test_every_key_is_in_it_and_no_other() -> None:
    document = tomllib.loads(uncommented())
    server, client = document["server"], document["client"]
    (user,) = server.pop("users").values()
    assert set(server) == set(keys_of(ServerTable))
    assert set(user) == set(keys_of(UserTable))
    for flag, table in ENTRIES.items():
        (entry,) = client.pop(flag)
        assert set(entry) == set(keys_of(table))
    assert set(client) == set(keys_of(ClientTable))


def test_a_value_that_has_a_default_is_the_default() -> None:
    server = tomllib.loads(uncommented())["server"]
    for flags in (ServeFlags(), RunFlags()):
        for one in fields(flags):
            usual = getattr(flags, one.name)
            if usual is not None and one.name in server:
                usual = list(usual) if isinstance(usual, tuple) else usual
                assert server[one.name] == usual, one.name


def test_keys_are_so_few_that_a_page_has_them() -> None:
    tables = ServerTable, UserTable, ClientTable, *ENTRIES.values()
    keys = {key for table in tables for key in keys_of(table)}
    # `auth_file` is another way to say `auth`, and no word of its own to learn.
    ways = {key for key in keys if key.removesuffix("_file") in keys - {key}}
    assert len(keys - ways) <= MOST_KEYS


def test_its_values_are_read(tmp_path: Path) -> None:
    """Files that are not there apart, nothing in it is a fault."""
    text = uncommented().replace("prot1:…", "prot1:" + ":".join(["A" * 43] * 2))
    for name in re.findall(r'"([\w.]+\.(?:pem|key))"', text):
        (tmp_path / name).touch()
    keep = ("token_file", "to_file", "via_file", "auth_file", "dashboard_auth_file",
        "to =", "certificate", "ca =", "pin =", "insecure", "network", "acme_hook",
        "proxy =", "auth = [")  # fmt: skip
    lines = [one for one in text.splitlines() if not one.startswith(keep)]
    config = parse_config("\n".join(lines), Place(tmp_path / "tunnel.toml", None))
    assert config.server is not None
    assert config.client is not None
    assert [one.flag for one in config.client.entries] == list(ENTRIES)


def test_the_page_has_the_same_text() -> None:
    page = (ROOT / "docs/configuration.md").read_text("utf-8")
    assert f"```toml\n{TEXT}```\n" in page


def test_the_file_of_the_readme_is_read(tmp_path: Path) -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    text = readme.partition("<!-- configuration -->\n```toml\n")[2].partition("```")[0]
    (tmp_path / "alice.token").write_text("abcdefghij_ABCDEFGHIJ-0123456789klmnopqrstU")
    (tmp_path / "alice.token").chmod(0o600)
    pin = text.replace("#PIN", "#" + "A" * 43)
    config = parse_config(pin, Place(tmp_path / "tunnel.toml", None))
    assert config.server is not None
    assert config.client is not None
    assert list(config.server.users) == ["alice"]
    assert [one.flag for one in config.client.entries] == ["tcp", "http", "socks"]


def test_every_flag_has_a_key_or_a_reason_for_none() -> None:
    once = {"print_join", "rotate_identity", "change_identity", "takeover"}
    once |= {"save_as", "config"}
    of_a_script = {"json"}
    by_limit = {"max_sessions", "max_waiting_sessions"}
    of_each_entry = {"exit", "udp_public_address"}
    for command, table in (("serve", ServerTable), ("up", ClientTable)):
        flags = {
            one.name.removeprefix("--").replace("-", "_")
            for one in cli.app[command].assemble_argument_collection()
            if one.parse and one.name.startswith("--")
        }
        keys = {*keys_of(table), *(ENTRIES if command == "up" else ())}
        files = {"to_file", "token_file", "via_file", "dashboard_auth_file"}
        assert keys - files <= flags
        without = once | of_a_script | by_limit | of_each_entry
        assert flags - keys <= without, (
            "it has a key, or docs/configuration.md says why"
        )
