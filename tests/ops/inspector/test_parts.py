"""What the inspector keeps, hides, and writes for people and other programs."""

from __future__ import annotations

import base64
import gc
import json
import subprocess
import sys
import zlib
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.cycles import cycles_of
from support.seen import ANSWER, BODY, HEAD, VISITOR, seen
from wsproto import ConnectionType, WSConnection
from wsproto.connection import Connection
from wsproto.events import Message as WsMessage
from wsproto.extensions import PerMessageDeflate

from tunnel.errors import UsageError
from tunnel.ops.inspector.curl import curl, quoted
from tunnel.ops.inspector.har import har
from tunnel.ops.inspector.masks import Masks, edit_json, edit_pairs
from tunnel.ops.inspector.messages import MOST_BYTES, Conversation
from tunnel.ops.inspector.record import BODY_BYTES
from tunnel.ops.inspector.replay import edited, request_of
from tunnel.ops.inspector.shown import shown, summary
from tunnel.ops.inspector.store import Store
from tunnel.ops.inspector.watcher import EntryWatch, Looker

if TYPE_CHECKING:
    from tunnel.ops.inspector.record import Message


def test_secrets_are_hidden_until_they_are_asked_for() -> None:
    record = seen(Store())
    masks = Masks(["x-mine"])
    told = json.dumps([summary(record, masks), shown(record, masks)])
    for secret in ("abc", "xyz", "a=b", "c=d", '"p"', "seven"):
        assert secret not in told
    assert {"Authorization", "Cookie", "Set-Cookie", "token", "password", "X-Mine"} <= (
        set(masks.hidden)
    )
    revealed = json.dumps(shown(record, Masks(["x-mine"], reveal=True)))
    for secret in ("abc", "xyz", "a=b", "c=d", "seven", '\\"p\\"'):
        assert secret in revealed


@pytest.mark.parametrize(
    ("kind", "text", "hidden"),
    [
        ("application/x-www-form-urlencoded", "a=1&password=S1&api_key=S2", "S1 S2"),
        ("application/json", '{"a": {"client_secret": {"b": "S1"}}, "t": [1]}', "S1"),
        ("application/json", '{"password": "S1', "S1"),  # its end is cut off
        ("application/ld+json", '[{"pass\\u0077ord" : 12345}]', "12345"),
        ("text/plain", '{"token": "S1"}', "S1"),
        ("", '42["auth",{"password":"S1"}]', "S1"),  # Socket.IO
        ("application/x-www-form-urlencoded", "pwd=S1&pin=S2&spin=3", "S1 S2"),
    ],
)
def test_bodies_hide_what_is_named_so(kind: str, text: str, hidden: str) -> None:
    masked = Masks().text(text, kind)
    assert masked != text
    for value in hidden.split():
        assert value not in masked


@given(st.text(), st.sampled_from(["", "application/json", "multipart/form-data",
       "application/x-www-form-urlencoded"]))  # fmt: skip
def test_nothing_is_changed_where_nothing_is_hidden(text: str, kind: str) -> None:
    assert Masks(reveal=True).text(text, kind) == text
    assert edit_pairs(text, lambda _name, value: value) == text
    assert edit_json(text, lambda _name, value: value, lambda _name: True) == text
    Masks().text(text, kind)  # whatever it is, it does no harm


NAMES = st.sampled_from(
    ["password", ":x", 'a"b', "\\\\", "to\u006ben", "n", '": "', "é"]
)
JSON = st.recursive(
    st.one_of(st.none(), st.integers(), st.booleans(), st.text(), NAMES),
    lambda inner: st.lists(inner) | st.dictionaries(NAMES, inner),
)


def without_secrets(value: object, masks: Masks) -> object:
    if isinstance(value, list):
        return [without_secrets(one, masks) for one in value]
    if isinstance(value, dict):
        return {
            name: "***" if masks.hides(name) else without_secrets(one, masks)
            for name, one in value.items()
        }
    return value


