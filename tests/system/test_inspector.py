"""The inspector behind a real tunnel, asked over the control socket as commands do."""

from __future__ import annotations

import gzip
import json
import shlex
import socket
import subprocess
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any, ClassVar, Final

import pytest
from support.processes import Machine, curl, eventually, free_port
from support.web_server import web_server
from support.websocket import websocket_echo
from websockets.sync.client import connect as connect_websocket

from tunnel.ops.control.ask import AnswerError, ask_at

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.processes import Program

HOSTILE: Final = "<script>alert(1)</script>\x1b[2J\0‮'$(reboot)\n"
LONG_LINE: Final = b"x" * (1 << 20)
PIECE: Final = bytes(range(256)) * 4_096
MIB: Final = 1 << 20


class Site(BaseHTTPRequestHandler):
    """Says what it is asked for, and notes what it was told."""

    protocol_version = "HTTP/1.1"
    told: ClassVar[list[tuple[str, str, bytes]]] = []

    def do_GET(self) -> None:
        what, _, size = self.path.partition("?")[0].strip("/").partition("/")
        if what == "packed":
            packed = gzip.compress(b'{"password": "hunter2", "a": 1}')
            self._say(packed, "application/json", "Content-Encoding: gzip")
        elif what == "hostile":
            self._say(HOSTILE.encode(), "text/html; charset=utf-8", "X-Odd: \x1b[2J")
        elif what == "line":
            self._say(LONG_LINE, "text/plain")
        elif what == "chunks":
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for word in (b"one ", b"two ", b"three"):
                self.wfile.write(b"%x\r\n%b\r\n" % (len(word), word))
            self.wfile.write(b"0\r\nX-Sum: abc\r\n\r\n")
        elif what == "large":
            self.send_response(200)
            self.send_header("Content-Length", str(int(size) * MIB))
            self.end_headers()
            for _ in range(int(size)):
                self.wfile.write(PIECE)
        else:
            self._say(b"ok", "text/plain")

    def do_POST(self) -> None:
        body = b""
        if size := int(self.headers.get("Content-Length", 0)):
            while len(body) < size:
                body += self.rfile.read(min(size - len(body), MIB))
                if size > 2 * MIB:
                    size, body = size - len(body), b""
        while self.headers.get("Transfer-Encoding") and (
            count := int(self.rfile.readline(), 16)
        ):
            body += self.rfile.read(count + 2)[:-2]
        self.told.append((self.command, self.path, body))
        self._say(b"posted", "text/plain", "Set-Cookie: id=7")

    do_PUT = do_POST

    def _say(self, body: bytes, kind: str, line: str = "") -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        if line:
            self.send_header(*line.split(": "))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


