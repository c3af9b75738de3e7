"""One request as the front ends see it: for whom it is, and what its fields say."""

from __future__ import annotations

import re
from functools import lru_cache
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, NamedTuple

from tunnel.front.http.heads import tokens, values
from tunnel.front.http.pages import HttpError, bad_request

if TYPE_CHECKING:
    from tunnel.front.http.heads import RequestHead

_HOST: Final = re.compile(
    r"(?P<host>\[[0-9a-f:.]+\]|[a-z0-9_](?:[a-z0-9_.-]{0,251}[a-z0-9_])?)\.?"
    r"(?P<port>:[0-9]{0,5})?"
)


class Request(NamedTuple):
    """The head of one request."""

    head: RequestHead
    method: str
    target: str
    """Path and query, or ``*``; never with a host."""
    host: str
    """Lower case, without port and last dot; empty if none was named."""
    authority: str
    """The host as the visitor wrote it, with its port."""

    def value(self, name: bytes) -> bytes:
        """Return a header that should stand once; empty if it is not there.

        Raises:
            HttpError: 400, it is there more than once.
        """
        found = values(self.head.fields, name)
        if len(found) > 1:
            raise bad_request(f"there is more than one {name.decode()} header")
        return found[0] if found else b""

    def words(self, name: bytes) -> list[str]:
        """Return the members of a list header, in lower case."""
        return [word.decode("latin-1") for word in tokens(self.head.fields, name)]


def by_name(head: RequestHead) -> Request:
    """Read whom a request is for: the target in absolute form wins over Host."""
    method, target = head.method.decode("ascii"), head.target.decode("ascii")
    if method in ("CONNECT", "TRACE"):
        raise HttpError(
            HTTPStatus.METHOD_NOT_ALLOWED, f"{method} is not served here", close=True
        )
    hosts = values(head.fields, b"host")
    authority = hosts[0].decode("latin-1") if hosts else ""
    if not (target.startswith("/") or (target == "*" and method == "OPTIONS")):
        target, authority = _from_absolute(target)
    return Request(head, method, target, host_of(authority) if authority else "",
                   authority)  # fmt: skip


def _from_absolute(target: str) -> tuple[str, str]:
    """Return path and authority of an absolute form (RFC 9112 §3.2.2)."""
    scheme, sign, rest = target.partition("://")
    if not sign or scheme.lower() not in ("http", "https"):
        raise bad_request("the request names no path")
    authority = re.split("[/?#]", rest, maxsplit=1)[0]
    path = rest[len(authority) :]
    authority = authority.rpartition("@")[2]  # nobody behind is to know a password
    if not authority:
        raise bad_request("the host is empty")
    return path if path.startswith("/") else "/" + path, authority


@lru_cache(maxsize=1024)
def host_of(authority: str) -> str:
    """Return the host of ``HOST[:PORT]``: lower case, without port and last dot.

    Raises:
        HttpError: 400, it is no host.
    """
    found = _HOST.fullmatch(authority.lower())
    if found is None:
        raise bad_request("the host is not a name")
    return found["host"].strip("[]")
