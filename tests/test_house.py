"""What protocol.md says is what the code does, and the code says what it is."""

from __future__ import annotations

import ast
import re
from dataclasses import fields
from typing import TYPE_CHECKING, Final

import pytest
from support.tables import ROOT, TABLES, protocol_text, rows, section

from tunnel.access import gate
from tunnel.center import exit_bind, kinds, mappings, server, sessions
from tunnel.front import listen, udp
from tunnel.link import descriptors, link, pace, patience, relay, session, transport
from tunnel.proto import (
    codec,
    datagrams,
    frames,
    growth,
    handshake,
    lanes,
    mux,
    opens,
    replay,
    room,
    window,
    work,
)
from tunnel.proto.frames import MAX_FRAME_BYTES, MIN_FRAME_BYTES, ProtKind, Terms

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TEXT: Final = protocol_text()
SOURCES: Final = sorted((ROOT / "tunnel").rglob("*.py"))
TERMS: Final = Terms()

LIMITS: Final = {
    "largest max_frame": MAX_FRAME_BYTES,
    "smallest max_frame": MIN_FRAME_BYTES,
    "bytes before the proof": handshake.MAX_UNPROVEN_BYTES,
    "initial_window": TERMS.initial_window,
    "smallest initial_window": handshake._MIN_WINDOW,
    "largest initial_window": handshake._MAX_WINDOW,
    "largest offset or count": codec.MAX_OFFSET,
    "max_streams": TERMS.max_streams,
    "tolerance above max_streams": opens.OPENS_TOLERANCE,
    "unanswered opens": opens.MAX_UNANSWERED_OPENS,
    "opens_per_s": TERMS.opens_per_s,
    "unanswered MAPPINGs": mux.MAX_UNANSWERED_MAPPINGS,
    "entries of one MAPPING": frames.MAX_MAPPING_ENTRIES,
    "fields of one list": codec.MAX_FIELDS,
    "frames without effect": mux.NUISANCE_PER_S,
    "frames without effect at once": mux.NUISANCE_BURST,
    "waiting control bytes": mux.CONTROL_QUEUE_BYTES,
    "control in one turn": mux.CONTROL_TURN_BYTES,
    "grants in one turn": mux.WINDOWS_A_TURN,
    "a frame costs of a turn, besides its bytes": lanes.FRAME_COST_BYTES,
    "work of one turn for what came": work.TURN_WORK,
    "idle_ping_s": TERMS.idle_ping_s,
    "resume_s if not said": handshake.DEFAULT_RESUME_S,
    "replay_limit if not said": handshake.DEFAULT_REPLAY_LIMIT,
    "unconfirmed session bytes": replay.REPLAY_LIMIT_BYTES,
    "RECEIVED after": replay.STATE_EVERY_BYTES,
    "RECEIVED again, at the earliest": 1_000 * replay.STATE_PAUSE_S,
    "RECEIVED after, at most": replay.STATE_MOST_BYTES,
    "RECEIVED after, at the latest": 1_000 * replay.STATE_AFTER_S,
    "largest window": growth.MAX_WINDOW_BYTES,
    "growth of windows, a session": growth.SESSION_GROWTH_BYTES,
    "growth of windows, a process": growth.PROCESS_GROWTH_BYTES,
    "growing windows measure the round trip": growth.PROBE_S,
    "smallest round trip for windows": 1_000 * growth.MIN_ROUND_TRIP_S,
    "idle window": growth.IDLE_S,
    "unsent bytes of a virtual TCP connection": mux.STREAM_QUEUE_BYTES,
    "held for readers by a process": window.HELD_LIMIT_BYTES,
    "DATA in one frame while others wait, at least": lanes.SHARED_FRAME_BYTES,
    "committed to the kernel at once, at most": pace.MAX_TURN_BYTES,
    "committed to the kernel at once, at least": pace.MIN_TURN_BYTES,
    "one turn": 1_000 * pace.TURN_S,
    "unsent in the kernel": transport.NOTSENT_LOWAT_BYTES,
    "wait for CREATE|ACK": session.OPEN_DEADLINE_S,
    "CREATE without an answer, at the latest": opens.OPEN_DEADLINE_S,
    "wait for MAPPING|ACK": session.ANSWER_DEADLINE_S,
    "silent end of a local connection": patience.DEAD_AFTER_S,
    "datagrams waiting, of one association": datagrams.ASSOCIATION_BYTES,
    "datagrams waiting, in all": datagrams.SESSION_BYTES,
    "unsent in a process": room.UNSENT_LIMIT_BYTES,
    "unconfirmed in a process": room.KEPT_LIMIT_BYTES,
    "control in a process": room.CONTROL_LIMIT_BYTES,
    "datagrams waiting, in a process": room.DATAGRAM_LIMIT_BYTES,
    "of each of these for a session, at least": room.LEAST_BYTES,
    "unconfirmed of a session, at least": replay.LEAST_KEPT_BYTES,
    "datagrams before a turn of DATA": datagrams.DATAGRAM_TURN_BYTES,
    "idle UDP association": patience.UDP_IDLE_S,
    "idle UDP association without an answer": patience.UDP_UNANSWERED_S,
    "associations of one UDP port": udp.MAX_ASSOCIATIONS,
    "wait for the peer of a BIND": exit_bind.WAIT_S,
    "before RST, for the kernel to send": relay.GRACE_S,
    "after GO_AWAY, for the peer to read": link.LINGER_S,
    "TCP_USER_TIMEOUT of a link": transport.LOST_AFTER_MS,
}

SERVER_LIMITS: Final = {
    "first byte of a link": server.FIRST_BYTE_S,
    "whole link start": server.HANDSHAKE_S,
    "links that are not proved": gate.MAX_UNPROVEN,
    "failures of one address and name at once": gate.FAILURE_BURST,
    "one more failure after": gate.FAILURE_REFILL_S,
    "answer to a wrong proof after": server.FAILURE_DELAY_S,
    "sessions of one user": sessions.MAX_SESSIONS,
    "sessions of one user without a link": sessions.MAX_WAITING_SESSIONS,
    "kept for sessions without a link": sessions.MAX_KEPT_BYTES,
    "descriptors kept back for links": descriptors.RESERVE,
    "visitors of one address": listen.MAX_PER_ADDRESS,
    "ports of an entry": kinds.MAX_RANGE,
    "entries of one client": mappings.MAX_CLIENT_NAMES,
    "entries of all clients": mappings.MAX_NAMES,
    "silent owner of a wanted port": mappings.SILENT_OWNER_S,
    "drain": server.DRAIN_S,
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
    ("name", "limits"), [("limits", LIMITS), ("server-limits", SERVER_LIMITS)]
)
def test_the_limits_of_the_text_are_those_of_the_code(
    name: str, limits: dict[str, float]
) -> None:
    said = {limit: number(value) for limit, value, _ in rows(section(TEXT, name))}
    assert said == limits


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
    assert said == handshake._HELLO_FIELDS


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
