"""What a reload of a server says that it changed, where a file says no word of it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import trustme
from support.center import LOOPBACK, center

from tunnel.addresses import Address
from tunnel.center.names import NameOptions
from tunnel.errors import UsageError
from tunnel.ops.flags import RunFlags, ServeFlags
from tunnel.ops.reload.server import ServeAgain, ServerChanges

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from tunnel.access.users import User


class NoCare:
    """Cares for no users."""

    async def check(self, users: Mapping[str, User]) -> None:
        assert not users

    async def have(self, users: Mapping[str, User]) -> None:
        assert not users


def write(chain: Path, key: Path) -> None:
    made = trustme.CA().issue_cert("shop.t.test")
    made.private_key_pem.write_to_path(str(key))
    chain.write_bytes(b"".join(one.bytes() for one in made.cert_chain_pems))


async def test_a_certificate_file_that_changed_is_a_line_of_the_plan(
    tmp_path: Path,
) -> None:
    files = tmp_path / "chain.pem", tmp_path / "key.pem"
    write(*files)
    flags = ServeFlags(
        listen=(f"{LOOPBACK}:0",),
        plain=True,
        https=f"{LOOPBACK}:0",
        domain="t.test",
        certificate=files,
    )
    names = NameOptions(None, Address(LOOPBACK, 0), "t.test", files)
    async with center(names=names) as where:
        now = flags
        again = ServeAgain(
            flags, RunFlags(), {}, lambda: (now, RunFlags(), {}), tmp_path / "file"
        )
        care = NoCare()
        changes = ServerChanges(again, where.server, care, moved)  # type: ignore[arg-type]

        async def plan() -> list[str]:
            return [str(one) for one in await changes.apply(False)]

        assert await plan() == []
        write(*files)
        assert await plan() == ["~ certificate"]
        assert await plan() == [], "it is in use by now"
        # A file that cannot be used changes nothing, and is not forgotten.
        files[0].write_text("no certificate")
        with pytest.raises(UsageError, match="cannot be used"):
            await plan()
        write(*files)
        assert await plan() == ["~ certificate"]
        # One line says it, where the words changed too.
        others = tmp_path / "other.pem", tmp_path / "other.key"
        write(*others)
        now = replace(flags, certificate=others)
        assert await plan() == ["~ certificate"]


def moved(address: Address, flags: ServeFlags) -> None:
    raise AssertionError(address, flags)
