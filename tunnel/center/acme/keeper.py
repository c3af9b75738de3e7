"""The task that gets, shows and renews certificates while a server runs.

One order at a time. What is published wakes it, and so does the time of the next
renewal; nothing that a visitor does. It never ends a server: what fails is logged with
what would help, and tried again by the plan.
"""

from __future__ import annotations

import logging
import random
import time
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, NamedTuple

import trio

from tunnel.center.acme.failures import DNS, HTTP, TLS_ALPN, FailedError
from tunnel.center.acme.order import Places, order
from tunnel.center.acme.plan import AUTHORITY, plan
from tunnel.center.acme.store import Store
from tunnel.center.asked_names import NotAskedError, rules_of
from tunnel.center.certificates import names_of
from tunnel.errors import StateError
from tunnel.front.http.terminations import termination
from tunnel.log import log_event
from tunnel.proto.frames import MappingType

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tunnel.center.acme.plan import Ask, Plan
    from tunnel.center.acme_options import AcmeOptions
    from tunnel.center.names import NamePorts
    from tunnel.center.sites import Sites

LOOK_S: Final = 3_600.0
"""How long it sleeps at most: a clock may be set, and a machine may have slept."""
SETTLE_S: Final = 0.5
"""After a change: a client publishes its entries one after the other, and the domain's
wildcard may be one of them."""
MOST_SAID: Final = 1_024
"""Names of which it remembers what it said of them, to say it once."""

logger = logging.getLogger("tunnel.acme")


class CertificateStatus(NamedTuple):
    """What is known of a name's certificate."""

    name: str
    until: float | None
    """Seconds since 1970; None without one."""
    reason: str
    """What failed last, or why it has to wait."""


class Keeper:
    """Has certificates for what is published as HTTP.

    Args:
        options: which authority.
        state: the server's folder.
        ports: where visitors, and the authority, come in.
        sites: what is published.
        now: returns the time in seconds since 1970.
    """

    def __init__(
        self,
        options: AcmeOptions,
        state: Path,
        ports: NamePorts,
        sites: Sites,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._options = options
        self._store = Store(state, options.directory)
        self._ports = ports
        self._sites = sites
        self._now = now
        self._places = Places(ports.doors.endings.challenges, ports.answers)
        self._said: dict[str, str] = {}
        self._limited: dict[str, str] = {}

    def status(self) -> list[CertificateStatus]:
        """Return what is known of each name that has, or wants, a certificate."""
        held, faults = self._store.held, self._store.ledger.faults
        names = sorted({*held, *faults, *self._limited, *self._said} - {AUTHORITY})
        return [
            CertificateStatus(
                name,
                held[name].ends_at if name in held else None,
                faults[name].reason
                if name in faults
                else self._limited.get(name) or self._said.get(name, ""),
            )
            for name in names
        ]

    async def run(self) -> None:
        """Work until cancelled."""
        await trio.to_thread.run_sync(self._store.load, self._now())
        for name in tuple(self._store.held):
            await self._show_kept(name)
        while True:
            changed = self._sites.changed
            todo = self._plan()
            if todo.asks:
                await self._ask(todo.asks[0])
                continue
            wait_s = max(0.0, min(todo.look_at - self._now(), LOOK_S))
            with trio.move_on_after(wait_s):
                await changed.wait()
                await trio.sleep(SETTLE_S)

    def _plan(self) -> Plan:
        names, now = self._ports.options, self._now()
        rules = rules_of(self._options, names.domain)
        given = names_of(names.certificate)
        wanted: dict[str, str] = {}
        for host, user in self._sites.hosts(MappingType.HTTP):
            try:
                name = rules.certificate_for(host, given)
            except NotAskedError as why:
                if self._is_news(host, str(why)):
                    log_event(logger, logging.WARNING, "acme.not_asked", host=host,
                        user=user, reason=str(why), fix=why.fix)  # fmt: skip
                continue
            if name is not None:
                wanted.setdefault(name, user)
        todo = plan(wanted, self._store.ledger, self._store.held, now)
        for name, limit in todo.limited.items():
            if name not in self._limited:
                log_event(logger, logging.WARNING, "acme.limited", host=name,
                    user=wanted[name], reason=limit.why,
                    again_at=_date(limit.until))  # fmt: skip
        self._limited = {name: limit.why for name, limit in todo.limited.items()}
        return todo

    def _is_news(self, host: str, what: str) -> bool:
        if self._said.get(host) == what:
            return False
        self._said[host] = what
        if len(self._said) > MOST_SAID:
            del self._said[next(iter(self._said))]
        return True

    async def _ask(self, ask: Ask) -> None:
        """Ask for one certificate; log how it went."""
        name, user, ledger = ask.name, ask.user, self._store.ledger
        kinds = self._kinds(ask)
        ledger.forget(self._now())
        try:
            if ask.is_new:
                ledger.book(name, user, self._now())
            # Before it is asked: a restart, or a crash, must not ask once more.
            await trio.to_thread.run_sync(self._store.keep_ledger)
            log_event(logger, logging.INFO, "acme.ordered", host=name, user=user,
                challenge=kinds[0], tries=ask.tries + 1)  # fmt: skip
            await order(name, kinds, self._options, self._store, self._places)
            await self._show(name)
        except FailedError as error:
            self._failed(ask, error)
        except StateError as error:
            fix = error.fix or "the server's user has to be able to write STATE/acme"
            reason = f"{error.what}: {error.cause}"
            self._failed(ask, FailedError(reason, fix))
        else:
            ledger.succeeded(name)
            self._said.pop(name, None)
            log_event(logger, logging.INFO, "acme.got" if ask.is_new else
                "acme.renewed", host=name,
                until=_date(self._store.held[name].ends_at))  # fmt: skip
        with suppress(StateError):  # said by the next order, before it is asked
            await trio.to_thread.run_sync(self._store.keep_ledger)

    def _kinds(self, ask: Ask) -> tuple[str, ...]:
        """Return the kinds of proofs, the next best one after each failure."""
        if ask.name.startswith("*."):
            return (DNS,)
        if self._ports.http is None:
            return (TLS_ALPN,)
        return (HTTP, TLS_ALPN) if ask.tries % 2 else (TLS_ALPN, HTTP)

    def _failed(self, ask: Ask, error: FailedError) -> None:
        again_at = self._store.ledger.failed(
            AUTHORITY if error.of_authority else ask.name,
            error.reason,
            self._now(),
            random.random(),  # noqa: S311 - spreads, and hides nothing
            error.after_s,
        )
        log_event(logger, logging.WARNING, "acme.failed", host=ask.name,
            user=ask.user, reason=error.reason,
            fix=error.fix.replace("NAME", ask.name.removeprefix("*.")),
            again_at=_date(again_at))  # fmt: skip

    async def _show(self, name: str) -> None:
        path = self._store.path_of(name)
        try:
            ending = await trio.to_thread.run_sync(termination, path, path)
        except OSError as error:  # ssl.SSLError is one
            why = error.strerror or str(error)
            raise StateError(f"cannot use {path}", why) from error
        self._ports.doors.endings.show(name, ending)

    async def _show_kept(self, name: str) -> None:
        try:
            await self._show(name)
        except StateError as error:
            del self._store.held[name]
            log_event(logger, logging.WARNING, "acme.state", reason=error.cause,
                path=str(self._store.path_of(name)),
                fix="another certificate is asked for")  # fmt: skip


def _date(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds")
