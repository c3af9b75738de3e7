"""The vectors of protocol.md, read from that file: what they say is what we do.

A test that fails here says that the wire has changed. If that is meant, the expected
text in its message is what belongs into protocol.md, together with a new version.
"""

from __future__ import annotations

import json
from dataclasses import fields, is_dataclass, replace
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import TYPE_CHECKING, Any, Final, get_args

import pytest
from support.tables import blocks, protocol_text

from tunnel.addresses import Address, UnixPath
from tunnel.errors import Code, RemoteLinkError, RemoteSessionError
from tunnel.proto import events as ev
from tunnel.proto.claims import HandshakeResult, ResumeState
from tunnel.proto.codec import FrameDecoder, decode_one
from tunnel.proto.frames import (
    CAN_MAP,
    CAN_UDP,
    HEADER_BYTES,
    AskTarget,
    BindTarget,
    LinkTarget,
    MappingAnswer,
    MappingEntry,
    MappingOp,
    NameTarget,
    OtherTarget,
    ProtAccept,
    ProtAuth,
    ProtAuthAnswer,
    ProtClose,
    ProtCreate,
    ProtData,
    ProtDatagram,
    ProtExtension,
    ProtFrame,
    ProtGoAway,
    ProtHello,
    ProtMapping,
    ProtMappingAnswer,
    ProtPing,
    ProtReceived,
    ProtWindow,
    SessionTarget,
    SockMap,
    Target,
    TcpTarget,
    Terms,
    ThroughputTarget,
    UdpTarget,
)
from tunnel.proto.handshake import ClientHandshake, ServerHandshake
from tunnel.proto.mux import MuxCore
from tunnel.proto.payloads import encode
from tunnel.proto.proofs import (
    PLAIN_BINDING,
    client_proof,
    resume_proof,
    resume_secret,
    secrets_of,
    server_proof,
    transcript,
    verifier_of,
)
from tunnel.proto.rules import Rules
from tunnel.proto.window import RecvWindow

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tunnel.proto.conn import VirtualConn

Json = Any
"""What json.loads gives."""

TEXT: Final = protocol_text()
TOKEN: Final = bytes(range(32))
NAME: Final = "anna"
NONCES: Final = {"C": b"c" * 32, "S": b"s" * 32}
SESSION_ID: Final = b"0123456789abcdef"
USERS: Final = {NAME: verifier_of(NAME, TOKEN)}
DUMMY: Final = verifier_of("nobody", bytes(32))
TERMS: Final = Terms(agent="tunnel")
BUDGET_BYTES: Final = 65_536

# Hex and JSON ------------------------------------------------------------------------


def hex_lines(frame: bytes, first: str = "", more: str = "") -> str:
    """Write a frame: the four parts of its header, then the payload in rows."""
    head, payload = frame[:HEADER_BYTES].hex(), frame[HEADER_BYTES:].hex()
    parts = f"{head[:6]} {head[6:8]} {head[8:10]} {head[10:]} {payload[:56]}".rstrip()
    rest = [payload[at : at + 80] for at in range(56, len(payload), 80)]
    return "".join([f"{first}{parts}\n", *(f"{more}{row}\n" for row in rest)])


FRAMES: Final[dict[str, type[Any]]] = {
    "DATA": ProtData,
    "CREATE": ProtCreate,
    "CREATE|ACK": ProtAccept,
    "CLOSE": ProtClose,
    "MAPPING": ProtMapping,
    "MAPPING|ACK": ProtMappingAnswer,
    "HELLO": ProtHello,
    "AUTH": ProtAuth,
    "AUTH|ACK": ProtAuthAnswer,
    "PING": ProtPing,
    "WINDOW": ProtWindow,
    "GO_AWAY": ProtGoAway,
    "DATAGRAM": ProtDatagram,
    "RECEIVED": ProtReceived,
    "EXTENSION": ProtExtension,
}
BYTES: Final = (
    "payload", "nonce", "session_id", "resume_proof", "proof", "opaque", "client_id",
)  # fmt: skip
ADDRESSES: Final = ("visitor", "bound", "address")


