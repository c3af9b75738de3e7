"""What this machine itself has, and lacks, for a tunnel."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING, Final

from tunnel import __version__
from tunnel.net.descriptors import DESCRIPTORS
from tunnel.ops.texts import size_text
from tunnel.platform.kernel import clock_is_kept, network_setting, system_name
from tunnel.platform.process import MANY, descriptor_limits

if TYPE_CHECKING:
    from tunnel.ops.check.findings import Findings

FEW_DESCRIPTORS: Final = 4_096
"""Two for each connection: 2,000 of them at once."""
RELEASED: Final = 1_735_689_600.0
"""2025-01-01: this program is younger, and so is the time."""
WANTED_PER_S: Final = 12_500_000
"""A hundred megabits: less than that the buffers of one connection should not allow."""
FULL: Final = 0.8
"""Of a table of the kernel: beyond it, connections are about to be refused."""


def look_at_program(findings: Findings) -> None:
    """Say which versions run."""
    system, python = system_name(), ".".join(map(str, sys.version_info[:3]))
    text = f"tunnel {__version__}, Python {python}, {system}"
    findings.ok("program", text, version=__version__, python=python, system=system)


def look_at_clock(findings: Findings) -> None:
    """Say whether the time can be right: certificates and invitations end by it."""
    now = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
    kept = clock_is_kept()
    fix = "sudo timedatectl set-ntp true"
    if time.time() < RELEASED:
        findings.fail("time", f"it is {now} here, which is long over", fix)
    elif kept is None:
        findings.ok("time", f"{now}; whether something keeps it is not known here")
    elif kept:
        findings.ok("time", f"{now}, kept by NTP")
    else:
        findings.weak("time", f"{now}, and nothing keeps this clock right", fix)


def look_at_descriptors(findings: Findings) -> None:
    """Say how many connections this process could have."""
    soft, hard = descriptor_limits()
    if soft >= MANY:
        return findings.ok("descriptors", "no limit is known")
    DESCRIPTORS.look()
    text = f"{soft} for this process, {hard} at most"
    if soft >= FEW_DESCRIPTORS:
        return findings.ok("descriptors", text, soft=soft, hard=hard)
    fix = "ulimit -n 65536; under systemd LimitNOFILE=65536, in Docker --ulimit"
    text += ": a connection takes one or two"
    return findings.weak("descriptors", text, fix, soft=soft, hard=hard)


def look_at_kernel(findings: Findings, rtt_s: float) -> None:
    """Say whether the kernel's limits are in the way of one busy link."""
    _look_at_buffers(findings, rtt_s)
    used, most = (_number(f"netfilter/nf_conntrack_{one}") for one in ("count", "max"))
    if used and most and used > most * FULL:
        fix = f"sudo sysctl -w net.netfilter.nf_conntrack_max={most * 4}"
        findings.weak("kernel", f"{used} of {most} connections are tracked", fix)


def _look_at_buffers(findings: Findings, rtt_s: float) -> None:
    """Compare what one connection may buffer with what the line's length needs."""
    limits = [network_setting(f"ipv4/tcp_{one}") for one in ("rmem", "wmem")]
    sizes = [int(one.split()[-1]) for one in limits if one]
    if not sizes:
        return findings.skip("kernel", "its buffers are not known here")
    least = min(sizes)
    # Half of a receive buffer is room for the bytes; the rest is the kernel's own.
    most_per_s = least / 2 / max(rtt_s, 0.001)
    text = f"buffers of {size_text(least)}: at {rtt_s * 1000:.0f} ms for "
    text += f"{size_text(int(most_per_s))}/s at most"
    if most_per_s >= WANTED_PER_S:
        return findings.ok("kernel", text, buffer_bytes=least)
    wanted = int(WANTED_PER_S * rtt_s * 2)
    fix = "sudo sysctl -w"
    fix += f" net.ipv4.tcp_rmem='4096 131072 {wanted}'"
    fix += f" net.ipv4.tcp_wmem='4096 65536 {wanted}'"
    return findings.weak("kernel", text, fix, buffer_bytes=least)


def _number(name: str) -> int:
    text = network_setting(name)
    return int(text) if text and text.isdigit() else 0


def facts() -> dict[str, str]:
    """Return what else helps who reads a report: settings, no secrets."""
    names = (
        "core/rmem_max", "core/wmem_max", "core/somaxconn", "core/default_qdisc",
        "ipv4/tcp_rmem", "ipv4/tcp_wmem", "ipv4/tcp_congestion_control",
        "ipv4/tcp_available_congestion_control", "ipv4/tcp_mtu_probing",
        "ipv4/ip_local_port_range", "netfilter/nf_conntrack_max",
    )  # fmt: skip
    found = {name: network_setting(name) or "unknown" for name in names}
    said = [name for name in os.environ if name.startswith("TUNNEL_")]
    proxies = [name for name in os.environ if name.lower().endswith("_proxy")]
    found["variables"] = " ".join(sorted([*said, *proxies])) or "none"
    found["machine"] = f"{system_name()}, {os.cpu_count()} processors"
    return found
