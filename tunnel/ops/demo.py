"""``tunnel demo``: the whole thing on this machine, seen from both sides.

A center-server and a center-client run as child processes, the page to visit in this
one; what is measured passes the real TLS link between the two. Nothing of the user's is
read or written: the children have folders of their own, removed at the end.
"""

from __future__ import annotations

import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, NoReturn, cast

import trio
from rich.console import Console

import tunnel
from tunnel.access.identity import pin_of
from tunnel.access.join import parse_join
from tunnel.access.tls import client_tls_context
from tunnel.addresses import Address
from tunnel.errors import Exit, StateError, TunnelError
from tunnel.front.http.heads import HeadError
from tunnel.link.transport import TlsTransport, dial
from tunnel.net.dial import connect
from tunnel.net.listen import open_listener
from tunnel.net.sockets import FastSocket, tune_local
from tunnel.ops.demo_page import (
    CheckFailedError,
    PageClient,
    demo_bytes,
    demo_sha256,
    serve_page,
    socks5_connect,
)
from tunnel.ops.runtime import ending_signals, first_fault

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

LOOPBACK: Final = "127.0.0.1"
SIZE_BYTES: Final = 16 << 20
"""Each way: long enough to measure, short enough for a slow machine."""
ROUND_TRIPS: Final = 20
READY_S: Final = 20.0
CHECK_S: Final = 20.0
STOP_S: Final = 5.0
"""How long a child has to end by itself."""
TAIL_LINES: Final = 5


class Seen(NamedTuple):
    """How long one way through the tunnel took."""

    download_s: float
    upload_s: float
    round_trip_s: float


async def run_demo(once: bool) -> int:
    """Start everything, check both ways through it, and print the results.

    Without ``once`` it stays up for the user to try. SIGTERM ends it with the status
    reached so far, Ctrl+C with ``KeyboardInterrupt``, in a group. However it ends, also
    by cancellation, children and files are gone afterwards. The status is 9 if a check
    failed; stderr says which.
    """
    os.umask(0o077)  # its files are for nobody else, whatever the user's umask is
    out, talk = (
        Console(file=file, highlight=False, soft_wrap=True)
        for file in (sys.stdout, sys.stderr)
    )
    demo = _Demo(out, talk)
    failed = False
    with _temporary_folder() as folder:
        try:
            await demo.run(Path(folder), once)
        except* TunnelError as errors:
            failed = True
            failure = cast("TunnelError", first_fault(errors))
            _say_failure(talk, failure, Path(folder))
    return Exit.OK if demo.checked and not failed else Exit.CHECK_FAILED


def _temporary_folder() -> tempfile.TemporaryDirectory[str]:
    try:
        return tempfile.TemporaryDirectory(
            prefix="tunnel-demo-", ignore_cleanup_errors=True
        )
    except OSError as error:
        what = "there is no folder for temporary files"
        raise StateError(what, error.strerror or "", "set TMPDIR") from error


def _say_failure(talk: Console, error: TunnelError, folder: Path) -> None:
    """Write what failed, why and what to do; then the last lines of the children."""
    talk.print(f"error: {error.what}", style="bold red", markup=False)
    for label, text in (("cause", error.cause), ("fix", error.fix)):
        if text:
            talk.print(f"  {label:<5}  {text}", markup=False)
    for log in sorted(folder.glob("*.log")):
        lines = log.read_text(errors="replace").splitlines()[-TAIL_LINES:]
        if lines:
            talk.print(f"  the last lines of `tunnel {log.stem}`", markup=False)
        for line in lines:
            talk.print(f"    {line}", style="dim", markup=False)


