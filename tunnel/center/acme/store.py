"""The files of ACME in the state folder: account key, certificates, ledger.

    STATE/acme/HOST-HASH/account.pem    who we are to the authority of that directory
    STATE/acme/HOST-HASH/NAME.pem       key and chain of a name; ``_.x`` for ``*.x``
    STATE/acme/HOST-HASH/ledger.json    what was asked this week, and what failed

Each file has mode 0600 and is written whole or not at all; key and chain are one file,
so that no crash leaves half a pair. Another authority has another folder: the limits
are its own.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import re
import shlex
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from tunnel.access.files import (
    DAMAGED,
    exists,
    read_private,
    rename_private,
    write_private,
)
from tunnel.access.host_certificates import facts_of, new_key, request_for
from tunnel.center.acme.plan import (
    MOST_AUTHORITY_S,
    MOST_RETRY_AFTER_S,
    WEEK_S,
    Asked,
    Fault,
    Held,
    Ledger,
)
from tunnel.errors import StateError
from tunnel.log import log_event

if TYPE_CHECKING:
    from pathlib import Path

FOLDER: Final = "acme"
LEDGER: Final = "ledger.json"
ACCOUNT: Final = "account.pem"
MAX_LEDGER_BYTES: Final = 1_048_576
"""One with all that a week can hold has some 100 kB."""
MOST_KEPT: Final = 1_024
"""Certificates that are read at the start: 13 weeks of new names are half of it."""
_SUFFIX: Final = ".pem"
_NOT_IN_A_FOLDER: Final = re.compile(r"[^a-z0-9.-]")
_FORM: Final = 1

logger = logging.getLogger("tunnel.acme")


class Store:
    """What is kept of one authority.

    Args:
        folder: of the server's state.
        directory: the URL of the authority.
    """

    def __init__(self, folder: Path, directory: str) -> None:
        host = _NOT_IN_A_FOLDER.sub("-", (urlsplit(directory).hostname or "").lower())
        short = hashlib.sha256(directory.encode()).hexdigest()[:8]
        self.folder = folder / FOLDER / f"{host[:100]}-{short}"
        self.held: dict[str, Held] = {}
        """The certificates that are there, by name."""
        self.ledger = Ledger()

    def load(self, now: float) -> None:
        """Read what is there; what cannot be used is logged, and left or put aside."""
        self.ledger = self._read_ledger(now)
        self.held.clear()
        for path in sorted(self.folder.glob(f"*{_SUFFIX}"))[:MOST_KEPT]:
            if path.name == ACCOUNT:
                continue
            name = _name_of(path)
            try:
                facts = facts_of(read_private(path).encode())
            except (StateError, ValueError) as error:
                self._say(path, str(error), "another certificate is asked for")
                continue
            if facts.ends_at <= now:
                continue
            self.held[name] = Held(facts.starts_at, facts.ends_at)

    def path_of(self, name: str) -> Path:
        """Return the file of a certificate with its key."""
        return self.folder / f"{name.replace('*', '_')}{_SUFFIX}"

    def keep(self, name: str, key_pem: str, chain_pem: str) -> None:
        """Write a certificate and its key, in the place of those before.

        Raises:
            StateError: it cannot be written, or it is none of this name.
        """
        try:
            facts = facts_of(chain_pem.encode())
        except ValueError as error:
            raise StateError("the authority sent no certificate", str(error)) from error
        if name not in facts.names:
            why = f"it is for {', '.join(sorted(facts.names)[:3])}"
            raise StateError(f"the certificate is not for {name}", why)
        write_private(self.path_of(name), key_pem + chain_pem)
        self.held[name] = Held(facts.starts_at, facts.ends_at)

    def account_key(self) -> str:
        """Return the key of the account, PEM, which is made at the first call.

        Raises:
            StateError: it cannot be read or written.
        """
        path = self.folder / ACCOUNT
        if not exists(path):
            write_private(path, new_key())
        key_pem = read_private(path)
        try:
            request_for(["account.invalid"], key_pem)
        except (ValueError, TypeError) as error:
            fix = f"mv {shlex.quote(str(path))} away: another account is made"
            raise StateError(f"cannot use {path}", DAMAGED, fix) from error
        return key_pem

    def keep_ledger(self) -> None:
        """Write the ledger; StateError if that cannot be done."""
        ledger = self.ledger
        text = json.dumps({
            "form": _FORM,
            "asked": {name: [one.user, one.at] for name, one in ledger.asked.items()},
            "faults": {
                name: [one.tries, one.again_at, one.reason]
                for name, one in ledger.faults.items()
            },
            "closed_until": ledger.closed_until,
        })  # fmt: skip
        write_private(self.folder / LEDGER, text + "\n")

    def _read_ledger(self, now: float) -> Ledger:
        """Return the ledger; one that cannot be read is put aside, and closes."""
        path = self.folder / LEDGER
        try:
            if not exists(path):
                return Ledger()
            if path.stat().st_size > MAX_LEDGER_BYTES:
                raise StateError(f"cannot use {path}", "it is too large")
            return _ledger_of(json.loads(read_private(path)), now)
        except (StateError, OSError, ValueError, LookupError, TypeError,
                AttributeError, RecursionError) as error:  # fmt: skip
            fix = f"restore {path.name}, or wait a week; renewals go on"
            self._say(path, f"{type(error).__name__}: {error}", fix)
        ledger = Ledger(closed_until=now + WEEK_S)
        try:
            rename_private(path, path.with_suffix(".damaged"))
            self.ledger = ledger
            self.keep_ledger()
        except StateError as error:
            self._say(path, str(error), "have the server's user own the folder")
        return ledger

    def _say(self, path: Path, reason: str, fix: str) -> None:
        log_event(logger, logging.WARNING, "acme.state", path=str(path),
            reason=reason, fix=fix)  # fmt: skip


def _name_of(path: Path) -> str:
    return path.name.removesuffix(_SUFFIX).replace("_", "*")


def _ledger_of(said: object, now: float) -> Ledger:
    """Take the ledger apart; raises one of several errors if it is none.

    Times that a wrong clock wrote far ahead count from now.
    """
    if not isinstance(said, dict) or said["form"] != _FORM:
        raise ValueError("it has another form")
    asked = {
        _text(name): Asked(_text(user), min(_time(at), now))
        for name, (user, at) in said["asked"].items()
    }
    most = now + max(MOST_RETRY_AFTER_S, MOST_AUTHORITY_S)
    faults = {
        _text(name): Fault(int(tries), min(_time(again_at), most), _text(reason))
        for name, (tries, again_at, reason) in said["faults"].items()
    }
    return Ledger(asked, faults, min(_time(said["closed_until"]), now + WEEK_S))


def _text(said: object) -> str:
    if not isinstance(said, str):
        raise TypeError("a name is text")
    return said


def _time(said: object) -> float:
    if isinstance(said, bool) or not isinstance(said, int | float):
        raise TypeError("a time is a number")
    if not math.isfinite(said):
        raise ValueError("a time is finite")
    return float(said)
