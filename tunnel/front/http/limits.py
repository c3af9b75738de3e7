"""How large a head may be, and how long one may take, for all HTTP of one command."""

from __future__ import annotations

import math
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Final

HEAD_S: Final = 10.0
"""From the first byte of a head to its last: honest ones need one round trip."""
BETWEEN_S: Final = 75.0
"""Between two requests: longer than most browsers and proxies keep one idle, so that
they close first."""
KEPT_S: Final = 4.0
"""A target's connection without a request: Node closes one after 5 s."""
PAGE_S: Final = 60.0
"""For a visitor to take a page of ours: who reads nothing holds a place for nothing."""
LINGER_S: Final = 30.0
"""For a body that goes on behind its answer: sent over a slow line, it must not destroy
what the visitor has not read. nginx lingers so long, too."""
HEAD_BYTES: Final = 131_072
"""Logins of large companies are carried in headers, and fill tens of KiB."""
MAX_FIELDS: Final = 300
"""Browsers send about 20; the size of a head alone would allow 32,000."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a request, and the answer to it, may have."""

    head_bytes: int = HEAD_BYTES
    """Of a head, with its empty line."""
    fields: int = MAX_FIELDS
    body_s: float = math.inf
    """Without a byte of a request's body: for ever, for who uploads may pause."""


LIMITS: Final = ContextVar("LIMITS", default=Limits())  # noqa: B039
"""Those of the command; every task that it starts sees them."""
