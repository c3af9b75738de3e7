"""What an entry of a web service can say behind its target: ``,WORD=VALUE…``.

One table is the grammar of all: of ``tunnel up --http`` and ``--https``, of ``tunnel
share`` and of the library. Each word is a row with a reader, which notes in
``WebWords`` what the word says.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from ssl import SSLError
from typing import TYPE_CHECKING, Final, NamedTuple

from tunnel.center.tls_target import TargetTls
from tunnel.errors import UsageError
from tunnel.front.http.service_rules import Edits, Own, ServiceRules, name_of
from tunnel.ops.entry_values import parse_guard, parse_pin, unknown_word

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from tunnel.addresses import Address, End
    from tunnel.front.http.guard import Guard
    from tunnel.ops.entry_values import SaidWord

Said = str | int | Path | Sequence[str] | None
"""A word as a flag or an argument says it."""
REWRITE: Final = "rewrite"
_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HOST: Final = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.-]+)(:[0-9]{1,5})?")
_NOT_TO_EDIT: Final = frozenset(
    (
        "connection", "content-length", "expect", "host", "keep-alive", "te", "trailer",
        "transfer-encoding", "upgrade",
    )
)  # fmt: skip


@dataclass(slots=True)
class WebWords:
    """What the words of one entry say."""

    said: set[str] = field(default_factory=set)
    """The names of the words."""
    guard: Guard | None = None
    """What visitors need."""
    keeps_header: bool = False
    """The target gets the Authorization of visitors."""
    cors: bool = False
    """Preflights need no password."""
    host: str = ""
    """The Host of requests to the target, or REWRITE; empty: the visitor's."""
    request: Edits = field(default_factory=Edits)
    answer: Edits = field(default_factory=Edits)
    ca: str = ""
    """The file of the authorities of the target's certificate."""
    pin: str = ""
    """Of the target's key."""
    insecure: bool = False
    """The target proves nothing."""
    protocol: str = ""
    """What the target speaks: ``h2c``, or ``h2`` inside its TLS; empty: HTTP/1.1."""
    listing: bool = False
    """Folders that have no index.html are listed."""
    inspect: bool = False
    """The requests are kept to be looked at."""
    for_server: dict[str, list[str]] = field(default_factory=dict)
    """What the server is to ask of visitors, as ``entry_rules.rules_of`` takes it."""

    def rules(self, target: End, tls: TargetTls | None = None) -> ServiceRules | None:
        """Return what this client enforces before a target; None: nothing."""
        secure = tls is not None
        own = Own.of(target, secure=secure) if self.host == REWRITE else None
        host = own.authority if own is not None else self.host.encode()
        guard = self.guard
        if guard is not None:
            guard = replace(guard, keeps_header=self.keeps_header, cors=self.cors)
        elif self.keeps_header or self.cors:
            raise UsageError(
                "auth-header and cors are about a password", "and there is none",
                "auth=USER:PASSWORD, as a flag --auth",
            )  # fmt: skip
        http_2 = bool(self.protocol)
        if http_2 and (self.protocol == "h2") is not secure:
            raise UsageError(
                f"protocol={self.protocol} is not for this target",
                "h2 is spoken inside of TLS, and h2c without",
                "protocol=h2 with https://HOST:PORT as TARGET, else protocol=h2c",
            )
        rules = ServiceRules(guard, host, own, self.request, self.answer, http_2)
        return rules if secure or rules != ServiceRules() else None

    def tls(self, target: Address) -> TargetTls:
        """Return who an https target must prove to be: who it is asked for."""
        name = target.host
        if self.host not in ("", REWRITE):
            found = _HOST.fullmatch(self.host)
            name = found[1].strip("[]") if found else name
        if self.insecure and (self.ca or self.pin):
            raise UsageError(
                "insecure contradicts ca= and pin=", "it asks the target for nothing"
            )
        try:
            alpn = "h2" if self.protocol == "h2" else "http/1.1"
            return TargetTls(name, self.ca, self.pin, self.insecure, alpn)
        except OSError as error:
            is_pem = not isinstance(error, SSLError)
            raise UsageError(
                f"ca={self.ca} cannot be used",
                error.strerror or "" if is_pem else "it has no certificate in PEM",
            ) from error

    def no_tls(self) -> None:
        """Raise UsageError if a word is about TLS to the target: there is none."""
        for name in sorted(self.said & {"ca", "pin", "insecure"}):
            raise UsageError(
                f"{name!r} is about a target that is spoken to with TLS",
                "this one is not",
                "https://HOST:PORT as TARGET",
            )

    def check_for(self, *, folder: bool) -> None:
        """Raise UsageError if a word is not about what is shared."""
        for name in sorted(self.said):
            if folder and WORDS[name].needs_target:
                raise UsageError(
                    f"{name!r} is not for a folder",
                    "it is about what a service is asked, or answers",
                )
            if WORDS[name].needs_folder and not folder:
                raise UsageError(
                    f"{name!r} is only for a folder", "a service makes its own pages"
                )


