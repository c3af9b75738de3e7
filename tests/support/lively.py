"""The ``tunnel`` command whose links ask after 1 s of silence, and are lost after 3 s.

For tests that cannot wait for the usual 30 s. The smaller limit holds: one side is
enough.
"""

from __future__ import annotations

import sys
from functools import partial

from tunnel.__main__ import main
from tunnel.center import server
from tunnel.proto.frames import Terms

if __name__ == "__main__":
    vars(server)["Terms"] = partial(Terms, idle_ping_s=1)
    sys.exit(main())
