"""Several clients that publish one name together: real programs at both ends."""

from __future__ import annotations

import http.client
import signal
import threading
import time
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Final

from support import often
from support.processes import WAIT_S, eventually, free_port

if TYPE_CHECKING:
    from collections.abc import Iterator

from support.processes import Machine, Program

NAMES: Final = ("--http", "127.0.0.1:0", "--domain", "t.test")
VISITORS: Final = 64
ANSWER_S: Final = 0.02
"""Of the target: so that requests are in flight at any moment."""


class _Crowd(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 2 * VISITORS


@contextmanager
def saying(name: str, port: int = 0) -> Iterator[int]:
    """Run a web service that answers its name; give its port."""

    class Page(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # in one piece: an answer that has begun waits for the link

        def do_GET(self) -> None:
            time.sleep(ANSWER_S)
            self.send_response(200)
            self.send_header("Content-Length", str(len(name)))
            self.end_headers()
            self.wfile.write(name.encode())

        def log_message(self, *_: object) -> None:
            pass

    server = _Crowd(("127.0.0.1", port), Page)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Visitor(threading.Thread):
    """Asks on one kept connection again and again; notes who answered, and failures."""

    def __init__(self, port: int, over: threading.Event) -> None:
        super().__init__(daemon=True)
        self.port = port
        self.over = over
        self.last = ""
        """Who answered last."""
        self.lost: list[str] = []
        """Of each request without its answer: who had answered the one before."""
        self.answers = 0
        self.start()

    def run(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=WAIT_S)
        while not self.over.is_set():
            try:
                connection.request("GET", "/", headers={"Host": "shop.t.test"})
                answer = connection.getresponse()
                said = answer.read().decode()
                failed = answer.status != 200
            except (OSError, http.client.HTTPException):
                failed, said = True, ""
                connection.close()
            if failed:
                self.lost.append(self.last)
            else:
                self.last = said
                self.answers += 1
        connection.close()


def asked(port: int) -> tuple[int, str]:
    """Ask once on a connection of its own; give status and body."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=WAIT_S)
    with closing(connection):
        connection.request("GET", "/", headers={"Host": "shop.t.test"})
        answer = connection.getresponse()
        return answer.status, answer.read().decode()


def port_of(client: Program) -> int:
    line = client.out.wait("http ")
    return int(line.split()[1].rstrip("/").rpartition(":")[2])


def test_a_check_turns_a_member_off_and_on(machine: Machine) -> None:
    server = machine.serve(*NAMES)
    machine.command = often.COMMAND
    own = free_port()
    with saying("second") as second:
        client = machine.up(
            server.join, "--http", f"shop={own},group=blue,check=tcp",
            "--http", f"shop={second},group=blue,check=/",
        )  # fmt: skip
        port = port_of(client)
        client.err.wait("target.out")
        for _ in range(4):
            assert asked(port) == (200, "second")
        with saying("first", own):
            client.err.wait("target.back")
            eventually(
                lambda: asked(port) == (200, "first"), "who is back is asked again"
            )
        client.err.wait("target.out", 2)
        for _ in range(4):
            assert asked(port) == (200, "second")
    client.err.wait("target.out", 3)
    eventually(lambda: asked(port)[0] == 503, "the server knows that all are out")
    assert asked(port)[1].startswith("503 Service Unavailable: the service behind")


def test_a_client_that_is_killed_loses_the_requests_in_flight_on_it_and_no_more(
    machine: Machine,
) -> None:
    server = machine.serve(*NAMES)
    with saying("first") as first, saying("second") as second:
        # Each has a state folder of its own: they are two clients of one user.
        homes = [{"XDG_STATE_HOME": str(machine.home / name)} for name in ("a", "b")]
        clients = [
            machine.tunnel(
                "up", "--http", f"shop={port},group=blue", to=server.join, env=home
            )
            for port, home in zip((first, second), homes, strict=True)
        ]
        port, _ = map(port_of, clients)
        over = threading.Event()
        visitors = [Visitor(port, over) for _ in range(VISITORS)]
        eventually(
            lambda: all(one.answers > 2 for one in visitors), "everybody is answered"
        )
        shares = [sum(one.last == it for one in visitors) for it in ("first", "second")]
        assert min(shares) > VISITORS // 4, shares
        clients[0].send(signal.SIGKILL)
        eventually(
            lambda: all(one.last == "second" for one in visitors),
            "everybody is answered by the one that is left",
        )
        had = [one.answers for one in visitors]
        eventually(
            lambda: all(
                one.answers > before + 5
                for one, before in zip(visitors, had, strict=True)
            ),
            "it goes on",
        )
        over.set()
        for one in visitors:
            one.join(WAIT_S)
        lost = [one.lost for one in visitors if one.lost]
        assert all(who == ["first"] for who in lost), lost
        assert len(lost) <= shares[0]


def test_a_member_whose_target_refuses_costs_nobody_an_answer(machine: Machine) -> None:
    server = machine.serve(*NAMES)
    with saying("second") as second:
        client = machine.up(
            server.join, "--http", f"shop={free_port()},group=blue",
            "--http", f"shop={second},group=blue",
        )  # fmt: skip
        port = port_of(client)
        client.out.wait("http ", 2)
        assert [asked(port) for _ in range(6)] == [(200, "second")] * 6
        server.program.err.wait("request.moved")
