"""The join line: all that a client needs to reach a server and to be let in.

    tunnel://NAME:TOKEN@HOST:PORT/#PIN

No message and no ``repr`` shows a token. Proofs made from it are the business of
``proto.proofs``.
"""

from __future__ import annotations

import hmac
import secrets
import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NoReturn
from urllib.parse import quote, unquote

from tunnel.access.files import exists, read_private, write_private
from tunnel.addresses import MAX_PORT, Address, host_of
from tunnel.errors import StateError, UsageError
from tunnel.proto.proofs import TOKEN_BYTES, from_base64url, to_base64url
from tunnel.words import bare, whole_number

if TYPE_CHECKING:
    from pathlib import Path

DEFAULT_PORT: Final = 7443
PIN_BYTES: Final = 32
MAX_NAME_BYTES: Final = 255

_FORM: Final = "tunnel://NAME:TOKEN@HOST:PORT/#PIN"


class Secret:
    """A text that prints as ``***``; ``reveal`` gives it, ``==`` is constant-time."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """Return the text itself, for the one place that needs it."""
        return self._text

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        mine, theirs = (
            secret.reveal().encode(errors="surrogatepass") for secret in (self, other)
        )
        return hmac.compare_digest(mine, theirs)

    def __hash__(self) -> int:
        return hash(self._text)

    def __repr__(self) -> str:
        return "***"


def make_token() -> Secret:
    """Return a new token: 32 random bytes as base64url without padding."""
    return Secret(to_base64url(secrets.token_bytes(TOKEN_BYTES)))


# The line --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class JoinLine:
    """All that a client needs to reach a server and to be let in, in one line of text.

    ``pin`` is the server's (``pin_of``); None means: verify the certificate against the
    system's authorities and the host name. ``plain`` is a link without TLS or pin.
    """

    name: str
    token: Secret
    host: str
    port: int
    pin: str | None
    plain: bool

    def render(self) -> str:
        """Return the line, **with the token**, as ``parse_join`` reads it."""
        scheme = "tunnel+plain" if self.plain else "tunnel"
        name, where = quote(self.name, safe=""), Address(self.host, self.port)
        pin = f"#{self.pin}" if self.pin else ""
        return f"{scheme}://{name}:{self.token.reveal()}@{where}/{pin}"


def parse_join(text: str) -> JoinLine:
    """Read a join line; what ``bare`` takes off is ignored, the port may be absent.

    Raises:
        UsageError: with what is wrong. No message contains any part of the line that
            could be the token, also where the parts stand in the wrong order.
    """
    scheme, separator, rest = bare(text).partition("://")
    if not separator or scheme not in ("tunnel", "tunnel+plain"):
        _refuse("it does not begin with tunnel:// or tunnel+plain://")
    rest, _, pin = rest.partition("#")
    authority, _, path = rest.partition("/")
    user, at, where = authority.rpartition("@")
    if not at:
        _refuse("there is no NAME:TOKEN@ before the host")
    if path:
        _refuse("there is a path after the host and the port")
    name, token = _parse_user(user)
    host, port = _parse_where(where)
    plain = scheme == "tunnel+plain"
    if plain and pin:
        _refuse("a plain link has no key to pin", "drop #PIN, or use tunnel://")
    key = from_base64url(pin, PIN_BYTES)
    if pin and (key is None or to_base64url(key) != pin):  # one spelling of each
        _refuse(f"the PIN after # is not the base64url of {PIN_BYTES} bytes")
    return JoinLine(name, token, host, port, pin or None, plain)


def _parse_user(user: str) -> tuple[str, Secret]:
    quoted, colon, token = user.partition(":")
    if not colon:
        _refuse("the token is missing", "write NAME:TOKEN before the @")
    if from_base64url(token, TOKEN_BYTES) is None:
        _refuse(
            f"the token is not the base64url of {TOKEN_BYTES} bytes",
            "copy the whole line that `tunnel serve` printed",
        )
    try:
        name = unquote(quoted, errors="strict")
    except UnicodeDecodeError:
        _refuse("the name is not UTF-8")
    if not name.isprintable() or not 0 < len(name.encode()) <= MAX_NAME_BYTES:
        _refuse(f"the name is not 1 to {MAX_NAME_BYTES} bytes of printable text")
    return name, Secret(token)


def _parse_where(where: str) -> tuple[str, int]:
    if where.startswith("["):
        address, bracket, after = where[1:].partition("]")
        found = host_of(f"[{address}]", zone=True)
        if not bracket or found is None or (after and after[0] != ":"):
            _refuse("what follows the @ is not [IPv6 ADDRESS]:PORT")
        host, port = found, after[1:] if after else str(DEFAULT_PORT)
    else:
        host, colon, port = where.partition(":")
        port = port if colon else str(DEFAULT_PORT)
        if ":" in port:
            _refuse("what follows the @ is not HOST:PORT", "put IPv6 addresses in [ ]")
        if (known := host_of(host)) is None:
            _refuse(f"{host!r} is not a host name or an address")
        host = known
    if not (number := whole_number(port, MAX_PORT)):
        _refuse(f"the port {port[:8]!r} is not a number from 1 to 65535")
    return host, number


def _refuse(cause: str, fix: str = f"a join line looks like {_FORM}") -> NoReturn:
    raise UsageError("this join line cannot be used", cause, fix)


# Where a server keeps its owner's --------------------------------------------------
#
# Each raises StateError where the file is damaged, not ours, open to others, or cannot
# be written.


def owner_token(state_dir: Path) -> Secret:
    """Return the token of the kept line, or a new one for ``write_join`` to save."""
    join = kept_join(state_dir)
    return make_token() if join is None else join.token


def kept_join(state_dir: Path) -> JoinLine | None:
    """Return the line in STATE/join; None where there is no such file."""
    path = state_dir / "join"
    if not exists(path):
        return None
    try:
        return parse_join(read_private(path))
    except UsageError as error:
        fix = f"rm {shlex.quote(str(path))}, and a new token is made"
        raise StateError(f"cannot use {path}", error.cause, fix) from None


def write_join(state_dir: Path, join: JoinLine) -> None:
    """Save the owner's join line as STATE/join, with mode 0600.

    A line that stands there already is not written again: the folder may be read-only.
    """
    path, text = state_dir / "join", join.render() + "\n"
    if not (exists(path) and read_private(path) == text):
        write_private(path, text)
