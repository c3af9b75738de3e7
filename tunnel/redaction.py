"""Passwords and tokens, kept out of every text for a person or a log.

    redact(text)      the text with ``***`` for each secret in it
    masked(words)     a command line with its secrets masked
    keep_secret(...)  learns the secrets of a command line and of variables

A secret is known by its shape (``NAME:SECRET@HOST``, ``auth=USER:SECRET``), by its
place (behind ``--auth``), or because ``keep_secret`` has learnt it.
"""

from __future__ import annotations

import json
import re
from itertools import pairwise
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

HIDDEN: Final = "***"

_NO_PORT: Final = r"(?!\d{1,5}(?:-\d{1,5})?(?:[\s/#,'\"\])}.;]|$))"
_WORD: Final = re.compile(r"\S+")
_CUT_OFF: Final = re.compile(
    rf"(tunnel(?:\+plain)?://[^\s:@/]*:){_NO_PORT}(?!\*)[^\s@'\"]+"
)
"""A join line that is cut off before its @."""
_IN_ENTRY: Final = re.compile(r"(?i)(auth=[^\s:,]{0,255}:)[^\s,]+")

_IN_HEADER: Final = re.compile(
    r"(?i)^(--(?:response-)?header=\+[^\s:,]{1,255}:).+"  # the whole word is one value
    r"|((?:^|,)(?:response-)?header=\+[^\s:,]{1,255}:)[^,]+"
)
"""The value of a header field that an entry sets: an API key, perhaps."""
_HEADER_FLAG: Final = re.compile(r"--(?:response-)?header")

_TOKEN_LIKE: Final = re.compile(
    # What follows # or SHA256: is a pin, and no secret.
    r"(?<![\w#-])(?<!SHA256:)(?=[\w-]*[a-z])(?=[\w-]*[A-Z])(?=[\w-]*\d)[\w-]{20,}",
    re.ASCII,
)
"""A long word of base64url in a command line or a variable: perhaps a bare token.
Elsewhere such a word is a host or a file."""

_TOKEN_FLAG: Final = re.compile(r"--?dashboard[-_]auth")
"""Its value is a secret as a whole."""

_PAIR: Final = re.compile(rf"(?s)^([^:/@]*:){_NO_PORT}(?!//|/|\*\*\*).+$")
"""USER:SECRET, which is not HOST:NUMBER."""

_AUTH_FLAG: Final = re.compile(r"--?-?(?:a[uht]{2,3}s?h?|pass\w*|user\w*|socks-auth)$")
"""``--auth``, and how people misspell it."""

_NO_PAIR: Final = re.compile(r"unix:|\[|.*=|:|[\da-fA-F:.]+(?:%\w+)?$")
"""A path, an entry, or an IPv6 address."""

_NO_SECRETS: Final = frozenset(("", "PASSWORD", "SECRET", "TOKEN"))
"""Words that stand for a secret where a syntax is shown."""

PROXIES: Final = frozenset(("https_proxy", "all_proxy"))
"""Variables, in either case, whose URLs may hold a password."""

_known: dict[str, str] = {}
_known_pattern: list[re.Pattern[str]] = []


def redact(text: str) -> str:
    """Return ``text`` with ``***`` for each secret in it that can be recognised."""
    if _known_pattern:
        text = _known_pattern[0].sub(lambda found: _known[found[0]], text)
    # Peers choose some of these texts, so each step takes linear time.
    if "@" in text:
        text = _WORD.sub(_without_secret, text)
    if "tunnel" in text:
        text = _CUT_OFF.sub(rf"\1{HIDDEN}", text)
    if "auth=" in text.lower():
        text = _IN_ENTRY.sub(rf"\1{HIDDEN}", text)
    return text


def _without_secret(found: re.Match[str]) -> str:
    """Mask NAME:SECRET@, with a scheme or without, up to the last @ of the word."""
    word = found[0]
    at = word.rfind("@")
    colon = word.find(":", 0, max(at, 0))
    if word.startswith("://", colon):
        colon = word.find(":", colon + 3, at)
    if colon < 0 or word[colon + 1 : at] in _NO_SECRETS:
        return word
    return f"{word[: colon + 1]}{HIDDEN}{word[at:]}"


def masked(words: Iterable[str]) -> list[str]:
    """Return the words of a command line, each with its secrets masked."""
    return [_masked_word(word, before) for before, word in pairwise(("", *words))]


def _masked_word(word: str, before: str) -> str:
    flag, equals, value = word.partition("=")
    if equals and _TOKEN_FLAG.fullmatch(flag):
        return f"{flag}={HIDDEN}"
    if _TOKEN_FLAG.fullmatch(before):
        return HIDDEN
    if equals and _AUTH_FLAG.fullmatch(flag):
        return f"{flag}={_masked_pair(value)}"
    if _AUTH_FLAG.fullmatch(before) and not word.startswith("--"):
        return _masked_pair(word)
    if before.endswith(":") and not before.startswith("-"):
        return HIDDEN if not word.startswith("-") else word  # a pair that was split
    if _HEADER_FLAG.fullmatch(before) and word.startswith("+"):
        return _masked_pair(word)
    return _IN_HEADER.sub(lambda found: f"{found[1] or found[2]}{HIDDEN}", redact(word))


def _masked_pair(pair: str) -> str:
    user, colon, secret = pair.partition(":")
    return f"{user}:{HIDDEN}" if colon and secret else redact(pair)


def keep_secret(words: Iterable[str], environ: Mapping[str, str]) -> None:
    """Remember what is secret in a command line and in the ``TUNNEL_…`` variables.

    From then on ``redact`` masks it wherever it stands.
    """
    words = list(words)
    for word, shown in zip(words, masked(words), strict=True):
        _learn(word, shown)
    for name, value in environ.items():
        if name.startswith("TUNNEL_") or name.lower() in PROXIES:
            pair = "AUTH" in name or "PASS" in name
            whole = name == "TUNNEL_DASHBOARD_AUTH"
            for word in (value, *value.split()):
                shown = _masked_pair(word) if pair else redact(word)
                _learn(word, HIDDEN if whole and word else shown)
    if _known:
        longest = sorted(_known, key=len, reverse=True)
        pattern = r"(?<!\w)(?:" + "|".join(map(re.escape, longest)) + r")(?!\w)"
        _known_pattern[:] = [re.compile(pattern)]


def _learn(word: str, shown: str) -> None:
    if shown == word and _PAIR.match(word) and not _NO_PAIR.match(word):
        shown = word.partition(":")[0] + f":{HIDDEN}"
    if shown != word:
        # As it was given, and as messages may quote it.
        for form in (word, repr(word)[1:-1], json.dumps(word)[1:-1]):
            _known[form] = shown
    for token in _TOKEN_LIKE.findall(word):
        _known[token] = HIDDEN
