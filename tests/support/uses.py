"""Several nodes that have the same users, by one clock and without IO."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

from tunnel.access.join import make_token
from tunnel.access.limits import parse_limits
from tunnel.access.months import Months
from tunnel.access.together import Together
from tunnel.access.use import Use
from tunnel.access.users import User, Users
from tunnel.center.accounts import Accounts
from tunnel.proto.pace import Share
from tunnel.proto.proofs import verifier_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from tunnel.access.account import Account
    from tunnel.link.user_session import UserSession
    from tunnel.proto.pace import Meter

TELL_S = 0.25
TICK_S = 0.01
VERIFIER = verifier_of("ann", make_token().reveal())


class Tables:
    """What an account does not count, as a test wants it."""

    def __init__(self) -> None:
        self.of: dict[str, dict[str, int]] = {}

    def counts(self) -> dict[str, dict[str, int]]:
        return self.of


@dataclass(eq=False)
class FakeSession:
    """What ``Accounts`` needs of a session; ``passes`` counts bytes."""

    account: Account = field(init=False)
    streams: int = 1
    why: str = ""
    _new: int = 0

    def count_for(self, account: Account) -> None:
        self.account = account

    def passes(self, size: int) -> None:
        self._new += size

    def count(self) -> None:
        self.account.month_bytes += self._new
        self._new = 0

    def pace(self) -> None:
        pass

    def reset_all(self, reason: str) -> None:
        self.why, self.streams = reason, 0


class Load(Share):
    """Connections of one session that want so many bytes per second; None: any."""

    def __init__(self, meter: Meter, connections: int, wants: float | None) -> None:
        super().__init__(meter)
        self.connections = connections
        self.wants = wants
        self.passed = 0
        self._behind = 0.0

    @property
    def weight(self) -> int:  # type: ignore[override]
        return self.connections if self._behind >= 1 else 0

    def turn(self, seconds: float) -> None:
        self._behind = 1e12 if self.wants is None else self._behind
        self._behind += (self.wants or 0) * seconds
        if self not in self.meter.waiting:
            self._pass(self.may_pass(int(self._behind)))

    def release(self, size: int) -> None:
        self.left += size
        self._pass(min(self.left, int(self._behind)))

    def _pass(self, size: int) -> None:
        self.left -= size
        self._behind -= size
        self.passed += size
        if self._behind >= 1:
            self.meter.wait(self)
        else:
            self.give_back()


class Node:
    """One process: its accounts, and what happens in it at each turn."""

    def __init__(self, name: str, of: Nodes) -> None:
        self.name = name
        self.of = of
        self.users = Users(of.users)
        self.tables = Tables()
        self.loads: list[Load] = []
        self.each: list[Callable[[float], object]] = []
        months = Months(month=lambda: of.month)
        limits = parse_limits(())
        self.accounts = Accounts(self.users, limits, months, lambda: of.now)
        self.accounts.share(self.tables)

    def account(self, name: str = "ann") -> Account:
        return self.accounts.of(self.users[name])

    def session(self, name: str = "ann") -> FakeSession:
        session = FakeSession()
        self.accounts.begin(self.users[name], cast("UserSession", session))
        return session

    def load(self, wants: float | None = None, connections: int = 1) -> Load:
        """Have connections want bytes that are sent to ann's machines."""
        account = self.account()
        assert account.down is not None
        self.tables.of.setdefault("sessions", {})["ann"] = 1
        account.connections += connections
        load = Load(account.down, connections, wants)
        self.loads.append(load)
        return load

    def turn(self, seconds: float) -> None:
        for load in self.loads:
            load.turn(seconds)
        for account in self.accounts:
            account.tick()
        for call in self.each:
            call(seconds)

    def count(self) -> None:
        self.accounts._count_all()


class Nodes:
    """Nodes that tell one another four times a second what users have."""

    def __init__(self, *words: str, names: str = "ab", users: str = "ann") -> None:
        limits = parse_limits(words)
        self.now = 100.0
        self.month = "2031-05"
        self.users = {
            name: User(name, VERIFIER, limits=limits) for name in users.split()
        }
        self.together = Together()
        self.told_bytes = 0
        self._turn = 0
        self.all = {name: Node(name, self) for name in names}

    def __getitem__(self, name: str) -> Node:
        return self.all[name]

    def tell(self, *names: str) -> None:
        """Carry what is new at these nodes, or at all, as a wire would."""
        for name in names or tuple(self.all):
            changed = self.all[name].accounts.changed_uses()
            text = json.dumps({user: use.to_json() for user, use in changed.items()})
            self.told_bytes += len(text) if changed else 0
            heard = json.loads(text)
            uses = {user: Use.from_json(said) for user, said in heard.items()}
            self.together.heard(name, uses)
        for name, node in self.all.items():
            node.accounts.have_elsewhere(self.together.elsewhere(name))

    def run(self, seconds: float) -> None:
        """Let time pass; each node tells in turns of its own."""
        turns = round(TELL_S / TICK_S)
        for _ in range(round(seconds / TICK_S)):
            self.now += TICK_S
            self._turn += 1
            for node in self.all.values():
                node.turn(TICK_S)
            for at, name in enumerate(self.all):
                if (self._turn + 7 * at) % turns == 0:
                    self.all[name].count()
                    self.tell(name)

    def rates(self, seconds: float) -> list[float]:
        """Let time pass; return the bytes per second of each load."""
        loads = [load for node in self.all.values() for load in node.loads]
        before = [load.passed for load in loads]
        self.run(seconds)
        return [
            (load.passed - was) / seconds
            for load, was in zip(loads, before, strict=True)
        ]

    def leave(self, name: str) -> None:
        """End a node, as a crash does."""
        del self.all[name]
        self.together.gone(name)
