"""What one command may be asked for any number of times: a small class for each kind.

An entry reads its own text form, starts itself, and says the line that scripts rely on.
Knows nothing of signals, exit statuses and the other entries: those are run.py's.

    Local        listens here; its line is known when it has started
    Published    is public at the server; its line comes with each answer
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Final

from tunnel.access.proxy_users import refuse_open_proxy
from tunnel.addresses import EVERYWHERE, LOCALHOST, parse_ip
from tunnel.errors import CODES, Code, TunnelError, UsageError
from tunnel.front.dialer import Dialer
from tunnel.front.ports import serve_port
from tunnel.front.proxy import serve_proxy
from tunnel.net.dial import probe
from tunnel.net.unix import listen_at
from tunnel.ops.entry_syntax import (
    Ports,
    parse_ports,
    parse_proxy_version,
    parse_users,
    split_options,
)
from tunnel.proto.frames import (
    UNIX_PREFIX,
    Address,
    TcpTarget,
    UnixPath,
    parse_end,
)

if TYPE_CHECKING:
    import trio

    from tunnel.access.proxy_users import ProxyUsers
    from tunnel.center.client import CenterClient
    from tunnel.center.events import MappingRefused
    from tunnel.net.proxy_protocol import ProxyVersion
    from tunnel.proto.frames import End

REMOTE: Final = "--remote"
"""What says where an entry is public that is a command of its own."""
IN_OTHER_HANDS: Final = (Code.TAKEN, Code.TAKEN_OVER)
"""Another choice helps."""


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
        """Write it for a person at a terminal, or for a script."""
        if not terminal:
            return f"{self.kind} {self.where} {self.target}"
        state = f" ({self.state})" if self.state else ""
        return f"  {self.where} → {self.title or self.target}{state}"

    @property
    def fields(self) -> dict[str, str]:
        """The fields of its JSON object."""
        return {
            "kind": self.kind,
            "address": self.where,
            "target": self.target,
            "state": self.state,
        }


class Local(ABC):
    """An entry that listens here and leaves at the server."""

    @abstractmethod
    async def start(self, client: CenterClient, nursery: trio.Nursery) -> Line:
        """Listen, serve in ``nursery``, and give the line for when there is a link.

        Raises:
            AddressError: it cannot listen there.
        """


class Published(ABC):
    """An entry that is public at the server and leaves here."""

    @abstractmethod
    async def start(self, client: CenterClient, nursery: trio.Nursery) -> str:
        """Publish it; give the mapping's name, which is in the notices about it."""

    @abstractmethod
    async def ready(self, public: Address) -> Line:
        """Give the line for the public address that it got; may look at the target."""

    def over_tls(self) -> Published:
        """Give it as it is where only ``https://`` leads to it."""
        return self

    def instead(self, notice: MappingRefused, server_host: str) -> Published | None:
        """Give what is to be published where the server does not offer this."""
        del notice, server_host
        return None

    @abstractmethod
    def refused(self, notice: MappingRefused) -> TunnelError:
        """Say that the server does not give what was asked for."""


Entry = Local | Published


@dataclass(frozen=True, slots=True)
class TcpEntry(Published):
    """``--tcp [REMOTE=]TARGET``: a public port at the server leads to a target here.

    Or so many ports in a row, each to the target of its place.
    """

    remote: Address
    target: End
    count: int = 1
    proxy: ProxyVersion | None = None
    """Which PROXY header the target hears first."""
    flag: str = field(default="--tcp", compare=False)
    """What its user may change: that of ``up``, or ``--remote`` of its own command."""

    @classmethod
    def parse(cls, text: str) -> TcpEntry:
        """Read ``[REMOTE=]TARGET[,proxy=v1|v2]``.

        Raises:
            UsageError: it is none.
        """
        body, options = split_options(text, ("proxy",))
        remote, target = _remote_and_target(body, "--tcp")
        proxy = parse_proxy_version(options["proxy"])
        return cls.of(target, remote, proxy, "--tcp")

    @classmethod
    def of(
        cls,
        target: str,
        remote: str,
        proxy: ProxyVersion | None = None,
        flag: str = REMOTE,
    ) -> TcpEntry:
        """Read TARGET and REMOTE; port 0 of REMOTE stands for as many as are needed.

        Raises:
            UsageError: one is none, or they are not of one length.
        """
        end, count = _parse_row(target)
        public = parse_public_ports(remote)
        if public.count != count and public.first.port:
            raise UsageError(
                f"{remote} and {target} are not of one length",
                "the visitor of each port reaches the target of the same place",
                f"for example {_where(flag, _row(public.first.port, count), target)}",
            )
        return cls(public.first, end, count, proxy, flag)

    async def start(self, client: CenterClient, nursery: trio.Nursery) -> str:
        """See ``Published``."""
        del nursery
        return await client.publish_target(
            self.remote, self.target, count=self.count, proxy=self.proxy
        )

    async def ready(self, public: Address) -> Line:
        """See ``Published``."""
        where, target = str(Ports(public, self.count)), self._target
        if await probe(self.target):
            return Line("tcp", where, target, "answering")
        return Line(
            "tcp",
            where,
            target,
            "not answering",
            warning=f"{self.target} does not answer; visitors are refused until it "
            "does",
        )

    @property
    def _target(self) -> str:
        if isinstance(self.target, UnixPath):
            return str(self.target)
        return str(Ports(self.target, self.count))

    def refused(self, notice: MappingRefused) -> TunnelError:
        """See ``Published``."""
        return _not_given(notice, self._target, self.flag)


