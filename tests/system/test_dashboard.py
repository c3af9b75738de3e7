"""The page and the inspector, in a browser, at both ends of a real tunnel."""

from __future__ import annotations

import gzip
import json
import re
import subprocess
import sys
import threading
from contextlib import ExitStack, suppress
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, ClassVar, Final

import pytest
from support.devtools import SHIFT, Chromium, Page
from support.npm import AXE, HAR, har_faults, install, serious_faults
from support.processes import Machine, curl, eventually, free_port
from support.targets import Target, flood, visit
from support.web_server import web_server
from support.websocket import websocket_echo
from websockets.sync.client import connect as connect_websocket

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from support.processes import Program, Server

HOSTILE: Final = "<img src=x onerror=alert(1)><script>hit()</script>\x1b[2J\u202e"

HUGE_BYTES: Final = 1 << 30
BOMB: Final = gzip.compress(b'["' + b"x" * (200 << 20) + b'"]', 1)
"""200 MiB, as one."""


class Site(BaseHTTPRequestHandler):
    """What a web program would say."""

    protocol_version = "HTTP/1.1"
    posts: ClassVar[list[tuple[str, bytes, str]]] = []

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/json":
            body = json.dumps({"hello": ["world"], "password": "hunter2"}).encode()
            self._say(gzip.compress(body), "application/json", "gzip")
        elif path == "/image.svg":
            circle = b"<svg xmlns='http://www.w3.org/2000/svg'><circle r='9'/></svg>"
            self._say(circle, "image/svg+xml")
        elif path == "/bomb":
            self._say(BOMB, "application/json", "gzip")
        elif path == "/huge":
            self._say_much()
        elif path == "/page":
            self._say(f"<h1>{HOSTILE}</h1>".encode(), "text/html")
        elif path == "/slow":
            self.send_response(500)
            self.send_header("Content-Length", "0")
            self.end_headers()
        else:
            self._say(b"ok " + path.encode(), "text/plain")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.posts.append((self.path, body, self.headers.get("Cookie", "")))
        self._say(b"posted", "text/plain")

    do_PUT = do_POST

    def _say(self, body: bytes, kind: str, coding: str = "") -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        if coding:
            self.send_header("Content-Encoding", coding)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _say_much(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(HUGE_BYTES))
        self.end_headers()
        with suppress(ConnectionError):
            for _ in range(HUGE_BYTES >> 20):
                self.wfile.write(bytes(1 << 20))

    def log_message(self, *_: object) -> None:
        """Say nothing."""


