from __future__ import annotations

import logging
import struct
from contextlib import suppress
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
import trio
from h2.errors import ErrorCodes
from h2.events import DataReceived, ResponseReceived
from h2.settings import SettingCodes
from support import logs
from support.cycles import cycles_of
from support.http2 import Fields, TwoTown, request, two_town
from support.town import OK, until

from tunnel.access.guesses import Failures
from tunnel.errors import Code
from tunnel.front.http.h2 import frames, visitor
from tunnel.front.http.h2.frames import REMEMBERED_S
from tunnel.front.http.h2.lanes import MAX_LANES
from tunnel.front.http.h2.visitor import PREFACE, STREAM_BYTES
from tunnel.front.http.limits import BETWEEN_S, HEAD_BYTES, HEAD_S
from tunnel.net.timeouts import TIMEOUTS, Timeouts

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.town import Far


@pytest.fixture(autouse=True)
def _nothing_stays_held() -> Iterator[None]:
    yield
    assert visitor._Pool.held == 0


@pytest.fixture(autouse=True)
def _nobody_has_flooded(monkeypatch: pytest.MonkeyPatch) -> None:
    nobody: Failures[str] = Failures(1, 16, REMEMBERED_S)
    monkeypatch.setattr(frames, "_FLOODERS", nobody)


# Requests and answers -----------------------------------------------------------------


async def test_a_stream_is_a_request_like_any_other() -> None:
    async with two_town() as it:
        number = await it.two.ask(request(path="/x?y=1", method="GET"))
        far, head = await it.target()
        assert head.startswith(b"GET /x?y=1 HTTP/1.1\r\nHost: a.test\r\n")
        assert b"X-Forwarded-For: 203.0.113.9\r\n" in head
        await far.far.send_all(
            b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-Two: b\r\nConnection: X-Hop\r\n"
            b"X-Hop: 1\r\n\r\nok"
        )
        fields, body, _ = await it.two.answer(number)
        assert fields == [
            (b":status", b"200"), (b"content-length", b"2"), (b"x-two", b"b"),
        ]  # fmt: skip
        assert body == b"ok"


async def test_bodies_and_trailers_pass_both_ways_while_neither_has_ended() -> None:
    async with two_town() as it:
        two = it.two
        number = await two.ask(
            request("a.test", (b"te", b"trailers"), method="POST"), b"one", end=False
        )
        far, head = await it.target()
        assert b"\r\nTransfer-Encoding: chunked\r\n" in head
        assert b"\r\nTE: trailers\r\n" in head
        assert b"\r\nConnection: TE\r\n" in head
        await far.far.send_all(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nuno\r\n"
        )
        await two.until(lambda: bool(two.of(number, DataReceived)))
        two.conn.send_data(number, b"two")
        two.conn.send_headers(number, [(b"x-sum", b"7")], end_stream=True)
        await two.flush()
        heard = await until(far.far, b"X-sum: 7\r\n\r\n".lower())
        assert b"3\r\ntwo\r\n0\r\n" in heard
        await far.far.send_all(b"3\r\ndue\r\n0\r\ngrpc-status: 0\r\n\r\n")
        _, body, trailers = await two.answer(number)
        assert (body, trailers) == (b"unodue", [(b"grpc-status", b"0")])


@pytest.mark.parametrize("length", [True, False])
async def test_a_body_is_framed_as_the_visitor_did(length: bool) -> None:
    said = [(b"content-length", b"5")] if length else []
    async with two_town() as it:
        number = await it.two.ask(request("a.test", *said, method="PUT"), b"hello")
        far, head = await it.target()
        heard = head
        while b"hello" not in heard:
            heard += await far.far.receive_some()
        assert (b"content-length: 5" in heard) == length
        assert (b"5\r\nhello\r\n0\r\n" in heard) != length
        await far.far.send_all(OK)
        assert await it.two.status(number) == 200