def plain(value: object) -> Json:
    """Give a value in what JSON knows."""
    match value:
        case bytes() | memoryview():
            return value.hex()
        case Address(host, port):
            return [host, port]
        case TcpTarget(address):
            return {"tcp": plain(address)}
        case UdpTarget(name, index):
            return {"udp": name, "index": index}
        case BindTarget(expected):
            return {"bind": plain(expected)}
        case Code():
            return value.name
        case dict():
            return {str(kind): plain(one) for kind, one in value.items()}
        case list() | tuple():
            return [plain(one) for one in value]
        case IPv4Network() | IPv6Network():
            return str(value)
        case Rules():
            said = {one.name: getattr(value, one.name) for one in fields(value)}
            return {
                name: plain(one)
                for name, one in said.items()
                if one != getattr(Rules(), name)
            }
        case _:
            pass
    if is_dataclass(value):
        found = {field.name: getattr(value, field.name) for field in fields(value)}
        return {name: plain(one) for name, one in found.items() if one is not None}
    return value


def describe(frame: ProtFrame) -> dict[str, Json]:
    name = next(name for name, kind in FRAMES.items() if type(frame) is kind)
    said = plain(frame)
    for name_ in ("too_many", "client_id"):
        if not said.get(name_, 1):
            del said[name_]
    if said.pop("ack", False):
        name += "|ACK"
    return {"frame": name, **said}


def _value(name: str, said: Json) -> object:
    if name in BYTES:
        return bytes.fromhex(said)
    if name in ADDRESSES:
        return Address(*said)
    match name:
        case "code":
            return Code[said]
        case "op":
            return MappingOp(said)
        case "tlvs":
            return {int(kind): bytes.fromhex(one) for kind, one in said.items()}
        case "target":
            return target(said)
        case "entries":
            return [entry(one) for one in said]
        case "answers":
            return answers(said)
        case _:
            return said


def target(said: dict[str, Json]) -> Target:
    if "tcp" in said:
        return TcpTarget(Address(*said["tcp"]))
    if "udp" in said:
        return UdpTarget(said["udp"], said["index"])
    if "bind" in said:
        return BindTarget(Address(*said["bind"]))
    if "name" in said:
        return NameTarget(**said)
    if "path" in said:
        return UnixPath(said["path"])
    if "upload" in said:
        return ThroughputTarget(**said)
    if "session_id" in said:
        inner = target(said["target"])
        assert isinstance(inner, NameTarget | TcpTarget)
        return SessionTarget(bytes.fromhex(said["session_id"]), inner)
    if "encrypted" in said:
        return LinkTarget(said["encrypted"], tuple(said["users"]))
    if not said:
        return AskTarget()
    return OtherTarget(said["type"], bytes.fromhex(said["body"]))


def entry(said: dict[str, Json]) -> MappingEntry:
    rules = dict(said.get("rules", ()))
    for name in ("allow", "deny"):
        rules[name] = tuple(map(ip_network, rules.get(name, ())))
    return MappingEntry(
        **{**said, "rules": Rules(**rules) if "rules" in said else None}
    )


def answers(said: list[dict[str, Json]]) -> list[MappingAnswer]:
    return [MappingAnswer(**{**one, "code": Code[one["code"]]}) for one in said]


def build(said: dict[str, Json]) -> ProtFrame:
    values = {name: _value(name, one) for name, one in said.items() if name != "frame"}
    name, ack = str(said["frame"]), "|ACK"
    if name.removesuffix(ack) in ("HELLO", "PING"):
        values["ack"] = name.endswith(ack)
        name = name.removesuffix(ack)
    frame: ProtFrame = FRAMES[name](**values)
    return frame


def render(name: str, said: dict[str, Json], frame: bytes) -> str:
    return f"# {name}\n{json.dumps(said, ensure_ascii=False)}\n{hex_lines(frame)}"


def vectors(word: str) -> list[Any]:
    """Read (JSON, bytes, whole text) of each vector in the block of this word."""
    (block,) = blocks(TEXT, word)
    found = []
    for text in block.split("\n\n"):
        title, said, *rows = text.strip().split("\n")
        assert title.startswith("# ")
        frame = bytes.fromhex("".join(rows))
        found.append(
            pytest.param(json.loads(said), frame, text.strip() + "\n", id=title[2:])
        )
    return found