class Town:
    """A server and a client, each with a page, and a browser."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.machine = machine = Machine(folder).alone()
        stack.callback(machine.close)
        self.web, self.sockets = (
            stack.enter_context(web_server(Site)),
            stack.enter_context(websocket_echo()),
        )
        self.target = stack.enter_context(Target(flood))
        self.ports = {"serve": free_port(), "up": free_port()}
        self.http = free_port()
        self.server: Server = machine.serve(
            "--http", f"127.0.0.1:{self.http}", "--domain", "t.test",
            "--dashboard", str(self.ports["serve"]),
        )  # fmt: skip
        self.client: Program = machine.up(
            self.server.join, "--http", f"shop={self.web},inspect",
            "--http", f"talk={self.sockets},inspect",
            "--tcp", f"0={self.target.port}", "--dashboard", str(self.ports["up"]),
            "--inspect-hide", "X-Mine", ready=3,
        )  # fmt: skip
        self.port = int(self.client.out.wait("tcp ").split()[1].rpartition(":")[2])
        self.browser = Chromium(machine)
        stack.callback(self.browser.close)

    def url(self, role: str) -> str:
        running = self.machine.tunnel("dashboard", role)
        assert running.wait() == 0
        (url,) = running.out.all()
        return url

    def connections(self) -> str:
        """What is told of all of them, at once: ``top`` looks for a second."""
        running = self.machine.tunnel("why")
        assert running.wait() == 0
        return "\n".join(running.out.all())

    def open(self, role: str, view: str = "", width: int = 1280) -> Page:
        page = self.browser.open(self.url(role), width)
        page.wait("document.querySelector('main h1')")
        if view:
            self.go(page, view)
        return page

    def go(self, page: Page, view: str) -> None:
        page.click(f"document.querySelector('nav a[data-view={view}]')")
        page.wait(f"document.querySelector('nav a[data-view={view}][aria-current]')")

    def get(self, path: str, *words: str, name: str = "shop") -> bytes:
        url = f"http://127.0.0.1:{self.http}{path}"
        done = self.machine.run(*curl(url, "-H", f"Host: {name}.t.test", *words))
        return done.stdout


@pytest.fixture(scope="module")
def town(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Town]:
    with ExitStack() as stack:
        yield Town(tmp_path_factory.mktemp("town"), stack)


def row(text: str) -> str:
    """The row of the table that has a text."""
    return (
        "[...document.querySelectorAll('.rows .row')]"
        f".find(r => r.textContent.includes({json.dumps(text)}))"
    )


def button(text: str, within: str = "document") -> str:
    return (
        f"[...{within}.querySelectorAll('button')]"
        f".find(b => b.textContent.trim() === {json.dumps(text)})"
    )


def tab(name: str) -> str:
    return f"document.getElementById('tab-{name}')"


def in_dialog(text: str) -> str:
    return button(text, "(document.querySelector('dialog[open]') ?? document)")


def look_at(page: Page, path: str) -> None:
    page.click(row(path))
    shown = "document.querySelector('.detail:not([hidden]) h2')?.textContent"
    page.wait(f"{shown}.includes({json.dumps(path)})")


def choose(page: Page, which: str, value: str, event: str = "change") -> None:
    page.run(
        f"(e => {{ e.value = {json.dumps(value)}; e.dispatchEvent(new Event('{event}'))"
        f" }})(document.querySelector({json.dumps(which)})), 1"
    )


# Both sides --------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["up", "serve"])
def test_the_chart_moves_during_a_transfer_and_the_token_is_nowhere(
    town: Town, role: str
) -> None:
    url = town.url(role)
    token = url.partition("#token=")[2]
    with town.open(role) as page:
        assert page.run("location.href").endswith(f":{town.ports[role]}/")
        figure = "document.querySelector('.key-received b, .key-sent b')"
        moving = (
            "[...document.querySelectorAll('.key-received b, .key-sent b')]"
            ".some(b => /MB|GB/.test(b.textContent))"
        )
        page.wait(f"{figure} && document.querySelector('.chart canvas')")
        pixels = "document.querySelector('.chart canvas').toDataURL().length"
        before = page.run(pixels)
        with visit(town.port) as visitor:
            reading = threading.Event()

            def read() -> None:
                while not reading.is_set() and visitor.recv(1 << 16):
                    pass

            thread = threading.Thread(target=read)
            thread.start()
            page.wait(moving, "the legend says MB/s")
            page.wait(f"{pixels} !== {before}", "the chart has moved")
            reading.set()
            thread.join()
        page.look()
        assert token not in page.run("document.documentElement.outerHTML")
        assert all(token not in one["url"] for one in page.requests)
        assert page.run("document.cookie") == ""
        page.go(url.partition("#")[0])  # the tab knows it still
        page.wait("document.querySelector('.cards')")


@pytest.mark.parametrize("role", ["up", "serve"])
def test_a_connection_is_ended_by_a_click(town: Town, role: str) -> None:
    with visit(town.port) as visitor, town.open(role, "connections") as page:
        name = ":".join(map(str, visitor.getsockname()[:2]))
        visitor.recv(100)
        page.click(row(name))
        page.wait_text("What helps")
        page.click(in_dialog("End it"))
        page.wait_text("is reset, at both ends")
        page.click(in_dialog("End it"))
        page.wait_text("has ended.")
        with suppress(ConnectionError):
            while visitor.recv(1 << 16):
                """What was on its way."""


def test_an_entry_is_added_changed_paused_and_removed(town: Town) -> None:
    with town.open("up", "entries") as page:
        page.click(button("Add an entry"))
        page.click("document.querySelector('dialog input[name=http]')")
        page.type(f"extra={town.web}")
        page.press("Enter")
        page.wait_text("+ http extra")
        page.wait(row("extra.t.test"))
        eventually(lambda: town.get("/x", name="extra") == b"ok /x", "it is there")
        page.click(row("extra.t.test"))
        page.click(in_dialog("Pause"))
        page.click(in_dialog("Pause"))
        page.wait_text("is paused")
        page.wait(f"{row('extra.t.test')}?.textContent.includes('paused')")
        told = town.get("/x", "--no-fail", "-w", "%{http_code}", name="extra")
        assert b"takes no new visitors at the moment" in told
        assert told.endswith(b"503")
        page.click(row("extra.t.test"))
        page.click(in_dialog("Resume"))
        page.click(in_dialog("Resume"))
        page.wait_text("is open.")
        page.click(row("extra.t.test"))
        page.click(in_dialog("Change the target"))
        page.wait("document.querySelector('dialog input[name=target]')")
        page.run("document.querySelector('dialog input[name=target]').select(), 1")
        page.type(str(town.sockets))
        page.click(in_dialog("Change"))
        page.wait(f"{row('extra.t.test')}?.textContent.includes('{town.sockets}')")
        page.click(row("extra.t.test"))
        page.click(in_dialog("Remove"))
        page.click(in_dialog("Remove"))
        page.wait(f"!({row('extra.t.test')})")
        page.click(button("Add an entry"))
        page.click("document.querySelector('dialog input[name=http]')")
        page.type("nonsense")
        page.press("Enter")
        page.wait_text("What helps")
        page.press("Escape")
        errors = page.take_errors()  # the browser tells of the 400
        assert all("400" in one for one in errors)


def test_users_and_their_use_are_seen(town: Town) -> None:
    running = town.machine.tunnel(
        "invite", "alice", "--state", str(town.machine.home / "server"),
        "--rate", "5MB/s",
    )  # fmt: skip
    assert running.wait() == 0
    with town.open("serve") as page:
        page.wait("document.querySelector('nav a[data-view=users]')")
        town.go(page, "users")
        page.wait(row("alice"))
        page.wait_text("5MB/s")
        owner = row("default")
        page.wait(f"/[1-9][.0-9]* [kMG]?B/.test({owner}.textContent)")
        page.click(row("alice"))
        page.click(in_dialog("Revoke"))
        page.click(in_dialog("Revoke"))
        page.wait(f"!({row('alice')})")


# The inspector -----------------------------------------------------------------------


def test_requests_are_listed_filtered_and_shown(town: Town) -> None:
    secret = "s3cret-of-a-visitor"
    with town.open("up", "inspector") as page:
        town.get("/json?token=abc", "-H", f"Authorization: Bearer {secret}")
        town.get("/image.svg")
        town.get("/page")
        town.get("/slow")
        town.get("/login", "-d", "user=me&password=hunter2", "-H", "X-Mine: seven")
        page.wait(row("/login"))
        look_at(page, "/json")
        page.wait_text('"hello": [')
        text = page.text()
        assert secret not in text
        assert "hunter2" not in page.run("document.documentElement.outerHTML")
        page.click(tab("request"))
        page.wait_text("Authorization")
        page.click(button("Show what is hidden"))
        page.wait_text(secret)
        look_at(page, "/login")
        page.click(tab("request"))
        page.wait_text("application/x-www-form-urlencoded")
        assert "seven" not in page.text()
        look_at(page, "/image.svg")
        page.click(tab("answer"))
        page.wait("document.querySelector('.picture')?.naturalWidth > 0")
        page.click(tab("timing"))
        page.wait_text("Answer comes")
        for label, choice, left in (
            ("Status", "5", "/slow"),
            ("Method", "POST", "/login"),
        ):
            choose(page, f"select[aria-label={label}]", choice)
            page.wait(f"{row(left)} && !({row('/image.svg')})")
            choose(page, f"select[aria-label={label}]", "")
        page.click("document.querySelector('input[aria-label=\"Path has\"]')")
        page.type("image")
        page.wait(f"{row('/image.svg')} && !({row('/login')})")
        choose(page, 'input[aria-label="Path has"]', "", "input")
        page.click("document.querySelector('input[aria-label^=Text]')")
        page.type("user=me")
        page.wait(f"{row('/login')} && !({row('/image.svg')})")


def test_a_row_that_moves_under_the_mouse_is_opened(town: Town) -> None:
    with town.open("up", "inspector") as page:
        town.get("/meant")
        page.wait(row("/meant"))
        box = page.hold(row("/meant"))
        town.get("/above")
        page.wait(row("/above"))
        page.wait(
            f"document.elementFromPoint({box[0]}, {box[1]}).closest('.row')"
            ".textContent.includes('/above')",
            "another row is there now",
        )
        page.release(box)
        page.wait("document.querySelector('.detail h2')?.textContent === 'GET /meant'")


def test_hostile_words_are_text_alone(town: Town) -> None:
    with town.open("up", "inspector") as page:
        page.run(
            "window.hits = 0, window.hit = () => window.hits++, window.alert = hit, 1"
        )
        town.get("/page")
        town.get("/x?" + "%3Cscript%3E", "-H", f"X-Odd: {HOSTILE[:50]}", "-d", HOSTILE)
        page.wait(row("/x?"))  # none comes later, and moves what is clicked
        look_at(page, "/page")
        page.click(tab("answer"))
        page.wait_text("<script>hit()</script>\\x1b[2J\\u202e")
        page.click("document.querySelector('.detail summary')")
        page.wait(
            "document.querySelector('.page-frame').getBoundingClientRect().height"
        )
        look_at(page, "/x?")
        page.click(tab("request"))
        page.wait_text("<img src=x onerror=alert(1)>")
        assert page.run("hits") == 0
        assert (
            page.run("document.querySelectorAll('main img, main script').length") == 0
        )
        # Scripts of the framed page are kept back, which the browser says.
        assert all(
            "sandbox" in one or "Content Security" in one for one in page.take_errors()
        )


def test_a_request_is_asked_again_and_edited(town: Town) -> None:
    with town.open("up", "inspector") as page:
        town.get("/again", "-d", "user=me&password=hunter2", "-H", "Cookie: id=7")
        page.wait(row("/again"))
        look_at(page, "/again")
        page.click(button("Replay"))
        page.wait_text("· again")
        once = "/again", b"user=me&password=hunter2", "id=7"
        eventually(lambda: Site.posts.count(once) == 2, "it is asked again")
        page.click(button("Edit and replay"))
        page.wait("document.querySelector('dialog input[name=path]')")
        page.run("document.querySelector('dialog input[name=path]').select(), 1")
        page.type("/edited?x=1")
        page.run(
            "(b => { b.value = b.value.replace('user=me', 'user=you') })"
            "(document.querySelector('dialog textarea[name=body]')), 1"
        )
        assert "hunter2" not in page.run("document.querySelector('dialog').outerHTML")
        page.click(in_dialog("Replay"))
        page.wait_text("POST /edited?x=1")
        eventually(
            lambda: ("/edited?x=1", b"user=you&password=hunter2", "id=7") in Site.posts,
            "what is hidden went as it was",
        )


def test_messages_of_a_websocket_are_seen(town: Town) -> None:
    url = f"ws://talk.t.test:{town.http}/talk"
    with (
        town.open("up", "inspector") as page,
        visit(town.http) as sock,
        connect_websocket(url, sock=sock, proxy=None) as socket,
    ):
        socket.send("hello there")
        assert socket.recv() == "hello there"
        socket.send(b"\x00\x01" * 50)
        socket.recv()
        page.wait(row("/talk"))
        look_at(page, "/talk")
        page.click(tab("messages"))
        page.wait_text("hello there")
        page.wait_text("← target")
        page.wait_text("00 01 00 01")


def test_an_archive_is_taken_by_a_checker_and_a_command_by_a_shell(
    town: Town, tmp_path: Path
) -> None:
    modules = install(tmp_path, HAR)
    town.get("/json?token=abc&b=1")
    town.get("/login", "-d", "a=1")
    with town.open("up", "inspector") as page:
        page.wait(row("/login"))
        page.run(
            "(window.saved = null, URL.createObjectURL = b => "
            "(b.text().then(t => window.saved = t), 'data:,'), 1)"
        )
        page.click(button("Export HAR"))
        page.click(in_dialog("Export"))
        archive = page.wait("window.saved")
        assert har_faults(archive.encode(), modules) == ""
        assert "abc" not in archive
        look_at(page, "/login")
        page.click(button("Copy as curl"))
        page.wait_text("--data-raw a=1")


# Secrets, and what is too much -------------------------------------------------------

HEARD: Final = """
window.heard = '';
const real = window.fetch;
window.fetch = async (...asked) => {
  const answer = await real(...asked);
  const [one, two] = answer.body.tee();
  const reader = two.pipeThrough(new TextDecoderStream()).getReader();
  const hear = ({done, value}) => done || (heard += value, reader.read().then(hear));
  reader.read().then(hear, () => 0);
  return new Response(one, {status: answer.status, headers: answer.headers});
};
"""
"""Keeps all that the process says to the page."""


def test_a_secret_leaves_the_process_only_by_a_click(town: Town) -> None:
    secrets = {"in-a-field", "in-a-cookie", "in-a-query", "in-a-form", "hunter2"}
    town.get("/json?token=in-a-query", "-H", "Authorization: Bearer in-a-field")
    town.get("/secret", "-d", "a=b&password=in-a-form", "-H", "Cookie: a=in-a-cookie")
    with town.browser.open() as page:
        page.ask("Page.addScriptToEvaluateOnNewDocument", source=HEARD)
        page.go(town.url("up"))
        page.wait("document.querySelector('main h1')")
        town.go(page, "inspector")
        for path in ("/json?token=", "/secret"):
            look_at(page, path)
            for name in ("request", "answer", "timing"):
                page.click(tab(name))
            page.click(button("Copy as curl"))
            page.wait_text("stands for what is hidden")
            page.press("Escape")
            page.click(button("Edit and replay"))
            page.wait("document.querySelector('dialog[open] textarea')")
            page.press("Escape")
            page.wait("!document.querySelector('dialog[open]')")
        page.run("URL.createObjectURL = () => 'data:,', 1")
        page.click(button("Export HAR"))
        page.click(in_dialog("Export"))
        page.wait_text("Exported")
        page.click("document.querySelector('input[aria-label^=Text]')")
        page.type("in-a-cookie")
        page.wait("document.querySelectorAll('.rows .row').length === 0", "not found")
        heard = page.run("heard")
        assert "/secret" in heard
        assert {one for one in secrets if one in heard} == set()
        page.run("document.querySelector('input[aria-label^=Text]').select(), 1")
        page.press("Delete")
        look_at(page, "/secret")
        page.click(button("Show what is hidden"))
        page.wait("heard.includes('in-a-cookie') && heard.includes('in-a-form')")
        assert "in-a-field" not in page.run("heard")


def test_a_body_that_grows_without_end_is_cut(town: Town) -> None:
    with town.open("up", "inspector") as page:
        before = town.client.rss_bytes()
        assert town.get("/bomb").startswith(b"\x1f\x8b")
        page.wait(row("/bomb"))
        look_at(page, "/bomb")
        page.click(tab("answer"))
        page.wait_text("are kept")
        assert len(page.text()) < 250_000
        assert town.client.rss_bytes() - before < 32 << 20


@pytest.mark.deep
def test_a_gigabyte_passes_and_a_piece_of_it_is_kept(
    town: Town, figures: Callable[[str], None]
) -> None:
    before = town.client.rss_bytes()
    url = f"http://127.0.0.1:{town.http}/huge"
    host = ("-H", "Host: shop.t.test", "-o", "/dev/null", "-w", "%{size_download}")
    done = town.machine.run(*curl(url, *host))
    assert int(done.stdout) == HUGE_BYTES, done
    grown = town.client.rss_bytes() - before
    figures(f"memory for 1 GB that is looked at: {grown / 1e6:.0f} MB")
    assert grown < 32 << 20
    with town.open("up", "inspector") as page:
        page.wait(row("/huge"))
        look_at(page, "/huge")
        page.click(tab("answer"))
        page.wait_text("1.1 GB")
        page.wait_text("are kept")


def test_a_terminal_lists_what_the_page_lists(town: Town) -> None:
    town.get("/same?a=%1b%5b2J")
    town.get("/slow")
    running = town.machine.tunnel("tail", "--once", "--json")
    assert running.wait() == 0, running.errors()
    told = [json.loads(line) for line in running.out.all()]
    with town.open("up", "inspector") as page:
        page.wait(row("/same"))
        numbers = page.run(
            "[...document.querySelectorAll('.rows .row')].map(r => r.textContent)"
        )
    for one in told[-2:]:
        assert any(
            text.startswith(str(one["number"])) and f"GET {one['path']}" in text
            for text in numbers
        ), (one, numbers)
    running = town.machine.tunnel("tail", "--once", "--entry", told[-1]["entry"])
    assert running.wait() == 0
    line = running.out.all()[-1]
    assert f"#{told[-1]['number']} " in line
    assert "500" in line
    assert "GET shop.t.test/slow" in line


# Everybody, and strangers ------------------------------------------------------------


@pytest.fixture(scope="module")
def axe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return install(tmp_path_factory.mktemp("axe"), AXE)


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (360, "dark")])
def test_nothing_serious_keeps_anybody_out(
    town: Town, axe: Path, scheme: str, width: int
) -> None:
    town.get("/json")
    for role, views in (
        ("up", ("overview", "entries", "connections", "links", "inspector", "log")),
        ("serve", ("overview", "links", "users")),
    ):
        with town.open(role, width=width) as page:
            page.scheme(scheme)
            for view in views:
                town.go(page, view)
                if view in ("entries", "inspector"):
                    page.click("document.querySelector('.rows .row')")
                    page.wait(
                        "document.querySelector('dialog[open], .detail:not([hidden])')"
                    )
                assert serious_faults(page, axe) == [], (role, view)
                assert page.run("document.documentElement.scrollWidth <= innerWidth"), (
                    view
                )
                page.press("Escape")
            page.ask("Page.setBypassCSP", enabled=False)


def test_the_keyboard_alone_will_do(town: Town) -> None:
    with town.open("up") as page:
        for _ in range(40):
            page.press("Tab")
            if page.run("document.activeElement.dataset?.view === 'entries'"):
                break
        page.press("Enter")
        page.wait("document.querySelector('nav a[data-view=entries][aria-current]')")
        page.wait("document.activeElement === document.getElementById('main')")
        for _ in range(20):
            page.press("Tab")
            if page.run("document.activeElement.closest?.('.rows .row') !== null"):
                break
        page.press("ArrowDown")
        page.press("Enter")
        page.wait("document.querySelector('dialog.sheet[open]')")
        page.press("Escape")
        page.wait("!document.querySelector('dialog[open]')")
        page.wait("document.activeElement.closest('.rows .row')")
        page.press("Tab", SHIFT)
        assert page.run("!document.activeElement.closest('.rows .row')")


@pytest.mark.parametrize("role", ["up", "serve"])
def test_the_page_of_another_site_reaches_nothing(town: Town, role: str) -> None:
    token = town.url(role).partition("#token=")[2]
    port = town.ports[role]
    with town.browser.open(f"http://127.0.0.1:{town.web}/") as page:
        where = (
            f"fetch('http://127.0.0.1:{port}/api/kick', {{method: 'POST', body: '{{}}',"
        )
        for kind in ("application/json", "text/plain"):
            said = page.run(
                f"{where} headers: {{'Content-Type': '{kind}',"
                f" Authorization: 'Bearer {token}'}}}})"
                ".then(a => 'answered ' + a.status, e => 'refused')"
            )
            assert said == "refused"
        said = page.run(f"{where} mode: 'no-cors'}}).then(a => a.type, e => 'refused')")
        assert said in ("opaque", "refused")  # 403 in either case
        framed = page.run(
            "new Promise(done => { const f = document.createElement('iframe');"
            f"f.src = 'http://127.0.0.1:{port}/'; f.onload = () => {{"
            "try { done(f.contentDocument?.body?.innerText ?? 'kept out') }"
            "catch { done('kept out') } }; document.body.append(f) })"
        )
        assert framed in ("kept out", "")
        page.take_errors()
    with town.browser.open(f"http://127.0.0.1:{port}/") as page:
        page.wait_text("Who are you?")
        page.click("document.getElementById('token')")
        page.type("wrong-wrong-wrong-wrong")
        page.press("Enter")
        page.wait_text("That token is not right")
        page.take_errors()
        page.click("document.getElementById('token')")
        page.type(token)
        page.press("Enter")
        page.wait("document.querySelector('.cards')")


def test_a_lost_process_is_said_and_found_again(town: Town, tmp_path: Path) -> None:
    machine = Machine(tmp_path).alone()
    port, token = free_port(), "correct-horse-battery"
    flags = "--dashboard", str(port), "--dashboard-auth", token
    try:
        first = machine.serve(*flags)
        with town.browser.open(f"http://127.0.0.1:{port}/#token={token}") as page:
            page.wait("document.querySelector('.cards')")
            first.program.process.kill()
            first.program.wait()
            page.wait_text("does not answer")
            machine.serve(*flags)
            page.wait("document.querySelector('.banner').hidden")
            page.take_errors()
    finally:
        machine.close()


def test_another_site_s_forms_links_and_names_do_nothing(town: Town) -> None:
    """A token is given to all of it: what keeps them out is the rest."""
    port, token = town.ports["up"], town.url("up").partition("#token=")[2]
    with visit(town.port) as visitor, town.browser.open() as page:
        assert visitor.recv(100)
        name = re.search(r"\w{8}-\d+", town.connections())
        assert name is not None
        body = json.dumps({"which": name[0]})
        api = f"http://127.0.0.1:{port}/api/kick"
        page.go(f"http://127.0.0.1:{town.web}/")
        page.run(
            f"""(() => {{ const f = document.createElement('form');
            f.method = 'post'; f.enctype = 'text/plain'; f.action = '{api}';
            const i = document.createElement('input');
            i.name = {json.dumps(body[:-1] + ', "x": "')}; i.value = '"}}';
            f.append(i); document.body.append(f); f.submit() }})(), 1"""
        )
        page.wait(f"location.port == {port}", "the form was sent")
        assert "done" not in page.text()
        for url in (f"{api}?which={name[0]}", f"{api}?which={name[0]}&token={token}"):
            page.go(url)
            page.wait_text("questions and actions are POST")
        # A name of somebody's own, which leads here.
        page.go(f"http://evil.localhost:{port}/")
        page.wait_text("not asked for by that name")
        said = page.run(
            f"fetch('/api/kick', {{method: 'POST', body: {json.dumps(body)},"
            " headers: {"
            f"'Content-Type': 'application/json', Authorization: 'Bearer {token}'}}}})"
            ".then(a => a.status)"
        )
        assert said == 403
        page.take_errors()
        assert visitor.recv(1 << 16)  # it is still there
        assert name[0] in town.connections()


def test_a_broken_link_to_the_page_asks_for_the_token(town: Town) -> None:
    with town.browser.open(f"http://127.0.0.1:{town.ports['up']}/#token=%zz") as page:
        page.wait_text("That token is not right")
        assert all("401" in one for one in page.take_errors())


def test_what_a_process_before_has_told_is_no_longer_shown(
    town: Town, tmp_path: Path
) -> None:
    """Numbers begin anew with a process: one would be shown for another."""
    machine = Machine(tmp_path).alone()
    port, token = free_port(), "correct-horse-battery"
    words = (
        "--http", f"again={town.web},inspect", "--dashboard", str(port),
        "--dashboard-auth", token,
    )  # fmt: skip
    try:
        first = machine.tunnel("up", *words, to=town.server.join)
        first.out.wait("http ")
        for number in range(5):
            town.get(f"/old-{number}", name="again")
        url = f"http://127.0.0.1:{port}/#token={token}"
        with town.browser.open(url) as page, town.browser.open(url) as log:
            page.wait("document.querySelector('nav a[data-view=inspector]')")
            town.go(page, "inspector")
            page.wait(row("/old-4"))
            log.wait("document.querySelector('nav a[data-view=log]')")
            town.go(log, "log")
            log.wait("document.querySelector('.log li')")
            log.run("document.querySelector('.log li').setAttribute('old', ''), 1")
            first.process.kill()
            first.wait()
            second = machine.tunnel("up", *words, to=town.server.join)
            second.out.wait("http ")
            town.get("/new", name="again")
            page.wait(f"{row('/new')} && !({row('/old')})", "only what is kept")
            log.wait(
                "document.querySelector('.log li') "
                "&& !document.querySelector('.log li[old]')",
                "the lines of the new process alone",
            )
            page.take_errors()
            log.take_errors()
    finally:
        machine.close()


def test_its_files_make_no_markup_and_load_nothing_from_elsewhere() -> None:
    from support.tables import ROOT

    folder = ROOT / "tunnel/ops/dashboard/pages"
    scripts = [one for one in folder.glob("*.js") if one.name != "uplot.js"]
    assert len(scripts) > 10
    for script in scripts:
        text = script.read_text("utf-8")
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(", text
        )
        assert not re.search(r"https?://(?!www\.w3\.org)", text), script
        assert len(text.splitlines()) <= 320
    page = (folder / "index.html").read_text("utf-8")
    assert not re.search(r"(src|href)=\"(https?:)?//", page)
    assert "uPlot" in (folder / "uplot.js").read_text("utf-8")[:2_000]
    assert "MIT" in (folder / "uplot.LICENSE").read_text("utf-8")


MANY_ENTRIES: Final = 1_000
MANY_CONNECTIONS: Final = 10_000
PORTS: Final = 4
"""One has 4,096 visitors at most."""
TAKES: Final = """
import resource, socket
most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
target = socket.create_server(("127.0.0.1", 0), backlog=4096)
print(target.getsockname()[1], flush=True)
inside = []
while True:
    inside.append(target.accept()[0])
