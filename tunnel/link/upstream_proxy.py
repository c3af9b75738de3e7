"""The way to a center-server through a proxy: HTTP CONNECT, SOCKS5 or SOCKS4a.

The proxy sees the server's name and TLS bytes, nothing else: key and token are checked
behind it as on a direct wire. The proxy resolves names, for a machine that needs a
proxy often cannot.

SOCKS is left to python-socks. Its HTTP side takes whatever the first read brings for
the whole answer, and would leave the rest of the head to the TLS handshake: CONNECT is
therefore spoken with h11.
"""

from __future__ import annotations

import base64
import os
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import unquote, urlsplit

import trio

from tunnel.addresses import Address
from tunnel.errors import Code, LocalLinkError, UsageError, ViaError
from tunnel.link.transport import DIAL_S, dial, tune_link
from tunnel.net.sockets import FastSocket
from tunnel.words import is_utf_8, printable

_SOCKS: Final = ("socks5", "socks5h", "socks4", "socks4a")
_HTTP: Final = "http"
_HEAD_BYTES: Final = 16_384
"""Of a proxy's answer: more is no answer to CONNECT."""


@dataclass(frozen=True, slots=True)
class UpstreamProxy:
    """A proxy on the way; its text never shows the password."""

    scheme: str
    host: str
    port: int
    user: str | None = None
    password: str = field(default="", repr=False)
    named: str = "--via"
    """The flag or variable that named it, for texts that say what to change."""

    @classmethod
    def parse(cls, url: str) -> UpstreamProxy:
        """Read ``http://[USER:PASSWORD@]HOST:PORT``, ``socks5://…`` or ``socks4://…``.

        Raises:
            UsageError: it is none of those. The text does not repeat the URL, which
                may hold a password.
        """
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError:
            why = "its host or port cannot be read; an IPv6 address stands in brackets"
            raise _unreadable(why) from None
        if not is_utf_8(url):
            raise _unreadable("it is not in UTF-8")
        if parts.scheme not in (_HTTP, *_SOCKS):
            named = parts.scheme or "no scheme"
            raise _unreadable(f"{named}: only http, socks5 and socks4 are known")
        if not host or not port or parts.path.strip("/") or parts.query:
            raise _unreadable("it names no host and port, or more than those")
        user = None if parts.username is None else unquote(parts.username)
        password = unquote(parts.password or "")
        if parts.scheme in _SOCKS and not all(map(_is_for_socks, (user, password))):
            why = "for SOCKS a user and a password are ASCII, at most 255 letters each"
            raise _unreadable(why)
        return cls(parts.scheme, host, port, user, password)

    def __str__(self) -> str:
        return f"{self.scheme}://{Address(self.host, self.port)}"


def _is_for_socks(word: str | None) -> bool:
    return not word or (word.isascii() and word.isprintable() and len(word) < 256)


def _unreadable(cause: str) -> UsageError:
    return UsageError(
        "the URL of the proxy cannot be used",
        cause,
        "for example --via http://USER:PASSWORD@proxy.lan:3128, or socks5://proxy:1080",
    )


async def dial_through(via: UpstreamProxy, host: str, port: int) -> FastSocket:
    """Connect to a center-server through a proxy; at most 10 s.

    Raises:
        ViaError: the proxy does not accept our user.
        LocalLinkError: with the cause in words and what can be done.
    """
    where = str(Address(host, port))
    try:
        with trio.fail_after(DIAL_S):
            if via.scheme == _HTTP:
                return await _through_http(via, where)
            stream = await _through_socks(via, host, port, where)
    except trio.TooSlowError as error:
        raise LocalLinkError(
            Code.LINK_LOST,
            f"cannot reach {where} through {via}: no answer within 10 s",
            "the proxy, or the server behind it, is silent",
            f"check the port of {via.named}, and whether the server is up",
        ) from error
    tune_link(stream)
    return stream


# HTTP --------------------------------------------------------------------------------


async def _through_http(via: UpstreamProxy, where: str) -> FastSocket:
    try:
        stream = await dial(via.host, via.port)
    except LocalLinkError as error:
        raise _proxy_not_reached(via, error.what.rpartition(": ")[2]) from error
    try:
        await _ask_http(stream, via, where)
    except BaseException as error:
        await trio.aclose_forcefully(stream)
        if isinstance(error, trio.BrokenResourceError):
            raise _no_proxy(via, where, "it broke the connection") from error
        raise
    return stream


