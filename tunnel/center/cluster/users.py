"""The users of all nodes: one text with a version, in the directory and at each node.

Each node keeps what it has seen last, so it knows its users without the directory, and
takes nothing older: who can write to the directory can put back what was there before,
and nothing follows from it. A change is compared and set, like a claim; each node says
which version it has, so whoever changes a user knows which nodes have not heard of it.
"""

from __future__ import annotations

import logging
import struct
import zlib
from contextlib import suppress
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

import trio

from tunnel.center.cluster.directory import ClaimedError, DirectoryAwayError
from tunnel.errors import StateError, UsageError
from tunnel.log import log_event
from tunnel.net.notify import Notify

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping

    from tunnel.center.cluster.directory import Change, Claim, Directory

KEY: Final = "users"
_AT: Final = "users@"
"""Behind it the node: the key under which it says which version it has."""
HEARD_S: Final = 2.0
"""How long nodes may take to hear of a change; one that lives needs a part of a second,
and whoever changes a user waits for all."""
MAX_BYTES: Final = 16_777_216
"""Of the text: what the file of users may have."""
TRIES: Final = 5
"""How often a change is made, while other nodes are faster with theirs."""
AGAIN_S: Final = 1.0
"""After a change that the directory did not take."""
_NUMBER: Final = struct.Struct(">Q")

logger = logging.getLogger("tunnel.users")


class Version(NamedTuple):
    """The users, as of some time."""

    number: int = 0
    """0: of a node that has never heard of others."""
    text: str = ""


class _OverruledError(Exception):
    """Another node has changed the users meanwhile; what it made of them is here."""


class Local(Protocol):
    """The users of this node, in its state folder.

    Its calls may wait for a disk, and raise StateError.
    """

    async def version(self) -> Version:
        """Return what is there, with the number that it had when it was kept."""
        ...

    async def is_changed(self) -> bool:
        """Say whether somebody has changed it since it was kept."""
        ...

    async def keep(self, version: Version) -> None:
        """Note under which number the nodes know this."""
        ...

    async def take(self, version: Version) -> None:
        """Have this in place of what is there."""
        ...