@given(JSON, st.booleans(), st.sampled_from([None, 2]))
def test_json_loses_the_values_of_its_secrets_and_nothing_else(
    value: object, ascii_only: bool, indent: int | None
) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only, indent=indent)
    masked = Masks().text(text, "application/json")
    assert json.loads(masked) == without_secrets(value, Masks())


def test_long_texts_take_linear_time() -> None:
    for unit in ('"', "{", '"token":', "a=", "?a", "\\", '"\\', "&token=", "://@"):
        text = unit * (BODY_BYTES // len(unit))
        for kind in ("application/json", "application/x-www-form-urlencoded",
                     "multipart/form-data"):  # fmt: skip
            Masks().text(text, kind)
        Masks().url(text)


# The store ---------------------------------------------------------------------------


def test_the_oldest_is_forgotten_and_nothing_grows_beyond_the_bound() -> None:
    store = Store(4 << 20)
    for _ in range(200):
        seen(store, text=bytes(200_000))
    assert store.kept_bytes <= store.limit_bytes
    assert store.first > 150
    assert store.get(1) is None
    assert store.forgotten == store.first - 1
    one = seen(store, text=bytes(3 * BODY_BYTES))
    assert (len(one.answer.data), one.answer.size) == (BODY_BYTES, 3 * BODY_BYTES)
    store.clear()
    assert store.kept_bytes == 0


@pytest.mark.parametrize(
    ("count", "body"),
    [(60_000, "b'hello'"), (60, "os.urandom(1 << 20)"), (1_000, "b'x' * 20_000")],
)  # fmt: skip
@pytest.mark.parametrize("piece", [3_000, 65_536])
def test_what_is_counted_is_what_the_memory_shows(
    count: int, body: str, piece: int
) -> None:
    """In a process of its own, with the collector off."""
    script = f"""
import gc, os
gc.disable()
from support.seen import seen
from tunnel.ops.inspector.store import Store
def rss():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
def one():
    text = {body}
    seen(store, pieces=[text[at:at + {piece}] for at in range(0, len(text), {piece})])
store = Store(24 << 20)
for _ in range({count} // 60):
    one()
before, counted = rss(), store.kept_bytes
for _ in range({count}):
    one()
print(rss() - before, store.kept_bytes - counted)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True,
        env={"PYTHONPATH": ":".join(sys.path)},
    )  # fmt: skip
    grown, counted = map(int, done.stdout.split())
    assert grown < 1.25 * counted + (2 << 20), (grown, counted)


def test_changes_come_once_and_in_order() -> None:
    store = Store()
    records = [seen(store) for _ in range(5)]
    version = store.version
    assert [one.number for one in store.changes(0, 3)] == [3, 4, 5]
    store.touch(records[1])
    assert [one.number for one in store.changes(version, 10)] == [2]
    assert store.changes(store.version, 10) == []


# WebSockets --------------------------------------------------------------------------


@pytest.mark.parametrize("forgotten", [False, True])
def test_a_websocket_that_has_ended_waits_for_no_collector(forgotten: bool) -> None:
    """What parses its frames held itself: 4 KB of each, and 70 KB of a packed one."""
    store = Store()
    with cycles_of("wsproto") as found:
        for _ in range(3):
            talk = EntryWatch(store, "http shop").begin(VISITOR, b"GET / HTTP/1.1\r\n")
            talk.answers(101, b"HTTP/1.1 101 Go\r\nUpgrade: websocket\r\n\r\n")
            talk.passed(b"\x81\5hello", to_visitor=True)
            if forgotten:
                store.clear()
                talk.passed(b"\x81\5hello", to_visitor=True)
            talk.over(whole=True)
    assert found == {}


def conversation(*, packed: bool) -> tuple[Conversation, WSConnection | Connection]:
    extension = b"\r\nSec-WebSocket-Extensions: permessage-deflate" if packed else b""
    head = b"HTTP/1.1 101 S\r\nUpgrade: websocket" + extension + b"\r\n\r\n"
    extensions = []
    if packed:
        one = PerMessageDeflate()
        one.finalize("permessage-deflate")
        extensions.append(one)
    return Conversation(head), Connection(ConnectionType.SERVER, list(extensions))


@pytest.mark.parametrize("packed", [False, True])
def test_messages_are_read_however_they_are_cut(packed: bool) -> None:
    said, server = conversation(packed=packed)
    words = ["hello", "hello again" * 50, "x" * 3 * MOST_BYTES, "bye"]
    data = b"".join(server.send(WsMessage(data=word)) for word in words)
    found: list[Message] = []
    for at in range(0, len(data), 7):
        found += said.hear(data[at : at + 7], 1.0, to_visitor=True)
    assert [one.size for one in found] == [len(word) for word in words]
    assert [one.data.decode() for one in found] == [w[:MOST_BYTES] for w in words]
    assert not said.fault


def test_a_bomb_of_a_message_ends_the_reading_alone() -> None:
    said, _server = conversation(packed=True)
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = packer.compress(bytes(64 << 20)) + packer.flush(zlib.Z_SYNC_FLUSH)
    frame = b"\xc2\x7f" + len(bomb).to_bytes(8, "big") + bomb
    assert list(said.hear(frame, 1.0, to_visitor=True)) == []
    assert "target" in said.fault
    assert list(said.hear(b"\xff" * 100, 1.0, to_visitor=False)) == []
    assert "visitor" in said.fault


def test_what_reads_messages_is_counted_and_given_up_with_its_record() -> None:
    store = Store(1 << 20)
    head = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"
    answer = (
        b"HTTP/1.1 101 S\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Extensions: permessage-deflate\r\n\r\n"
    )
    lookers = []
    for _ in range(100):
        looker = Looker(store, store.add("http shop", VISITOR, head))
        looker.answers(101, answer)
        lookers.append(looker)
    assert len(list(store)) == (1 << 20) // lookers[-1]._record.cost
    for looker in lookers:
        looker.passed(b"\x81\x02hi", to_visitor=True)
        assert (looker._conversation is not None) == looker._record.is_kept
    last = lookers[-1]._record
    assert last.messages is not None
    assert [one.data for one in last.messages] == [b"hi"]
    was = last.cost
    # The beginning of a message is memory too, and comes back.
    lookers[-1].passed(b"\x82\x7f" + (1 << 20).to_bytes(8, "big") + bytes(50_000),
        to_visitor=True)  # fmt: skip
    assert last.cost == was + 50_000
    lookers[-1].over(whole=True)
    assert last.cost < 10_000


def test_the_same_message_again_and_again_is_read_but_not_bombs_in_pieces() -> None:
    said, server = conversation(packed=True)
    word = json.dumps({f"key {n}": n for n in range(200)})
    for second in range(2_000):
        data = server.send(WsMessage(data=word))
        (message,) = said.hear(data, float(second), to_visitor=True)
        assert message.size == len(word)
    assert not said.fault
    # Small pieces, each of which unpacks into little.
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = packer.compress(bytes(8 << 20)) + packer.flush(zlib.Z_SYNC_FLUSH)
    head = b"\xc2\x7e" + len(bomb).to_bytes(2, "big")
    assert not list(said.hear(head, 2_000.0, to_visitor=True))
    for at in range(0, len(bomb), 100):
        assert not list(said.hear(bomb[at : at + 100], 2_000.0, to_visitor=True))
    assert "packed too much" in said.fault


@given(st.binary(max_size=300), st.booleans())
def test_anything_may_come_behind_101(data: bytes, packed: bool) -> None:
    said, _server = conversation(packed=packed)
    list(said.hear(data, 0.0, to_visitor=True))
    list(said.hear(data, 0.0, to_visitor=False))


# For other programs ------------------------------------------------------------------


def sh(command: str) -> list[str]:
    """Give the words that a shell makes of a command."""
    show = 'curl() { for word in "$@"; do printf \'%s\\0\' "$word"; done; }; '
    done = subprocess.run(
        ["bash", "-c", show + command], capture_output=True, check=True
    )
    return done.stdout.decode("utf-8", "surrogateescape").split("\0")[:-1]


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])))
def test_a_shell_reads_what_was_quoted(text: str) -> None:
    assert quoted(text).isprintable()


@pytest.mark.parametrize(
    "text", ["it's", "a\nb", "$(reboot)", "`x`", "\x1b[2J", "\\", "'\x01'", "!x", "é",
             "@file", "\x1b0", "a\tb"],
)  # fmt: skip
def test_any_body_comes_out_of_a_shell_as_it_went_in(text: str) -> None:
    head = b"POST /a HTTP/1.1\r\nHost: h\r\nContent-Type: text/x\r\n\r\n"
    record = seen(Store(), head, text.encode())
    words = sh(curl(record, Masks(reveal=True)))
    assert words[words.index("--data-raw") + 1] == text
    assert "http://h/a" in words


def test_a_binary_body_and_odd_fields() -> None:
    head = (
        b'PUT /a[1]?x=%20{y} HTTP/1.1\r\nHost: h\r\nX-Empty:\r\nX-Q: it\'s "q"\r\n'
        b"Connection: close\r\nX-Forwarded-For: 1.2.3.4\r\n\r\n"
    )
    record = seen(Store(), head, bytes(range(256)))
    command = curl(record, Masks())
    show = "curl() { cat; }; "
    done = subprocess.run(
        ["bash", "-c", show + command], capture_output=True, check=True
    )
    assert done.stdout == bytes(range(256))
    words = sh(command)
    assert words[:6] == [
        "-g",
        "--path-as-is",
        "-X",
        "PUT",
        "http://h/a[1]?x=%20{y}",
        "-H",
    ]
    assert {"X-Empty;", 'X-Q: it\'s "q"', "Content-Type:"} <= set(words)
    assert not any("Forwarded" in word or "Connection" in word for word in words)


def test_a_request_about_the_server_is_asked_again_as_one() -> None:
    record = seen(Store(), b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", b"")
    words = sh(curl(record, Masks()))
    assert words[words.index("--request-target") + 1] == "*"


async def test_an_archive_says_what_broke() -> None:
    store = Store()
    record = seen(store)
    record.failure = "broke off"
    archive: Any = await har([record], Masks())
    (entry,) = archive["log"]["entries"]
    assert entry["response"]["comment"] == "broke off"


async def test_an_archive_has_what_its_readers_want() -> None:
    store = Store()
    records = [
        seen(store),
        seen(store, answer=ANSWER.replace(b"text/plain", b"image/png"), text=b"\x89P"),
        store.add("http shop", VISITOR, b"GARBAGE\x00\xff"),
    ]  # fmt: skip
    archive: Any = await har(records, Masks())
    first, image, garbage = archive["log"]["entries"]
    assert first["request"]["url"] == "http://shop.test/a?token=***&b=1"
    assert first["request"]["postData"]["text"] == '{"user": "me", "password": "***"}'
    assert first["response"]["content"]["text"] == "hello"
    assert base64.b64decode(image["response"]["content"]["text"]) == b"\x89P"
    assert garbage["response"]["status"] == 0
    json.dumps(archive)


def test_a_long_body_and_bytes_that_are_no_text() -> None:
    body = "it's 9\n" * 30_000
    head = b"POST /\xe9'?a=\xff HTTP/1.1\r\nHost: h\r\nX-Odd: a'\xe9\\9\r\n\r\n"
    command = curl(seen(Store(), head, body.encode()), Masks())
    show = "curl() { printf '%s\\0' \"$@\"; cat; }; "
    done = subprocess.run(
        ["bash", "-s"], input=(show + command).encode(), capture_output=True, check=True
    )
    *words, said = done.stdout.split(b"\0")
    assert said == body.encode()
    assert b"http://h/\xe9'?a=\xff" in words
    assert b"X-Odd: a'\xe9\\9" in words


# Asked again -------------------------------------------------------------------------


def test_what_is_asked_again_is_framed_anew() -> None:
    chunked = HEAD.replace(b"Content-Length: 31", b"Transfer-Encoding: chunked")
    for head in (HEAD, chunked):
        request = request_of(seen(Store(), head))
        assert request.endswith(
            b"\r\nContent-Length: 31\r\nConnection: close\r\n\r\n" + BODY
        )
        assert request.count(b"Content-Length") == 1
        assert b"chunked" not in request


def test_what_cannot_be_asked_again_says_why() -> None:
    store = Store()
    for change, why in (
        (lambda one: setattr(one, "whole", False), "not whole"),
        (lambda one: one.request.add([bytes(2 * BODY_BYTES)]), "of its body"),
        (lambda one: setattr(one, "state", "tunnel"), "WebSocket"),
    ):  # fmt: skip
        record = seen(store)
        change(record)
        with pytest.raises(UsageError) as caught:
            request_of(record)
        assert why in f"{caught.value.what} {caught.value.cause}"


@pytest.mark.parametrize(
    ("kind", "body", "change"),
    [
        (b"application/x-www-form-urlencoded", b"a=1&password=S1&password=S2", "a=1"),
        (b"text/plain", b'{"a=1": 2, "token": {"b": ["S1"]}, "password":"S2"}', "a=1"),
        (
            b"multipart/form-data; boundary=x",
            b'--x\r\nContent-Disposition: form-data; name="password"\r\n\r\nS1\r\n'
            b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\na=1\r\n--x--\r\n',
            "a=1",
        ),
    ],
)
def test_whatever_body_is_edited_what_is_hidden_in_it_comes_back(
    kind: bytes, body: bytes, change: str
) -> None:
    head = b"POST / HTTP/1.1\r\nHost: h\r\nContent-Type: %b\r\n\r\n" % kind
    record = seen(Store(), head, body)
    asked: Any = shown(record, Masks())["request"]
    text = asked["body"]["text"]
    assert "S1" not in text
    assert "***" in text
    request = edited(record, {"body": text.replace(change, "a=22")}, Masks())
    assert request.partition(b"\r\n\r\n")[2] == body.replace(b"a=1", b"a=22")


def test_an_edit_keeps_what_is_hidden() -> None:
    record = seen(Store())
    edit = {
        "method": "PUT", "path": "/other?token=***",
        "fields": [["Host", "shop.test"], ["authorization", "***"], ["Cookie", "***"],
                   ["X-New", "1"], ["Content-Type", "application/json"]],
        "body": '{"user": "you", "password": "***"}',
    }  # fmt: skip
    request = edited(record, edit, Masks())
    assert request.startswith(b"PUT /other?token=abc HTTP/1.1\r\n")
    assert b"\r\nauthorization: Bearer xyz\r\nCookie: a=b\r\nX-New: 1\r\n" in request
    assert request.endswith(b'{"user": "you", "password": "p"}')
    for wrong in (
        {"path": "/a\r\nX: y"}, {"method": 3}, {"fields": [["a\n", "b"]]},
        {"fields": "x"}, {"fields": [["a"]]}, {"body": 7},
    ):  # fmt: skip
        with pytest.raises(UsageError):
            edited(record, wrong, Masks())


def test_nothing_is_held_in_cycles() -> None:
    store = Store(1 << 20)
    seen(store)
    gc.collect()
    gc.disable()
    try:
        for _ in range(3_000):
            seen(store)
        assert gc.collect() < 50
    finally:
        gc.enable()
