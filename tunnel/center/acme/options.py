"""Which certificate authority a server asks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

LETS_ENCRYPT: Final = "https://acme-v02.api.letsencrypt.org/directory"


@dataclass(frozen=True, slots=True)
class AcmeOptions:
    """Which authority is asked for certificates of published names."""

    mail: str
    """Of who answers for the account."""
    directory: str = LETS_ENCRYPT
    """The authority's URL."""
    ca: Path | None = None
    """The authorities that are trusted about its own certificate; None for the
    system's."""
    hook: Path | None = None
    """A program for dns-01, called ``present|cleanup NAME VALUE``; None: no wildcards.
    """

    @property
    def is_public(self) -> bool:
        """Whether it signs names of the public DNS alone; one's own may sign others."""
        return self.directory == LETS_ENCRYPT
