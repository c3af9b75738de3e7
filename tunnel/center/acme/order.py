"""One order: proofs are shown by TLS, HTTP or a program for DNS, and taken away again.

Waits for the authority in a worker thread, which a cancellation abandons: it ends by
itself within ``ORDER_S``.
"""

from __future__ import annotations

import math
import ssl
import subprocess
import sys
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar

import trio

from tunnel.access.files import write_private
from tunnel.access.host_certificates import new_key, proof_for, request_for
from tunnel.center.acme.failures import DNS, HTTP, TLS_ALPN, FailedError
from tunnel.front.http.sni import ACME
from tunnel.platform.process import told_of_children

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence
    from pathlib import Path

    from tunnel.center.acme.authority import Authority
    from tunnel.center.acme.failures import Proof
    from tunnel.center.acme.store import Store
    from tunnel.center.acme_options import AcmeOptions

T = TypeVar("T")

ORDER_S: Final = 120.0
"""For an order without its program: most take 5 to 30 s."""
HOOK_S: Final = 300.0
"""For each call of a program: some DNS services take minutes until all servers know."""
LAST_HOOK_S: Final = 5.0
"""For the call that cleans up while this server ends."""


@dataclass(frozen=True, slots=True)
class Places:
    """Where an authority looks."""

    challenges: dict[str, ssl.SSLContext]
    """What ends TLS for it, by host name."""
    answers: dict[str, str]
    """What HTTP answers, by token."""


async def order(
    name: str, kinds: Sequence[str], options: AcmeOptions, store: Store, places: Places
) -> None:
    """Get a certificate and keep it in the store; nothing is left when cancelled.

    Args:
        name: may begin with ``*.``.
        kinds: of challenges, best first.
        options: which authority.
        store: has the account's key.
        places: what is put there is taken away at the end.

    Raises:
        FailedError: there is none.
        StateError: the state folder cannot be used.
    """
    key_pem = await _in_thread(new_key)
    request = await _in_thread(partial(request_for, [name], key_pem))
    account_pem = await _in_thread(store.account_key)
    authority = await _in_thread(partial(_authority, options))
    try:
        begin = partial(authority.begin, options.mail, account_pem, request, kinds)
        proofs = await _in_thread(begin)
        async with AsyncExitStack() as shown:
            for proof in proofs:
                await shown.enter_async_context(_shown(proof, options, store, places))
            chain_pem = await _in_thread(authority.finish)
    finally:
        authority.close()
    await _in_thread(partial(store.keep, name, key_pem, chain_pem))


def _authority(options: AcmeOptions) -> Authority:
    """Import the library, which costs a third of a second, for who asks alone."""
    try:
        from tunnel.center.acme.authority import Authority
    except ImportError as error:  # it was there when this server started
        why = f"the package acme cannot be used: {error}"
        fix = "pip install 'tunnel[acme]'"
        raise FailedError(why, fix, of_authority=True) from error
    return Authority(options.directory, options.ca, ORDER_S)


async def _in_thread(call: Callable[[], T]) -> T:
    """Call what blocks; a cancellation abandons it."""
    return await trio.to_thread.run_sync(call, abandon_on_cancel=True)


@asynccontextmanager
async def _shown(
    proof: Proof, options: AcmeOptions, store: Store, places: Places
) -> AsyncIterator[None]:
    """Show a proof while the context is open."""
    if proof.kind == TLS_ALPN:
        places.challenges[proof.name] = await _in_thread(
            partial(_context, proof, store)
        )
        try:
            yield
        finally:
            places.challenges.pop(proof.name, None)
    elif proof.kind == HTTP:
        places.answers[proof.token] = proof.authorization
        try:
            yield
        finally:
            places.answers.pop(proof.token, None)
    else:
        assert proof.kind == DNS  # noqa: S101 - no other is asked for
        assert options.hook is not None  # noqa: S101 - nor that without it
        async with _dns_shown(options.hook, proof):
            yield


@asynccontextmanager
async def _dns_shown(hook: Path, proof: Proof) -> AsyncIterator[None]:
    """Have the hook make the record of a proof, and remove it behind the block."""
    record = f"_acme-challenge.{proof.name}"
    try:
        await _run(hook, "present", record, proof.digest)
        yield
    finally:
        ends = trio.current_effective_deadline() == -math.inf
        last_s = LAST_HOOK_S if ends else math.inf
        with trio.move_on_after(last_s, shield=ends), suppress(FailedError):
            await _run(hook, "cleanup", record, proof.digest)


def _context(proof: Proof, store: Store) -> ssl.SSLContext:
    """Return what ends TLS for who says ``acme-tls/1``."""
    path = store.folder / ".proof"  # ssl reads no key from memory
    write_private(path, proof_for(proof.name, proof.authorization))
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(path)
    finally:
        path.unlink(missing_ok=True)
    context.set_alpn_protocols([ACME.decode()])
    return context


async def _run(program: Path, verb: str, record: str, value: str) -> None:
    """Run the program of --acme-hook to its end; what it says goes to our stderr.

    Raises:
        FailedError: it cannot be started, fails, or takes longer than ``HOOK_S``.
    """
    what = f"--acme-hook {program} {verb}"
    try:
        with told_of_children(), trio.fail_after(HOOK_S):
            done = await trio.run_process(
                [str(program), verb, record, value],
                check=False,
                stdin=b"",
                stdout=sys.stderr if sys.stderr is not None else subprocess.DEVNULL,
            )
    except OSError as error:
        fix = "an executable file, for this server's user"
        raise FailedError(f"{what}: {error.strerror or error}", fix) from error
    except trio.TooSlowError as error:
        why = f"{what} took longer than {HOOK_S:.0f} s"
        raise FailedError(why, "it has to end when the record can be seen") from error
    if done.returncode:
        why = f"{what} ended with status {done.returncode}"
        raise FailedError(why, "what it said stands in the server's output")
