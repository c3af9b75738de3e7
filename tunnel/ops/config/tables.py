"""What the tables of a configuration file become: entries, users and a join line.

Each function raises UsageError where the keys of a table contradict one another.
"""

from __future__ import annotations

import os
from dataclasses import fields
from typing import TYPE_CHECKING, Final

from tunnel.access.join import parse_join
from tunnel.access.limits import parse_limits
from tunnel.access.rules import default_rights, parse_rights
from tunnel.access.users import User, check_name
from tunnel.errors import UsageError
from tunnel.ops.config.schema import (
    ExitTable,
    HttpTable,
    NamedTable,
    ReachTable,
    SocksTable,
    TcpTable,
    UdpTable,
)
from tunnel.ops.entry_syntax import (
    exit_entry,
    http_entry,
    https_entry,
    reach_entry,
    socks_entry,
    tcp_entry,
    udp_entry,
)
from tunnel.ops.entry_values import parse_guard, public_name
from tunnel.proto.proofs import parse_verifier, verifier_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tunnel.front.http.guard import Guard
    from tunnel.ops.config.place import Place
    from tunnel.ops.config.schema import ClientTable, Said, Table, UserTable
    from tunnel.ops.entries import Entry, Published
    from tunnel.ops.entry_values import SaidWord

_SOCKS: Final = "1080"
_NOT_WORDS: Final = ("name", "target", "auth", "auth_file")


def entry_of(table: Table, place: Place) -> Entry:
    """Return the entry that a table is about."""
    match table:
        case TcpTable():
            return _tcp(table)
        case UdpTable():
            return udp_entry(_need(table.target, "target"), _one(table.remote, "0"))
        case NamedTable():
            return _named(table, place)
        case ReachTable():
            listen = _need(table.listen, "listen")
            return reach_entry(listen, _need(table.target, "target"), _may(table.exit))
        case SocksTable():
            auth = _either(table.auth, table.auth_file)
            udp = _may(table.udp_public_address)
            return socks_entry(_one(table.listen, _SOCKS), auth, _may(table.exit), udp)
        case ExitTable():
            return exit_entry(_need(table.name, "name"), table.network or [])


def _tcp(table: TcpTable) -> Published:
    target, auth = _need(table.target, "target"), _either(table.auth, table.auth_file)
    is_socks = target == "socks"
    if not is_socks and (auth or table.network):
        why = 'they are for target = "socks"'
        raise UsageError("auth and network are not for a service", why)
    if is_socks and table.proxy:
        raise UsageError("proxy is not for a proxy", "its visitors name their targets")
    remote, networks = _one(table.remote, "0"), table.network or []
    return tcp_entry(
        None if is_socks else target, remote, _may(table.proxy),
        socks=is_socks, auth=auth, networks=networks,
    )  # fmt: skip


def _named(table: NamedTable, place: Place) -> Published:
    target = _need(table.target, "target")
    name = public_name(_one(table.name))
    said = list(_words(table))
    if not isinstance(table, HttpTable):
        if not name:
            raise UsageError("there is no name", "TLS that passes through needs one")
        return https_entry(name, target, said)
    guard: Guard | None = None
    if auth := _either(table.auth, table.auth_file):
        guard = parse_guard(auth[0])
    return http_entry(name, _folder(target, place), said, guard)


def _words(table: NamedTable) -> Iterator[SaidWord]:
    """Yield what a table says, as ``read_words`` takes it."""
    for one in fields(table):
        said: Said = getattr(table, one.name)
        if said is None or one.name in _NOT_WORDS:
            continue
        name = one.name.replace("_", "-")
        if said in (["true"], ["false"]):
            if said == ["true"]:
                yield name, None
        else:
            yield from ((name, value) for value in said)


def _folder(target: str, place: Place) -> str:
    """Return a target; a relative folder begins at that of the configuration."""
    if "://" in target or target.startswith("unix:") or target.isdigit():
        return target
    path = place.file(target)
    if "/" in target or target in (".", "..", "~") or os.path.isdir(path):
        return str(path)
    return target


def user_of(name: str, table: UserTable, where: str) -> User:
    """Return a user of the file, who stands at ``where``: FILE:LINE.

    Without ``may`` it may what ``tunnel invite`` gives.
    """
    check_name(name)
    if (table.verifier is None) is (table.token_file is None):
        both = "both say" if table.verifier else "nothing says"
        fix = "verifier as in STATE/users.toml, or token_file"
        raise UsageError(f"{both} with which token the user logs in", fix=fix)
    if table.token_file is None:
        verifier = parse_verifier(_one(table.verifier))
    else:
        verifier = verifier_of(name, _one(table.token_file))
    rate = [f"rate={_one(table.rate)}"] if table.rate else []
    limits = parse_limits([*rate, *(table.limits or [])])
    may = table.may
    rights = default_rights(name) if may is None else parse_rights(may)
    expires_at = None if table.expires is None else float(_one(table.expires))
    return User(name, verifier, rights, limits, expires_at, place=where)


def line_of(table: ClientTable) -> Said:
    """Return the join line, or the name of a saved one; None if nothing is said.

    Raises:
        UsageError: it is none, has no token, or two.
    """
    line = _one(_either(table.to, table.to_file, "to"))
    if table.token_file:
        scheme, separator, rest = line.partition("://")
        user, at, where = rest.partition("@")
        if not at or ":" in user:
            why = "to is no join line: NAME@HOST:PORT/#PIN"
            why = "to has one already" if at else why
            raise UsageError("token_file has no place for its token", why)
        line = f"{scheme}{separator}{user}:{_one(table.token_file)}@{where}"
    if "://" in line:
        parse_join(line)
    return [line] if line else None


def _need(said: Said, name: str) -> str:
    if not said:
        raise UsageError(f"there is no {name}")
    return said[0]


def _one(said: Said, default: str = "") -> str:
    return said[0] if said else default


def _may(said: Said) -> str | None:
    return said[0] if said else None


def _either(said: Said, of_file: Said, name: str = "auth") -> list[str]:
    if said is not None and of_file is not None:
        raise UsageError(f"{name} and {name}_file say the same", "one would be ignored")
    return said or of_file or []