"""
COMES: Final = """
import resource, socket, sys
most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
count, *ports = map(int, sys.argv[1:])
visitors = []
for n in range(count):
    to, own = ("127.0.0.1", ports[n % len(ports)]), (f"127.0.1.{n % 9 + 1}", 0)
    visitors.append(socket.create_connection(to, source_address=own))
    visitors[-1].sendall(b"x")
print("up", flush=True)
sys.stdin.readline()
"""


def program_of(stack: ExitStack, script: str, *words: object) -> subprocess.Popen[str]:
    started = subprocess.Popen(
        [sys.executable, "-c", script, *map(str, words)], stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    stack.callback(started.communicate)
    stack.callback(started.kill)
    return started


@pytest.mark.deep
@pytest.mark.timeout(600)
def test_many_entries_and_connections_hold_nothing_up(
    tmp_path: Path, figures: Callable[[str], None]
) -> None:
    with ExitStack() as stack:
        machine = Machine(tmp_path).alone()
        stack.callback(machine.close)
        takes = program_of(stack, TAKES)
        assert takes.stdout is not None
        target = int(takes.stdout.readline())
        server = machine.serve("--http", "127.0.0.1:0", "--domain", "t.test",
            "--dashboard", str(free_port()), "--max-per-address", "20000")  # fmt: skip
        entries = "".join(
            f'[[client.http]]\nname = "shop-{n}"\ntarget = {target}\n'
            for n in range(MANY_ENTRIES - PORTS)
        )
        file = machine.home / "tunnel.toml"
        ports = f"[[client.tcp]]\ntarget = {target}\n" * PORTS
        file.write_text(entries + ports)
        client = machine.up(
            server.join, "--config", str(file), "--dashboard", str(free_port()),
            ready=MANY_ENTRIES,
        )  # fmt: skip
        public = [
            line.split()[1].rpartition(":")[2]
            for line in client.out.all()
            if line.startswith("tcp ")
        ]
        comes = program_of(stack, COMES, MANY_CONNECTIONS, *public)
        assert comes.stdout is not None
        assert comes.stdout.readline() == "up\n"
        browser = Chromium(machine)
        stack.callback(browser.close)
        for role in ("up", "serve"):
            running = machine.tunnel("dashboard", role)
            assert running.wait() == 0
            with browser.open() as page:
                page.ask(
                    "Page.addScriptToEvaluateOnNewDocument",
                    source="window.pauses = []; new PerformanceObserver(list => "
                    "pauses.push(...list.getEntries().map(e => e.duration)))"
                    ".observe({type: 'longtask', buffered: true})",
                )
                page.go(running.out.all()[0])
                page.wait("document.querySelector('.cards')")
                painted_ms = page.run(
                    "performance.getEntriesByName('first-contentful-paint')[0].startTime"
                )
                for view in ("entries", "connections", "links", "overview", "entries"):
                    page.click(f"document.querySelector('nav a[data-view={view}]')")
                    shown = f"nav a[data-view={view}][aria-current]"
                    page.wait(f"document.querySelector({json.dumps(shown)})")
                    if view in ("entries", "connections"):
                        page.wait("document.querySelectorAll('.rows .row').length > 5")
                        page.run(
                            "new Promise(done => { let n = 0; const go = () => {"
                            "document.querySelector('.rows').scrollTop += 400;"
                            "n++ < 60 ? requestAnimationFrame(go) : done(1) }; go() })"
                        )
                page.wait("document.querySelectorAll('.rows .row').length < 100")
                worst_ms = page.run("Math.max(0, ...pauses)")
                figures(f"{role}: painted {painted_ms:.0f} ms, pause {worst_ms:.0f} ms")
                assert painted_ms < 1_000
                assert worst_ms < 100
