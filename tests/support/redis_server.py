"""A Redis on loopback that keeps nothing, what anybody may ask it, and ways to it."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import socket
from typing import TYPE_CHECKING

import trio
from support.processes import Machine, Program, free_port, program

if TYPE_CHECKING:
    from pathlib import Path

HOST = "127.0.0.1"
Answer = bytes | int | list["Answer"] | None


class RedisServer:
    """Starts at once; ``machine`` ends it.

    Args:
        machine: ends the program.
        folder: for its files.
        options: more of its flags; ``{port}`` is its port.
    """

    def __init__(self, machine: Machine, folder: Path, *options: str) -> None:
        self._machine = machine
        self._folder = folder
        self._options = options
        self.port = free_port()
        self.process: Program
        self.start()

    @property
    def url(self) -> str:
        return f"redis://{HOST}:{self.port}/0"

    def start(self) -> None:
        """Start it, empty."""
        server = program("redis-server")
        more = [option.format(port=self.port) for option in self._options]
        self.process = self._machine.start(
            server, "--port", str(self.port), "--bind", HOST, "--dir",
            str(self._folder), "--save", "", "--appendonly", "no", *more,
        )  # fmt: skip
        self.process.out.wait("eady to accept connections")

    def kill(self) -> None:
        self.process.stop(signal.SIGKILL)

    def pause(self) -> None:
        os.kill(self.process.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        os.kill(self.process.pid, signal.SIGCONT)

    def ask(self, *words: str | bytes | int) -> Answer:
        """Ask as anybody could who may write to it."""
        parts = [w if isinstance(w, bytes) else str(w).encode() for w in words]
        request = b"*%d\r\n" % len(parts)
        request += b"".join(b"$%d\r\n%b\r\n" % (len(part), part) for part in parts)
        with socket.create_connection((HOST, self.port)) as sock:
            sock.sendall(request)
            return _Reader(sock).answer()

    def calls(self) -> dict[str, int]:
        """Count the commands so far, by name."""
        text = self.ask("INFO", "commandstats")
        assert isinstance(text, bytes)
        lines = [line for line in text.decode().split() if line.startswith("cmdstat_")]
        parts = [line.removeprefix("cmdstat_").split(":") for line in lines]
        return {name: int(rest.split(",")[0].split("=")[1]) for name, rest in parts}

    def used_bytes(self) -> int:
        text = self.ask("INFO", "memory")
        assert isinstance(text, bytes)
        return int(text.decode().partition("used_memory:")[2].split()[0])


class _Reader:
    def __init__(self, sock: socket.socket) -> None:
        self._file = sock.makefile("rb")

    def answer(self) -> Answer:
        line = self._file.readline()
        kind, rest = line[:1], line[1:].rstrip()
        if kind == b"$":
            size = int(rest)
            return None if size < 0 else self._file.read(size + 2)[:-2]
        if kind == b"*":
            return [self.answer() for _ in range(int(rest))]
        assert kind != b"-", rest
        return int(rest) if kind == b":" else rest


class Way:
    """A way to a server that can be slow, or stop for a while.

    Args:
        port: the server's.
        delay_s: of each byte, in each direction.
    """

    def __init__(self, port: int, delay_s: float = 0.0) -> None:
        self._to = port
        self._delay_s = delay_s
        self._open = trio.Event()
        self._open.set()
        self.port = 0

    @property
    def url(self) -> str:
        return f"redis://{HOST}:{self.port}/0"

    def stop(self) -> None:
        """Let nothing through."""
        self._open = trio.Event()

    def go_on(self) -> None:
        """Let through what has come, and what comes."""
        self._open.set()

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        (listener,) = await trio.open_tcp_listeners(0, host=HOST)
        self.port = listener.socket.getsockname()[1]
        task_status.started()
        await trio.serve_listeners(self._serve, [listener])

    async def _serve(self, near: trio.SocketStream) -> None:
        with contextlib.suppress(OSError, trio.BrokenResourceError):
            far = await trio.open_tcp_stream(HOST, self._to)
            async with far, near, trio.open_nursery() as nursery:
                nursery.start_soon(self._pass, near, far, nursery.cancel_scope)
                nursery.start_soon(self._pass, far, near, nursery.cancel_scope)

    async def _pass(
        self, source: trio.SocketStream, to: trio.SocketStream, both: trio.CancelScope
    ) -> None:
        into, out = trio.open_memory_channel[tuple[float, bytes]](math.inf)

        async def write() -> None:
            async for due, data in out:
                await trio.sleep_until(due)
                await self._open.wait()
                await to.send_all(data)
            both.cancel()

        with contextlib.suppress(trio.BrokenResourceError, BaseExceptionGroup):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(write)
                with into:
                    async for data in source:
                        due = trio.current_time() + self._delay_s
                        into.send_nowait((due, bytes(data)))
