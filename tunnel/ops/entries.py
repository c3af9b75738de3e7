"""The entries of a command: services published at the server, and ports opened here.

An entry starts itself and writes the line that scripts and people read once it is
ready. ``entry_syntax`` reads its text forms, ``up`` runs the entries of one command.

    Published    public at the server; its visitors are led to an endpoint here
    Local        listens here; its connections leave at the server or another client
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Final

from tunnel.access.networks import Networks
from tunnel.addresses import (
    EVERYWHERE,
    LOOPBACKS,
    WILDCARDS,
    Address,
    UnixPath,
    is_localhost,
)
from tunnel.center.exit.tcp import exit_to, refuse, udp_exit_to
from tunnel.center.health import keep_checking
from tunnel.center.local_services import (
    overhear,
    probe_tls,
    share_folder,
    share_network,
    share_service,
)
from tunnel.center.own_names import own_name
from tunnel.center.publisher import NOT_OFFERED
from tunnel.errors import CODES, Code, TunnelError, UsageError
from tunnel.front.dialer import Dialer
from tunnel.front.ports import serve_port
from tunnel.front.proxy import serve_proxy
from tunnel.log import log_event
from tunnel.net.access_log import ENTRY
from tunnel.net.dial import probe
from tunnel.ops.entry_values import Ports
from tunnel.proto.frames import MappingEntry, MappingType, TcpTarget
from tunnel.proto.rules import Rules

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tunnel.access.proxy_users import ProxyUsers
    from tunnel.addresses import End
    from tunnel.center.client import CenterClient
    from tunnel.center.events import MappingRefused
    from tunnel.center.exit.tcp import Serve
    from tunnel.center.health import Check
    from tunnel.center.tls_target import TargetTls
    from tunnel.front.http.files import Folder
    from tunnel.front.http.guard import Guard
    from tunnel.front.http.observer import Watch
    from tunnel.front.http.service_rules import ServiceRules
    from tunnel.net.listen import PortListener
    from tunnel.net.proxy_protocol import ProxyVersion

LOG: Final = logging.getLogger(__name__)
_IN_OTHER_HANDS: Final = (Code.TAKEN, Code.TAKEN_OVER)
"""The refusals after which another port or name may be had."""
_USUAL_PORTS: Final = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Line:
    """What is said of an entry that is ready."""

    kind: str
    where: str
    target: str
    state: str = ""
    title: str = ""
    """What a person reads instead of the target."""
    warning: str = ""

    def text(self, *, terminal: bool) -> str:
        """Return the line for a person at a terminal, or for a script."""
        if not terminal:
            return f"{self.kind} {self.where} {self.target}"
        state = f" ({self.state})" if self.state else ""
        return f"  {self.where} → {self.title or self.target}{state}"

    @property
    def fields(self) -> dict[str, str]:
        """The fields of its JSON object."""
        names = "kind", "address", "target", "state"
        values = self.kind, self.where, self.target, self.state
        return dict(zip(names, values, strict=True))


# Endpoints: where the visitors of a published entry are led --------------------------


@dataclass(frozen=True, slots=True)
class Service:
    """A TCP, UDP or web service that is reached from here."""

    target: End
    """Its address; of several ports in a row the first."""
    count: int = 1
    proxy: ProxyVersion | None = None
    """Which PROXY header the service hears first."""
    rules: ServiceRules | None = None
    """What the words of a web service want; None: its bytes are relayed."""
    tls: TargetTls | None = None
    """The service is spoken to with TLS; only with rules."""

    def __str__(self) -> str:
        if isinstance(self.target, UnixPath):
            return str(self.target)
        scheme = "" if self.tls is None else "https://"
        return f"{scheme}{Ports(self.target, self.count)}"


@dataclass(frozen=True, slots=True)
class SharedFolder:
    """The files of a folder, as web pages."""

    folder: Folder
    guard: Guard | None = None

    def __str__(self) -> str:
        return os.fsdecode(self.folder.root)


@dataclass(frozen=True, slots=True)
class ClientProxy:
    """A SOCKS and HTTP proxy that leaves in the network of this machine."""

    networks: Networks = field(default_factory=Networks)
    users: ProxyUsers | None = None

    def __str__(self) -> str:
        return "socks"


@dataclass(frozen=True, slots=True)
class ClientExit:
    """The network of this machine, for other clients of the server."""

    networks: Networks = field(default_factory=Networks)

    def __str__(self) -> str:
        return ",".join(map(str, self.networks.allowed)) or "-"


Endpoint = Service | SharedFolder | ClientProxy | ClientExit


# Entries -----------------------------------------------------------------------------


Inspect = Callable[[str], "Watch"]
"""Returns who looks at the requests of an entry, which is called so."""


@dataclass(frozen=True, slots=True)
class Published:
    """Something that is public at the server and leads to an endpoint here."""

    kind: str
    """The first word of its line."""
    wanted: MappingEntry
    """What the server is asked for; without a host, an HTTP entry gets a name that this
    client keeps."""
    endpoint: Endpoint
    flag: str = field(default="", compare=False)
    """What its user changes to ask for something else; empty if nothing helps."""
    scheme: str = ""
    """Of the URL in its line; empty for a line with an address."""
    server_host: str = ""
    """Names the URL where the public address has no host of its own."""
    check: Check | None = None
    """How this client asks whether its target is well."""
    inspect: bool = False
    """Its requests are kept to be looked at: an ``Inspect`` says where."""

    async def keep_checking(self, client: CenterClient, name: str) -> None:
        """Tell the server whether its target is well, until cancelled."""
        assert self.check is not None  # noqa: S101 - it is to be kept
        assert isinstance(self.endpoint, Service)  # noqa: S101 - no folder is checked

        async def tell(out: bool) -> None:
            await client.lead_nobody(name, out=out)

        await keep_checking(self.endpoint.target, self.check, tell)

    async def start(self, client: CenterClient) -> str:
        """Publish it; return the name that the mapping has in the client's events.

        Nobody looks at its requests.
        """
        name = self.add(client)
        await client.publisher.ask([name])
        return name

    def add(self, client: CenterClient, inspect: Inspect | None = None) -> str:
        """Do as ``start``, but without asking for it (``Publisher.ask``).

        ``inspect`` gives who looks at its requests, if it is to be inspected.
        """
        wanted, serve, watch = self._asked(client, inspect)
        name = client.publisher.add(wanted, serve, or_else=self._has_own_name)
        if watch is not None:
            watch.known_as(name)
        return name

    def change(
        self,
        client: CenterClient,
        name: str,
        inspect: Inspect | None = None,
        *,
        refused: bool = False,
    ) -> bool:
        """Take the place of another entry, whose mapping is ``name``.

        Args:
            client: publishes it.
            name: of the mapping.
            inspect: as for ``add``.
            refused: its visitors are, as it is paused.

        Returns:
            Whether it has to be asked for.
        """
        wanted, serve, watch = self._asked(client, inspect)
        if watch is not None:
            watch.known_as(name)
        if refused:
            serve = partial(refuse, code=Code.DRAINING, reason="it is paused")
        return client.publisher.change(name, wanted, serve)

    def _asked(
        self, client: CenterClient, inspect: Inspect | None
    ) -> tuple[MappingEntry, Serve, Watch | None]:
        """Return what the server is asked for, what serves visitors, and who looks."""
        wanted, public = self.wanted_by(client.client_id), client.public
        watch = None
        if self.inspect and inspect is not None:
            watch = inspect(f"{self.kind} {wanted.host or self.endpoint}")
        serve: Serve
        match self.endpoint:
            case ClientExit(networks):
                client.publisher.exit_networks = networks
                # No visitors of its own: those of others say in CREATE where they go.
                serve = partial(refuse, code=Code.NO_MAPPING)
            case ClientProxy(networks, users):
                serve = share_network(networks, users)
            case SharedFolder(folder, guard):
                serve = share_folder(folder, guard, watch)
            case Service(Address() as to, count) if wanted.type == MappingType.UDP:
                serve = udp_exit_to(to, count=count)
            case Service(to, rules=rules, tls=tls) if rules is not None:
                by_name = wanted.type == MappingType.HTTP
                serve = share_service(to, rules, tls, by_name=by_name, watch=watch)
            case Service(to, count, proxy):
                hear = None if watch is None else overhear(to, watch)
                serve = exit_to(to, count=count, proxy=proxy, public=public, hear=hear)
        return wanted, serve, watch

    def wanted_by(self, client_id: bytes) -> MappingEntry:
        """Return what a client with this id asks the server for."""
        if not self._has_own_name:
            return self.wanted
        name = own_name(client_id, _key_of(self.endpoint))
        return replace(self.wanted, host=name)

    async def ready(self, public: Address) -> Line:
        """Return the line for its public address; dials a TCP target to try it."""
        where = self.where(public)
        match self.endpoint:
            case Service(target, tls=tls) if self.wanted.type != MappingType.UDP:
                return await self._probed(where, target, tls)
            case ClientProxy(networks):
                title = f"proxy into {networks} here"
            case ClientExit(networks):
                title = f"exit into {networks}"
            case _:
                title = ""
        return Line(self.kind, where, str(self.endpoint), title=title)

    async def _probed(self, where: str, target: End, tls: TargetTls | None) -> Line:
        line = partial(Line, self.kind, where, str(self.endpoint))
        if await probe(target):
            if tls is not None and (why := await probe_tls(target, tls)):
                return line("not trusted", warning=f"{self.endpoint}: {why}")
            return line("answering")
        visitors = "are told so" if self.scheme else "are refused"
        warning = f"{target} does not answer; visitors {visitors} until it does"
        return line("not answering", warning=warning)

    def over_tls(self) -> Published:
        """Return the entry as it is where ``https://`` leads to it."""
        return replace(self, scheme="https") if self.scheme else self

    def instead(self, notice: MappingRefused, server_host: str) -> Published | None:
        """Return what to publish where the server does not offer this; None: nothing.

        A server without host names can show a web page at a port all the same.
        """
        if not self._has_own_name or notice.answer.code not in NOT_OFFERED:
            return None
        if self.wanted.rules is not None:  # of a port nobody would ask them
            return None
        log_event(LOG, logging.INFO, "share.at_a_port", reason=notice.answer.reason)
        wanted = MappingEntry(MappingType.TCP, "")
        return replace(self, wanted=wanted, server_host=server_host)

    def refused(self, notice: MappingRefused) -> TunnelError:
        """Return the error that says what the server does not give, and what to do."""
        code = notice.answer.code
        reason = notice.answer.reason or CODES[code].meaning
        what, fix = notice.wanted.host or "a port", ""
        if self.kind == "exit":
            what = f"the exit {self.wanted.host}"
        elif self.scheme:
            if code is Code.UNSUPPORTED and self.wanted.rules and "too old" in reason:
                fix = "update tunnel there, or publish without these words"
            elif code is Code.UNSUPPORTED:
                port = _USUAL_PORTS[self.kind]
                fix = f"run `tunnel serve --{self.kind} {port} --domain DOMAIN` there"
            elif code in _IN_OTHER_HANDS:
                fix = "choose another name"
        else:
            is_proxy = isinstance(self.endpoint, ClientProxy)
            target = "a proxy" if is_proxy else str(self.endpoint)
            what = f"{notice.wanted.port or 'a port'} for {target}"
            if self.flag and code in _IN_OTHER_HANDS:
                fix = f"choose another: {public_flag(self.flag, '0', target)}"
        what = f"the server does not give {what}: {reason}"
        return TunnelError(code, what, fix=fix)

    @property
    def _has_own_name(self) -> bool:
        return self.wanted.type == MappingType.HTTP and not self.wanted.host

    def where(self, public: Address) -> str:
        """Return where it is reached, as its line says it."""
        if self.kind == "exit":
            return self.wanted.host
        if not self.scheme:
            return str(Ports(public, self.wanted.count))
        if self.server_host and public.host in (EVERYWHERE, *WILDCARDS):
            public = replace(public, host=self.server_host)  # a URL needs a host
        return url_of(self.scheme, public)


