"""A file with an entry more or less: all else is the same, byte for byte."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunnel.errors import ConfigError, StateError, TunnelError, UsageError
from tunnel.ops.config.edit import rows_of, with_entry, without_entry
from tunnel.ops.config.example import example
from tunnel.ops.config.kept import adding, removing
from tunnel.ops.config.place import Place
from tunnel.ops.config.read import parse_config
from tunnel.ops.entry_commands import READERS

if TYPE_CHECKING:
    from tunnel.ops.config.read import ClientSection
    from tunnel.ops.entries import Entry

PLACE = Place(Path("/nowhere/tunnel.toml"), None)
SAID = [
    ("tcp", "2222=127.0.0.1:22,proxy=v1,proxy=v2"),
    ("tcp", "9"),
    ("tcp", "127.0.0.1:1080=socks,auth=a:b,auth=c:d,network=10.0.0.0/8"),
    ("udp", "5353=53"),
    ("udp", "6000-6003=7000-7003"),
    ("http", "new=8000,host=rewrite"),
    ("http", "new=https://h:1,insecure,header=+A: b%2C c,header=-D,path=/x,strip"),
    ("https", "new=443,allow=10.0.0.0/8,allow=::1,expires=2h,check=tcp"),
    ("reach", "[::1]:5432=db.lan:5432"),
    ("socks", '127.0.0.1:1081,auth=a:"\\é%2C'),
    ("be-exit", "home,network=192.168.0.0/16,network=10.0.0.0/8"),
]
OLD = [
    '[[client.tcp]]\nremote = 1\ntarget = "127.0.0.1:1"  # ]] [[client.tcp]]\n',
    "  [[client . 'tcp']] # c\n# in it\n\n  target = '''socks'''\nremote=\"[::1]:2\"\n",
    '[[client.http]]\nname = "a"\nheader = [ # more\n "+A: [[b]]",\n\n]\ntarget = 3\n',
    '[[client.http]]\nname = "b"\nresponse_header = """\\\n  +A: #b"""\ntarget = 4\n',
    "[[client.socks]]\nlisten = '1082'",
    "[[client.reach]]\nlisten = 7\ntarget = 'db:1'\n",
]
BESIDE = ["", "\n", "# a comment\n", "\n# [[client.tcp]]\n# target = 9\n\n", " \t\n"]
HEADS = ["", '[client]\ndrain = "3s"\n', "client.drain = '3s'\n", "[server]\nhttp=80\n"]


@st.composite
def files(draw: st.DrawFn) -> str:
    """Make a valid file."""
    text = draw(st.sampled_from(BESIDE)) + draw(st.sampled_from(HEADS))
    for table in draw(st.permutations(OLD))[: draw(st.integers(0, len(OLD)))]:
        text += draw(st.sampled_from(BESIDE)) + table
        text += "" if text.endswith("\n") else "\n"
    text += draw(st.sampled_from(BESIDE))
    if draw(st.booleans()):
        text = text.removesuffix("\n")
    return text.replace("\n", "\r\n") if draw(st.booleans()) else text


def client_of(text: str) -> ClientSection | None:
    return parse_config(text, PLACE, ("client",)).client


def entries_of(text: str) -> list[Entry]:
    client = client_of(text)
    return [one.entry for one in client.entries] if client else []


def mended(text: str) -> str:
    """Return a text whose last line has an end."""
    end = "\r\n" if "\r\n" in text else "\n"
    return text if not text or text.endswith("\n") else text + end


@given(files(), st.sampled_from(SAID))
@settings(deadline=None, max_examples=300)
def test_what_is_added_is_there_and_its_removal_undoes_it(
    text: str, said: tuple[str, str]
) -> None:
    flag, entry = said[0].replace("-", "_"), READERS[said[0]](said[1])
    more = with_entry(text, flag, rows_of(flag, said[1]))
    assert more.startswith(text)
    assert ("\r\n" in more) is ("\r\n" in text)
    assert not ("\r\n" in text and "\n" in more.replace("\r\n", ""))
    before, after = entries_of(text), client_of(more)
    assert after is not None
    of_flag = [one for one in after.entries if one.flag == flag]
    assert of_flag[-1].entry == entry
    rest = [one.entry for one in after.entries if one is not of_flag[-1]]
    assert rest == before
    assert without_entry(more, flag, len(of_flag) - 1) == mended(text)


@given(files(), st.integers(0, 20))
@settings(deadline=None, max_examples=300)
def test_what_is_removed_is_one_table_and_no_comment_beside_it(
    text: str, number: int
) -> None:
    client = client_of(text)
    if client is None or not client.entries:
        return
    one = client.entries[number % len(client.entries)]
    of_flag = [other for other in client.entries if other.flag == one.flag]
    less = without_entry(text, one.flag, of_flag.index(one))
    left = client_of(less)
    wanted = [other.entry for other in client.entries if other is not one]
    assert [other.entry for other in (left.entries if left else ())] == wanted
    assert less.count("# a comment") == text.count("# a comment")
    assert less.count("# target = 9") == text.count("# target = 9")