class SharedUsers:
    """The users of this node, and those of the others.

    Args:
        directory: keeps the newest.
        local: those of this node.
    """

    def __init__(self, directory: Directory, local: Local) -> None:
        self._directory = directory
        self._local = local
        self._has: dict[str, int] = {}
        """The version of each node."""
        self._news = Notify()
        self._due = trio.Event()
        self._one_by_one = trio.Lock()

    # What its owner asks --------------------------------------------------------------

    async def change(self, make: Callable[[], Awaitable[bool]]) -> list[str]:
        """Change the newest users here, and have all nodes take them.

        Args:
            make: makes the change, and says whether there was one. It is called again
                while other nodes are faster: they have overwritten it then.

        Returns:
            The nodes that have not heard of it, in time. They do later.

        Raises:
            UsageError: other nodes were faster each time; nothing has changed.
            StateError: the folder cannot be used. And what ``make`` raises.
        """
        async with self._one_by_one:
            for _ in range(TRIES):
                try:
                    await self._catch_up()
                except DirectoryAwayError:
                    return self.others if await make() else []
                if not await make():
                    return []
                try:
                    number = await self._publish()
                except _OverruledError:
                    continue
                except DirectoryAwayError:
                    return self.others
                break
            else:
                what = "other nodes change users all the time"
                raise UsageError(what, "each change is made on the newest", "try again")
        return await self._missed(number)

    @property
    def others(self) -> list[str]:
        """The other nodes that live."""
        return [one for one in self._directory.nodes if one != self._directory.name]

    # What the cluster tells -----------------------------------------------------------

    def heard(self, change: Change) -> None:
        """Take a change that the directory has told."""
        if change.key == KEY:
            self._due.set()
        elif change.key.startswith(_AT):
            for member, value in change.claim.members.items():
                self._note(member, value)

    def nodes_changed(self) -> None:
        """Take that nodes have come or gone."""
        nodes = self._directory.nodes
        self._has = {node: has for node, has in self._has.items() if node in nodes}
        self._news.ring()

    async def look_again(self) -> None:
        """Look whether something was missed; say again what this node has."""
        self._has.pop(self._directory.name, None)
        self._due.set()

    async def run(self) -> None:
        """Keep up with the others until cancelled."""
        self._due.set()
        while True:
            await self._due.wait()
            self._due = trio.Event()
            try:
                async with self._one_by_one:
                    await self._catch_up()
            except DirectoryAwayError:
                await trio.sleep(AGAIN_S)
                self._due.set()
            except StateError as error:  # of this node; the next change may do
                log_event(logger, logging.ERROR, "users.not_shared",
                    reason=error.what, cause=error.cause or None)  # fmt: skip

    # ----------------------------------------------------------------------------------

    async def _catch_up(self) -> None:
        claim = (await self._directory.look_up([KEY]))[KEY]
        newest, ours = _newest(claim), await self._local.version()
        if newest.number > ours.number:
            if await self._local.is_changed() and newest.text != ours.text:
                log_event(logger, logging.WARNING, "users.overruled",
                    version=newest.number,
                    reason="other nodes have changed users since")  # fmt: skip
            await self._local.take(newest)
            await self._say(newest.number)
        elif newest.number < ours.number or await self._local.is_changed():
            try:
                await self._publish()
            except _OverruledError:
                return
        else:
            await self._say(ours.number)

    async def _publish(self) -> int:
        """Set what is here as the newest, and return its number."""
        claim = (await self._directory.look_up([KEY]))[KEY]
        newest, ours = _newest(claim), await self._local.version()
        is_changed = await self._local.is_changed()
        if newest.number > ours.number:
            await self._local.take(newest)
            await self._say(newest.number)
            raise _OverruledError
        number = max(newest.number, ours.number) + is_changed
        number = max(number, 1)
        member = f"{self._directory.name}/{KEY}"
        value = _NUMBER.pack(number) + zlib.compress(ours.text.encode())
        without = set(claim.members) - {member}
        try:
            await self._directory.claim(
                member, {KEY: value}, {KEY: claim.fence}, without
            )
        except ClaimedError as error:
            # Nothing older: the key may have been lost, or put back, meanwhile.
            newest = _newest(error.claims[KEY])
            if newest.number > ours.number:
                await self._local.take(newest)
            raise _OverruledError from None
        await self._local.keep(Version(number, ours.text))
        await self._say(number)
        return number

    async def _say(self, number: int) -> None:
        """Tell which version this node has."""
        me = self._directory.name
        if self._has.get(me) != number:
            said = {_AT + me: _NUMBER.pack(number)}
            await self._directory.claim(f"{me}/{KEY}", said, {})
            self._has[me] = number

    async def _missed(self, number: int) -> list[str]:
        """Wait until all nodes have a version; return those that have not in time."""
        with trio.move_on_after(HEARD_S):
            keys = [_AT + one for one in self.others]
            claims: Mapping[str, Claim] = {}
            with suppress(DirectoryAwayError):  # it is made; who has it is not known
                claims = await self._directory.look_up(keys)
            for claim in claims.values():
                for member, value in claim.members.items():
                    self._note(member, value)
            while self._without(number):
                await self._news.wait()
        return self._without(number)

    def _without(self, number: int) -> list[str]:
        return sorted(one for one in self.others if self._has.get(one, 0) < number)

    def _note(self, member: str, value: bytes) -> None:
        node = member.partition("/")[0]
        if len(value) == _NUMBER.size and node in self._directory.nodes:
            self._has[node] = max(self._has.get(node, 0), *_NUMBER.unpack(value))
            self._news.ring()


def _newest(claim: Claim) -> Version:
    """Return what a claim says, whoever of its members lives."""
    known = [one for value in claim.members.values() if (one := _read(value))]
    return max(known, default=Version())


def _read(value: bytes) -> Version | None:
    """Read what a node has said; None, and a line in the log: another program has."""
    try:
        (number,) = _NUMBER.unpack_from(value)
        inflating = zlib.decompressobj()
        text = inflating.decompress(value[_NUMBER.size :], MAX_BYTES)
        return Version(number, text.decode())
    except (struct.error, zlib.error, UnicodeDecodeError) as error:
        log_event(logger, logging.WARNING, "users.not_shared", reason=str(error))
        return None


def names_of(nodes: Iterable[str]) -> list[str]:
    """Return nodes as people call them, without what each start adds."""
    return sorted({one.rpartition(".")[0] or one for one in nodes})
