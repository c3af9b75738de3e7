"""Look names up: at once where no resolver need be asked, else in a few threads.

Only a thread can ask the resolver, and a dead name holds it for as long as the resolver
is patient, 10 s and more. So the threads for names are few and do nothing else, and
what needs none of them never waits for one. A name that many ask for at the same time
is looked up once, and all are answered in the order in which they asked.

    known                       an IP address, localhost, a name of ``/etc/hosts``
    Lookups, Lookup             names that threads ask for, and who waits for each
    Asked, look_up              one wait for an answer
"""

from __future__ import annotations

import errno
import os
import socket
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

import trio

from tunnel.addresses import ascii_name
from tunnel.platform.sockets import EAI_ADDRFAMILY

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from outcome import Outcome

CREW: Final = 32
"""Threads that look names up. Each costs about 0.1 MB, and is made when needed."""
SLOW_CREW: Final = 24
"""How many of those names that were slow before may hold: never all of them."""
SLOW_S: Final = 2.0
"""A look-up that takes longer is slow. A resolver asks again only after 5 s."""
MAX_SLOW: Final = 1_024
"""Names remembered as slow, the latest."""
MAX_QUEUED: Final = 1_024
"""Names that wait for a thread; each is under a kilobyte. More are refused at once."""
LOOKUP_S: Final = 8.0
"""How long a look-up is waited for: less than the patience of the programs that asked,
10 s in most, so that they get an answer in words."""
OWN_CREW: Final = 16
"""Threads for names that this program was started with, such as its server's. A lost
link dials every 2 s, and a resolver's patience may be 30 s."""
HOSTS_PATH: Final = "/etc/hosts"
HOSTS_BYTES: Final = 262_144
"""Read of ``/etc/hosts``, 8,000 names: the rest is left to the resolver."""


class Found(NamedTuple):
    """An IP address of a name."""

    family: int
    host: str
    rest: tuple[int, ...] = ()
    """What stands behind the port of an IPv6 socket address."""


Answer = list[Found] | Exception
"""Addresses, the resolver's first choice first; or why there are none: an ``OSError``,
or a ``UnicodeError`` for what cannot be a name."""

_NO_SUCH_NAME: Final = (socket.EAI_NONAME, socket.EAI_NODATA, EAI_ADDRFAMILY)
_LOOPBACK: Final = (
    Found(socket.AF_INET, "127.0.0.1"),
    Found(socket.AF_INET6, "::1", (0, 0)),
)


class LookupsBusyError(OSError):
    """Too many names are being looked up for one more."""


def is_unknown(error: OSError) -> bool:
    """Say whether the resolver answered that there is no address of that name."""
    return isinstance(error, socket.gaierror) and error.errno in _NO_SUCH_NAME


def why_not_found(error: socket.gaierror) -> str:
    """Say in words what the resolver said, or that it is the resolver that failed."""
    if is_unknown(error):
        return "no such name"
    return f"the resolver failed ({(error.strerror or str(error)).lower()})"


def silence(patience_s: float) -> socket.gaierror:
    """Return the error for a resolver that was waited for so long."""
    return socket.gaierror(socket.EAI_AGAIN, f"no answer in {patience_s:g} s")


def _busy(why: str) -> LookupsBusyError:
    return LookupsBusyError(errno.ENOBUFS, why)


def known(host: str) -> list[Found] | None:
    """Return the addresses of what needs no resolver; None for any other name.

    Raises:
        UnicodeError: it cannot be a name.
    """
    with suppress(socket.gaierror):
        return _getaddrinfo(host, socket.AI_NUMERICHOST)
    name = host.lower().removesuffix(".")
    # RFC 6761 §6.3: both loopbacks, and no resolver is ever asked about it.
    if name == "localhost":
        return list(_LOOPBACK)
    found = HOSTS.find(name)
    if not found and name.endswith(".localhost"):
        return list(_LOOPBACK)
    return found or None


def _getaddrinfo(host: str | bytes, flags: int = 0) -> list[Found]:
    found = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM, flags=flags)
    return [
        Found(family, str(where[0]), tuple(int(n) for n in where[2:]))
        for family, _type, _proto, _name, where in found
        if family in (socket.AF_INET, socket.AF_INET6)
    ]


