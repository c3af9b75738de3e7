"""Listening sockets that a server is given by who started it: socket activation.

systemd's protocol, sd_listen_fds(3): descriptors from 3 on, and variables that say for
which process, how many, and under which names. A socket stays with this process to its
end: a reload may want it for something else.
"""

from __future__ import annotations

import json
import os
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import trio

from tunnel.addresses import (
    EVERYWHERE,
    LOCALHOST,
    LOOPBACKS,
    WILDCARDS,
    Address,
    is_localhost,
)
from tunnel.errors import AddressError
from tunnel.net.listen import PortListener
from tunnel.words import whole_number

if TYPE_CHECKING:
    from collections.abc import Iterable, MutableMapping, Sequence


MOST_GIVEN: Final = 1_024
"""Sockets that are believed to be given: more than ports are listened on."""
FIRST: Final = 3
"""The first given descriptor (SD_LISTEN_FDS_START)."""
_NAMES: Final = {"listen": "listen", "link": "listen", "http": "http", "https": "https"}
"""What a socket's name says that it is for. Systemd names every socket, so any other
name says nothing: then the address decides."""
_FIX: Final = (
    "FileDescriptorName=listen, http or https in the .socket unit, or its address in "
    "--listen, --http or --https"
)


@dataclass(frozen=True, slots=True)
class GivenSocket:
    """A TCP socket that listens, was given, and does not block."""

    number: int
    name: str
    sock: socket.socket
    address: Address

    def __str__(self) -> str:
        named = f", named {self.name!r}" if self.name else ""
        return f"the given socket {self.number} ({self.address}{named})"

    def fits(self, where: Address) -> bool:
        """Say whether this is what ``where`` asks for."""
        ours, host = self.address, where.host
        if ours.port != where.port:
            return False
        if is_localhost(host):
            return ours.host in LOOPBACKS
        everywhere = (EVERYWHERE, *WILDCARDS)
        return ours.host == host or (ours.host in everywhere and host in everywhere)


class Given:
    """The given sockets of one process, which owns them to its end; mostly none."""

    def __init__(self, sockets: Sequence[GivenSocket] = ()) -> None:
        self.sockets = tuple(sockets)
        self._named: dict[str, list[GivenSocket]] = {}
        self._others: list[GivenSocket] = []
        for one in sockets:
            purpose = _NAMES.get(one.name)
            if purpose is None:
                self._others.append(one)
            else:
                self._named.setdefault(purpose, []).append(one)
        self.at = {name: _address_of(of) for name, of in self._named.items()}
        """Where sockets were given by name: for ``listen``, ``http``, ``https``."""

    async def listeners(self, where: Address) -> list[PortListener]:
        """Return new listeners on the sockets that were given for ``where``.

        Empty if none was. The caller closes the listeners; the sockets stay.
        """
        await trio.lowlevel.checkpoint()
        return self.now(where)

    def now(self, where: Address) -> list[PortListener]:
        """Do as ``listeners`` does, without a checkpoint."""
        for name, address in self.at.items():
            if address == where:
                return [PortListener(one.sock.dup()) for one in self._named[name]]
        fit = [one for one in self._others if one.fits(where)]
        return [PortListener(one.sock.dup()) for one in fit]

    def keep(self, places: Iterable[Address]) -> None:
        """Note where is listened from now on; what was given stays to the end."""

    def check(self, places: Iterable[Address | None]) -> None:
        """Raise AddressError if a socket was given for none of these places."""
        wanted = [where for where in places if where is not None]
        named = [one for of in self._named.values() for one in of]
        unknown = [
            one for one in self._others if not any(one.fits(where) for where in wanted)
        ]
        for one in unknown if wanted else (*named, *unknown):
            said = ", ".join(map(str, wanted)) or "nothing"
            raise AddressError(
                f"{one} is for nothing here", f"what is listened on: {said}", _FIX
            )


def take_given(environ: MutableMapping[str, str], first: int = FIRST) -> Given:
    """Take the sockets that were given to this process, and the variables that say so.

    Children have neither.

    Raises:
        AddressError: one is no TCP socket that listens.
    """
    pid, count, names = (
        environ.pop(f"LISTEN_{what}", "") for what in ("PID", "FDS", "FDNAMES")
    )
    environ.pop("LISTEN_PIDFDID", None)  # systemd 258; the process id is enough
    if pid != str(os.getpid()) or not (some := whole_number(count, MOST_GIVEN)):
        return Given()
    named = dict(enumerate(names.split(":")))
    return Given([_taken(first + at, named.get(at, "")) for at in range(some)])


def passed_on(given: Given) -> str:
    """Return what tells a child about the sockets, which it inherits."""
    return json.dumps([[one.number, one.name] for one in given.sockets])


def taken_over(said: str) -> list[GivenSocket]:
    """Take what a parent has passed on; AddressError: it was not inherited."""
    return [_taken(int(number), str(name)) for number, name in json.loads(said)]


def _taken(number: int, name: str) -> GivenSocket:
    what = f"the given descriptor {number}" + (f", named {name!r}," if name else "")
    try:
        os.set_inheritable(number, False)
        sock = socket.socket(fileno=number)
    except OSError as error:
        cause = error.strerror or str(error)
        raise AddressError(f"{what} is no socket", cause, _FIX) from error
    is_tcp = sock.family in (socket.AF_INET, socket.AF_INET6)
    is_tcp = is_tcp and sock.type == socket.SOCK_STREAM
    if not is_tcp or not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        sock.detach()  # whatever it is, it is not ours to close
        raise AddressError(f"{what} is no TCP socket that listens", "", _FIX)
    sock.setblocking(False)
    host, port = sock.getsockname()[:2]
    if sock.family == socket.AF_INET6 and host == WILDCARDS[1]:
        only = sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
        host = host if only else EVERYWHERE
    return GivenSocket(number, name, sock, Address(host, port))


def _address_of(sockets: Sequence[GivenSocket]) -> Address:
    """Return what several sockets of one purpose are together; at least the first."""
    hosts, first = {one.address.host for one in sockets}, sockets[0].address
    if EVERYWHERE in hosts or hosts.issuperset(WILDCARDS):
        return Address(EVERYWHERE, first.port)
    return Address(LOCALHOST, first.port) if hosts.issuperset(LOOPBACKS) else first
