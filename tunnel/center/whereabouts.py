"""The server of a join line: reach it, check its key, ask whether it is there."""

from __future__ import annotations

import logging
from contextlib import suppress
from functools import cached_property
from hashlib import sha256
from typing import TYPE_CHECKING, Final

import trio

from tunnel.access.identity import pin_of
from tunnel.access.pins import Pins
from tunnel.access.tls import client_tls_context, show_certificate
from tunnel.addresses import Address
from tunnel.errors import Code, LinkError, StateError, TlsError, UsageError
from tunnel.link.transport import PlainTransport, TlsTransport, dial
from tunnel.link.upstream_proxy import dial_through
from tunnel.log import log_event
from tunnel.proto.proofs import PLAIN_BINDING

if TYPE_CHECKING:
    import ssl
    from pathlib import Path

    from tunnel.access.join import JoinLine
    from tunnel.link.transport import Transport
    from tunnel.link.upstream_proxy import UpstreamProxy

logger = logging.getLogger("tunnel.client")

LOOK_S: Final = 5.0
"""A server that answers does so within a round trip or three; nobody waits for this."""


class ClientTls:
    """The TLS of a client's links.

    Args:
        join: without a pin the server is verified as browsers do.
        certificate: a client certificate and its key, if one is shown.

    Raises:
        UsageError: a certificate for a link without TLS.
    """

    def __init__(self, join: JoinLine, certificate: tuple[Path, Path] | None) -> None:
        if join.plain and certificate is not None:
            raise UsageError("a link without TLS shows no client certificate")
        self._join = join
        self._certificate = certificate

    @cached_property
    def _context(self) -> ssl.SSLContext:
        """One for all links: the authorities of a system take 10 ms to load."""
        return client_tls_context(self._join.pin)

    def context(self, *, known: bool) -> ssl.SSLContext | None:
        """Return the context, with the certificate that the files hold by now.

        None for a plain link.

        Args:
            known: it was read before: where it cannot be read again, that one stays.

        Raises:
            StateError, UsageError: as ``show_certificate``.
        """
        if self._join.plain:
            return None
        if self._certificate is not None:
            try:
                show_certificate(self._context, *self._certificate)
            except (StateError, UsageError) as error:
                if not known:
                    raise
                log_event(logger, logging.WARNING, "certificate.not_read",
                    reason=error.what, cause=error.cause or None)  # fmt: skip
        return self._context


async def is_there(
    join: JoinLine, via: UpstreamProxy | None = None, pins: Pins | None = None
) -> bool:
    """Dial the address of a join line, and say whether its key answers within 5 s.

    Nothing is sent but the handshake of TLS; a line without a pin is never there.
    """
    with trio.move_on_after(LOOK_S), suppress(LinkError):
        transport = await reach(join, via, client_tls_context(join.pin))
        try:
            await secure(transport, pins or Pins(join.pin))
        finally:
            await transport.aclose()
        return join.pin is not None
    return False


async def reach(
    join: JoinLine,
    via: UpstreamProxy | None,
    tls: ssl.SSLContext | None,
    mss: int | None = None,
) -> Transport:
    """Connect to the server, or raise LinkError; without ``tls`` the link is plain."""
    if via is None:
        stream = await dial(join.host, join.port, mss)
    else:
        stream = await dial_through(via, join.host, join.port)
    peer = str(Address(join.host, join.port))
    if tls is None:
        return PlainTransport(stream, peer)
    return TlsTransport(stream, tls, server_side=False, host_name=join.host, peer=peer)


async def secure(transport: Transport, pins: Pins) -> tuple[bytes, str]:
    """Make the wire secure; return what the proofs are bound to, and the key's pin.

    Raises TlsError, before anything is sent, when the key is not a pinned one.
    """
    if not isinstance(transport, TlsTransport):
        return PLAIN_BINDING, ""
    await transport.handshake()
    certificate = transport.peer_certificate()
    if pins.current is None:
        return sha256(certificate).digest(), ""
    offered = pin_of(certificate)
    if not pins.match(offered):
        pinned = " or ".join(f"SHA256:{pin}" for pin in pins.accepted)
        fix = "compare with the fingerprint that `tunnel serve` prints, then `tunnel "
        fix += "join` its line, which `tunnel serve --print-join` prints too"
        if pins.why_not_its_own:
            fix = f"if it has its old key again: rm {pins.why_not_its_own}; else {fix}"
        raise TlsError(
            Code.AUTH,
            f"the key of {transport.peer} is not the pinned one; nothing was sent",
            f"pinned {pinned}, offered SHA256:{offered}: the server has changed its "
            "key while this client was away, or was set up anew, or somebody stands "
            "between you and it",
            fix,
        )
    return sha256(certificate).digest(), offered