class HostsFile:
    """The names of a hosts file, as the file is at the moment."""

    def __init__(self, path: str = HOSTS_PATH) -> None:
        self._path = path
        self._seen: tuple[int, ...] = ()
        self._names: dict[str, list[Found]] = {}

    def find(self, name: str) -> list[Found]:
        """Return the addresses of a name in small letters; none if it is not there."""
        try:
            stat = os.stat(self._path)
            seen = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
            if seen != self._seen:
                self._seen, self._names = seen, _read_hosts(self._path)
        except OSError:
            return []
        return self._names.get(name, [])


def _read_hosts(path: str) -> dict[str, list[Found]]:
    with open(path, "rb") as file:
        lines = file.read(HOSTS_BYTES).decode(errors="replace").split("\n")
        whole = not file.read(1)
    names: dict[str, list[Found]] = {}
    for line in lines if whole else lines[:-1]:
        ip, *aliases = line.partition("#")[0].split() or [""]
        with suppress(socket.gaierror, UnicodeError):
            for found in _getaddrinfo(ip, socket.AI_NUMERICHOST) if aliases else ():
                for alias in aliases:
                    names.setdefault(alias.lower(), []).append(found)
    for addresses in names.values():
        # As resolvers order them (RFC 6724): IPv6 first, else in the file's order.
        addresses.sort(key=lambda found: found.family != socket.AF_INET6)
    return names


HOSTS: Final = HostsFile()


class Lookup:
    """One name that is being looked up."""

    __slots__ = ("began", "calls", "host")

    def __init__(self, host: bytes) -> None:
        self.host = host
        self.began: float | None = None
        """When a thread began; None while the name waits for one."""
        self.calls: list[Callable[[Answer], None]] = []
        """Those that wait, in the order in which they are told."""


class Lookups:
    """All look-ups of a run of trio."""

    def __init__(self) -> None:
        self.ask: Callable[[bytes], list[Found]] = _getaddrinfo
        """Ask the resolver; blocks."""
        self.start_thread = trio.lowlevel.start_thread_soon
        self._trio = trio.lowlevel.current_trio_token()
        self._lookups: dict[bytes, Lookup] = {}
        self.queued: dict[Lookup, None] = {}
        """Names that wait for a thread, in order."""
        self._at_work = 0
        self._slow_at_work = 0
        self._slow: dict[bytes, None] = {}
        self.own = trio.CapacityLimiter(OWN_CREW)

    def begin(self, host: str, call: Callable[[Answer], None]) -> Lookup:
        """Look a name up; ``call`` gets the answer, after this has returned.

        ``call`` must neither wait nor raise; ``give_up`` takes it back.

        Raises:
            LookupsBusyError: too many wait already.
            UnicodeError: it cannot be a name.
        """
        name = ascii_name(host).encode("ascii")
        lookup = self._lookups.get(name)
        if lookup is None:
            if len(self.queued) >= MAX_QUEUED:
                raise _busy(f"{MAX_QUEUED:,} names wait to be looked up already")
            lookup = self._lookups[name] = Lookup(name)
            self.queued[lookup] = None
        lookup.calls.append(call)
        self._work()
        return lookup

    def give_up(self, lookup: Lookup, call: Callable[[Answer], None]) -> None:
        """Take a call back. A look-up that none waits for gets no thread."""
        with suppress(ValueError):
            lookup.calls.remove(call)
        if not lookup.calls and lookup in self.queued:
            del self.queued[lookup]
            del self._lookups[lookup.host]

    def _work(self) -> None:
        """Begin with the queued names that may have a thread, in order."""
        while self._at_work < CREW:
            lookup = next(filter(self._may_begin, self.queued), None)
            if lookup is None:
                return
            del self.queued[lookup]
            lookup.began = trio.current_time()
            slow = lookup.host in self._slow
            self._at_work += 1
            self._slow_at_work += slow
            try:
                self.start_thread(
                    partial(self.ask, lookup.host),
                    partial(self._tell_trio, lookup, slow),
                    "tunnel: look-up",
                )
            except RuntimeError as error:  # no more threads
                busy = _busy(f"no thread for a look-up: {error}")
                self._trio.run_sync_soon(self._done, lookup, slow, busy)

    def _may_begin(self, lookup: Lookup) -> bool:
        return self._slow_at_work < SLOW_CREW or lookup.host not in self._slow

    def _tell_trio(
        self, lookup: Lookup, slow: bool, result: Outcome[list[Found]]
    ) -> None:
        """Hand a result over to trio; runs in the thread."""
        try:
            answer: Answer = result.unwrap()
        except Exception as error:  # raised where the answer is waited for
            answer = error.with_traceback(None)
        with suppress(trio.RunFinishedError):  # no task is left to hear it
            self._trio.run_sync_soon(self._done, lookup, slow, answer)

    def _done(self, lookup: Lookup, slow: bool, answer: Answer) -> None:
        self._at_work -= 1
        self._slow_at_work -= slow
        self._lookups.pop(lookup.host, None)
        self._slow.pop(lookup.host, None)
        if trio.current_time() - (lookup.began or 0.0) > SLOW_S:
            self._slow[lookup.host] = None
            if len(self._slow) > MAX_SLOW:
                del self._slow[next(iter(self._slow))]
        calls, lookup.calls = lookup.calls, []
        for call in calls:
            call(answer)
        self._work()