# Proofs and frames -------------------------------------------------------------------


def proofs() -> str:
    secrets = secrets_of(NAME, TOKEN)
    hello_c = encode(ProtHello(False, 1, 1, NONCES["C"]))
    hello_s = encode(ProtHello(True, 1, 0, NONCES["S"]))
    script = transcript(hello_c, hello_s, PLAIN_BINDING)
    auth = encode(ProtAuth(NAME, 1))[HEADER_BYTES:-32]
    proof_c = client_proof(secrets, script, auth)
    answer = encode(ProtAuthAnswer(SESSION_ID, 0, False))[HEADER_BYTES:-32]
    secret = resume_secret(secrets.server_key, script)
    values = {
        "ClientKey": secrets.client_key,
        "StoredKey": secrets.verifier.stored_key,
        "ServerKey": secrets.server_key,
        "T": script,
        "proof_c": proof_c,
        "proof_s": server_proof(secrets.server_key, script, proof_c, answer),
        "R": secret,
        "resume proof": resume_proof(secret, script, SESSION_ID, 4096, 2),
    }
    return "".join(f"{name:<13}{value.hex()}\n" for name, value in values.items())


def test_the_proofs_are_those_of_the_text() -> None:
    assert blocks(TEXT, "proofs") == [proofs()]


@pytest.mark.parametrize(("said", "frame", "text"), vectors("frames"))
def test_a_frame_is_read_and_written_as_the_text_says(
    said: dict[str, Json], frame: bytes, text: str
) -> None:
    assert encode(build(said)) == frame
    assert decode_one(frame) == (build(said), len(frame))
    assert [describe(found) for found in FrameDecoder().feed(frame)] == [said]
    assert render(text.partition("\n")[0][2:], said, frame) == text


@pytest.mark.parametrize(("said", "frame", "text"), vectors("lenient-frames"))
def test_a_frame_of_another_dialect_is_read_as_the_text_says(
    said: dict[str, Json], frame: bytes, text: str
) -> None:
    assert [describe(found) for found in FrameDecoder().feed(frame)] == [said]
    assert encode(build(said)) != frame


@pytest.mark.parametrize(("said", "frame", "text"), vectors("bad-frames"))
def test_a_frame_that_breaks_a_rule_is_refused_as_the_text_says(
    said: str, frame: bytes, text: str
) -> None:
    with pytest.raises(RemoteSessionError) as caught:
        list(FrameDecoder().feed(frame))
    assert caught.value.code.name == said


def test_every_kind_has_a_vector() -> None:
    assert set(FRAMES.values()) == set(get_args(ProtFrame))
    said = {vector.values[0]["frame"] for vector in vectors("frames")}
    assert said == {*FRAMES, "HELLO|ACK", "PING|ACK"}
    assert len(vectors("frames")) >= 20


def test_the_worked_example_of_credit_is_true() -> None:
    window = RecvWindow(262_144, 262_144)
    assert window.fits(262_144)
    window.received += 262_144
    assert not window.fits(1)
    assert not window.consume(100_000)
    assert window.consume(31_072)
    assert window.grant() == 393_216
    assert window.fits(131_072)
    assert not window.fits(131_073)


# Conversations -----------------------------------------------------------------------


def address(text: str) -> Address:
    host, _, port = text.rpartition(":")
    return Address(host, int(port))


