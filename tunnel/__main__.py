"""``python -m tunnel`` and the ``tunnel`` command."""

from __future__ import annotations

import os
import signal
import sys
from typing import NoReturn

from tunnel.errors import Exit
from tunnel.ops.control.commands import quick
from tunnel.ops.hide import hide_secrets
from tunnel.ops.standard import secure_standard_files
from tunnel.platform.process import let_through


def main() -> NoReturn:
    """Run the command line and exit with its status."""
    try:
        secure_standard_files()
        _end_when_asked()
        if (status := quick(sys.argv[1:])) is not None:
            sys.exit(status)
        shown = hide_secrets()
        # Slow to load, so only now: until here, `ps` may show a secret.
        from tunnel.ops.cli import main as run
    except KeyboardInterrupt:
        sys.exit(Exit.INTERRUPTED)
    run(shown)


def _end_when_asked() -> None:
    """Have SIGTERM end the first process of a container from now on.

    The kernel gives that process only signals that it handles, and the program handles
    them later; it ends every other process by itself.
    """
    if os.getpid() == 1 and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
        signal.signal(signal.SIGTERM, lambda number, _: os._exit(128 + number))
        # Blocked while the program executed itself again.
        let_through(signal.SIGTERM)


if __name__ == "__main__":
    main()