@dataclass(frozen=True, slots=True)
class Local:
    """A port or unix socket here whose connections leave at the server."""

    listen: End
    target: End | None = None
    """What it leads to; None for a SOCKS and HTTP proxy, which is told."""
    exit_name: str | None = None
    """The client at which to leave instead."""
    users: ProxyUsers | None = None
    udp_public: str | None = None
    """The IP address that the proxy's apps are told for their datagrams, where NAT is
    between."""

    async def serve(
        self, client: CenterClient, listeners: Sequence[PortListener]
    ) -> None:
        """Serve apps until cancelled, or until all have left closed listeners."""
        ENTRY.set(f"{'reach' if self.target is not None else 'socks'} {self.listen}")
        if self.target is not None:
            target, leave_at = as_target(self.target), self.exit_name
            open_now = partial(client.open_now, target, exit_name=leave_at)
            return await serve_port(listeners, open_now)
        if self.exit_name is not None:  # a client is an exit for TCP only
            begin = partial(client.begin, exit_name=self.exit_name)
            there = partial(client.open, exit_name=self.exit_name)
            dialer = Dialer(there, begin=begin)
        else:
            dialer = Dialer(client.open, client.bind, client.associate,
                self.udp_public, client.begin)  # fmt: skip
        return await serve_proxy(listeners, dialer, users=self.users)

    def line(self, where: End) -> Line:
        """Return the line for when there is a link."""
        if self.target is not None:
            return Line("reach", str(where), str(self.target))
        title = f"SOCKS and HTTP proxy, leaving at {self.exit_name or 'the server'}"
        return Line("socks", str(where), "-", title=title)


