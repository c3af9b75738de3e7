"""How long both roles take to leave, once they were asked to."""

from __future__ import annotations

from typing import Final

DRAIN_S: Final = 8.0
"""How long running connections may go on. With the goodbye and the end of the process
it is 9.5 s: `docker stop` kills after 10, systemd is often told to."""
GOODBYE_S: Final = 1.0
"""How long after a drain the last bytes and the goodbye may take, for all links."""
