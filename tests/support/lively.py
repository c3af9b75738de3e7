"""The ``tunnel`` command with shorter times, for tests that cannot wait for the usual.

A link is asked after 1 s of silence, and lost after 3 s: the smaller limit holds, one
side is enough. A visitor of a name has 3 s for its head; a pipe waits 1 s for a server.
"""

from __future__ import annotations

import sys
from functools import partial

from tunnel.front.http import limits

COMMAND = (sys.executable, __file__)

if __name__ == "__main__":
    vars(limits)["HEAD_S"] = 3.0  # before it is imported by others

    from tunnel.__main__ import main
    from tunnel.center import server
    from tunnel.ops import pipe
    from tunnel.proto.frames import Terms

    vars(server)["Terms"] = partial(Terms, idle_ping_s=1)
    vars(pipe)["GIVE_UP_S"] = 1.0
    sys.exit(main())
