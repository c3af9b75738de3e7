"""UserSession: a session at the server, which counts for the account of its user."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

from tunnel.errors import Code, LimitError
from tunnel.link.session import Session
from tunnel.proto.events import StreamClosed
from tunnel.proto.pace import Inflow

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tunnel.access.account import Account
    from tunnel.addresses import Address
    from tunnel.errors import TunnelError
    from tunnel.link.virtual import VirtualStream
    from tunnel.proto.conn import VirtualConn
    from tunnel.proto.events import Event, StreamOffered
    from tunnel.proto.frames import Target


class UserSession(Session):
    """A ``Session`` within the limits of its user; ``count_for`` follows its making."""

    account: Account
    whose: Mapping[str, str] = MappingProxyType({})
    """Whose it is, for the access log: ``user`` and ``client``."""

    def count_for(self, account: Account) -> None:
        """Belong to this account from the first link on."""
        self.account = account
        self._counted = (0, 0, 0, 0)
        self._visitors: dict[VirtualConn, str] = {}
        """Whose address has one of these, where that has a limit."""
        self.pace()

    def pace(self) -> None:
        """Let bytes pass no faster than the account's meters do: they have changed."""
        if self.ended is not None:
            return
        account = self.account
        before = self.inflow
        if (before and before.meter) is not account.up:
            self.inflow = Inflow(account.up, self._release) if account.up else None
            if before is not None:
                before.end()
        self.core.pace(account.down, account.police, self.output.wake)

    def count(self) -> None:
        """Add to the account what has passed since the last call."""
        core, account, before = self.core, self.account, self._counted
        now = core.passed, core.data_sent, core.data_received, self.tallies.begun
        account.month_bytes += now[0] - before[0]
        account.sent_bytes += now[1] - before[1]
        account.received_bytes += now[2] - before[2]
        account.opened += now[3] - before[3]
        self._counted = now

    def reset_all(self, reason: str) -> None:
        """Reset every connection with RESOURCE: the user has had what there is."""
        for conn in tuple(self._streams):
            self.core.close(conn, Code.RESOURCE, reason)
            self.dispatch([StreamClosed(conn, Code.RESOURCE, reason, local=True)])
        self.output.wake()

    # What counts -------------------------------------------------------------------

    def open_now(
        self,
        target: Target,
        visitor: Address | None = None,
        exit_name: str | None = None,
    ) -> VirtualStream:
        """Do as ``Session.open_now`` does; a limit of the user raises ``RESOURCE``."""
        account = self.account
        counted = visitor is not None and account.admit_visitor(visitor.host)
        try:
            if why := account.refuses_connection():
                raise LimitError(why)
            stream = super().open_now(target, visitor, exit_name)
        except BaseException:
            if counted and visitor is not None:
                account.visitor_left(visitor.host)
            raise
        if counted and visitor is not None:
            self._visitors[stream.conn] = visitor.host
        account.connections += 1
        return stream

    def forget(self, conn: VirtualConn) -> None:
        """Dispatch nothing more to this connection's stream: it is closed here."""
        if self.inflow is not None:
            self.inflow.forget(conn)
        super().forget(conn)
        if self.core.opened_here(conn):
            self.account.connections -= 1
            if (host := self._visitors.pop(conn, None)) is not None:
                self.account.visitor_left(host)

    def _on_offer(self, event: StreamOffered) -> None:
        conn, account = event.conn, self.account
        why = "" if self.ended else account.refuses_connection()
        if why:
            self.core.close(conn, Code.RESOURCE, why)
            self.core.released(conn)
            return
        super()._on_offer(event)
        if conn in self._streams and self._nursery is not None:
            account.connections += 1

    async def _serve(self, stream: VirtualStream) -> None:
        try:
            await super()._serve(stream)
        finally:
            self.account.connections -= 1

    # What waits for a rate ---------------------------------------------------------

    def end(self, error: TunnelError, *, flush: bool = False) -> None:
        """Do as ``Session.end`` does; what has come and waits can still be read."""
        if self.inflow is not None:
            inflow, self.inflow = self.inflow, None
            inflow.end()
        self.core.pace(None, None, self.output.wake)
        super().end(error, flush=flush)

    def _release(self, events: list[Event]) -> None:
        self.dispatch(events, paced=True)
        if self.core.has_output():
            self.output.flush()
