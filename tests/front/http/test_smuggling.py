"""What goes on to a target is one message, to us as to h11 and to llhttp.

The kinds of payloads are those of the HTTP Garden: each has split some server from the
proxy in front of it.
"""

from __future__ import annotations

from typing import NamedTuple

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st
from support.parsers import Message, by_h11, by_llhttp
from support.town import OK, Far, get, town

from tunnel.errors import Code

BEHIND = get("a.test", path="/smuggled")
KNOWN_TO_LLHTTP = {b"GET", b"POST", b"OPTIONS"}
CHUNKS = b"5\r\nhello\r\n0\r\n\r\n"


def post(*lines: bytes, body: bytes = b"") -> bytes:
    return b"\r\n".join((b"POST /x HTTP/1.1", b"Host: a.test", *lines, b"", body))


# Each of these says in a way of its own that chunks follow, or seems to.
CODINGS = {
    "plain": b"Transfer-Encoding: chunked",
    "upper case": b"TRANSFER-ENCODING: CHUNKED",
    "no space": b"Transfer-Encoding:chunked",
    "tab before": b"Transfer-Encoding:\tchunked",
    "tab behind": b"Transfer-Encoding: chunked\t",
    "spaces around": b"Transfer-Encoding:   chunked   ",
    "vertical tab before": b"Transfer-Encoding: \x0bchunked",
    "vertical tab behind": b"Transfer-Encoding: chunked\x0b",
    "form feed": b"Transfer-Encoding: \x0cchunked",
    "space before colon": b"Transfer-Encoding : chunked",
    "tab before colon": b"Transfer-Encoding\t: chunked",
    "NUL before colon": b"Transfer-Encoding\0: chunked",
    "NUL in the value": b"Transfer-Encoding: chunked\0",
    "space before the name": b" Transfer-Encoding: chunked",
    "underscore": b"Transfer_Encoding: chunked",
    "space in the name": b"Transfer Encoding: chunked",
    "no-break space": b"Transfer-Encoding: \xa0chunked",
    "next line": b"Transfer-Encoding: \x85chunked",
    "quoted": b'Transfer-Encoding: "chunked"',
    "apostrophes": b"Transfer-Encoding: 'chunked'",
    "longer": b"Transfer-Encoding: chunkedd",
    "xchunked": b"Transfer-Encoding: xchunked",
    "shorter": b"Transfer-Encoding: chunk",
    "comma before": b"Transfer-Encoding: ,chunked",
    "comma behind": b"Transfer-Encoding: chunked,",
    "identity before": b"Transfer-Encoding: identity, chunked",
    "identity behind": b"Transfer-Encoding: chunked, identity",
    "identity": b"Transfer-Encoding: identity",
    "gzip before": b"Transfer-Encoding: gzip, chunked",
    "gzip behind": b"Transfer-Encoding: chunked, gzip",
    "parameter": b"Transfer-Encoding: chunked;x=y",
    "empty": b"Transfer-Encoding:",
    "twice in a line": b"Transfer-Encoding: chunked, chunked",
    "twice": b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
    "and cow": b"Transfer-Encoding: chunked\r\nTransfer-Encoding: cow",
    "cow and": b"Transfer-Encoding: cow\r\nTransfer-Encoding: chunked",
    "and empty": b"Transfer-Encoding: chunked\r\nTransfer-Encoding:",
    "folded": b"Transfer-Encoding:\r\n chunked",
    "folded with a tab": b"Transfer-Encoding:\r\n\tchunked",
    "folded behind another": b"X: y\r\n Transfer-Encoding: chunked",
    "bare LF before": b"X: y\nTransfer-Encoding: chunked",
    "bare CR before": b"X: y\rTransfer-Encoding: chunked",
    "bare LF behind": b"Transfer-Encoding: chunked\nX: y",
    "bare CR behind": b"Transfer-Encoding: chunked\r",
    "CR CR LF": b"Transfer-Encoding: chunked\r\r\nX: y",
    "LF in the name": b"Transfer\n-Encoding: chunked",
    "colon in front": b":Transfer-Encoding: chunked",
    "two colons": b"Transfer-Encoding:: chunked",
    "content coding": b"Content-Encoding: chunked",
    "high byte in the name": b"Transfer-Encoding\xff: chunked",
    "backspace": b"Transfer-EncodingX\x08: chunked",
    "delete": b"Transfer-Encoding: chunked\x7f",
    "TE": b"TE: chunked",
    "named by Connection": (
        b"Connection: transfer-encoding\r\nTransfer-Encoding: chunked"
    ),
}
LENGTHS = {
    "plain": b"Content-Length: 5",
    "leading zero": b"Content-Length: 05",
    "many zeros": b"Content-Length: 0000000000000000000005",
    "plus": b"Content-Length: +5",
    "minus": b"Content-Length: -5",
    "minus zero": b"Content-Length: -0",
    "hexadecimal": b"Content-Length: 0x5",
    "octal": b"Content-Length: 0o5",
    "underscore": b"Content-Length: 1_0",
    "name with underscore": b"Content_Length: 5",
    "point": b"Content-Length: 5.0",
    "exponent": b"Content-Length: 5e0",
    "letters behind": b"Content-Length: 5abc",
    "space within": b"Content-Length: 1 5",
    "tab before": b"Content-Length:\t5",
    "tab behind": b"Content-Length: 5\t",
    "vertical tab": b"Content-Length: \x0b5",
    "no-break space": b"Content-Length: 5\xa0",
    "superscript": b"Content-Length: \xb2",
    "arabic digit": "Content-Length: \u0665".encode(),
    "empty": b"Content-Length:",
    "list": b"Content-Length: 5, 5",
    "list of two": b"Content-Length: 5, 6",
    "comma behind": b"Content-Length: 5,",
    "comma before": b"Content-Length: ,5",
    "twice": b"Content-Length: 5\r\nContent-Length: 5",
    "two": b"Content-Length: 5\r\nContent-Length: 0",
    "two, one underscored": b"Content-Length: 5\r\nContent_Length: 0",
    "and empty": b"Content-Length: 5\r\nContent-Length:",
    "over 64 bits": b"Content-Length: 18446744073709551621",
    "space before colon": b"Content-Length : 5",
    "NUL in the name": b"Content\0-Length: 5",
    "NUL in the value": b"Content-Length: 5\0",
    "quoted": b'Content-Length: "5"',
    "semicolon": b"Content-Length: 5;",
    "folded": b"Content-Length:\r\n 5",
    "bare LF before": b"X: y\nContent-Length: 5",
    "bare CR before": b"X: y\rContent-Length: 5",
    "named by Connection": b"Connection: content-length\r\nContent-Length: 5",
}
BODIES = {
    "plain": CHUNKS,
    "nothing": b"0\r\n\r\n",
    "leading zeros": b"00005\r\nhello\r\n000\r\n\r\n",
    "upper case": b"A\r\nhellohello\r\n0\r\n\r\n",
    "extension": b"5;x=y\r\nhello\r\n0;z\r\n\r\n",
    "quoted extension": b'5;x="y;z"\r\nhello\r\n0\r\n\r\n',
    "extension of spaces": b"5 ;x\r\nhello\r\n0\r\n\r\n",
    "LF in an extension": b"5;x\nhello\r\n0\r\n\r\n",
    "LF in a quoted extension": b'5;x="\n"\r\nhello\r\n0\r\n\r\n',
    "CR in an extension": b"5;x\ry\r\nhello\r\n0\r\n\r\n",
    "NUL in an extension": b"5;x\0\r\nhello\r\n0\r\n\r\n",
    "high byte in an extension": b"5;x=\xff\r\nhello\r\n0\r\n\r\n",
    "long extension": b"5;" + b"x" * 5_000 + b"\r\nhello\r\n0\r\n\r\n",
    "extension at the end": b"5\r\nhello\r\n0;x\r\n\r\n",
    "no size": b"\r\nhello\r\n0\r\n\r\n",
    "only an extension": b";x\r\nhello\r\n0\r\n\r\n",
    "space before": b" 5\r\nhello\r\n0\r\n\r\n",
    "space behind": b"5 \r\nhello\r\n0\r\n\r\n",
    "tab behind": b"5\t\r\nhello\r\n0\r\n\r\n",
    "plus": b"+5\r\nhello\r\n0\r\n\r\n",
    "minus": b"-5\r\nhello\r\n0\r\n\r\n",
    "minus zero": b"5\r\nhello\r\n-0\r\n\r\n",
    "0x": b"0x5\r\nhello\r\n0\r\n\r\n",
    "0x at the end": b"5\r\nhello\r\n0x0\r\n\r\n",
    "underscore": b"0_5\r\nhello\r\n0\r\n\r\n",
    "letters behind": b"5g\r\nhello\r\n0\r\n\r\n",
    "comma": b"5,0\r\nhello\r\n0\r\n\r\n",
    "over 64 bits": b"10000000000000005\r\nhello\r\n0\r\n\r\n",
    "64 bits": b"ffffffffffffffff\r\nhello\r\n0\r\n\r\n",
    "bare LF": b"5\nhello\n0\n\n",
    "bare LF behind a size": b"5\nhello\r\n0\r\n\r\n",
    "bare LF behind a chunk": b"5\r\nhello\n0\r\n\r\n",
    "bare CR behind a size": b"5\rhello\r\n0\r\n\r\n",
    "CR CR LF": b"5\r\r\nhello\r\n0\r\n\r\n",
    "two bytes for the end": b"5\r\nhelloXX0\r\n\r\n",
    "no end": b"5\r\nhello0\r\n\r\n",
    "too long": b"5\r\nhello!\r\n0\r\n\r\n",
    "bare LF at the end": b"5\r\nhello\r\n0\r\n\n",
    "bare CR at the end": b"5\r\nhello\r\n0\r\n\r",
    "word at the end": b"5\r\nhello\r\n0\r\nX",
    "cut": b"5\r\nhel",
    "trailer": b"5\r\nhello\r\n0\r\nX-Sum: 1\r\n\r\n",
    "Content-Length as trailer": b"0\r\nContent-Length: 9\r\n\r\n",
    "Transfer-Encoding as trailer": b"0\r\nTransfer-Encoding: chunked\r\n\r\n",
    "Host as trailer": b"0\r\nHost: b.test\r\n\r\n",
    "visitor as trailer": b"0\r\nX-Forwarded-For: 1.2.3.4\r\nX_Real_IP: ::1\r\n\r\n",
    "login as trailer": b"0\r\nAuthorization: Basic x\r\nCookie: a=b\r\n\r\n",
    "folded trailer": b"0\r\nX: y\r\n z\r\n\r\n",
    "trailer without colon": b"0\r\nX\r\n\r\n",
    "trailer with bare LF": b"0\r\nX: y\nZ: a\r\n\r\n",
    "trailer with NUL": b"0\r\nX: \0\r\n\r\n",
    "request as trailer": b"0\r\nGET /smuggled HTTP/1.1\r\n\r\n",
}
FIRST_LINES = {
    "absolute form": b"POST http://a.test/x HTTP/1.1\r\nHost: b.test",
    "absolute form with user": b"POST http://u:p@a.test/x HTTP/1.1\r\nHost: a.test",
    "absolute form of two": b"POST http://b.test@a.test/x HTTP/1.1\r\nHost: a.test",
    "backslash": b"POST http://a.test\\@b.test/x HTTP/1.1\r\nHost: a.test",
    "two hosts": b"POST /x HTTP/1.1\r\nHost: a.test\r\nHost: b.test",
    "the same host twice": b"POST /x HTTP/1.1\r\nHost: a.test\r\nHost: a.test",
    "host with a space": b"POST /x HTTP/1.1\r\nHost : a.test",
    "folded host": b"POST /x HTTP/1.1\r\nHost:\r\n a.test",
    "list of hosts": b"POST /x HTTP/1.1\r\nHost: a.test, b.test",
    "host with a path": b"POST /x HTTP/1.1\r\nHost: a.test/x",
    "host with NUL": b"POST /x HTTP/1.1\r\nHost: a.test\0b.test",
    "host with a high byte": b"POST /x HTTP/1.1\r\nHost: a.test\xff",
    "empty host": b"POST /x HTTP/1.1\r\nHost:",
    "empty line before": b"\r\nPOST /x HTTP/1.1\r\nHost: a.test",
    "bare LF before": b"\nPOST /x HTTP/1.1\r\nHost: a.test",
    "space before": b" POST /x HTTP/1.1\r\nHost: a.test",
    "space behind": b"POST /x HTTP/1.1 \r\nHost: a.test",
    "two spaces": b"POST  /x HTTP/1.1\r\nHost: a.test",
    "tab": b"POST\t/x\tHTTP/1.1\r\nHost: a.test",
    "NUL": b"POST /x\0 HTTP/1.1\r\nHost: a.test",
    "fragment": b"POST /x#y HTTP/1.1\r\nHost: a.test",
    "UTF-8": b"POST /\xc3\xa9 HTTP/1.1\r\nHost: a.test",
    "HTTP/1.0": b"POST /x HTTP/1.0\r\nHost: a.test",
    "HTTP/1.2": b"POST /x HTTP/1.2\r\nHost: a.test",
    "HTTP/01.1": b"POST /x HTTP/01.1\r\nHost: a.test",
    "HTTP/1.10": b"POST /x HTTP/1.10\r\nHost: a.test",
    "lower case": b"POST /x http/1.1\r\nHost: a.test",
    "HTTP/0.9": b"POST /x\r\nHost: a.test",
    "no slash": b"POST x HTTP/1.1\r\nHost: a.test",
    "star": b"OPTIONS * HTTP/1.1\r\nHost: a.test",
    "upgrade": (
        b"POST /x HTTP/1.1\r\nHost: a.test\r\nConnection: upgrade\r\nUpgrade: tcp"
    ),
    "h2c": b"POST /x HTTP/1.1\r\nHost: a.test\r\nConnection: upgrade\r\nUpgrade: h2c",
    "GET with a body": b"GET /x HTTP/1.1\r\nHost: a.test",
    "expect": b"POST /x HTTP/1.1\r\nHost: a.test\r\nExpect: 100-continue",
}

