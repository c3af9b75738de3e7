"""What a center-client serves to visitors itself: a service, a folder, a proxy.

Neither secret nor decision is the server's, which carries bytes. The services work the
same behind a host name and behind a port.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

import trio

from tunnel.addresses import Address
from tunnel.center.direct import DirectStream
from tunnel.center.tls_target import TargetTls, TlsTarget, connect_tls
from tunnel.errors import Code, LocalStreamError, TlsError
from tunnel.front.dialer import Dialer
from tunnel.front.http.files import Folder
from tunnel.front.http.files import handle_visitor as handle_folder_visitor
from tunnel.front.http.login_cookie import cookie_key
from tunnel.front.http.names import by_streams, fault
from tunnel.front.http.overheard import Overheard
from tunnel.front.http.server import Visit
from tunnel.front.http.service import handle_service
from tunnel.front.http.service_rules import ServiceRules
from tunnel.front.proxy import handle_app
from tunnel.log import log_event
from tunnel.net.descriptors import DESCRIPTORS
from tunnel.net.dial import connect
from tunnel.proto.frames import TcpTarget

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from tunnel.access.networks import Networks
    from tunnel.access.proxy_users import ProxyUsers
    from tunnel.addresses import End
    from tunnel.center.exit.tcp import Hear, Serve
    from tunnel.front.http.guard import Guard
    from tunnel.front.http.observer import ServeSeen, Watch
    from tunnel.link.virtual import VirtualStream
    from tunnel.net.relay import ResettableStream
    from tunnel.proto.frames import Target

LOG: Final = logging.getLogger(__name__)
_NOBODY: Final = Address("unknown", 0)


def share_service(
    target: End,
    rules: ServiceRules,
    tls: TargetTls | None = None,
    *,
    by_name: bool,
    watch: Watch | None = None,
) -> Serve:
    """Serve visitors with an HTTP service, as the words of its entry want it.

    With ``tls`` the service is spoken to with TLS. Visitors that come ``by_name`` come
    through the server's HTTP port, which has written who they are; what those of a port
    say is not believed. ``watch`` looks at the requests.
    """
    return _accepting(_service(target, rules, tls, by_name=by_name), watch)


def overhear(target: End, watch: Watch) -> Hear:
    """Return what tells ``watch`` of requests that are relayed as they come.

    The target is that of the relay: one that is asked again goes there, too.
    """
    watch.served_by(_service(target, ServiceRules(), None, by_name=True))
    return lambda visitor: Overheard(watch, visitor or _NOBODY)


def _service(
    target: End, rules: ServiceRules, tls: TargetTls | None, *, by_name: bool
) -> ServeSeen:
    if rules.guard is not None:  # now, for it takes a while, and not for a visitor
        cookie_key(rules.guard.user, rules.guard.password)

    async def open_one(visitor: Address) -> ResettableStream:
        sock = DirectStream(await connect(target, opened=DESCRIPTORS.admit))
        stream: ResettableStream
        stream = sock if tls is None else await _prove(sock, tls, target, visitor)
        return _as_http_1(stream, secure=tls is not None) if rules.http_2 else stream

    def serve(
        stream: trio.abc.HalfCloseableStream, peer: Address, watch: Watch | None
    ) -> Awaitable[None]:
        return serve_visit(Visit(stream, peer, watch=watch, http_2=http_2))

    def serve_visit(visit: Visit) -> Awaitable[None]:
        return handle_service(visit, rules, open_one, believe_headers=by_name)

    # By name it is our server that asks, in HTTP/1.1.
    http_2 = None if by_name else by_streams(serve_visit)
    return serve


def _as_http_1(stream: ResettableStream, *, secure: bool) -> ResettableStream:
    """Speak HTTP/2 to a target, and HTTP/1.1 to who uses it here."""
    from tunnel.front.http.h2.target import Http2Target  # 5 MB

    return Http2Target(stream, secure=secure)


async def _prove(
    sock: DirectStream, tls: TargetTls, target: End, visitor: Address
) -> TlsTarget:
    """Have a target prove who it is; raise what ``Open`` does, or an HttpError."""
    try:
        return await connect_tls(sock, tls)
    except TlsError as error:
        reason = f"{error.what}: {error.cause}" if error.cause else error.what
        log_event(LOG, logging.WARNING, "target.refused", target=str(target),
            peer=str(visitor), reason=reason)  # fmt: skip
        if error.code is Code.AUTH:
            raise fault("did not prove who it is") from None
        raise fault("does not speak TLS as it should") from None
    except trio.BrokenResourceError:
        what = f"{target} broke the connection within its TLS handshake"
        raise LocalStreamError(Code.RESET, what) from None
    except trio.TooSlowError:
        what = f"{target} did not answer within its TLS handshake"
        raise LocalStreamError(Code.TIMEOUT, what) from None


async def probe_tls(target: End, tls: TargetTls, timeout_s: float = 2) -> str:
    """Say what is wrong with the TLS of a target that answers; empty: nothing.

    To a certificate that is not trusted it adds the pin by which it would be.
    """
    try:
        with trio.fail_after(timeout_s):
            try:
                await _look(target, tls)
            except TlsError as error:
                why = f"{error.what} ({error.cause})" if error.cause else error.what
                if error.code is not Code.AUTH or tls.pin:
                    return why
                pin = await _look(target, TargetTls(tls.name, insecure=True))
                return f"{why}; say ca=FILE, or if this key is the right one pin={pin}"
    except (LocalStreamError, TlsError, trio.BrokenResourceError, trio.TooSlowError):
        return "the target does not answer within its TLS handshake"
    return ""


async def _look(target: End, tls: TargetTls) -> str:
    """Shake hands, and hang up; return the pin of the target's key."""
    stream = await connect_tls(DirectStream(await connect(target)), tls)
    stream.close()
    return stream.pin()


def share_folder(
    folder: Folder, guard: Guard | None, watch: Watch | None = None
) -> Serve:
    """Serve visitors with the files of a folder; ``watch`` looks at the requests."""

    def serve(
        stream: trio.abc.HalfCloseableStream, peer: Address, watch: Watch | None
    ) -> Awaitable[None]:
        return handle_folder_visitor(Visit(stream, peer, watch=watch), folder, guard)

    return _accepting(serve, watch)


def share_network(networks: Networks, users: ProxyUsers | None) -> Serve:
    """Serve visitors with a proxy into these networks of this machine.

    ``users`` is None only where just the server's own programs come.
    """

    async def open_target(target: Target) -> ResettableStream:
        if not isinstance(target, TcpTarget):
            raise LocalStreamError(Code.UNSUPPORTED, f"{target} is not offered")
        sock = await connect(
            target.address, allow=networks.allow, opened=DESCRIPTORS.admit
        )
        return DirectStream(sock)

    def serve(stream: VirtualStream) -> Awaitable[None]:
        stream.accept()
        peer = _visitor_of(stream)
        return handle_app(stream, Dialer(open_target), peer=peer, users=users)

    return serve


def _accepting(serve: ServeSeen, watch: Watch | None) -> Serve:
    """Return what accepts each visitor's stream and serves it."""
    if watch is not None:
        watch.served_by(serve)

    def accept(stream: VirtualStream) -> Awaitable[None]:
        stream.accept()
        return serve(stream, _visitor_of(stream) or _NOBODY, watch)

    return accept


def _visitor_of(stream: VirtualStream) -> Address | None:
    return stream.create.visitor if stream.create else None