async def _ask_http(stream: FastSocket, via: UpstreamProxy, where: str) -> None:
    import h11

    talk = h11.Connection(h11.CLIENT, max_incomplete_event_size=_HEAD_BYTES)
    headers = [("Host", where)]
    if via.user is not None:
        pair = base64.b64encode(f"{via.user}:{via.password}".encode()).decode()
        headers.append(("Proxy-Authorization", f"Basic {pair}"))
    try:
        request = talk.send(
            h11.Request(method="CONNECT", target=where, headers=headers)
        )
        await stream.send_all((request or b"") + (talk.send(h11.EndOfMessage()) or b""))
        while not isinstance(answer := talk.next_event(), h11.Response):
            if answer is h11.NEED_DATA:
                talk.receive_data(await stream.receive_some(_HEAD_BYTES))
            elif not isinstance(answer, h11.InformationalResponse):
                raise h11.RemoteProtocolError("the connection ended without an answer")
    except h11.ProtocolError as error:
        # h11 raises it from a frame that knows it: a cycle, each time.
        why = "it does not answer in HTTP"
        raise _no_proxy(via, where, why) from error.with_traceback(None)
    if 200 <= answer.status_code < 300:
        if talk.trailing_data[0]:  # the server behind it never speaks first
            raise _no_proxy(via, where, "it sent bytes of its own")
        return
    said = printable(f"{answer.status_code} {answer.reason.decode('latin-1')}".strip())
    if answer.status_code == 407:
        raise _not_our_user(via, said)
    raise _refused(via, where, said)


# SOCKS -------------------------------------------------------------------------------


async def _through_socks(
    via: UpstreamProxy, host: str, port: int, where: str
) -> FastSocket:
    import python_socks
    from python_socks.async_.trio import Proxy

    kind = python_socks.ProxyType[via.scheme[:6].upper()]
    proxy = Proxy(kind, via.host, via.port, via.user, via.password, rdns=True)
    try:
        return FastSocket.of(await proxy.connect(host, port, timeout=DIAL_S))
    except python_socks.ProxyTimeoutError as error:
        raise trio.TooSlowError from error
    except python_socks.ProxyConnectionError as error:
        number = error.errno or 0  # negative: the resolver's
        why = os.strerror(number).lower() if number > 0 else f"{via.host} is not known"
        raise _proxy_not_reached(via, why) from error
    except python_socks.ProxyError as error:
        if "uthentication" in str(error) or "No acceptable" in str(error):
            raise _not_our_user(via, printable(str(error))) from error
        raise _refused(via, where, printable(str(error))) from error
    except OSError as error:
        raise _no_proxy(via, where, "it broke the connection") from error
    except UnicodeError as error:  # of the name that it says it is bound to
        raise _no_proxy(via, where, "its answer cannot be read") from error


# Errors ------------------------------------------------------------------------------


def _proxy_not_reached(via: UpstreamProxy, why: str) -> LocalLinkError:
    return LocalLinkError(
        Code.LINK_LOST,
        f"cannot reach the proxy {via}: {why}",
        "nothing was sent to the server",
        f"check {via.named}: is the proxy up, and is this its port?"
        + (" --via none goes without" if via.named != "--via" else ""),
    )


def _not_our_user(via: UpstreamProxy, said: str) -> ViaError:
    scheme, _, rest = str(via).partition("://")
    return ViaError(
        Code.LINK_LOST,
        f"the proxy {via} does not let us through: {said}",
        "it wants a user and a password"
        if via.user is None
        else f"it does not know the user {via.user!r}, or not this password",
        f"{via.named}{'=' if via.named[0] != '-' else ' '}"
        f"{scheme}://USER:PASSWORD@{rest}",
    )


def _refused(via: UpstreamProxy, where: str, said: str) -> LocalLinkError:
    return LocalLinkError(
        Code.LINK_LOST,
        f"the proxy {via} does not reach {where}: {said}",
        "the server is down, its name is unknown there, or the proxy forbids this port",
        "many proxies let only port 443 through: tunnel serve --listen 443",
    )


def _no_proxy(via: UpstreamProxy, where: str, why: str) -> LocalLinkError:
    return LocalLinkError(
        Code.LINK_LOST,
        f"cannot reach {where} through {via}: {why}",
        "it is no such proxy, or does not serve us",
        f"check the scheme and the port of {via.named}",
    )
