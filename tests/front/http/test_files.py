from __future__ import annotations

import os
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from tunnel.addresses import Address
from tunnel.front.http import files
from tunnel.front.http.files import PIECE_BYTES, Folder, handle_visitor
from tunnel.front.http.guard import Guard
from tunnel.front.http.server import Visit

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes


class Site:
    def __init__(self, visitor: trio.abc.HalfCloseableStream) -> None:
        self.visitor = visitor
        self._rest = b""

    async def ask(
        self, path: str, *lines: str, method: str = "GET", close: bool = False
    ) -> Answer:
        head = [f"{method} {path} HTTP/1.1", "Host: a.test", *lines, "", ""]
        await self.visitor.send_all("\r\n".join(head).encode())
        while b"\r\n\r\n" not in self._rest:
            await self._more()
        top, _, self._rest = self._rest.partition(b"\r\n\r\n")
        first, *rest = top.decode().split("\r\n")
        headers = {
            name.lower(): value for name, _, value in (x.partition(": ") for x in rest)
        }
        status = int(first.split()[1])
        size = int(headers.get("content-length", "0"))
        if method == "HEAD" or status == 304:
            size = 0
        while len(self._rest) < size:
            await self._more()
        body, self._rest = self._rest[:size], self._rest[size:]
        return Answer(status, headers, body)

    async def _more(self) -> None:
        data = await self.visitor.receive_some()
        assert data, self._rest
        self._rest += data


