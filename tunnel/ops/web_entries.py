"""Entries that are web services: under a host name, or at a port where there is none.

Their line has the address that a person opens.
"""

from __future__ import annotations

import logging
import os
from base64 import b32encode
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tunnel.addresses import (
    EVERYWHERE,
    LOCALHOST,
    LOOPBACKS,
    WILDCARDS,
    host_of,
    is_localhost,
    is_loopback,
)
from tunnel.center.exit.tcp import exit_to
from tunnel.center.local_services import share_folder, share_guarded
from tunnel.center.names import NameOptions
from tunnel.center.publisher import NOT_OFFERED
from tunnel.errors import CODES, Code, TunnelError, UsageError
from tunnel.front.http.files import Folder
from tunnel.front.http.names import Guard
from tunnel.log import log_event
from tunnel.net.dial import probe
from tunnel.ops.entries import Line, Published, as_target, parse_target
from tunnel.proto.frames import UNIX_PREFIX, Address, MappingEntry, MappingType

if TYPE_CHECKING:
    import trio

    from tunnel.center.client import CenterClient
    from tunnel.center.events import MappingRefused
    from tunnel.center.exit.tcp import Serve
    from tunnel.proto.frames import End

LOG: Final = logging.getLogger(__name__)
_OWN_NAME_LETTERS: Final = 10
"""50 bits: nobody guesses it, and two of them are never the same."""
_USUAL_PORTS: Final = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class PassedEntry(Published):
    """``--https NAME=TARGET``: TLS for a name at the server, ended by a target here."""

    name: str
    target: End

    @classmethod
    def parse(cls, text: str) -> PassedEntry:
        """Read the text form.

        Raises:
            UsageError: it is none.
        """
        name, target = _name_and_target(text, "--https")
        return cls(name, parse_target(target))

    async def start(self, client: CenterClient, nursery: trio.Nursery) -> str:
        """See ``Published``."""
        del nursery
        wanted = MappingEntry(MappingType.HTTPS, "", self.name)
        return await client.publish(wanted, exit_to(as_target(self.target)))

    async def ready(self, public: Address) -> Line:
        """See ``Published``."""
        target = str(self.target)
        return await _line("https", url_of("https", public), target, self.target)

    def refused(self, notice: MappingRefused) -> TunnelError:
        """See ``Published``."""
        return _name_refused(notice, "https")


@dataclass(frozen=True, slots=True)
class ShareEntry(Published):
    """``share``, ``--http NAME=TARGET``: a web service, or a folder, under a name.

    Args:
        what: a target, or a folder.
        name: as the server knows it; empty for one that this client keeps.
        guard: who may see it.
        scheme: of its address, as far as is known.
    """

    what: End | Folder
    name: str = ""
    guard: Guard | None = None
    scheme: str = "http"

    @classmethod
    def parse(cls, text: str) -> ShareEntry:
        """Read ``NAME=TARGET``.

        Raises:
            UsageError: it is none.
        """
        name, what = _name_and_target(text, "--http")
        return cls(_shared(what), name)

    @classmethod
    def of(
        cls,
        what: str,
        name: str = "",
        auth: str | Guard | None = None,
        *,
        listing: bool = False,
    ) -> ShareEntry:
        """Read what ``share`` was given.

        Raises:
            UsageError: it cannot be shared.
        """
        guard = parse_guard(auth) if isinstance(auth, str) else auth
        if name:
            name = _published_name(name)
            if not name:
                raise UsageError(
                    "--name is no host name",
                    "letters, digits and -, with dots between",
                    "--name shop, or a whole one: --name shop.example.net",
                )
        return cls(_shared(what, listing=listing), name, guard)

    async def start(self, client: CenterClient, nursery: trio.Nursery) -> str:
        """See ``Published``."""
        del nursery
        own = self.name or _own_name(client.client_id, self._key)
        wanted = MappingEntry(MappingType.HTTP, "", own)
        serve = self.serving(by_name=True)
        return await client.publish(wanted, serve, or_else=not self.name)

    def serving(self, *, by_name: bool) -> Serve:
        """Give what serves the visitors."""
        if isinstance(self.what, Folder):
            return share_folder(self.what, self.guard)
        if self.guard is not None:
            return share_guarded(self.what, self.guard, by_name=by_name)
        return exit_to(as_target(self.what))

    async def ready(self, public: Address) -> Line:
        """See ``Published``."""
        target = None if isinstance(self.what, Folder) else self.what
        url = url_of(self.scheme, public)
        return await _line("http", url, self._target, target)

    def over_tls(self) -> Published:
        """See ``Published``."""
        return replace(self, scheme="https")

    @property
    def _target(self) -> str:
        if isinstance(self.what, Folder):
            return os.fsdecode(self.what.root)
        return str(self.what)

    @property
    def _key(self) -> str:
        """What the name of its own goes by; a port alone was 127.0.0.1 to us once."""
        what = self.what
        if isinstance(what, Address) and is_localhost(what.host):
            return str(Address(LOOPBACKS[0], what.port))
        return self._target

    def instead(self, notice: MappingRefused, server_host: str) -> Published | None:
        """Give a port: a server without names can show a web page all the same."""
        if self.name or notice.answer.code not in NOT_OFFERED:
            return None
        log_event(LOG, logging.INFO, "share.at_a_port", reason=notice.answer.reason)
        return _SharedPort(self, server_host)

    def refused(self, notice: MappingRefused) -> TunnelError:
        """See ``Published``."""
        return _name_refused(notice, "http")


