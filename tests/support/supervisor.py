"""The socket that systemd gives a service to say how it is."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Self

from support.processes import WAIT_S

if TYPE_CHECKING:
    from pathlib import Path


class Supervisor:
    """Hears what a process says; ``where`` is a path, or ``@NAME``."""

    def __init__(self, where: Path | str) -> None:
        self.env = {"NOTIFY_SOCKET": str(where)}
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._sock.bind(str(where).replace("@", "\0", 1))
        self._sock.settimeout(WAIT_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._sock.close()

    def hear(self) -> list[str]:
        """Wait for the next message; give its lines."""
        return self._sock.recv(4096).decode().split("\n")

    def hear_of(self, word: str) -> list[str]:
        """Wait for the next message with this line, past all others."""
        while word not in (lines := self.hear()):
            pass
        return lines

    def all(self) -> list[list[str]]:
        """Give what is there, without waiting."""
        found = []
        self._sock.setblocking(False)
        try:
            while True:
                found.append(self.hear())
        except BlockingIOError:
            return found
        finally:
            self._sock.settimeout(WAIT_S)