@asynccontextmanager
async def site(
    root: Path, *, listing: bool = False, guard: Guard | None = None
) -> AsyncIterator[Site]:
    visitor, ours = trio.testing.memory_stream_pair()
    visit = Visit(ours, Address("203.0.113.9", 4711))
    folder = Folder(root, listing=listing)
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(handle_visitor, visit, folder, guard)
            yield Site(visitor)
            nursery.cancel_scope.cancel()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Make a folder beside a secret."""
    (tmp_path / "secret.txt").write_text("secret")
    shared = tmp_path / "shared"
    (shared / "sub").mkdir(parents=True)
    (shared / "a.txt").write_bytes(b"0123456789")
    (shared / "sub" / "index.html").write_text("<p>index")
    (shared / "sub" / ".env").write_text("secret")
    (shared / ".git").mkdir()
    (shared / ".git" / "config").write_text("secret")
    return shared


async def test_a_file_comes_with_its_type_length_and_tag(root: Path) -> None:
    async with site(root) as it:
        answer = await it.ask("/a.txt?x=1")
        assert (answer.status, answer.body) == (200, b"0123456789")
        assert answer.headers["content-type"] == "text/plain; charset=utf-8"
        assert answer.headers["content-length"] == "10"
        assert answer.headers["etag"].startswith('"')
        assert answer.headers["last-modified"].endswith("GMT")
        assert answer.headers["accept-ranges"] == "bytes"


async def test_head_is_the_same_without_the_body(root: Path) -> None:
    async with site(root) as it:
        full = await it.ask("/a.txt")
        head = await it.ask("/a.txt", method="HEAD")
        assert head.headers.keys() == full.headers.keys()
        for name in head.headers.keys() - {"date"}:
            assert head.headers[name] == full.headers[name]
        assert (await it.ask("/a.txt")).body == b"0123456789"


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.html", "text/html; charset=utf-8"),
        ("a.JS", "text/javascript; charset=utf-8"),
        ("a.css", "text/css; charset=utf-8"),
        ("a.json", "application/json"),
        ("a.png", "image/png"),
        ("a.svg", "image/svg+xml"),
        ("a.webp", "image/webp"),
        ("a.wasm", "application/wasm"),
        ("a.tar.gz", "application/gzip"),
        ("a", "application/octet-stream"),
    ],
)
async def test_a_name_says_what_a_file_is(root: Path, name: str, kind: str) -> None:
    (root / name).write_text("x")
    async with site(root) as it:
        assert (await it.ask("/" + name)).headers["content-type"] == kind


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
async def test_a_folder_is_only_read(root: Path, method: str) -> None:
    async with site(root) as it:
        answer = await it.ask("/a.txt", "Content-Length: 0", method=method)
        assert answer.status == 405
        assert answer.headers["allow"] == "GET, HEAD"


# No way out ------------------------------------------------------------------------

WAYS_OUT = [
    "/../secret.txt", "/sub/../../secret.txt", "/%2e%2e/secret.txt",
    "/..%2fsecret.txt", "/%2e%2e%2fsecret.txt", "/.%2e/secret.txt",
    "/..%5csecret.txt", "/..\\secret.txt", "//secret.txt", "/./a.txt",
    "/sub/../a.txt", "/..;/secret.txt", "/%252e%252e/secret.txt",
    "/%c0%ae%c0%ae/secret.txt", "/a.txt%00.html", "/%00", "/a.txt/",
    "/a.txt/../a.txt", "/.git/config", "/%2egit/config", "/sub/.env", "/.git/",
    "/out.txt", "/out/secret.txt", "/out/", "/chain.txt", "/absolute/etc/passwd",
    "/hidden.txt", "/pipe", "/null", "/nothing", "/" + "a" * 300,
    "/proc/self/environ", "/loop",
]  # fmt: skip


@pytest.mark.parametrize("path", WAYS_OUT)
async def test_there_is_no_way_out(root: Path, path: str) -> None:
    (root / "out.txt").symlink_to("../secret.txt")
    (root / "out").symlink_to("..")
    (root / "chain.txt").symlink_to("sub/chain.txt")
    (root / "sub" / "chain.txt").symlink_to("../out.txt")
    (root / "absolute").symlink_to("/")
    (root / "hidden.txt").symlink_to("sub/.env")
    (root / "null").symlink_to("/dev/null")
    (root / "proc").symlink_to("/proc")
    (root / "loop").symlink_to("loop")
    os.mkfifo(root / "pipe")
    async with site(root, listing=True) as it:
        answer = await it.ask(path)
        assert answer.status == 404
        assert b"secret" not in answer.body.replace(b"secret.txt", b"")
        listed = (await it.ask("/")).body
        for name in (b"out", b"chain", b"absolute", b"hidden", b"pipe", b"loop"):
            assert name not in listed


async def test_well_known_places_are_shown_at_the_top_and_nothing_hidden_in_them(
    root: Path,
) -> None:
    for parent in (root, root / "sub"):
        (parent / ".well-known" / ".git").mkdir(parents=True)
        (parent / ".well-known" / "security.txt").write_text("known")
        (parent / ".well-known" / ".git" / "config").write_text("secret")
    async with site(root, listing=True) as it:
        assert (await it.ask("/.well-known/security.txt")).body == b"known"
        assert b".well-known/" in (await it.ask("/")).body
        assert b"security.txt" in (await it.ask("/.well-known/")).body
        assert b".git" not in (await it.ask("/.well-known/")).body
        for path in (
            "/sub/.well-known/security.txt", "/.well-known/.git/config",
            "/.well-known/../a.txt", "/.well-known/../../secret.txt",
            "/.well-knowns", "/..well-known", "/.well-known/.well-known/",
        ):  # fmt: skip
            assert (await it.ask(path)).status == 404


@pytest.mark.parametrize(
    ("path", "lines", "status"),
    [
        ("/a.txt", (), 200),
        ("/a.txt", ("Range: bytes=1-2",), 206),
        ("/a.txt", ("Range: bytes=99-",), 416),
        ("/a.txt", ("If-None-Match: *",), 304),
        ("/sub", (), 301),
        ("/", (), 200),
        ("/no.txt", (), 404),
    ],
)
async def test_every_answer_has_one_date_of_now(
    root: Path, path: str, lines: tuple[str, ...], status: int
) -> None:
    async with site(root, listing=True) as it:
        answer = await it.ask(path, *lines)
        assert answer.status == status
        said = parsedate_to_datetime(answer.headers["date"]).timestamp()
        assert abs(said - time.time()) < 10


async def test_a_folder_beside_with_a_longer_name_is_outside(root: Path) -> None:
    beside = root.parent / "shared-not"
    beside.mkdir()
    (beside / "x.txt").write_text("secret")
    (root / "beside").symlink_to(beside)
    async with site(root) as it:
        assert (await it.ask("/beside/x.txt")).status == 404


async def test_a_link_within_the_folder_is_followed(root: Path) -> None:
    (root / "b.txt").symlink_to("a.txt")
    (root / "subs").symlink_to(root / "sub")
    async with site(root) as it:
        assert (await it.ask("/b.txt")).body == b"0123456789"
        assert (await it.ask("/subs/")).body == b"<p>index"


async def test_a_folder_in_a_hidden_place_can_be_shared(root: Path) -> None:
    hidden = root / ".git"
    async with site(hidden) as it:
        assert (await it.ask("/config")).body == b"secret"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
async def test_what_may_not_be_read_is_not_found(root: Path) -> None:
    (root / "a.txt").chmod(0)
    async with site(root) as it:
        assert (await it.ask("/a.txt")).status == 404


def test_what_is_no_folder_cannot_be_shared(root: Path) -> None:
    for path in (root / "a.txt", root / "nothing"):
        with pytest.raises(OSError, match=path.name):
            Folder(path)


# Folders ---------------------------------------------------------------------------


async def test_a_folder_is_its_index(root: Path) -> None:
    async with site(root) as it:
        answer = await it.ask("/sub/")
        assert answer.body == b"<p>index"
        assert answer.headers["content-type"] == "text/html; charset=utf-8"


async def test_a_folder_without_its_last_slash_is_redirected(root: Path) -> None:
    async with site(root) as it:
        answer = await it.ask("/sub?q=1")
        assert (answer.status, answer.headers["location"]) == (301, "./sub/?q=1")
        # Nothing in a path can become another host.
        answer = await it.ask("//sub")
        assert answer.headers["location"] == "./sub/"


async def test_a_folder_is_listed_only_when_asked(root: Path) -> None:
    name = "<b>&\"'?#%.txt"
    (root / name).write_text("x")
    (root / os.fsdecode(b"\xff.bin")).write_text("x")
    async with site(root) as it:
        assert (await it.ask("/")).status == 404
    async with site(root, listing=True) as it:
        answer = await it.ask("/")
        text = answer.body.decode()
        assert answer.headers["content-type"] == "text/html; charset=utf-8"
        assert "<b>" not in text
        assert 'href="./%3Cb%3E%26%22%27%3F%23%25.txt"' in text
        assert 'href="./sub/"' in text
        assert 'href="./%FF.bin"' in text
        assert ".git" not in text
        assert (await it.ask("/%3Cb%3E%26%22%27%3F%23%25.txt")).body == b"x"
        assert (await it.ask("/%FF.bin")).body == b"x"
        assert (await it.ask("/", method="HEAD")).body == b""


# Ranges and caches -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "body", "said"),
    [
        ("bytes=0-0", b"0", "bytes 0-0/10"),
        ("bytes=2-4", b"234", "bytes 2-4/10"),
        ("bytes=7-", b"789", "bytes 7-9/10"),
        ("bytes=-3", b"789", "bytes 7-9/10"),
        ("bytes=-99", b"0123456789", "bytes 0-9/10"),
        ("bytes=8-99", b"89", "bytes 8-9/10"),
        ("BYTES=1-1", b"1", "bytes 1-1/10"),
    ],
)
async def test_a_range_of_a_file(
    root: Path, wanted: str, body: bytes, said: str
) -> None:
    async with site(root) as it:
        answer = await it.ask("/a.txt", f"Range: {wanted}")
        assert (answer.status, answer.body) == (206, body)
        assert answer.headers["content-range"] == said


@pytest.mark.parametrize("wanted", ["bytes=10-", "bytes=10-11", "bytes=-0"])
async def test_a_range_behind_the_end_is_refused(root: Path, wanted: str) -> None:
    async with site(root) as it:
        answer = await it.ask("/a.txt", f"Range: {wanted}")
        assert answer.status == 416
        assert answer.headers["content-range"] == "bytes */10"


@pytest.mark.parametrize(
    "wanted",
    ["bytes=0-1,3-4", "bytes=4-2", "bytes=a-b", "bytes=-", "bytes", "lines=1-2",
     "bytes=+1-2", "bytes=0x1-2", "bytes=²-", "bytes=" + "9" * 99 + "-"],
)  # fmt: skip
async def test_what_is_no_single_range_is_answered_with_all(
    root: Path, wanted: str
) -> None:
    async with site(root) as it:
        answer = await it.ask("/a.txt", f"Range: {wanted}")
        assert (answer.status, answer.body) == (200, b"0123456789")


async def test_a_file_that_the_visitor_has_is_not_sent_again(root: Path) -> None:
    async with site(root) as it:
        full = (await it.ask("/a.txt")).headers
        tag, changed = full["etag"], full["last-modified"]
        for line in (
            f"If-None-Match: {tag}",
            f'If-None-Match: "x", W/{tag}',
            "If-None-Match: *",
            f"If-Modified-Since: {changed}",
        ):
            answer = await it.ask("/a.txt", line)
            assert (answer.status, answer.headers["etag"]) == (304, tag), line
        for line in (
            'If-None-Match: "x"',
            "If-Modified-Since: Thu, 01 Jan 1970 00:00:00 GMT",
            "If-Modified-Since: rubbish",
        ):
            assert (await it.ask("/a.txt", line)).status == 200, line
        # The tag decides where there are both.
        both = 'If-None-Match: "x"', f"If-Modified-Since: {changed}"
        assert (await it.ask("/a.txt", *both)).status == 200


async def test_a_part_is_only_added_to_a_part_of_the_same_file(root: Path) -> None:
    async with site(root) as it:
        full = (await it.ask("/a.txt")).headers
        for value, status in (
            (full["etag"], 206),
            (full["last-modified"], 206),
            ('"x"', 200),
            ("W/" + full["etag"], 200),
            ("Thu, 01 Jan 1970 00:00:00 GMT", 200),
        ):
            lines = "Range: bytes=1-2", f"If-Range: {value}"
            assert (await it.ask("/a.txt", *lines)).status == status, value


async def test_another_file_fails_what_the_visitor_requires(root: Path) -> None:
    async with site(root) as it:
        assert (await it.ask("/a.txt", 'If-Match: "x"')).status == 412
        assert (await it.ask("/a.txt", "If-Match: *")).status == 200
        old = "If-Unmodified-Since: Thu, 01 Jan 1970 00:00:00 GMT"
        assert (await it.ask("/a.txt", old)).status == 412


async def test_a_changed_file_has_another_tag(root: Path) -> None:
    async with site(root) as it:
        before = (await it.ask("/a.txt")).headers["etag"]
        (root / "a.txt").write_bytes(b"9876543210")
        os.utime(root / "a.txt", ns=(1, 1))
        assert (await it.ask("/a.txt")).headers["etag"] != before


async def test_a_large_file_comes_whole_and_an_empty_one_too(root: Path) -> None:
    large = os.urandom(3 * PIECE_BYTES + 1)
    (root / "large").write_bytes(large)
    (root / "empty").write_bytes(b"")
    async with site(root) as it:
        assert (await it.ask("/large")).body == large
        answer = await it.ask("/large", f"Range: bytes={PIECE_BYTES - 1}-")
        assert answer.body == large[PIECE_BYTES - 1 :]
        answer = await it.ask("/empty")
        assert (answer.status, answer.body) == (200, b"")


async def test_a_file_that_shrinks_meanwhile_does_not_look_complete(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "read_at", lambda *_: b"")
    async with site(root) as it:
        with pytest.raises(AssertionError):
            await it.ask("/a.txt")


async def test_no_descriptor_stays_open(root: Path) -> None:
    async with site(root, listing=True) as it:
        await it.ask("/")
        before = os.listdir("/proc/self/fd")
        for path in ("/", "/a.txt", "/sub/", "/sub", "/a.txt/", "/nothing"):
            await it.ask(path)
        await it.ask("/a.txt", "Range: bytes=99-")
        assert len(os.listdir("/proc/self/fd")) == len(before)


async def test_a_guarded_folder_shows_nothing_without_the_password(root: Path) -> None:
    async with site(root, guard=Guard("me", "right")) as it:
        assert (await it.ask("/a.txt")).status == 401
        assert (await it.ask("/nothing")).status == 401
        right = "Authorization: Basic bWU6cmlnaHQ="
        assert (await it.ask("/a.txt", right)).status == 200
