"""The keys of a configuration file: a dataclass for each table, a reader for each key.

The keys are the flags in snake_case, and the words of entries. What a key does is told
by the help of its flag.
"""

# ruff: noqa: RUF009 - what the defaults call makes fields

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, get_args

from tunnel.access.join import parse_join
from tunnel.access.limits import parse_limits
from tunnel.access.networks import Networks
from tunnel.access.right_words import parse_right
from tunnel.addresses import LOCALHOST, Address, parse_ip
from tunnel.errors import UsageError
from tunnel.ops.config.values import (
    Check,
    Read,
    Words,
    file,
    files,
    folder,
    number,
    secret,
    secret_file,
    switch,
    time,
    word,
    words,
)
from tunnel.ops.entry_rules import rules_of
from tunnel.ops.entry_values import (
    parse_exit_name,
    parse_far_target,
    parse_guard,
    parse_listen,
    parse_proxy_version,
    parse_public_ports,
    parse_targets,
    parse_users,
    public_name,
)
from tunnel.ops.flags import LogForm, RunFlags, UpFlags, check_page_token
from tunnel.ops.serve_flags import ServeFlags
from tunnel.ops.web_words import read_words
from tunnel.proto.proofs import TOKEN_BYTES, from_base64url, parse_verifier

if TYPE_CHECKING:
    from tunnel.ops.config.place import Place

READ: Final = "read"
_LOGS: Final = get_args(LogForm)
_SECRET_FIELD: Final = re.compile(
    r"authorization|cookie|api-?key|token|secret|password"
)
Said = Words | None
"""The words of a key; None: it is not there."""


def key(read: Read) -> Said:
    """Make the field of a key."""
    return field(default=None, metadata={READ: read})


# Checks ------------------------------------------------------------------------------


def _log(text: str) -> None:
    if text not in _LOGS:
        raise UsageError(f"{text!r} is no form of a log", f"it is {', '.join(_LOGS)}")


def _file_or_log(value: object, place: Place) -> Words:
    return ["-"] if value == "-" else folder(value, place)


def _name(text: str) -> None:
    if not public_name(text):
        why = "letters, digits and -, with dots between"
        raise UsageError(f"{text!r} is no host name", why)


def _ip(text: str) -> None:
    if parse_ip(text) is None:
        raise UsageError(f"{text!r} is not an IP address", fix="203.0.113.7")


def _token(text: str) -> None:
    if from_base64url(text, TOKEN_BYTES) is None:
        raise UsageError(f"there is no token in it: base64url of {TOKEN_BYTES} bytes")


def _via(text: str) -> None:
    from tunnel.link.upstream_proxy import UpstreamProxy

    if text != "none":
        UpstreamProxy.parse(text)


def _to(text: str) -> None:
    if "://" in text and _has_secret(text):
        parse_join(text)


def _has_secret(text: str) -> bool:
    """Say whether ``SCHEME://NAME:SECRET@…`` has the SECRET."""
    user, at, _ = text.partition("://")[2].rpartition("@")
    return bool(at) and ":" in user


def _sets_secret(text: str) -> bool:
    """Say whether a field that is set is one that holds a secret."""
    name = text.partition(":")[0].lower()
    return text.startswith("+") and _SECRET_FIELD.search(name) is not None


def _limits(words: Words) -> None:
    parse_limits(words)


def _as_rate(text: str) -> None:
    parse_limits([f"rate={text}"])


def _web(name: str) -> Check:
    """Check the value of a word of web entries."""

    def check(text: str) -> None:
        read = read_words([(name, text)])
        rules_of(read.for_server)

    return check


def _redis_url(text: str) -> None:
    if not text.startswith(("redis://", "rediss://")):
        raise UsageError("a cluster is a redis:// or rediss:// URL")


# Tables ------------------------------------------------------------------------------

_LISTEN: Final = word(parse_listen, number=True)
_NAME: Final = word(_name)
_NETWORKS: Final = words(lambda text: Networks.parse([text]))
_USERS: Final = secret(words(lambda text: parse_users([text])))
_USERS_FILE: Final = secret_file(lambda text: parse_users([text]), several=True)


@dataclass(frozen=True, slots=True)
class RunTable:
    """What both sections have: ``RunFlags``."""

    drain: Said = key(word(lambda text: RunFlags(drain=text).drain_s()))
    idle: Said = key(word(lambda text: RunFlags(idle=text).timeouts()))
    udp_idle: Said = key(word(lambda text: RunFlags(udp_idle=text).timeouts()))
    dead_after: Said = key(word(lambda text: RunFlags(dead_after=text).timeouts()))
    max_head: Said = key(number(lambda text: RunFlags(max_head=int(text)).limits()))
    max_fields: Said = key(number(lambda text: RunFlags(max_fields=int(text)).limits()))
    body_timeout: Said = key(word(lambda text: RunFlags(body_timeout=text).limits()))
    log: Said = key(word(_log))
    log_file: Said = key(folder)
    access_log: Said = key(_file_or_log)
    metrics: Said = key(
        word(lambda text: RunFlags(metrics=text).metrics_at(), number=True)
    )
    dashboard: Said = key(
        word(lambda text: Address.parse(text, LOCALHOST), number=True)
    )
    dashboard_auth: Said = key(secret(word(check_page_token)))
    dashboard_auth_file: Said = key(secret_file(check_page_token))


