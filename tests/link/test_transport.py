from __future__ import annotations

import errno
import socket
import ssl
import threading
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing
import trustme
from support.certs import tls_contexts
from support.names import resolve_to
from support.wires import fused_wires, tls_pair

from tunnel.access.tls import client_tls_context
from tunnel.errors import Code, Exit, LocalLinkError, TlsError
from tunnel.link.transport import PlainTransport, TlsTransport, dial, send
from tunnel.net import dial as target
from tunnel.net.lookup import lookups

if TYPE_CHECKING:
    from tunnel.link.transport import Transport
    from tunnel.net.lookup import Found


async def read_exactly(transport: Transport, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = bytes(await transport.receive_some())
        assert piece, f"the end after {len(data)} of {size} bytes"
        data += piece
    return data


async def shake(
    client: ssl.SSLContext, server: ssl.SSLContext
) -> tuple[LocalLinkError | None, LocalLinkError | None]:
    """Give how the handshake went for the client and for the server."""
    ends = trio.testing.memory_stream_pair()
    sides = (
        TlsTransport(ends[0], client, server_side=False, host_name="tunnel.test"),
        TlsTransport(ends[1], server, server_side=True),
    )
    failures: dict[int, LocalLinkError] = {}

    async def one(who: int) -> None:
        try:
            await sides[who].handshake()
        except LocalLinkError as error:
            failures[who] = error
        finally:
            await sides[who].aclose()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(one, 0)
        nursery.start_soon(one, 1)
    return failures.get(0), failures.get(1)


# Plain -------------------------------------------------------------------------------


async def test_plain_pieces_arrive_in_order_and_then_the_end() -> None:
    left, right = trio.testing.memory_stream_pair()
    ours, theirs = PlainTransport(left), PlainTransport(right)
    await send(ours, [b"one", memoryview(b"two"), bytearray(b"three")])
    await send(ours, [])
    await ours.send_eof()
    assert await read_exactly(theirs, 11) == b"onetwothree"
    assert await theirs.receive_some() == b""
    await send(theirs, [b"still here"])
    assert await read_exactly(ours, 10) == b"still here"


async def test_a_broken_plain_wire_is_an_end_for_the_reader() -> None:
    class Broken(trio.abc.ReceiveStream):
        async def receive_some(self, max_bytes: int | None = None) -> bytes:
            raise trio.BrokenResourceError

        async def aclose(self) -> None:
            pass

    left, _right = trio.testing.memory_stream_pair()
    wire = trio.StapledStream(left.send_stream, Broken())
    assert await PlainTransport(wire).receive_some() == b""


async def test_a_broken_plain_wire_is_a_lost_link_for_the_writer() -> None:
    left, right = trio.testing.memory_stream_pair()
    await right.aclose()
    with pytest.raises(LocalLinkError) as raised:
        await send(PlainTransport(left), [b"x"])
    assert raised.value.code is Code.LINK_LOST


# TLS ---------------------------------------------------------------------------------


async def test_tls_carries_bytes_both_ways() -> None:
    client, server = await tls_pair(
        *trio.testing.memory_stream_pair(), contexts=tls_contexts()
    )
    await send(client, [b"to ", b"the server"])
    await send(server, [b"to the client"])
    assert await read_exactly(server, 13) == b"to the server"
    assert await read_exactly(client, 13) == b"to the client"
    assert client.encrypted
    assert server.encrypted


async def test_tls_carries_a_write_of_many_records_whole() -> None:
    client, server = await tls_pair(
        *trio.testing.memory_stream_pair(), contexts=tls_contexts()
    )
    data = bytes(range(256)) * 8_192
    await send(client, [data[:1_000_000], data[1_000_000:]])
    assert await read_exactly(server, len(data)) == data


async def test_an_empty_write_is_no_end() -> None:
    client, server = await tls_pair(
        *trio.testing.memory_stream_pair(), contexts=tls_contexts()
    )
    await send(client, [])
    await send(client, [b""])
    await send(client, [b"more"])
    assert await read_exactly(server, 4) == b"more"


@pytest.mark.parametrize("split", [1, 2, 3, 5, 17, 1000])
async def test_tls_works_however_its_bytes_are_split(split: int) -> None:
    left, right, _, _ = fused_wires(split=split)
    client, server = await tls_pair(left, right, tls_contexts())
    await send(client, [b"question" * 1000])
    assert await read_exactly(server, 8_000) == b"question" * 1000
    await send(server, [b"answer"])
    assert await read_exactly(client, 6) == b"answer"


async def test_the_clients_side_sees_the_servers_certificate() -> None:
    contexts = tls_contexts()
    client, _server = await tls_pair(
        *trio.testing.memory_stream_pair(), contexts=contexts
    )
    der = ssl.DER_cert_to_PEM_cert(client.peer_certificate())
    assert der.startswith("-----BEGIN CERTIFICATE-----")


@pytest.mark.parametrize("code", ["close_notify", "cut"])
async def test_the_end_of_tls_is_an_end_whether_it_was_said_or_not(code: str) -> None:
    left, right = trio.testing.memory_stream_pair()
    client, server = await tls_pair(left, right, tls_contexts())
    await send(client, [b"last words"])
    if code == "close_notify":
        await client.send_eof()
    else:
        await left.send_stream.aclose()
    assert await read_exactly(server, 10) == b"last words"
    assert await server.receive_some() == b""
    assert await server.receive_some() == b""


async def test_a_damaged_record_is_an_end_and_hides_no_byte_before_it() -> None:
    left, right = trio.testing.memory_stream_pair()
    client, server = await tls_pair(left, right, tls_contexts())
    await send(client, [b"whole"])
    await left.send_all(b"\x17\x03\x03\x00\x20" + bytes(32))
    assert await read_exactly(server, 5) == b"whole"
    assert await server.receive_some() == b""


async def test_after_our_end_the_peer_may_go_on() -> None:
    left, right = trio.testing.memory_stream_pair()
    client, server = await tls_pair(left, right, tls_contexts())
    await client.send_eof()
    assert await server.receive_some() == b""
    await send(server, [b"I was not done"])
    assert await read_exactly(client, 14) == b"I was not done"


async def test_tls_cut_at_any_byte_of_the_handshake_is_an_error_on_both_sides() -> None:
    contexts = tls_contexts()

    async def attempt(up: float, down: float) -> tuple[int, int, int]:
        client, server, fuse_up, fuse_down = fused_wires(up, down)
        failed = []
        sides = (
            TlsTransport(
                client, contexts[0], server_side=False, host_name="tunnel.test"
            ),
            TlsTransport(server, contexts[1], server_side=True),
        )

        async def one(side: TlsTransport) -> None:
            try:
                await side.handshake()
            except LocalLinkError as error:
                failed.append(error)

        async with trio.open_nursery() as nursery:
            for side in sides:
                nursery.start_soon(one, side)
        return fuse_up.passed, fuse_down.passed, len(failed)

    up, down, failed = await attempt(1e9, 1e9)
    assert failed == 0
    for cut in range(0, down, 41):
        assert (await attempt(1e9, cut))[2] == 2
    for cut in range(0, up, 41):
        # The client is done when it has sent its last word.
        assert (await attempt(cut, 1e9))[2] >= 1


@pytest.mark.parametrize("who", ["client", "server"])
async def test_without_our_alpn_there_is_no_link(who: str) -> None:
    contexts = tls_contexts(**{f"{who}_alpn": None})
    client, server = await shake(*contexts)
    assert isinstance(client, TlsError)
    assert isinstance(server, TlsError)
    assert "ALPN prot/1" in client.what
    assert client.exit_status is Exit.TLS


async def test_another_alpn_is_refused() -> None:
    client, server = await shake(*tls_contexts(client_alpn="h2"))
    assert isinstance(client, TlsError)
    assert isinstance(server, TlsError)


async def test_an_older_tls_is_refused() -> None:
    client, server = tls_contexts()
    client.minimum_version = ssl.TLSVersion.TLSv1_2
    client.maximum_version = ssl.TLSVersion.TLSv1_2
    for error in await shake(client, server):
        assert isinstance(error, TlsError)


async def test_an_unknown_certificate_is_refused_in_words() -> None:
    _, server = tls_contexts()
    client = ssl.create_default_context()
    client.set_alpn_protocols(["prot/1"])
    error, _ = await shake(client, server)
    assert isinstance(error, TlsError)
    assert "unable to get local issuer" in error.what


@pytest.mark.parametrize(
    ("name", "not_after", "why"),
    [
        ("tunnel.test", datetime.now(UTC) - timedelta(days=1), "expired"),
        ("other.test", None, "not valid for 'tunnel.test'"),
        ("*.tunnel.test", None, "not valid for 'tunnel.test'"),
    ],
)
async def test_a_certificate_of_another_time_or_host_is_refused_in_words(
    name: str, not_after: datetime | None, why: str
) -> None:
    """Where there is no pin, and the web's authorities decide."""
    authority = trustme.CA()
    client, server = client_tls_context(None), tls_contexts()[1]
    authority.configure_trust(client)
    authority.issue_cert(name, not_after=not_after).configure_cert(server)
    error, _ = await shake(client, server)
    assert isinstance(error, TlsError)
    assert why in error.what + error.cause
    good = tls_contexts()[1]
    authority.issue_cert("tunnel.test").configure_cert(good)
    assert await shake(client, good) == (None, None)


async def test_what_is_no_tls_is_refused() -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    server = TlsTransport(ours, tls_contexts()[1], server_side=True)
    await theirs.send_all(b"GET / HTTP/1.1\r\n\r\n")
    with pytest.raises(TlsError):
        await server.handshake()


async def test_a_peer_that_leaves_the_handshake_is_a_lost_link_and_no_fault() -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    client = TlsTransport(
        ours, tls_contexts()[0], server_side=False, host_name="tunnel.test"
    )
    await theirs.send_stream.aclose()
    with pytest.raises(LocalLinkError) as raised:
        await client.handshake()
    # A pin or a certificate that does not fit is final; a full server is not.
    assert not isinstance(raised.value, TlsError)
    assert raised.value.code is Code.LINK_LOST


async def test_a_broken_tls_wire_is_a_lost_link_for_the_writer() -> None:
    left, right = trio.testing.memory_stream_pair()
    client, _server = await tls_pair(left, right, tls_contexts())
    await right.aclose()
    with pytest.raises(LocalLinkError) as raised:
        await send(client, [b"x"])
    assert raised.value.code is Code.LINK_LOST


async def test_ending_a_broken_wire_raises_nothing() -> None:
    left, right = trio.testing.memory_stream_pair()
    client, _server = await tls_pair(left, right, tls_contexts())
    await right.aclose()
    await client.send_eof()
    await client.aclose()
    plain = PlainTransport(left)
    await plain.aclose()


# Dialling ----------------------------------------------------------------------------


async def test_a_dialled_link_gives_up_when_the_liveness_rule_would() -> None:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        stream = await dial(*listener.socket.getsockname())
        async with stream:
            get = stream.socket.getsockopt
            assert get(socket.IPPROTO_TCP, 18) == 30_000
            assert get(socket.IPPROTO_TCP, 25) == 65_536
            assert get(socket.SOL_SOCKET, socket.SO_KEEPALIVE)


async def test_a_closed_port_is_named_with_what_can_be_done() -> None:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    host, port = listener.socket.getsockname()
    await listener.aclose()
    with pytest.raises(LocalLinkError) as raised:
        await dial(host, port)
    error = raised.value
    assert error.what == f"cannot reach 127.0.0.1:{port}: connection refused"
    assert "tunnel serve" in error.fix
    assert error.exit_status is Exit.NOT_REACHED


async def test_an_unknown_name_is_said_to_be_one() -> None:
    resolve_to(error=socket.gaierror(socket.EAI_NONAME, "Name or service not known"))
    with pytest.raises(LocalLinkError, match="is not known"):
        await dial("server.test", 7443)


async def test_a_resolver_that_fails_is_not_an_unknown_name() -> None:
    resolve_to(error=socket.gaierror(socket.EAI_AGAIN, "Temporary failure"))
    with pytest.raises(LocalLinkError, match="the resolver failed"):
        await dial("server.test", 7443)


async def test_a_silent_resolver_is_waited_for_10_s(
    autojump_clock: trio.testing.MockClock,
) -> None:
    answer = threading.Event()

    def never(host: bytes) -> list[Found]:
        answer.wait()
        raise AssertionError(host)

    lookups().ask = never
    try:
        with pytest.raises(LocalLinkError, match="no answer in 10 s"):
            await dial("server.test", 7443)
    finally:
        answer.set()


async def test_any_other_failure_to_dial_is_said_in_the_systems_words(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(family: int) -> socket.socket:
        raise OSError(errno.ENETUNREACH, "Network is unreachable")

    monkeypatch.setattr(target, "_new_socket", fail)
    with pytest.raises(LocalLinkError) as raised:
        await dial("2001:db8::1", 7443)
    assert raised.value.what == (
        "cannot reach [2001:db8::1]:7443: network is unreachable"
    )


async def test_a_broken_tls_wire_is_an_end_for_the_reader_who_asks_once() -> None:
    class Broken(trio.abc.ReceiveStream):
        asked = 0

        async def receive_some(self, max_bytes: int | None = None) -> bytes:
            self.asked += 1
            assert self.asked == 1
            raise trio.BrokenResourceError

        async def aclose(self) -> None:
            pass

    left, _right = trio.testing.memory_stream_pair()
    transport = TlsTransport(
        trio.StapledStream(left.send_stream, Broken()),
        tls_contexts()[0],
        server_side=False,
        host_name="tunnel.test",
    )
    assert await transport.receive_some() == b""
