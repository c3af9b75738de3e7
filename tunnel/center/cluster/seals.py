"""What a store that is not trusted keeps for the nodes: sealed, and as bytes. No IO.

Who can write to the store can lose what is in it, and put back what was there before.
It can make nothing up, and cannot pass off what is sealed for one key or one purpose as
something for another: the seal is an HMAC-SHA256 over purpose, key and content, with a
key that is derived from the cluster's secret.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from enum import Enum
from typing import TYPE_CHECKING, Final

from tunnel.center.cluster.directory import Claim

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

SEAL_BYTES: Final = 16
"""It stands before the content. Half an HMAC-SHA256: nobody hits 2^-128 by chance."""
_LABEL: Final = b"tunnel directory 1"
"""The number is that of these forms: another form is another label."""
_FENCE: Final = struct.Struct(">Q")
_LENGTH: Final = struct.Struct(">I")
MAX_FENCE: Final = (1 << 64) - 1


class Purpose(Enum):
    """What a sealed value is for."""

    CLAIM = b"c"
    NODE = b"n"
    REMEMBERED = b"r"
    FENCE = b"f"
    CLUSTER = b"s"


class Seals:
    """Seals and opens.

    Args:
        secret: of the cluster, at least 16 bytes that nobody can guess.
    """

    def __init__(self, secret: bytes) -> None:
        key = hmac.digest(secret, _LABEL, "sha256")
        self._begun = hmac.new(key, digestmod=hashlib.sha256)

    def seal(self, purpose: Purpose, key: str, content: bytes) -> bytes:
        """Return the content behind its seal."""
        return self._seal_of(purpose, key, content) + content

    def open(self, purpose: Purpose, key: str, sealed: bytes) -> bytes | None:
        """Return the content; None if its seal is not the cluster's for this key."""
        content = sealed[SEAL_BYTES:]
        seal = self._seal_of(purpose, key, content)
        return content if hmac.compare_digest(seal, sealed[:SEAL_BYTES]) else None

    def _seal_of(self, purpose: Purpose, key: str, content: bytes) -> bytes:
        name = encoded(key)
        running = self._begun.copy()
        running.update(purpose.value + _LENGTH.pack(len(name)) + name)
        running.update(content)
        return running.digest()[:SEAL_BYTES]


def encoded(key: str) -> bytes:
    """Return a key as bytes; what ``decoded`` made of any bytes becomes them again."""
    return key.encode(errors="surrogateescape")


def decoded(key: bytes) -> str:
    """Return a key as text."""
    return key.decode(errors="surrogateescape")


# Forms: the content is the cluster's own, so what cannot be read is a fault of ours --


def pack_fence(fence: int) -> bytes:
    """Return a fence as 8 bytes."""
    return _FENCE.pack(fence)


def read_fence(content: bytes) -> int:
    """Read what ``pack_fence`` made."""
    fence: int
    (fence,) = _FENCE.unpack_from(content)
    return fence


def pack_claim(fence: int, members: Mapping[str, bytes]) -> bytes:
    """Return a claim as bytes: the fence, then names and what they say in turn."""
    parts = [pack_fence(fence)]
    for name, says in members.items():
        parts += [_with_length(encoded(name)), _with_length(says)]
    return b"".join(parts)


def read_claim(content: bytes) -> Claim:
    """Read what ``pack_claim`` made; without members it says that nobody is left."""
    words = list(split_words(content[_FENCE.size :]))
    members = {
        decoded(name): says for name, says in zip(words[::2], words[1::2], strict=True)
    }
    return Claim(read_fence(content), members)


def join_words(*words: bytes) -> bytes:
    """Return words in one, each behind its length."""
    return b"".join(map(_with_length, words))


def split_words(content: bytes) -> Iterator[bytes]:
    """Give what ``join_words`` has joined; raise ValueError where it has not."""
    at = 0
    while at < len(content):
        begin = at + _LENGTH.size
        if begin > len(content):
            raise ValueError("a length is cut off")
        at = begin + _LENGTH.unpack_from(content, begin - _LENGTH.size)[0]
        if at > len(content):
            raise ValueError("a word is cut off")
        yield content[begin:at]


def _with_length(word: bytes) -> bytes:
    return _LENGTH.pack(len(word)) + word
