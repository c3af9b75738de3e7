"""What a center-server answers to commands."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

import trio

from tunnel.access.identity import short_id
from tunnel.center.mappings import mappings_of
from tunnel.center.why import Known
from tunnel.errors import Code
from tunnel.link.live import live_bytes
from tunnel.log import log_event
from tunnel.ops.control.connections import KICKED, Connections
from tunnel.ops.control.handlers import Meters
from tunnel.ops.control.status import (
    CertificateStatus,
    EntryStatus,
    LinkStatus,
    Passed,
    Status,
)
from tunnel.proto.frames import MappingType

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tunnel.center.acme.keeper import Keeper
    from tunnel.center.client_session import ClientSession
    from tunnel.center.server import CenterServer
    from tunnel.center.sites import OpenMapping
    from tunnel.link.session import Session
    from tunnel.link.tally import Live, Tally
    from tunnel.ops.control import Answer, Args, Handler

logger = logging.getLogger("tunnel.control")
_KINDS = {of_type: of_type.name.lower() for of_type in MappingType}


class ServerHandlers:
    """The commands about a server's links, entries and connections.

    ``keeper`` gets certificates, where that is asked.
    """

    def __init__(self, server: CenterServer, keeper: Keeper | None = None) -> None:
        self._server = server
        self._keeper = keeper
        self.meters = Meters(self._totals)

    @property
    def address(self) -> str:
        """Where the server listens for links."""
        return ", ".join(map(str, self._server.addresses))

    @property
    def handlers(self) -> Mapping[str, Handler]:
        """What the control socket answers, besides what every process does."""
        each = Connections(self.sessions, self._entries)

        async def kick(args: Args, by: str) -> Answer:
            which = str(args.get("which", ""))
            return self._kick_client(which, by) or each.kick(which, by)

        return {"top": each.top, "kick": kick}

    def sessions(self) -> list[Known]:
        """Return the sessions that live, and whose they are."""
        return [
            Known(short_id(one.client_id), one.user.name, one.session)
            for one in self._server.clients
        ]

    def _entries(self, session: Session) -> dict[Tally, str]:
        """Return what is public of the entries of a session."""
        server = self._server
        return {
            mapping.tally: _public(mapping)
            for client in server.clients
            if client.session is session
            for mapping in mappings_of(server.mappings, client)
        }

    def _kick_client(self, which: str, by: str) -> Answer | None:
        """End the sessions of a client, which may begin another; None: no such one."""
        found = [
            one for one in self._server.clients if short_id(one.client_id) == which
        ]
        count = sum(one.session.streams for one in found)
        for client in found:
            log_event(logger, logging.WARNING, "client.kicked", **client.who, by=by,
                connections=client.session.streams)  # fmt: skip
            client.dismiss(Code.NORMAL, KICKED)
        return {"kicked": which, "connections": count} if found else None

    def fill(self, status: Status) -> None:
        """Say what the server does now."""
        server, now = self._server, trio.current_time()
        status.state, status.address = "listening", self.address
        sent = received = 0
        for client in server.clients:
            link = self._link(client, now)
            status.links.append(link)
            live = live_bytes(client.session)
            status.entries += [
                _entry(mapping, link.id, live)
                for mapping in mappings_of(server.mappings, client)
            ]
            status.connections += link.connections
            status.waiting += link.waiting
            status.kept_bytes += link.kept_bytes
            sent += link.passed.sent_bytes
            received += link.passed.received_bytes
        status.passed = self.meters.passed("", sent, received)
        if self._keeper is not None:
            status.certificates = [
                CertificateStatus(*one) for one in self._keeper.status()
            ]

    def _link(self, client: ClientSession, now: float) -> LinkStatus:
        session, link = client.session, client.link
        core, live = session.core, session.streams
        rtt_s = core.liveness.rtt_s
        if rtt_s is None and link is not None and core.liveness.asked_at is None:
            core.ping(now)  # who asks again is told
            session.output.wake()
        return LinkStatus(
            id=short_id(client.client_id),
            peer=client.peer,
            user=client.user.name,
            state="linked" if link is not None else "waiting",
            encrypted=client.encrypted,
            linked_at=None if link is None else since_1970(link.began_at, now),
            began_at=since_1970(session.began_at, now),
            lost_at=since_1970(session.lost_at, now),
            rtt_ms=None if rtt_s is None else round(rtt_s * 1000, 1),
            resumes=session.resumes,
            connections=live,
            waiting=live if link is None else 0,
            kept_bytes=session.kept_bytes,
            passed=self.meters.passed(
                client.session_id.hex(), core.data_sent, core.data_received
            ),
            agent=core.theirs.agent,
        )

    def _totals(self) -> dict[str, tuple[int, int]]:
        totals = {
            one.session_id.hex(): (
                one.session.core.data_sent,
                one.session.core.data_received,
            )
            for one in self._server.clients
        }
        each = totals.values()
        totals[""] = sum(sent for sent, _ in each), sum(back for _, back in each)
        return totals


def since_1970(at: float | None, now: float) -> float | None:
    """Return a time of trio's clock, which says ``now``, as the world counts."""
    return None if at is None else round(time.time() - (now - at), 3)


def _public(mapping: OpenMapping) -> str:
    if mapping.names[0].type == MappingType.EXIT:
        return mapping.entry.host
    return str(mapping.endpoint.public)


def _entry(mapping: OpenMapping, client: str, live: Live) -> EntryStatus:
    kind = _KINDS.get(mapping.names[0].type, "?")
    return EntryStatus(
        name=mapping.entry.name,
        kind=kind,
        public=_public(mapping),
        target=None,
        state="open",
        client=client,
        passed=Passed(*mapping.tally.passed(live)),
    )
