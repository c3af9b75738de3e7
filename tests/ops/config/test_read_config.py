"""What a configuration file says, and all that is wrong with one, line by line."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tunnel.access.rules import default_rights, parse_rights
from tunnel.errors import ConfigError
from tunnel.ops import entry_syntax as syntax
from tunnel.ops.config.content import MAX_BYTES
from tunnel.ops.config.read import read_config
from tunnel.proto.proofs import verifier_of

if TYPE_CHECKING:
    from pathlib import Path

    from tunnel.ops.config.read import Config, Known, Section

TOKEN = "abcdefghij_ABCDEFGHIJ-0123456789klmnopqrstU"
VERIFIER = verifier_of("alice", TOKEN).render()


def written(folder: Path, text: str, mode: int = 0o600) -> Path:
    path = folder / "tunnel.toml"
    path.write_text(text, "utf-8")
    path.chmod(mode)
    return path


def read(folder: Path, text: str) -> Config:
    return read_config(written(folder, text))


def faults(folder: Path, text: str) -> list[str]:
    """Return the faults of a text, without the folder of its file."""
    with pytest.raises(ConfigError) as raised:
        read(folder, text)
    assert raised.value.exit_status == 3
    return [one.removeprefix(f"{folder}/") for one in raised.value.faults]


def test_a_section_says_what_the_flags_say(tmp_path: Path) -> None:
    config = read(
        tmp_path,
        '[server]\nlisten = ["0.0.0.0:7443"]\nhttp = 80\nplain = true\n'
        'limit = ["links=3",\n  "rate=5MB/s"]\nmax_head = 2048\nstate = "kept"\n',
    )
    assert config.server is not None
    assert config.client is None
    said = {key: (one.words, one.line) for key, one in config.server.flags.items()}
    assert said == {
        "listen": (("0.0.0.0:7443",), 2),
        "http": (("80",), 3),
        "plain": (("true",), 4),
        "limit": (("links=3", "rate=5MB/s"), 5),
        "max_head": (("2048",), 7),
        "state": ((str(tmp_path / "kept"),), 8),
    }


def test_a_user_is_as_in_the_file_of_invited_ones(tmp_path: Path) -> None:
    (tmp_path / "bob.token").write_text(f"{TOKEN}\n")
    (tmp_path / "bob.token").chmod(0o600)
    config = read(
        tmp_path,
        f'[server.users.alice]\nverifier = "{VERIFIER}"\nmay = ["tcp:22"]\n'
        'rate = "10MB/s"\nlimits = ["links=3"]\nexpires = 2030-01-01T00:00:00Z\n'
        '[server.users.bob]\ntoken_file = "bob.token"\n',
    )
    assert config.server is not None
    alice, bob = config.server.users.values()
    assert alice.verifier.render() == VERIFIER
    assert alice.rights == parse_rights(["tcp:22"])
    assert set(alice.limits.words) == {"links=3", "rate=10MB/s"}
    assert alice.expires_at == 1_893_456_000
    assert alice.place == f"{tmp_path}/tunnel.toml:1"
    assert bob.verifier == verifier_of("bob", TOKEN)
    assert bob.rights == default_rights("bob")


def test_a_table_is_the_entry_that_its_flag_makes(tmp_path: Path) -> None:
    (tmp_path / "pair").write_text("me:p,w%2C=x")
    (tmp_path / "pair").chmod(0o600)
    (tmp_path / "site").mkdir()
    config = read(
        tmp_path,
        '[[client.tcp]]\nremote = 2222\ntarget = "127.0.0.1:22"\nproxy = "v1"\n'
        '[[client.tcp]]\nremote = "127.0.0.1:1080"\ntarget = "socks"\n'
        'network = ["10.0.0.0/8"]\n'
        "[[client.udp]]\ntarget = 53\n"
        '[[client.http]]\nname = "shop"\ntarget = 8000\nauth = "me:pw"\n'
        'auth_header = "keep"\nhost = "rewrite"\nheader = ["+X-A:1,2", "-X-B"]\n'
        'allow = "10.0.0.0/8"\nexpires = "2h"\npath = "/api"\nstrip = true\n'
        "cors = false\n"
        '[[client.http]]\nname = "site"\ntarget = "site"\nlist = true\n'
        'auth_file = "pair"\n'
        '[[client.https]]\nname = "safe"\ntarget = 443\ncheck = "tcp"\n'
        '[[client.reach]]\nlisten = 5432\ntarget = "db.lan:5432"\nexit = "home"\n'
        '[[client.socks]]\nlisten = "0.0.0.0:1080"\nauth = ["a:b", "c:d"]\n'
        '[[client.be_exit]]\nname = "home"\nnetwork = ["10.0.0.0/8"]\n',
    )
    assert config.client is not None
    got = {(one.flag, one.line): one.entry for one in config.client.entries}
    assert got.pop(("http", 23)) == syntax.http_entry(
        "site", f"{tmp_path}/site", [("auth", "me:p,w%2C=x"), ("list", None)]
    )
    assert got == {
        ("tcp", 1): syntax.parse_tcp("2222=127.0.0.1:22,proxy=v1"),
        ("tcp", 5): syntax.parse_tcp("127.0.0.1:1080=socks,network=10.0.0.0/8"),
        ("udp", 9): syntax.parse_udp("53"),
        ("http", 11): syntax.parse_http(
            "shop=8000,auth=me:pw,auth-header=keep,host=rewrite,header=+X-A:1%2C2,"
            "header=-X-B,allow=10.0.0.0/8,expires=2h,path=/api,strip"
        ),
        ("https", 28): syntax.parse_https("safe=443,check=tcp"),
        ("reach", 32): syntax.parse_reach("5432=db.lan:5432", "home"),
        ("socks", 36): syntax.parse_socks("0.0.0.0:1080,auth=a:b,auth=c:d"),
        ("be_exit", 39): syntax.parse_exit("home,network=10.0.0.0/8"),
    }


def test_thirty_faults_are_thirty_lines(tmp_path: Path) -> None:
    text = """\
