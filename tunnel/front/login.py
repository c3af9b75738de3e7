"""The passwords that one connection says, heard only while it is seldom wrong."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Final

from tunnel.access.guesses import BURST, GUESSES
from tunnel.log import log_event
from tunnel.net.descriptors import Told

if TYPE_CHECKING:
    from tunnel.addresses import Address

LOG: Final = logging.getLogger("tunnel.front")
_SLOWED: Final = Told("login.slowed")


class Login:
    """The passwords of one connection; with too many wrong ones it is not heard.

    Args:
        peer: the address of the connection, as far as it is known.
        what: the thing that the connection wants to use, for the log.
    """

    __slots__ = ("_host", "_is_proved", "_peer", "_what")

    def __init__(self, peer: Address | None, what: str) -> None:
        self._peer = peer
        self._host = peer.host if peer is not None else ""
        self._what = what
        self._is_proved = False

    def wait_s(self) -> float:
        """Return for how long its words must not be looked at, in seconds.

        0 for a connection that was right last time, whatever others at its address do.
        """
        if self._is_proved:
            return 0.0
        wait_s = GUESSES.wait_s(self._host, time.monotonic())
        if wait_s:
            _SLOWED.tell("too many wrong passwords", BURST, self._peer)
        return wait_s

    def said(self, *, right: bool) -> bool:
        """Count whether its words were right; return that."""
        self._is_proved = right
        if not right:
            GUESSES.failed(self._host, time.monotonic())
            log_event(LOG, logging.WARNING, "login.failed",
                peer=str(self._peer) if self._peer is not None else None,
                to=self._what)  # fmt: skip
        return right
