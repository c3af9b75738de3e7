"""Which signals ask a command to end."""

from __future__ import annotations

import signal


def ending_signals() -> list[signal.Signals]:
    """Return Ctrl+C, SIGTERM, and SIGHUP unless it is ignored already (``nohup``)."""
    ends = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        ends.append(signal.SIGHUP)
    return ends
