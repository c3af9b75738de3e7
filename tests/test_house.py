"""What protocol.md says is what the code does, and the code says what it is."""

from __future__ import annotations

import ast
import re
from dataclasses import fields
from typing import TYPE_CHECKING, Final

import pytest
from support.tables import ROOT, TABLES, protocol_text, rows, section

from tunnel.access import gate
from tunnel.access.limits import Limits
from tunnel.center import (
    drain,
    endpoints,
    health,
    link_starts,
    mappings,
    sessions,
    sites,
    wire,
)
from tunnel.center.exit import bind as exit_bind
from tunnel.errors import Code
from tunnel.front import udp
from tunnel.front.http import places
from tunnel.link import link, mapping_rpc, transport
from tunnel.link import output as link_output
from tunnel.net import descriptors, listen, relay, timeouts, virtual_connection
from tunnel.proto import (
    codec,
    datagrams,
    frames,
    handshake,
    limits,
    output,
    pools,
    resend,
    rules,
    scheduler,
    terms,
    window,
)
from tunnel.proto import fields as wire_fields
from tunnel.proto import input as incoming
from tunnel.proto import mappings as proto_mappings
from tunnel.proto.calm import Calm
from tunnel.proto.frames import MAX_FRAME_BYTES, MIN_FRAME_BYTES, ProtKind, Terms

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TEXT: Final = protocol_text()
SOURCES: Final = sorted((ROOT / "tunnel").rglob("*.py"))
TERMS: Final = Terms()
USER: Final = Limits()

PEER_LIMITS: Final = {
    "largest max_frame": MAX_FRAME_BYTES,
    "smallest max_frame": MIN_FRAME_BYTES,
    "bytes before the proof": handshake.MAX_UNPROVEN_BYTES,
    "initial_window": TERMS.initial_window,
    "smallest initial_window": terms.MIN_WINDOW,
    "largest initial_window": terms.MAX_WINDOW,
    "largest offset or count": wire_fields.MAX_OFFSET,
    "max_streams": TERMS.max_streams,
    "tolerance above max_streams": limits.OPENS_TOLERANCE,
    "numbers of the peer's that are not free": (
        TERMS.max_streams + limits.OPENS_TOLERANCE + limits.MAX_UNANSWERED_CLOSES
    ),
    "opens_per_s": TERMS.opens_per_s,
    "unanswered MAPPINGs": proto_mappings.MAX_UNANSWERED_MAPPINGS,
    "entries of one MAPPING": frames.MAX_MAPPING_ENTRIES,
    "entries of one MAPPING, at the most": frames.MAX_MAPPING_COUNT,
    "networks of a rule": rules.MAX_NETWORKS,
    "fields of one list": wire_fields.MAX_FIELDS,
    "frames without effect": incoming.NUISANCE_PER_S,
    "frames without effect at once": incoming.NUISANCE_BURST,
    "waiting control bytes": output.CONTROL_QUEUE_BYTES,
    "control in a process": pools.CONTROL_LIMIT_BYTES,
    "idle_ping_s": TERMS.idle_ping_s,
    "resume_s if not said": terms.DEFAULT_RESUME_S,
    "replay_limit if not said": terms.DEFAULT_REPLAY_LIMIT,
    "RECEIVED after": resend.STATE_EVERY_BYTES,
    "RECEIVED after, at the latest": 1_000 * resend.STATE_AFTER_S,
    "held for readers by a process": pools.HELD_LIMIT_BYTES,
    "wait for CREATE|ACK": virtual_connection.OPEN_DEADLINE_S,
    "CREATE without an answer, at the latest": limits.OPEN_DEADLINE_S,
    "wait for MAPPING|ACK": mapping_rpc.ANSWER_DEADLINE_S,
    "silent end of a local connection": timeouts.DEAD_AFTER_S,
    "idle UDP association": timeouts.UDP_IDLE_S,
    "idle UDP association without an answer": timeouts.UDP_UNANSWERED_S,
    "associations of one UDP port": udp.MAX_ASSOCIATIONS,
    "wait for the peer of a BIND": exit_bind.WAIT_S,
    "goodbye, for the peer to confirm": link.FLUSH_S,
    "after GO_AWAY, for the peer to read": link.LINGER_S,
    "read and dropped behind our GO_AWAY": link.LINGER_BYTES,
    "first byte of a link": wire.FIRST_BYTE_S,
    "whole link start": link_starts.HANDSHAKE_S,
    "links that are not proved": gate.MAX_UNPROVEN,
    "failures of one address and name at once": gate.FAILURE_BURST,
    "one more failure after": gate.FAILURE_REFILL_S,
    "answer to a wrong proof after": link_starts.FAILURE_DELAY_S,
    "links of one user": USER.links,
    "sessions of one user": USER.sessions,
    "sessions of one user without a link": USER.waiting,
    "kept for sessions without a link": sessions.MAX_KEPT_BYTES,
    "ports of an entry": endpoints.MAX_RANGE,
    "public ports of one user": USER.ports,
    "names of one user": USER.names,
    "entries of all clients": mappings.MAX_NAMES,
    "entries of one name": sites.MAX_SITE_ENTRIES,
    "remembered first publications": sites.KNOWN_LIVES,
    "silent owner of a wanted port": mappings.SILENT_OWNER_S,
    "drain": drain.DRAIN_S,
}
"""What a peer notices."""

