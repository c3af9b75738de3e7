"""The text forms of entries: as words of ``tunnel up``, and as commands of their own.

    parse_…    reads the word behind a flag of ``tunnel up``
    …_entry    reads the words and flags of a command that has one entry

Each raises UsageError where words cannot be read, contradict one another, or would open
a proxy to everybody.
"""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tunnel.access.networks import Networks
from tunnel.addresses import UNIX_PREFIX, Address, is_loopback, parse_ip
from tunnel.errors import UsageError
from tunnel.front.http.files import Folder
from tunnel.ops.entries import (
    ClientExit,
    ClientProxy,
    Local,
    Published,
    Service,
    SharedFolder,
    public_flag,
)
from tunnel.ops.entry_rules import rules_of
from tunnel.ops.entry_values import (
    parse_exit_name,
    parse_far_target,
    parse_guard,
    parse_listen,
    parse_proxy_version,
    parse_public_ports,
    parse_remote,
    parse_target,
    parse_targets,
    parse_url_target,
    parse_users,
    public_name,
    split_options,
    split_words,
)
from tunnel.ops.web_words import read_words
from tunnel.proto.frames import MappingEntry, MappingType

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tunnel.access.proxy_users import ProxyUsers
    from tunnel.addresses import End
    from tunnel.front.http.guard import Guard
    from tunnel.net.proxy_protocol import ProxyVersion
    from tunnel.ops.entry_values import SaidWord
    from tunnel.ops.web_words import WebWords

REMOTE: Final = "--remote"
"""The flag of ``tunnel tcp`` and ``tunnel udp`` that says what is public."""


# Ports: --tcp and --udp --------------------------------------------------------------


def parse_tcp(text: str) -> Published:
    """Read ``[REMOTE=]TARGET[,proxy=v1|v2]``, or that of a proxy into this network.

    The latter is ``[REMOTE=]socks[,auth=USER:PASSWORD…][,network=NET…]``."""
    if text.partition(",")[0].rpartition("=")[2] == "socks":
        body, options = split_options(text, ("auth", "network"))
        remote = body.rpartition("=")[0] or "0"
        networks = Networks.parse(options["network"])
        return _client_proxy(remote, networks, parse_users(options["auth"]), "--tcp")
    body, options = split_options(text, ("proxy",))
    remote, target = _remote_and_target(body, "--tcp")
    proxy = parse_proxy_version(options["proxy"])
    return _service("--tcp", MappingType.TCP, remote, target, proxy)


def tcp_entry(
    target: str | None,
    remote: str,
    proxy: str | None,
    *,
    socks: bool,
    auth: list[str],
    networks: list[str],
) -> Published:
    """Return the entry of ``tunnel tcp``."""
    if socks:
        if target is not None or proxy is not None:
            raise UsageError(
                "--socks takes no target",
                "its visitors name theirs, and are not announced to them",
                "tunnel tcp --socks --remote 127.0.0.1:1080",
            )
        users = parse_users(auth)
        return _client_proxy(remote, Networks.parse(networks), users, REMOTE)
    if target is None or networks or auth:
        only_socks = "--auth and --network are for --socks"
        raise UsageError(
            "there is no TARGET" if target is None else only_socks,
            "what is to be published is [HOST:]PORT or unix:/path",
            "tunnel tcp 8000",
        )
    version = parse_proxy_version([proxy] if proxy else [])
    return _service(REMOTE, MappingType.TCP, remote, target, version)


def parse_udp(text: str) -> Published:
    """Read ``[REMOTE=]TARGET``."""
    body, _ = split_options(text, ())
    remote, target = _remote_and_target(body, "--udp")
    return udp_entry(target, remote, "--udp")


def udp_entry(target: str, remote: str, flag: str = REMOTE) -> Published:
    """Return the entry of ``tunnel udp``."""
    entry = _service(flag, MappingType.UDP, remote, target)
    if target.startswith(UNIX_PREFIX):
        fix = f"for example {'tunnel udp' if flag == REMOTE else flag} 53"
        raise UsageError(f"{target} takes no datagrams", "UDP goes to an address", fix)
    return entry


