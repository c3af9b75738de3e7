"""The pins by which a client knows its server, while that changes its key.

A server announces the pin of its next key to clients that it has proved itself to, and
they keep both until the change (protocol.md#next-pin). What is kept of a pin lies in
one file, so that any join line with that pin goes on working after the change:

    PIN.pin     ``next NEXT``     its server will change to NEXT
                ``changed NEXT``  it has changed: PIN is not accepted any more
"""

from __future__ import annotations

import hmac
import logging
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from tunnel.access.files import exists, read_private, write_private
from tunnel.access.join import PIN_BYTES
from tunnel.errors import StateError
from tunnel.log import log_event
from tunnel.proto.proofs import from_base64url, to_base64url

if TYPE_CHECKING:
    from pathlib import Path

MAX_CHANGES: Final = 64
"""Changes that one old join line is followed over; one a year outlives its machine."""

logger = logging.getLogger("tunnel.client")


class Pins:
    """The pin of a server, and the one that it has announced as its next.

    Args:
        pin: of the join line; None for a server that is known by its certificate.
        folder: where announced pins are kept; None keeps them in memory only.
    """

    def __init__(self, pin: str | None, folder: Path | None = None) -> None:
        self._folder = folder
        self.of_line = pin
        self.current = pin
        """The one that the server has now, as far as is known."""
        self.next = ""
        """The announced one; empty if there is none."""
        for _ in range(MAX_CHANGES):
            word, to = self._kept()
            if word != "changed":
                self.next = to
                break
            self.current = to

    @property
    def accepted(self) -> tuple[str, ...]:
        """The pins of which the server's key must have one; empty without pins."""
        return tuple(filter(None, (self.current, self.next)))

    @property
    def why_not_its_own(self) -> str:
        """Which file has another pin accepted than that of the line; empty if none."""
        if self.current == self.of_line or self._folder is None:
            return ""
        return str(self._file(self.of_line or ""))

    def match(self, offered: str) -> bool:
        """Say whether a key is the server's."""
        return any(hmac.compare_digest(offered, pin) for pin in self.accepted)

    def proved(self, offered: str, announced: bytes) -> None:
        """Note what a server that has proved itself says about its keys.

        Args:
            offered: the pin of the key that it has now.
            announced: its next, 32 bytes, or nothing.
        """
        if self.current is None:
            return
        if self.next and offered == self.next:
            self._keep("changed", self.next)
            log_event(logger, logging.INFO, "pin.changed", was=self.current,
                now=self.next, saved=self._folder is not None)  # fmt: skip
            self.current, self.next = self.next, ""
        told = to_base64url(announced) if announced else ""
        if told == self.current:
            told = ""
        if told != self.next:
            self.next = told
            self._keep("next", told)
            log_event(logger, logging.INFO, "pin.announced", now=self.current,
                next=told or None, saved=self._folder is not None)  # fmt: skip

    def _file(self, pin: str) -> Path:
        assert self._folder is not None  # noqa: S101 - callers have looked
        return self._folder / f"{pin}.pin"

    def _kept(self) -> tuple[str, str]:
        """Read what is kept of the current pin; a file of no use is as none."""
        if self._folder is None or self.current is None:
            return "", ""
        path = self._file(self.current)
        with suppress(StateError, ValueError):
            if exists(path):
                word, to = read_private(path).split()
                if word in ("next", "changed") and from_base64url(to, PIN_BYTES):
                    return word, to
        return "", ""

    def _keep(self, word: str, to: str) -> None:
        """Save it; what cannot be saved is kept until the program ends."""
        if self._folder is None or self.current is None:
            return
        path = self._file(self.current)
        try:
            if to:
                write_private(path, f"{word} {to}\n")
            else:
                path.unlink(missing_ok=True)
        except (StateError, OSError) as error:
            log_event(logger, logging.WARNING, "pin.not_saved", file=str(path),
                reason=str(error))  # fmt: skip


def forget_pin(pin: str | None, folder: Path | None) -> None:
    """Have a pin accepted again as it is, for its user has given its line anew."""
    if pin is not None and folder is not None:
        with suppress(OSError):
            (folder / f"{pin}.pin").unlink(missing_ok=True)
