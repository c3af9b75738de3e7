from __future__ import annotations

import dataclasses
import string
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.private import mode_of

from tunnel.access.files import write_private
from tunnel.access.join import (
    JoinLine,
    Secret,
    make_token,
    owner_token,
    parse_join,
    write_join,
)
from tunnel.errors import Exit, StateError, UsageError
from tunnel.proto.proofs import to_base64url

if TYPE_CHECKING:
    from pathlib import Path

TOKEN = "dG9rZW4tdGhhdC1ub2JvZHktc2hvdWxkLXNlZS4uLi4"
PIN = "UElOUElOUElOUElOUElOUElOUElOUElOUElOUElOUEk"


def test_a_secret_shows_itself_nowhere_but_in_reveal() -> None:
    secret = Secret("hush")
    shown = f"{secret} {secret!s} {secret!r} {[secret]}"
    assert "hush" not in shown
    assert str(secret) == "***"
    assert secret.reveal() == "hush"


def test_secrets_are_equal_when_their_texts_are() -> None:
    assert Secret("ä\udc80") == Secret("ä\udc80")
    assert Secret("a") != Secret("b")
    assert Secret("a") != "a"
    assert len({Secret("a"), Secret("a"), Secret("b")}) == 2


def test_a_token_has_32_random_bytes_without_padding() -> None:
    one, two = make_token(), make_token()
    assert one != two
    assert len(one.reveal()) == 43
    assert set(one.reveal()) <= set(string.ascii_letters + string.digits + "-_")


names = st.text(min_size=1, max_size=60).filter(str.isprintable)
tokens = st.binary(min_size=32, max_size=32).map(to_base64url)
pins = st.binary(min_size=32, max_size=32).map(to_base64url)
hosts = st.one_of(
    st.ip_addresses().map(str),
    st.from_regex(
        r"([a-z0-9]([a-z0-9]{0,9}-?[a-z0-9])?\.){0,3}[a-z]{1,9}", fullmatch=True
    ),
    st.just("fe80::1%eth0"),
)


@st.composite
def join_lines(draw: st.DrawFn) -> JoinLine:
    plain = draw(st.booleans())
    return JoinLine(
        name=draw(names),
        token=Secret(draw(tokens)),
        host=draw(hosts),
        port=draw(st.integers(1, 65_535)),
        pin=None if plain else draw(st.none() | pins),
        plain=plain,
    )


@given(join_lines())
def test_a_rendered_join_line_reads_back_as_itself(join: JoinLine) -> None:
    assert parse_join(join.render()) == join
    assert parse_join(f"  {join.render()}\n") == join
    assert parse_join(f'\ufeff"{join.render()}"\r\n') == join


def test_a_join_line_looks_as_documented() -> None:
    join = JoinLine("ann/b", Secret(TOKEN), "2001:db8::1", 7443, PIN, plain=False)
    assert join.render() == f"tunnel://ann%2Fb:{TOKEN}@[2001:db8::1]:7443/#{PIN}"
    plain = dataclasses.replace(join, host="h", pin=None, plain=True)
    assert plain.render() == f"tunnel+plain://ann%2Fb:{TOKEN}@h:7443/"


def test_the_repr_of_a_join_line_hides_its_token() -> None:
    assert TOKEN not in repr(parse_join(f"tunnel://a:{TOKEN}@h:1/#{PIN}"))


@pytest.mark.parametrize("where", ["h", "h/", "[::1]", "[::1]/"])
def test_the_default_port_is_7443_and_the_pin_may_be_absent(where: str) -> None:
    join = parse_join(f"tunnel://a:{TOKEN}@{where}")
    assert (join.port, join.pin, join.plain) == (7443, None, False)


