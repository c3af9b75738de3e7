"""Flags that commands share, and those of ``tunnel up``.

Each class is one parameter of a command: cyclopts makes a flag of every field, and its
help of the docstring. The methods read what the flags say, and only they load trio.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Final, Literal

from cyclopts import Parameter

from tunnel.errors import UsageError

if TYPE_CHECKING:
    from tunnel.net.timeouts import Timeouts
    from tunnel.ops.entries import Entry
    from tunnel.ops.show import Show

LEAST_DEAD_AFTER_S: Final = 5
"""Links lose packets for that long every day, and recover."""
MOST_DEAD_AFTER_S: Final = 43_200
"""Twelve hours: the kernel counts no more than nine before it asks."""
_UNITS: Final = {"": 1, "s": 1, "m": 60, "h": 3600}

LogForm = Literal["logfmt", "json", "terminal"]
LeaveAt = Annotated[str | None, Parameter(name="--exit")]
Words = list[str] | None
"""A flag that may be repeated."""


@Parameter(name="*")
@dataclass(frozen=True)
class ServerFlags:
    """Which server a client dials, and how.

    Args:
        to: The line that `tunnel serve` prints, or the name of a saved one.
        via: http:// or socks5:// URL of a proxy through which the server is reached;
            none: not even that of HTTPS_PROXY or ALL_PROXY.
        save_as: Save the server under this name.
    """

    to: str | None = None
    via: str | None = None
    save_as: str | None = None


@Parameter(name="*")
@dataclass(frozen=True)
class RunFlags:
    """What every command that stays takes: its end, silence, output and log.

    Args:
        drain: How long running connections may go on after SIGTERM or Ctrl+C; the
            process is gone 1.5 s later at most.
        idle: End connections that carried nothing for so long, or up to a fifth more:
            2h; 0: never.
        udp_idle: End UDP flows that carried nothing for so long; before the first
            answer 60s at most. Give both ends the same.
        dead_after: Reset visitors, apps and targets whose machine has not answered for
            so long.
        as_json: Each line of stdout is a JSON object; --log json is for the log.
        log: Form of the log on stderr.
    """

    drain: str = "8s"
    idle: str = "0"
    udp_idle: str = "180s"
    dead_after: str = "150s"
    as_json: Annotated[bool, Parameter(name="--json")] = False
    log: LogForm | None = None

    def drain_s(self) -> int:
        """Return the seconds of ``--drain``.

        Raises:
            UsageError: it is no duration.
        """
        return seconds("--drain", self.drain)

    def timeouts(self) -> Timeouts:
        """Return how long silence is borne.

        Raises:
            UsageError: a flag cannot be read, or is out of range.
        """
        from tunnel.net.timeouts import Timeouts

        udp_idle_s = seconds("--udp-idle", self.udp_idle)
        if not udp_idle_s:
            raise UsageError("--udp-idle 0 would end every flow at once", "1s or more")
        dead_after_s = seconds("--dead-after", self.dead_after)
        if not LEAST_DEAD_AFTER_S <= dead_after_s <= MOST_DEAD_AFTER_S:
            raise UsageError(
                f"--dead-after {self.dead_after} is out of range", "it is 5s to 12h"
            )
        idle_s = seconds("--idle", self.idle) or math.inf
        return Timeouts(idle_s, udp_idle_s, dead_after_s)

    def show(self) -> Show:
        """Return what writes for the user; takes over the log."""
        from tunnel.ops.show import Show

        return Show(as_json=self.as_json, log=self.log)


@Parameter(name="*")
@dataclass(frozen=True)
class EntryFlags:
    """The entries of ``tunnel up``.

    Args:
        tcp: [REMOTE=]TARGET[,proxy=v1|v2]: a public port at the server leads to TARGET
            here; LOW-HIGH for several. TARGET `socks` is a proxy into the network here.
            Repeatable.
        udp: [REMOTE=]TARGET: a public UDP port leads to a UDP TARGET here. Repeatable.
        http: NAME=TARGET: a host name at the server leads to a web service, or a
            folder, here. Repeatable.
        https: NAME=TARGET: as --http, but TLS passes through to TARGET. Repeatable.
        reach: LISTEN=TARGET: a port here leads to TARGET at the server's side.
            Repeatable.
        socks: LISTEN[,auth=USER:PASSWORD...]: a SOCKS and HTTP proxy here, leaving at
            the server. Repeatable.
        udp_public_address: IP address that SOCKS apps of other machines are told for
            their datagrams, where the proxy is behind NAT.
        leave_at: Leave at this client instead of the server.
        be_exit: NAME[,network=NET...]: other clients may leave here with --exit NAME;
            without networks they reach everything but this machine itself.
    """

    tcp: Words = None
    udp: Words = None
    http: Words = None
    https: Words = None
    reach: Words = None
    socks: Words = None
    udp_public_address: str | None = None
    leave_at: LeaveAt = None
    be_exit: str | None = None

    def entries(self) -> list[Entry]:
        """Return the entries, in the order of the flags.

        Raises:
            UsageError: one cannot be read.
        """
        from tunnel.ops import entry_syntax as syntax

        leave_at, public = self.leave_at, self.udp_public_address
        return [
            *map(syntax.parse_tcp, self.tcp or []),
            *map(syntax.parse_udp, self.udp or []),
            *map(syntax.parse_http, self.http or []),
            *map(syntax.parse_https, self.https or []),
            *(syntax.parse_reach(text, leave_at) for text in self.reach or []),
            *(syntax.parse_socks(text, leave_at, public) for text in self.socks or []),
            *([syntax.parse_exit(self.be_exit)] if self.be_exit else []),
        ]


def seconds(flag: str, text: str) -> int:
    """Read the duration of a flag: ``30``, ``30s``, ``5m``, ``2h``.

    Raises:
        UsageError: the text is none.
    """
    number = text.rstrip("smh")
    unit = text[len(number) :]
    if number.isascii() and number.isdigit() and unit in _UNITS:
        return int(number) * _UNITS[unit]
    raise UsageError(
        f"{flag} {text!r} is not a duration",
        "it is a number with s, m or h",
        f"for example {flag} 30s",
    )
