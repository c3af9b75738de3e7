"""Users that change while their clients are there."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import trio
from support.center import (
    LOOPBACK,
    Center,
    center,
    echo,
    failure_of,
    raw_login,
    running,
    target,
    user,
)

from tunnel.access.join import make_token
from tunnel.access.limits import parse_limits
from tunnel.access.rules import parse_rights
from tunnel.addresses import Address
from tunnel.center import admission
from tunnel.center.events import LinkUp, MappingReady, SessionLost
from tunnel.center.exit.tcp import exit_to
from tunnel.center.names import NameOptions
from tunnel.errors import Code, LinkError
from tunnel.proto.frames import MappingEntry, MappingType
from tunnel.proto.proofs import verifier_of

if TYPE_CHECKING:
    from tunnel.access.users import User
    from tunnel.errors import TunnelError

AT_ONCE_S = 1.0
TOKEN = make_token()
ALICE = user(TOKEN, "alice", "all")


async def until_gone(where: Center, name: str) -> None:
    """Wait until a user has nothing left; fails after a second."""
    with trio.fail_after(AT_ONCE_S):
        while where.server.user_changes.sessions_of(name):  # noqa: ASYNC110
            await trio.sleep(0.005)


def change(where: Center, *users: User) -> None:
    """Have these users, and the owner."""
    owner = where.server._users["default"]
    where.server.user_changes.apply({one.name: one for one in (owner, *users)})


async def refused(where: Center, name: str = "alice") -> Code:
    with pytest.raises(LinkError) as caught:
        await raw_login(where, b"r" * 16, TOKEN, name)
    return caught.value.code


async def test_who_is_no_user_any_more_has_nothing_left_and_does_not_resume() -> None:
    async with center(others=(ALICE,)) as where, target(echo) as to:
        client, notices = where.client(name="alice", token=TOKEN)
        other, _ = where.client()
        ended: list[TunnelError] = []

        async def run() -> None:
            ended.append(await failure_of(client))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            async with running(other):
                await notices.next(LinkUp)
                stream, kept = await client.open(str(to)), await other.open(str(to))
                await stream.send_all(b"hello")
                session = client.session
                assert session is not None
                change(where)
                await until_gone(where, "alice")
                lost = await notices.next(SessionLost)
                assert lost.reason.code is Code.REVOKED
                assert "revoked" in str(lost.reason)
                with pytest.raises(trio.BrokenResourceError):
                    async for _ in stream:
                        pass
                await kept.send_all(b"hello")
                assert await kept.receive_some() == b"hello"
                assert await refused(where) is Code.AUTH


async def test_another_token_ends_what_the_old_one_began() -> None:
    async with center(others=(ALICE,)) as where:
        wire = await raw_login(where, b"1" * 16, TOKEN, "alice")
        new = make_token()
        verifier = verifier_of("alice", new.reveal())
        change(where, replace(ALICE, verifier=verifier))
        await until_gone(where, "alice")
        with trio.fail_after(AT_ONCE_S):
            while await wire.receive_some():
                pass
        await wire.aclose()
        assert await refused(where) is Code.AUTH
        wire = await raw_login(where, b"1" * 16, new, "alice")
        await wire.aclose()


async def test_who_was_renamed_hears_so_however_the_change_came() -> None:
    """The users themselves say so: a process may see them before it is told."""
    async with center(others=(ALICE,)) as where:
        client, notices = where.client(name="alice", token=TOKEN)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(failure_of, client)
            await notices.next(LinkUp)
            where.server.accounts.of(ALICE).month_bytes = 7_000
            renamed = replace(user(make_token(), "alicia", "all"), was="alice")
            change(where, renamed, ALICE)
            await until_gone(where, "alice")
            lost = await notices.next(SessionLost)
        assert lost.reason.code is Code.REVOKED
        assert "the user alice is called alicia now" in str(lost.reason)
        assert where.server.accounts.of(renamed).month_bytes == 7_000
        assert where.server.accounts.of(ALICE).month_bytes == 0
        change(where, renamed)  # said once: who has the name of before is another
        assert where.server.accounts.of(renamed).month_bytes == 7_000


async def test_limits_and_more_rights_change_without_an_end() -> None:
    async with center(others=(ALICE,)) as where:
        wire = await raw_login(where, b"1" * 16, TOKEN, "alice")
        (session,) = where.server.user_changes.sessions_of("alice")
        changed = replace(
            ALICE,
            limits=parse_limits(["rate=5MB/s"]),
            rights=parse_rights(["all", "tcp:1"]),
        )
        change(where, changed)
        assert session.user == changed
        assert not session.gone
        assert not session.waiting
        change(where, replace(changed, rights=parse_rights(["tcp:1"])))
        await until_gone(where, "alice")
        await wire.aclose()


async def test_whose_time_is_over_is_ended_and_does_not_come_in() -> None:
    soon = replace(ALICE, expires_at=time.time() + 100)
    async with center(others=(soon,)) as where:
        wire = await raw_login(where, b"1" * 16, TOKEN, "alice")
        changes = where.server.user_changes
        changes.end_expired(time.time() + 99)
        assert changes.sessions_of("alice")
        changes.end_expired(time.time() + 101)
        await until_gone(where, "alice")
        await wire.aclose()
        change(where, replace(soon, expires_at=time.time()))
        assert await refused(where) is Code.AUTH


@pytest.mark.parametrize("how", ["revoked", "over"])
async def test_who_is_thrown_out_between_proof_and_session_gets_none(
    monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """An older session of the same client that does not answer takes two seconds."""
    soon = replace(ALICE, expires_at=time.time() + 100)
    async with center(others=(soon,)) as where:
        here, go_on = trio.Event(), trio.Event()

        async def wait(_claim: object, _session_id: bytes) -> bool:
            here.set()
            await go_on.wait()
            return True

        monkeypatch.setattr(where.server._admission, "_succeeds", wait)
        codes: list[Code] = []

        async def come() -> None:
            codes.append(await refused(where))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(come)
            await here.wait()
            if how == "revoked":
                change(where)
            else:
                monkeypatch.setattr(admission, "time", lambda: soon.expires_at)
                where.server.user_changes.end_expired(time.time() + 100)
            go_on.set()
        assert codes == [Code.REVOKED]
        assert not where.server.user_changes.sessions_of("alice")


async def test_a_client_that_is_thrown_out_ends_and_says_why() -> None:
    async with center(others=(ALICE,)) as where:
        client, notices = where.client(name="alice", token=TOKEN)
        failed: list[TunnelError] = []

        async def run() -> None:
            failed.append(await failure_of(client))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            await notices.next(LinkUp)
            change(where)
        assert failed[0].code is Code.REVOKED
        assert failed[0].exit_status == 6
        assert "the user alice was revoked" in f"{failed[0].what} {failed[0].cause}"


async def test_who_has_the_longer_name_gets_the_hosts_below_it() -> None:
    """Of ``alice-two``, who is new, ``alice`` gives up what she had there."""
    names = NameOptions(Address(LOOPBACK, 0), None, "t.example")
    alice = user(TOKEN, "alice", "names:alice")
    two = user(make_token(), "alice-two", "names:alice-two")
    async with center(others=(alice,), names=names) as where:
        client, notices = where.client(name="alice", token=TOKEN)
        async with running(client), target(echo) as to:
            for host in ("alice-two-shop", "alice-shop"):
                entry = MappingEntry(MappingType.HTTP, "", host, 0)
                await client.publish(entry, exit_to(to))
            await notices.next(MappingReady, 2)
            table = where.server.mappings
            assert len(table) == 2
            change(where, alice, two)
            assert len(table) == 1
            assert table.find(MappingType.HTTP, "alice-shop.t.example") is not None