@pytest.mark.parametrize(
    ("line", "cause"),
    [
        ("", "begin"),
        (TOKEN, "begin"),
        ("https://h", "begin"),
        ("tunnel://h:7443/", "NAME:TOKEN@"),
        (f"tunnel://{TOKEN}@h:7443/", "token is missing"),
        ("tunnel://a:@h", "the token is not"),
        ("tunnel://a:c2hvcnQ@h", "32 bytes"),
        (f"tunnel://a:{TOKEN}=@h", "the token is not"),
        (f"tunnel://a:{TOKEN}AA@h", "the token is not"),
        (f"tunnel://:{TOKEN}@h", "name"),
        (f"tunnel://{'a' * 256}:{TOKEN}@h", "name"),
        (f"tunnel://%0a:{TOKEN}@h", "name"),
        (f"tunnel://a\udc80:{TOKEN}@h", "name"),
        (f"tunnel://%ff:{TOKEN}@h", "UTF-8"),
        (f"tunnel://a:{TOKEN}@", "host name"),
        (f"tunnel://a:{TOKEN}@h?x", "host name"),
        (f"tunnel://a:{TOKEN}@h:", "port ''"),
        (f"tunnel://a:{TOKEN}@h:0", "port '0'"),
        (f"tunnel://a:{TOKEN}@h:65536", "port '65536'"),
        (f"tunnel://a:{TOKEN}@h:0074430", "port '0074430'"),
        (f"tunnel://a:{TOKEN}@h:http", "port 'http'"),
        (f"tunnel://a:{TOKEN}@::1:7443/", "not HOST:PORT"),
        (f"tunnel://a:{TOKEN}@[::1:7443/", "IPv6"),
        (f"tunnel://a:{TOKEN}@[::g]:7443/", "IPv6"),
        (f"tunnel://a:{TOKEN}@[::1%e h]:7443/", "IPv6"),
        (f"tunnel://a:{TOKEN}@[::1]7443/", "IPv6"),
        (f"tunnel://a:{TOKEN}@h:1/x#{PIN}", "path"),
        (f"tunnel://a:{TOKEN}@h:1/#{PIN[:-1]}", "PIN"),
        (f"tunnel://a:{TOKEN}@h:1/#{PIN[:-1]}l", "PIN"),
        (f"tunnel+plain://a:{TOKEN}@h:1/#{PIN}", "plain"),
    ],
)
def test_a_faulty_join_line_is_refused_with_its_cause(line: str, cause: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_join(line)
    assert cause in caught.value.cause
    assert caught.value.fix
    assert caught.value.exit_status is Exit.USAGE


def complaint(line: str) -> UsageError | None:
    try:
        parse_join(line)
    except UsageError as error:
        return error
    return None


parts = st.sampled_from(
    [TOKEN, PIN, "tunnel", "://", ":", "@", "/", "#", "a", "7443", "[", "]", "%", "?"]
)


@given(st.lists(parts, max_size=12), st.booleans())
def test_no_complaint_shows_the_token_wherever_it_stands(
    pieces: list[str], whole: bool
) -> None:
    error = complaint("".join(["tunnel://" * whole, *pieces]))
    if error is not None:
        assert TOKEN not in f"{error!r} {error.what} {error.cause} {error.fix}"
        assert error.__cause__ is None


def test_the_owners_token_is_new_until_the_join_line_is_written(tmp_path: Path) -> None:
    token = owner_token(tmp_path)
    assert owner_token(tmp_path) != token
    join = JoinLine("default", token, "h", 1, PIN, plain=False)
    write_join(tmp_path, join)
    assert owner_token(tmp_path) == token
    assert mode_of(tmp_path / "join") == 0o600


def test_a_damaged_join_file_is_a_state_error_that_hides_the_token(
    tmp_path: Path,
) -> None:
    write_private(tmp_path / "join", f"tunnel://a:{TOKEN}@h:x/")
    with pytest.raises(StateError) as caught:
        owner_token(tmp_path)
    error = caught.value
    assert "port 'x'" in error.cause
    assert TOKEN not in f"{error!r} {error.cause} {error.fix}"


def test_a_join_line_that_stands_there_is_not_written_again(tmp_path: Path) -> None:
    join = JoinLine("default", make_token(), "h", 1, PIN, plain=False)
    write_join(tmp_path, join)
    before = (tmp_path / "join").stat().st_ino
    write_join(tmp_path, join)
    assert (tmp_path / "join").stat().st_ino == before
