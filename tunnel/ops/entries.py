"""What one command may be asked for any number of times: a small class for each kind.

An entry reads its own text form, starts itself, and says the line that scripts rely on.
Knows nothing of signals, exit statuses and the other entries: those are run.py's.

    Local        listens here; its line is known when it has started
    Published    is public at the server; its line comes with each answer
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import partial
from ipaddress import ip_address
from typing import TYPE_CHECKING, Final

from tunnel.access.target import probe
from tunnel.errors import CODES, Code, TunnelError, UsageError
from tunnel.front.listen import open_listener
from tunnel.front.ports import serve_port
from tunnel.front.proxy import serve_proxy
from tunnel.front.users import refuse_open_proxy
from tunnel.front.wayout import WayOut
from tunnel.proto.frames import Address, TcpTarget

if TYPE_CHECKING:
    import trio

    from tunnel.center.client import CenterClient
    from tunnel.center.notices import MappingRefused

LOOPBACK: Final = "127.0.0.1"


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
    """``--tcp [REMOTE=]TARGET``: a public port at the server leads to a target here."""

    remote: Address
    target: Address

    @classmethod
    def parse(cls, text: str) -> TcpEntry:
        """Read the text form.

        Raises:
            UsageError: it is none.
        """
        remote, equals, target = text.rpartition("=")
        where = parse_remote(remote) if equals else Address("", 0)
        return cls(where, parse_target(target))

    async def start(self, client: CenterClient, nursery: trio.Nursery) -> str:
        """See ``Published``."""
        del nursery
        return await client.publish_target(self.remote, self.target)

    async def ready(self, public: Address) -> Line:
        """See ``Published``."""
        target = str(self.target)
        if await probe(self.target):
            return Line("tcp", str(public), target, "answering")
        return Line(
            "tcp",
            str(public),
            target,
            "not answering",
            warning=f"{target} does not answer; visitors are refused until it does",
        )

    def refused(self, notice: MappingRefused) -> TunnelError:
        """See ``Published``."""
        return _not_given(notice, self.target, "--tcp")


@dataclass(frozen=True, slots=True)
class UdpEntry(Published):
    """``--udp [REMOTE=]TARGET``: a public UDP port leads to a UDP service here.

    Whether anybody is there cannot be asked: UDP has no answer to "hello?".
    """

    remote: Address
    target: Address

    @classmethod
    def parse(cls, text: str) -> UdpEntry:
        """Read the text form.

        Raises:
            UsageError: it is none.
        """
        entry = TcpEntry.parse(text)
        return cls(entry.remote, entry.target)

    async def start(self, client: CenterClient, nursery: trio.Nursery) -> str:
        """See ``Published``."""
        del nursery
        return await client.publish_udp_target(self.remote, self.target)

    async def ready(self, public: Address) -> Line:
        """See ``Published``."""
        return Line("udp", str(public), str(self.target))

    def refused(self, notice: MappingRefused) -> TunnelError:
        """See ``Published``."""
        return _not_given(notice, self.target, "--udp")


@dataclass(frozen=True, slots=True)
class ReachEntry(Local):
    """``--reach LISTEN=TARGET``: a port here leads to a target at the server's side."""

    listen: Address
    target: Address

    @classmethod
    def parse(cls, text: str) -> ReachEntry:
        """Read the text form.

        Raises:
            UsageError: it is none.
        """
        listen, equals, target = text.rpartition("=")
        if not equals:
            raise UsageError(
                f"{text!r} does not say where to listen and what to reach",
                "an entry is LISTEN=TARGET",
                f"--reach 5432={text}",
            )
        return cls(parse_listen(listen), parse_target(target))

    async def start(self, client: CenterClient, nursery: trio.Nursery) -> Line:
        """See ``Local``."""
        listeners = await open_listener(self.listen.host, self.listen.port)
        open_now = partial(client.open_now, TcpTarget(self.target))
        nursery.start_soon(serve_port, listeners, open_now)
        return Line("reach", _bound(listeners, self.listen), str(self.target))


@dataclass(frozen=True, slots=True)
class SocksEntry(Local):
    """``--socks LISTEN``: a SOCKS and HTTP proxy here that leaves at the server.

    Raises:
        UsageError: the proxy would be open to others.
    """

    listen: Address

    def __post_init__(self) -> None:
        refuse_open_proxy(self.listen, None)

    @classmethod
    def parse(cls, text: str) -> SocksEntry:
        """Read the text form.

        Raises:
            UsageError: it is none.
        """
        return cls(parse_listen(text))

    async def start(self, client: CenterClient, nursery: trio.Nursery) -> Line:
        """See ``Local``."""
        listeners = await open_listener(self.listen.host, self.listen.port)
        nursery.start_soon(
            serve_proxy, listeners, WayOut(client.open, client.bind, client.associate)
        )
        return Line(
            "socks",
            _bound(listeners, self.listen),
            "-",
            title="SOCKS and HTTP proxy, leaving at the server",
        )


def _not_given(notice: MappingRefused, target: Address, flag: str) -> TunnelError:
    code = notice.answer.code
    reason = notice.answer.reason or CODES[code].meaning
    where = notice.wanted.port or "a port"
    return TunnelError(
        code,
        f"the server does not give {where} for {target}: {reason}",
        fix=f"choose another: {flag} 0={target}" if code is Code.TAKEN else "",
    )


def _bound(listeners: list[trio.SocketListener], wanted: Address) -> str:
    port: int = listeners[0].socket.getsockname()[1]
    return str(Address(wanted.host, port))


# Values ------------------------------------------------------------------------------


def parse_listen(text: str) -> Address:
    """Read where to listen here; a bare port listens on loopback.

    Raises:
        UsageError: it is no address.
    """
    return Address.parse(text, LOOPBACK)


def parse_target(text: str) -> Address:
    """Read what is to be reached; a bare port is one of this machine.

    Raises:
        UsageError: it is no address, or has port 0.
    """
    target = Address.parse(text, LOOPBACK)
    if not target.port:
        raise UsageError(f"{text!r} names no port", "port 0 cannot be connected to")
    return target


def parse_remote(text: str) -> Address:
    """Read a public address; a bare port has no host of its own.

    Raises:
        UsageError: it is none.
    """
    if text.isascii() and text.isdigit():
        return Address("", Address.parse(text, LOOPBACK).port)
    return Address.parse(text)


def is_loopback(host: str) -> bool:
    """Say whether only this machine reaches an address."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
