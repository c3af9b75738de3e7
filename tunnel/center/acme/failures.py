"""Why there is no certificate, in words that help; what proves a name. No IO."""

from __future__ import annotations

from typing import Final, NamedTuple

TLS_ALPN: Final = "tls-alpn-01"
HTTP: Final = "http-01"
DNS: Final = "dns-01"

MAX_WORDS: Final = 300
"""Characters of what an authority says that are kept and logged."""


class Proof(NamedTuple):
    """What shows an authority that a name is ours."""

    kind: str
    name: str
    """Without ``*.``."""
    token: str
    authorization: str
    """Token and key; what HTTP answers."""
    digest: str
    """SHA-256 of that; what DNS says."""


class FailedError(Exception):
    """An order that brought no certificate.

    Args:
        reason: in words.
        fix: what would help.
        of_authority: no other name would do better now.
        after_s: for how long the authority asks to be left alone.
    """

    def __init__(
        self,
        reason: str,
        fix: str,
        *,
        of_authority: bool = False,
        after_s: float = 0.0,
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.fix = fix
        self.of_authority = of_authority
        self.after_s = after_s


_LEAD_HERE: Final = (
    "NAME must lead here by DNS, its port 443 to --https (or its port 80 to --http)"
)
_FIXES: Final = {
    "dns": "an A or AAAA record of NAME that leads to this server",
    "connection": _LEAD_HERE,
    "tls": _LEAD_HERE,
    "unauthorized": _LEAD_HERE,
    "incorrectResponse": _LEAD_HERE,
    "dnssec": "mend DNSSEC of the name's zone",
    "caa": "a CAA record of the name's zone that allows this authority",
    "rejectedIdentifier": "another name, or --certificate of another authority",
    "rateLimited": "nothing: it is asked again when the authority's limit allows it",
    "invalidContact": "--acme MAIL with an address that mail reaches",
    "unsupportedContact": "--acme MAIL with an address that mail reaches",
    "userActionRequired": "read and accept the authority's new terms",
    "externalAccountRequired": "another --acme-directory",
    "accountDoesNotExist": "move the folder of this authority in STATE/acme away",
}
"""By the type of an error (RFC 8555 §6.7), what who runs the server can do."""
_OF_ALL: Final = frozenset(
    ("invalidContact", "unsupportedContact", "userActionRequired", "serverInternal",
     "externalAccountRequired", "accountDoesNotExist", "badNonce"),
)  # fmt: skip


def explained(code: str, detail: str) -> FailedError:
    """Return what an error of the authority means; ``code`` is its type, or empty."""
    words = " ".join(detail.split())[:MAX_WORDS]
    reason = f"{code}: {words}" if code else words or "it refuses without a reason"
    fix = _FIXES.get(code, "nothing here: it is asked again")
    return FailedError(reason, fix, of_authority=code in _OF_ALL)