class End:
    """One side: its link start, if the conversation has one, then its core."""

    def __init__(self, name: str, *, link_start: bool) -> None:
        self.name = name
        self.now = 0.0
        self.shake: ClientHandshake | ServerHandshake | None = None
        self.core: MuxCore | None = None
        self.session: HandshakeResult | None = None
        self.conns: dict[int, VirtualConn] = {}
        self.heard: list[str] = []
        self.last_words = b""
        """For a link that is refused: the session's own is another one."""
        if link_start:
            self.dial(1)
        else:
            both = replace(TERMS, capabilities=CAN_MAP | CAN_UDP)
            self.core = MuxCore(client=name == "C", ours=both, theirs=both, now=0.0)

    def dial(self, link_no: int) -> None:
        """Begin the start of a link; till it has ended, the core waits."""
        nonce = bytes(byte + link_no - 1 for byte in NONCES[self.name])
        if self.name == "S":
            lookup = USERS.get
            self.shake = ServerHandshake(TERMS, nonce, PLAIN_BINDING, lookup, DUMMY)
            return
        resume = None
        if self.session is not None:
            assert self.core is not None
            count, known = self.core.received, self.session
            resume = ResumeState(known.session_id, count, known.resume_secret)
        self.shake = ClientHandshake(
            NAME, TOKEN, TERMS, nonce, PLAIN_BINDING, link_no, resume
        )

    def _begin(self, result: HandshakeResult) -> None:
        if result.resumed:
            assert self.core is not None
            self.core.resume(result.count, self.now)
        else:
            self._begin_session(result)
        self.receive(result.leftover)

    def _begin_session(self, result: HandshakeResult) -> None:
        if self.core is not None:
            for conn in self.core.end():
                self.heard.append(f"reset {conn.sock_map}")
        self.session = result
        assert result.resume_s
        self.core = MuxCore(
            client=self.name == "C",
            ours=TERMS,
            theirs=result.peer_terms,
            now=self.now,
            replay_limit=result.replay_limit,
        )

    def write(self) -> bytes:
        if self.last_words:
            data, self.last_words = self.last_words, b""
            return data
        if self.shake is not None:
            data = self.shake.data_to_send()
            if self.shake.result is None:
                return data
            self.shake = None
            return data + self.write()
        core, pieces = self.core, []
        assert core is not None
        while core.has_output():
            pieces += core.data_to_send(BUDGET_BYTES, self.now)
        return b"".join(pieces)

    def receive(self, data: bytes) -> None:
        if self.shake is None or self.shake.result is not None:
            assert self.core is not None
            for event in self.core.receive_data(data, self.now):
                self.heard.append(self._words(event))
            return
        shake = self.shake
        try:
            shake.receive(data)
        except RemoteLinkError as error:
            self.heard.append(f"refused {error.code.name}")
            self.shake = None
            return
        if isinstance(shake, ServerHandshake) and shake.claim is not None:
            claim = shake.claim
            words = f"login {claim.name} link_no {claim.link_no}"
            if claim.session_id:
                words += f" resume {claim.session_id.decode()} count {claim.count}"
            self.heard.append(words)
        elif shake.result is not None:
            result = shake.result
            words = f"resumed count {result.count}" if result.resumed else "new session"
            self.heard.append(f"proved {words}")
            self._begin(result)

    def answer_login(self, verb: str, words: str) -> None:
        shake = self.shake
        assert isinstance(shake, ServerHandshake)
        assert shake.claim is not None
        if verb == "refuse":
            code, _, reason = words.partition(" ")
            shake.refuse(Code[code], json.loads(reason))
            self.last_words, self.shake = shake.data_to_send(), None
            return
        if verb == "resume":
            assert self.core is not None
            assert self.session is not None
            assert shake.claim.proves(self.session.resume_secret)
            assert self.core.can_resume(shake.claim.count)
            shake.accept(SESSION_ID, self.core.received, resumed=True)
        else:
            shake.accept(words.encode(), 0, resumed=False)
        assert shake.result is not None
        self._begin(shake.result)

    def restart(self) -> None:
        """Forget everything, as a program does that was started anew."""
        self.core = self.session = None

    def _words(self, event: ev.Event) -> str:
        match event:
            case ev.StreamOffered(conn, create):
                self.conns[conn.sock_map] = conn
                said = plain(create)
                return f"offered {said.pop('sock_map')} {json.dumps(said)}"
            case ev.StreamOpened(conn, bound):
                return f"opened {conn.sock_map} {bound or ''}".rstrip()
            case ev.DataReceived(conn, pieces):
                payload = b"".join(pieces)
                assert self.core is not None
                self.core.consumed(conn, len(payload))
                return f"data {conn.sock_map} {json.dumps(payload.decode())}"
            case ev.DatagramReceived(conn, source, payload):
                said = json.dumps(payload.decode())
                return f"datagram {conn.sock_map} {source} {said}"
            case ev.StreamFinished(conn):
                return f"finished {conn.sock_map}"
            case ev.StreamClosed(conn, code, reason):
                return f"closed {conn.sock_map} {code.name} {json.dumps(reason)}"
            case ev.MappingAsked(mapping):
                return f"mapping {mapping.op.name} {json.dumps(plain(mapping.entries))}"
            case ev.MappingAnswered(found):
                return f"answers {json.dumps(plain(found))}"
            case ev.PingAnswered():
                return "pong"
            case ev.LinkClosing(away):
                return f"away {away.code.name} {json.dumps(away.reason)}"
            case _:
                raise AssertionError(event)

    def do(self, verb: str, words: str) -> None:
        if verb in ("admit", "resume", "refuse"):
            return self.answer_login(verb, words)
        if verb == "restart":
            return self.restart()
        core = self.core
        assert core is not None
        first, _, rest = words.partition(" ")
        match verb:
            case "ping":
                core.ping(self.now)
            case "wait":
                self.now += float(first)
                core.on_time(self.now)
            case "extend":
                # This program knows no extension: a later one would send it so.
                frame = ProtExtension(int(first), SockMap(int(rest)), 0)
                core._output.control.push(encode(frame))
            case "leave":
                core.go_away(Code[first], json.loads(rest))
            case "mapping":
                entries = [entry(one) for one in json.loads(rest)]
                core.ask_mapping(MappingOp[first], entries)
            case "answer":
                core.answer_mapping(answers(json.loads(words)))
            case "open":
                said = json.loads(rest)
                visitor = Address(*said["visitor"]) if "visitor" in said else None
                conn = core.open(target(said["target"]), self.now, visitor)
                assert conn.sock_map == int(first)
                self.conns[conn.sock_map] = conn
            case _:
                self._do_stream(core, verb, self.conns[int(first)], rest)

    def _do_stream(
        self, core: MuxCore, verb: str, conn: VirtualConn, rest: str
    ) -> None:
        match verb:
            case "accept":
                core.accept(conn, address(rest) if rest else None)
            case "send":
                core.send_data(conn, json.loads(rest).encode())
            case "datagram":
                where, _, text = rest.partition(" ")
                core.send_datagram(conn, address(where), json.loads(text).encode())
            case "finish":
                core.finish(conn)
            case "close":
                code, _, reason = rest.partition(" ")
                core.close(conn, Code[code], json.loads(reason or '""'))
            case _:
                raise AssertionError(verb)


