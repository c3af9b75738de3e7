"""What a server reports while it measures (protocol.md#throughput)."""

from __future__ import annotations

import struct
from typing import Final

REPORT: Final = struct.Struct(">IQ")
"""Milliseconds since the answer to CREATE, and bytes that came so far."""
