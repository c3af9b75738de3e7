"""What this machine's kernel allows: its clock, its buffers, who listens.

Linux tells; on other systems nothing is known, which is said as None.
"""

from __future__ import annotations

import ctypes
import os
import platform
import socket
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

_CLOCK_IS_FREE: Final = 5  # TIME_ERROR of adjtimex(2)
_TIMEX_BYTES: Final = 512
"""More than ``struct timex`` has anywhere."""
_SYS: Final = Path("/proc/sys/net")
_TCP_LISTEN: Final = "0A"
_PROGRAM: Final = b"tunnel"
_WITH_VALUE: Final = (b"-W", b"-X", b"--check-hash-based-pycs")
"""Options of Python whose value is the next word."""


def system_name() -> str:
    """Return the system, its release and its processor's kind."""
    return f"{platform.system()} {platform.release()} {platform.machine()}"


def clock_is_kept() -> bool | None:
    """Say whether something keeps the clock right, as NTP does; None if not known."""
    if sys.platform != "linux":
        return None
    else:
        try:
            state = ctypes.CDLL(None).adjtimex(
                ctypes.create_string_buffer(_TIMEX_BYTES)
            )
        except (OSError, AttributeError):
            return None
        return None if state < 0 else state != _CLOCK_IS_FREE


def network_setting(name: str) -> str | None:
    """Return a setting below ``/proc/sys/net``, its words parted by one space."""
    try:
        return " ".join((_SYS / name).read_text().split())
    except OSError:
        return None


def congestion_control(sock: socket.socket) -> str:
    """Return how a TCP connection finds its speed; empty if not known."""
    option: int = getattr(socket, "TCP_CONGESTION", 0)
    with suppress(OSError):
        raw = sock.getsockopt(socket.IPPROTO_TCP, option, 16) if option else b""
        return raw.split(b"\0")[0].decode("ascii", "replace")
    return ""


def listeners(port: int) -> list[int]:
    """Return the processes of this user that listen on a TCP port; Linux only."""
    sockets = {f"socket:[{inode}]" for inode in _listening(port)}
    found: list[int] = []
    if not sockets:
        return found
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        with suppress(OSError):  # another user's, or gone
            if any(os.readlink(fd) in sockets for fd in (folder / "fd").iterdir()):
                found.append(int(folder.name))
    return found


def _listening(port: int) -> Iterator[str]:
    for table in ("tcp", "tcp6"):
        with suppress(OSError):
            for line in Path("/proc/net", table).read_text().splitlines()[1:]:
                words = line.split()
                here = int(words[1].rpartition(":")[2], 16)
                if here == port and words[3] == _TCP_LISTEN:
                    yield words[9]


def is_tunnel(pid: int) -> bool:
    """Say whether a process is one of this program."""
    with suppress(OSError):
        return is_ours(Path(f"/proc/{pid}/cmdline").read_bytes())
    return False


def is_ours(command_line: bytes) -> bool:
    """Say whether a command line, its words ended by zeros, starts this program.

    It is the program itself, or a Python whose script or module it is: not what is
    called, or given, the same word.
    """
    first, *others = command_line.split(b"\0")
    if not os.path.basename(first).startswith((b"python", b"pypy")):
        return os.path.basename(first) == _PROGRAM
    words = iter(others)
    for word in words:
        if word in _WITH_VALUE:
            next(words, b"")
        elif word == b"-m":
            return next(words, b"").partition(b".")[0] == _PROGRAM
        elif not word.startswith(b"-"):
            script = word.removesuffix(b"/__main__.py")
            return os.path.basename(script) == _PROGRAM
        elif word == b"-c":
            return False
    return False
