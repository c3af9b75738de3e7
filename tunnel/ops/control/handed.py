"""An answer of the control socket with descriptors beside it: Unix."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from tunnel.platform.descriptors import send_descriptors

if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence


class Handed(dict[str, object]):
    """An answer that hands descriptors over.

    Args:
        descriptors: closed once they were sent.
    """

    def __init__(self, descriptors: Sequence[int]) -> None:
        super().__init__()
        self._descriptors = tuple(descriptors)

    def send(self, sock: socket.socket, raw: bytes) -> int:
        """Send the descriptors with the first bytes; return how many were taken.

        Raises OSError, on Windows always.
        """
        try:
            return send_descriptors(sock, raw, self._descriptors)
        finally:
            for one in self._descriptors:
                os.close(one)
