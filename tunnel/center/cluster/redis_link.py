"""One connection to Redis or Valkey, made again whenever it is lost.

Everything goes over that one: with RESP3 the notices of a channel come over the
connection that asks, so they are in one order with the answers, and a node costs Redis
one client. The pool of coredis is not used: it loses a place whenever a connection ends
that somebody holds (6.9), and one that listens always is held.

Importing this imports coredis.
"""

from __future__ import annotations

import hashlib
import logging
import math
import random
import ssl
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, Unpack
from urllib.parse import unquote, urlsplit

import anyio
import trio
from coredis.connection import TCPConnection, TCPLocation
from coredis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    NoScriptError,
    ReadOnlyError,
    RedisError,
)

from tunnel.access.join import Secret
from tunnel.addresses import host_of, is_loopback
from tunnel.center.cluster.directory import DirectoryAwayError
from tunnel.errors import UsageError
from tunnel.log import log_event
from tunnel.redaction import redact

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from anyio.abc import ByteStream
    from coredis.connection import BaseConnection, BaseConnectionParams
    from coredis.typing import ResponseType

LOG: Final = logging.getLogger(__name__)
# It would write every attempt, each with a traceback; here it is said once.
logging.getLogger("coredis").setLevel(logging.CRITICAL)

PORT: Final = 6379
LEAST_VERSION: Final = 7
FIRST_PAUSE_S: Final = 0.2
MOST_PAUSE_S: Final = 5.0
_STEADY_S: Final = 1.0
"""A connection that lasted so long was a good one: the next is tried at once."""
_LEAVE_S: Final = 1.0
"""For the goodbye of a node that ends."""
_FAILURES: Final = (RedisError, OSError, trio.TooSlowError, DirectoryAwayError)

Word = bytes | str | int


@dataclass(frozen=True, slots=True)
class Times:
    """How long things take, in seconds. All are durations: no clock is compared."""

    lease: float = 15.0
    """A node that was not heard of for so long is gone."""
    renew: float = 5.0
    reply: float = 2.5
    """One answer; a connection without one is given up."""
    call: float = 3.0
    """All that one call of the directory asks."""
    sweep: float = 60.0
    """After a node has gone, for its clients to be elsewhere."""


class RedisUrl(NamedTuple):
    """What a URL says."""

    host: str
    port: int
    db: int
    user: str
    password: Secret
    tls: bool

    def __str__(self) -> str:
        scheme = "rediss" if self.tls else "redis"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{scheme}://{host}:{self.port}/{self.db}"


def read_redis_url(text: str) -> RedisUrl:
    """Read ``redis[s]://[[USER]:PASSWORD@]HOST[:PORT][/DB]``.

    Raises:
        UsageError: it is none, or passwords and names would cross a network unsealed.
    """
    shown = redact(text)
    try:
        parts = urlsplit(text)
        port, db = parts.port or PORT, int(parts.path.strip("/") or 0)
        host = host_of(parts.hostname or "", zone=True)
    except ValueError:
        host, port, db = None, PORT, 0
    parts = urlsplit("" if host is None else text)
    if host is None or parts.scheme not in ("redis", "rediss") or parts.query:
        raise UsageError(
            f"{shown} is no URL of a Redis",
            fix="redis://127.0.0.1:6379/0 or rediss://USER:PASSWORD@HOST:6379/0",
        )
    tls = parts.scheme == "rediss"
    if not tls and not is_loopback(host):
        raise UsageError(
            f"{shown} is another machine, and not encrypted",
            "its password and all names would cross the network in the clear",
            f"rediss://{parts.netloc.rpartition('@')[2]}{parts.path}",
        )
    password = Secret(unquote(parts.password or ""))
    return RedisUrl(host, port, db, unquote(parts.username or ""), password, tls)


