"""The words of an entry that the server enforces, and its health check.

    ,allow=NET… ,deny=NET… ,expires=2h ,requests=10/s ,max-body=10M
    ,path=/api ,strip ,group=NAME ,check=/healthz ,check=tcp

``web_words`` has them among the other words of an entry; here are their values.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from tunnel.access.networks import parse_network
from tunnel.center.health import Check
from tunnel.errors import UsageError
from tunnel.proto.rules import MAX_NETWORKS, Rules, is_group, is_path

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tunnel.proto.rules import Network

_UNITS_S: Final = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
_UNITS_BYTES: Final = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
_MAX_U32: Final = (1 << 32) - 1


def rules_of(
    said: Mapping[str, Sequence[str]],
) -> tuple[Rules | None, Check | None]:
    """Return what the server is to ask of visitors, and the check of the target.

    Args:
        said: the values of each word.

    Raises:
        UsageError: a word has no value that could be meant.
    """
    if not said:
        return None, None
    if "strip" in said and "path" not in said:
        why = "there is no path= that it could take off"
        raise UsageError("strip needs a path", why, "for example path=/api,strip")
    check = _check(said["check"][0]) if "check" in said else None
    return _rules(said), check


def _rules(found: Mapping[str, Sequence[str]]) -> Rules:
    one = {name: values[0] for name, values in found.items()}
    requests, per_s = _requests(one["requests"]) if "requests" in one else (0, 0)
    return Rules(
        _networks("allow", found.get("allow", [])),
        _networks("deny", found.get("deny", [])),
        _duration(one["expires"]) if "expires" in one else 0,
        0,
        requests,
        per_s,
        _size(one["max-body"]) if "max-body" in one else None,
        _path(one.get("path", "")),
        "strip" in one,
        _group(one["group"]) if "group" in one else "",
    )


_EXAMPLES: Final = {
    "allow": "allow=198.51.100.0/24",
    "deny": "deny=198.51.100.7",
    "expires": "expires=2h, with s, m, h or d",
    "requests": "requests=10/s, or per m or h",
    "max-body": "max-body=10M, with K, M or G",
    "path": "path=/api",
    "strip": "path=/api,strip",
    "group": "group=blue",
    "check": "check=/healthz or check=tcp",
}


def _wrong(name: str, text: str, why: str = "") -> UsageError:
    what = f"{name}={text} cannot be read"
    return UsageError(what, why, f"for example {_EXAMPLES[name]}")


def _networks(name: str, texts: Sequence[str]) -> tuple[Network, ...]:
    if len(texts) > MAX_NETWORKS:
        raise UsageError(f"{name} has more than {MAX_NETWORKS} networks")
    return tuple(_network(name, text) for text in texts)


def _network(name: str, text: str) -> Network:
    try:
        return parse_network(text)
    except UsageError as error:
        raise _wrong(name, text, error.cause) from None


def _duration(text: str) -> int:
    found = re.fullmatch(r"([0-9]{1,9})([smhd])", text)
    seconds = int(found[1]) * _UNITS_S[found[2]] if found else 0
    if not 0 < seconds <= _MAX_U32:
        raise _wrong("expires", text)
    return seconds


def _requests(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"([0-9]{1,9})/([smh])", text)
    if found is None or not int(found[1]):
        raise _wrong("requests", text)
    return int(found[1]), _UNITS_S[found[2]]


def _size(text: str) -> int:
    found = re.fullmatch(r"([0-9]{1,9})([kmg]?)", text.lower())
    if found is None:
        raise _wrong("max-body", text)
    return int(found[1]) * _UNITS_BYTES[found[2]]


def _path(text: str) -> str:
    path = text.removesuffix("/")
    if path and not is_path(path):
        raise _wrong("path", text, "it is made of whole segments, without % . and ..")
    return path


def _group(text: str) -> str:
    if not is_group(text):
        raise _wrong("group", text, "at most 63 letters, digits, dots, - and _")
    return text


def _check(text: str) -> Check:
    if text == "tcp":
        return Check()
    if not re.fullmatch(r"/[!-~]*", text):
        raise _wrong("check", text)
    return Check(text)