TRICKS = {
    **{f"coding: {k}": post(v, body=CHUNKS) for k, v in CODINGS.items()},
    **{
        f"coding and length: {k}": post(b"Content-Length: 5", v, body=CHUNKS)
        for k, v in CODINGS.items()
    },
    **{f"length: {k}": post(v, body=b"hello") for k, v in LENGTHS.items()},
    **{
        f"length and coding: {k}": post(v, CODINGS["plain"], body=CHUNKS)
        for k, v in LENGTHS.items()
    },
    **{f"body: {k}": post(CODINGS["plain"], body=v) for k, v in BODIES.items()},
    **{
        f"line: {k}": v + b"\r\nContent-Length: 5\r\n\r\nhello"
        for k, v in FIRST_LINES.items()
    },
    **{
        f"line and chunks: {k}": v + b"\r\nTransfer-Encoding: chunked\r\n\r\n" + CHUNKS
        for k, v in FIRST_LINES.items()
    },
}


class Passed(NamedTuple):
    """What came out of the front end."""

    connections: list[Heard]
    asked: int
    """Requests that were led to a target."""
    answers: bytes


class Heard:
    """What came to a target on one connection."""

    def __init__(self, far: Far) -> None:
        self.far = far
        self.said = b""

    @property
    def cut(self) -> bool:
        return Code.RESET in self.far.resets

    async def answer(self) -> None:
        """Answer whenever nothing has come for a while."""
        while True:
            piece = None
            with trio.move_on_after(1):
                piece = await self.far.far.receive_some()
            if piece:
                self.said += piece
                continue
            try:
                await self.far.far.send_all(OK)
            except trio.BrokenResourceError:
                return
            if piece is not None:
                return


