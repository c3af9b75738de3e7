"""Opens the page of a process: which commands it has, and where it is told."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Final

from tunnel.addresses import EVERYWHERE, LOCALHOST, WILDCARDS, Address
from tunnel.ops.dashboard.gate import Gate
from tunnel.ops.dashboard.port import DashboardPort

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    import trio

    from tunnel.ops.control import Answer, Args, Handler, Handlers
    from tunnel.ops.dashboard.live import Live
    from tunnel.ops.flags import Dashboard
    from tunnel.ops.inspecting import Inspecting
    from tunnel.ops.show import Show

TOKEN_BYTES: Final = 16
"""Of a token that is made at the start."""
COMMANDS: Final = (
    "top", "why", "kick", "logs", "limit", "pause", "resume", "lead", "add", "remove",
    "retry", "users.limit", "users.revoke",
)  # fmt: skip
"""What the page may ask of the control socket's handlers, and all of ``inspect.``: it
ends no process, and makes nobody a user."""


async def open_dashboard(
    nursery: trio.Nursery,
    wanted: Dashboard,
    live: Live,
    handlers: Handlers,
    show: Show,
    inspecting: Inspecting | None = None,
) -> Handler:
    """Have the page answer in ``nursery``; return what says its URL to a command.

    Args:
        nursery: all of it ends with that.
        wanted: where, and with which token.
        live: what the page is told each second.
        handlers: those of the control socket.
        show: tells a person at the terminal where the page is.
        inspecting: the inspector of a client.

    Raises:
        AddressError: it cannot be listened on.
    """
    token = wanted.token or secrets.token_urlsafe(TOKEN_BYTES)
    commands = {
        name: handler
        for name, handler in handlers.items()
        if name in COMMANDS or name.startswith("inspect.")
    }
    streams: dict[str, Callable[[Args], AsyncGenerator[Answer, None]]] = {}
    if inspecting is not None:
        streams["inspect.live"] = inspecting.told

    def tell(_args: Args) -> AsyncGenerator[Answer, None]:
        inspects = inspecting is not None and inspecting.is_on
        return live.told({"commands": sorted(commands), "inspects": inspects})

    gate = Gate(token, chosen=wanted.token is not None)
    port = DashboardPort(gate, commands, {**streams, "live": tell})
    where = await nursery.start(port.serve, wanted.at)
    nursery.start_soon(live.run)
    url = f"http://{_shown_host(where)}/#token={token}"
    show.talk("page", url)

    async def dashboard(_args: Args, _by: str) -> Answer:
        return {"url": url}

    return dashboard


def _shown_host(where: object) -> str:
    """Return where a browser of this machine finds it."""
    assert isinstance(where, Address)  # noqa: S101 - it is no unix socket
    if where.host in (EVERYWHERE, *WILDCARDS):
        where = Address(LOCALHOST, where.port)
    return str(where)