@dataclass(frozen=True, slots=True)
class ServerTable(RunTable):
    """``[server]``: ``ServeFlags``."""

    listen: Said = key(
        words(
            lambda text: ServeFlags(listen=(text,)).options(),
            lambda texts: ServeFlags(listen=tuple(texts)).options(),
            number=True,
        )
    )
    ports: Said = key(word(lambda text: ServeFlags(ports=text).options(), number=True))
    public_host: Said = key(word(lambda text: ServeFlags(public_host=text).host()))
    state: Said = key(folder)
    plain: Said = key(switch())
    resume: Said = key(word(lambda text: ServeFlags(resume=text).options()))
    limit: Said = key(words(lambda text: parse_limits([text]), _limits))
    http: Said = key(word(lambda text: ServeFlags(http=text).names(), number=True))
    https: Said = key(word(lambda text: ServeFlags(https=text).names(), number=True))
    domain: Said = key(word(lambda text: ServeFlags(domain=text).names()))
    certificate: Said = key(files)
    redirect: Said = key(switch())
    acme: Said = key(word())
    acme_directory: Said = key(word())
    acme_ca: Said = key(file)
    acme_hook: Said = key(file)
    client_ca: Said = key(file)
    max_per_address: Said = key(
        number(lambda text: ServeFlags(max_per_address=int(text)).options())
    )
    trusted_proxy: Said = key(_NETWORKS)
    workers: Said = key(number(lambda text: ServeFlags(workers=int(text)).count()))
    cluster: Said = key(secret(word(_redis_url)))
    node: Said = key(word())
    advertise: Said = key(word(Address.parse))
    cluster_secret_file: Said = key(file)
    cluster_ca: Said = key(file)


@dataclass(frozen=True, slots=True)
class UserTable:
    """``[server.users.NAME]``: as in STATE/users.toml, or with a file of the token."""

    verifier: Said = key(word(parse_verifier))
    token_file: Said = key(secret_file(_token))
    may: Said = key(words(parse_right))
    rate: Said = key(word(_as_rate))
    limits: Said = key(words(lambda text: parse_limits([text]), _limits))
    expires: Said = key(time)


@dataclass(frozen=True, slots=True)
class ClientTable(RunTable):
    """``[client]``: ``ServerFlags``, with the files of their secrets."""

    to: Said = key(secret(word(_to), _has_secret))
    to_file: Said = key(secret_file(parse_join))
    token_file: Said = key(secret_file(_token))
    via: Said = key(secret(word(_via), _has_secret))
    via_file: Said = key(secret_file(_via))
    client_cert: Said = key(files)
    inspect_keep: Said = key(word(lambda text: UpFlags(inspect_keep=text).keep_bytes()))
    inspect_hide: Said = key(words(str))


# Entries -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TcpTable:
    """``[[client.tcp]]``."""

    remote: Said = key(word(parse_public_ports, number=True))
    target: Said = key(
        word(lambda text: text == "socks" or parse_targets(text), number=True)
    )
    proxy: Said = key(word(lambda text: parse_proxy_version([text])))
    auth: Said = key(_USERS)
    auth_file: Said = key(_USERS_FILE)
    network: Said = key(_NETWORKS)


@dataclass(frozen=True, slots=True)
class UdpTable:
    """``[[client.udp]]``."""

    remote: Said = key(word(parse_public_ports, number=True))
    target: Said = key(word(parse_targets, number=True))


@dataclass(frozen=True, slots=True)
class NamedTable:
    """``[[client.https]]``: what needs no requests, which ``http`` has too."""

    name: Said = key(_NAME)
    target: Said = key(word(number=True))
    allow: Said = key(words(_web("allow")))
    deny: Said = key(words(_web("deny")))
    expires: Said = key(word(_web("expires")))
    group: Said = key(word(_web("group")))
    check: Said = key(word(_web("check")))


@dataclass(frozen=True, slots=True)
class HttpTable(NamedTable):
    """``[[client.http]]``: the words of ``WebFlags``."""

    auth: Said = key(secret(word(parse_guard)))
    auth_file: Said = key(secret_file(parse_guard))
    auth_header: Said = key(word(_web("auth-header")))
    cors: Said = key(switch())
    host: Said = key(word(_web("host")))
    header: Said = key(secret(words(_web("header")), _sets_secret))
    response_header: Said = key(secret(words(_web("response-header")), _sets_secret))
    ca: Said = key(file)
    pin: Said = key(word(_web("pin")))
    insecure: Said = key(switch())
    protocol: Said = key(word(_web("protocol")))
    list: Said = key(switch())
    inspect: Said = key(switch())
    requests: Said = key(word(_web("requests")))
    max_body: Said = key(word(_web("max-body")))
    path: Said = key(word(_web("path")))
    strip: Said = key(switch())


@dataclass(frozen=True, slots=True)
class ReachTable:
    """``[[client.reach]]``."""

    listen: Said = key(_LISTEN)
    target: Said = key(word(parse_far_target, number=True))
    exit: Said = key(word(parse_exit_name))


@dataclass(frozen=True, slots=True)
class SocksTable:
    """``[[client.socks]]``."""

    listen: Said = key(_LISTEN)
    auth: Said = key(_USERS)
    auth_file: Said = key(_USERS_FILE)
    udp_public_address: Said = key(word(_ip))
    exit: Said = key(word(parse_exit_name))


@dataclass(frozen=True, slots=True)
class ExitTable:
    """``[[client.be_exit]]``."""

    name: Said = key(word(parse_exit_name))
    network: Said = key(_NETWORKS)


Table = TcpTable | UdpTable | NamedTable | ReachTable | SocksTable | ExitTable
ENTRIES: Final[dict[str, type[Table]]] = {
    "tcp": TcpTable,
    "udp": UdpTable,
    "http": HttpTable,
    "https": NamedTable,
    "reach": ReachTable,
    "socks": SocksTable,
    "be_exit": ExitTable,
}
"""The tables of entries, each by the flag of ``tunnel up`` that it stands for."""
