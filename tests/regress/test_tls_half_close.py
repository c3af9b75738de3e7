"""An end of ours must not cut off what a TLS visitor has sent and nobody has read."""

from __future__ import annotations

import ssl

import trio
import trio.testing
import trustme

from tunnel.net.tls_stream import TlsStream

SENT_BYTES = 200_000


def contexts() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    authority = trustme.CA()
    client, server = (
        ssl.create_default_context(),
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER),
    )
    authority.configure_trust(client)
    authority.issue_cert("a.test").configure_cert(server)
    return client, server


async def test_what_waits_is_read_after_our_end() -> None:
    client, server = contexts()
    near, far = trio.testing.memory_stream_pair()
    visitor = trio.SSLStream(near, client, server_hostname="a.test")
    ours = TlsStream(far, server)

    async def talk() -> None:
        await visitor.do_handshake()
        await visitor.send_all(bytes(SENT_BYTES))

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(talk)
            await ours.handshake()
        got = len(await ours.receive_some(1_000))
        await ours.send_eof()
        while got < SENT_BYTES:
            data = await ours.receive_some()
            assert data, f"ended after {got} bytes"
            got += len(data)
    assert got == SENT_BYTES