@dataclass(frozen=True, slots=True)
class _SharedPort(Published):
    """A web service at a public port, where the server has no host names."""

    share: ShareEntry
    server_host: str

    async def start(self, client: CenterClient, nursery: trio.Nursery) -> str:
        del nursery
        wanted = MappingEntry(MappingType.TCP, "")
        return await client.publish(wanted, self.share.serving(by_name=False))

    async def ready(self, public: Address) -> Line:
        if _is_everywhere(public.host):  # no address to open, so the one that we know
            public = replace(public, host=self.server_host)
        return await self.share.ready(public)

    def refused(self, notice: MappingRefused) -> TunnelError:
        return _name_refused(notice, "http")


def parse_guard(text: str) -> Guard:
    """Read ``USER:PASSWORD``.

    Raises:
        UsageError: a part is missing. The text does not repeat it.
    """
    user, _, password = text.partition(":")
    if not (user and password):
        raise UsageError("that is no user and password", fix="--auth USER:PASSWORD")
    return Guard(user, password)


def url_of(scheme: str, public: Address) -> str:
    """Write the address that a person opens."""
    usual = public.port == _USUAL_PORTS[scheme]
    where = str(Address(public.host, 0))[:-2] if usual else str(public)
    return f"{scheme}://{where}/"


async def _line(kind: str, url: str, text: str, target: End | None) -> Line:
    if target is None:
        return Line(kind, url, text)
    if await probe(target):
        return Line(kind, url, text, "answering")
    warning = f"{text} does not answer; visitors are told so until it does"
    return Line(kind, url, text, "not answering", warning=warning)


def _name_refused(notice: MappingRefused, flag: str) -> TunnelError:
    code = notice.answer.code
    reason = notice.answer.reason or CODES[code].meaning
    name = notice.wanted.host
    fix = ""
    if code is Code.UNSUPPORTED:
        port = _USUAL_PORTS[flag]
        fix = f"run `tunnel serve --{flag} {port} --domain DOMAIN` there"
    elif code in (Code.TAKEN, Code.TAKEN_OVER):
        fix = "choose another name"
    return TunnelError(code, f"the server does not give {name or 'a port'}: {reason}",
                       fix=fix)  # fmt: skip


def _name_and_target(text: str, flag: str) -> tuple[str, str]:
    written, equals, target = text.partition("=")
    name = _published_name(written)
    if not (equals and name and target):
        raise UsageError(
            f"{flag} {text!r} does not say which name leads where",
            "an entry is NAME=TARGET",
            f"for example {flag} {(equals and name) or 'shop'}="
            f"{(target if equals else text) or '8000'}",
        )
    return name, target


def _published_name(text: str) -> str:
    """Return a name as the server takes it, in ASCII; nothing if it cannot be one."""
    any_label = "*." if text.startswith("*.") else ""
    name = host_of(text.removeprefix(any_label).removesuffix("."))
    return any_label + name if name and ":" not in name else ""


def _shared(text: str, *, listing: bool = False) -> End | Folder:
    """Read what is shared: whatever is no port is a folder, if there is one."""
    is_folder = (
        "/" in text or text in (".", "..", "~") or (text and Path(text).is_dir())
    )
    if not is_folder or text.isdigit() or text.startswith(UNIX_PREFIX):
        return parse_target(text)
    try:
        return Folder(Path(text).expanduser(), listing=listing)
    except (OSError, RuntimeError) as error:  # the latter: nobody knows what ~ is
        raise UsageError(
            f"{text} cannot be shared: {getattr(error, 'strerror', None) or error}",
            "what is shared is [HOST:]PORT or a folder",
        ) from error


def _is_everywhere(host: str) -> bool:
    return host in (EVERYWHERE, *WILDCARDS)


def _own_name(client_id: bytes, target: str) -> str:
    """Make a short name that is the same whenever this client shares the same thing."""
    digest = sha256(client_id + target.encode(errors="surrogateescape")).digest()
    return b32encode(digest)[:_OWN_NAME_LETTERS].decode().lower()


def name_options(
    http: str | None,
    https: str | None,
    domain: str | None,
    certificate: tuple[Path, Path] | None,
) -> NameOptions:
    """Read where a server serves host names.

    Without a domain, names on loopback end in ``.localhost``, which browsers and curl
    look for on their own machine.

    Raises:
        UsageError: the values do not fit together.
    """
    if certificate is not None and https is None:
        raise UsageError(
            "a certificate is given, but no port to use it on",
            fix="--https 443",
        )
    known = host_of(domain.strip(".")) if domain is not None else None
    if domain is not None and (known is None or ":" in known):
        raise UsageError(f"{domain!r} is not a domain", fix="--domain t.example.net")
    http_at = Address.parse(http, EVERYWHERE) if http else None
    https_at = Address.parse(https, EVERYWHERE) if https else None
    public = [at for at in (http_at, https_at) if at and not is_loopback(at.host)]
    if known is None and not public:
        known = LOCALHOST
    name = known.lower() if known else None
    return NameOptions(http_at, https_at, name, certificate)
