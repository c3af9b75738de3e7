"""Which certificate a published host name asks for: its own, a wildcard, or none."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tunnel.access.host_certificates import is_for
from tunnel.center.own_names import is_own_name

if TYPE_CHECKING:
    from tunnel.center.acme_options import AcmeOptions

MAX_NAME: Final = 200
"""Characters of a name that is asked for: DNS allows 253, a file's name 255 with what
is put before and behind it while it is written."""
_LABEL: Final = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
_NAME: Final = re.compile(rf"(\*\.)?({_LABEL}\.)+{_LABEL}")
"""Letters, digits and hyphens: no public authority signs ``_``."""
_LAST_IS_NUMBER: Final = re.compile(r"\d+|0x[0-9a-f]*")
_PRIVATE: Final = frozenset(
    ("alt", "arpa", "corp", "example", "home", "internal", "invalid", "lan", "local",
     "localdomain", "localhost", "onion", "test"),
)  # fmt: skip
"""Last labels that no public authority signs: nobody owns them (RFC 6761, 6762, 9476,
and what ICANN keeps back). One's own authority may."""


class NotAskedError(Exception):
    """No certificate is asked for a name; the text says why.

    Args:
        why: in words.
        fix: what would help.
    """

    def __init__(self, why: str, fix: str = "") -> None:
        super().__init__(why)
        self.fix = fix


@dataclass(frozen=True, slots=True)
class NameRules:
    """What the names that are asked for depend on."""

    has_hook: bool = False
    """There is a program for dns-01: wildcards can be had."""
    domain: str | None = None
    """The server's own: with the hook one wildcard serves all names right below it."""
    own_authority: bool = False
    """It is not a public one, and signs what it likes."""

    def certificate_for(self, host: str, given: frozenset[str]) -> str | None:
        """Return the name whose certificate serves a host; None: it has one.

        Args:
            host: published, in small letters; may begin with ``*.``.
            given: the names of the certificate that the server was given.

        Raises:
            NotAskedError: none is asked for.
        """
        if is_for(given, host):
            return None
        self._insist_possible(host)
        label, _, above = host.partition(".")
        if self.domain and above == self.domain:
            if self.has_hook:
                return f"*.{self.domain}"
            if is_own_name(label):
                why = (
                    "a made-up name is a secret, and authorities publish what they sign"
                )
                raise NotAskedError(why, "choose a name, or a wildcard: --acme-hook")
        return host

    def _insist_possible(self, host: str) -> None:
        last = host.rpartition(".")[2]
        if _LAST_IS_NUMBER.fullmatch(last):
            raise NotAskedError("it is an address, and no name", "publish a name")
        if len(host) > MAX_NAME or not _NAME.fullmatch(host):
            why = "no authority signs such a name"
            raise NotAskedError(why, "letters, digits and hyphens, at most 200")
        if not self.own_authority and last in _PRIVATE:
            why = f"no public authority signs .{last}"
            fix = "a name of the public DNS, or your own authority: --acme-directory"
            raise NotAskedError(why, fix)
        if host.startswith("*.") and not self.has_hook:
            why = "authorities sign a wildcard by DNS alone"
            raise NotAskedError(why, "--acme-hook PROGRAM, or --certificate")


def rules_of(acme: AcmeOptions, domain: str | None) -> NameRules:
    """Return what the names that a server asks for depend on."""
    return NameRules(acme.hook is not None, domain, not acme.is_public)
