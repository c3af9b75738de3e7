"""A visitor who is busy all the while, and notices each byte that is wrong."""

from __future__ import annotations

import socket
import threading


class Busy:
    """A visitor that sends and checks its echo for as long as it is not stopped."""

    def __init__(self, port: int) -> None:
        self._stop = threading.Event()
        self.rounds = 0
        self.fault: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(port,), daemon=True)
        self._thread.start()

    def _run(self, port: int) -> None:
        try:
            with socket.create_connection(("127.0.0.1", port), 20) as sock:
                while not self._stop.is_set():
                    said = self.rounds.to_bytes(8, "big") * 512
                    sock.sendall(said)
                    got = b""
                    while len(got) < len(said):
                        more = sock.recv(65_536)
                        assert more, "its connection was ended"
                        got += more
                    assert got == said
                    self.rounds += 1
        except BaseException as error:
            self.fault = error

    def stop(self) -> int:
        """Give how many rounds were whole; raise what went wrong."""
        self._stop.set()
        self._thread.join(20)
        if self.fault is not None:
            raise self.fault
        return self.rounds
