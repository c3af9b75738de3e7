from __future__ import annotations

import logging
import math
import ssl
from contextlib import asynccontextmanager
from ipaddress import ip_network
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing
import trustme
from support import logs
from support.certs import HOST, choose_curve, only_curves_before_x25519, tls_contexts
from support.far import Far
from support.http2 import Two, request

from tunnel.addresses import Address
from tunnel.errors import Code
from tunnel.front.http import sni
from tunnel.front.http.client_hello import P256, X25519
from tunnel.front.http.names import Absent, Destination
from tunnel.front.http.places import Place, Places, Rates
from tunnel.front.http.sni import Doors, handle_tls_visitor
from tunnel.front.http.terminations import Termination, Terminations, termination
from tunnel.proto.rules import Rules

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path


VISITOR = Address("203.0.113.9", 4711)
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def hello(name: str | None = HOST) -> bytes:
    """Give a real first message."""
    out = ssl.MemoryBIO()
    context = ssl.create_default_context()
    context.check_hostname = False
    client = context.wrap_bio(ssl.MemoryBIO(), out, server_hostname=name)
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return out.read()


class Street:
    def __init__(self, visitor: trio.abc.HalfCloseableStream) -> None:
        self.visitor = visitor
        self.far = Far()
        self.passed: dict[str, Absent | Places] = {}
        self.asked: list[str] = []
        self.doors = Doors(self.route_passed, self.route_web, Terminations())

    async def _open(self, visitor: Address) -> Far:
        await trio.lowlevel.checkpoint()
        assert visitor == VISITOR
        return self.far

    @property
    def _there(self) -> Destination:
        return Destination(None, self._open)

    def route_passed(self, host: str) -> Destination | Places | Absent:
        self.asked.append(host)
        return self.passed.get(host, self._there)

    def route_web(self, host: str) -> Destination | Absent:
        return self._there if host == HOST else Absent.UNKNOWN

    async def rest(self) -> bytes:
        data = b""
        async for piece in self.visitor:
            data += piece
        return data


@asynccontextmanager
async def street(
    context: ssl.SSLContext | None = None,
    passed: dict[str, Absent | Places] | None = None,
    ending: Termination | None = None,
) -> AsyncIterator[Street]:
    visitor, ours = trio.testing.memory_stream_pair()
    made = Street(visitor)
    made.passed = passed or {}
    if context:
        ending = {X25519: context, P256: context}
    made.doors.endings.usual = ending or {}
    with trio.fail_after(500):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(
                handle_tls_visitor, ours, VISITOR, made.doors, trio.Semaphore(1)
            )
            yield made
            nursery.cancel_scope.cancel()


def http_contexts() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    return tls_contexts(client_alpn="http/1.1", server_alpn="http/1.1")


@pytest.mark.parametrize("split", [1, 100, 1 << 20])
async def test_the_first_message_is_passed_on_untouched(split: int) -> None:
    """Point 60."""
    said = hello() + b"and what follows"
    async with street() as it:
        for at in range(0, len(said), split):
            await it.visitor.send_all(said[at : at + split])
        heard = b""
        while len(heard) < len(said):
            heard += await it.far.far.receive_some()
        assert heard == said
        await it.far.far.send_all(b"answer")
        assert await it.visitor.receive_some() == b"answer"
        assert it.asked == [HOST]


async def test_a_whole_tls_conversation_passes_through_with_the_target_s_key() -> None:
    client, server = http_contexts()
    async with street() as it, trio.open_nursery() as nursery:
        visitor = trio.SSLStream(it.visitor, client, server_hostname=HOST)
        target = trio.SSLStream(it.far.far, server, server_side=True)
        nursery.start_soon(target.do_handshake)
        await visitor.do_handshake()
        await visitor.send_all(b"secret")
        assert await target.receive_some() == b"secret"


async def test_the_case_of_a_name_does_not_matter(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "tunnel.access")
    async with street() as it:
        await it.visitor.send_all(hello("WWW.Tunnel.TEST"))
        await it.far.far.receive_some()
        assert it.asked == ["www.tunnel.test"]
    assert 'entry="https www.tunnel.test"' in logs.text(caplog)


