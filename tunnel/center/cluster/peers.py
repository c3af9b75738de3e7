"""Links to the other nodes: made when needed, and kept (protocol.md#peers).

A node is to another what a center-client is to a center-server, so all that a link does
(credit, fairness, liveness, resumption) is done here as there.
"""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Final

import trio

from tunnel.access.join import JoinLine, Secret
from tunnel.addresses import Address
from tunnel.center.cluster.waiting import Waiting
from tunnel.center.events import LinkDown
from tunnel.center.link_keeper import LinkKeeper
from tunnel.center.nodes import AT
from tunnel.errors import (
    Code,
    LocalLinkError,
    LocalStreamError,
    StreamError,
    TunnelError,
)
from tunnel.link.transport import PlainTransport, tune_link
from tunnel.log import log_event
from tunnel.net.notify import Notify
from tunnel.net.sockets import FastSocket
from tunnel.proto.frames import AskTarget

if TYPE_CHECKING:
    import socket
    import ssl
    from collections.abc import Awaitable, Callable, Mapping

    from tunnel.center.cluster.secret import ClusterSecret
    from tunnel.center.events import Notice
    from tunnel.link.session import Session
    from tunnel.link.transport import Transport
    from tunnel.link.virtual import VirtualStream
    from tunnel.proto.frames import Target

    Words = dict[str, object]
    Answer = Callable[[Words], Awaitable[Words]]
    Connect = Callable[[str], Awaitable[socket.socket | None]]

REACHED_S: Final = 3.0
"""How long a node that lives may take to be reached, by what waits for it."""
AGAIN_S: Final = 1.0
"""After a node was not reached: so long those who want to ask it hear so at once."""
MAX_WORDS: Final = 4_096
"""Bytes of a question between nodes, and of its answer."""

logger = logging.getLogger("tunnel.cluster")


class _Keeper(LinkKeeper):
    """The links to one node; one of this machine gets its end of a socket pair."""

    _of_node = True

    def __init__(self, join: JoinLine, node: str, connect: Connect) -> None:
        super().__init__(join, give_up_s=0.0, tell=self._told)
        self._node = node
        self._connect = connect
        self.news = Notify()
        """Rings when there is a link, and when there was none to be had."""
        self.failed = False
        """The last attempt to make a link has failed, and there is none."""

    def _told(self, notice: Notice) -> None:
        if isinstance(notice, LinkDown) and notice.was_up:
            return  # the next attempt tells
        self.failed = isinstance(notice, LinkDown)
        self.news.ring()

    async def _reach(self, tls: ssl.SSLContext | None) -> Transport:
        if not self._join.port:
            try:
                sock = await self._connect(self._node)
            except TunnelError as error:
                raise LocalLinkError(Code.LINK_LOST, error.what) from error
            if sock is not None:
                sock.setblocking(False)
                link = FastSocket(sock)
                tune_link(link)
                return PlainTransport(link, self._node)
        return await super()._reach(tls)


