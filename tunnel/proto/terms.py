"""What both ends agree on: the fields of HELLO and AUTH (protocol.md#hello, #auth)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tunnel.errors import Code, RemoteLinkError
from tunnel.proto.fields import check_tlvs
from tunnel.proto.frames import MAX_FRAME_BYTES, MIN_FRAME_BYTES, Terms
from tunnel.words import printable

if TYPE_CHECKING:
    from collections.abc import Mapping

DEFAULT_RESUME_S: Final = 120
DEFAULT_REPLAY_LIMIT: Final = 16 * 1024 * 1024
MIN_WINDOW: Final = 16_384
MAX_WINDOW: Final = (1 << 31) - 1

_MAX_AGENT_BYTES: Final = 64
_MAX_U32: Final = (1 << 32) - 1
_MAX_U16: Final = (1 << 16) - 1
_HELLO_FIELDS: Final = frozenset((1, 2, 3, 4, 5, 6, 7, 8, 10))
_AUTH_FIELDS: Final = frozenset((1, 2, 3))
_NEXT_PIN: Final = 128
"""A field of the server's AUTH that older clients ignore."""
_HINT_OF_AUTH: Final = 129
"""A field of the server's AUTH, for the client's later links."""
_HINT_OF_HELLO: Final = 128
"""The same, as a client says it again."""
PIN_BYTES: Final = 32
MAX_HINT_BYTES: Final = 64


def broken(what: str) -> RemoteLinkError:
    """Make the error for what the peer sent before it was proved."""
    return RemoteLinkError(Code.PROTOCOL, f"the peer sent {what}")


def hello_tlvs(terms: Terms, *, client: bool) -> dict[int, bytes]:
    """Write the fields of a HELLO; only a client says its id."""
    agent = terms.agent.encode(errors="replace")[:_MAX_AGENT_BYTES]
    tlvs = {
        1: terms.max_frame.to_bytes(4, "big"),
        2: terms.initial_window.to_bytes(4, "big"),
        3: terms.max_streams.to_bytes(4, "big"),
        4: terms.max_datagram.to_bytes(2, "big"),
        5: terms.idle_ping_s.to_bytes(2, "big"),
        6: terms.capabilities.to_bytes(4, "big"),
        7: agent.decode(errors="ignore").encode(),
        10: terms.opens_per_s.to_bytes(4, "big"),
    }
    if client:
        tlvs[8] = terms.client_id
    return tlvs


def _number(
    tlvs: Mapping[int, bytes],
    kind: int,
    default: int,
    size: int = 4,
    least: int = 0,
    most: int = _MAX_U32,
) -> int:
    raw = tlvs.get(kind)
    if raw is None:
        return default
    number = int.from_bytes(raw, "big")
    if len(raw) != size or not least <= number <= most:
        raise broken(f"a field {kind} of {len(raw)} bytes that is not {least}..{most}")
    return number


def _agent(raw: bytes) -> str:
    """Read the peer's name for itself; it goes to logs, so it stays in its line."""
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        raise broken("an agent that is not UTF-8") from None
    if len(raw) > _MAX_AGENT_BYTES:
        raise broken(f"an agent of {len(raw)} bytes")
    return printable(text)


def read_terms(tlvs: Mapping[int, bytes]) -> Terms:
    """Read the fields of a HELLO; what is not said has the default of ``Terms``.

    A larger ``max_frame`` than this version's is cut down to it: we need not use all
    that a peer would take.

    Raises:
        RemoteLinkError: ``PROTOCOL``, a value that is out of its range.
        RemoteSessionError: ``VERSION``, an unknown field below 128.
    """
    check_tlvs(tlvs, _HELLO_FIELDS)
    usual = Terms()
    client_id = tlvs.get(8, usual.client_id)
    if len(client_id) != len(usual.client_id):
        raise broken(f"a client id of {len(client_id)} bytes")
    max_frame = _number(tlvs, 1, usual.max_frame, least=MIN_FRAME_BYTES)
    return Terms(
        max_frame=min(max_frame, MAX_FRAME_BYTES),
        initial_window=_number(
            tlvs, 2, usual.initial_window, least=MIN_WINDOW, most=MAX_WINDOW
        ),
        max_streams=_number(tlvs, 3, usual.max_streams),
        max_datagram=_number(tlvs, 4, usual.max_datagram, size=2, most=_MAX_U16),
        # 0 would mean a PING without end, and opens that are never due.
        idle_ping_s=_number(tlvs, 5, usual.idle_ping_s, size=2, least=1, most=_MAX_U16),
        capabilities=_number(tlvs, 6, usual.capabilities),
        agent=_agent(tlvs.get(7, b"")),
        client_id=client_id,
        opens_per_s=_number(tlvs, 10, usual.opens_per_s, least=1),
    )


def next_pin_tlvs(pin: bytes) -> dict[int, bytes]:
    """Write what announces the server's next pin; nothing for an empty one."""
    return {_NEXT_PIN: pin} if pin else {}


def read_next_pin(tlvs: Mapping[int, bytes]) -> bytes:
    """Read the pin that a server announces; empty if it announces none."""
    pin = tlvs.get(_NEXT_PIN, b"")
    if len(pin) not in (0, PIN_BYTES):
        raise broken(f"a pin of {len(pin)} bytes")
    return pin


def hint_tlvs(hint: bytes, *, client: bool) -> dict[int, bytes]:
    """Write where a session is (protocol.md#hint); nothing for an empty one."""
    return {_HINT_OF_HELLO if client else _HINT_OF_AUTH: hint} if hint else {}


def read_hint(tlvs: Mapping[int, bytes], *, client: bool) -> bytes:
    """Read where a session is; empty if nothing is said, or nothing that anybody says.

    It is a hint: what is too long is as if it were not there.
    """
    hint = tlvs.get(_HINT_OF_HELLO if client else _HINT_OF_AUTH, b"")
    return hint if len(hint) <= MAX_HINT_BYTES else b""


@dataclass(frozen=True, slots=True)
class SessionTerms:
    """The fields of AUTH: how long a session outlives a link, and what it keeps."""

    resume_s: int
    replay_limit: int

    def tlvs(self) -> dict[int, bytes]:
        """Write the fields of AUTH."""
        return {
            1: self.resume_s.to_bytes(4, "big"),
            2: self.replay_limit.to_bytes(4, "big"),
        }

    def merged(self, tlvs: Mapping[int, bytes]) -> SessionTerms:
        """Return what holds for both: the smaller of each."""
        check_tlvs(tlvs, _AUTH_FIELDS)
        return SessionTerms(
            min(self.resume_s, _number(tlvs, 1, DEFAULT_RESUME_S)),
            min(self.replay_limit, _number(tlvs, 2, DEFAULT_REPLAY_LIMIT)),
        )
