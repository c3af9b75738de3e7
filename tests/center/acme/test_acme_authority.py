"""An authority that is away, slow, hostile or refuses: in words, and within bounds."""

from __future__ import annotations

import http.server
import json
import os
import socket
import ssl
import struct
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
import trustme
from support.processes import free_port

from tunnel.access.host_certificates import new_key, request_for
from tunnel.center.acme.authority import MAX_ANSWER_BYTES, Authority
from tunnel.center.acme.failures import FailedError, explained

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Answer = Callable[[http.server.BaseHTTPRequestHandler], None]

HOST = "127.0.0.1"


@contextmanager
def serving(folder: Path, answer: Answer) -> Iterator[tuple[str, Path]]:
    """Serve what ``answer`` writes over https; give the URL and the authorities."""
    ca, leaf = trustme.CA(), None
    leaf = ca.issue_cert(HOST)

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            answer(self)

        do_POST = do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer((HOST, 0), Handler)
    server.daemon_threads = True
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    leaf.configure_cert(context)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    path = folder / "ca.pem"
    ca.cert_pem.write_to_path(path)
    try:
        yield f"https://{HOST}:{server.server_address[1]}/dir", path
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def failure(url: str, ca: Path | None, network_s: float = 5.0) -> FailedError:
    """Order a certificate; give why there is none."""
    authority = Authority(url, ca, within_s=5.0, network_s=network_s)
    key = new_key()
    try:
        with pytest.raises(FailedError) as caught:
            authority.begin(
                "me@a.net", new_key(), request_for(["a.net"], key), ["http-01"]
            )
    finally:
        authority.close()
    assert caught.value.fix
    return caught.value


def say(
    handler: http.server.BaseHTTPRequestHandler,
    status: int,
    body: bytes,
    **headers: str,
) -> None:
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


def test_an_authority_that_is_away_is_said_with_what_has_to_be_reached() -> None:
    url = f"https://{HOST}:{free_port()}/dir"
    failed = failure(url, None)
    assert failed.of_authority
    assert "refused" in failed.reason
    assert url in failed.fix


def test_one_that_is_silent_is_left_within_the_time(tmp_path: Path) -> None:
    left = threading.Event()

    def wait(_: object) -> None:
        left.wait(20)

    with serving(tmp_path, wait) as (url, ca):
        began = time.monotonic()
        failed = failure(url, ca, network_s=0.2)
        assert time.monotonic() - began < 5
        left.set()
    assert failed.of_authority
    assert "time" in failed.reason.lower()


def test_one_that_drips_is_left_within_the_time(tmp_path: Path) -> None:
    left = threading.Event()

    def drip(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "1000000")
        handler.end_headers()
        try:
            while not left.wait(0.05):
                handler.wfile.write(b" ")
        except OSError:
            pass

    with serving(tmp_path, drip) as (url, ca):
        authority = Authority(url, ca, within_s=0.5, network_s=5.0)
        began = time.monotonic()
        with pytest.raises(FailedError) as caught:
            authority.begin("me@a.net", new_key(), b"", ["http-01"])
        authority.close()
        left.set()
    assert time.monotonic() - began < 5
    assert caught.value.of_authority


def test_an_endless_answer_is_cut_off(tmp_path: Path) -> None:
    written = 0

    def flood(handler: http.server.BaseHTTPRequestHandler) -> None:
        nonlocal written
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        try:
            while True:
                handler.wfile.write(b"10000\r\n" + bytes(65_536) + b"\r\n")
                written += 65_536
        except OSError:
            pass

    with serving(tmp_path, flood) as (url, ca):
        failed = failure(url, ca)
    assert f"{MAX_ANSWER_BYTES} bytes" in failed.reason
    assert written < 16 * MAX_ANSWER_BYTES


def test_one_whose_certificate_is_not_trusted_asks_for_the_flag(tmp_path: Path) -> None:
    with serving(tmp_path, lambda one: say(one, 200, b"{}")) as (url, _):
        other = tmp_path / "other.pem"
        trustme.CA().cert_pem.write_to_path(other)
        failed = failure(url, other)
    assert "not trusted" in failed.reason
    assert "--acme-ca" in failed.fix


@pytest.mark.parametrize(
    "body",
    [b"", b"<html>", b"{}", b"[]", b"null", b'{"newNonce": 1}', b"\xff", b"[" * 9_999],
)  # fmt: skip
def test_what_is_no_acme_is_said(tmp_path: Path, body: bytes) -> None:
    with serving(tmp_path, lambda one: say(one, 200, body)) as (url, ca):
        failed = failure(url, ca)
    assert failed.of_authority
    assert len(failed.reason) < 600


@pytest.mark.parametrize(
    ("status", "said", "least_s", "of_authority"),
    [(429, "7200", 7_190, False), (503, "60", 50, True), (503, "soon", 0, True),
     (500, "60", 50, True), (403, "", 0, False)],
)  # fmt: skip
def test_retry_after_is_passed_on(
    tmp_path: Path, status: int, said: str, least_s: float, of_authority: bool
) -> None:
    problem = {"type": "urn:ietf:params:acme:error:rateLimited", "detail": "too many"}
    if status == 500:
        problem["type"] = "urn:ietf:params:acme:error:serverInternal"

    def refuse(handler: http.server.BaseHTTPRequestHandler) -> None:
        say(handler, status, json.dumps(problem).encode(), Retry_After=said,
            Content_Type="application/problem+json")  # fmt: skip

    with serving(tmp_path, refuse) as (url, ca):
        failed = failure(url, ca)
    assert failed.after_s >= least_s
    assert failed.of_authority is of_authority
    assert "too many" in failed.reason


@pytest.mark.parametrize(
    "code", ["dns", "connection", "unauthorized", "caa", "", "new"]
)
def test_each_refusal_has_words_and_a_fix(code: str) -> None:
    failed = explained(code, "line one\nline two " + "x" * 1_000)
    assert "line one line two" in failed.reason
    assert len(failed.reason) < 400
    assert failed.fix
    assert not failed.of_authority
    assert explained("", "").reason


@pytest.mark.parametrize("end", ["closes", "resets", "stalls"])
def test_one_that_breaks_off_in_the_middle_of_an_answer_is_a_failure_like_others(
    tmp_path: Path, end: str
) -> None:
    """It came out of the order, and ended the server."""
    left = threading.Event()

    def break_off(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        handler.wfile.write(b"begun")
        handler.wfile.flush()
        if end == "stalls":
            left.wait(20)
        elif end == "resets":
            linger = struct.pack("ii", 1, 0)
            raw = handler.connection
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            os.close(raw.detach())
        handler.close_connection = True

    with serving(tmp_path, break_off) as (url, ca):
        failed = failure(url, ca, network_s=0.2)
        left.set()
    assert failed.of_authority


def test_authorities_that_are_there_no_more_are_a_failure_with_the_flag(
    tmp_path: Path,
) -> None:
    failed = failure(f"https://{HOST}:{free_port()}/dir", tmp_path / "gone.pem")
    assert "--acme-ca" in failed.fix
