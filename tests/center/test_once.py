"""A token that works for one machine, which leaves with a token of its own."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import trio
from support.center import Center, center, failure_of, running, user

from tunnel.access.join import JoinLine, make_token
from tunnel.access.users import Once
from tunnel.center import link_keeper
from tunnel.center.client import CenterClient
from tunnel.errors import Code, StateError
from tunnel.proto.frames import CAN_MAP, CAN_OWN, CAN_UDP, CLIENT_CAN, Terms

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

    from tunnel.access.users import User

TOKEN = make_token()
ALICE = replace(user(TOKEN, "alice", "all"), once=Once())
HERE = b"h" * 16


class Keeper:
    """Saves in memory, or cannot."""

    def __init__(self, *, checks: bool = True, keeps: bool = True) -> None:
        self.saved: list[JoinLine] = []
        self._checks = checks
        self._keeps = keeps

    def check(self) -> None:
        if not self._checks:
            raise StateError("the disk is full")

    def keep(self, join: JoinLine) -> None:
        if not self._keeps:
            raise StateError("the disk is full now")
        self.saved.append(join)


def line(where: Center) -> JoinLine:
    return replace(where.join, name="alice", token=TOKEN)


def machine(
    where: Center, keeper: Keeper | None, client_id: bytes = HERE
) -> CenterClient:
    return CenterClient(line(where), client_id=client_id, keeper=keeper)


def alice_of(where: Center) -> User:
    return where.server._users["alice"]


async def test_a_machine_gets_a_token_of_its_own_and_the_first_is_over(
    tmp_path: Path,
) -> None:
    async with center(tmp_path, others=(ALICE,)) as where:
        keeper = Keeper()
        async with running(machine(where, keeper)):
            (saved,) = keeper.saved
            assert saved == replace(line(where), token=saved.token)
            assert saved.token != TOKEN
            assert alice_of(where).once is None
            assert len(where.server.clients) == 1
        again = CenterClient(saved, client_id=b"another machine!")
        async with running(again):
            pass
        for client_id in (HERE, b"x" * 16):
            late = machine(where, Keeper(), client_id)
            assert (await failure_of(late)).code is Code.AUTH


async def test_who_cannot_save_says_so_and_does_not_use_the_line_up(
    tmp_path: Path,
) -> None:
    async with center(tmp_path, others=(ALICE,)) as where:
        error = await failure_of(machine(where, Keeper(checks=False)))
        assert error.what == "the disk is full"
        error = await failure_of(machine(where, None))
        assert error.code is Code.ONCE
        assert "one machine" in error.what
        assert alice_of(where) == ALICE
        async with running(machine(where, Keeper(), b"x" * 16)):
            pass


async def test_a_machine_that_died_before_it_saved_comes_again(tmp_path: Path) -> None:
    async with center(tmp_path, others=(ALICE,)) as where:
        error = await failure_of(machine(where, Keeper(keeps=False)))
        assert error.what == "the disk is full now"
        once = alice_of(where).once
        assert once is not None
        assert once.client_id == HERE
        other = await failure_of(machine(where, Keeper(), b"x" * 16))
        assert other.code is Code.AUTH
        assert "another one has used it" in other.cause
        keeper = Keeper()
        async with running(machine(where, keeper)):
            assert len(keeper.saved) == 1
            assert alice_of(where).once is None


async def test_a_program_that_knows_nothing_of_it_is_told_that_it_is_too_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link_keeper, "CLIENT_CAN", CLIENT_CAN & ~CAN_OWN)
    async with center(tmp_path, others=(ALICE,)) as where:
        client = machine(where, None)
        assert client._maker.terms.capabilities & (CAN_MAP | CAN_UDP | CAN_OWN) == 3
        error = await failure_of(client)
        assert error.code is Code.VERSION
        assert "too old" in error.cause
        assert alice_of(where) == ALICE


async def test_without_tls_it_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    async with center(others=(ALICE,)) as where:
        error = await failure_of(machine(where, Keeper()))
        assert error.code is Code.AUTH
        assert "TLS" in error.cause


async def test_a_token_that_is_not_for_one_machine_is_not_replaced(
    tmp_path: Path,
) -> None:
    async with center(tmp_path, others=(replace(ALICE, once=None),)) as where:
        keeper = Keeper()
        async with running(machine(where, keeper)):
            assert not keeper.saved


async def test_no_session_begins_with_a_token_that_works_once(tmp_path: Path) -> None:
    async with center(tmp_path, others=(ALICE,)) as where:
        seen: list[int] = []
        keep = where.server.user_changes.keep

        async def look(was: User, now: User) -> bool:
            seen.append(len(where.server.clients))
            return await keep(was, now)

        where.server.user_changes.keep = look  # type: ignore[method-assign]
        async with running(machine(where, Keeper())):
            assert seen == [0, 0]
            assert Terms().capabilities & CAN_OWN == 0
            await trio.lowlevel.checkpoint()