async def test_a_head_that_comes_first_and_an_answer_to_HEAD_pass() -> None:
    async with two_town() as it:
        number = await it.two.ask(request(method="HEAD"))
        far, _ = await it.target()
        await far.far.send_all(
            b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
            b"HTTP/1.1 200 OK\r\nContent-Length: 700\r\n\r\n"
        )
        fields, body, _ = await it.two.answer(number)
        assert (b"content-length", b"700") in fields
        assert body == b""


async def test_crumbs_of_a_cookie_are_one_for_the_target() -> None:
    async with two_town() as it:
        await it.two.ask(request("a.test", (b"cookie", b"a=1"), (b"cookie", b"b=2")))
        _, head = await it.target()
        assert b"\r\ncookie: a=1; b=2\r\n" in head


async def test_a_page_of_ours_says_why_there_is_no_answer() -> None:
    async with two_town() as it:
        number = await it.two.ask(request("no.test", method="POST"), b"x" * 10)
        assert await it.two.status(number) == 404


async def test_a_visitor_that_has_left_is_held_by_nothing() -> None:
    async def come_and_go() -> None:
        async with two_town() as it:
            number = await it.two.ask(request())
            far, _ = await it.target()
            await far.far.send_all(OK)
            assert await it.two.status(number) == 200

    await come_and_go()  # what is made once
    with cycles_of("tunnel") as found:
        for _ in range(3):
            await come_and_go()
    assert found == {}


# Many at once -------------------------------------------------------------------------


async def test_one_after_the_other_shares_a_connection_and_two_at_once_do_not() -> None:
    async with two_town() as it:
        for again in (False, True):
            number = await it.two.ask(request())
            far, _ = await it.target(again=again)
            await far.far.send_all(OK)
            assert await it.two.status(number) == 200
        await it.two.ask(request())
        first, _ = await it.target(again=True)
        await it.two.ask(request())
        second, _ = await it.target()
        assert first is not second