class Script:
    """A script that Redis runs as one step."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.sha = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()


class _Dialled(TCPConnection):
    """A connection over a stream that is there.

    One that coredis dials in vain leaves open what it has made for it (6.9).
    """

    def __init__(
        self,
        stream: ByteStream,
        location: TCPLocation,
        **options: Unpack[BaseConnectionParams],
    ) -> None:
        super().__init__(location, **options)
        self._dialled = stream

    async def _connect(self) -> ByteStream:
        return self._dialled


class Wire:
    """A connection that works, until it is lost."""

    def __init__(self, connection: BaseConnection) -> None:
        self._connection = connection
        self.failed: BaseException | None = None
        """Why it was given up, if it was."""

    async def ask(self, command: bytes, *words: Word) -> ResponseType:
        """Return the answer to a command.

        Raises:
            DirectoryAwayError: there is none, or Redis refuses. It may have been done.
        """
        try:
            return await self._ask(command, *words)
        except RedisError as error:
            raise DirectoryAwayError(_why(error)) from error

    async def run(
        self, script: Script, keys: Sequence[Word], words: Sequence[Word]
    ) -> ResponseType:
        """Run a script, with its text where Redis does not know it; else as ``ask``."""
        rest = (len(keys), *keys, *words)
        try:
            return await self._ask(b"EVALSHA", script.sha, *rest)
        except NoScriptError:
            return await self.ask(b"EVAL", script.text, *rest)
        except RedisError as error:
            raise DirectoryAwayError(_why(error)) from error

    async def _ask(self, command: bytes, *words: Word) -> ResponseType:
        try:
            return await self._connection.create_request(command, *words)
        except TimeoutError as error:
            self._give_up(error)
            raise DirectoryAwayError(str(error)) from error
        except ReadOnlyError as error:
            # It was the primary once; the name may lead to another by now.
            self._give_up(error)
            raise

    def _give_up(self, error: BaseException) -> None:
        self.failed = self.failed or error
        self._connection.invalidate()


class User(Protocol):
    """Who uses a link."""

    channel: str
    """What it listens to."""

    async def begin(self, wire: Wire) -> None:
        """Do what comes first on each connection; until then nobody else asks.

        Raises:
            UsageError: this Redis cannot be used, and not later either.
        """

    async def work(self) -> None:
        """Do what is to be done while the connection is there; does not return."""

    def hear(self, message: bytes) -> None:
        """Take one message of the channel. Must not raise."""

    async def leave(self, wire: Wire) -> None:
        """Say goodbye; cancelled after a second."""


class RedisLink:
    """A connection that is there, is being made, or cannot be had for now.

    While it is made, calls wait; while it cannot be had they fail at once.

    Args:
        url: where Redis is.
        ca: what signs its certificate, PEM; None for the system's authorities.
        times: of answers and calls.

    Raises:
        UsageError: there is no certificate in ``ca``.
    """

    def __init__(self, url: RedisUrl, ca: Path | None, times: Times) -> None:
        self._url = url
        self._times = times
        self._tls = _tls_context(ca) if url.tls else None
        self._wire: Wire | None = None
        self._turned = trio.Event()
        """Set, and made anew, when there is a wire or there is to be none for now."""
        self._up_at: float | None = None
        self._away = ""
        """Why, from the first attempt that failed on."""
        self._away_at = 0.0
        self._refusal: UsageError | None = None

    @contextmanager
    def limited(self) -> Iterator[None]:
        """Give all that is asked inside the time of one call.

        Raises:
            DirectoryAwayError: it took longer. It may have been done all the same.
        """
        with trio.move_on_after(self._times.call) as scope:
            yield
        if scope.cancelled_caught:
            raise DirectoryAwayError(f"no answer within {self._times.call:g} s")

    async def wire(self) -> Wire:
        """Return the connection; wait while it is being made.

        Raises:
            DirectoryAwayError: it cannot be had for now.
        """
        while self._wire is None:
            if self._away:
                raise DirectoryAwayError(self._away)
            await self._turned.wait()
        return self._wire

    async def run(
        self,
        user: User,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Keep the connection until cancelled; started when it is there or away.

        Raises:
            UsageError: at the first attempt only: a password that is wrong, a
                certificate that is not trusted, or what ``User.begin`` says.
        """
        pause_s = 0.0
        started = False

        def up(wire: Wire) -> None:
            nonlocal started
            self._begin(wire)
            if not started:
                started = True
                task_status.started()

        while True:
            failed = await self._hold(user, up)
            if self._end():
                pause_s = 0.0
                continue
            if not started and (refusal := self._refused(failed)) is not None:
                raise refusal
            self._go_away(_why(failed))
            if not started:
                started = True
                task_status.started()
            pause_s = min(max(2 * pause_s, FIRST_PAUSE_S), MOST_PAUSE_S)
            await trio.sleep(pause_s * (1 + random.random()) / 2)  # noqa: S311

    async def _hold(self, user: User, up: Callable[[Wire], None]) -> BaseException:
        """Have one connection until it fails; return what has failed."""
        failed: BaseException = DirectoryAwayError()
        wire: Wire | None = None
        kept = trio.CancelScope()
        try:
            connection = await self._dial()
            wire = Wire(connection)

            async def keep(*, task_status: trio.TaskStatus[None]) -> None:
                with kept:
                    await connection.run(task_status=task_status)

            async with trio.open_nursery() as nursery:
                await nursery.start(keep)
                kept.shield = True  # the goodbye goes over it
                try:
                    await self._use(connection, wire, user, up)
                finally:
                    kept.cancel()
        except* _FAILURES as group:
            failed = _first(group)
        return (wire and wire.failed) or failed

    async def _dial(self) -> TCPConnection:
        host, port = self._url.host, self._url.port
        stream: ByteStream
        with trio.fail_after(self._times.reply):
            if self._tls is None:
                stream = await anyio.connect_tcp(host, port)
            else:
                stream = await anyio.connect_tcp(
                    host, port, ssl_context=self._tls, tls_standard_compatible=False
                )
        return _Dialled(
            stream,
            TCPLocation(host, port),
            db=self._url.db,
            username=self._url.user or None,
            password=self._url.password.reveal() or None,
            stream_timeout=self._times.reply,
        )

    async def _use(
        self,
        connection: BaseConnection,
        wire: Wire,
        user: User,
        up: Callable[[Wire], None],
    ) -> None:
        if int((connection.server_version or "0").partition(".")[0]) < LEAST_VERSION:
            found = connection.server_version
            self._refusal = UsageError(
                f"{self._url} is version {found}", "Redis or Valkey 7 is the oldest"
            )
            raise DirectoryAwayError(self._refusal.what)
        connection.send_command(b"SUBSCRIBE", user.channel)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_listen, connection, user)
                try:
                    await user.begin(wire)
                except UsageError as error:
                    self._refusal = error
                    raise DirectoryAwayError(error.what) from error
                up(wire)
                await user.work()
        finally:
            if trio.current_effective_deadline() == -math.inf:  # this node ends
                with (
                    trio.move_on_after(_LEAVE_S, shield=True),
                    suppress(DirectoryAwayError),
                ):
                    await user.leave(wire)

    def _begin(self, wire: Wire) -> None:
        now = trio.current_time()
        if self._away:
            after_s = round(now - self._away_at, 1)
            log_event(LOG, logging.INFO, "directory.back", host=str(self._url),
                after_s=after_s)  # fmt: skip
        self._wire, self._away, self._up_at = wire, "", now
        self._turn()

    def _end(self) -> bool:
        """Have no connection any more; say whether it was a good one."""
        up_at, self._up_at, self._wire = self._up_at, None, None
        return up_at is not None and trio.current_time() - up_at >= _STEADY_S

    def _go_away(self, reason: str) -> None:
        if not self._away:
            self._away_at = trio.current_time()
            log_event(LOG, logging.WARNING, "directory.away", host=str(self._url),
                reason=reason)  # fmt: skip
        self._away = reason
        self._turn()

    def _turn(self) -> None:
        self._turned.set()
        self._turned = trio.Event()

    def _refused(self, failed: BaseException) -> UsageError | None:
        """Return what a person must change before this can work, if anything."""
        if self._refusal is not None:
            return self._refusal
        root = _root(failed)
        if isinstance(root, AuthenticationError | AuthorizationError):
            return UsageError(f"{self._url} does not let us in", _why(failed))
        if isinstance(root, ssl.SSLCertVerificationError):
            fix = "name its authority with --cluster-ca"
            return UsageError(f"{self._url} is not trusted", _why(failed), fix)
        return None


def _tls_context(ca: Path | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca)
    except OSError as error:
        raise UsageError(f"{ca} holds no certificate", str(error)) from error


async def _listen(connection: BaseConnection, user: User) -> None:
    async for message in connection.push_messages:
        match message:
            case [b"message", _, bytes(data)]:
                user.hear(data)
            case _:
                pass  # that we listen


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _root(error: BaseException) -> BaseException:
    """Return what caused the error."""
    while (cause := error.__cause__) is not None:
        error = _first(cause)
    return error


def _why(error: BaseException) -> str:
    root = _root(error)
    if isinstance(root, trio.TooSlowError):
        return "no connection in time"
    return redact(str(root) or str(error) or type(root).__name__)
