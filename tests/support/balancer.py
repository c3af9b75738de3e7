"""A TCP balancer in front of servers: it leads to one that takes connections."""

from __future__ import annotations

import contextlib
import itertools
import socket
import threading
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Sequence


class TcpBalancer:
    """Leads each connection to the next of ``ports``; leaves out who refuses."""

    def __init__(self, ports: Sequence[int]) -> None:
        self._next = itertools.cycle(ports)
        self._count = len(ports)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._pairs: list[tuple[socket.socket, socket.socket]] = []

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()
        self.cut()

    def cut(self) -> int:
        """Break all connections, as a network does; return how many there were."""
        pairs, self._pairs = self._pairs, []
        for pair in pairs:
            for sock in pair:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
        return len(pairs)

    def _accept(self) -> None:
        while True:
            try:
                came, _ = self._listener.accept()
            except OSError:
                return
            for port in itertools.islice(self._next, self._count):
                with contextlib.suppress(OSError):
                    onward = socket.create_connection(("127.0.0.1", port))
                    break
            else:
                came.close()
                continue
            pair = came, onward
            self._pairs.append(pair)
            threading.Thread(target=_join, args=pair, daemon=True).start()


def _join(came: socket.socket, onward: socket.socket) -> None:
    with came, onward:
        back = threading.Thread(target=_carry, args=(onward, came), daemon=True)
        back.start()
        _carry(came, onward)
        back.join()


def _carry(one: socket.socket, other: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := one.recv(65_536):
            other.sendall(data)
    for sock in (one, other):
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)