@pytest.mark.parametrize(
    ("absent", "alert"), [(Absent.UNKNOWN, 112), (Absent.AWAY, 80)]
)
async def test_a_name_that_leads_nowhere_gets_an_alert(
    absent: Absent, alert: int
) -> None:
    async with street(passed={HOST: absent}) as it:
        await it.visitor.send_all(hello())
        await it.visitor.send_eof()
        answer = await it.rest()
        assert (answer[0], answer[-1]) == (21, alert)


async def test_a_visitor_who_is_not_allowed_gets_an_alert_and_reaches_nobody() -> None:
    rules = Rules(deny=(ip_network(VISITOR.host),))
    guards = Places([Place(HOST, rules, math.inf, [])], Rates())
    async with street(passed={HOST: guards}) as it:
        await it.visitor.send_all(hello())
        await it.visitor.send_eof()
        answer = await it.rest()
        assert (answer[0], answer[-1]) == (21, 49)


async def test_no_name_leads_nowhere() -> None:
    async with street() as it:
        await it.visitor.send_all(hello(None))
        await it.visitor.send_eof()
        assert (await it.rest())[-1] == 112
        assert it.asked == []


@pytest.mark.parametrize(
    "said",
    [b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"SSH-2.0-x\r\n", bytes(100), b"\x16" * 999,
     b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00", b""],
)  # fmt: skip
async def test_what_is_not_tls_is_closed_and_reaches_nobody(said: bytes) -> None:
    async with street() as it:
        if said:
            await it.visitor.send_all(said)
        await it.visitor.send_eof()
        await it.rest()
        assert it.asked == []


async def test_a_first_message_without_end_is_not_kept() -> None:
    # One handshake message of 16 KiB, in records as TLS allows them.
    record = b"\x16\x03\x01\x10\x00" + b"\x01\x00\x3f\xff" + bytes(4092)
    more = b"\x16\x03\x01\x10\x00" + bytes(4096)
    async with street() as it:
        await it.visitor.send_all(record)
        for _ in range(3):
            assert not await ended(it.visitor)
            await it.visitor.send_all(more)
        assert await ended(it.visitor)
        assert it.asked == []


async def ended(stream: trio.abc.ReceiveStream) -> bool:
    with trio.move_on_after(0.01):
        while await stream.receive_some():
            pass
        return True
    return False


async def test_a_visitor_that_says_nothing_is_closed(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with street() as it:
        await it.visitor.send_all(hello()[:50])
        assert await it.rest() == b""
        assert trio.current_time() >= sni.HELLO_S


async def test_tls_ends_here_with_a_certificate_and_the_target_hears_of_it() -> None:
    client, server = http_contexts()
    async with street(server, {HOST: Absent.UNKNOWN}) as it:
        visitor = trio.SSLStream(it.visitor, client, server_hostname=HOST)
        await visitor.send_all(b"GET / HTTP/1.1\r\nHost: tunnel.test\r\n\r\n")
        head = await it.far.far.receive_some()
        assert b"\r\nX-Forwarded-Proto: https\r\n" in head
        assert b'for="203.0.113.9:4711";host="tunnel.test";proto=https' in head
        assert visitor.selected_alpn_protocol() == "http/1.1"
        await it.far.far.send_all(OK)
        answer = b""
        while not answer.endswith(b"ok"):
            answer += await visitor.receive_some()
        # The Host of the next request decides, not the name in TLS.
        await visitor.send_all(b"GET / HTTP/1.1\r\nHost: other.test\r\n\r\n")
        assert b"404" in await visitor.receive_some()


async def test_a_visitor_hears_the_end_of_tls_and_not_of_its_wire_only() -> None:
    client, server = http_contexts()
    async with street(server, {HOST: Absent.UNKNOWN}) as it:
        visitor = trio.SSLStream(it.visitor, client, server_hostname=HOST)
        await visitor.send_all(b"rubbish\r\n\r\n")
        answer = b""
        while piece := await visitor.receive_some():  # would raise without it
            answer += piece
        assert answer.startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize("curve", ["X25519", "prime256v1"])
async def test_a_visitor_with_one_curve_gets_in_with_a_cheap_suite_and_resumes(
    curve: str, tmp_path: Path
) -> None:
    client, ending = own_certificate(tmp_path)
    choose_curve(client, curve)
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        client.maximum_version = version
        session = None
        for _ in range(2):
            tls_client, cipher = await get(client, ending, session)
            assert "CBC" not in cipher
            assert cipher.startswith(("ECDHE", "TLS_"))
            assert tls_client.session_reused == (session is not None)
            session = tls_client.session


async def test_where_python_cannot_choose_x25519_a_visitor_is_asked_for_p256(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    only_curves_before_x25519(monkeypatch)
    client, ending = own_certificate(tmp_path)
    assert set(ending) == {P256}
    tls_client, _ = await get(client, ending, None)
    assert tls_client.version() == "TLSv1.3"


@pytest.mark.parametrize("curve", ["secp384r1", "secp521r1"])
async def test_a_visitor_who_asks_for_much_work_hears_an_alert(
    curve: str, tmp_path: Path
) -> None:
    client, ending = own_certificate(tmp_path)
    client.set_ecdh_curve(curve)
    with pytest.raises(ssl.SSLError, match="HANDSHAKE_FAILURE"):
        await get(client, ending, None)


@pytest.mark.parametrize("suite", ["ECDHE+AES256+SHA384:!AESGCM", "DHE"])
async def test_suites_with_faults_or_without_curves_are_not_offered(
    suite: str, tmp_path: Path
) -> None:
    client, ending = own_certificate(tmp_path)
    client.set_ciphers(suite)
    client.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(ssl.SSLError, match="HANDSHAKE_FAILURE"):
        await get(client, ending, None)


def own_certificate(folder: Path) -> tuple[ssl.SSLContext, Termination]:
    authority = trustme.CA()
    # With TLS 1.2 a key on a curve would need that curve among the visitor's groups.
    leaf = authority.issue_cert(HOST, key_type=trustme.KeyType.RSA)
    leaf.private_key_pem.write_to_path(folder / "key")
    leaf.cert_chain_pems[0].write_to_path(folder / "certificate")
    client = ssl.create_default_context()
    authority.configure_trust(client)
    return client, termination(folder / "certificate", folder / "key")


async def get(
    client: ssl.SSLContext, ending: Termination, session: ssl.SSLSession | None
) -> tuple[ssl.SSLObject, str]:
    """Ask for a page that nobody has; give what became of the TLS."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    made = client.wrap_bio(incoming, outgoing, server_hostname=HOST, session=session)
    async with street(None, {HOST: Absent.UNKNOWN}, ending) as it:

        async def step(call: Callable[[], object]) -> None:
            while True:
                try:
                    call()
                except ssl.SSLWantReadError:
                    if outgoing.pending:
                        await it.visitor.send_all(outgoing.read())
                    incoming.write(await it.visitor.receive_some())
                else:
                    if outgoing.pending:
                        await it.visitor.send_all(outgoing.read())
                    return

        refusal: ssl.SSLError | None = None
        try:
            await step(made.do_handshake)
            made.write(b"GET / HTTP/1.1\r\nHost: other.test\r\n\r\n")
            await step(lambda: made.read(1000))  # tickets come before the answer
        except ssl.SSLError as error:
            refusal = error
    if refusal is not None:  # not through the nursery, which would make a group of it
        raise refusal
    cipher = made.cipher()
    assert cipher is not None
    return made, cipher[0]


async def test_a_websocket_runs_inside_tls_and_ends_on_both_sides(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "tunnel.access")
    client, server = http_contexts()
    async with street(server, {HOST: Absent.UNKNOWN}) as it:
        visitor = trio.SSLStream(
            it.visitor, client, server_hostname=HOST, https_compatible=True
        )
        await visitor.send_all(
            b"GET / HTTP/1.1\r\nHost: tunnel.test\r\nConnection: Upgrade\r\n"
            b"Upgrade: websocket\r\n\r\n"
        )
        await it.far.far.receive_some()
        await it.far.far.send_all(
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n"
            b"Upgrade: websocket\r\n\r\n"
        )
        assert b" 101 " in await visitor.receive_some()
        large = bytes(range(256)) * 1000
        async with trio.open_nursery() as nursery:
            nursery.start_soon(visitor.send_all, large)
            heard = b""
            while len(heard) < len(large):
                heard += await it.far.far.receive_some()
            assert heard == large
        await it.far.far.send_all(b"bye")
        await it.far.far.send_eof()
        assert await visitor.receive_some() == b"bye"
        assert await visitor.receive_some() == b""
        await visitor.aclose()
        assert await it.far.far.receive_some() == b""
        await trio.testing.wait_all_tasks_blocked()
    (line,) = logs.lines(caplog)  # at the end of the tunnel, and none before
    assert line.startswith("visitor.served")
    assert 'entry="http tunnel.test" method=GET path=/ status=101' in line
    assert line.endswith("code=NORMAL")


async def test_tls_that_breaks_resets_the_request(
    autojump_clock: trio.testing.MockClock,
) -> None:
    client, server = http_contexts()
    async with street(server, {HOST: Absent.UNKNOWN}) as it:
        visitor = trio.SSLStream(it.visitor, client, server_hostname=HOST)
        await visitor.send_all(b"GET / HTTP/1.1\r\nHost: tunnel.test\r\n\r\n")
        await it.far.far.receive_some()
        await it.visitor.send_all(b"this is no record of TLS")
        await trio.sleep(1)
        assert it.far.resets == [Code.RESET]


async def challenge(alpn: str, shown: str = HOST) -> str | None:
    """Ask as an authority does; give what was agreed on, or that it was refused."""
    client, other = http_contexts()
    client.set_alpn_protocols([alpn])
    answer = tls_contexts(client_alpn=None, server_alpn="acme-tls/1")[1]
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    async with street(other, {HOST: Absent.UNKNOWN}) as it:
        it.doors.endings.challenges[shown] = answer
        visitor = trio.SSLStream(
            it.visitor, client, server_hostname=HOST, https_compatible=True
        )
        try:
            await visitor.do_handshake()
        except trio.BrokenResourceError:
            return "refused"
        if alpn == "acme-tls/1":
            assert await visitor.receive_some() == b""
        agreed: str | None = visitor.selected_alpn_protocol()
    return agreed


async def test_an_authority_that_looks_gets_its_answer_and_nothing_else() -> None:
    assert await challenge("acme-tls/1") == "acme-tls/1"
    assert await challenge("http/1.1") == "http/1.1"
    assert await challenge("acme-tls/1", "other.test") == "refused"


async def test_a_name_that_is_passed_through_answers_authorities_itself() -> None:
    said = acme_hello()
    async with street() as it:
        it.doors.endings.challenges[HOST] = http_contexts()[1]
        await it.visitor.send_all(said)
        assert await it.far.far.receive_some() == said


def acme_hello() -> bytes:
    out = ssl.MemoryBIO()
    context = ssl.create_default_context()
    context.set_alpn_protocols(["acme-tls/1"])
    client = context.wrap_bio(ssl.MemoryBIO(), out, server_hostname=HOST)
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return out.read()


async def test_names_have_certificates_of_their_own(tmp_path: Path) -> None:
    made = Terminations()
    usual, shop, wild = ({X25519: tls_contexts()[1]} for _ in range(3))
    made.usual = usual
    made.show("shop.t.test", shop)
    made.show("*.t.test", wild)
    assert made.of("shop.t.test") is shop
    assert made.of("mail.t.test") is wild
    assert made.of("t.test") is made.of("deep.mail.t.test") is usual
    made.show("shop.t.test", usual)  # renewed
    assert made.of("shop.t.test") is usual


# HTTP/2 ------------------------------------------------------------------------------


async def test_a_name_that_belongs_on_another_connection_is_misdirected() -> None:
    """Browsers ask for all names of a certificate on one connection."""
    client, server = tls_contexts(client_alpn="h2", server_alpn="h2")
    absent: dict[str, Absent | Places] = dict.fromkeys(
        (HOST, "own.test", "no.test"), Absent.UNKNOWN
    )
    async with street(server, absent) as it:
        it.doors.endings.show("own.test", dict(it.doors.endings.usual))
        visitor = trio.SSLStream(it.visitor, client, server_hostname=HOST)
        two = Two(visitor, client=True)
        await two.begin()
        statuses = [
            await two.status(await two.ask(request(host)))
            for host in ("passed.test", "own.test", "no.test")
        ]
        assert statuses == [421, 421, 404]
        number = await two.ask(request(HOST))
        head = await it.far.far.receive_some()
        assert b"\r\nX-Forwarded-Proto: https\r\n" in head
        await it.far.far.send_all(OK)
        assert await two.status(number) == 200
