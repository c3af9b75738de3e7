"""Entries that let others into the network of this machine: always an explicit word."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from tunnel.access.networks import Networks
from tunnel.errors import CODES, TunnelError, UsageError
from tunnel.front.proxy_users import is_loopback
from tunnel.ops.entries import Line, Published, TcpEntry, parse_remote
from tunnel.ops.entry_syntax import parse_proxy_version, parse_users, split_options
from tunnel.proto.fields import is_host_name
from tunnel.proto.frames import Address

if TYPE_CHECKING:
    import trio

    from tunnel.center.client import CenterClient
    from tunnel.center.events import MappingRefused
    from tunnel.front.proxy_users import ProxyUsers

SOCKS_WORD: Final = "socks"
"""In the place of a target: a proxy that leaves in the network of this machine."""


@dataclass(frozen=True, slots=True)
class ClientProxyEntry(Published):
    """``--tcp REMOTE=socks``: a public proxy into the network of this machine.

    Raises:
        UsageError: the proxy would be open to everybody who reaches the server.
    """

    remote: Address
    networks: Networks = field(default_factory=Networks)
    users: ProxyUsers | None = None

    def __post_init__(self) -> None:
        if self.users is None and not is_loopback(self.remote.host):
            raise UsageError(
                "a public proxy without users is not opened",
                "whoever reaches the server could use it to enter this network",
                "add --auth USER:PASSWORD, or let only the server's own programs use "
                "it: --remote 127.0.0.1:1080",
            )

    @classmethod
    def parse(cls, text: str) -> ClientProxyEntry:
        """Read ``REMOTE=socks[,auth=USER:PASSWORD…][,network=NET…]``.

        Raises:
            UsageError: it is none.
        """
        body, options = split_options(text, ("auth", "network"))
        remote = body.rpartition("=")[0]
        where = parse_remote(remote) if remote else Address("", 0)
        networks = Networks.parse(options["network"])
        return cls(where, networks, parse_users(options["auth"]))

    async def start(self, client: CenterClient, nursery: trio.Nursery) -> str:
        """See ``Published``."""
        del nursery
        return await client.publish_inward(self.remote, self.networks, self.users)

    async def ready(self, public: Address) -> Line:
        """See ``Published``."""
        title = f"proxy into {self.networks} here"
        return Line("tcp", str(public), SOCKS_WORD, title=title)

    def refused(self, notice: MappingRefused) -> TunnelError:
        """See ``Published``."""
        where = str(notice.wanted.port or "a port")
        return _not_given(f"{where} for a proxy", notice)


@dataclass(frozen=True, slots=True)
class ExitEntry(Published):
    """``--be-exit NAME``: other clients may leave here, with ``--exit NAME``."""

    name: str
    networks: Networks = field(default_factory=Networks)

    @classmethod
    def parse(cls, text: str) -> ExitEntry:
        """Read ``NAME[,network=NET…]``.

        Raises:
            UsageError: it is none.
        """
        name, options = split_options(text, ("network",))
        return cls(exit_name(name), Networks.parse(options["network"]))

    async def start(self, client: CenterClient, nursery: trio.Nursery) -> str:
        """See ``Published``."""
        del nursery
        return await client.be_exit(self.name, self.networks)

    async def ready(self, public: Address) -> Line:
        """See ``Published``."""
        del public
        allowed = ",".join(map(str, self.networks.allowed)) or "-"
        return Line("exit", self.name, allowed, title=f"exit into {self.networks}")

    def refused(self, notice: MappingRefused) -> TunnelError:
        """See ``Published``."""
        return _not_given(f"the exit {self.name}", notice)


def parse_tcp(text: str) -> TcpEntry | ClientProxyEntry:
    """Read what stands behind ``--tcp``.

    Raises:
        UsageError: it is no entry.
    """
    target = text.partition(",")[0].rpartition("=")[2]
    return (ClientProxyEntry if target == SOCKS_WORD else TcpEntry).parse(text)


def tcp_entry(
    target: str | None,
    remote: str,
    proxy: str | None,
    *,
    socks: bool,
    auth: list[str],
    networks: list[str],
) -> TcpEntry | ClientProxyEntry:
    """Make the entry of ``tunnel tcp``.

    Raises:
        UsageError: its words contradict one another, or one cannot be read.
    """
    if socks:
        if target is not None or proxy is not None:
            raise UsageError(
                "--socks takes no target",
                "its visitors name theirs, and are not announced to them",
                "tunnel tcp --socks --remote 127.0.0.1:1080",
            )
        where, users = parse_remote(remote), parse_users(auth)
        return ClientProxyEntry(where, Networks.parse(networks), users)
    if target is None or networks or auth:
        raise UsageError(
            "there is no TARGET"
            if target is None
            else "--auth and --network are for --socks",
            "what is to be published is [HOST:]PORT or unix:/path",
            "tunnel tcp 8000",
        )
    return TcpEntry.of(target, remote, parse_proxy_version([proxy] if proxy else []))


def exit_name(text: str) -> str:
    """Read the name of an exit.

    Raises:
        UsageError: it is none.
    """
    if not is_host_name(text):
        raise UsageError(
            f"{text!r} is not the name of an exit", "letters, digits, dot, - and _"
        )
    return text


def _not_given(what: str, notice: MappingRefused) -> TunnelError:
    code = notice.answer.code
    reason = notice.answer.reason or CODES[code].meaning
    return TunnelError(code, f"the server does not give {what}: {reason}")