@dataclass
class _Demo:
    """One run of the demo; ``checked`` says whether all checks have passed."""

    out: Console
    talk: Console
    checked: bool = False

    async def run(self, folder: Path, once: bool) -> None:
        """Start, check and stay; raises CheckFailedError in a group."""
        listeners = await open_listener(LOOPBACK, 0)
        page = Address(LOOPBACK, listeners[0].socket.getsockname()[1])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve_page, listeners)
            nursery.start_soon(_cancel_on_signal, nursery.cancel_scope)
            self.talk.print("  starting a center-server and a center-client …")
            with socket.socket() as probe:  # another program may take the port then
                probe.bind((LOOPBACK, 0))
                port = probe.getsockname()[1]
            async with _child(
                folder, "serve", "--listen", f"{LOOPBACK}:0",
                "--ports", f"{port}-{port}", "--state", str(folder / "state"),
            ) as server:  # fmt: skip
                (join,) = await server.lines(1)
                # Not as --to: a command line can be read by every user of the machine.
                async with _child(
                    folder, "up", "--tcp", str(page), "--socks", f"{LOOPBACK}:0",
                    TUNNEL_TO=join,
                ) as client:  # fmt: skip
                    try:
                        entries = await client.lines(2)
                        nursery.start_soon(server.watch)
                        nursery.start_soon(client.watch)
                        await self._show(join, entries, page)
                        if not once:
                            self.talk.print("  Ctrl+C ends it.")
                            await trio.sleep_forever()
                    finally:
                        # First the visitors: the children wait for their connections.
                        nursery.cancel_scope.cancel()

    async def _show(self, join: str, entries: list[str], page: Address) -> None:
        public, proxy = _entry(entries, "tcp"), _entry(entries, "socks")
        self._line("server", await check_tls(join))
        self._line("public port", f"{public} → {page}")
        self._line("SOCKS5 proxy", f"{proxy}")
        for way, first, through in (
            ("through the public port", public, None),
            ("through the SOCKS5 proxy", proxy, page),
        ):
            self.out.print(f"  {way}", style="bold")
            seen = await check_way(way, first, through)
            size = f"{SIZE_BYTES >> 20} MiB"
            for name, seconds in zip(("download", "upload"), seen, strict=False):
                speed = f"{SIZE_BYTES / seconds / 1e6:.0f} MB/s"
                self._line(f"  {name}", f"{size:<9}{speed:<11}SHA-256 equal")
            trip = f"{seen.round_trip_s * 1000:.2f} ms"
            self._line("  round trip", f"{trip:<9}median of {ROUND_TRIPS}")
        self.out.print("  try it", style="bold")
        through_proxy = f"--socks5-hostname {proxy} http://{page}/"
        for words in (f"http://{public}/", through_proxy):
            self.out.print(f"    curl {words}", markup=False)
        self.checked = True

    def _line(self, label: str, text: str) -> None:
        self.out.print(f"  {label:<14}{text}", markup=False)


async def _cancel_on_signal(scope: trio.CancelScope) -> None:
    ends = set(ending_signals()) - {signal.SIGINT}
    with trio.open_signal_receiver(*ends) as signals:
        await anext(signals)
        scope.cancel()


def _entry(lines: list[str], kind: str) -> Address:
    """Return the address of an entry from the lines that ``tunnel up`` printed."""
    for line in lines:
        words = line.split()
        if len(words) == 3 and words[0] == kind:
            return Address.parse(words[1])
    raise CheckFailedError(f"`tunnel up` did not say its {kind} entry is ready",
                           f"it said {' and '.join(lines)!r}")  # fmt: skip


# Children ----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Child:
    """A running ``tunnel`` command and its stdout."""

    verb: str
    process: trio.Process
    stdout: trio.abc.ReceiveStream

    async def lines(self, count: int) -> list[str]:
        """Return its first lines; raises CheckFailedError if they do not come."""
        said = bytearray()
        with trio.move_on_after(READY_S):
            while said.count(b"\n") < count:
                data = await self.stdout.receive_some()
                if not data:
                    await self._ended()
                said += data
            return said.decode(errors="replace").splitlines()[:count]
        raise CheckFailedError(f"`tunnel {self.verb}` was not ready in {READY_S:g} s")

    async def watch(self) -> None:
        """Discard what else it prints; raises CheckFailedError when it ends."""
        while await self.stdout.receive_some():
            pass
        await self._ended()

    async def _ended(self) -> NoReturn:
        status = await self.process.wait()
        said = f"`tunnel {self.verb}` ended by itself with status {status}"
        raise CheckFailedError(said)


