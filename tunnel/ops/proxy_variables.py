"""``HTTPS_PROXY``, ``ALL_PROXY`` and ``NO_PROXY``, read as curl and Go read them.

The link is one TLS connection to any port, so ``HTTPS_PROXY`` comes before
``ALL_PROXY``, and ``HTTP_PROXY`` says nothing about it.
"""

from __future__ import annotations

import re
from dataclasses import replace
from ipaddress import ip_network
from typing import TYPE_CHECKING, Final

from tunnel.addresses import MAX_PORT, is_loopback, parse_ip, unmapped
from tunnel.errors import UsageError
from tunnel.link.upstream_proxy import UpstreamProxy
from tunnel.words import whole_number

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tunnel.addresses import IpAddress

_PROXIES: Final = ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")
"""The first that is not empty counts; lower case comes first, as in curl."""
_EXEMPT: Final = ("no_proxy", "NO_PROXY")
_OTHERS: Final = ("http_proxy", "HTTP_PROXY")
_WITH_PORT: Final = re.compile(r"(\[[^\]]*\]|[^:]*)(?::(\d+))?")


def proxy_of(environ: Mapping[str, str], host: str, port: int) -> UpstreamProxy | None:
    """Return the proxy on the way to a server, or None for the direct way.

    Raises:
        UsageError: a variable holds no URL of a proxy. The text names the variable and
            does not repeat the URL, which may hold a password.
    """
    name = _first(environ, _PROXIES)
    if name is None or not_used(environ, host, port) is not None:
        return None
    url = environ[name].strip()
    try:
        via = UpstreamProxy.parse(url if "://" in url else f"http://{url}")
    except UsageError as error:
        raise UsageError(
            f"the proxy of {name} cannot be used",
            error.cause,
            f"{name}=http://USER:PASSWORD@proxy.lan:3128, or --via none to go without",
        ) from None
    return replace(via, named=name)


def not_used(
    environ: Mapping[str, str], host: str, port: int
) -> tuple[str, str] | None:
    """Return the variable whose proxy is not used on the way to a server, and why.

    None where the environment names no proxy, or where the proxy is used.
    """
    name = _first(environ, _PROXIES)
    if name is None:
        other = _first(environ, _OTHERS)
        why = "the link is not HTTP: HTTPS_PROXY or ALL_PROXY counts"
        return (other, why) if other else None
    if is_here(host):
        return name, "the server is this machine"
    exempt = _first(environ, _EXEMPT)
    if exempt and is_exempt(environ[exempt], host, port):
        return name, f"{exempt} names the server"
    return None


def _first(environ: Mapping[str, str], names: Sequence[str]) -> str | None:
    return next((name for name in names if environ.get(name, "").strip()), None)


def is_here(host: str) -> bool:
    """Say whether a server of that name or address can only be this machine."""
    ip = _ip(host)
    is_unspecified = ip is not None and ip.is_unspecified
    return is_loopback(host) or is_unspecified or _name(host).endswith(".localhost")


def is_exempt(entries: str, host: str, port: int) -> bool:
    """Say whether ``NO_PROXY`` names a host.

    Its entries, parted by commas and spaces, are ``*``, names (which include all names
    below them, with or without a dot or ``*.`` in front), addresses and networks. All
    but networks may have a ``:PORT`` that they are limited to. Nothing is resolved.
    """
    return any(_names(entry, host, port) for entry in re.split(r"[\s,]+", entries))


def _names(entry: str, host: str, port: int) -> bool:
    if entry == "*":
        return True
    ip = _ip(host)
    try:
        network = ip_network(entry, strict=False)
    except ValueError:
        pass
    else:
        return ip is not None and ip in network
    parts = _WITH_PORT.fullmatch(entry)
    if parts is None or (parts[2] and whole_number(parts[2], MAX_PORT) != port):
        return False
    if ip is not None:
        return _ip(parts[1]) == ip
    suffix = _name(parts[1].removeprefix("*").removeprefix("."))
    return bool(suffix) and f".{_name(host)}".endswith(f".{suffix}")


def _name(host: str) -> str:
    return host.lower().removesuffix(".")


def _ip(host: str) -> IpAddress | None:
    ip = parse_ip(host.removeprefix("[").removesuffix("]"))
    return ip and unmapped(ip)