def test_the_example_takes_an_entry_and_gives_it_back() -> None:
    text = example()
    more = with_entry(text, "tcp", rows_of("tcp", "2222=22"))
    assert len(entries_of(more)) == 1
    assert without_entry(more, "tcp", 0) == text


# In a file ---------------------------------------------------------------------------


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "tunnel.toml"
    path.write_bytes(
        b"\xef\xbb\xbf# mine\r\n[[client.udp]]\r\nremote=1\r\ntarget=2\r\n"
    )
    path.chmod(0o660)
    return path


def add(path: Path, flag: str, text: str, given: frozenset[str] = frozenset()) -> Entry:
    """Add an entry to a file, as a command does."""
    key = flag.replace("-", "_")
    edit = adding(path, given, key, text, READERS[flag](text))
    edit.file.put()
    edit.file.drop()
    return edit.entry


def remove(path: Path, entry: Entry, given: frozenset[str] = frozenset()) -> None:
    edit = removing(path, given, entry)
    edit.file.put()


def test_a_file_is_replaced_with_its_mode_its_mark_and_its_link(
    path: Path, tmp_path: Path
) -> None:
    before, link = path.read_bytes(), tmp_path / "link.toml"
    link.symlink_to(path.name)
    entry = add(link, "tcp", "2222=22")
    assert link.is_symlink()
    assert path.read_bytes() == before + (
        b'\r\n[[client.tcp]]\r\nremote = "2222"\r\ntarget = "22"\r\n'
    )
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    remove(link, entry)
    assert path.read_bytes() == before
    assert {one.name for one in tmp_path.iterdir()} == {path.name, link.name}


def test_a_folder_and_an_authority_are_those_of_where_the_client_was_started(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "here"
    (folder / "site").mkdir(parents=True)
    monkeypatch.chdir(folder)
    add(path, "http", "shop=site,list")
    assert f'target = "{folder}/site"' in path.read_text()
    with pytest.raises(TunnelError, match=r"ca\.pem"):
        add(path, "http", "other=https://h:1,ca=ca.pem")


def refused(
    path: Path, flag: str, text: str, given: frozenset[str] = frozenset()
) -> str:
    """Return why an entry is not added: then nothing is changed."""
    before = path.read_bytes()
    with pytest.raises(TunnelError) as caught:
        add(path, flag, text, given)
    assert path.read_bytes() == before
    assert [one for one in path.parent.iterdir() if ".tmp" in one.name] == []
    return f"{caught.value.what}: {caught.value.cause}: {caught.value.fix}"


def test_what_would_be_wrong_is_not_written(path: Path) -> None:
    assert "chmod 600" in refused(path, "http", "shop=8000,auth=a:b")
    assert "would be wrong" in refused(path, "udp", "1=9")
    assert "do not count" in refused(path, "tcp", "9", frozenset({"tcp"}))
    path.chmod(0o600)
    add(path, "http", "shop=8000,auth=a:b")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.write_text("[client]\ntcp = [{target = 9}]\n")
    assert "list" in refused(path, "tcp", "10")
    (entry,) = entries_of(path.read_text())
    with pytest.raises(UsageError, match="of its own"):
        remove(path, entry)
    with pytest.raises(UsageError, match="not in"):
        remove(path, READERS["tcp"]("11"))
    with pytest.raises(UsageError, match="not in"):
        remove(path, entry, frozenset({"tcp"}))
    path.write_text("client = {drain = '3s'}\n")
    assert "would be wrong" in refused(path, "tcp", "10")
    path.write_text("[client]\nodd = 1\n[[client.tcp]]\n")
    with pytest.raises(ConfigError) as caught:
        add(path, "tcp", "9")
    assert len(caught.value.faults) == 2


def test_a_file_that_is_saved_meanwhile_is_not_overwritten(path: Path) -> None:
    edit = adding(path, frozenset(), "tcp", "9", READERS["tcp"]("9"))
    path.write_text("# mine\n")
    with pytest.raises(StateError, match="cannot write"):
        edit.file.put()
    edit.file.drop()
    assert path.read_text() == "# mine\n"
    assert [one.name for one in path.parent.iterdir()] == [path.name]


def test_a_file_that_cannot_be_replaced_is_an_error(path: Path) -> None:
    long = path.with_name("a" * 250)  # beside it there is no place for a longer name
    path.rename(long)
    assert "cannot write" in refused(long, "tcp", "9")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="chown")
def test_a_file_keeps_its_owner_and_group(path: Path) -> None:
    os.chown(path, 12_345, 23_456)
    add(path, "tcp", "9")
    status = path.stat()
    assert (status.st_uid, status.st_gid) == (12_345, 23_456)
    assert stat.S_IMODE(status.st_mode) == 0o660
