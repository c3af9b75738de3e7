"""Files that variables name: as editors and shells write them, and named when wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tunnel.access.join import JoinLine, Secret
from tunnel.errors import UsageError
from tunnel.ops import saved
from tunnel.ops.cli import app
from tunnel.ops.entry_values import parse_users

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    WriteFile = Callable[[str, str], str]

TOKEN = "A" * 42 + "E"
JOIN = JoinLine("default", Secret(TOKEN), "203.0.113.7", 7443, None, True)
AS_WRITTEN = ("{}", "{}\r\n", "\ufeff{}\n", '"{}"\r\n', "\ufeff'{}'")


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WriteFile:
    """Write a file of our own, and have a variable name it; give its path."""
    for name in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))

    def write(variable: str, text: str) -> str:
        file = tmp_path / variable.lower()
        file.write_bytes(text.encode())
        file.chmod(0o600)
        monkeypatch.setenv(variable, str(file))
        return str(file)

    return write


@pytest.mark.parametrize("form", AS_WRITTEN)
def test_a_file_is_read_as_editors_and_shells_write_it(
    write: WriteFile, form: str
) -> None:
    write("TUNNEL_TO_FILE", form.format(JOIN.render()))
    assert saved.find(None) == (JOIN, False)  # a copy would be one secret more
    write("TUNNEL_VIA_FILE", form.format("http://me:secret@proxy.lan:3128"))
    via = saved.find_via(None, JOIN)
    assert via is not None
    assert (via.host, via.user, via.password) == ("proxy.lan", "me", "secret")
    write("TUNNEL_AUTH_FILE", form.format("me:secret"))
    users = parse_users([])
    assert users is not None
    assert users.check(b"me", b"secret")


def test_a_saved_line_may_have_been_edited(write: WriteFile, tmp_path: Path) -> None:
    file = write("NOBODY_READS_THIS", f'\ufeff"{JOIN.render()}"\r\n')
    folder = tmp_path / "tunnel"
    folder.mkdir()
    (tmp_path / file).rename(folder / "vps.join")
    assert saved.find("vps") == (JOIN, False)


@pytest.mark.parametrize("text", ["", "\ufeff\r\n", '""', f"nonsense {TOKEN}"])
@pytest.mark.parametrize(
    ("variable", "read"),
    [
        ("TUNNEL_TO_FILE", lambda: saved.find(None)),
        ("TUNNEL_VIA_FILE", lambda: saved.find_via(None, JOIN)),
        ("TUNNEL_AUTH_FILE", lambda: parse_users([])),
        ("TUNNEL_AUTH_FILE", lambda: app(["share", "1"])),
    ],
    ids=["to", "via", "users", "share"],
)
def test_an_empty_or_wrong_file_is_named_with_its_variable_and_not_shown(
    write: WriteFile, variable: str, text: str, read: Callable[[], object]
) -> None:
    file = write(variable, text)
    with pytest.raises(UsageError) as raised:
        read()
    assert raised.value.what.startswith(f"{file} ({variable})")
    empty = "nonsense" not in text
    assert raised.value.what.endswith(" is empty") is empty
    assert TOKEN not in f"{raised.value.what}{raised.value.cause}{raised.value.fix}"
