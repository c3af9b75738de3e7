"""Who may log in, and with what rights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tunnel.access.rules import NO_RIGHT, Rights

if TYPE_CHECKING:
    from tunnel.proto.proofs import Verifier

OWNER: Final = "default"
"""The user that is made with the server and may do everything."""


@dataclass(frozen=True, slots=True)
class User:
    """A name, the verifier of its token, and its rights. Default: no right."""

    name: str
    verifier: Verifier
    rights: Rights = NO_RIGHT