async def passed(said: bytes) -> Passed:
    """Say something to the front end, and collect what goes on."""
    connections: list[Heard] = []
    async with town() as it, trio.open_nursery() as nursery:

        async def serve() -> None:
            while True:
                heard = Heard(await it.opened())
                connections.append(heard)
                nursery.start_soon(heard.answer)

        nursery.start_soon(serve)
        await it.say(said)
        await it.visitor.send_eof()
        answers = await it.rest()
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    return Passed(connections, len(it.asked), answers)


def plain(message: Message) -> Message:
    fields, trailers = (
        [(name, value.strip(b" \t")) for name, value in some]
        for some in (message.fields, message.trailers)
    )
    return message._replace(fields=fields, trailers=trailers)


def check(out: Passed) -> None:
    """Check that two other programs read what goes on as we did, and as one thing."""
    count = 0
    for heard in out.connections:
        messages = [plain(message) for message in by_h11(heard.said)]
        count += len(messages)
        known = {message.method for message in messages} <= KNOWN_TO_LLHTTP
        if known and b"\r\nUpgrade: " not in heard.said:
            assert [plain(message) for message in by_llhttp(heard.said)] == messages
        assert all(message.whole for message in messages[:-1])
        assert not messages or messages[-1].whole is not heard.cut
        for message in messages:
            names = {name for name, _ in message.trailers}
            assert not names & {b"content-length", b"transfer-encoding", b"host"}
            assert not any(b"forwarded" in name for name in names)
            assert [v for k, v in message.fields if k == b"host"] == [b"a.test"]
    assert count <= out.asked


