"""The directory of one machine: in the process that has started the workers.

A worker asks over its channel; what it has goes with it when it ends.
"""

from __future__ import annotations

import socket
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

import trio

from tunnel.center.cluster.channel import FailedError
from tunnel.center.cluster.directory import (
    Change,
    Claim,
    ClaimedError,
    DirectoryAwayError,
)
from tunnel.errors import TunnelError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Mapping

    from tunnel.center.cluster.channel import Channel, Words
    from tunnel.center.cluster.store import Store

CHANGES: Final = "changes"
"""The note of what has changed."""
MOST_CHANGES: Final = 65_536
"""Changes that a worker has not looked at: with one more it looks everything up."""


class MachineDirectory:
    """The directory as a worker sees it.

    Args:
        name: of this worker, as its parent has named it.
        channel: leads to the parent.
    """

    def __init__(self, name: str, channel: Callable[[], Channel]) -> None:
        self.name = name
        self.nodes: dict[str, str] = {name: ""}
        self._channel = channel
        self._told, self._news = trio.open_memory_channel[list[Change]](MOST_CHANGES)

    async def look_up(self, keys: Iterable[str]) -> dict[str, Claim]:
        """Return the claims on these keys, as they are now."""
        said = await self._ask("look_up", {"keys": list(keys)})
        return _read_claims(said["claims"])

    async def claim(
        self,
        member: str,
        says: Mapping[str, bytes],
        seen: Mapping[str, int],
        without: Iterable[str] = (),
    ) -> dict[str, Claim]:
        """Claim, as ``Directory`` says."""
        said = await self._ask(
            "claim",
            {
                "member": member,
                "says": {key: _text(value) for key, value in says.items()},
                "seen": seen,
                "without": list(without),
            },
        )
        claims = _read_claims(said["claims"])
        if said["claimed"]:
            return claims
        raise ClaimedError(claims)

    async def release(self, member: str, keys: Iterable[str]) -> None:
        """Take a member out of these claims."""
        await self._ask("release", {"member": member, "keys": list(keys)})

    async def remember(self, key: str, value: bytes) -> None:
        """Keep something small that outlives this worker."""
        await self._ask("remember", {"key": key, "value": _text(value)})

    async def recall(self, key: str) -> bytes:
        """Return what was remembered last; empty if nothing is."""
        said = await self._ask("recall", {"key": key})
        return str(said["value"]).encode("latin-1")

    @asynccontextmanager
    async def changes(self) -> AsyncIterator[AsyncIterator[list[Change]]]:
        """Hear of every change from now on."""
        await self._ask("enter", {})
        yield self._news

    async def tell(self, key: str, value: bytes) -> None:
        """Say something to all workers."""
        await self._ask("tell", {"key": key, "value": _text(value)})

    async def connect(self, node: str) -> socket.socket:
        """Return a socket whose other end that worker serves.

        Raises:
            TunnelError: it lives no more.
        """
        said, came = await self._channel().ask("connect", {"node": node})
        del said
        return socket.socket(fileno=came[0])

    def heard(self, args: Words) -> None:
        """Take the parent's note of what has changed."""
        nodes = args.get("nodes")
        if isinstance(nodes, dict):
            self.nodes = nodes
        changes = [
            Change(str(key), _read_claim(claim)) for key, claim in _pairs(args["news"])
        ]
        try:
            self._told.send_nowait(changes)
        except trio.WouldBlock:
            self._news.close()  # ends this worker: it would know less than it serves

    async def _ask(self, do: str, args: Words) -> Words:
        try:
            said, _none = await self._channel().ask(do, args)
        except FailedError:
            raise
        except TunnelError as error:
            raise DirectoryAwayError(error.what) from error
        return said


def answer(
    store: Store, channel: Channel, node: str, do: str, args: Words
) -> dict[str, object]:
    """Do in the parent what a worker's directory asks; KeyError: it is none of it.

    What has changed is told to every worker before the answer.
    """
    match do:
        case "enter":
            store.enter(node, "", lambda changes: _tell(store, channel, changes))
            return {}
        case "look_up":
            return {"claims": _claims(store.look_up(_strings(args["keys"])))}
        case "claim":
            return _claim(store, args)
        case "release":
            store.release(str(args["member"]), _strings(args["keys"]))
            return {}
        case "remember":
            store.remember(str(args["key"]), str(args["value"]).encode("latin-1"))
            return {}
        case "tell":
            store.tell(node, str(args["key"]), str(args["value"]).encode("latin-1"))
            return {}
        case "recall":
            return {"value": _text(store.recall(str(args["key"])))}
        case _:
            raise KeyError(do)


def _claim(store: Store, args: Words) -> dict[str, object]:
    says, seen = args["says"], args["seen"]
    assert isinstance(says, dict)  # noqa: S101 - a worker of ours says so
    assert isinstance(seen, dict)  # noqa: S101
    values = {key: value.encode("latin-1") for key, value in says.items()}
    try:
        claims = store.claim(
            str(args["member"]), values, seen, _strings(args["without"])
        )
    except ClaimedError as error:
        return {"claimed": False, "claims": _claims(error.claims)}
    return {"claimed": True, "claims": _claims(claims)}


def _tell(store: Store, channel: Channel, changes: list[Change]) -> None:
    words: dict[str, object] = {
        "news": [[key, _claim_words(claim)] for key, claim in changes]
    }
    if any(not key for key, _claim in changes):
        words["nodes"] = dict(store.nodes)
    channel.tell(CHANGES, words)


def _claims(claims: Mapping[str, Claim]) -> dict[str, object]:
    return {key: _claim_words(claim) for key, claim in claims.items()}


def _claim_words(claim: Claim) -> list[object]:
    return [claim.fence, {who: _text(value) for who, value in claim.members.items()}]


def _read_claims(said: object) -> dict[str, Claim]:
    assert isinstance(said, dict)  # noqa: S101 - the parent says so
    return {key: _read_claim(words) for key, words in said.items()}


def _read_claim(words: object) -> Claim:
    assert isinstance(words, list)  # noqa: S101 - the parent says so
    fence, members = words
    return Claim(
        fence, {who: value.encode("latin-1") for who, value in members.items()}
    )


def _pairs(said: object) -> list[tuple[object, object]]:
    assert isinstance(said, list)  # noqa: S101 - the parent says so
    return [(key, words) for key, words in said]


def _strings(said: object) -> list[str]:
    assert isinstance(said, list)  # noqa: S101 - a worker of ours says so
    return [str(one) for one in said]


def _text(value: bytes) -> str:
    return value.decode("latin-1")