Entry = Local | Published


def refuse_twice(entries: Iterable[Entry]) -> None:
    """Raise UsageError if two entries want the same: the server keeps the second.

    Of two exits both would lead into the networks of the second.
    """
    groups: dict[tuple[int, str, int, str], str] = {}
    exit_name = ""
    for entry in entries:
        if not isinstance(entry, Published):
            continue
        wanted, rules = entry.wanted, entry.wanted.rules or Rules()
        is_named = wanted.type not in (MappingType.TCP, MappingType.UDP)
        if not (wanted.host if is_named else wanted.port):
            continue  # it gets one of its own
        host = wanted.host.lower()
        for port in range(wanted.port, wanted.port + wanted.count):
            key = wanted.type, host, port, rules.path
            if key in groups and not (rules.group and groups[key] == rules.group):
                where = f"{host}{rules.path}" if is_named else f"port {port}"
                raise UsageError(
                    f"{entry.kind} {where} is published twice",
                    "the second entry would take it from the first",
                    "other names, or behind them path=/PATH, or one group=NAME"
                    if entry.scheme else f"another {'name' if is_named else 'port'}",
                )  # fmt: skip
            groups[key] = rules.group
        if wanted.type == MappingType.EXIT:
            if exit_name:
                raise UsageError(
                    f"{exit_name} and {wanted.host} are two exits",
                    "a client is one: both would lead into the networks of the second",
                    "another client for it",
                )
            exit_name = wanted.host


# Values ------------------------------------------------------------------------------


def as_target(end: End) -> TcpTarget | UnixPath:
    """Return the target that a CREATE names for an address or a unix socket."""
    return TcpTarget(end) if isinstance(end, Address) else end


def public_flag(flag: str, remote: str, target: str) -> str:
    """Return how ``--remote``, ``--tcp`` or ``--udp`` says what is public where."""
    return f"{flag} {remote}" if flag == "--remote" else f"{flag} {remote}={target}"


def url_of(scheme: str, public: Address) -> str:
    """Return the URL of a public address, without the port that its scheme implies."""
    usual = public.port == _USUAL_PORTS[scheme]
    where = str(Address(public.host, 0))[:-2] if usual else str(public)
    return f"{scheme}://{where}/"


def _key_of(endpoint: Endpoint) -> str:
    """Return what a client's own name for an endpoint is made of."""
    match endpoint:
        case Service(Address(host, port)) if is_localhost(host):
            # A port alone meant 127.0.0.1 when names were first kept.
            return str(Address(LOOPBACKS[0], port))
    return str(endpoint)