@pytest.mark.parametrize("name", TRICKS)
async def test_what_goes_on_is_one_message_to_everybody(
    name: str, autojump_clock: trio.testing.MockClock
) -> None:
    out = await passed(TRICKS[name] + BEHIND)
    check(out)
    targets = [m.target for heard in out.connections for m in by_h11(heard.said)]
    if len(targets) == 2:  # what is behind is a request of its own
        assert targets[1] == b"/smuggled"
    else:  # or is never believed
        assert b"/smuggled" not in targets
        assert b"\r\nConnection: close\r\n" in out.answers


LINES = st.sampled_from(
    sorted(
        {
            *(CODINGS.values()), *(LENGTHS.values()), *(FIRST_LINES.values()),
            *(BODIES.values()), b"POST /x HTTP/1.1\r\nHost: a.test", b"", b"hello",
        }
    )
)  # fmt: skip


@given(st.lists(st.one_of(LINES, st.binary(max_size=6)), max_size=12))
def test_whatever_is_said_goes_on_as_messages_that_all_read_alike(
    said: list[bytes],
) -> None:
    out = trio.run(
        passed, b"\r\n".join(said) + b"\r\n\r\n" + BEHIND,
        clock=trio.testing.MockClock(autojump_threshold=0),
    )  # fmt: skip
    check(out)
