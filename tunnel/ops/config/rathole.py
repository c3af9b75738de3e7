"""Files of rathole (https://github.com/rapiz1/rathole), as tables of ours.

There the server's file says where a service is public; here the client's does, and the
server says what a user may.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tunnel.ops.config.old import Table

if TYPE_CHECKING:
    from tunnel.ops.config.old import Old

REASONS: Final = (
    (r".*token$", "each user has a token of its own: `tunnel invite NAME`"),
    (r".*transport\.(type|tls|noise|websocket)", "links are TLS 1.3 with a pinned key"),
    (r".*(heartbeat|keepalive|nodelay|retry)", "links look after themselves"),
)


def is_one(document: dict[str, object]) -> bool:
    """Say whether a document is one of rathole."""
    sections = [document.get("server"), document.get("client")]
    known = "services", "bind_addr", "remote_addr"
    return any(
        key in section
        for section in sections
        if isinstance(section, dict)
        for key in known
    )


def tables(old: Old) -> list[Table]:
    """Return what is carried over."""
    found = []
    if old.table("server"):
        found += _server(old)
    if old.table("client"):
        found += _client(old)
    return found


def _server(old: Old) -> list[Table]:
    server = Table("[server]", rows={"listen": old.text("server", "bind_addr")})
    ports = []
    for name in old.table("server", "services"):
        keys = "server", "services", name
        kind = old.text(*keys, "type") or "tcp"
        public = old.text(*keys, "bind_addr")
        ports.append(f"{kind}:{public.rpartition(':')[2]}")
        if not old.table("client", "services", name):
            why = f'[[client.{kind}]] of the client says remote = "{public}"'
            old.leave(why, *keys, "bind_addr")
    if ports:
        may = " ".join(f"--may {one}" for one in ports)
        server.notes.append(f"Who may open these ports: tunnel invite NAME {may}")
    return [server]


def _client(old: Old) -> list[Table]:
    where = old.text("client", "remote_addr") or "SERVER:7443"
    client = Table("[client]")
    client.notes.append("The line that `tunnel serve` or `tunnel invite` prints:")
    client.notes.append(f'to = "tunnel://NAME:TOKEN@{where}/#PIN"')
    client.rows["via"] = old.text("client", "transport", "tcp", "proxy")
    found = [client]
    for name in old.table("client", "services"):
        keys = "client", "services", name
        kind = old.text(*keys, "type") or "tcp"
        if kind not in ("tcp", "udp"):
            old.leave(f"{kind} is not known", *keys)
            continue
        remote = old.text("server", "services", name, "bind_addr")
        rows = {"remote": remote, "target": old.text(*keys, "local_addr")}
        entry = Table(f"[[client.{kind}]]", name, dict(rows))
        if not remote:
            note = f"remote = … is bind_addr of {name} in the server's file"
            entry.notes.append(note)
        found.append(entry)
    return found