def _service(
    flag: str,
    kind: MappingType,
    remote: str,
    target: str,
    proxy: ProxyVersion | None = None,
) -> Published:
    """Publish a target, or several in a row; port 0 of ``remote`` is as many ports."""
    end, count = parse_targets(target)
    public = parse_public_ports(remote)
    port = public.first.port
    if public.count != count and port:
        last = port + count - 1
        in_row = f"{port}-{last}" if count > 1 else str(port)
        in_row = in_row if last < 65_536 else "0"
        raise UsageError(
            f"{remote} and {target} are not of one length",
            "the visitor of each port reaches the target of the same place",
            f"for example {public_flag(flag, in_row, target)}",
        )
    wanted = MappingEntry(kind, "", public.first.host, port, count)
    endpoint = Service(end, count, proxy)
    return Published(kind.name.lower(), wanted, endpoint, flag)


def _client_proxy(
    remote: str, networks: Networks, users: ProxyUsers | None, flag: str
) -> Published:
    """Publish a proxy into the network of this machine, which is never open to all."""
    public = parse_remote(remote)
    if users is None and not is_loopback(public.host):
        port = public.port or 1080
        with_users = f"--tcp {port}=socks,auth=USER:PASSWORD"
        if flag == REMOTE:
            with_users = "add --auth USER:PASSWORD"
        for_server = public_flag(flag, f"127.0.0.1:{port}", "socks")
        raise UsageError(
            "a public proxy without users is not opened",
            "whoever reaches the server could use it to enter this network",
            f"{with_users}, or let only the server's own programs use it: {for_server}",
        )
    wanted = MappingEntry(MappingType.TCP, "", public.host, public.port)
    return Published("tcp", wanted, ClientProxy(networks, users))


def _remote_and_target(text: str, flag: str) -> tuple[str, str]:
    """Part ``[REMOTE=]TARGET``; without REMOTE it is any port."""
    remote, equals, target = text.rpartition("=")
    if equals and not (remote and target):
        raise UsageError(
            f"{flag} {text!r} does not say which port leads where",
            "an entry is [REMOTE=]TARGET",
            f"for example {flag} {remote or '2222'}={target or '22'}",
        )
    return remote if equals else "0", target


# Names: --http, --https and --be-exit ------------------------------------------------


def parse_http(text: str) -> Published:
    """Read ``NAME=TARGET[,WORD=VALUE…]``, of a web service or a folder."""
    body, said = split_words(text)
    name, what = _name_and_target(body, "--http")
    return _shared(what, name, read_words(said))


def share_entry(
    what: str,
    name: str = "",
    auth: str | Guard | None = None,
    words: Iterable[SaidWord] = (),
) -> Published:
    """Return the entry of ``tunnel share``, of a target or a folder.

    Without a name the entry has one that this client keeps. ``auth`` is what visitors
    need; ``words`` are others of ``web_words``, as those behind ``what``.
    """
    said: list[SaidWord] = []
    if not os.path.isdir(what):  # whose name may have a comma
        what, said = split_words(what)
    read = read_words([*said, *words])
    if auth is not None:
        read.guard = parse_guard(auth) if isinstance(auth, str) else auth
    ascii_name = public_name(name)
    if name and not ascii_name:
        raise UsageError(
            "--name is no host name",
            "letters, digits and -, with dots between",
            "--name shop, or a whole one: --name shop.example.net",
        )
    return _shared(what, ascii_name, read)


def parse_https(text: str) -> Published:
    """Read ``NAME=TARGET[,WORD…]``, of a service that ends TLS itself."""
    body, said = split_words(text)
    name, target = _name_and_target(body, "--https")
    return https_entry(name, target, said)


def https_entry(name: str, target: str, said: Iterable[SaidWord]) -> Published:
    """Return an entry of a service that ends TLS itself, under a host name in ASCII."""
    words = read_words(said, http=False)
    rules, check = rules_of(words.for_server)
    wanted = MappingEntry(MappingType.HTTPS, "", name, rules=rules)
    service = Service(parse_target(target))
    return Published("https", wanted, service, scheme="https", check=check)


def parse_exit(text: str) -> Published:
    """Read ``NAME[,network=NET…]``, of an exit for other clients."""
    name, options = split_options(text, ("network",))
    return exit_entry(name, options["network"])


def exit_entry(name: str, networks: list[str]) -> Published:
    """Return an entry of an exit for other clients."""
    wanted = MappingEntry(MappingType.EXIT, "", parse_exit_name(name))
    return Published("exit", wanted, ClientExit(Networks.parse(networks)))


def http_entry(
    name: str, target: str, said: Iterable[SaidWord], guard: Guard | None = None
) -> Published:
    """Return an entry of a web service or a folder, under a host name in ASCII.

    Without a name it has one that this client keeps; ``guard`` is what visitors need.
    """
    words = read_words(said)
    words.guard = guard or words.guard
    return _shared(target, name, words)