PROGRAM_LIMITS: Final = {
    "unanswered opens": limits.MAX_UNANSWERED_OPENS,
    "control in one turn": output.CONTROL_TURN_BYTES,
    "grants in one turn": output.WINDOWS_A_TURN,
    "a frame costs of a turn, besides its bytes": scheduler.FRAME_COST_BYTES,
    "work of one turn for what came": incoming.TURN_WORK,
    "unconfirmed session bytes": resend.REPLAY_LIMIT_BYTES,
    "RECEIVED again, at the earliest": 1_000 * resend.STATE_PAUSE_S,
    "RECEIVED after, at most": resend.STATE_MOST_BYTES,
    "largest window": window.MAX_WINDOW_BYTES,
    "growth of windows, a session": window.SESSION_GROWTH_BYTES,
    "growth of windows, a process": pools.PROCESS_GROWTH_BYTES,
    "growing windows measure the round trip": window.PROBE_S,
    "smallest round trip for windows": 1_000 * window.MIN_ROUND_TRIP_S,
    "idle window": window.IDLE_S,
    "unsent bytes of a virtual TCP connection": output.STREAM_QUEUE_BYTES,
    "DATA in one frame while others wait, at least": scheduler.SHARED_FRAME_BYTES,
    "committed to the kernel at once, at most": link_output.MAX_TURN_BYTES,
    "committed to the kernel at once, at least": link_output.MIN_TURN_BYTES,
    "one turn": 1_000 * link_output.TURN_S,
    "unsent in the kernel": transport.NOTSENT_LOWAT_BYTES,
    "datagrams waiting, of one association": datagrams.ASSOCIATION_BYTES,
    "datagrams waiting, in all": datagrams.SESSION_BYTES,
    "unsent in a process": pools.UNSENT_LIMIT_BYTES,
    "unconfirmed in a process": pools.KEPT_LIMIT_BYTES,
    "datagrams waiting, in a process": pools.DATAGRAM_LIMIT_BYTES,
    "of each of these for a session, at least": pools.LEAST_BYTES,
    "unconfirmed of a session, at least": resend.LEAST_KEPT_BYTES,
    "datagrams before a turn of DATA": datagrams.DATAGRAM_TURN_BYTES,
    "before RST, for the kernel to send": relay.GRACE_S,
    "TCP_USER_TIMEOUT of a link": transport.LOST_AFTER_MS,
    "descriptors kept back for links": descriptors.RESERVE,
    "visitors of one address": listen.MAX_PER_ADDRESS,
    "addresses whose requests are counted": places.MAX_REMEMBERED,
    "checks of a target": health.EVERY_S,
}
"""What nobody else can see."""

CALM_LIMITS: Final = {
    Calm.FAILED_LOGINS: gate.FAILURE_BURST,
    Calm.SESSIONS: USER.sessions,
    Calm.LINKS: USER.links,
    Calm.FIELDS: wire_fields.MAX_FIELDS,
    Calm.NAMES: frames.MAX_MAPPING_COUNT,
    Calm.MAPPINGS: proto_mappings.MAX_UNANSWERED_MAPPINGS,
    Calm.OPENS: limits.FLOOD_FACTOR * TERMS.opens_per_s,
    Calm.NUMBERS: PEER_LIMITS["numbers of the peer's that are not free"],
    Calm.UNREAD: output.CONTROL_QUEUE_BYTES,
    Calm.PING: incoming.NUISANCE_BURST,
    Calm.WINDOW: incoming.NUISANCE_BURST,
    Calm.RECEIVED: incoming.NUISANCE_BURST,
    Calm.DRAINING: incoming.NUISANCE_BURST,
    Calm.DATAGRAM: incoming.NUISANCE_BURST,
    Calm.EXTENSION: incoming.NUISANCE_BURST,
}


def number(cell: str) -> float:
    """Read the first number of a cell."""
    found = re.search(r"[\d,]+", cell)
    assert found, f"no number in {cell!r}"
    return float(found[0].replace(",", ""))


# protocol.md -----------------------------------------------------------------------


@pytest.mark.parametrize("name", TABLES)
def test_a_generated_table_is_what_the_code_makes(name: str) -> None:
    assert section(TEXT, name) == TABLES[name](), "run python -m tests.support.tables"