_LOOKUPS: Final = trio.lowlevel.RunVar[Lookups]("tunnel.lookups")


def lookups() -> Lookups:
    """Return the look-ups of this run of trio."""
    try:
        return _LOOKUPS.get()
    except LookupError:
        made = Lookups()
        _LOOKUPS.set(made)
        return made


class Asked:
    """One wait for a look-up; ``close`` it if it may not have come to its end."""

    __slots__ = ("_answer", "_call", "_done", "_lookup")

    def __init__(self, host: str, call: Callable[[Answer], None]) -> None:
        self._answer: Answer = []
        self._done = trio.Event()
        self._call = call
        self._lookup = lookups().begin(host, self._told)

    def _told(self, answer: Answer) -> None:
        self._answer = answer
        self._call(answer)
        self._done.set()

    async def wait(
        self, patience: AbstractContextManager[object], patience_s: float
    ) -> list[Found]:
        """Wait until ``call`` was called; return the addresses.

        Args:
            patience: raises ``trio.TooSlowError`` when it is over.
            patience_s: how long it is, for the words of the error.

        Raises:
            OSError: there are none, or patience is over.
            UnicodeError: it cannot be a name.
        """
        try:
            with patience:
                await self._done.wait()
        except trio.TooSlowError:
            if self._lookup.began is None:
                why = "other names, which nobody answers for, are looked up first"
                raise _busy(why) from None
            raise silence(patience_s) from None
        if isinstance(self._answer, Exception):
            raise self._answer
        return self._answer

    def close(self) -> None:
        """Stop waiting; harmless when it is over."""
        lookups().give_up(self._lookup, self._told)


async def look_up(host: str, *, own: bool = False) -> list[Found]:
    """Return the addresses of a name.

    Args:
        host: the name, or an IP address.
        own: this program's user wrote it, as a server's. It never waits behind names of
            others, takes as long as the resolver does, and is always asked for anew: an
            older question may wait for the resolver of a network that this machine has
            left.

    Raises:
        OSError: there are none, or no answer comes within ``LOOKUP_S``.
        UnicodeError: it cannot be a name.
    """
    found = known(host)
    if found is not None:
        await trio.lowlevel.checkpoint()
        return found
    if own:
        these, name = lookups(), ascii_name(host).encode("ascii")
        return await trio.to_thread.run_sync(
            these.ask, name, abandon_on_cancel=True, limiter=these.own
        )
    asked = Asked(host, lambda _answer: None)
    try:
        return await asked.wait(trio.fail_after(LOOKUP_S), LOOKUP_S)
    finally:
        asked.close()


async def addresses_of(host: str) -> list[str]:
    """Return the IP addresses of a host to listen on, as text; "" stays as it is.

    Raises:
        OSError: it has none, or cannot be a name.
    """
    try:
        found = await look_up(host) if host else []
    except UnicodeError as error:
        raise socket.gaierror(socket.EAI_NONAME, str(error)) from error
    return [
        f"{ip}%{rest[-1]}" if rest and rest[-1] and "%" not in ip else ip
        for _family, ip, rest in found
    ] or [host]
