"""What a link says of its line: round trip, jitter, loss, throughput, packets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio

from tunnel.errors import Code, StreamError
from tunnel.ops.check.measure import LATE_S, TEST_S, Rate, round_trips, throughput
from tunnel.ops.texts import size_text
from tunnel.platform import tcp_info
from tunnel.platform.kernel import congestion_control, network_setting
from tunnel.proto.frames import CAN_TRY

if TYPE_CHECKING:
    import socket

    from tunnel.link.session import Session
    from tunnel.ops.check.findings import Findings
    from tunnel.ops.check.measure import RoundTrips

ADD_RIGHT: Final = "at the server, in users.toml of its state: may += {}"
JITTER_S: Final = 0.03
"""Beyond it, and beyond half of the round trip, calls and games notice."""
FULL_TIMES: Final = 1.1
FULL_S: Final = 0.005
"""A round trip that grows by more than that while this side sends has a queue in it."""
LONG_QUEUE_S: Final = 0.15
"""What is added to each answer while somebody uploads: people notice."""
LOSS: Final = 0.003
"""Of the segments: where TCP's usual rule begins to cost much on a long line."""
MANY_SEGMENTS: Final = 500
"""Below that a share of them that was lost is chance."""
USUAL_MTU: Final = 1_500
LEAST_MTU: Final = 1_280
"""What every path of IPv6 takes."""
_NOT_MEASURED: Final = (Code.NOT_ALLOWED, Code.UNSUPPORTED, Code.RESOURCE)
"""Why a server does not measure: it is no fault of the line."""


async def look_at_line(
    findings: Findings, session: Session, sock: socket.socket | None
) -> float:
    """Measure a link that nobody else uses; return its round trip in seconds."""
    trips = await round_trips(session)
    if trips is None:
        fix = "again in a minute; `tunnel up` would dial anew"
        findings.fail("round-trip", "the server does not answer on the link", fix)
        return 0.0
    _say_trips(findings, trips)
    rates = await _look_at_rates(findings, session)
    if sock is not None:
        _say_loss(findings, sock, trips.least)
        _say_packets(findings, sock, rates)
    return trips.usual


def _say_trips(findings: Findings, trips: RoundTrips) -> None:
    least, usual, most, jitter = (
        round(one * 1000, 1)
        for one in (trips.least, trips.usual, trips.most, trips.jitter)
    )
    text = f"{usual:.1f} ms ({least:.1f} to {most:.1f}), jitter {jitter:.1f} ms"
    if trips.jitter > max(JITTER_S, trips.usual / 2):
        fix = "is the line busy with something else, or a radio link? try by cable"
        findings.weak("round-trip", text, fix, ms=usual, jitter_ms=jitter, most_ms=most)
    else:
        findings.ok("round-trip", text, ms=usual, jitter_ms=jitter, most_ms=most)


async def _look_at_rates(findings: Findings, session: Session) -> list[Rate]:
    """Measure both directions; return what was measured."""
    rates: list[Rate] = []
    if not session.core.theirs.capabilities & CAN_TRY:
        why = "this server is too old to measure with"
        findings.skip("throughput", why, "update tunnel there")
        return rates
    for way, upload in (("down", False), ("up", True)):
        try:
            rate = await throughput(session, upload=upload)
        except StreamError as error:
            if error.code not in _NOT_MEASURED:
                findings.error(way, error, "see path-mtu, or again in a minute")
                return rates + _swallowed(session, error.code)
            fix = ""
            if error.code is Code.NOT_ALLOWED:
                fix = ADD_RIGHT.format("test")
            findings.skip("throughput", error.what, fix)
            return rates
        except trio.BrokenResourceError:
            fix = "the path may swallow large packets: see path-mtu"
            why = f"the link was lost while it was measured: {session.ended}"
            findings.fail(way, why, fix)
            return rates + _swallowed(session)
        rates.append(rate)
        _say_rate(findings, way, rate)
    return rates