@pytest.mark.parametrize(
    ("name", "limits"),
    [("peer-limits", PEER_LIMITS), ("program-limits", PROGRAM_LIMITS)],
)
def test_the_limits_of_the_text_are_those_of_the_code(
    name: str, limits: dict[str, float]
) -> None:
    said = {row[0]: number(row[1]) for row in rows(section(TEXT, name))}
    assert said == limits


def test_a_peer_is_told_what_it_hears_at_each_limit() -> None:
    for row in rows(section(TEXT, "peer-limits")):
        assert len(row) == 4
        assert all(row), row[0]
        for code in re.findall(r"(?:CLOSE|GO_AWAY)\((\w+)\)", row[2]):
            assert code in Code.__members__


def test_the_causes_of_calm_are_those_of_the_code() -> None:
    said = {Calm(row[1]): number(row[2]) for row in rows(section(TEXT, "calm"))}
    assert said == CALM_LIMITS
    assert set(said) == set(Calm)


def test_calm_is_said_for_causes_of_the_table_and_each_is_said_somewhere() -> None:
    """Whoever says CALM names a cause, so no other can be said."""
    used: set[str] = set()
    for path in SOURCES:
        if path.stem in ("calm", "errors"):
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        read = {  # "case Code.CALM:" only reads what a peer said
            id(node.value)
            for node in ast.walk(tree)
            if isinstance(node, ast.MatchValue)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                if node.value.id == "Calm":
                    used.add(node.attr)
                if (node.value.id, node.attr) == ("Code", "CALM"):
                    assert id(node) in read, f"{path}:{node.lineno}"
    assert used == set(Calm.__members__)


def test_the_kinds_of_the_text_are_those_of_the_code() -> None:
    found = {}
    for kind, name, scope, sock_map, size, _ in rows(section(TEXT, "kinds")):
        assert ProtKind[name] == int(kind, 16)
        if name == "TOKEN":  # reserved, so it has no rules
            continue
        # The limit of DATA is what the receiver announced.
        found[ProtKind[name]] = MAX_FRAME_BYTES if name == "DATA" else number(size)
        on_session = ProtKind[name] in codec.SESSION_KINDS
        assert scope == ("session" if on_session else "link")
        assert (sock_map == "0") == (ProtKind[name] in codec._LINK_ID_KINDS)
        assert size.startswith("exactly") == (ProtKind[name] in codec._EXACT)
    assert found == codec.MAX_PAYLOAD


def test_the_fields_of_hello_have_the_defaults_of_the_code() -> None:
    said = {
        row[1]: number(row[3])
        for row in rows(section(TEXT, "hello"))
        if row[3][:1].isdigit()
    }
    numbers = {
        field.name: getattr(TERMS, field.name)
        for field in fields(Terms)
        if isinstance(getattr(TERMS, field.name), int)
    }
    assert said == numbers


def test_the_fields_of_hello_are_those_that_the_code_knows() -> None:
    said = {int(row[0]) for row in rows(section(TEXT, "hello")) if row[1]}
    assert said == terms._HELLO_FIELDS


def anchors() -> set[str]:
    return set(re.findall(r'<a id="([\w-]+)"></a>', TEXT))


def test_every_anchor_is_there_once() -> None:
    found = re.findall(r'<a id="([\w-]+)"></a>', TEXT)
    assert sorted(found) == sorted(set(found))


def test_every_link_within_the_text_has_an_end() -> None:
    assert set(re.findall(r"\]\(#([\w-]+)\)", TEXT)) <= anchors()


def cited(path: Path) -> set[str]:
    text = path.read_text(encoding="utf-8")
    found = re.findall(r"protocol\.md((?:(?:,|\sand)?\s?#[\w-]+)+)", text)
    return {anchor for group in found for anchor in re.findall(r"#([\w-]+)", group)}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_every_anchor_that_the_code_cites_exists(path: Path) -> None:
    assert cited(path) <= anchors()


def test_the_code_cites_the_text() -> None:
    assert {"header", "kinds", "credit", "close"} <= set().union(*map(cited, SOURCES))


# Docstrings ------------------------------------------------------------------------

Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def public(node: Documented, inside: str = "") -> Iterator[tuple[str, Documented]]:
    """Give every public module, class, function and method below ``node``."""
    yield inside or "the module", node
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return
    for child in node.body:
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            marks = {ast.unparse(mark) for mark in child.decorator_list}
            hidden = child.name.startswith("_") or marks & {"override", "overload"}
            if not hidden and not any(mark.endswith(".setter") for mark in marks):
                yield from public(child, f"{inside}.{child.name}".lstrip("."))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_every_public_name_has_a_docstring(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert [name for name, node in public(tree) if not ast.get_docstring(node)] == []


@pytest.mark.parametrize("path", SOURCES, ids=str)
def test_only_one_module_has_names_looked_up(path: Path) -> None:
    """Else they wait in threads that everybody shares: see ``tunnel.net.lookup``."""
    asks = r"trio\.(socket\.getaddrinfo|open_tcp_stream)|socket\.gethostby"
    assert not re.search(asks, path.read_text())
