"""Descriptors between processes of one program, and children that inherit one: Unix."""

from __future__ import annotations

import array
import os
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Final

import trio

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

MAX_DESCRIPTORS: Final = 64
"""Beside one message: the sockets of an address, one for each family."""
_NOT_HERE: Final = "this operating system passes no descriptors"


async def send_beside(
    sock: trio.socket.SocketType, data: bytes, descriptors: Sequence[int]
) -> int:
    """Send bytes with descriptors beside the first; return how many bytes were taken.

    The descriptors stay open here. Raises OSError, on Windows always.
    """
    if sys.platform == "win32":
        raise OSError(_NOT_HERE)
    else:
        rights = array.array("i", descriptors)
        beside = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)] if rights else []
        return await sock.sendmsg([data], beside)


async def receive_beside(
    sock: trio.socket.SocketType, most: int
) -> tuple[bytes, list[int]]:
    """Return bytes and the descriptors that came beside them, which children have not.

    Raises OSError, on Windows always.
    """
    if sys.platform == "win32":
        raise OSError(_NOT_HERE)
    else:
        came = array.array("i")
        space = socket.CMSG_SPACE(MAX_DESCRIPTORS * came.itemsize)
        data, beside, *_ = await sock.recvmsg(most, space)
        for _level, kind, raw in beside:
            if kind == socket.SCM_RIGHTS:
                came.frombytes(raw[: len(raw) - len(raw) % came.itemsize])
        for number in came:
            os.set_inheritable(number, False)
        return data, list(came)


async def start_child(
    argv: Sequence[str], descriptors: Sequence[int], env: Mapping[str, str]
) -> trio.Process:
    """Start a process that inherits descriptors, in a session of its own.

    So a terminal's signals do not reach it. Raises OSError, on Windows always.
    """
    if sys.platform == "win32":
        raise OSError(_NOT_HERE)
    else:
        return await trio.lowlevel.open_process(
            list(argv),
            stdin=subprocess.DEVNULL,
            pass_fds=list(descriptors),
            env=env,
            start_new_session=True,
        )


def share_port(sock: socket.socket) -> None:
    """Let other sockets of this user listen on the same port; the kernel deals out.

    Raises OSError, on Windows always.
    """
    if sys.platform == "win32":
        raise OSError("this operating system shares no ports")
    else:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
