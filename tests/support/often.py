"""A ``tunnel`` that does sooner what it would do after seconds, minutes or months."""

from __future__ import annotations

import os
import sys

from tunnel.center import certificates, health
from tunnel.center.acme import plan
from tunnel.ops.check import measure
from tunnel.ops.control import service

COMMAND = (sys.executable, __file__)
RENEW_AT = "TUNNEL_TESTS_RENEW_AT"
"""The environment variable with the part of a certificate's life that is left when it
is renewed."""

if __name__ == "__main__":
    vars(health)["EVERY_S"] = 0.2
    vars(service)["LOOK_S"] = 0.2
    vars(measure)["LATE_S"] = 3.0
    vars(certificates)["EVERY_S"] = 0.2
    vars(plan)["FIRST_RETRY_S"] = 0.3
    if RENEW_AT in os.environ:
        vars(plan)["RENEW_AT"] = float(os.environ.pop(RENEW_AT))

    from tunnel.__main__ import main

    main()
