"""Pipes and terminals as trio streams, where the kernel can wait for them."""

from __future__ import annotations

import sys

import trio


def stream_of(descriptor: int) -> trio.abc.Stream | None:
    """Return a stream that owns a pipe, a socket or a terminal; None on Windows."""
    if sys.platform == "win32":
        return None
    else:
        return trio.lowlevel.FdStream(descriptor)
