"""One user and password in front of a service (RFC 7617)."""

from __future__ import annotations

import base64
import binascii
import hmac
import math
import secrets
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from tunnel.front.http.pages import HttpError

if TYPE_CHECKING:
    from tunnel.front.http.server import Request
    from tunnel.front.login import Login


@dataclass(frozen=True, slots=True, repr=False)
class Guard:
    """One user and password, asked for with Basic authentication (RFC 7617)."""

    user: str
    password: str

    def check(self, request: Request, login: Login) -> None:
        """Return if the request brings both.

        Args:
            request: what came.
            login: of its visitor.

        Raises:
            HttpError: 401; 429 if they were wrong too often from that address.
        """
        if request.value(b"authorization"):
            if wait_s := login.wait_s():
                raise HttpError(
                    HTTPStatus.TOO_MANY_REQUESTS,
                    "too many wrong passwords came from this address",
                    headers=[("Retry-After", str(math.ceil(wait_s)))],
                )
            if login.said(right=self._is_right(request)):
                return
        raise HttpError(
            HTTPStatus.UNAUTHORIZED,
            "a user and a password are needed",
            headers=[("WWW-Authenticate", 'Basic realm="tunnel", charset="UTF-8"')],
        )

    def _is_right(self, request: Request) -> bool:
        scheme, _, word = request.value(b"authorization").partition(b" ")
        try:
            given = base64.b64decode(word.strip(), validate=True)
        except binascii.Error:
            given = b""
        wanted = f"{self.user}:{self.password}".encode()
        # Both of one length, so that not even the length shows in the time.
        same = hmac.compare_digest(_digest(given), _digest(wanted))
        return same and scheme.lower() == b"basic"


def _digest(secret: bytes) -> bytes:
    return hmac.digest(_KEY, secret, "sha256")


_KEY: Final = secrets.token_bytes(32)
