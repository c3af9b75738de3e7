"""Names that a client makes up for what it shares, and that can be told from others.

Whoever is not told such a name cannot guess it. So no certificate may be asked for it
alone: authorities publish each one that they sign.
"""

from __future__ import annotations

from base64 import b32encode
from hashlib import sha256
from typing import Final

_LETTERS: Final = 10
"""50 bits: nobody guesses the name, and no two of them collide."""
_CHECK_LETTERS: Final = 2
"""That follow from the others: of a thousand names that people choose with just as many
letters, one is taken for one of these."""


def own_name(client_id: bytes, target: str) -> str:
    """Return a short name, the same whenever this client shares the same thing."""
    name = _letters(client_id + target.encode(errors="surrogateescape"), _LETTERS)
    return name + _check(name)


def is_own_name(label: str) -> bool:
    """Say whether a name, in small letters and without a dot, is one of these."""
    name = label[:_LETTERS]
    return len(label) == _LETTERS + _CHECK_LETTERS and label == name + _check(name)


def _check(name: str) -> str:
    return _letters(b"own name " + name.encode(), _CHECK_LETTERS)


def _letters(data: bytes, count: int) -> str:
    return b32encode(sha256(data).digest())[:count].decode().lower()
