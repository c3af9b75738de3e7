"""``tunnel.share``: publish a web service from a program without trio.

The center-client runs in a thread of its own; any other thread may call this.
"""

from __future__ import annotations

import math
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Final, Self

import trio

from tunnel.access.identity import client_id
from tunnel.access.tls import file_pair
from tunnel.center.client import CenterClient
from tunnel.center.events import MappingReady, MappingRefused
from tunnel.errors import Code, LocalSessionError, TunnelError, UsageError
from tunnel.ops import saved
from tunnel.ops.entry_syntax import share_entry
from tunnel.ops.runtime import first_fault
from tunnel.ops.web_words import pairs_of

if TYPE_CHECKING:
    from pathlib import Path

    from tunnel.access.join import JoinLine
    from tunnel.center.events import Notice
    from tunnel.ops.entries import Published
    from tunnel.ops.web_words import Said

START_S: Final = 30.0
"""How long ``start`` tries to reach the server."""


def share(
    target: int | str,
    *,
    to: str | None = None,
    name: str = "",
    auth: str | None = None,
    listing: bool = False,
    timeout_s: float = START_S,
    client_cert: tuple[str | Path, str | Path] | None = None,
    **words: Said,
) -> Shared:
    """Publish a web service of this machine, or a folder, for as long as a block runs.

    Args:
        target: a port, ``"HOST:PORT"``, or the path of a folder.
        to: the line that ``tunnel serve`` prints, or the name of a saved one; without
            it, the server that ``tunnel`` uses by default.
        name: the host name; without it, a name that this machine keeps.
        auth: ``"USER:PASSWORD"`` that visitors need.
        listing: list folders that have no index.html.
        timeout_s: how long ``start`` tries to reach the server; a lost link is dialled
            again for ever.
        client_cert: PEM files of a client certificate and its key without a password,
            where the server wants one; read anew for each link.
        words: as the flags of ``tunnel share``: ``host="rewrite"``, and
            ``header=["+X-A:1", "-X-B"]`` where one may be repeated.

    Raises:
        UsageError: a value cannot be used.
    """
    said = pairs_of({**words, "list": listing})
    entry = share_entry(str(target), name, auth, said)
    if entry.inspect:
        why = "requests are looked at through commands, and a block of Python has none"
        raise UsageError("inspect is not for a block", why, "tunnel share --inspect")
    return Shared(entry, saved.find(to)[0], timeout_s, file_pair(client_cert))


class Shared:
    """A web service that is public between ``start`` and ``close``, or in a block.

    ``share`` makes it.
    """

    def __init__(
        self,
        entry: Published,
        join: JoinLine,
        timeout_s: float,
        certificate: tuple[Path, Path] | None = None,
    ) -> None:
        self.url = ""
        """What visitors open; known after ``start``."""
        self._entry = entry
        self._join = join
        self._timeout_s = timeout_s
        self._certificate = certificate
        self._thread = threading.Thread(target=self._run, name="tunnel", daemon=True)
        self._settled = threading.Event()
        self._error: BaseException | None = None
        self._token: trio.lowlevel.TrioToken | None = None
        self._stop = trio.Event()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Publish; return when ``url`` works. May be called once.

        Raises:
            TunnelError: the server is not reached in time, or refuses.
        """
        self._thread.start()
        try:
            self._settled.wait()
        except BaseException:  # Ctrl+C: nobody will call close
            self.close()
            raise
        if self._error is not None:
            self._thread.join()
            raise self._error

    def close(self) -> None:
        """Give the name back and return when the server knows; may be called again."""
        if self._token is not None and self._thread.is_alive():
            with suppress(trio.RunFinishedError):
                self._token.run_sync_soon(self._stop.set)
            self._thread.join()

    # In the thread -------------------------------------------------------------------

    def _run(self) -> None:
        try:
            trio.run(self._main)
        except* TunnelError as group:
            self._error = first_fault(group)
        except* BaseException as group:
            self._error = first_fault(group)
        finally:
            self._settled.set()

    async def _main(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        put, notices = trio.open_memory_channel["Notice"](math.inf)  # few, and small
        with client_id(saved.client_folder()) as own_id:
            client = CenterClient(
                self._join,
                client_id=own_id.value,
                new_id=own_id.renew,
                tell=put.send_nowait,
                give_up_s=self._timeout_s,
                pins=saved.pins(self._join),
                certificate=self._certificate,
            )
            async with trio.open_nursery() as nursery:
                await self._entry.start(client)
                nursery.start_soon(self._follow, client, notices)
                nursery.start_soon(self._until_stopped, client)
                await client.run()
                nursery.cancel_scope.cancel()
        if not self.url and not self._stop.is_set():
            raise LocalSessionError(Code.LINK_LOST, "the server gave no public address")

    async def _until_stopped(self, client: CenterClient) -> None:
        await self._stop.wait()
        client.stop()

    async def _follow(
        self, client: CenterClient, notices: trio.MemoryReceiveChannel[Notice]
    ) -> None:
        async for notice in notices:
            if isinstance(notice, MappingReady):
                if notice.over_tls:
                    self._entry = self._entry.over_tls()
                self.url = (await self._entry.ready(notice.public)).where
                self._settled.set()
            elif isinstance(notice, MappingRefused):
                other = self._entry.instead(notice, self._join.host)
                if other is None:
                    raise self._entry.refused(notice)
                self._entry = other
                await client.withdraw(notice.name)
                await other.start(client)
