"""The certificate for host names: renewed files are taken while visitors are served."""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

import trio

from tunnel.access.host_certificates import facts_of
from tunnel.front.http.terminations import termination, why_unusable
from tunnel.log import log_event

if TYPE_CHECKING:
    from pathlib import Path

    from tunnel.front.http.terminations import Terminations

EVERY_S: Final = 10.0
"""Between two looks at the files: they cost nothing, and who replaces them waits."""
SOON: Final = timedelta(days=14)
"""What is left of a certificate when it should have been renewed: those of 90 days are
renewed a month before, those of a week are warned about and no worse for it."""
WARN_EVERY: Final = timedelta(days=1)

_Stamp = tuple[tuple[int, int, int], ...]

logger = logging.getLogger("tunnel.server")


async def keep_renewed(files: tuple[Path, Path], endings: Terminations) -> None:
    """Take each new version of the files for later handshakes, until cancelled.

    What cannot be used is logged once, and the certificate before it stays: the two
    files may be written one after the other.

    Args:
        files: the certificate with its chain, and the key, in PEM.
        endings: what ends TLS with them; is changed.
    """
    seen = _stamp(files)
    warned = datetime.min.replace(tzinfo=UTC)
    while True:
        now = datetime.now(UTC)
        if now - warned > WARN_EVERY:
            warned = now
            _warn(files[0], now)
        await trio.sleep(EVERY_S)
        if (stamp := _stamp(files)) == seen:
            continue
        seen = stamp
        try:
            endings.usual = termination(*files)
        except OSError as error:
            log_event(logger, logging.WARNING, "certificate.kept", file=str(files[0]),
                reason=f"the new one cannot be used: {why_unusable(error)}",
                fix="both files in PEM, the certificate with its chain")  # fmt: skip
            continue
        log_event(logger, logging.INFO, "certificate.renewed", file=str(files[0]))
        warned = datetime.min.replace(tzinfo=UTC)


def _stamp(files: tuple[Path, Path]) -> _Stamp:
    """Return what changes with the files; a file that is not there has one, too."""
    found = []
    for path in files:
        try:
            status = os.stat(path)
        except OSError:
            found.append((0, 0, 0))
        else:
            found.append((status.st_mtime_ns, status.st_size, status.st_ino))
    return tuple(found)


def _warn(certificate: Path, now: datetime) -> None:
    try:
        ends_at = facts_of(certificate.read_bytes()).ends_at
        until = datetime.fromtimestamp(ends_at, UTC)
    except (OSError, ValueError):
        return  # said when it could not be used
    if until - now < SOON:
        log_event(logger, logging.WARNING, "certificate.ends", file=str(certificate),
            until=until.isoformat(timespec="seconds"),
            fix="renew the file: it is taken without a restart")  # fmt: skip


def names_of(files: tuple[Path, Path] | None) -> frozenset[str]:
    """Return the names of a certificate; none if there is none that can be read."""
    if files is not None:
        with suppress(OSError, ValueError):
            return facts_of(files[0].read_bytes()).names
    return frozenset()
