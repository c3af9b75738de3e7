"""One user and password in front of a service (RFC 7617)."""

from __future__ import annotations

import base64
import binascii
import hmac
import math
import secrets
import time
from dataclasses import dataclass
from enum import Enum
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from tunnel.front.http.login_cookie import cookie_key, is_login, set_cookie
from tunnel.front.http.pages import HttpError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tunnel.front.http.forwarded import Origin
    from tunnel.front.http.request import Request
    from tunnel.front.login import Login


class Admitted(Enum):
    """Why a request may go on."""

    BY_LOGIN = "it brings the user and the password"
    BY_COOKIE = "it brings the cookie of one that did"
    AS_PREFLIGHT = "it is a CORS preflight, which browsers send without them"


@dataclass(frozen=True, slots=True, repr=False)
class Guard:
    """One user and password, asked for with Basic authentication (RFC 7617)."""

    user: str
    password: str
    keeps_header: bool = False
    """The target gets the Authorization too."""
    cors: bool = False
    """Preflights go on without it (Fetch §4.8)."""

    def check(
        self, request: Request, login: Login, cookies: Iterable[bytes] = ()
    ) -> Admitted:
        """Return if the request brings both, or needs neither.

        Args:
            request: what came.
            login: of its visitor.
            cookies: values of its login cookies.

        Raises:
            HttpError: 401; 429 if they were wrong too often from that address.
        """
        if self.cors and _is_preflight(request):
            return Admitted.AS_PREFLIGHT
        for cookie in cookies:
            key = cookie_key(self.user, self.password)
            if is_login(cookie, key, request.host, time.time()):
                return Admitted.BY_COOKIE
        if request.value(b"authorization"):
            if wait_s := login.wait_s():
                raise HttpError(
                    HTTPStatus.TOO_MANY_REQUESTS,
                    "too many wrong passwords came from this address",
                    headers=[("Retry-After", str(math.ceil(wait_s)))],
                )
            if login.said(right=self.is_right(request)):
                return Admitted.BY_LOGIN
        raise HttpError(
            HTTPStatus.UNAUTHORIZED,
            "a user and a password are needed",
            headers=[("WWW-Authenticate", 'Basic realm="tunnel", charset="UTF-8"')],
        )

    def cookie(self, request: Request, origin: Origin) -> bytes:
        """Return the Set-Cookie line that lets a request's visitor in again."""
        key = cookie_key(self.user, self.password)
        return set_cookie(key, request.host, origin, time.time())

    def is_right(self, request: Request) -> bool:
        """Say whether the request's Authorization is this user and password."""
        scheme, _, word = request.value(b"authorization").partition(b" ")
        try:
            given = base64.b64decode(word.strip(), validate=True)
        except binascii.Error:
            given = b""
        wanted = f"{self.user}:{self.password}".encode()
        # Both of one length, so that not even the length shows in the time.
        same = hmac.compare_digest(_digest(given), _digest(wanted))
        return same and scheme.lower() == b"basic"


def _is_preflight(request: Request) -> bool:
    """Say whether it is one that a browser makes: without a body or a password."""
    head = request.head
    return (
        request.method == "OPTIONS"
        and head.body.size == 0
        and not head.upgrade
        and bool(request.value(b"origin"))
        and bool(request.value(b"access-control-request-method"))
        and not request.value(b"authorization")
    )


def _digest(secret: bytes) -> bytes:
    return hmac.digest(_KEY, secret, "sha256")


_KEY: Final = secrets.token_bytes(32)
