"""What a node does for the others: opens at its clients, takes links, answers."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Final

from tunnel.access.account import Account
from tunnel.center.cluster import remote, waiting
from tunnel.center.cluster.peers import serve_question
from tunnel.center.cluster.telling import Telling
from tunnel.center.exit.tcp import refuse, serve_chained
from tunnel.center.mappings import SILENT_OWNER_S
from tunnel.center.nodes import AT
from tunnel.center.owner import wait_for
from tunnel.center.wire import PassedWire
from tunnel.errors import Code, StreamError
from tunnel.proto.frames import AskTarget, LinkTarget, SessionTarget

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tunnel.access.users import User
    from tunnel.addresses import Address
    from tunnel.center.client_session import ClientSession
    from tunnel.center.cluster.peers import Peers, Words
    from tunnel.link.user_session import UserSession
    from tunnel.link.virtual import VirtualStream


class NodeService:
    """Serves what another node opens here (protocol.md#peers-links).

    Args:
        find: returns the client that has a session.
        serve_wire: begins a link on a wire that another node passes on.
        ends: ends the session of a client that is elsewhere; False: it answers here.
    """

    def __init__(
        self,
        find: Callable[[bytes], ClientSession | None],
        serve_wire: Callable[[PassedWire], Awaitable[None]],
        ends: Callable[[ClientSession], Awaitable[bool]],
    ) -> None:
        self._find = find
        self._serve_wire = serve_wire
        self._ends = ends
        self._peers: Peers | None = None
        self.telling: Telling | None = None
        """Tells other nodes of the clients of this one."""

    def know(self, peers: Peers | None) -> None:
        """Have these links to the other nodes; None: there are none."""
        self._peers = peers
        self.telling = None if peers is None else Telling(peers)

    def serve(self, stream: VirtualStream) -> Awaitable[None]:
        """Serve an offer to its end; owns the stream."""
        create = stream.create
        visitor = create.visitor if create else None
        match create.target if create else None:
            case SessionTarget() as target:
                return self._open(stream, target, visitor)
            case LinkTarget() as target if visitor is not None:
                stream.accept()
                return self._serve_wire(PassedWire(stream, visitor, target))
            case AskTarget():
                return serve_question(stream, self._answer)
            case _:
                return refuse(stream, Code.UNSUPPORTED)

    async def _answer(self, words: Words) -> Words:
        """Answer a question about a client."""
        client, session_id = None, b""
        with suppress(ValueError):
            session_id = bytes.fromhex(str(words.get("session", "")))
            client = self._find(session_id)
        match words.get("ask"):
            case waiting.WAITS | waiting.FOUND if self._peers is not None:
                waits = words["ask"] == waiting.WAITS
                self._peers.waiting.heard(session_id, waits=waits)
                return {"yes": True}
            case remote.YIELDS:
                return {"yes": client is None or await self._ends(client)}
            case remote.ANSWERS if client is not None and not client.departed.is_set():
                return {"yes": await client.answers(SILENT_OWNER_S)}
            case _:
                return {"yes": False}

    def _open(
        self, stream: VirtualStream, target: SessionTarget, visitor: Address | None
    ) -> Awaitable[None]:
        # The far stream is open before this returns: visitors keep their order.
        client = self._find(target.session_id)
        if client is None or client.gone:
            why = "the client has left this server"
            return refuse(stream, Code.LINK_LOST, why)
        if self.telling is not None:
            whose = getattr(stream.carrier, "whose", {})
            node = str(whose.get("user", "")).removeprefix(AT)
            self.telling.opened_by(node, client)
        if client.waiting:
            return self._open_later(stream, target, visitor, client)
        try:
            onward = client.session.open_now(target.target, visitor)
        except StreamError as error:
            return refuse(stream, error.code, error.what)
        # The line of the visitor is written where it came.
        return serve_chained(stream, onward, logged=False)

    @staticmethod
    async def _open_later(
        stream: VirtualStream,
        target: SessionTarget,
        visitor: Address | None,
        client: ClientSession,
    ) -> None:
        """Open for a visitor who waits, as here, for a link that was just lost."""
        try:
            await wait_for(client)
            onward = client.session.open_now(target.target, visitor)
        except StreamError as error:
            return await refuse(stream, error.code, error.what)
        await serve_chained(stream, onward, logged=False)


class NodeAccounts:
    """Counts for no user what nodes have: it is what their clients have."""

    def begin(self, user: User, session: UserSession) -> None:
        """Have the session count for nobody."""
        session.count_for(Account(user.name))

    def end(self, session: UserSession) -> None:
        """Do nothing."""

    def named(self, name: str) -> Account:
        """Return an account of nobody."""
        return Account(name)


NODE_ACCOUNTS: Final = NodeAccounts()