class Word(NamedTuple):
    """A row of the table."""

    read: Callable[[WebWords, str], None]
    """Notes what a value says; raises UsageError, without a secret in its words."""
    takes: str
    """The form of its value, for people; empty if it takes none."""
    repeats: bool = False
    """It may be said several times, each adding a value."""
    needs_http: bool = True
    """It is about requests: TLS that passes through has none."""
    needs_target: bool = False
    """It is about a service that is asked: a folder has none."""
    needs_folder: bool = False
    """It is about files."""


def _read_auth(words: WebWords, value: str) -> None:
    words.guard = parse_guard(value)


def _read_auth_header(words: WebWords, value: str) -> None:
    if value != "keep":
        raise UsageError(
            f"auth-header={value} is unknown",
            "the target gets the Authorization of visitors with keep, else it does not",
            "auth-header=keep",
        )
    words.keeps_header = True


def _read_cors(words: WebWords, _: str) -> None:
    words.cors = True


def _read_host(words: WebWords, value: str) -> None:
    if not _HOST.fullmatch(value):
        raise UsageError(
            f"host={value} cannot be read",
            "it is rewrite, or NAME[:PORT]",
            "host=rewrite",
        )
    words.host = value


def _read_header(words: WebWords, value: str) -> None:
    words.request = _edited(words.request, value, "header")


def _read_response_header(words: WebWords, value: str) -> None:
    words.answer = _edited(words.answer, value, "response-header")


def _read_ca(words: WebWords, value: str) -> None:
    words.ca = str(Path(value).expanduser())


def _read_pin(words: WebWords, value: str) -> None:
    words.pin = parse_pin(value)


def _read_insecure(words: WebWords, _: str) -> None:
    words.insecure = True


def _read_protocol(words: WebWords, value: str) -> None:
    if value not in ("h2", "h2c"):
        raise UsageError(
            f"protocol={value} is unknown",
            "it is HTTP/1.1 when nothing is said; HTTP/2 is h2c, or h2 inside of TLS",
            "protocol=h2c",
        )
    words.protocol = value


def _read_list(words: WebWords, _: str) -> None:
    words.listing = True


def _read_inspect(words: WebWords, _: str) -> None:
    words.inspect = True


def _for_server(name: str) -> Callable[[WebWords, str], None]:
    def read(words: WebWords, value: str) -> None:
        words.for_server.setdefault(name, []).append(value)

    return read


