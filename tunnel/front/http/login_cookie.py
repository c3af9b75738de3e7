"""The cookie of a browser that has brought the password once. Sans-IO.

Browsers send a password that they know with pages, but Safari not with WebSockets, and
none with what a page asks for with an Authorization of its own. The cookie says when it
ends, and a signature over that and the name of the site. Its key comes from user and
password alone: all clients that publish one name with them accept it, and another
password ends it.
"""

from __future__ import annotations

import hashlib
import hmac
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from tunnel.proto.proofs import to_base64url

if TYPE_CHECKING:
    from tunnel.front.http.forwarded import Origin

LIFE_S: Final = 7 * 86_400
"""Who has asked a week ago is asked again; browsers forget it when they end."""
MAX_VALUE_BYTES: Final = 64
"""Ours has 54."""
_SALT: Final = b"tunnel login cookie"
_COST: Final = 2**14
"""Of scrypt, with 8 blocks: 16 MiB and 0.1 s for each password that somebody tries who
has found a cookie."""
_MAX_KEYS: Final = 4_096
"""More than a client has entries: strangers must not have one made again and again."""


@lru_cache(maxsize=_MAX_KEYS)
def cookie_key(user: str, password: str) -> bytes:
    """Return the key of a site's cookies; the first time for each takes 0.1 s."""
    secret = f"{user}:{password}".encode()
    return hashlib.scrypt(secret, salt=_SALT, n=_COST, r=8, p=1, dklen=32)


def set_cookie(key: bytes, host: str, origin: Origin, now: float) -> bytes:
    """Return the Set-Cookie line for a visitor of ``host``.

    Args:
        key: see ``cookie_key``.
        host: the name of the site, as ``Request.host`` has it.
        origin: says whether the visitor came over https.
        now: seconds since 1970.
    """
    until = int(now) + LIFE_S
    value = f"{until}.{_signature(key, host, until)}"
    secure = "; Secure" if origin.proto == "https" else ""
    words = f"{value}; Path=/; HttpOnly; SameSite=Lax{secure}"
    return b"Set-Cookie: %b=%b" % (_name(origin), words.encode())


def is_login(value: bytes, key: bytes, host: str, now: float) -> bool:
    """Say whether a cookie's value was given for this site, and still holds."""
    until, dot, signature = value.partition(b".")
    if not (dot and until.isdigit() and len(value) <= MAX_VALUE_BYTES):
        return False
    wanted = _signature(key, host, int(until)).encode()
    return hmac.compare_digest(signature, wanted) and now < int(until)


def take_cookie(lines: list[bytes], origin: Origin) -> tuple[list[bytes], list[bytes]]:
    """Part the login cookie from the field lines of a request.

    Returns:
        The lines without any that has its name, over http or https; and the values of
        those that are for this visitor's scheme.
    """
    name = _name(origin)
    values: list[bytes] = []
    left: list[bytes] = []
    for line in lines:
        if line[:7].lower() != b"cookie:" or _PLAIN not in line:
            left.append(line)
            continue
        kept = []
        for pair in line[7:].split(b";"):
            key, _, value = pair.strip(b" \t").partition(b"=")
            if key == name:
                values.append(value)
            if key not in (_PLAIN, _SECURE):
                kept.append(pair.strip(b" \t"))
        if any(kept):
            left.append(b"Cookie: " + b"; ".join(kept))
    return left, values


_PLAIN: Final = b"tunnel-login"
_SECURE: Final = b"__Host-" + _PLAIN
"""Browsers take it over https only, and from no other host of the domain."""


def _name(origin: Origin) -> bytes:
    return _SECURE if origin.proto == "https" else _PLAIN


def _signature(key: bytes, host: str, until: int) -> str:
    return to_base64url(hmac.digest(key, f"{until} {host}".encode(), "sha256"))