def steps(script: str) -> Iterator[tuple[str, str, str]]:
    """Give (side, verb, words) of each line, what is sent at once as one line."""
    before = ""
    for line in script.splitlines():
        if line.startswith(" "):
            continue
        side, _, rest = line.partition(" ")
        if side[1:] in (">", "!"):
            if side != before:
                yield side[0], side[1:], ""
        else:
            verb, _, words = rest.partition(" ")
            yield side, verb, words
        before = side


def split(data: bytes) -> Iterator[bytes]:
    while data:
        found = decode_one(data)
        assert found is not None
        yield data[: found[1]]
        data = data[found[1] :]


def play(script: str) -> str:
    """Do what the lines say; give them with what was really sent and heard."""
    link_start = script.startswith("C link 1\n")
    ends = {name: End(name, link_start=link_start) for name in "CS"}
    out = ""
    for side, verb, words in steps(script):
        end = ends[side]
        if verb in (">", "!"):
            data = end.write()
            if verb == ">":
                for one in split(data):  # together, DATA would be heard as one piece
                    ends["S" if side == "C" else "C"].receive(one)
            out += "".join(
                hex_lines(one, f"{side}{verb} ", "   ") for one in split(data)
            )
        elif verb == "hears":
            out += f"{side} hears {end.heard.pop(0) if end.heard else 'nothing'}\n"
        else:
            if verb == "link":
                for other in ends.values():
                    other.dial(int(words))
            else:
                end.do(verb, words)
            out += f"{side} {verb} {words}".rstrip() + "\n"
    for end in ends.values():
        assert not end.heard
        assert not end.write()
        assert end.core is not None
        assert not end.core.conns
    return out


@pytest.mark.parametrize("script", blocks(TEXT, "conversation"))
def test_a_conversation_goes_as_the_text_says(script: str) -> None:
    assert play(script) == script


def test_there_are_nine_conversations() -> None:
    assert len(blocks(TEXT, "conversation")) == 9