@dataclass(frozen=True, slots=True)
class UdpEntry(Published):
    """``--udp [REMOTE=]TARGET``: a public UDP port leads to a UDP service here.

    Or several in a row. Whether anybody is there cannot be asked: UDP has no answer to
    "hello?".
    """

    remote: Address
    target: Address
    count: int = 1
    flag: str = field(default="--udp", compare=False)
    """See ``TcpEntry``."""

    @classmethod
    def parse(cls, text: str) -> UdpEntry:
        """Read ``[REMOTE=]TARGET``.

        Raises:
            UsageError: it is none.
        """
        body, _ = split_options(text, ())
        remote, target = _remote_and_target(body, "--udp")
        return cls.of(target, remote, "--udp")

    @classmethod
    def of(cls, target: str, remote: str, flag: str = REMOTE) -> UdpEntry:
        """Read TARGET and REMOTE, as ``TcpEntry`` does.

        Raises:
            UsageError: one is none, or they are not of one length.
        """
        row = TcpEntry.of(target, remote, flag=flag)
        if isinstance(row.target, UnixPath):
            command = "tunnel udp" if flag == REMOTE else flag
            raise UsageError(
                f"{target} takes no datagrams",
                "UDP goes to an address",
                f"for example {command} 53",
            )
        return cls(row.remote, row.target, row.count, flag)

    async def start(self, client: CenterClient, nursery: trio.Nursery) -> str:
        """See ``Published``."""
        del nursery
        return await client.publish_udp_target(
            self.remote, self.target, count=self.count
        )

    async def ready(self, public: Address) -> Line:
        """See ``Published``."""
        return Line("udp", str(Ports(public, self.count)), self._target)

    @property
    def _target(self) -> str:
        return str(Ports(self.target, self.count))

    def refused(self, notice: MappingRefused) -> TunnelError:
        """See ``Published``."""
        return _not_given(notice, self._target, self.flag)


@dataclass(frozen=True, slots=True)
class ReachEntry(Local):
    """``--reach LISTEN=TARGET``: a port here leads to a target at the server's side."""

    listen: End
    target: End
    exit_name: str | None = None
    """The client at which to leave instead."""

    @classmethod
    def parse(cls, text: str, exit_name: str | None = None) -> ReachEntry:
        """Read the text form.

        Raises:
            UsageError: it is none.
        """
        listen, _, target = text.rpartition("=")
        if not (listen and target):
            raise UsageError(
                f"--reach {text!r} does not say where to listen and what to reach",
                "an entry is LISTEN=TARGET",
                f"--reach {listen or '5432'}={target or 'db.lan:5432'}",
            )
        return cls(parse_listen(listen), parse_far_target(target), exit_name)

    async def start(self, client: CenterClient, nursery: trio.Nursery) -> Line:
        """See ``Local``."""
        listeners, where = await listen_at(self.listen)
        target = as_target(self.target)
        open_now = partial(client.open_now, target, exit_name=self.exit_name)
        nursery.start_soon(serve_port, listeners, open_now)
        return Line("reach", str(where), str(self.target))


@dataclass(frozen=True, slots=True)
class SocksEntry(Local):
    """``--socks LISTEN``: a SOCKS and HTTP proxy here that leaves at the server.

    Raises:
        UsageError: the proxy would be open to others.
    """

    listen: End
    exit_name: str | None = None
    """The client at which to leave instead."""
    users: ProxyUsers | None = None
    udp_public: str | None = None
    """IP address under which apps send their datagrams, where NAT is between."""
    in_words: bool = field(default=False, compare=False)
    """Of ``tunnel socks``, whose users are a flag of their own."""

    def __post_init__(self) -> None:
        refuse_open_proxy(self.listen, self.users, in_words=self.in_words)
        if self.udp_public is not None and parse_ip(self.udp_public) is None:
            raise UsageError(
                f"{self.udp_public!r} is not an IP address",
                "SOCKS tells apps a number to send their datagrams to, and no port",
                "for example --udp-public-address 203.0.113.7",
            )

    @classmethod
    def parse(
        cls, text: str, exit_name: str | None = None, udp_public: str | None = None
    ) -> SocksEntry:
        """Read ``LISTEN[,auth=USER:PASSWORD…]``.

        Raises:
            UsageError: it is none.
        """
        listen, options = split_options(text, ("auth",))
        users = parse_users(options["auth"])
        return cls(parse_listen(listen), exit_name, users, udp_public)

    async def start(self, client: CenterClient, nursery: trio.Nursery) -> Line:
        """See ``Local``."""
        listeners, where = await listen_at(self.listen)
        serve_users = partial(serve_proxy, users=self.users)
        nursery.start_soon(serve_users, listeners, self._way_out(client))
        leaving = f"at {self.exit_name}" if self.exit_name else "at the server"
        title = f"SOCKS and HTTP proxy, leaving {leaving}"
        return Line("socks", str(where), "-", title=title)

    def _way_out(self, client: CenterClient) -> Dialer:
        if self.exit_name is not None:  # a client is an exit for TCP only
            return Dialer(partial(client.open, exit_name=self.exit_name))
        return Dialer(client.open, client.bind, client.associate, self.udp_public)