class Peers:
    """The links from one node to the others.

    Args:
        name: this node's.
        secret: what the nodes share.
        pin: of the identity of all; None where links are plain.
        nodes: returns where each node that lives is.
        connect: see ``Directory.connect``.
    """

    def __init__(
        self,
        name: str,
        secret: ClusterSecret,
        pin: str | None,
        nodes: Callable[[], Mapping[str, str]],
        connect: Connect,
    ) -> None:
        self._name = name
        self._token = Secret(secret.peer_token())
        self._pin = pin
        self._nodes = nodes
        self._connect = connect
        self._keepers: dict[str, _Keeper] = {}
        self._silent_until: dict[str, float] = {}
        self.links: set[VirtualStream] = set()
        """Links of clients that are passed on: they end only with their clients."""
        self._nursery: trio.Nursery | None = None
        self.waiting = Waiting()
        """Clients of the others that have no link."""

    def lives(self, node: str) -> bool:
        """Say whether a node is there."""
        return node in self._nodes()

    async def run(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Host the links until cancelled."""
        async with trio.open_nursery() as self._nursery:
            task_status.started()
            await trio.sleep_forever()

    def session(self, node: str) -> Session | None:
        """Return the session with a node, if it has a link; begin to make one if not.

        What is opened in it waits for nothing, as in any session.
        """
        keeper = self._keepers.get(node)
        if keeper is None:
            self._begin(node)
            return None
        session = keeper.session
        if session is None or session.ended or session.lost_at is not None:
            keeper.hurry()
            return None
        return session

    async def reached(self, node: str, within_s: float = REACHED_S) -> Session:
        """Return the session with a node, once it has a link.

        Whoever could not be reached a moment ago is not waited for: a node that has
        died is asked about each of its names.

        Raises:
            LocalStreamError: ``LINK_LOST``: it is not reached in time, or is no more.
        """
        if trio.current_time() >= self._silent_until.get(node, 0.0):
            with trio.move_on_after(within_s):
                session, keeper = self.session(node), self._keepers.get(node)
                while session is None and keeper is not None and not keeper.failed:
                    await keeper.news.wait()
                    if self._keepers.get(node) is keeper:
                        session = self.session(node)
                if session is not None:
                    self._silent_until.pop(node, None)
                    return session
            self._silent_until[node] = trio.current_time() + AGAIN_S
        raise LocalStreamError(Code.LINK_LOST, f"{node} is not reached")

    async def open(self, node: str, target: Target, visitor: Address) -> VirtualStream:
        """Open at a node, without waiting for its answer; raises as ``reached``."""
        return (await self.reached(node)).open_now(target, visitor)

    async def wait_idle(self) -> None:
        """Wait until nobody here is opened at another node, but for links."""
        for keeper in tuple(self._keepers.values()):
            if (session := keeper.session) is not None:
                await session.wait_idle(self.links)

    async def ask(self, node: str, words: Words, within_s: float) -> Words | None:
        """Ask a node a question; None without an answer in time."""
        with trio.move_on_after(within_s):
            try:
                session = await self.reached(node, within_s)
                stream = await session.open(AskTarget(), deadline_s=within_s)
            except StreamError:
                return None
            async with stream:
                try:
                    await stream.send_all(_line(words))
                    await stream.send_eof()
                    return await hear_words(stream)
                except (trio.BrokenResourceError, ValueError):
                    return None
        return None

    def forget_the_gone(self) -> None:
        """End the links to nodes that live no more; connections over them break."""
        nodes = self._nodes()
        for node in self._silent_until.keys() - nodes.keys():
            del self._silent_until[node]
        for node, keeper in tuple(self._keepers.items()):
            if node not in nodes:
                del self._keepers[node]
                keeper.stop()

    def _begin(self, node: str) -> None:
        where, nursery = self._nodes().get(node), self._nursery
        if where is None or nursery is None:
            return
        me, plain = AT + self._name, self._pin is None
        if where:
            at = Address.parse(where)
            join = JoinLine(me, self._token, at.host, at.port, self._pin, plain)
        else:
            join = JoinLine(me, self._token, node, 0, None, plain=True)
        self._keepers[node] = _Keeper(join, node, self._connect)
        nursery.start_soon(self._keep, node, self._keepers[node])

    async def _keep(self, node: str, keeper: _Keeper) -> None:
        """Keep the links to a node up, until it is gone or refuses."""
        reason = ""
        try:
            await keeper.run()
        except* TunnelError as errors:
            reason = str(errors.exceptions[0])
        finally:
            if self._keepers.get(node) is keeper:
                del self._keepers[node]
            keeper.failed = True
            keeper.news.ring()
        if reason:
            log_event(logger, logging.WARNING, "peer.lost", node=node, reason=reason)


async def serve_question(stream: VirtualStream, answer: Answer) -> None:
    """Answer the one question of a stream that a node has opened; owns the stream."""
    async with stream:
        stream.accept()
        try:
            words = await hear_words(stream)
        except (trio.BrokenResourceError, ValueError) as error:
            log_event(logger, logging.WARNING, "peer.asked_nonsense", reason=str(error))
            stream.reset(Code.RESET)
            return
        try:
            await stream.send_all(_line(await answer(words)))
            await stream.send_eof()
        except trio.BrokenResourceError:
            pass  # who asked has gone


async def hear_words(stream: VirtualStream) -> Words:
    """Read one line of JSON; ValueError: it is none, or too long."""
    line = bytearray()
    while came := await stream.receive_some():
        line += came
        if len(line) > MAX_WORDS:
            raise ValueError(f"more than {MAX_WORDS} bytes")
    words = json.loads(line)
    if not isinstance(words, dict):
        raise ValueError("no object")
    return words


def _line(words: Mapping[str, object]) -> bytes:
    return json.dumps(words).encode() + b"\n"
