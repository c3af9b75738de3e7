"""What the words of an entry want of the heads of its requests and answers. Sans-IO.

host=rewrite        the target is asked for by its own address, and what it says of
                    that address (Location, Domain= of cookies) becomes public
host=NAME           the target is asked for by that name, and nothing else changes
header=             fields of a request are set or removed
response-header=    those of an answer
protocol=h2c        the target speaks HTTP/2
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from tunnel.addresses import LOCALHOST, Address, is_localhost, parse_ip
from tunnel.front.http.fields import answer_lines

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tunnel.addresses import End
    from tunnel.front.http.forwarded import Origin
    from tunnel.front.http.guard import Guard
    from tunnel.front.http.heads import AnswerHead

_USUAL_PORTS: Final = {"http": 80, "https": 443}
_LOOPBACK_HOSTS: Final = ("localhost", "127.0.0.1", "[::1]", "0.0.0.0")  # noqa: S104
"""What a program of this machine calls itself; the last if it listens everywhere."""
_URL: Final = re.compile(
    rb"(?:https?:)?//([^/?#\\@]*)((?:[/?#].*)?)", re.IGNORECASE | re.DOTALL
)
_DOMAIN: Final = re.compile(
    rb";[ \t]*domain[ \t]*=[ \t]*([^; \t]*)[ \t]*", re.IGNORECASE
)


def name_of(line: bytes) -> bytes:
    """Return the name of a field line as ``heads.Field`` has it."""
    return line.partition(b":")[0].lower().replace(b"_", b"-")


@dataclass(frozen=True, slots=True)
class Edits:
    """Fields that are set or removed."""

    names: frozenset[bytes] = frozenset()
    """As ``name_of`` gives them, of both kinds."""
    lines: tuple[bytes, ...] = ()
    """Those that are set, without the line's end."""

    def apply(self, lines: list[bytes]) -> list[bytes]:
        """Return the field lines of a head as they are to be."""
        if not self.names:
            return lines
        return [*(line for line in lines if name_of(line) not in self.names),
                *self.lines]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Own:
    """The address by which a target knows itself."""

    scheme: bytes
    authority: bytes
    """For its Host."""
    authorities: frozenset[bytes]
    """All by which it may call itself, in lower case."""
    hosts: frozenset[bytes]
    """The same without ports."""

    @classmethod
    def of(cls, target: End, *, secure: bool) -> Own:
        """Return that of a target, which is spoken to with TLS if ``secure``."""
        scheme = "https" if secure else "http"
        usual = _USUAL_PORTS[scheme]
        host, port = LOCALHOST, usual
        if isinstance(target, Address):
            host, port = target.host.partition("%")[0], target.port
        written = f"[{host}]" if ":" in host else host
        ip = parse_ip(host)
        here = is_localhost(host) or (ip is not None and ip.is_loopback)
        hosts = {written.lower(), *(_LOOPBACK_HOSTS if here else ())}
        with_port = {f"{one}:{port}" for one in hosts}
        bare = hosts if port == usual else set()
        return cls(
            scheme.encode(),
            (written if port == usual else f"{written}:{port}").encode(),
            frozenset(one.encode() for one in with_port | bare),
            frozenset(one.encode() for one in hosts),
        )


@dataclass(frozen=True, slots=True)
class ServiceRules:
    """What the words of one entry want; the first of each is the default."""

    guard: Guard | None = None
    """Asked at each request."""
    host: bytes = b""
    """The Host that the target gets; empty: the visitor's."""
    own: Own | None = None
    """To be turned into what is public, and back; None: nothing is."""
    request: Edits = field(default_factory=Edits)
    answer: Edits = field(default_factory=Edits)
    http_2: bool = False
    """The target speaks it."""

    def request_lines(self, lines: list[bytes], origin: Origin) -> list[bytes]:
        """Return the field lines of a request as the target is to get them."""
        if self.own is not None:
            lines = [_to_own(line, self.own, origin) for line in lines]
        return self.request.apply(lines)

    def answer_lines(self, origin: Origin) -> Callable[[AnswerHead], list[bytes]]:
        """Return what makes the fields of an answer that go on (``Exchange``)."""
        guarded = self.guard is not None
        if self.own is None and not self.answer.names and not guarded:
            return answer_lines

        def lines_of(head: AnswerHead) -> list[bytes]:
            lines: Iterable[bytes] = answer_lines(head)
            if self.own is not None:
                lines = (_to_public(line, self.own, origin) for line in lines)
            if guarded:
                lines = (_of_one_site(line, origin) for line in lines)
            return self.answer.apply(list(lines))

        return lines_of


def _to_own(line: bytes, own: Own, origin: Origin) -> bytes:
    """Turn the visitor's word for this site into the target's.

    Programs that compare Host compare Origin and Referer with it; those of another site
    stay, so that they are still known as such.
    """
    if name_of(line) not in (b"origin", b"referer"):
        return line
    name, _, value = line.partition(b":")
    found = _URL.fullmatch(value.strip(b" \t"))
    if found is None or found[1].lower() != origin.host.lower().encode("latin-1"):
        return line
    return b"%b: %b://%b%b" % (name, own.scheme, own.authority, found[2])


def _to_public(line: bytes, own: Own, origin: Origin) -> bytes:
    """Turn what a target says of its own address into what is true outside."""
    kind = name_of(line)
    if kind not in (b"location", b"content-location", b"set-cookie"):
        return line
    name, _, value = line.partition(b":")
    value = value.strip(b" \t")
    if kind == b"set-cookie":
        return b"%b: %b" % (name, public_cookie(value, own, origin))
    found = _URL.fullmatch(value)
    if found is None or found[1].lower() not in own.authorities:
        return line
    where = b""  # a visitor that names no host understands a path
    if origin.host:
        where = f"{origin.proto}://{origin.host}".encode("latin-1")
    path = found[2]
    return b"%b: %b%b" % (name, where, path if path[:1] == b"/" else b"/" + path)


def public_cookie(value: bytes, own: Own, origin: Origin) -> bytes:
    """Return a Set-Cookie whose ``Domain=`` is the public host, if it was the target's.

    Browsers take no domain that is an address or a single word: then it has none, and
    the cookie is the public host's all the same.
    """

    def public(found: re.Match[bytes]) -> bytes:
        domain = found[1].lower().removeprefix(b".")
        if domain not in own.hosts:
            return found[0]
        host = _host_of(origin.host)
        if parse_ip(host) is not None or "." not in host:
            return b""
        return b"; Domain=" + host.encode("latin-1")

    return _DOMAIN.sub(public, value)


def _of_one_site(line: bytes, origin: Origin) -> bytes:
    """Take the ``Domain=`` of a cookie that would go to other sites of the domain too.

    There may be others' sites, whose login must not be set from here.
    """
    if name_of(line) != b"set-cookie":
        return line
    host = _host_of(origin.host).lower().encode("latin-1")

    def own(found: re.Match[bytes]) -> bytes:
        above = b"." + found[1].lower().removeprefix(b".")
        return b"" if host.endswith(above) else found[0]

    return _DOMAIN.sub(own, line)


def _host_of(authority: str) -> str:
    """Return the host of ``HOST[:PORT]``, which was read before."""
    if authority.startswith("["):
        return authority[1:].partition("]")[0]
    return authority.partition(":")[0].rstrip(".")
