"""Which signals ask a command to end."""

from __future__ import annotations

import signal

from tunnel.platform.process import HANGUP


def ending_signals() -> list[signal.Signals]:
    """Return Ctrl+C, SIGTERM, and SIGHUP unless it is ignored already (``nohup``)."""
    ends = [signal.SIGINT, signal.SIGTERM]
    if HANGUP is not None and signal.getsignal(HANGUP) is not signal.SIG_IGN:
        ends.append(HANGUP)
    return ends