class Town:
    """A server, a client that is inspected, and what is behind it."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.machine = machine = Machine(folder)
        stack.callback(machine.close)
        self.web = stack.enter_context(web_server(Site))
        sockets = stack.enter_context(websocket_echo())
        shared = folder / "shared"
        shared.mkdir()
        (shared / "a.txt").write_text("of a folder")
        self.http = free_port()
        names = "--http", f"127.0.0.1:{self.http}", "--domain", "t.test"
        self.join = machine.serve(*names).join
        self.client = machine.up(
            self.join, "--http", f"shop={self.web},inspect",
            "--http", f"talk={sockets},inspect",
            "--http", f"files={shared},inspect,auth=me:right",
            "--http", f"gone={free_port()},inspect",
            "--http", f"both={self.web},inspect,host=rewrite",
            "--inspect-hide", "X-Mine", ready=5,
        )  # fmt: skip

    def ask(
        self, do: str, client: Program | None = None, **args: object
    ) -> dict[str, Any]:
        pid = (client or self.client).pid
        (path,) = self.machine.home.glob(f"**/run/up-{pid}*")
        answer = ask_at(path, "the client", f"inspect.{do}", args)
        assert answer is not None
        return answer

    def get(self, path: str, *words: str, name: str = "shop") -> bytes:
        url = f"http://127.0.0.1:{self.http}{path}"
        more = "-g", "-H", f"Host: {name}.t.test", *words
        return self.machine.run(*curl(url, *more)).stdout

    def last(self, path: str) -> dict[str, Any]:
        """Return the last request for a path, as a line of the list."""
        seen = self.ask("list")["seen"]
        found: dict[str, Any] = [one for one in seen if one["path"] == path][-1]
        return found

    def show(self, path: str, *, reveal: bool = False) -> dict[str, Any]:
        return self.ask("show", number=self.last(path)["number"], reveal=reveal)

    def settled(self, number: int) -> dict[str, Any]:
        eventually(
            lambda: self.ask("show", number=number)["state"] in ("done", "failed"),
            f"the end of request {number}",
        )
        return self.ask("show", number=number)


@pytest.fixture(scope="module")
def town(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Town]:
    with ExitStack() as stack:
        yield Town(tmp_path_factory.mktemp("town"), stack)


def test_requests_are_kept_as_they_were_and_shown_as_people_read_them(
    town: Town,
) -> None:
    town.get("/packed?token=abc", "-H", "X-Mine: 7", "-H", "Authorization: Bearer x")
    line = town.last("/packed?token=***")
    assert (line["method"], line["host"], line["status"]) == ("GET", "shop.t.test", 200)
    assert (line["entry"], line["state"], line["failure"]) == ("http shop", "done", "")
    assert line["kind"] == "application/json"
    phases = [line[f"{name}_ms"] for name in ("connected", "first_byte", "ended")]
    assert phases == sorted(phases)
    shown = town.ask("show", number=line["number"])
    assert shown["answer"]["body"]["text"] == '{"password": "***", "a": 1}'
    told = json.dumps(shown)
    assert not any(word in told for word in ("abc", "Bearer", "hunter2", '"7"'))
    shown = town.ask("show", number=line["number"], reveal=True)
    assert '"hunter2"' in shown["answer"]["body"]["text"]
    assert ["X-Mine", "7"] in shown["request"]["fields"]
    # Bodies, both ways.
    town.get("/chunks")
    assert town.show("/chunks")["answer"]["body"]["text"] == "one two three"
    assert town.show("/chunks")["trailers"] == [["X-Sum", "abc"]]
    town.get("/form", "-d", "a=1&password=2&b=%20x")
    shown = town.show("/form")
    assert shown["form"] == [["a", "1"], ["password", "***"], ["b", " x"]]
    assert shown["request"]["body"]["text"] == "a=1&password=***&b=%20x"
    assert ["Set-Cookie", "***"] in shown["answer"]["fields"]
    town.get("/in-chunks", "-H", "Transfer-Encoding: chunked", "--data-raw", "hello")
    assert town.show("/in-chunks")["request"]["body"]["text"] == "hello"


def test_hostile_content_is_text_and_nothing_else(town: Town) -> None:
    town.get("/hostile?%1b<b>", "-A", "$(reboot)")
    shown = town.show("/hostile?%1b<b>")
    assert shown["answer"]["body"]["text"] == HOSTILE
    town.get("/line")
    body = town.show("/line")["answer"]["body"]
    assert (body["size"], body["cut"]) == (len(LONG_LINE), False)
    assert body["text"] == LONG_LINE.decode()


def test_pages_of_ours_and_files_of_a_folder_are_seen(town: Town) -> None:
    town.get("/a.txt", name="files")
    assert town.last("/a.txt")["status"] == 401
    town.get("/a.txt", "-u", "me:right", name="files")
    shown = town.show("/a.txt")
    assert (shown["status"], shown["entry"]) == (200, "http files")
    assert shown["answer"]["body"]["text"] == "of a folder"


def test_a_request_that_no_target_hears_is_seen(town: Town) -> None:
    town.get("/nobody", "-d", "a=1", name="gone")
    shown = town.show("/nobody")
    assert (shown["state"], shown["status"], shown["entry"]) == (
        "failed", None, "http gone",
    )  # fmt: skip
    assert "refused" in shown["failure"]


def test_an_entry_with_words_shows_the_same_as_one_that_is_relayed(town: Town) -> None:
    shown = []
    for name in ("shop", "both"):
        town.get("/same?x=1", "-d", "a=1", name=name)
        record = town.show("/same?x=1")
        assert (record["state"], record["failure"]) == ("done", "")
        heads = [dict(record[side]["fields"]) for side in ("request", "answer")]
        for head in heads:
            head.pop("Date", "")
            head.pop("Forwarded", "")  # it has the visitor's port
        hosts = [heads[0].pop(field) for field in ("Host", "X-Forwarded-Host")]
        assert hosts == [f"{name}.t.test"] * 2
        shown.append((heads, record["form"], record["answer"]["body"]))
    assert shown[0] == shown[1]


@pytest.mark.parametrize("compression", [None, "deflate"])
def test_the_messages_of_a_websocket_are_read(
    town: Town, compression: str | None
) -> None:
    url = f"ws://talk.t.test:{town.http}/{compression}"
    sock = socket.create_connection(("127.0.0.1", town.http))
    with connect_websocket(url, sock=sock, compression=compression) as ws:
        for word in ('{"token": "secret", "a": "é"}', b"\0\1", "x" * 100_000):
            ws.send(word)
            assert ws.recv() == word
        line = town.last(f"/{compression}")
        assert (line["state"], line["websocket"], line["status"]) == (
            "tunnel", True, 101,
        )  # fmt: skip
    shown = town.settled(line["number"])
    assert (shown["failure"], shown["messages_dropped"]) == ("", 0)
    for who in ("visitor", "target"):
        text, binary, long, close = (
            one for one in shown["messages"] if one["from"] == who
        )
        assert text["text"] == '{"token": "***", "a": "é"}'
        assert (binary["base64"], binary["size"]) == ("AAE=", 2)
        assert (long["size"], long["cut"]) == (100_000, True)
        assert (close["kind"], close["text"]) == ("close", "1000")
    with pytest.raises(AnswerError, match="WebSocket"):
        town.ask("replay", number=line["number"])


def test_a_request_is_asked_again_and_asked_otherwise(town: Town) -> None:
    town.get("/again?n=1", "-H", "Cookie: id=7", "-H", "Content-Type: application/json",
        "--data-raw", '{"user": "me", "password": "p"}')  # fmt: skip
    was = town.last("/again?n=1")["number"]
    again = town.settled(town.ask("replay", number=was)["number"])
    assert (again["replay_of"], again["status"]) == (was, 200)
    with pytest.raises(AnswerError, match="edit is no object"):
        town.ask("replay", number=was, edit=5)
    shown = town.ask("show", number=was)
    body = shown["request"]["body"]["text"].replace("me", "you")
    edit = {"method": "PUT", "path": "/again?n=2", "body": body,
            "fields": shown["request"]["fields"]}  # fmt: skip
    edited = town.settled(town.ask("replay", number=was, edit=edit)["number"])
    assert edited["status"] == 200
    told = [one for one in Site.told if one[1].startswith("/again")]
    assert told == [
        ("POST", "/again?n=1", b'{"user": "me", "password": "p"}'),
        ("POST", "/again?n=1", b'{"user": "me", "password": "p"}'),
        ("PUT", "/again?n=2", b'{"user": "you", "password": "p"}'),
    ]
    revealed = town.ask("show", number=edited["number"], reveal=True)["request"]
    assert ["Cookie", "id=7"] in revealed["fields"]
    # The command asks the same; what it names is led to the tunnel by hand.
    command = town.ask("curl", number=was, reveal=True)["command"]
    at = f"--connect-to ::127.0.0.1:{town.http}"
    done = subprocess.run(
        ["bash", "-c", f"{command} {at} -s --noproxy {shlex.quote('*')}"],
        capture_output=True, check=True, timeout=20,
    )  # fmt: skip
    assert done.stdout == b"posted"
    assert Site.told[-1] == ("POST", "/again?n=1", b'{"user": "me", "password": "p"}')
    archive = town.ask("har", numbers=[was, edited["number"]])["har"]["log"]
    assert [one["request"]["method"] for one in archive["entries"]] == ["POST", "PUT"]
    assert town.ask("find", text='"user": "you"')["numbers"] == [edited["number"]]


@pytest.mark.parametrize(
    "size", [30, pytest.param(1_024, marks=pytest.mark.deep)], ids=str
)
def test_a_large_body_is_counted_and_its_beginning_kept(town: Town, size: int) -> None:
    before = town.client.rss_bytes()
    town.get(f"/large/{size}", "-o", "/dev/null")
    shown = town.show(f"/large/{size}")
    body = shown["answer"]["body"]
    assert (shown["received_bytes"], body["kept"]) == (size * MIB, MIB)
    assert body["cut"] is True
    upload = town.machine.home / "upload"
    with upload.open("wb") as file:
        file.truncate(size * MIB)
    town.get(f"/up/{size}", "-T", str(upload), "-o", "/dev/null")
    shown = town.show(f"/up/{size}")
    assert (shown["sent_bytes"], shown["request"]["body"]["kept"]) == (size * MIB, MIB)
    with pytest.raises(AnswerError, match="cannot be asked again"):
        town.ask("replay", number=shown["number"])
    assert town.client.rss_bytes() - before < 24 * MIB
    upload.unlink()


def test_an_entry_that_is_added_is_inspected_and_none_is_before(town: Town) -> None:
    client = town.machine.up(town.join, "--http", f"other={town.web}", ready=1)
    with pytest.raises(AnswerError, match="no entry of this client is inspected"):
        town.ask("list", client)
    name = next(town.machine.home.glob(f"**/run/up-{client.pid}*")).name
    added = town.machine.tunnel("add", "http", f"more={town.web},inspect", name)
    assert added.wait() == 0, added.errors()
    client.out.wait("more.t.test")
    town.get("/added", name="more")
    town.get("/added", name="other")
    (seen,) = town.ask("list", client)["seen"]
    assert (seen["entry"], seen["path"]) == ("http more", "/added")
    town.ask("clear", client)
    assert town.ask("list", client)["seen"] == []
    # Without the entry nothing can be asked of it again.
    town.get("/added", name="more")
    (seen,) = town.ask("list", client)["seen"]
    removed = town.machine.tunnel("remove", "http-2", name)
    assert removed.wait() == 0, removed.errors()
    with pytest.raises(AnswerError, match="no more"):
        town.ask("replay", client, number=seen["number"])
    client.stop()