def _not_given(notice: MappingRefused, target: str, flag: str) -> TunnelError:
    code = notice.answer.code
    reason = notice.answer.reason or CODES[code].meaning
    where = notice.wanted.port or "a port"
    return TunnelError(
        code,
        f"the server does not give {where} for {target}: {reason}",
        fix=f"choose another: {_where(flag, '0', target)}"
        if code in IN_OTHER_HANDS
        else "",
    )


def _row(port: int, count: int) -> str:
    """Write so many ports from one on; any, if there are not as many."""
    last = port + count - 1
    if count == 1:
        return str(port)
    return f"{port}-{last}" if last < 65_536 else "0"


def _where(flag: str, remote: str, target: str) -> str:
    """Write what is public where, as the command that was used takes it."""
    return f"{flag} {remote}" if flag == REMOTE else f"{flag} {remote}={target}"


# Values ------------------------------------------------------------------------------


def parse_listen(text: str) -> End:
    """Read where to listen here; a bare port listens on both loopbacks.

    Raises:
        UsageError: it is no address and no unix path.
    """
    return parse_end(text, LOCALHOST)


def parse_target(text: str) -> End:
    """Read what is to be reached here; a bare port is one of either loopback.

    Raises:
        UsageError: it is no address and no unix path, or has port 0.
    """
    return _reachable(parse_end(text, LOCALHOST), text)


def parse_far_target(text: str) -> End:
    """Read what is to be reached from another machine, as ``parse_target`` does.

    Raises:
        UsageError: besides, it has a zone, which is a card of this machine.
    """
    end = parse_target(text)
    if isinstance(end, Address) and "%" in end.host:
        raise _zone_refused(text, "the target is reached from another machine")
    return end


def _remote_and_target(text: str, flag: str) -> tuple[str, str]:
    """Part ``[REMOTE=]TARGET``; without REMOTE it is any port."""
    remote, equals, target = text.rpartition("=")
    if equals and not (remote and target):
        raise UsageError(
            f"{flag} {text!r} does not say which port leads where",
            "an entry is [REMOTE=]TARGET",
            f"for example {flag} {remote or '2222'}={target or '22'}",
        )
    return remote if equals else "0", target


def _parse_row(text: str) -> tuple[End, int]:
    """Read a target, or the first of several in a row and their number."""
    if text.startswith(UNIX_PREFIX):
        return UnixPath.parse(text), 1
    ports = parse_ports(text, LOCALHOST)
    return _reachable(ports.first, text), ports.count


def _reachable(end: End, text: str) -> End:
    if isinstance(end, Address) and not end.port:
        raise UsageError(f"{text!r} names no port", "port 0 cannot be connected to")
    if isinstance(end, Address) and end.host == EVERYWHERE:
        raise UsageError(
            f"{text!r} cannot be reached",
            "* is a place to listen, for every address",
            f"a port of this machine is {end.port} alone",
        )
    return end


def _zone_refused(text: str, why: str) -> UsageError:
    return UsageError(
        f"{text!r} has a zone, which names a network card of this machine",
        why,
        "use an address without %…, or a name",
    )


def as_target(end: End) -> TcpTarget | UnixPath:
    """Give what a CREATE says of it."""
    return TcpTarget(end) if isinstance(end, Address) else end


def parse_remote(text: str) -> Address:
    """Read a public address; a bare port has no host of its own.

    Raises:
        UsageError: it is none.
    """
    return _public(Address.parse(text, EVERYWHERE), text)


def parse_public_ports(text: str) -> Ports:
    """Read a public address with one port or several, as ``parse_remote`` does.

    Raises:
        UsageError: it is none.
    """
    ports = parse_ports(text, EVERYWHERE)
    return Ports(_public(ports.first, text), ports.count)


def _public(where: Address, text: str) -> Address:
    """Leave to the server where a port without a host is: ``--listen`` says so.

    ``*`` is what the line of such a port says, so it means the same.
    """
    if where.host == EVERYWHERE:
        return Address("", where.port)
    if "%" in where.host:
        raise _zone_refused(text, "the public port is one of the server's")
    return where
