"""Prometheus and supervisors ask a running pair how it is."""

from __future__ import annotations

import json
import subprocess
import urllib.error
import urllib.request
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

import pytest
from prometheus_client.parser import text_string_to_metric_families
from support.processes import Machine, eventually, free_port, program
from support.targets import Target, echo, read_exactly, visit

if TYPE_CHECKING:
    from collections.abc import Iterator

BLOCK: Final = bytes(1 << 16)
BEGINNERS: Final = 300
"""More than the port has places for."""


class Pair:
    """A server and a client that tell how they are."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.target = Target(echo)
        self.ports = {"serve": free_port(), "up": free_port()}
        self.server = machine.serve("--metrics", str(self.ports["serve"]))
        self.client = machine.up(
            self.server.join, "--tcp", f"0={self.target.port}",
            "--metrics", f"127.0.0.1:{self.ports['up']}", ready=1,
        )  # fmt: skip
        self.port = int(self.client.out.all()[0].split()[1].rpartition(":")[2])

    def ask(self, which: str, path: str, method: str = "GET") -> tuple[int, str]:
        url = f"http://127.0.0.1:{self.ports[which]}{path}"
        asked = urllib.request.Request(url, method=method)
        try:
            with urllib.request.urlopen(asked, timeout=20) as answer:  # noqa: S310
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def values(self, which: str, name: str) -> dict[str, float]:
        """Give the values of a number, by its first label."""
        status, text = self.ask(which, "/metrics")
        assert status == 200
        return {
            next(iter(one.labels.values()), ""): one.value
            for family in text_string_to_metric_families(text)
            for one in family.samples
            if one.name == name
        }

    def total(self, which: str, name: str) -> float:
        return sum(self.values(which, name).values())

    def moved(self, which: str, name: str, least: float) -> float:
        """Wait until a number is so large; give it."""
        last = 0.0

        def is_there() -> bool:
            nonlocal last
            last = self.total(which, name)
            return last >= least

        eventually(is_there, f"{name} of {which}")
        return last


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    machine = Machine(tmp_path_factory.mktemp("metrics"))
    made = Pair(machine)
    yield made
    made.target.close()
    machine.close()


def test_both_are_alive_and_ready(pair: Pair) -> None:
    for which in ("serve", "up"):
        assert pair.ask(which, "/livez") == (200, "ok\n")
        assert pair.ask(which, "/readyz") == (200, "ready\n")
        assert pair.ask(which, "/readyz", "HEAD") == (200, "")
        assert pair.ask(which, "/")[0] == 404
        assert pair.ask(which, "/metrics", "DELETE")[0] == 405
        assert pair.total(which, "tunnel_ready") == 1


def test_counters_move_while_a_transfer_runs_and_never_back(pair: Pair) -> None:
    names = {
        "serve": ("tunnel_entry_sent_bytes_total", "tunnel_user_sent_bytes_total"),
        "up": ("tunnel_entry_received_bytes_total", "tunnel_user_received_bytes_total"),
    }
    seen: dict[tuple[str, str], float] = {}
    with visit(pair.port) as conn:
        for _ in range(3):
            conn.sendall(BLOCK)
            assert read_exactly(conn, len(BLOCK)) == BLOCK
            for which, both in names.items():
                for name in both:
                    was = seen.get((which, name), 0)
                    seen[which, name] = pair.moved(which, name, was + len(BLOCK))
        assert pair.total("serve", "tunnel_connections") == 1
        assert pair.values("serve", "tunnel_user_connections")["default"] == 1
    eventually(lambda: not pair.total("up", "tunnel_connections"), "its end")
    for (which, name), value in seen.items():
        assert pair.total(which, name) >= value
    assert pair.total("up", "tunnel_user_connections_opened_total") >= 1
    events = pair.values("serve", "tunnel_events_total")
    assert events["link.up"] == 1


def test_who_begins_and_never_ends_keeps_nobody_from_asking(pair: Pair) -> None:
    with ExitStack() as stack:
        for _ in range(BEGINNERS):
            conn = stack.enter_context(visit(pair.ports["serve"]))
            conn.sendall(b"GET /metr")
        assert pair.ask("serve", "/livez") == (200, "ok\n")


def test_who_asks_is_no_visitor_in_the_access_log(pair: Pair) -> None:
    """Another server of the machine, for what is asked of this one is counted."""
    at = free_port()
    server = pair.machine.tunnel(
        "serve", "--listen", f"127.0.0.1:{free_port()}", "--metrics", str(at),
        "--access-log", "-", "--http", (web := f"127.0.0.1:{free_port()}"),
        "--state", str(pair.machine.home / "logged"),
    )  # fmt: skip
    server.out.wait("tunnel")
    with urllib.request.urlopen(f"http://127.0.0.1:{at}/livez", timeout=20) as answer:
        assert answer.status == 200
    with pytest.raises(urllib.error.HTTPError) as nobody:
        urllib.request.urlopen(f"http://{web}/nobody", timeout=20)
    nobody.value.close()
    server.err.wait("path=/nobody")
    assert not server.err.count("livez")
    assert server.stop() == 0


def test_promtool_is_content(pair: Pair) -> None:
    promtool = program("promtool")
    for which in ("serve", "up"):
        _, text = pair.ask(which, "/metrics")
        done = subprocess.run(
            [promtool, "check", "metrics"], input=text.encode(), capture_output=True,
            check=False, timeout=60,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        assert not done.stdout + done.stderr


@pytest.mark.deep
def test_a_real_prometheus_scrapes(pair: Pair) -> None:
    at, folder = free_port(), pair.machine.home
    (folder / "prometheus.yml").write_text(
        "global: {scrape_interval: 1s}\n"
        "scrape_configs:\n- job_name: tunnel\n  static_configs:\n"
        f"  - targets: ['127.0.0.1:{pair.ports['serve']}']\n",
        "utf-8",
    )
    pair.machine.start(
        program("prometheus"), f"--config.file={folder}/prometheus.yml",
        f"--storage.tsdb.path={folder}/data", f"--web.listen-address=127.0.0.1:{at}",
    )  # fmt: skip
    url = f"http://127.0.0.1:{at}/api/v1/query?query=tunnel_connections"

    def scraped() -> bool:
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                return bool(json.load(answer)["data"]["result"])
        except OSError:
            return False

    eventually(scraped, "a scrape", 30)


def test_an_address_that_is_taken_is_said(pair: Pair) -> None:
    taken = str(pair.ports["serve"])
    listen = f"127.0.0.1:{free_port()}"
    state = str(pair.machine.home / "other")
    done = pair.machine.run(
        *pair.machine.command, "serve", "--listen", listen, "--state", state,
        "--metrics", f"127.0.0.1:{taken}",
    )  # fmt: skip
    assert done.returncode not in (0, 1)
    assert b"already in use" in done.stderr
    assert b"Traceback" not in done.stderr


def test_a_client_without_a_link_says_that_it_is_not_ready(pair: Pair) -> None:
    """Behind the others: the server ends."""
    assert pair.server.program.stop() == 0
    eventually(lambda: pair.ask("up", "/readyz")[0] == 503, "that it is not ready")
    assert "no link" in pair.ask("up", "/readyz")[1]
    assert pair.ask("up", "/livez") == (200, "ok\n")
    assert pair.total("up", "tunnel_ready") == 0
    assert pair.values("up", "tunnel_links")["linked"] == 0