def _shared(what: str, name: str, words: WebWords) -> Published:
    """Publish what is no port as a folder, if there is one; all else as a service."""
    rules, check = rules_of(words.for_server)
    wanted = MappingEntry(MappingType.HTTP, "", name, rules=rules)
    as_web = partial(
        Published, "http", wanted, scheme="http", check=check, inspect=words.inspect
    )
    scheme, is_url, where = what.partition("://")
    if not (is_url and scheme == "https"):
        words.no_tls()
    if is_url and scheme in ("http", "https"):
        words.check_for(folder=False)
        there = parse_url_target(scheme, where)
        tls = words.tls(there) if scheme == "https" else None
        return as_web(Service(there, rules=words.rules(there, tls), tls=tls))
    is_folder = "/" in what or what in (".", "..", "~") or os.path.isdir(what)
    if not is_folder or what.isdigit() or what.startswith(UNIX_PREFIX):
        words.check_for(folder=False)
        target = parse_target(what)
        return as_web(Service(target, rules=words.rules(target)))
    words.check_for(folder=True)
    try:
        folder = Folder(Path(what).expanduser(), listing=words.listing)
    except (OSError, RuntimeError, ValueError) as error:
        # Where nobody knows what ~ is, and for a name with a NUL.
        raise UsageError(
            f"{what} cannot be shared: {getattr(error, 'strerror', None) or error}",
            "what is shared is [HOST:]PORT, https://HOST:PORT or a folder",
        ) from error
    return as_web(SharedFolder(folder, words.guard))


def _name_and_target(text: str, flag: str) -> tuple[str, str]:
    written, equals, target = text.partition("=")
    name = public_name(written)
    if not (equals and name and target):
        if not equals and (":" in text or text.isdigit()):  # a target without a name
            name, target = "", text
        example = f"{name or 'shop'}={target or '8000'}"
        raise UsageError(
            f"{flag} {text!r} does not say which name leads where",
            "an entry is NAME=TARGET",
            f"for example {flag} {example}",
        )
    return name, target


# Ports here: --reach and --socks -----------------------------------------------------


def parse_reach(text: str, exit_name: str | None = None) -> Local:
    """Read ``LISTEN=TARGET``."""
    listen, _, target = text.rpartition("=")
    if not (listen and target):
        raise UsageError(
            f"--reach {text!r} does not say where to listen and what to reach",
            "an entry is LISTEN=TARGET",
            f"--reach {listen or '5432'}={target or 'db.lan:5432'}",
        )
    return reach_entry(listen, target, exit_name)


def reach_entry(listen: str, target: str, exit_name: str | None = None) -> Local:
    """Return the entry of ``tunnel reach``."""
    return Local(parse_listen(listen), parse_far_target(target), exit_name)


def parse_socks(
    text: str, exit_name: str | None = None, udp_public: str | None = None
) -> Local:
    """Read ``LISTEN[,auth=USER:PASSWORD…]``."""
    listen, options = split_options(text, ("auth",))
    return socks_entry(listen, options["auth"], exit_name, udp_public, "--socks")


def socks_entry(
    text: str,
    auth: list[str],
    exit_name: str | None,
    udp_public: str | None,
    command: str = "tunnel socks",
) -> Local:
    """Return the entry of ``tunnel socks``."""
    users = parse_users(auth)
    listen = parse_listen(text)
    refuse_open_proxy(listen, users, command)
    if udp_public is not None and parse_ip(udp_public) is None:
        raise UsageError(
            f"{udp_public!r} is not an IP address",
            "SOCKS tells apps a number to send their datagrams to, and no port",
            "for example --udp-public-address 203.0.113.7",
        )
    return Local(listen, None, exit_name, users, udp_public)


def refuse_open_proxy(
    listen: End, users: ProxyUsers | None, command: str = "--socks"
) -> None:
    """Refuse a proxy that everybody who reaches its address could use.

    A unix socket is as private as its folder.

    Raises:
        UsageError: no users, and an address beyond this machine. It says how to write
            users behind ``command``: as a word of ``--socks``, else as a flag.
    """
    if users is None and isinstance(listen, Address) and not is_loopback(listen.host):
        auth = ",auth=" if command == "--socks" else " --auth "
        raise UsageError(
            f"a proxy without users is not opened on {listen}",
            "whoever reaches that address could use it",
            f"{command} {listen.port}, or with users {command} '{listen}'{auth}"
            "USER:PASSWORD",
        )
