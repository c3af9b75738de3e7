"""The state machine of ``h2``, for either side: it checks and holds little."""

from __future__ import annotations

from typing import Final

from h2.config import H2Configuration
from h2.connection import H2Connection

TABLE_BYTES: Final = 4_096
"""Of the fields that we remember for a peer: it may allow gigabytes."""


class Connection(H2Connection):
    """One connection's state, without its bytes.

    Args:
        client: this side asks.
    """

    MAX_CLOSED_STREAMS = 512

    def __init__(self, *, client: bool) -> None:
        config = H2Configuration(
            client_side=client,
            header_encoding=None,
            validate_inbound_headers=False,  # ``messages`` does, a stream at a time
            validate_outbound_headers=False,
            normalize_outbound_headers=False,
        )
        super().__init__(config)

    def settings_changed(self) -> None:
        """Take no larger table of fields than ours, whatever the peer allows."""
        if self.encoder.header_table_size > TABLE_BYTES:
            self.encoder.header_table_size = TABLE_BYTES

    def part(self) -> None:
        """Hear nothing more, and hold nothing that holds it: a cycle of ``h2``'s own
        would keep 20 KB of each connection until the collector comes."""
        vars(self).pop("_frame_dispatch_table", None)
