"""Servers that people run while they work, which answer to no name but their own.

Vite, Jupyter and MCP compare Host and Origin with what they think they are called: with
``host=rewrite`` all of them work by name, and without it the log says so.
"""

from __future__ import annotations

import json
import urllib.request
import uuid
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.error import HTTPError

import pytest
from support.installed import from_npm, from_pypi
from support.processes import WAIT_S, Machine, Program, free_port, program
from support.targets import visit
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect as connect_websocket
from websockets.typing import Subprotocol

if TYPE_CHECKING:
    from collections.abc import Iterator
    from http.client import HTTPResponse
    from pathlib import Path

    from websockets.sync.client import ClientConnection

pytestmark = [pytest.mark.deep, pytest.mark.timeout(600)]

VITE: Final = "vite@6.4.6"
JUPYTER: Final = ("jupyter_server==2.21.1", "ipykernel==7.4.0")
MCP: Final = "mcp==2.3.0"
STARTS_S: Final = 60.0
"""A first start compiles what was installed."""


class Answer(NamedTuple):
    """What a browser makes of one."""

    status: int
    body: str
    cookies: str
    """All that it sets, as a later request brings them."""


class Public:
    """A target by its public name, with ``host=rewrite`` or without.

    Args:
        words: of the entry.
    """

    def __init__(self, machine: Machine, port: int, *words: str) -> None:
        self.server = machine.serve("--http", "127.0.0.1:0", "--domain", "t.test")
        entry = ",".join((f"app=127.0.0.1:{port}", *words))
        self.client = machine.up(self.server.join, "--http", entry)
        self.url = self.client.out.wait("http://app.t.test").split()[1].rstrip("/")
        self.port = int(self.url.rpartition(":")[2])

    def ask(self, path: str, body: object = None, **fields: str) -> Answer:
        """Ask as a page of this site does."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}")
        request.add_header("Host", self.url.removeprefix("http://"))
        for name, value in fields.items():
            request.add_header(name, value)
        if body is not None:
            request.data = json.dumps(body).encode()
            request.add_header("Content-Type", "application/json")
            request.add_header("Origin", self.url)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=WAIT_S) as answer:
                return _answer(answer.status, answer)
        except HTTPError as error:
            with error:
                return _answer(error.code, error)

    def websocket(
        self, path: str, *protocols: str, origin: str = "", **fields: str
    ) -> ClientConnection:
        """Open one as a page of this site does, or one of another ``origin``."""
        return connect_websocket(
            self.url.replace("http:", "ws:") + path,
            sock=visit(self.port),
            additional_headers={"Origin": origin or self.url, **fields},
            subprotocols=[Subprotocol(protocol) for protocol in protocols] or None,
        )

    def names_the_flag(self) -> bool:
        """Say whether the log does, of the end that reads what targets say."""
        return "host=rewrite" in self.server.program.err.wait("host.refused")


def _answer(status: int, said: HTTPResponse | HTTPError) -> Answer:
    cookies = said.headers.get_all("Set-Cookie") or []
    pairs = "; ".join(cookie.partition(";")[0] for cookie in cookies)
    return Answer(status, said.read().decode(), pairs)


def heard(talk: ClientConnection, kind: str) -> dict[str, Any]:
    """Read messages up to one whose type this is; none may take long."""
    while True:
        said: dict[str, Any] = json.loads(talk.recv(WAIT_S))
        if kind in (said.get("type"), said.get("msg_type")):
            return said


# Vite ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def vite_modules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return from_npm(tmp_path_factory.mktemp("npm"), VITE)


@pytest.fixture
def vite(machine: Machine, vite_modules: Path) -> int:
    """Run Vite on a page with one script, as ``npm run dev``; give the port."""
    project, port = machine.home / "project", str(free_port())
    project.mkdir()
    (project / "node_modules").symlink_to(vite_modules)
    page = '<p>hello<script type="module" src="/main.js"></script>'
    (project / "index.html").write_text(page)
    (project / "main.js").write_text("import.meta.hot.accept(); console.log(1)")
    script = str(vite_modules / "vite/bin/vite.js")
    where = ("--host", "127.0.0.1", "--port", port, "--strictPort")
    env = {"NO_COLOR": "1"}
    running = machine.start(program("node"), script, str(project), *where, env=env)
    running.out.wait("Local:", timeout_s=STARTS_S)
    return int(port)


def test_the_log_names_the_flag_for_vite(machine: Machine, vite: int) -> None:
    public = Public(machine, vite)
    refused = public.ask("/")
    assert refused.status == 403
    assert refused.body.startswith("Blocked request. This host")
    assert public.names_the_flag()


def test_vite_reloads_a_script_of_an_open_page(machine: Machine, vite: int) -> None:
    public = Public(machine, vite, "host=rewrite")
    assert '<script type="module" src="/@vite/client">' in public.ask("/").body
    assert "console.log(1)" in public.ask("/main.js").body
    token = public.ask("/@vite/client").body.split('wsToken = "')[1].split('"')[0]
    with public.websocket(f"/?token={token}", "vite-hmr") as talk:
        heard(talk, "connected")
        script = machine.home / "project/main.js"
        script.write_text("import.meta.hot.accept(); console.log(2)")
        (update,) = heard(talk, "update")["updates"]
    assert update["path"] == "/main.js"
    assert "console.log(2)" in public.ask(f"/main.js?t={update['timestamp']}").body


# Jupyter ------------------------------------------------------------------------------

LOGIN: Final = {"Authorization": "token secret"}


@pytest.fixture(scope="module")
def jupyter_programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return from_pypi(tmp_path_factory.mktemp("jupyter") / "venv", *JUPYTER)


@pytest.fixture
def jupyter(machine: Machine, jupyter_programs: Path) -> int:
    """Run Jupyter as it runs by itself: on this machine, with a token."""
    port = free_port()
    running = machine.start(
        str(jupyter_programs / "jupyter-server"), "--allow-root", "--no-browser",
        f"--port={port}", "--IdentityProvider.token=secret",
        f"--ServerApp.root_dir={machine.home}",
        env={"PATH": f"{jupyter_programs}:{machine.env['PATH']}", "PYTHONPATH": ""},
    )  # fmt: skip
    running.err.wait("is running at", timeout_s=STARTS_S)
    return port


def execution(code: str) -> str:
    """Ask a kernel to run something (Jupyter's messaging protocol, 5.3)."""
    number = uuid.uuid4().hex
    head = {
        "msg_id": number, "msg_type": "execute_request", "username": "me",
        "session": number, "version": "5.3", "date": "2026-01-01T00:00:00Z",
    }  # fmt: skip
    content = {"code": code, "silent": False, "store_history": True,
               "user_expressions": {}, "allow_stdin": False}  # fmt: skip
    return json.dumps({
        "channel": "shell", "header": head, "parent_header": {}, "metadata": {},
        "content": content, "buffers": [],
    })  # fmt: skip


def test_a_kernel_of_jupyter_computes(machine: Machine, jupyter: int) -> None:
    public = Public(machine, jupyter, "host=rewrite")
    made = public.ask("/api/kernels", {"name": "python3"}, **LOGIN)
    assert made.status == 201, made.body
    channels = f"/api/kernels/{json.loads(made.body)['id']}/channels"
    # Behind a token Jupyter asks for no Origin; a browser has its cookie.
    with public.websocket(channels, Cookie=made.cookies) as talk:
        talk.send(execution("1+1"))
        result = heard(talk, "execute_result")
    assert result["content"]["data"]["text/plain"] == "2"
    with pytest.raises(InvalidStatus) as refused:
        public.websocket(channels, origin="http://evil.test", Cookie=made.cookies)
    assert refused.value.response.status_code == 403


@pytest.mark.parametrize("path", ["/api", "/tree"])
def test_the_log_names_the_flag_for_jupyter(
    machine: Machine, jupyter: int, path: str
) -> None:
    public = Public(machine, jupyter)
    assert public.ask(path, **LOGIN).status == 403
    assert public.names_the_flag()


# MCP ----------------------------------------------------------------------------------

SERVER: Final = """
import sys
from mcp.server.mcpserver import Context, MCPServer

server = MCPServer("sums")

@server.tool()
async def add(numbers: list[int], context: Context) -> int:
    for count, _ in enumerate(numbers):
        await context.report_progress(count + 1, len(numbers))
    return sum(numbers)

server.run(sys.argv[1], port=int(sys.argv[2]))
"""
CLIENT: Final = """
import asyncio, socket, sys
from mcp import Client
from mcp.client.sse import sse_client

_look_up = socket.getaddrinfo

def here(host, *args, **kwargs):
    own = host in ("app.t.test", b"app.t.test")
    return _look_up("127.0.0.1" if own else host, *args, **kwargs)

socket.getaddrinfo = here

async def main(transport, url):
    there = sse_client(url + "/sse") if transport == "sse" else url + "/mcp"
    async def progress(count, total, message):
        print("progress", count, total, flush=True)
    async with Client(there, read_timeout_seconds=20) as client:
        print("tools", [tool.name for tool in (await client.list_tools()).tools])
        numbers = {"numbers": [1, 2, 39]}
        result = await client.call_tool("add", numbers, progress_callback=progress)
        print("result", result.content[0].text)

asyncio.run(main(*sys.argv[1:]))
"""
TRANSPORTS: Final = ("sse", "streamable-http")


@pytest.fixture(scope="module")
def mcp_python(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(from_pypi(tmp_path_factory.mktemp("mcp") / "venv", MCP) / "python")


@pytest.fixture(params=TRANSPORTS)
def mcp(
    machine: Machine, mcp_python: str, request: pytest.FixtureRequest
) -> Iterator[tuple[int, str]]:
    """Run an MCP server over a transport; give the port and the transport."""
    port, transport = free_port(), str(request.param)
    running = isolated(machine, mcp_python, SERVER, transport, str(port))
    running.err.wait("running on", timeout_s=STARTS_S)
    yield port, transport
    running.end()


def isolated(machine: Machine, python: str, script: str, *args: str) -> Program:
    """Start a script with another environment's Python, and nothing of ours."""
    return machine.start(python, "-I", "-c", script, *args)


def test_a_client_of_mcp_calls_a_tool_and_hears_its_progress(
    machine: Machine, mcp: tuple[int, str], mcp_python: str
) -> None:
    port, transport = mcp
    public = Public(machine, port, "host=rewrite", "auth=me:SECRET")
    assert public.ask("/mcp").status == 401
    url = public.url.replace("//", "//me:SECRET@")  # as README says
    client = isolated(machine, mcp_python, CLIENT, transport, url)
    client.out.wait("result 42", timeout_s=STARTS_S)
    assert client.wait(STARTS_S) == 0
    assert client.out.all() == [
        "tools ['add']", *(f"progress {count}.0 3.0" for count in (1, 2, 3)),
        "result 42",
    ]  # fmt: skip


def test_the_log_names_the_flag_for_mcp(machine: Machine, mcp: tuple[int, str]) -> None:
    port, transport = mcp
    public = Public(machine, port)
    path = "/sse" if transport == "sse" else "/mcp"
    refused = public.ask(path, Accept="text/event-stream")
    assert (refused.status, refused.body) == (421, "Invalid Host header")
    assert public.names_the_flag()