def _swallowed(session: Session, code: Code | None = None) -> list[Rate]:
    """Return that nothing passed, where the other end fell silent after small packets.

    Its acceptance may be lost too, in one packet with the first bytes.
    """
    ended = session.ended
    silent = code is Code.TIMEOUT or (ended is not None and ended.code is Code.SILENT)
    return [Rate(0, 0.0, 0.0)] if silent else []


def _say_rate(findings: Findings, way: str, rate: Rate) -> None:
    if not rate.bytes:
        fix = "see path-mtu: small packets pass"
        return findings.fail(way, f"nothing in {LATE_S:.0f} s", fix)
    text = f"{size_text(int(rate.per_s))}/s, {rate.per_s * 8 / 1e6:.1f} Mbit/s "
    text += f"(of {TEST_S:.0f} s, the second half)"
    return findings.ok(
        way, text, bytes_per_s=round(rate.per_s), bytes=rate.bytes,
        seconds=round(rate.seconds, 2),
    )  # fmt: skip


def _say_loss(findings: Findings, sock: socket.socket, idle_s: float) -> None:
    """Say how much of what this side sent had to be sent again, and why perhaps."""
    info = tcp_info.read(sock)
    sent = (info and info.sent_segments) or 0
    if info is None or sent < MANY_SEGMENTS:
        return findings.skip("loss", f"{sent} segments were sent: too few to tell")
    loaded_s, loaded_ms = info.rtt_s, round(info.rtt_s * 1000, 1)
    full = loaded_s > idle_s * FULL_TIMES + FULL_S
    text = f"{loaded_ms:.0f} ms while this side sends all that it can"
    if full and loaded_s > idle_s + LONG_QUEUE_S:
        fix = "have the router at the line's narrow end queue less: fq_codel, cake, SQM"
        findings.weak("under-load", text, fix, ms=loaded_ms)
    else:
        findings.ok("under-load", text, ms=loaded_ms)
    share = info.retransmits / sent
    text = f"{share:.1%} of {sent} segments were sent again"
    if full and share >= LOSS:
        text += "; the line was full, and a full line drops some by itself"
    if full or share < LOSS:
        return findings.ok("loss", text, share=round(share, 5))
    control = congestion_control(sock)
    fix = "ask who runs the line: nothing here can help more"
    if control != "bbr":
        fix = "sudo modprobe tcp_bbr && sudo sysctl -w"
        fix += " net.core.default_qdisc=fq net.ipv4.tcp_congestion_control=bbr"
        fix += "   # at both ends; it takes loss for less than a full line"
        text += f", and {control or 'its rule'} slows down at each"
    return findings.weak("loss", text, fix, share=round(share, 5))


def _say_packets(findings: Findings, sock: socket.socket, rates: list[Rate]) -> None:
    """Say how large packets may be, and whether large ones have passed."""
    info = tcp_info.read(sock)
    if info is None:
        return findings.skip("path-mtu", "not known on this system")
    segment, path = info.mss, info.path_mtu
    numbers = {"mtu": path, "segment": segment}
    text = f"packets of {path} bytes, {segment} of them payload"
    fix = "sudo sysctl -w net.ipv4.tcp_mtu_probing=1   # at both ends"
    if any(not rate.bytes for rate in rates):
        text = f"small packets pass and those of {path} bytes do not"
        fix += f"; or ip link set dev DEV mtu {LEAST_MTU}"
        return findings.fail("path-mtu", text, fix, **numbers)
    if not rates:
        return findings.skip("path-mtu", f"{text}; not tried")
    if path < LEAST_MTU:
        return findings.weak("path-mtu", f"{text}: small", fix, **numbers)
    probing = network_setting("ipv4/tcp_mtu_probing")
    if path < USUAL_MTU and probing == "0":
        text += "; something on the way takes less than usual"
    return findings.ok("path-mtu", f"{text}; they pass", **numbers)