def _edited(edits: Edits, value: str, word: str) -> Edits:
    """Add what ``+NAME:VALUE`` or ``-NAME`` says."""
    sign, rest = value[:1], value[1:]
    name, colon, text = rest.partition(":")
    text = text.strip()
    if sign not in "+-" or (sign == "+") != bool(colon) or not _TOKEN.fullmatch(name):
        raise UsageError(
            f"{word}= sets or removes one field",
            "it is +NAME:VALUE or -NAME",
            f"for example {word}=+X-From:tunnel, or {word}=-Server",
        )
    if not text.isprintable():
        raise UsageError(f"the value of {word}=+{name} has a control character")
    if name.lower().replace("_", "-") in _NOT_TO_EDIT:
        fix = "host=rewrite or host=NAME" if name.lower() == "host" else ""
        raise UsageError(
            f"{word}= cannot change {name}", "the message is framed by it", fix
        )
    lines = (f"{name}: {text}".encode(),) if sign == "+" else ()
    return Edits(edits.names | {name_of(name.encode())}, edits.lines + lines)


WORDS: Final[dict[str, Word]] = {
    "auth": Word(_read_auth, "USER:PASSWORD"),
    "auth-header": Word(_read_auth_header, "keep", needs_target=True),
    "cors": Word(_read_cors, "", needs_target=True),
    "host": Word(_read_host, "rewrite|NAME", needs_target=True),
    "header": Word(_read_header, "+NAME:VALUE|-NAME", repeats=True, needs_target=True),
    "response-header": Word(
        _read_response_header, "+NAME:VALUE|-NAME", repeats=True, needs_target=True
    ),
    "ca": Word(_read_ca, "FILE", needs_target=True),
    "pin": Word(_read_pin, "PIN", needs_target=True),
    "insecure": Word(_read_insecure, "", needs_target=True),
    "protocol": Word(_read_protocol, "h2c|h2", needs_target=True),
    "list": Word(_read_list, "", needs_folder=True),
    "inspect": Word(_read_inspect, ""),
    "allow": Word(_for_server("allow"), "NET", repeats=True, needs_http=False),
    "deny": Word(_for_server("deny"), "NET", repeats=True, needs_http=False),
    "expires": Word(_for_server("expires"), "2h", needs_http=False),
    "requests": Word(_for_server("requests"), "10/s"),
    "max-body": Word(_for_server("max-body"), "10M"),
    "path": Word(_for_server("path"), "/PATH"),
    "strip": Word(_for_server("strip"), ""),
    "group": Word(_for_server("group"), "NAME", needs_http=False),
    "check": Word(
        _for_server("check"), "/PATH|tcp", needs_http=False, needs_target=True
    ),
}


def pairs_of(values: Mapping[str, Said]) -> list[SaidWord]:
    """Return what flags or arguments say as ``read_words`` takes it.

    ``_`` is ``-``. None and False say nothing, True says a word that takes no value, a
    number or path is said as text, a sequence says its word several times.
    """
    pairs: list[SaidWord] = []
    for name, value in values.items():
        if value is None or value is False:
            continue
        several: Sequence[str | None]
        if value is True:
            several = (None,)
        else:
            several = (str(value),) if isinstance(value, str | int | Path) else value
        pairs += ((name.replace("_", "-"), one) for one in several)
    return pairs


def read_words(said: Iterable[SaidWord], *, http: bool = True) -> WebWords:
    """Read the words of an entry, pairs of name and value.

    Args:
        said: as ``split_words`` gives them.
        http: the entry's requests are seen; not those of TLS that passes through.

    Raises:
        UsageError: one is unknown, has no value or one too many, cannot be read, or
            cannot be enforced here.
    """
    words = WebWords()
    for name, value in said:
        word = WORDS.get(name)
        if word is None:
            raise unknown_word(name, {one: row.takes for one, row in WORDS.items()})
        if value == "" or (value is None) is bool(word.takes):
            why = f"it is {name}={word.takes}" if word.takes else "it takes no value"
            raise UsageError(f"{name!r} is not said like that", why)
        if name in words.said and not word.repeats:
            raise UsageError(f"{name!r} is said twice", "one of them would be ignored")
        if word.needs_http and not http:
            raise UsageError(
                f"{name!r} is not for TLS that passes through",
                "nobody on the way can read its requests",
                "--http, and `tunnel serve --certificate` at the server, end TLS there",
            )
        words.said.add(name)
        word.read(words, value or "")
    return words
