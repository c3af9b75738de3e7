"""Who is heard at the page's port: the holder of the token, on the page itself.

Other programs of this machine reach the port, and so do the pages of other sites, by
way of a browser here. The token keeps out both; the rest is for a token that leaks:

* Host is a loopback name or an address: a name of somebody's own, which leads here
  (DNS rebinding), is none of those.
* Origin and Sec-Fetch-Site, which browsers set and pages cannot, are of this page.
* A question is JSON by POST, which no form and no link of another site can send.
"""

from __future__ import annotations

from hmac import compare_digest
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from tunnel.addresses import is_localhost, parse_ip
from tunnel.front.http.heads import values
from tunnel.front.http.pages import HttpError

if TYPE_CHECKING:
    from tunnel.front.http.request import Request
    from tunnel.front.login import Login

_SCHEME: Final = b"bearer "
_OWN_SITE: Final = (b"", b"same-origin", b"none")
HEADERS: Final = (
    b"Cache-Control: no-store",
    b"Content-Security-Policy: default-src 'none'; script-src 'self'; style-src 'self';"
    b" img-src 'self' data: blob:; connect-src 'self'; frame-src 'self' blob: data:;"
    b" base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    b"Cross-Origin-Opener-Policy: same-origin",
    b"Cross-Origin-Resource-Policy: same-origin",
    b"Referrer-Policy: no-referrer",
    b"X-Content-Type-Options: nosniff",
)
"""Of every answer: the page runs its own scripts only, and is in nobody's frame."""


class Gate:
    """Decides about each request.

    Args:
        token: what ``Authorization: Bearer`` has to say.
        chosen: its owner chose it. So it may be guessed, and guesses are slowed down;
            and the page may be asked for by any name, as behind a proxy of one's own.
    """

    def __init__(self, token: str, *, chosen: bool) -> None:
        self._token = token.encode()
        self._chosen = chosen

    def check_site(self, request: Request) -> None:
        """Refuse a request that comes by somebody else's page.

        Raises:
            HttpError: 403.
        """
        host = request.host
        if not (self._chosen or is_localhost(host) or parse_ip(host) is not None):
            raise _forbidden("this page is not asked for by that name")
        origin = request.value(b"origin").lower()
        if origin:
            own = request.authority.lower().encode("latin-1")
            if origin not in (b"http://" + own, b"https://" + own):
                raise _forbidden("another site's page is not heard here")

    def check(self, request: Request, login: Login) -> None:
        """Refuse a question or an action of somebody else.

        Raises:
            HttpError: 401 without the right token, 403 from elsewhere, 405 if it is no
                POST, 415 if it is no JSON, 429 after many wrong tokens.
        """
        self.check_site(request)
        if request.value(b"sec-fetch-site") not in _OWN_SITE:
            raise _forbidden("another site's page is not heard here")
        if request.method != "POST":
            raise HttpError(
                HTTPStatus.METHOD_NOT_ALLOWED, "questions and actions are POST",
                headers=[("Allow", "POST")],
            )  # fmt: skip
        kind = request.value(b"content-type").partition(b";")[0].strip().lower()
        if kind != b"application/json":
            raise HttpError(
                HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "a question is application/json"
            )
        self._check_token(request, login)

    def _check_token(self, request: Request, login: Login) -> None:
        said = values(request.head.fields, b"authorization")
        value = said[0] if len(said) == 1 else b""
        is_bearer = value[: len(_SCHEME)].lower() == _SCHEME
        if is_bearer:
            # One of ours is not guessed: nobody can lock its owner out by trying.
            if self._chosen and (wait_s := login.wait_s()):
                raise HttpError(
                    HTTPStatus.TOO_MANY_REQUESTS, "too many wrong tokens",
                    headers=[("Retry-After", str(int(wait_s) + 1))],
                )  # fmt: skip
            right = compare_digest(value[len(_SCHEME) :].strip(b" "), self._token)
            if right or (self._chosen and login.said(right=right)):
                return
        raise HttpError(
            HTTPStatus.UNAUTHORIZED, "`tunnel dashboard` prints the URL with the token",
            headers=[("WWW-Authenticate", "Bearer")],
        )  # fmt: skip


def _forbidden(words: str) -> HttpError:
    return HttpError(HTTPStatus.FORBIDDEN, words)