@asynccontextmanager
async def _child(
    folder: Path, verb: str, *arguments: str, **settings: str
) -> AsyncIterator[_Child]:
    """Run ``tunnel VERB …`` while the context is open; its stderr goes to VERB.log.

    SIGTERM ends it, or else SIGKILL.
    """
    command = [sys.executable, "-m", "tunnel", verb, *arguments]
    with (folder / f"{verb}.log").open("wb") as log:
        process = await trio.lowlevel.open_process(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            env=_environment(folder) | settings,
            cwd=Path(tunnel.__file__).parents[1],  # -m finds this copy, no other
        )
    try:
        if process.stdout is not None:  # always: a pipe was asked for
            yield _Child(verb, process, process.stdout)
    finally:
        with trio.CancelScope(shield=True):
            process.terminate()
            with trio.move_on_after(STOP_S):
                await process.wait()
            process.kill()  # does nothing to one that has ended
            await process.wait()
            if process.stdout is not None:
                await process.stdout.aclose()


def _environment(folder: Path) -> dict[str, str]:
    """Return an environment without settings for tunnel; its folders are here."""
    own = {k: v for k, v in os.environ.items() if not k.startswith("TUNNEL_")}
    for kind in ("CONFIG_HOME", "STATE_HOME", "DATA_HOME", "CACHE_HOME", "RUNTIME_DIR"):
        path = folder / kind.lower()
        path.mkdir(mode=0o700, exist_ok=True)
        own[f"XDG_{kind}"] = str(path)
    return own


# Checks ------------------------------------------------------------------------------


async def check_tls(join: str) -> str:
    """Dial the link's port as a client does; return its address and protection.

    Raises:
        TunnelError: nothing listens there, or without TLS 1.3 or the pinned key.
    """
    line = parse_join(join)
    if line.plain or line.pin is None:
        raise CheckFailedError("the join line names a link without TLS or without pin")
    with _within(CHECK_S, "the TLS handshake"):
        stream = await dial(line.host, line.port)
        # The context takes nothing older than TLS 1.3.
        wire = TlsTransport(stream, client_tls_context(line.pin), server_side=False)
        try:
            await wire.handshake()
            if pin_of(wire.peer_certificate()) != line.pin:
                raise CheckFailedError("the server's key is not the one that is pinned")
            await wire.send_eof()
        finally:
            await wire.aclose()
    return f"{Address(line.host, line.port)}  TLS 1.3, key pinned"


async def check_way(way: str, first: Address, through: Address | None) -> Seen:
    """Download from the page, upload to it, and compare the hashes.

    Args:
        way: what people read of this way.
        first: the address to dial.
        through: the page, where ``first`` is a SOCKS5 proxy; else None.

    Raises:
        TunnelError: the page is not reached, not in time, or sends other bytes.
    """
    with _within(CHECK_S, f"the check {way}"):
        sock = await connect(first)
        tune_local(sock)
        stream = FastSocket(sock)
        try:
            if through is not None:
                await socks5_connect(stream, through)
            return await _measure(PageClient(stream, str(through or first)))
        except (trio.BrokenResourceError, HeadError) as error:
            cause = str(error.__cause__ or error)
            raise CheckFailedError(f"the connection {way} broke", cause) from error
        finally:
            await trio.aclose_forcefully(stream)


@contextmanager
def _within(seconds: float, what: str) -> Iterator[None]:
    with trio.move_on_after(seconds) as scope:
        yield
    if scope.cancelled_caught:
        raise CheckFailedError(f"{what} was not done in {seconds:g} s")


async def _measure(page: PageClient) -> Seen:
    wanted = demo_sha256(SIZE_BYTES)
    digest = sha256()
    started = trio.current_time()
    await page.ask("GET", f"/bytes/{SIZE_BYTES}", digest.update)
    downloaded = trio.current_time()
    _compare("download", wanted, digest.hexdigest())

    answer = bytearray()
    payload = list(demo_bytes(SIZE_BYTES))
    uploading = trio.current_time()
    await page.ask("POST", "/hash", answer.extend, payload)
    uploaded = trio.current_time()
    _compare("upload", f"{wanted} {SIZE_BYTES}", answer.decode().strip())

    trips = []
    for _ in range(ROUND_TRIPS):
        before = trio.current_time()
        await page.ask("HEAD", "/", answer.extend)
        trips.append(trio.current_time() - before)
    return Seen(downloaded - started, uploaded - uploading, statistics.median(trips))


def _compare(what: str, wanted: str, got: str) -> None:
    if got != wanted:
        raise CheckFailedError(
            f"the {what} arrived changed", f"SHA-256 {got} instead of {wanted}"
        )