[server]
listen = ["a:b"]
ports = "9-1"
public_host = "a b"
resume = "2x"
limit = ["links=3", "rat=5MB/s", "links=none"]
http = 99999
https = true
doman = "x.test"
certificate = ["no.pem", "no.key"]
client_ca = "no.ca"
max_per_address = 0
trusted_proxy = "nine"
drain = 8
max_head = "big"
log = "xml"
[server.users.Alice]
verifier = "prot1:x"
may = ["nothing:1"]
rate = "5Mbit/s"
expires = 2030-01-01
[server.users.default]
token_file = "none.token"
[client]
to = "tunnel://a:short@h/"
via = "ftp://h"
[[client.tcp]]
remote = 70000
target = ""
[[client.http]]
nam = "shop"
target = "x y z"
[[client.socks]]
listen = "0.0.0.0:1080"
[client.udp]
target = 53
[[client.be_exit]]
network = ["10.0.0.0/33"]
"""
    found = faults(tmp_path, text)
    lines = [int(one.split(":")[1]) for one in found]
    assert all(one.startswith("tunnel.toml:") for one in found)
    assert all(one.isprintable() for one in found)
    assert len(found) == 30
    expected = "2 3 4 5 6 6 7 8 9 10 10 11 12 13 14 15 16 18 19 20 21 23 25 26 28 29 31"
    assert lines == [*map(int, expected.split()), 33, 35, 38]
    by_line = dict(zip(lines, found, strict=True))
    assert "did you mean domain?" in by_line[9]
    assert "did you mean name?" in by_line[31]
    assert "[[client.udp]]" in by_line[35]
    assert "--" not in "".join(found)
    assert "short" not in "".join(found)


def test_a_fault_names_keys_and_no_flags(tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    table = '[[client.http]]\ntarget = "site"\nmax_body = "1M"\nauth_header = "keep"\n'
    (fault,) = faults(tmp_path, table)
    assert fault.startswith("tunnel.toml:1: 'auth_header' is not for a folder")
    (fault,) = faults(tmp_path, "[server]\nmax_head = 5\n")
    assert fault.startswith("tunnel.toml:2: max_head 5 is out of range")


def test_two_entries_for_one_port_are_found_with_their_lines(tmp_path: Path) -> None:
    one = "[[client.tcp]]\nremote = 22\ntarget = 22\n"
    other = "[[client.tcp]]\nremote = 23\ntarget = 22\n"
    found = faults(tmp_path, one + other + one + other)
    assert [text.split(": ")[0] for text in found] == [
        "tunnel.toml:7",
        "tunnel.toml:10",
    ]


def test_of_the_other_section_not_even_secrets_are_read(tmp_path: Path) -> None:
    path = written(
        tmp_path, '[server]\nports = "5-6"\n[client]\ntoken_file = "not-there"\n'
    )
    assert read_config(path, ("server",)).client is None
    with pytest.raises(ConfigError):
        read_config(path, ("client",))


def test_an_entry_that_is_as_before_is_not_made_anew(tmp_path: Path) -> None:
    one = '[[client.http]]\nname = "a"\ntarget = "h:1"\n'
    other = '[[client.http]]\nname = "b"\ntarget = "h:2"\n'
    locked = '[[client.http]]\nname = "c"\ntarget = "h:3"\nauth_file = "pair"\n'
    (tmp_path / "pair").write_text("me:old")
    (tmp_path / "pair").chmod(0o600)
    known: Known = {}
    sections: tuple[Section] = ("client",)
    first = read_config(written(tmp_path, one + locked), sections, known).client
    (tmp_path / "pair").write_text("me:new")
    second = read_config(
        written(tmp_path, other + one + locked), sections, known
    ).client
    assert first is not None
    assert second is not None
    (a, c), (b, a_again, c_again) = first.entries, second.entries
    assert a_again.entry is a.entry
    assert (a.line, a_again.line) == (1, 4)
    assert c_again.entry != c.entry
    with pytest.raises(ConfigError):
        read_config(written(tmp_path, one + one), sections, known)
    written(tmp_path, other.replace("b", "d") + one)
    third = read_config(tmp_path / "tunnel.toml", sections, known).client
    assert third is not None
    assert third.entries[1].entry is a.entry
    assert third.entries[0].entry != b.entry
    assert len(known) == 2


def test_a_secret_that_others_can_read_by_now_is_a_fault_at_a_reload(
    tmp_path: Path,
) -> None:
    known: Known = {}
    path = written(
        tmp_path,
        '[[client.http]]\nname = "a"\ntarget = "h:1"\n'
        'header = ["+Authorization:secret"]\n',
    )
    read_config(path, ("client",), known)
    path.chmod(0o660)  # of what root wrote, reading alone would be no fault
    with pytest.raises(ConfigError, match="its mode is 660"):
        read_config(path, ("client",), known)


@pytest.mark.parametrize(
    ("client", "why"),
    [
        ('to = "tunnel://al@h/#x"', "the token is missing"),
        ('to = "home"\ntoken_file = "token"', "no place for its token"),
        (f'to = "tunnel://al:{TOKEN}@h/"\ntoken_file = "token"', "to has one already"),
        ('token_file = "token"', "no place for its token"),
        (f'to = "tunnel://al:{TOKEN}@h/"\nto_file = "line"', "to_file say the same"),
        ('via = "none"\nvia_file = "via"', "via and via_file say the same"),
        ('to = "tunnel://al@h:1/#x"\ntoken_file = "token"', "the PIN after #"),
        ('token_file = "line"', "there is no token in it"),
    ],
)
def test_what_no_client_can_start_with_is_one_fault(
    tmp_path: Path, client: str, why: str
) -> None:
    secrets = {"token": TOKEN, "line": f"tunnel://al:{TOKEN}@h/", "via": "none"}
    for name, text in secrets.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o600)
    (fault,) = faults(tmp_path, f"[client]\n{client}\n")
    assert why in fault
    assert TOKEN not in fault


# Secrets -----------------------------------------------------------------------------


def test_a_token_of_a_file_completes_the_line(tmp_path: Path) -> None:
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    (tmp_path / "token").chmod(0o600)
    text = '[client]\nto = "tunnel+plain://al@h:1/"\ntoken_file = "token"\n'
    config = read_config(written(tmp_path, text, 0o644))
    assert config.client is not None
    line = config.client.flags["to"]
    assert (line.words, line.line) == ((f"tunnel+plain://al:{TOKEN}@h:1/",), 2)


@pytest.mark.parametrize(
    "secret",
    [
        f'[client]\nto = "tunnel+plain://al:{TOKEN}@h:1/"',
        '[client]\nvia = "http://me:pw@proxy:1"',
        '[[client.socks]]\nauth = "me:pw"',
        '[[client.http]]\ntarget = 8000\nauth = "me:pw"',
        '[[client.http]]\ntarget = 8000\nheader = "+X-API-Key:pw"',
    ],
)
def test_a_secret_that_others_can_read_is_not_used(tmp_path: Path, secret: str) -> None:
    if not os.getuid():
        os.chown(tmp_path, 1000, -1)
    path = written(tmp_path, secret, 0o644)
    if not os.getuid():  # what root alone can write is taken from it
        os.chown(path, 1000, -1)
    with pytest.raises(ConfigError) as raised:
        read_config(path)
    (fault,) = raised.value.faults
    assert "will not use" in fault
    assert fault.startswith(f"{path}:{secret.count(chr(10)) + 1}:")
    assert "pw" not in fault
    assert TOKEN not in fault


def test_a_credential_of_systemd_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "credentials"
    folder.mkdir()
    (folder / "line").write_text(f"tunnel+plain://al:{TOKEN}@h:1/")
    (folder / "line").chmod(0o400)
    text = '[client]\nto_file = "$CREDENTIALS_DIRECTORY/line"\n'
    assert "sets no CREDENTIALS_DIRECTORY" in faults(tmp_path, text)[0]
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(folder))
    config = read(tmp_path, text)
    assert config.client is not None
    assert config.client.flags["to"].words == (f"tunnel+plain://al:{TOKEN}@h:1/",)


# The world ---------------------------------------------------------------------------


def test_a_mark_and_line_ends_of_windows_are_no_fault(tmp_path: Path) -> None:
    path = tmp_path / "tunnel.toml"
    path.write_bytes(b'\xef\xbb\xbf[server]\r\nports = "5-6"\r\nhttp = "x:y"\r\n')
    with pytest.raises(ConfigError) as raised:
        read_config(path)
    (fault,) = raised.value.faults
    assert fault.startswith(f"{path}:3: ")


@pytest.mark.parametrize(
    ("raw", "what"),
    [
        (
            b'[server]\ndomain = "m\xfcller"',
            "it is not UTF-8; its line 2 is in another",
        ),
        (b"#" * (MAX_BYTES + 1), f"it has more than {MAX_BYTES} bytes"),
        (b"[server\n", "Expected ']'"),
        (b"x = " + b"[" * 9_000, "without end"),
    ],
)
def test_what_is_no_such_file_is_one_fault(
    tmp_path: Path, raw: bytes, what: str
) -> None:
    path = tmp_path / "tunnel.toml"
    path.write_bytes(raw)
    with pytest.raises(ConfigError) as raised:
        read_config(path)
    (fault,) = raised.value.faults
    assert fault.startswith(f"{path}:")
    assert what in fault


def test_a_folder_and_a_fifo_and_nothing_are_no_file(tmp_path: Path) -> None:
    fifo, gone = tmp_path / "fifo", tmp_path / "gone"
    os.mkfifo(fifo)
    for path, what in (
        (tmp_path, "cannot be read: Is a directory"),
        (fifo, "this is no file"),
        (gone, "cannot be read: No such file"),
    ):
        with pytest.raises(ConfigError) as raised:
            read_config(path)
        (fault,) = raised.value.faults
        assert fault.startswith(f"{path}: {what}")


def test_a_symbolic_link_is_followed(tmp_path: Path) -> None:
    link = tmp_path / "link.toml"
    link.symlink_to(written(tmp_path, '[server]\nports = "5-6"\n'))
    assert read_config(link).path == link


def test_a_file_that_goes_on_changing_is_not_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path, '[server]\nports = "5-6"\n')
    real, at = os.fstat, iter(range(10_000_000, 20_000_000))

    def moved(descriptor: int) -> os.stat_result:
        os.utime(path, ns=(next(at), next(at)))
        return real(descriptor)

    monkeypatch.setattr(os, "fstat", moved)
    with pytest.raises(ConfigError, match="it changes while it is read"):
        read_config(path)


def test_a_file_that_vanishes_while_it_is_read_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path, '[server]\nports = "5-6"\n')
    real = os.fstat

    def gone(descriptor: int) -> os.stat_result:
        path.unlink(missing_ok=True)
        return real(descriptor)

    monkeypatch.setattr(os, "fstat", gone)
    server = read_config(path).server
    assert server is not None
    assert server.flags["ports"].words == ("5-6",)


def test_what_everybody_may_write_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path, '[server]\nports = "5-6"\n', 0o666)
    with pytest.raises(ConfigError, match="everybody may write it: its mode is 666"):
        read_config(path)
    monkeypatch.setenv("TUNNEL_TRUST_FILES", "yes")
    assert read_config(path).server is not None