async def test_more_than_the_lanes_wait_only_for_a_while(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with two_town() as it:
        numbers = [await it.two.ask(request()) for _ in range(MAX_LANES + 3)]
        began = trio.current_time()
        far = []
        for _ in numbers:
            one = await it.opened()
            await until(one.far, b"\r\n\r\n")
            far.append((one, trio.current_time() - began))
        assert [after > 0 for _, after in far] == [False] * MAX_LANES + [True] * 3
        assert far[-1][1] < 0.2
        for one, _ in far:
            await one.far.send_all(OK)
        assert [await it.two.status(number) for number in numbers] == [200] * 19


async def test_an_answer_that_is_not_read_holds_up_no_other() -> None:
    async with two_town() as it:
        it.two.acknowledges = False
        stalled = await it.two.ask(request())
        far, _ = await it.target()
        await far.far.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n")
        await far.far.send_all(bytes(60_000))
        two = it.two
        await two.until(lambda: len(two.of(stalled, DataReceived)) >= 3)
        await far.far.send_all(bytes(200_000))  # more than the window of this stream
        two.conn.increment_flow_control_window(1_000_000)
        await two.flush()
        other = await two.ask(request())
        second, _ = await it.target()
        await second.far.send_all(OK)
        assert await two.status(other) == 200
        heard = two.size_of(stalled)
        assert heard == 65_535
        assert not two.of(stalled, ResponseReceived)[0].stream_ended


async def test_a_body_that_is_not_taken_is_bounded_and_holds_up_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with two_town() as it:
        two = it.two
        await two.until(lambda: two.conn.outbound_flow_control_window > 65_535)
        number = await two.ask(request(method="POST"), end=False)
        far, _ = await it.target()
        taken = trio.Event()

        async def block(data: bytes) -> None:
            await taken.wait()
            raise trio.BrokenResourceError

        monkeypatch.setattr(far, "put", block)
        for _ in range(STREAM_BYTES // 16_384):
            two.conn.send_data(number, bytes(16_384))
        await two.flush()
        other = await two.ask(request())
        second, _ = await it.target()
        await second.far.send_all(OK)
        assert await two.status(other) == 200
        # What the engine has in hand is given back; all else is bounded by the window.
        assert two.conn.local_flow_control_window(number) <= STREAM_BYTES / 2
        assert visitor._Pool.held <= STREAM_BYTES
        taken.set()


# Ends ---------------------------------------------------------------------------------


async def under_way(it: TwoTown) -> tuple[int, Far]:
    number = await it.two.ask(request(method="POST"), b"x", end=False)
    far, _ = await it.target()
    await far.far.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf")
    await it.two.until(lambda: bool(it.two.of(number, DataReceived)))
    return number, far


async def test_a_visitor_that_gives_up_is_heard_at_the_target() -> None:
    async with two_town() as it:
        number, far = await under_way(it)
        it.two.conn.reset_stream(number, ErrorCodes.CANCEL)
        await it.two.flush()
        other = await it.two.ask(request())
        second, _ = await it.target()
        await second.far.send_all(OK)
        assert await it.two.status(other) == 200
        assert far.resets == [Code.RESET]


async def test_a_visitor_that_leaves_is_heard_at_all_targets() -> None:
    async with two_town() as it:
        _, far = await under_way(it)
        await it.visitor.aclose()
        with trio.fail_after(5):
            while not far.resets:
                await trio.lowlevel.checkpoint()


async def test_an_answer_that_breaks_off_does_not_seem_whole() -> None:
    async with two_town() as it:
        number, far = await under_way(it)
        await far.break_with(Code.RESET)
        assert await it.two.reset_of(number) == ErrorCodes.INTERNAL_ERROR


async def test_an_answer_before_the_requests_end_asks_for_no_more_of_it() -> None:
    async with two_town() as it:
        number = await it.two.ask(request(method="POST"), b"x", end=False)
        far, _ = await it.target()
        await far.far.send_all(b"HTTP/1.1 413 No\r\nContent-Length: 2\r\n\r\nno")
        assert await it.two.status(number) == 413
        assert await it.two.reset_of(number) == ErrorCodes.NO_ERROR


async def test_an_idle_connection_is_ended_well(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with two_town() as it:
        number = await it.two.ask(request())
        far, _ = await it.target()
        await far.far.send_all(OK)
        assert await it.two.status(number) == 200
        began = trio.current_time()
        assert await it.two.goodbye() == ErrorCodes.NO_ERROR
        assert trio.current_time() - began == pytest.approx(BETWEEN_S, abs=1)


@pytest.mark.parametrize("served", [False, True])
async def test_who_asks_nothing_keeps_no_place_by_pings(
    autojump_clock: trio.testing.MockClock, served: bool
) -> None:
    async with two_town() as it:
        if served:
            number = await it.two.ask(request())
            far, _ = await it.target()
            await far.far.send_all(OK)
            assert await it.two.status(number) == 200
        began = trio.current_time()

        async def ping() -> None:
            while True:
                await trio.sleep(4)
                it.two.conn.ping(b"12345678")
                await it.two.flush()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ping)
            assert await it.two.goodbye() == ErrorCodes.NO_ERROR
            nursery.cancel_scope.cancel()
        most = BETWEEN_S if served else HEAD_S
        assert trio.current_time() - began == pytest.approx(most, abs=1)


@pytest.mark.parametrize("asks", [False, True])
async def test_who_reads_nothing_is_given_up(
    autojump_clock: trio.testing.MockClock, asks: bool
) -> None:
    TIMEOUTS.set(Timeouts(idle_s=30))
    async with two_town() as it:
        number = await it.two.ask(request())
        far, _ = await it.target()
        await far.far.send_all(OK)
        assert await it.two.status(number) == 200
        it.block()
        began = trio.current_time()
        if asks:
            await it.two.ask(request())
            large = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n"
            await far.far.send_all(large + bytes(1_000_000))

        with suppress(trio.BrokenResourceError):
            while True:
                for _ in range(900):
                    it.two.conn.ping(b"12345678")
                await it.two.flush()
                await trio.sleep(5)
        assert trio.current_time() - began < 2 * BETWEEN_S


@pytest.mark.parametrize("size", [18, 20, len(PREFACE)])
async def test_a_preface_that_nothing_follows_is_given_up_as_a_head_is(
    autojump_clock: trio.testing.MockClock, size: int
) -> None:
    async with two_town(begin=False) as it:
        await it.visitor.send_all(PREFACE[:size])
        began = trio.current_time()
        with suppress(trio.BrokenResourceError):
            while await it.visitor.receive_some():
                pass
        assert trio.current_time() - began == pytest.approx(HEAD_S, abs=1)


async def test_a_goaway_lets_what_is_under_way_end() -> None:
    async with two_town() as it:
        number = await it.two.ask(request())
        far, _ = await it.target()
        await it.visitor.send_all(frame(7, 0, bytes(8)))
        await far.far.send_all(OK)
        assert await it.two.status(number) == 200
        assert await it.two.goodbye() == ErrorCodes.NO_ERROR


# What is refused ----------------------------------------------------------------------

GOOD = dict(request())


def with_(*more: tuple[bytes, bytes], **changed: bytes | None) -> Fields:
    """Give a request that is good but for this."""
    fields = GOOD | {b":" + name.encode(): value for name, value in changed.items()}
    return [(name, value) for name, value in fields.items() if value is not None] + [
        *more
    ]


MALFORMED: dict[str, Fields] = {
    "no method": with_(method=None),
    "no scheme": with_(scheme=None),
    "no path": with_(path=None),
    "nobody": with_(authority=None),
    "a method with a space": with_(method=b"GET /evil HTTP/1.1"),
    "a method with a line": with_(method=b"GET\r\nX: y"),
    "no method at all": with_(method=b""),
    "a path with a space": with_(path=b"/ HTTP/1.1"),
    "a path with a line": with_(path=b"/\r\nX: y"),
    "a path with NUL": with_(path=b"/\0"),
    "a path with a tab": with_(path=b"/\t"),
    "a path without slash": with_(path=b"evil"),
    "a whole URL as path": with_(path=b"http://evil.test/"),
    "an empty path": with_(path=b""),
    "a star to GET": with_(path=b"*"),
    "a host with a space": with_(authority=b"a.test x"),
    "a host with a line": with_(authority=b"a.test\r\nX: y"),
    "a user": with_(authority=b"me@a.test"),
    "another scheme": with_(scheme=b"ftp"),
    "a scheme with a line": with_(scheme=b"http\r\n"),
    "two methods": [(b":method", b"GET"), *with_()],
    "two paths": [*with_(), (b":path", b"/x")],
    "two authorities": [*with_(), (b":authority", b"a.test")],
    "an unknown pseudo-header": [(b":evil", b"1"), *with_()],
    "a status": [(b":status", b"200"), *with_()],
    "a protocol": [(b":protocol", b"websocket"), *with_(method=b"CONNECT")],
    "a pseudo-header behind a field": [*with_((b"a", b"b")), (b":path", b"/x")],
    "another Host": with_((b"host", b"evil.test")),
    "two Hosts": with_((b"host", b"a.test"), (b"host", b"a.test")),
    "a name in capitals": with_((b"X-A", b"1")),
    "a name with a space": with_((b"x a", b"1")),
    "a name with a colon": with_((b"x:", b"1")),
    "a name with a line": with_((b"x\r\ny", b"1")),
    "a name with NUL": with_((b"x\0", b"1")),
    "no name": with_((b"", b"1")),
    "a value with a line": with_((b"x", b"1\r\ntransfer-encoding: chunked")),
    "a value with LF": with_((b"x", b"1\ny: z")),
    "a value with CR": with_((b"x", b"1\ry")),
    "a value with NUL": with_((b"x", b"\0")),
    "a value with space before": with_((b"x", b" 1")),
    "a value with space behind": with_((b"x", b"1\t")),
    "transfer-encoding": with_((b"transfer-encoding", b"chunked")),
    "connection": with_((b"connection", b"close")),
    "keep-alive": with_((b"keep-alive", b"5")),
    "proxy-connection": with_((b"proxy-connection", b"close")),
    "upgrade": with_((b"upgrade", b"websocket")),
    "te": with_((b"te", b"gzip")),
}  # fmt: skip


@pytest.mark.parametrize("fields", MALFORMED.values(), ids=MALFORMED)
async def test_what_is_malformed_costs_its_stream_and_reaches_nobody(
    fields: Fields,
) -> None:
    async with two_town() as it:
        number = await it.two.ask(fields)
        assert await it.two.reset_of(number) == ErrorCodes.PROTOCOL_ERROR
        assert it.asked == []
        other = await it.two.ask(request())
        far, _ = await it.target()
        await far.far.send_all(OK)
        assert await it.two.status(other) == 200


WRONG_LENGTHS: dict[str, tuple[list[bytes], bytes]] = {
    "more than said": ([b"1"], b"ab"),
    "less than said": ([b"3"], b"ab"),
    "no number": ([b"+2"], b"ab"),
    "two numbers": ([b"2, 2"], b"ab"),
    "two of them": ([b"2", b"3"], b"ab"),
}


@pytest.mark.parametrize(("lengths", "body"), WRONG_LENGTHS.values(), ids=WRONG_LENGTHS)
async def test_a_length_that_is_not_that_of_the_data_ends_the_connection(
    lengths: list[bytes], body: bytes
) -> None:
    async with two_town() as it:
        said = [(b"content-length", length) for length in lengths]
        await it.two.ask(request("a.test", *said, method="POST"), body)
        assert await it.two.goodbye() == ErrorCodes.PROTOCOL_ERROR


async def test_a_trailer_that_is_none_ends_its_stream() -> None:
    async with two_town() as it:
        number = await it.two.ask(request(method="POST"), b"x", end=False)
        far, _ = await it.target()
        it.two.conn.send_headers(number, [(b"x", b"1\r\n\r\nGET")], end_stream=True)
        await it.two.flush()
        assert await it.two.reset_of(number) == ErrorCodes.PROTOCOL_ERROR
        while not far.resets:
            await trio.lowlevel.checkpoint()


async def test_connect_is_not_served() -> None:
    async with two_town() as it:
        fields = [(b":method", b"CONNECT"), (b":authority", b"a.test:80")]
        assert await it.two.status(await it.two.ask(fields)) == 405


# Floods -------------------------------------------------------------------------------


def frame(kind: int, flags: int, payload: bytes = b"", number: int = 0) -> bytes:
    head = len(payload).to_bytes(3, "big") + bytes((kind, flags))
    return head + number.to_bytes(4, "big") + payload


def heads(number: int, *, flags: int = 5) -> bytes:
    # GET, http, /, and the authority, which is a literal (RFC 7541 §6.2.2).
    return frame(1, flags, b"\x82\x86\x84\x01\x06a.test", number)


def rapid(count: int) -> bytes:
    return b"".join(
        heads(number) + frame(3, 0, bytes(4), number)
        for number in range(1, 2 * count, 2)
    )


FLOODS: dict[str, bytes] = {
    "rapid reset": rapid(300),
    "ping": frame(6, 0, bytes(8)) * 1_100,
    "settings": frame(4, 0, struct.pack(">HI", 4, 65_535)) * 110,
    "empty data": heads(1, flags=4) + frame(0, 0, b"", 1) * 1_100,
    "priority": frame(2, 0, b"\0\0\0\x03\x10", 5) * 1_100,
    "unknown": frame(77, 0) * 1_100,
    "window updates of a byte": frame(8, 0, b"\0\0\0\1") * 1_100,
    "empty continuation": heads(1, flags=1) + frame(9, 0, b"", 1) * 20,
    "full continuation": heads(1, flags=1) + frame(9, 0, b"\x40\1a\1b" * 3_000, 1) * 70,
    "a head of 100 lines that says 1 MB": frame(1, 5, b"\x82\x86\x84\x01\x06a.test"
        + b"\x40\1a\x7f\xa1\x0f" + b"b" * 2_080 + b"\xbe" * 1_000, 1),
    "too many streams": b"".join(heads(number) for number in range(1, 259, 2)),
}  # fmt: skip


@pytest.mark.parametrize("flood", FLOODS.values(), ids=FLOODS)
async def test_a_flood_ends_its_connection_with_one_line(
    flood: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with two_town(begin=False) as it:
        it.two.conn.initiate_connection()
        it.two.conn.data_to_send()
        await it.say(PREFACE + frame(4, 0) + flood)
        code = await it.two.goodbye()
        assert code in (ErrorCodes.ENHANCE_YOUR_CALM, ErrorCodes.PROTOCOL_ERROR)
        lines = [one for one in logs.lines(caplog) if "visitor.refused" in one]
        assert len(lines) == 1
        assert "HTTP/2" in lines[0]


async def test_who_floods_again_is_found_sooner(autojump_clock: object) -> None:
    pings = frame(6, 0, bytes(8))

    async def answered(count: int) -> bool:
        async with two_town(begin=False) as it:
            it.two.conn.initiate_connection()
            it.two.conn.data_to_send()
            await it.say(PREFACE + frame(4, 0) + pings * count)
            return await it.two.goodbye() == ErrorCodes.NO_ERROR

    assert await answered(900)
    assert not await answered(1_100)
    assert not await answered(150)
    assert await answered(50)
    await trio.sleep(2 * REMEMBERED_S + 1)
    assert await answered(900)


async def test_what_a_browser_does_is_no_flood() -> None:
    """100 images are asked for at once, given up, and asked for again."""
    async with two_town() as it:
        for _ in range(2):
            numbers = [await it.two.ask(request()) for _ in range(100)]
            for number in numbers:
                it.two.conn.reset_stream(number, ErrorCodes.CANCEL)
            await it.two.flush()
        number = await it.two.ask(request("no.test"))
        assert await it.two.status(number) == 404


async def test_windows_are_paid_for_by_what_was_carried() -> None:
    async with two_town() as it:
        number = await it.two.ask(request())
        far, _ = await it.target()
        await far.far.send_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(3_000):
            await far.far.send_all(b"200\r\n" + bytes(512) + b"\r\n")
            it.two.conn.increment_flow_control_window(512, number)
            await it.two.flush()
            await it.two.until(lambda: bool(it.two.of(number, DataReceived)))
            it.two.events.clear()


async def test_a_head_may_be_as_large_as_in_http_1() -> None:
    async with two_town() as it:
        value = b"v" * 1_000
        more = [(b"x-%d" % n, value) for n in range(HEAD_BYTES // 1_100)]
        number = it.two.conn.get_next_available_stream_id()
        it.two.conn.send_headers(number, request("a.test", *more), end_stream=True)
        await it.two.flush()
        far, head = await it.target()
        assert len(head) > 100_000
        await far.far.send_all(OK)
        assert await it.two.status(number) == 200


async def test_we_remember_no_more_fields_than_is_usual() -> None:
    async with two_town() as it:
        it.two.conn.update_settings({SettingCodes.HEADER_TABLE_SIZE: 1 << 30})
        await it.two.flush()
        sizes = []
        for at in range(60):
            number = await it.two.ask(request())
            far, _ = await it.target(again=at > 0)
            one = b"X-A: " + b"%d" % at * 500 + b"\r\n"
            await far.far.send_all(OK.replace(b"\r\n", b"\r\n" + one, 1))
            await it.two.status(number)
            sizes.append(it.two.conn.decoder.header_table._current_size)
        assert max(sizes) <= 4_096
        assert all(a or b for a, b in pairwise(sizes))
